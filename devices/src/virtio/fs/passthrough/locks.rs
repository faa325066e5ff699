//! File locks that exclude other users of the directory too, where the share has them (`posix_locks`).
//!
//! A POSIX lock (`fcntl`) belongs to a process of the guest, the owner, and goes when that closes any descriptor of the
//! file. The server is one process to the host, so each owner gets an open file description of its own for each file it
//! locks, and an OFD lock on that (fcntl(2)). An OFD lock of the guest comes as a POSIX lock whose owner is the open file
//! description: it goes with the last descriptor of that, of which the guest tells by releasing the handle. A BSD lock
//! (`flock`) belongs to the guest's open file description, which has one of its own on the host already: the handle.
//!
//! GETLK names no holder: the host has no process id for an OFD lock, and those of its processes mean nothing in the
//! guest.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuse_backend_rs::abi::fuse_abi::{FileLock, LkIn};
use rustix::fs::OFlags;

use super::descriptor_budget::Permit;
use super::handle_table::OpenFile;
use super::sharded_map::{ShardKey, ShardedMap};
use super::{PassthroughFs, errno};
use crate::virtio::fs::constants::init_flag;

/// `fuse_lk_in.lk_flags`: a BSD lock (FUSE_LK_FLOCK).
const FLOCK: u32 = 1 << 0;
/// `fuse_file_lock.end` of a lock to the end of the file, wherever that is (OFFSET_MAX).
const TO_THE_END: u64 = i64::MAX as u64;

/// A node and the owner of locks on it.
type Owner = (u64, u64);

impl ShardKey for Owner {
    /// All owners of locks on a node are in one shard.
    fn spread(&self) -> u64 {
        self.0
    }
}

/// The open file description that an owner's POSIX locks on one file are held by.
pub(super) struct LockFile {
    file: File,
    /// The guest's handle that it was used by last.
    handle: AtomicU64,
    _permit: Permit,
}

/// Those of all owners. An entry goes with FLUSH, which Linux sends whenever the owner closes the file, or with the RELEASE of
/// its handle; unless a request of the owner waits, which may get a lock yet.
pub(super) type LockTable = ShardedMap<Owner, Arc<LockFile>>;

impl LockFile {
    /// Gives all ranges back.
    fn unlock(&self) {
        let range = libc::flock {
            l_type: libc::F_UNLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        // SAFETY: the kernel reads a `struct flock`.
        if unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) } < 0 {
            tracing::debug!("locks not given back: {}", io::Error::last_os_error());
        }
    }
}

/// Gives the locks of an entry back; whether nobody but the table, which must not change meanwhile, has the entry. A
/// request that waits by it keeps the host's file open: closing it would give nothing back now, and what the request gets
/// later would be lost with it.
fn give_back(lock: &Arc<LockFile>) -> bool {
    lock.unlock();
    Arc::strong_count(lock) == 1
}

/// A lock to be had or given back.
pub(in crate::virtio::fs) struct LockRequest(Wanted);

enum Wanted {
    /// A range of an owner's; `None` when it has no locks that could be given back.
    Posix(Option<Arc<LockFile>>, libc::flock),
    /// All of an open file.
    Flock(Arc<OpenFile>, i32),
}

impl LockRequest {
    /// Sets the lock without waiting.
    ///
    /// # Errors
    /// EAGAIN: somebody else holds one that excludes it.
    pub(in crate::virtio::fs) fn attempt(&self) -> io::Result<()> {
        let result = match &self.0 {
            Wanted::Posix(None, _) => 0,
            // SAFETY: the kernel reads a `struct flock`.
            Wanted::Posix(Some(lock), range) => unsafe {
                libc::fcntl(lock.file.as_raw_fd(), libc::F_OFD_SETLK, std::ptr::from_ref(range))
            },
            // SAFETY: no memory is involved.
            Wanted::Flock(open, operation) => unsafe { libc::flock(open.file.as_raw_fd(), operation | libc::LOCK_NB) },
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Whether it gives a lock back.
    pub(in crate::virtio::fs) fn unlocks(&self) -> bool {
        match &self.0 {
            Wanted::Posix(_, range) => range.l_type == libc::F_UNLCK as i16,
            Wanted::Flock(_, operation) => *operation == libc::LOCK_UN,
        }
    }
}

/// A guest's range as the host wants it.
///
/// # Errors
/// EINVAL for a range or type that there is not.
fn range(lock: &FileLock) -> io::Result<libc::flock> {
    let invalid = || errno(libc::EINVAL);
    if lock.end > TO_THE_END || lock.start > lock.end {
        return Err(invalid());
    }
    let kind = i32::try_from(lock.type_).map_err(|_| invalid())?;
    if ![libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK].contains(&kind) {
        return Err(invalid());
    }
    // A length of zero is "to the end".
    let length = if lock.end == TO_THE_END { 0 } else { lock.end - lock.start + 1 };
    Ok(libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: lock.start.cast_signed(),
        l_len: length.cast_signed(),
        l_pid: 0,
    })
}

impl PassthroughFs {
    /// What a SETLK or SETLKW asks for.
    pub(in crate::virtio::fs) fn lock_request(&self, node: u64, args: &LkIn) -> io::Result<LockRequest> {
        let open = self.handles.get(args.fh, node)?;
        let range = range(&args.lk)?;
        let unlock = i32::from(range.l_type) == libc::F_UNLCK;
        if args.lk_flags & FLOCK != 0 {
            let operation = match i32::from(range.l_type) {
                libc::F_RDLCK => libc::LOCK_SH,
                libc::F_WRLCK => libc::LOCK_EX,
                _ => libc::LOCK_UN,
            };
            return Ok(LockRequest(Wanted::Flock(open, operation)));
        }
        let owner = (node, args.owner);
        let known = match self.locks.get(&owner) {
            Some(known) => known,
            None if unlock => return Ok(LockRequest(Wanted::Posix(None, range))),
            None => {
                let (file, handle) = (self.open_to_lock(node)?, AtomicU64::new(args.fh));
                let new = Arc::new(LockFile { file, handle, _permit: self.nodes.permit()? });
                // Another thread of the owner may have been faster.
                self.locks.write(&owner).entry(owner).or_insert(new).clone()
            }
        };
        known.handle.store(args.fh, Ordering::Relaxed);
        Ok(LockRequest(Wanted::Posix(Some(known), range)))
    }

