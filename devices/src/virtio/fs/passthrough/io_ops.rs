//! Operations on open files: data moves between the host's file and guest memory without a copy in between.

use std::fs::File;
use std::io;

use fuse_backend_rs::api::filesystem::{OpenOptions, ZeroCopyReader, ZeroCopyWriter};
use fuse_backend_rs::file_buf::FileVolatileSlice;
use fuse_backend_rs::file_traits::FileReadWriteVolatile;
use rustix::fs::{FallocateFlags, FileType, OFlags};
use rustix::io::Errno;
use std::os::fd::AsRawFd;

use super::credentials::SetIdBits;
use super::dax::grown;
use super::{PassthroughFs, errno};
use crate::virtio::fs::constants::init_flag;
use crate::virtio::fs::slow_pool::Job;

/// `open` flags of the guest that mean something on the host. The rest is the guest kernel's own business (O_CREAT,
/// O_EXCL, O_NOCTTY, O_NOFOLLOW, O_CLOEXEC, O_ASYNC, ...) or kept away from the host on purpose:
/// - O_APPEND: the guest may clear it later by `fcntl`, and writes back mapped pages through the same handle. Appending
///   writes say so one by one.
/// - O_DIRECT: it would want the guest's buffers aligned as the host's device needs it. The guest still bypasses its own
///   page cache.
/// - O_NONBLOCK: files are never opened that it means something for.
const GUEST_OPEN_FLAGS: OFlags =
    OFlags::ACCMODE.union(OFlags::TRUNC).union(OFlags::SYNC).union(OFlags::DSYNC).union(OFlags::NOATIME);

/// A handle and what the guest may cache of the file.
pub(super) type Opened = (u64, OpenOptions);

impl PassthroughFs {
    /// The host's `open` flags for the guest's.
    pub(super) fn host_flags(&self, flags: u32) -> OFlags {
        let flags = OFlags::from_bits_retain(flags) & GUEST_OPEN_FLAGS;
        if self.has(init_flag::WRITEBACK_CACHE) && flags & OFlags::ACCMODE == OFlags::WRONLY {
            // A guest that caches writes reads the rest of a page that it writes a part of.
            return (flags & !OFlags::ACCMODE) | OFlags::RDWR;
        }
        flags
    }

    /// Opens a regular file. `bits` is for O_TRUNC.
    pub(super) fn open_file(&self, node: u64, flags: u32, bits: SetIdBits) -> io::Result<Opened> {
        let node = self.node(node)?;
        if node.is_dir() {
            return Err(errno(libc::EISDIR));
        }
        let asked = OFlags::from_bits_retain(flags) & GUEST_OPEN_FLAGS;
        let appends = flags & libc::O_APPEND as u32 != 0;
        let mut flags = self.host_flags(flags);
        if flags.intersects(OFlags::ACCMODE | OFlags::TRUNC) {
            self.writable()?;
        }
        if flags.contains(OFlags::TRUNC) {
            self.identity.choose_set_id_bits(bits);
        }
        // Where the host refuses, with less, or with what it insists on: each round asks for something else.
        let file = loop {
            match self.open_node(&node, flags) {
                // O_NOATIME is for owners; without it only the access time differs.
                Err(error) if is(&error, libc::EPERM) && flags.contains(OFlags::NOATIME) => flags -= OFlags::NOATIME,
                // A file with the append-only attribute is opened for writing with O_APPEND only, which
                // changes nothing there.
                Err(error) if is(&error, libc::EPERM) && appends && !flags.contains(OFlags::APPEND) => {
                    flags |= OFlags::APPEND;
                }
                // Not readable for a server that is not root: then parts of pages are not either.
                Err(error) if is(&error, libc::EACCES) && (flags ^ asked).intersects(OFlags::ACCMODE) => {
                    flags = (flags - OFlags::ACCMODE) | (asked & OFlags::ACCMODE);
                }
                result => break result?,
            }
        };
        Ok((self.add_file(node.id, file)?, self.cache.file_options()))
    }

