//! The host's file system, used directly: what the server is compared with. Nodes are `O_PATH` descriptors here, as they
//! are inodes there; every answer is `Result<String, errno>`.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Statx, StatxFlags, Timespec, Timestamps,
    XattrFlags,
};
use rustix::io::Errno;

/// What an operation came to.
pub(super) type Outcome = Result<String, i32>;

fn code(error: Errno) -> i32 {
    error.raw_os_error()
}

fn io_code(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap()
}

/// A path that leads to the inode itself.
fn proc_path(fd: &OwnedFd) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
}

pub(super) fn stat(fd: &OwnedFd) -> Statx {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).unwrap()
}

pub(super) fn file_type(fd: &OwnedFd) -> FileType {
    FileType::from_raw_mode(stat(fd).stx_mode.into())
}

/// What both sides have to say of a file. Sizes of directories are the file system's own business, and so are blocks: of
/// two files that the same calls made, one may need a block more for its extents (ext4, from the fifth on), since whether
/// neighbours become one depends on where they came to lie.
pub(super) fn describe(mode: u32, nlink: u32, size: u64, owner: (u32, u32)) -> String {
    let size = if FileType::from_raw_mode(mode) == FileType::Directory { 0 } else { size };
    format!("{mode:o} {nlink} links, {size} bytes, {owner:?}")
}

pub(super) fn attributes(fd: &OwnedFd) -> String {
    let stat = stat(fd);
    describe(stat.stx_mode.into(), stat.stx_nlink, stat.stx_size, (stat.stx_uid, stat.stx_gid))
}

pub(super) fn lookup(dir: &OwnedFd, name: &str) -> Result<OwnedFd, i32> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).map_err(code)
}

fn made(dir: &OwnedFd, name: &str, result: Result<(), Errno>) -> Result<OwnedFd, i32> {
    result.map_err(code).and_then(|()| lookup(dir, name))
}

pub(super) fn mkdir(dir: &OwnedFd, name: &str, mode: u32) -> Result<OwnedFd, i32> {
    made(dir, name, rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode)))
}

pub(super) fn mkfifo(dir: &OwnedFd, name: &str, mode: u32) -> Result<OwnedFd, i32> {
    made(dir, name, rustix::fs::mknodat(dir, name, FileType::Fifo, Mode::from_raw_mode(mode), 0))
}

pub(super) fn symlink(dir: &OwnedFd, name: &str, target: &str) -> Result<OwnedFd, i32> {
    made(dir, name, rustix::fs::symlinkat(target, dir, name))
}

pub(super) fn link(node: &OwnedFd, dir: &OwnedFd, name: &str) -> Result<OwnedFd, i32> {
    made(dir, name, rustix::fs::linkat(CWD, &*proc_path(node), dir, name, AtFlags::SYMLINK_FOLLOW))
}

/// Makes a file or opens the one that is there. What is there and no regular file is stale to a guest that asks for this:
/// it thought the name free.
pub(super) fn create(dir: &OwnedFd, name: &str, flags: i32, mode: u32) -> Result<(OwnedFd, File), i32> {
    let flags = OFlags::from_bits_retain(flags as u32);
    if let Ok(there) = lookup(dir, name)
        && file_type(&there) != FileType::RegularFile
    {
        return Err(if flags.contains(OFlags::EXCL) { libc::EEXIST } else { libc::ESTALE });
    }
    let flags = flags | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode)).map_err(code)?;
    Ok((lookup(dir, name)?, File::from(file)))
}

/// Opens a regular file; anything else the way the server refuses it.
pub(super) fn open(node: &OwnedFd, flags: i32) -> Result<File, i32> {
    match file_type(node) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(libc::EISDIR),
        FileType::Symlink => return Err(libc::ELOOP),
        _ => return Err(libc::ENXIO),
    }
    let flags = OFlags::from_bits_retain(flags as u32) | OFlags::CLOEXEC;
    rustix::fs::open(&*proc_path(node), flags, Mode::empty()).map(File::from).map_err(code)
}

pub(super) fn unlink(dir: &OwnedFd, name: &str, directory: bool) -> Outcome {
    let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    rustix::fs::unlinkat(dir, name, flags).map(|()| String::new()).map_err(code)
}

