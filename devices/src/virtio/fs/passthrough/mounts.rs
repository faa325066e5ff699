//! The host's mounts that a share reaches into, as far as file handles can be opened in them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::{FileType, OFlags};

use super::file_handle::FileHandle;
use super::host::ProcFds;

/// The most mounts below one share that file handles are used in. Files in others are held by descriptor.
const MAX_MOUNTS: usize = 1024;

/// A mount, kept busy (it cannot be unmounted on the host) as long as the guest knows a file in it.
#[derive(Debug)]
pub(super) struct Mount {
    /// What file handles call it. Never used for another mount.
    pub(super) slot: u32,
    /// Any file in it, open for real: open_by_handle_at takes no `O_PATH` descriptor.
    file: File,
}

impl Mount {
    /// Whether it works shows only when it is tried: it takes a file system with handles and CAP_DAC_READ_SEARCH.
    fn new(slot: u32, path: &OwnedFd, file: File) -> Option<Arc<Self>> {
        FileHandle::of(path, slot)?.open(&file).ok()?;
        Some(Arc::new(Mount { slot, file }))
    }

    /// A mount of nothing, for tests of the tables.
    #[cfg(test)]
    pub(super) fn made_up() -> Arc<Self> {
        Arc::new(Mount { slot: 0, file: File::open("/dev/null").unwrap() })
    }

    /// An `O_PATH` descriptor of a handle's inode.
    ///
    /// # Errors
    /// See [`FileHandle::open`].
    pub(super) fn open(&self, handle: &FileHandle) -> io::Result<OwnedFd> {
        handle.open(&self.file)
    }
}

/// All mounts met so far, by mount id.
#[derive(Debug)]
pub(super) struct Mounts {
    /// The mount of the share's root, where nearly all files are, and its id. Without it handles are not used at all.
    root: Option<(u64, Arc<Mount>)>,
    known: Mutex<HashMap<u64, (u32, Weak<Mount>)>>,
}

impl Mounts {
    /// Handles will not be used.
    pub(super) fn none() -> Self {
        Mounts { root: None, known: Mutex::new(HashMap::new()) }
    }

    /// The mount `id` of the share's root, and others as they are met; none if handles cannot be opened there.
    pub(super) fn with_root(id: u64, root: &OwnedFd, proc_fds: &ProcFds) -> Self {
        let mount =
            proc_fds.reopen(root, OFlags::RDONLY | OFlags::DIRECTORY).ok().and_then(|file| Mount::new(0, root, file));
        let known = HashMap::from_iter(mount.iter().map(|mount| (id, (mount.slot, Arc::downgrade(mount)))));
        Mounts { root: mount.map(|mount| (id, mount)), known: Mutex::new(known) }
    }

    /// Whether file handles are used.
    pub(super) fn is_enabled(&self) -> bool {
        self.root.is_some()
    }

    /// The mount with this id, in which `path` is; `None` if handles cannot be opened there. Only files and directories
    /// open a mount that was not met before; nothing else is opened for real.
    pub(super) fn of(&self, id: u64, path: &OwnedFd, file_type: FileType, proc_fds: &ProcFds) -> Option<Arc<Mount>> {
        let (root_id, root) = self.root.as_ref()?;
        if id == *root_id {
            return Some(root.clone());
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mount) = known.get(&id).and_then(|(_, mount)| mount.upgrade()) {
            return Some(mount);
        }
        if !matches!(file_type, FileType::Directory | FileType::RegularFile) || known.len() >= MAX_MOUNTS {
            return None;
        }
        let next = u32::try_from(known.len()).ok()?;
        let slot = known.get(&id).map_or(next, |(slot, _)| *slot);
        let file = proc_fds.reopen(path, OFlags::RDONLY).ok()?;
        let mount = Mount::new(slot, path, file)?;
        known.insert(id, (slot, Arc::downgrade(&mount)));
        Some(mount)
    }

    /// The mount that a handle belongs to, if the guest still knows a file in it.
    pub(super) fn by_slot(&self, slot: u32) -> Option<Arc<Mount>> {
        if let Some((_, root)) = self.root.as_ref().filter(|(_, root)| root.slot == slot) {
            return Some(root.clone());
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().find(|(other, _)| *other == slot).and_then(|(_, mount)| mount.upgrade())
    }
}
