//! The files and directories that the guest has open.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::descriptor_budget::Permit;
use super::readdir::DirStream;
use super::sharded_map::ShardedMap;

/// An open file or directory.
pub(super) struct OpenFile {
    /// The node it belongs to: a request that names another node has a wrong handle.
    pub(super) node: u64,
    /// The host's file. Its offset is only used for directories.
    pub(super) file: File,
    /// Where reading the directory stands; `None` for files.
    pub(super) dir: Option<Mutex<DirStream>>,
    _permit: Permit,
}

/// All open files. A handle is never used twice.
pub(super) struct HandleTable {
    files: ShardedMap<u64, Arc<OpenFile>>,
    next: AtomicU64,
}

impl HandleTable {
    pub(super) fn new() -> Self {
        // 0 is what a guest sends when it has no handle.
        HandleTable { files: ShardedMap::new(), next: AtomicU64::new(1) }
    }

    /// Adds an open file of `node`; returns its handle.
    pub(super) fn insert_file(&self, node: u64, file: File, permit: Permit) -> u64 {
        self.insert(OpenFile { node, file, dir: None, _permit: permit })
    }

    /// Adds an open directory of `node`; returns its handle.
    pub(super) fn insert_dir(&self, node: u64, file: File, permit: Permit) -> u64 {
        self.insert(OpenFile { node, file, dir: Some(Mutex::new(DirStream::default())), _permit: permit })
    }

    fn insert(&self, open: OpenFile) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.files.insert(handle, Arc::new(open));
        handle
    }

    /// The open file of a handle.
    ///
    /// # Errors
    /// EBADF: there is no such handle, or it is not `node`'s.
    pub(super) fn get(&self, handle: u64, node: u64) -> io::Result<Arc<OpenFile>> {
        self.files.get(&handle).filter(|open| open.node == node).ok_or_else(bad_handle)
    }

    /// Closes a handle, once requests that use it have ended.
    ///
    /// # Errors
    /// EBADF, as above.
    pub(super) fn remove(&self, handle: u64, node: u64) -> io::Result<()> {
        self.files.remove_if(&handle, |open| open.node == node).map(drop).ok_or_else(bad_handle)
    }

    /// Closes everything.
    pub(super) fn clear(&self) {
        self.files.retain(|_| false);
    }

    /// How many handles are open.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }
}

fn bad_handle() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}