    /// Opens a directory for reading its entries.
    pub(super) fn open_dir(&self, node: u64) -> io::Result<Opened> {
        let node = self.node(node)?;
        if !node.is_dir() {
            return Err(errno(libc::ENOTDIR));
        }
        let file = self.open_node(&node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok((self.add_dir(node.id, file)?, self.cache.dir_options()))
    }

    pub(super) fn close(&self, node: u64, handle: u64) -> io::Result<()> {
        self.handles.remove(handle, node)
    }

    pub(super) fn read_data(
        &self,
        node: u64,
        handle: u64,
        to: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
    ) -> io::Result<usize> {
        let open = self.handles.get(handle, node)?;
        to.write_from(&mut GuestIo { file: &open.file, append: false }, size as usize, offset)
    }

    pub(super) fn write_data(
        &self,
        node: u64,
        handle: u64,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        how: WriteHow,
    ) -> io::Result<usize> {
        self.writable()?;
        let open = self.handles.get(handle, node)?;
        self.identity.choose_set_id_bits(how.set_id_bits);
        let written = from.read_to(&mut GuestIo { file: &open.file, append: how.append }, size as usize, offset);
        grown(self.dax.as_deref(), node);
        written
    }

    /// FLUSH, one per close in the guest: errors of writes that the host put off (as NFS does) show up on closing a
    /// descriptor, so one is closed.
    ///
    /// # Errors
    /// What closing told. ENOSYS where it never tells anything and nobody's locks hang on it: Linux takes that for success,
    /// still writes dirty pages of mappings back on close, and sends no FLUSH again (`fuse_flush` in fs/fuse/file.c). That
    /// is so for all of the share, so files of a network file system mounted below it report on fsync and not on close.
    pub(super) fn flush_file(&self, node: u64, handle: u64, owner: u64) -> io::Result<()> {
        let open = self.handles.get(handle, node)?;
        let in_roots_file_system = self.node(node).is_ok_and(|node| node.key.dev == self.nodes.root().key.dev);
        if self.closes_silently && in_roots_file_system && !self.has(init_flag::POSIX_LOCKS) {
            return Err(errno(libc::ENOSYS));
        }
        // Closing any descriptor of a file ends all the owner's POSIX locks on it (fcntl(2)).
        self.unlock_owner(node, owner);
        let copy = rustix::io::fcntl_dupfd_cloexec(&open.file, 0)?;
        // SAFETY: `copy` is owned here and given up by into_raw_fd, so it is closed exactly once.
        let result = unsafe { libc::close(std::os::fd::IntoRawFd::into_raw_fd(copy)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// FSYNC and FSYNCDIR.
    pub(in crate::virtio::fs) fn sync_file(&self, node: u64, handle: u64, data_only: bool) -> io::Result<Job> {
        let open = self.handles.get(handle, node)?;
        Ok(Box::new(move || {
            if data_only {
                open.file.sync_data()?
            } else {
                open.file.sync_all()?
            }
            Ok(Vec::new())
        }))
    }

    /// SYNCFS of the file system that `node` is in.
    pub(in crate::virtio::fs) fn sync_file_system(&self, node: u64) -> io::Result<Job> {
        let node = self.node(node)?;
        let file = self.open_node(&node, OFlags::RDONLY)?;
        Ok(Box::new(move || {
            rustix::fs::syncfs(file)?;
            Ok(Vec::new())
        }))
    }

    /// FALLOCATE by a caller with user id `uid` and group id `gid`: there is no flag for clearing set-user-ID bits.
    pub(in crate::virtio::fs) fn allocate(&self, (uid, gid): (u32, u32), range: AllocateRange) -> io::Result<Job> {
        self.writable()?;
        let open = self.handles.get(range.file.1, range.file.0)?;
        let (identity, bits) = (self.identity, self.set_id_bits(uid != 0, gid));
        let window = self.dax.clone();
        Ok(Box::new(move || {
            identity.choose_set_id_bits(bits);
            let mode = FallocateFlags::from_bits_retain(range.mode);
            let allocated = rustix::fs::fallocate(&open.file, mode, range.offset, range.length);
            grown(window.as_deref(), range.file.0);
            Ok(allocated.map(|()| Vec::new())?)
        }))
    }

    /// LSEEK, which the guest sends to find data and holes only.
    pub(super) fn seek_data(&self, node: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        let open = self.handles.get(handle, node)?;
        let whence = whence.cast_signed();
        if open.dir.is_some() || !matches!(whence, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return Err(errno(libc::EINVAL));
        }
        let offset = i64::try_from(offset).map_err(|_| errno(libc::ENXIO))?;
        // SAFETY: no memory is involved. The file's offset changes, which nothing else uses.
        let found = unsafe { libc::lseek64(open.file.as_raw_fd(), offset, whence) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    }

    /// COPY_FILE_RANGE by a caller with user id `uid` and group id `gid`; what is returned does it and returns how many bytes
    /// were copied.
    pub(in crate::virtio::fs) fn copy_range(
        &self,
        (uid, gid): (u32, u32),
        range: CopyRange,
    ) -> io::Result<impl FnOnce() -> io::Result<u64> + Send + use<>> {
        self.writable()?;
        let from = self.handles.get(range.from.1, range.from.0)?;
        let to = self.handles.get(range.to.1, range.to.0)?;
        let (identity, bits) = (self.identity, self.set_id_bits(uid != 0, gid));
        let window = self.dax.clone();
        Ok(move || {
            identity.choose_set_id_bits(bits);
            let (mut offset_in, mut offset_out) = (range.offset_in, range.offset_out);
            // Offsets beyond i64 are EINVAL or EOVERFLOW to the host.
            let length = usize::try_from(range.length).unwrap_or(usize::MAX);
            let copied =
                rustix::fs::copy_file_range(&from.file, Some(&mut offset_in), &to.file, Some(&mut offset_out), length)?;
            grown(window.as_deref(), range.to.0);
            Ok(copied as u64)
        })
    }

    /// Truncates a node that may or may not be open.
    pub(super) fn truncate(&self, node: u64, handle: Option<u64>, size: u64, bits: SetIdBits) -> io::Result<()> {
        if let Some(handle) = handle {
            let open = self.handles.get(handle, node)?;
            self.identity.choose_set_id_bits(bits);
            return Ok(rustix::fs::ftruncate(&open.file, size)?);
        }
        let node = self.node(node)?;
        match node.file_type {
            FileType::RegularFile => {}
            FileType::Directory => return Err(errno(libc::EISDIR)),
            _ => return Err(errno(libc::EINVAL)),
        }
        let file = self.open_node(&node, OFlags::WRONLY)?;
        self.identity.choose_set_id_bits(bits);
        Ok(rustix::fs::ftruncate(file, size)?)
    }
}

fn is(error: &io::Error, errno: i32) -> bool {
    error.raw_os_error() == Some(errno)
}

/// How a WRITE is to be done.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteHow {
    /// At the end of the file, wherever that is by now.
    pub(super) append: bool,
    pub(super) set_id_bits: SetIdBits,
}

/// What a FALLOCATE allocates or frees.
#[derive(Clone, Copy, Debug)]
pub(in crate::virtio::fs) struct AllocateRange {
    /// Node and handle.
    pub(in crate::virtio::fs) file: (u64, u64),
    /// Where to start.
    pub(in crate::virtio::fs) offset: u64,
    /// Bytes.
    pub(in crate::virtio::fs) length: u64,
    /// FALLOC_FL_*.
    pub(in crate::virtio::fs) mode: u32,
}

/// What a COPY_FILE_RANGE copies.
#[derive(Clone, Copy, Debug)]
pub(in crate::virtio::fs) struct CopyRange {
    /// Node and handle to read.
    pub(in crate::virtio::fs) from: (u64, u64),
    /// Where to start.
    pub(in crate::virtio::fs) offset_in: u64,
    /// Node and handle to write.
    pub(in crate::virtio::fs) to: (u64, u64),
    /// Where to start.
    pub(in crate::virtio::fs) offset_out: u64,
    /// Bytes.
    pub(in crate::virtio::fs) length: u64,
}

/// A file as fuse-backend-rs reads and writes guest memory with it. Positioned calls only.
struct GuestIo<'f> {
    file: &'f File,
    append: bool,
}

impl GuestIo<'_> {
    /// Calls `io` with the buffers, again when a signal came first.
    fn vectored(
        &self,
        buffers: &[FileVolatileSlice],
        offset: u64,
        io: impl Fn(i32, *const libc::iovec, i32, i64) -> isize,
    ) -> io::Result<usize> {
        let offset = i64::try_from(offset).map_err(|_| errno(libc::EINVAL))?;
        let vectors: Vec<libc::iovec> = buffers
            .iter()
            .map(|buffer| libc::iovec { iov_base: buffer.as_ptr().cast(), iov_len: buffer.len() })
            .collect();
        let count = i32::try_from(vectors.len()).map_err(|_| errno(libc::EINVAL))?;
        loop {
            match usize::try_from(io(self.file.as_raw_fd(), vectors.as_ptr(), count, offset)) {
                Ok(done) => return Ok(done),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.raw_os_error() != Some(Errno::INTR.raw_os_error()) {
                        return Err(error);
                    }
                }
            }
        }
    }
}

impl FileReadWriteVolatile for GuestIo<'_> {
    fn read_volatile(&mut self, _slice: FileVolatileSlice) -> io::Result<usize> {
        Err(errno(libc::ESPIPE))
    }

