//! FUSE messages that fuse-backend-rs does not have (include/uapi/linux/fuse.h).

use rustix::fs::{Statx, StatxTimestamp};
use vm_memory::ByteValued;

/// `struct fuse_setxattr_in` with SETXATTR_EXT.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SetxattrInExt {
    pub(super) size: u32,
    pub(super) flags: u32,
    pub(super) setxattr_flags: u32,
    pub(super) padding: u32,
}
// SAFETY: integers only, no padding.
unsafe impl ByteValued for SetxattrInExt {}

/// `struct fuse_statx_in`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StatxIn {
    pub(super) getattr_flags: u32,
    pub(super) reserved: u32,
    pub(super) fh: u64,
    pub(super) sx_flags: u32,
    pub(super) sx_mask: u32,
}
// SAFETY: integers only, no padding.
unsafe impl ByteValued for StatxIn {}

/// `struct fuse_sx_time`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SxTime {
    pub(super) tv_sec: i64,
    pub(super) tv_nsec: u32,
    pub(super) reserved: i32,
}

impl From<StatxTimestamp> for SxTime {
    fn from(time: StatxTimestamp) -> Self {
        SxTime { tv_sec: time.tv_sec, tv_nsec: time.tv_nsec, reserved: 0 }
    }
}

/// `struct fuse_statx_out` with its `struct fuse_statx`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StatxOut {
    pub(super) attr_valid: u64,
    pub(super) attr_valid_nsec: u32,
    pub(super) flags: u32,
    pub(super) spare: [u64; 2],
    pub(super) mask: u32,
    pub(super) blksize: u32,
    pub(super) attributes: u64,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u16,
    pub(super) spare0: u16,
    pub(super) ino: u64,
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) attributes_mask: u64,
    pub(super) atime: SxTime,
    pub(super) btime: SxTime,
    pub(super) ctime: SxTime,
    pub(super) mtime: SxTime,
    pub(super) rdev_major: u32,
    pub(super) rdev_minor: u32,
    pub(super) dev_major: u32,
    pub(super) dev_minor: u32,
    pub(super) spare2: [u64; 14],
}
// SAFETY: integers only; every field lies at a multiple of its size, so there is no padding (the tests count).
unsafe impl ByteValued for StatxOut {}

impl From<Statx> for StatxOut {
    fn from(stat: Statx) -> Self {
        StatxOut {
            mask: stat.stx_mask,
            blksize: stat.stx_blksize,
            attributes: stat.stx_attributes.bits(),
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            mode: stat.stx_mode,
            ino: stat.stx_ino,
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            attributes_mask: stat.stx_attributes_mask.bits(),
            atime: stat.stx_atime.into(),
            btime: stat.stx_btime.into(),
            ctime: stat.stx_ctime.into(),
            mtime: stat.stx_mtime.into(),
            rdev_major: stat.stx_rdev_major,
            rdev_minor: stat.stx_rdev_minor,
            dev_major: stat.stx_dev_major,
            dev_minor: stat.stx_dev_minor,
            ..StatxOut::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_sizes_of_the_kernels_header() {
        assert_eq!(size_of::<SetxattrInExt>(), 16);
        assert_eq!(size_of::<StatxIn>(), 24);
        assert_eq!(size_of::<SxTime>(), 16);
        // fuse_statx_out is 32 bytes of its own and the 256 of fuse_statx.
        assert_eq!(size_of::<StatxOut>(), 288);
        assert_eq!(std::mem::offset_of!(StatxOut, atime), 32 + 64);
        assert_eq!(std::mem::offset_of!(StatxOut, rdev_major), 32 + 128);
    }
}