    /// GETLK: the first lock that excludes the one asked for, or that one as "unlocked".
    pub(in crate::virtio::fs) fn test_lock(&self, node: u64, args: &LkIn) -> io::Result<FileLock> {
        self.handles.get(args.fh, node)?;
        let mut range = range(&args.lk)?;
        let known = self.locks.get(&(node, args.owner));
        let other = if known.is_none() { Some(self.open_to_lock(node)?) } else { None };
        let file = known.as_ref().map(|lock| &lock.file).or(other.as_ref()).ok_or_else(|| errno(libc::EIO))?;
        // SAFETY: the kernel reads and writes a `struct flock`.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) } < 0 {
            return Err(io::Error::last_os_error());
        }
        if i32::from(range.l_type) == libc::F_UNLCK {
            return Ok(FileLock { type_: libc::F_UNLCK as u32, pid: 0, ..args.lk });
        }
        let start = range.l_start.cast_unsigned();
        let length = range.l_len.cast_unsigned();
        let end = if length == 0 { TO_THE_END } else { start.saturating_add(length - 1) };
        Ok(FileLock { start, end, type_: range.l_type as u32, pid: 0 })
    }

    /// Gives all POSIX locks of an owner on a node back.
    pub(super) fn unlock_owner(&self, node: u64, owner: u64) {
        if self.has(init_flag::POSIX_LOCKS) {
            self.locks.remove_if(&(node, owner), give_back);
        }
    }

    /// Gives the locks back whose owner can have none any more, now that a handle of a node is closed.
    pub(super) fn unlock_handle(&self, node: u64, handle: u64) {
        if self.has(init_flag::POSIX_LOCKS) {
            let mut shard = self.locks.write(&(node, 0));
            let is_gone = |lock: &Arc<LockFile>| lock.handle.load(Ordering::Relaxed) == handle && give_back(lock);
            let gone = shard.extract_if(|_, lock| is_gone(lock)).collect::<Vec<_>>();
            drop(shard);
            drop(gone);
        }
    }

    /// To read and write, since either kind of lock may come, or as far as the server may.
    fn open_to_lock(&self, node: u64) -> io::Result<File> {
        let node = self.node(node)?;
        let both = if self.read_only { Err(errno(libc::EROFS)) } else { self.open_node(&node, OFlags::RDWR) };
        // Append-only files are not opened for writing without O_APPEND.
        both.or_else(|error| match error.raw_os_error() {
            Some(libc::EPERM) => self.open_node(&node, OFlags::RDWR | OFlags::APPEND),
            _ => Err(error),
        })
        .or_else(|_| self.open_node(&node, OFlags::RDONLY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_inclusive_in_the_guest_and_lengths_on_the_host() {
        let lock = |start, end, type_| range(&FileLock { start, end, type_, pid: 5 });
        let fields = |range: libc::flock| (range.l_start, range.l_len, range.l_pid);
        assert_eq!(fields(lock(10, 19, 0).unwrap()), (10, 10, 0));
        assert_eq!(fields(lock(0, TO_THE_END, 1).unwrap()), (0, 0, 0));
        assert_eq!(fields(lock(TO_THE_END, TO_THE_END, 2).unwrap()), (i64::MAX, 0, 0));
        for (start, end, kind) in [(5, 4, 0), (0, 1 << 63, 0), (0, u64::MAX, 1), (0, 1, 3), (0, 1, u32::MAX)] {
            assert_eq!(lock(start, end, kind).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{start} {end} {kind}");
        }
    }
}
