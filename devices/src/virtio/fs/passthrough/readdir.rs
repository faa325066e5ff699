//! Reading directories: READDIR straight from the host's entries, READDIRPLUS with a lookup of each.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{MutexGuard, PoisonError};

use fuse_backend_rs::api::filesystem::{DirEntry, Entry};

use super::handle_table::OpenFile;
use super::node::Node;
use super::{PassthroughFs, errno};
use crate::virtio::fs::constants::DIR_BUFFER_SIZE;

/// `struct linux_dirent64`: ino u64, off i64, reclen u16, type u8, then the name.
const HOST_HEADER: usize = 19;
/// `struct fuse_dirent` without its name, and `struct fuse_entry_out`.
const DIRENT_SIZE: usize = 24;
const ENTRY_OUT_SIZE: usize = 128;

/// How a callback of fuse-backend-rs takes an entry: 0 when the reply has no room for it.
type Add<'a> = &'a mut dyn FnMut(DirEntry) -> io::Result<usize>;
type AddPlus<'a> = &'a mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>;

/// Where reading a directory stands, and host entries that did not fit into the last reply.
#[derive(Debug, Default)]
pub(super) struct DirStream {
    buffer: Vec<u8>,
    start: usize,
    /// The offset (host's cookie) of the next entry that will be given out.
    position: u64,
}

/// One entry of the host.
#[derive(Debug, PartialEq, Eq)]
struct HostEntry<'b> {
    ino: u64,
    /// The cookie that continues after this entry.
    next: u64,
    kind: u8,
    name: &'b CStr,
    /// Bytes of the record.
    size: usize,
}

impl<'b> HostEntry<'b> {
    /// The record at the start of `bytes`; `None` if there is none, or it makes no sense.
    fn parse(bytes: &'b [u8]) -> Option<Self> {
        let ino = u64::from_ne_bytes(bytes.get(0..8)?.try_into().ok()?);
        let next = u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
        let size = usize::from(u16::from_ne_bytes(bytes.get(16..18)?.try_into().ok()?));
        let kind = *bytes.get(18)?;
        let name = CStr::from_bytes_until_nul(bytes.get(HOST_HEADER..size)?).ok()?;
        Some(HostEntry { ino, next, kind, name, size })
    }
}

impl DirStream {
    /// Makes `offset` the position, if it is not already.
    fn seek(&mut self, dir: &File, offset: u64) -> io::Result<()> {
        if offset == self.position {
            return Ok(());
        }
        // A cookie is the host's; casts keep its bits.
        // SAFETY: no memory is involved.
        if unsafe { libc::lseek64(dir.as_raw_fd(), offset.cast_signed(), libc::SEEK_SET) } < 0 {
            return Err(io::Error::last_os_error());
        }
        self.buffer.clear();
        self.start = 0;
        self.position = offset;
        Ok(())
    }

    /// Reads more entries when all were given out; false at the directory's end.
    fn fill(&mut self, dir: &File) -> io::Result<bool> {
        if self.start < self.buffer.len() {
            return Ok(true);
        }
        self.buffer.clear();
        self.start = 0;
        self.buffer.reserve_exact(DIR_BUFFER_SIZE);
        let room = self.buffer.spare_capacity_mut();
        // SAFETY: the kernel writes at most `room.len()` bytes to `room`.
        let read = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_raw_fd(), room.as_mut_ptr(), room.len()) };
        let Ok(read) = usize::try_from(read) else { return Err(io::Error::last_os_error()) };
        // SAFETY: the kernel has initialised `read` bytes, which is at most the capacity.
        unsafe { self.buffer.set_len(read) };
        if read == 0 {
            // The end: most directories are not read again.
            self.buffer = Vec::new();
        }
        Ok(read > 0)
    }

    /// Gives entries from `offset` on to `take` until that returns false or the directory ends. An error of the host after
    /// the first entry is left for the next call, so that no entry is lost.
    fn each(
        &mut self,
        dir: &File,
        offset: u64,
        mut take: impl FnMut(&HostEntry) -> io::Result<bool>,
    ) -> io::Result<()> {
        self.seek(dir, offset)?;
        let mut taken = 0usize;
        loop {
            match self.fill(dir) {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(error) => return if taken == 0 { Err(error) } else { Ok(()) },
            }
            let entry = HostEntry::parse(self.buffer.get(self.start..).unwrap_or_default());
            let Some(entry) = entry else { return Err(errno(libc::EIO)) };
            if !take(&entry)? {
                return Ok(());
            }
            taken += 1;
            self.position = entry.next;
            self.start += entry.size;
        }
    }
}

