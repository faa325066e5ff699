//! From names to nodes.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;

use fuse_backend_rs::abi::fuse_abi::{ATTR_SUBMOUNT, ROOT_ID};
use fuse_backend_rs::api::filesystem::Entry;
use rustix::fs::{FileType, Statx};

use super::file_handle::FileHandle;
use super::host::{file_type, open_path_at, statx_at, statx_fd, to_stat64};
use super::node::{Node, NodeKey, PathFd};
use super::{PassthroughFs, errno, handled};

/// How many directories are climbed to find out whether one lies below the root. PATH_MAX bounds what can be reached
/// by one path; deeper trees exist but nobody exports them.
const MAX_DEPTH: usize = 4096;

impl PassthroughFs {
    /// LOOKUP. A name that is not there is ENOENT; the guest does not cache that.
    pub(super) fn lookup_name(&self, parent: u64, name: &CStr) -> io::Result<Entry> {
        match name.to_bytes() {
            // With EXPORT_SUPPORT the guest reconnects file handles by "." (any inode) and ".." (directories). It may have
            // forgotten the inode since it gave the handle out.
            b"." => self.lookup_self(parent),
            // What Linux calls an inode that it has come by through a file handle and not through a directory, its own
            // parent (`d_obtain_alias`, `slash_name` in fs/dcache.c). When such an entry has timed out it is looked up
            // like any other (`fuse_dentry_revalidate`), and overlayfs, which reaches the origins of copied up files so,
            // takes an error for ESTALE.
            b"/" => self.lookup_self(parent),
            b".." => self.lookup_parent(parent),
            bytes if bytes.is_empty() || bytes.contains(&b'/') => Err(errno(libc::EINVAL)),
            _ => self.lookup_child(&*self.node(parent)?, name),
        }
    }

    /// Looks `name`, which has been checked, up in `parent` and counts it as told to the guest.
    pub(super) fn lookup_child(&self, parent: &Node, name: &CStr) -> io::Result<Entry> {
        let dir = self.path(parent)?;
        let stat = statx_at(&dir, name)?;
        // For a known node that holds its descriptor one system call is enough.
        if let Some(node) = self.nodes.find(&NodeKey::of(&stat), |mount| FileHandle::of_entry(&dir, name, mount)) {
            return Ok(self.entry(&node, &stat, &parent.key));
        }
        let path = open_path_at(&dir, name)?;
        self.admit(path, Some(&parent.key))
    }

    /// Makes a node of an `O_PATH` descriptor and counts it as told to the guest. Without `parent` it is not told to be
    /// another file system's root.
    pub(super) fn admit(&self, path: OwnedFd, parent: Option<&NodeKey>) -> io::Result<Entry> {
        let stat = statx_fd(&path)?;
        let key = NodeKey::of(&stat);
        let handled = handled(&self.mounts, &stat, &path, &self.proc_fds);
        let node = self.nodes.insert(key, file_type(&stat), path, handled)?;
        Ok(self.entry(&node, &stat, parent.unwrap_or(&key)))
    }

    fn lookup_self(&self, id: u64) -> io::Result<Entry> {
        let entry = match self.node(id) {
            Ok(node) => {
                let path = self.path(&node)?;
                let stat = statx_fd(&path)?;
                match self.nodes.find(&node.key, |mount| FileHandle::of(&path, mount)) {
                    Some(found) => self.entry(&found, &stat, &node.key),
                    // Another thread is forgetting it just now.
                    None => self.admit(self.reach(id)?, None)?,
                }
            }
            Err(_) => self.admit(self.reach(id)?, None)?,
        };
        if entry.inode == id {
            return Ok(entry);
        }
        // Known under a newer id, since this one was forgotten for too long.
        self.nodes.forget(entry.inode, 1);
        Err(errno(libc::ESTALE))
    }

    fn lookup_parent(&self, id: u64) -> io::Result<Entry> {
        if id == ROOT_ID {
            return self.lookup_self(id);
        }
        let path = match self.node(id) {
            Ok(node) => self.path(&node)?,
            Err(_) => PathFd::Opened(self.reach(id)?),
        };
        if file_type(&statx_fd(&path)?) != FileType::Directory {
            return Err(errno(libc::ENOTDIR));
        }
        let path = open_path_at(&path, c"..")?;
        if !self.is_below_root(&path)? {
            return Err(errno(libc::ESTALE));
        }
        self.admit(path, None)
    }

    /// An `O_PATH` descriptor of an inode that the guest has forgotten.
    ///
    /// # Errors
    /// ESTALE: it was never known, or for too long not, or is gone.
    fn reach(&self, id: u64) -> io::Result<OwnedFd> {
        let handle = self.nodes.remembered(id).ok_or_else(|| errno(libc::ESTALE))?;
        self.mounts.by_slot(handle.mount).ok_or_else(|| errno(libc::ESTALE))?.open(&handle)
    }

    /// Whether a directory is the root or lies below it: somebody on the host may have moved a directory out of the
    /// share while the guest knew it.
    fn is_below_root(&self, dir: &OwnedFd) -> io::Result<bool> {
        let root = self.nodes.root().key;
        let mut key = NodeKey::of(&statx_fd(dir)?);
        let mut above = open_path_at(dir, c"..")?;
        for _ in 0..MAX_DEPTH {
            if key == root {
                return Ok(true);
            }
            let above_key = NodeKey::of(&statx_fd(&above)?);
            if above_key == key {
                return Ok(false);
            }
            key = above_key;
            above = open_path_at(&above, c"..")?;
        }
        Ok(false)
    }

    /// The reply that tells the guest of `node`, found in the directory `parent`.
    pub(super) fn entry(&self, node: &Node, stat: &Statx, parent: &NodeKey) -> Entry {
        let stat = self.guest_stat(*stat);
        let submount = node.is_dir() && self.announces_submounts() && !node.key.same_mount(parent);
        Entry {
            inode: node.id,
            generation: node.generation.into(),
            attr: to_stat64(&stat),
            attr_flags: if submount { ATTR_SUBMOUNT } else { self.dax_flag(&stat) },
            attr_timeout: self.attributes_valid(&stat),
            entry_timeout: self.cache.timeout(),
        }
    }
}