pub(super) fn rename(from: (&OwnedFd, &str), to: (&OwnedFd, &str), flags: u32) -> Outcome {
    let flags = RenameFlags::from_bits_retain(flags);
    rustix::fs::renameat_with(from.0, from.1, to.0, to.1, flags).map(|()| String::new()).map_err(code)
}

pub(super) fn chmod(node: &OwnedFd, mode: u32) -> Outcome {
    rustix::fs::chmodat(CWD, &*proc_path(node), Mode::from_raw_mode(mode), AtFlags::empty()).map_err(code)?;
    Ok(attributes(node))
}

pub(super) fn truncate(node: &OwnedFd, size: u64) -> Outcome {
    // SAFETY: the path ends with NUL.
    if unsafe { libc::truncate64(proc_path(node).as_ptr(), size as i64) } < 0 {
        return Err(io_code(&std::io::Error::last_os_error()));
    }
    Ok(attributes(node))
}

pub(super) fn set_times(node: &OwnedFd, seconds: u64) -> Outcome {
    let time = Timespec { tv_sec: seconds as i64, tv_nsec: 7 };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, &*proc_path(node), &times, AtFlags::empty()).map_err(code)?;
    Ok(attributes(node))
}

pub(super) fn read(file: &File, offset: u64, size: usize) -> Outcome {
    let mut data = vec![0; size];
    let read = file.read_at(&mut data, offset).map_err(|error| io_code(&error))?;
    Ok(format!("{:?}", &data[..read]))
}

pub(super) fn write(file: &File, offset: u64, data: &[u8]) -> Outcome {
    file.write_at(data, offset).map(|written| written.to_string()).map_err(|error| io_code(&error))
}

pub(super) fn allocate(file: &File, mode: u32, offset: u64, length: u64) -> Outcome {
    let mode = FallocateFlags::from_bits_retain(mode);
    rustix::fs::fallocate(file, mode, offset, length).map(|()| String::new()).map_err(code)
}

pub(super) fn seek(file: &File, offset: u64, whence: i32) -> Outcome {
    // SAFETY: no memory is involved.
    let found = unsafe { libc::lseek64(file.as_raw_fd(), offset as i64, whence) };
    if found < 0 { Err(io_code(&std::io::Error::last_os_error())) } else { Ok(found.to_string()) }
}

pub(super) fn copy(from: (&File, u64), to: (&File, u64), length: u64) -> Outcome {
    let (mut in_at, mut out_at) = (from.1, to.1);
    let copied = rustix::fs::copy_file_range(from.0, Some(&mut in_at), to.0, Some(&mut out_at), length as usize);
    copied.map(|copied| copied.to_string()).map_err(code)
}

pub(super) fn set_xattr(node: &OwnedFd, name: &str, value: &[u8], flags: u32) -> Outcome {
    let flags = XattrFlags::from_bits_retain(flags);
    rustix::fs::setxattr(&*proc_path(node), name, value, flags).map(|()| String::new()).map_err(code)
}

pub(super) fn get_xattr(node: &OwnedFd, name: &str) -> Outcome {
    let mut value = Vec::with_capacity(1000);
    rustix::fs::getxattr(&*proc_path(node), name, rustix::buffer::spare_capacity(&mut value)).map_err(code)?;
    Ok(format!("{value:?}"))
}

pub(super) fn remove_xattr(node: &OwnedFd, name: &str) -> Outcome {
    rustix::fs::removexattr(&*proc_path(node), name).map(|()| String::new()).map_err(code)
}

pub(super) fn read_link(node: &OwnedFd) -> Outcome {
    if file_type(node) != FileType::Symlink {
        return Err(libc::EINVAL);
    }
    Ok(rustix::fs::readlinkat(node, c"", Vec::new()).map_err(code)?.into_string().unwrap())
}

/// The names in a directory with their types, sorted.
pub(super) fn list(node: &OwnedFd) -> Outcome {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(&*proc_path(node), flags, Mode::empty()).map_err(code)?;
    let entry = |entry: Result<rustix::fs::DirEntry, Errno>| {
        let entry = entry.unwrap();
        (entry.file_name().to_str().unwrap().to_owned(), entry.file_type().as_raw_mode() >> 12)
    };
    let mut names: Vec<_> = rustix::fs::Dir::new(dir).unwrap().map(entry).collect();
    names.sort();
    Ok(format!("{names:?}"))
}