    fn write_volatile(&mut self, _slice: FileVolatileSlice) -> io::Result<usize> {
        Err(errno(libc::ESPIPE))
    }

    fn read_at_volatile(&mut self, slice: FileVolatileSlice, offset: u64) -> io::Result<usize> {
        self.read_vectored_at_volatile(&[slice], offset)
    }

    fn write_at_volatile(&mut self, slice: FileVolatileSlice, offset: u64) -> io::Result<usize> {
        self.write_vectored_at_volatile(&[slice], offset)
    }

    fn read_vectored_at_volatile(&mut self, buffers: &[FileVolatileSlice], offset: u64) -> io::Result<usize> {
        self.vectored(buffers, offset, |fd, vectors, count, offset| {
            // SAFETY: the vectors describe guest memory that outlives the call; the guest writing to it meanwhile is
            // harmless, since the kernel copies bytes and assumes nothing about them.
            unsafe { libc::preadv64(fd, vectors, count, offset) }
        })
    }

    fn write_vectored_at_volatile(&mut self, buffers: &[FileVolatileSlice], offset: u64) -> io::Result<usize> {
        let flags = if self.append { libc::RWF_APPEND } else { 0 };
        self.vectored(buffers, offset, |fd, vectors, count, offset| {
            // SAFETY: as above.
            unsafe { libc::pwritev64v2(fd, vectors, count, offset, flags) }
        })
    }
}
