//! File handles: the host's name for an inode that outlives its descriptors (name_to_handle_at(2)).
//!
//! Only handles that the host gave out for something the guest had looked up are ever opened. A handle is easily made
//! up (ext4's is inode number and generation) and would lead to any file of the file system, so none is taken from the
//! guest, and node ids are not computed from handles.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::fs::{Statx, StatxFlags};

/// The longest handle kept, in bytes: overlayfs on ext4 has 32, xfs 12, ext4 8, btrfs 20. Files with longer ones are
/// held by descriptor.
const MAX_BYTES: usize = 33;
/// FILEID_INO32_GEN (include/linux/exportfs.h): inode number u32, generation u32.
const INO32_GEN: u16 = 1;
/// XFS_FILEID_TYPE_64FLAG with FILEID_INO32_GEN (fs/xfs/xfs_export.h): inode number u64, generation u32.
const XFS_INO64_GEN: u16 = 0x81;

/// Kind of what stands in for a handle where the host has none: FILEID_INVALID, which no host gives out.
const BIRTH: u16 = 0xff;

/// A file handle and the mount it is to be opened in. 40 bytes, since there may be a million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileHandle {
    /// [`super::mounts::Mount::slot`].
    pub(super) mount: u32,
    kind: u16,
    len: u8,
    bytes: [u8; MAX_BYTES],
}

/// `struct file_handle` with room for the bytes.
#[repr(C)]
struct Raw {
    len: u32,
    kind: i32,
    bytes: [u8; MAX_BYTES],
}

impl FileHandle {
    /// The handle of what a descriptor refers to; `None` where the host has none, or a longer one.
    pub(super) fn of(fd: &impl AsFd, mount: u32) -> Option<Self> {
        Self::ask(fd, c"", libc::AT_EMPTY_PATH, mount)
    }

    /// The handle of a directory's entry, not following it.
    pub(super) fn of_entry(dir: &impl AsFd, name: &CStr, mount: u32) -> Option<Self> {
        Self::ask(dir, name, 0, mount)
    }

    fn ask(dir: &impl AsFd, name: &CStr, flags: i32, mount: u32) -> Option<Self> {
        let mut raw = Raw { len: MAX_BYTES as u32, kind: 0, bytes: [0; MAX_BYTES] };
        let mut mount_id = 0;
        // SAFETY: `raw` is laid out as `struct file_handle` and has the room it says; `name` ends with NUL.
        let result = unsafe {
            libc::name_to_handle_at(
                dir.as_fd().as_raw_fd(),
                name.as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount_id,
                flags,
            )
        };
        if result < 0 {
            return None;
        }
        let (kind, len) = (u16::try_from(raw.kind).ok()?, u8::try_from(raw.len).ok()?);
        Some(FileHandle { mount, kind, len, bytes: raw.bytes })
    }

    /// What stands in for the handle where the host has none: device, inode number and time of birth. Enough to know an
    /// inode again, but it cannot be opened. `None` on a file system without times of birth.
    pub(super) fn of_birth(stat: &Statx) -> Option<Self> {
        if !StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME) {
            return None;
        }
        let (dev, birth) = ((stat.stx_dev_major, stat.stx_dev_minor), stat.stx_btime);
        let mut bytes = [0; MAX_BYTES];
        let fields = stat.stx_ino.to_ne_bytes().into_iter().chain(birth.tv_sec.to_ne_bytes());
        let fields = fields.chain(birth.tv_nsec.to_ne_bytes()).chain(dev.0.to_ne_bytes()).chain(dev.1.to_ne_bytes());
        // The mount's id instead of a slot: ids are not used twice where times of birth matter (Linux 6.8).
        let len = bytes.iter_mut().zip(fields).map(|(to, from)| *to = from).count();
        Some(FileHandle { mount: stat.stx_mnt_id as u32, kind: BIRTH, len: len as u8, bytes })
    }

    /// An `O_PATH` descriptor of the inode; `mount` is any open (not `O_PATH`) file of its mount.
    ///
    /// # Errors
    /// ESTALE: the inode is gone. EPERM: without CAP_DAC_READ_SEARCH.
    pub(super) fn open(&self, mount: &impl AsFd) -> io::Result<OwnedFd> {
        let mut raw = Raw { len: self.len.into(), kind: self.kind.into(), bytes: self.bytes };
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: as above.
        let fd = unsafe { libc::open_by_handle_at(mount.as_fd().as_raw_fd(), (&raw mut raw).cast(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that was just made, owned by nobody else.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// The inode's generation as the guest shall see it: the host's, where the handle is known to contain it, else a
    /// number derived from the whole handle. Always the same for one inode.
    pub(super) fn generation(&self) -> u32 {
        let word = |at: usize| self.bytes.get(at..).and_then(<[u8]>::first_chunk).map(|word| u32::from_ne_bytes(*word));
        let known = match (self.kind, self.len) {
            (INO32_GEN, 8) => word(4),
            (XFS_INO64_GEN, 12) => word(8),
            _ => None,
        };
        // FNV-1a.
        known.unwrap_or_else(|| {
            self.bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
        })
    }

    /// A handle of nothing, for tests of the tables.
    #[cfg(test)]
    pub(super) fn made_up(number: u64) -> Self {
        let mut bytes = [0; MAX_BYTES];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        FileHandle { mount: 0, kind: 0xfe, len: 8, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_takes_forty_bytes() {
        assert_eq!(size_of::<FileHandle>(), 40);
    }

    #[test]
    fn generations_are_read_out_of_known_handles_and_derived_from_others() {
        let handle = |kind, len, text: &[u8]| {
            let mut bytes = [0; MAX_BYTES];
            bytes[..text.len()].copy_from_slice(text);
            FileHandle { mount: 0, kind, len, bytes }
        };
        assert_eq!(handle(INO32_GEN, 8, &[9, 9, 9, 9, 1, 2, 0, 0]).generation(), 0x201);
        assert_eq!(handle(XFS_INO64_GEN, 12, &[9, 9, 9, 9, 9, 9, 9, 9, 3, 0, 0, 0]).generation(), 3);
        // tmpfs has another order under the same type: told apart by its length.
        let tmpfs = |byte| handle(INO32_GEN, 12, &[byte, 1, 2, 3, 4]).generation();
        assert_eq!(tmpfs(5), tmpfs(5));
        assert_ne!(tmpfs(5), tmpfs(6));
    }

    #[test]
    fn a_handle_names_one_inode_however_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "").unwrap();
        let (fd, file) = (std::fs::File::open(dir.path()).unwrap(), std::fs::File::open(dir.path().join("a")).unwrap());
        let Some(handle) = FileHandle::of(&file, 0) else { return };
        assert_eq!(FileHandle::of_entry(&fd, c"a", 0), Some(handle));
        assert_ne!(FileHandle::of(&fd, 0), Some(handle));
        assert_eq!(FileHandle::of_entry(&fd, c"missing", 0), None);
    }
}
