//! The host's file system through descriptors: the few calls that every operation is made of.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use fuse_backend_rs::abi::fuse_abi::stat64;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxFlags};

use super::credentials::works_in_proc_fds;

/// What is asked of every statx: what FUSE reports, and time of birth and mount for [`super::node::NodeKey`].
///
/// STATX_MNT_ID_UNIQUE (Linux 6.8) makes it an id that is never used again; older kernels ignore the bit.
const STATX_WANTED: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::BTIME)
    .union(StatxFlags::MNT_ID)
    .union(StatxFlags::from_bits_retain(0x4000));

/// The process's open descriptors, as links.
pub(super) const PROC_FDS: &CStr = c"/proc/self/fd";

/// [`PROC_FDS`], by which an `O_PATH` descriptor is opened for real and named in calls that only take paths. Its
/// links lead to the inode itself, whatever its names are now.
#[derive(Debug)]
pub(super) struct ProcFds {
    dir: OwnedFd,
}

impl ProcFds {
    /// # Errors
    /// /proc is not mounted, or is not this process's.
    pub(super) fn open() -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(ProcFds { dir: rustix::fs::openat(CWD, PROC_FDS, flags, Mode::empty())? })
    }

    /// The directory, for `*at` calls with [`FdPath::name`].
    pub(super) fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    /// Opens what `fd` refers to anew. The caller has made sure that it is a regular file or a directory.
    pub(super) fn reopen(&self, fd: &impl AsFd, flags: OFlags) -> io::Result<File> {
        let path = FdPath::new(fd);
        // The link itself has to be followed.
        let flags = (flags | OFlags::CLOEXEC) & !(OFlags::NOFOLLOW | OFlags::CREATE | OFlags::EXCL);
        Ok(File::from(rustix::fs::openat(&self.dir, path.name(), flags, Mode::empty())?))
    }
}

/// A descriptor's path under /proc, without an allocation. As long as it exists the descriptor cannot be closed and its
/// number be another's.
pub(super) struct FdPath<'f> {
    text: [u8; 32],
    _fd: BorrowedFd<'f>,
}

/// What stands before the number.
const PROC_PREFIX: &str = "/proc/self/fd/";

impl<'f> FdPath<'f> {
    pub(super) fn new(fd: &'f impl AsFd) -> Self {
        let fd = fd.as_fd();
        let mut text = [0; 32];
        // 14 bytes and at most 10 digits: always fits and leaves a NUL.
        let written = write!(text.as_mut_slice(), "{PROC_PREFIX}{}", fd.as_raw_fd());
        debug_assert!(written.is_ok(), "a descriptor's number has at most ten digits");
        FdPath { text, _fd: fd }
    }

    /// A path for the calling thread: `N` where that leads there, else `/proc/self/fd/N`.
    pub(super) fn path(&self) -> &CStr {
        if works_in_proc_fds() {
            return self.name();
        }
        CStr::from_bytes_until_nul(&self.text).unwrap_or_default()
    }

    /// `N`, relative to [`ProcFds::dir`].
    pub(super) fn name(&self) -> &CStr {
        self.text.get(PROC_PREFIX.len()..).and_then(|name| CStr::from_bytes_until_nul(name).ok()).unwrap_or_default()
    }
}

/// statx of what a descriptor refers to.
pub(super) fn statx_fd(fd: &impl AsFd) -> io::Result<Statx> {
    Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, STATX_WANTED)?)
}

/// statx of a directory's entry, not following it.
pub(super) fn statx_at(dir: &impl AsFd, name: &CStr) -> io::Result<Statx> {
    Ok(rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, STATX_WANTED)?)
}

/// An `O_PATH` descriptor of a directory's entry, not following it.
pub(super) fn open_path_at(dir: &impl AsFd, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// Whether closing a file of the file system that `fd` is in cannot tell of anything: none of these has a `flush`
/// operation. Network file systems do, and FUSE; of what is not known here it is taken for granted.
pub(super) fn closes_silently(fd: &impl AsFd) -> bool {
    /// `f_type` of ext2 to ext4, xfs, btrfs and tmpfs (Linux include/uapi/linux/magic.h). Not f2fs, which ends atomic
    /// writes on closing.
    const LOCAL: [i64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994];
    rustix::fs::fstatfs(fd).is_ok_and(|fs| LOCAL.contains(&fs.f_type))
}

/// The type of a file from its statx.
pub(super) fn file_type(stat: &Statx) -> FileType {
    FileType::from_raw_mode(u32::from(stat.stx_mode))
}

/// The same as fuse-backend-rs's trait wants it.
pub(super) fn to_stat64(stat: &Statx) -> stat64 {
    // SAFETY: a struct of integers, for which zero is a value.
    let mut out: stat64 = unsafe { std::mem::zeroed() };
    out.st_dev = libc::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    out.st_ino = stat.stx_ino;
    out.st_nlink = stat.stx_nlink.into();
    out.st_mode = stat.stx_mode.into();
    out.st_uid = stat.stx_uid;
    out.st_gid = stat.stx_gid;
    out.st_rdev = libc::makedev(stat.stx_rdev_major, stat.stx_rdev_minor);
    // Sizes beyond i64 do not exist in Linux.
    out.st_size = stat.stx_size.cast_signed();
    out.st_blksize = stat.stx_blksize.into();
    out.st_blocks = stat.stx_blocks.cast_signed();
    out.st_atime = stat.stx_atime.tv_sec;
    out.st_atime_nsec = stat.stx_atime.tv_nsec.into();
    out.st_mtime = stat.stx_mtime.tv_sec;
    out.st_mtime_nsec = stat.stx_mtime.tv_nsec.into();
    out.st_ctime = stat.stx_ctime.tv_sec;
    out.st_ctime_nsec = stat.stx_ctime.tv_nsec.into();
    out
}

#[cfg(test)]
mod tests {
    use super::super::credentials::prepare_thread;
    use super::*;

    #[test]
    fn a_descriptors_path_leads_to_its_file_in_threads_that_serve_and_in_others() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "here").unwrap();
        let read = move || {
            let path = FdPath::new(&file).path().to_owned();
            (path.to_bytes().len(), std::fs::read_to_string(path.to_str().unwrap()).unwrap())
        };
        let (long, text) = read();
        assert_eq!(text, "here");
        let serving = std::thread::spawn(move || {
            prepare_thread().unwrap();
            read()
        });
        assert_eq!(serving.join().unwrap(), (long - "/proc/self/fd/".len(), text));
    }
}