impl PassthroughFs {
    pub(super) fn read_dir(&self, node: u64, handle: u64, offset: u64, add: Add<'_>) -> io::Result<()> {
        let (dir, open) = (self.node(node)?, self.handles.get(handle, node)?);
        lock(&open)?.each(&open.file, offset, |entry| Ok(add(self.dirent(&dir, entry))? > 0))
    }

    /// At most `size` bytes of entries.
    pub(super) fn read_dir_plus(
        &self,
        node: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: AddPlus<'_>,
    ) -> io::Result<()> {
        let (dir, open) = (self.node(node)?, self.handles.get(handle, node)?);
        let mut room = size as usize;
        lock(&open)?.each(&open.file, offset, |entry| {
            let name = entry.name.to_bytes();
            // Before the lookup, which the guest would have to forget again.
            let Some(left) = room.checked_sub(plus_size(name.len())) else { return Ok(false) };
            room = left;
            // Node 0 means "no attributes": for ".", ".." and for what vanished since the host listed it.
            let found = match name {
                b"." | b".." => Entry::default(),
                _ => self.lookup_child(&dir, entry.name).unwrap_or_default(),
            };
            let told = found.inode;
            let added = add(self.dirent(&dir, entry), found);
            if told != 0 && !matches!(added, Ok(1..)) {
                self.nodes.forget(told, 1);
            }
            Ok(added? > 0)
        })
    }

    /// An entry as the guest sees it. The root's parent is outside the share, so the root is its own.
    fn dirent<'b>(&self, dir: &Node, entry: &HostEntry<'b>) -> DirEntry<'b> {
        let root = self.nodes.root();
        let above_root = dir.id == root.id && entry.name == c"..";
        DirEntry {
            ino: if above_root { root.key.ino } else { entry.ino },
            offset: entry.next,
            type_: entry.kind.into(),
            name: entry.name.to_bytes(),
        }
    }
}

/// The stream of an open directory, locked: reading moves the descriptor's offset.
fn lock(open: &OpenFile) -> io::Result<MutexGuard<'_, DirStream>> {
    let dir = open.dir.as_ref().ok_or_else(|| errno(libc::ENOTDIR))?;
    Ok(dir.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Bytes of an entry with attributes in a reply, padded to 8.
fn plus_size(name: usize) -> usize {
    ENTRY_OUT_SIZE + (DIRENT_SIZE + name).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(size: u16, name: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(7u64.to_ne_bytes());
        bytes.extend(9u64.to_ne_bytes());
        bytes.extend(size.to_ne_bytes());
        bytes.push(libc::DT_REG);
        bytes.extend(name);
        bytes
    }

    #[test]
    fn a_host_entry_is_parsed() {
        let bytes = record(24, b"abc\0\0");
        let entry = HostEntry { ino: 7, next: 9, kind: libc::DT_REG, name: c"abc", size: 24 };
        assert_eq!(HostEntry::parse(&bytes), Some(entry));
    }

    #[test]
    fn a_record_cut_short_is_none() {
        assert_eq!(HostEntry::parse(&[]), None);
        assert_eq!(HostEntry::parse(&record(24, b"abc\0")), None, "shorter than it says");
        assert_eq!(HostEntry::parse(&record(18, b"abc\0\0")), None, "shorter than its header");
        assert_eq!(HostEntry::parse(&record(24, b"abcde")), None, "no end of the name");
    }
}
