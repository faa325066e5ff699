//! One inode that the guest knows.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, Statx};

use super::descriptor_budget::{DescriptorBudget, Permit};
use super::file_handle::FileHandle;
use super::mounts::Mount;
use super::sharded_map::ShardKey;

/// What tells two inodes of the host apart, as long as both exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NodeKey {
    /// Device number, major and minor.
    pub(super) dev: (u32, u32),
    /// Inode number.
    pub(super) ino: u64,
    /// Mount: one inode seen through two mounts is two nodes, since ".." differs.
    pub(super) mount: u64,
}

impl NodeKey {
    /// The key of a file from its statx, which must have been asked for the mount id.
    pub(super) fn of(stat: &Statx) -> Self {
        NodeKey { dev: (stat.stx_dev_major, stat.stx_dev_minor), ino: stat.stx_ino, mount: stat.stx_mnt_id }
    }

    /// Whether both are in one file system and mount.
    pub(super) fn same_mount(&self, other: &NodeKey) -> bool {
        self.dev == other.dev && self.mount == other.mount
    }
}

impl ShardKey for NodeKey {
    fn spread(&self) -> u64 {
        self.ino ^ u64::from(self.dev.1)
    }
}

/// A file handle and where to open it.
#[derive(Clone, Debug)]
pub(super) struct Handled {
    pub(super) handle: FileHandle,
    /// `None` for what only stands in for a handle.
    pub(super) mount: Option<Arc<Mount>>,
    /// What the guest is told. Zero for the root of a mount: Linux takes that for granted of its own root and of the
    /// roots of submounts, and an inode that has another one for bad.
    pub(super) generation: u32,
}

impl Handled {
    /// Whether the inode can be opened by it, so that no descriptor has to be held.
    pub(super) fn opens(&self) -> bool {
        self.mount.is_some()
    }
}

/// An `O_PATH` descriptor that a node keeps.
#[derive(Debug)]
pub(super) struct Held {
    path: OwnedFd,
    _permit: Permit,
}

impl Held {
    pub(super) fn new(path: OwnedFd, permit: Permit) -> Self {
        Held { path, _permit: permit }
    }
}

/// An inode that the guest knows.
///
/// It keeps an `O_PATH` descriptor, so that an operation costs no system call to reach the inode and the host cannot give
/// the inode's number to another file. Where the inode has a file handle, the descriptor is only borrowed from the
/// budget: it is closed when others need it more and opened again by handle.
///
/// Memory: 144 bytes, and about 75 for its entries in the two maps of [`super::inode_table::NodeTable`]; one million known
/// inodes are 220 MB without, and on top of that one million of the host's `struct file` with descriptors.
#[derive(Debug)]
pub(super) struct Node {
    /// What the guest calls it.
    pub(super) id: u64,
    /// What the host calls it.
    pub(super) key: NodeKey,
    /// Its type, which never changes.
    pub(super) file_type: FileType,
    /// Which of the inodes that had its number it is.
    pub(super) generation: u32,
    handled: Option<Handled>,
    held: Mutex<Option<Arc<Held>>>,
    /// Whether the descriptor was used since somebody last wanted it closed.
    used: AtomicBool,
    pub(super) lookups: AtomicU64,
}

/// A descriptor (`O_PATH`) of a node's inode for the time of one operation.
#[derive(Debug)]
pub(super) enum PathFd {
    /// The node's.
    Held(Arc<Held>),
    /// Opened for this operation.
    Opened(OwnedFd),
}

impl AsFd for PathFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            PathFd::Held(held) => held.path.as_fd(),
            PathFd::Opened(path) => path.as_fd(),
        }
    }
}

impl Node {
    /// A node that was looked up once. It has to have a handle that opens or hold a descriptor.
    pub(super) fn new(
        id: u64,
        key: NodeKey,
        file_type: FileType,
        handled: Option<Handled>,
        held: Option<Held>,
    ) -> Self {
        Node {
            id,
            key,
            file_type,
            generation: handled.as_ref().map_or(0, |handled| handled.generation),
            handled,
            held: Mutex::new(held.map(Arc::new)),
            used: AtomicBool::new(true),
            lookups: AtomicU64::new(1),
        }
    }

    /// A descriptor to reach the inode with.
    ///
    /// # Errors
    /// ESTALE: the inode is gone. A node that holds its descriptor has none.
    pub(super) fn path(&self, budget: &Arc<DescriptorBudget>) -> io::Result<PathFd> {
        // Written only when it changes: the line is shared by all threads that use the node.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        let mut held = self.lock();
        if let Some(held) = &*held {
            return Ok(PathFd::Held(held.clone()));
        }
        let Handled { handle, mount, .. } = self.handled.as_ref().ok_or_else(stale)?;
        let path = mount.as_ref().ok_or_else(stale)?.open(handle)?;
        let Some(permit) = budget.take_spare() else { return Ok(PathFd::Opened(path)) };
        let opened = Arc::new(Held::new(path, permit));
        *held = Some(opened.clone());
        Ok(PathFd::Held(opened))
    }

    /// Whether it is a directory.
    pub(super) fn is_dir(&self) -> bool {
        self.file_type == FileType::Directory
    }

    /// Its file handle, if it has one.
    pub(super) fn handle(&self) -> Option<&FileHandle> {
        self.handled.as_ref().map(|handled| &handled.handle)
    }

    /// Whether it holds a descriptor, so that its key cannot be another inode's.
    pub(super) fn is_held(&self) -> bool {
        self.lock().is_some()
    }

    /// Gives its descriptor up, if it can be had again and was not used since the last time somebody asked.
    pub(super) fn release(&self) -> Option<Arc<Held>> {
        if !self.handled.as_ref().is_some_and(Handled::opens) || self.used.swap(false, Ordering::Relaxed) {
            return None;
        }
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Held>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_as_small_as_its_doc_comment_says() {
        assert!(size_of::<Node>() <= 144, "{}", size_of::<Node>());
    }
}
