//! The file server: a directory of the host, passed through to the guest.
//!
//! [`PassthroughFs`] owns the share: its root, the inodes and open files that the guest knows, and what was agreed in
//! INIT. Each file of this folder adds one group of operations to it; `file_system` gives them to fuse-backend-rs.
//!
//! Containment: the guest never names a path. It names a node, which is an inode that was reached from the root one
//! component at a time without following symbolic links, and at most one name in it, which has no slash. The inode is
//! held by an `O_PATH` descriptor or found again by the file handle that the host gave out for it then. Symbolic links
//! are resolved by the guest. Only regular files and directories are ever opened for real.

mod attr;
mod create;
mod credentials;
mod dax;
mod descriptor_budget;
mod file_handle;
mod file_system;
mod handle_table;
mod host;
mod inode_table;
mod io_ops;
mod ioctl;
mod locks;
mod lookup;
mod mounts;
mod names;
mod node;
mod readdir;
mod remembered;
mod sharded_map;
mod xattr;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub(super) use create::Created;
pub(super) use credentials::{Caller, Creator, Label, prepare_thread};
use credentials::{Identity, SetIdBits};
pub(super) use descriptor_budget::{DescriptorBudget, Permit};
use file_handle::FileHandle;
use handle_table::HandleTable;
use host::{ProcFds, closes_silently, file_type, statx_fd};

use inode_table::NodeTable;
pub(super) use io_ops::{AllocateRange, CopyRange};
pub(super) use locks::LockRequest;
use locks::LockTable;
use mounts::Mounts;
use node::{Handled, Node, NodeKey, PathFd};
use rustix::fs::{CWD, FileType, Mode, OFlags, Statx, StatxAttributes};

use super::FsConfig;
use super::config::{CachePolicy, InodeHandles};
use super::constants::init_flag;
use super::dax_window::DaxWindow;
use super::device::FsError;
use super::init::wanted;
use super::{IdMap, XattrMap};

/// The errno as the trait of fuse-backend-rs wants it.
pub(super) fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// A shared directory.
pub(super) struct PassthroughFs {
    nodes: NodeTable,
    mounts: Mounts,
    handles: HandleTable,
    locks: LockTable,
    proc_fds: ProcFds,
    identity: Identity,
    cache: CachePolicy,
    read_only: bool,
    /// See [`closes_silently`]: of the root's file system.
    closes_silently: bool,
    xattr: bool,
    xattr_map: XattrMap,
    uids: IdMap,
    gids: IdMap,
    dax: Option<Arc<DaxWindow>>,
    /// The INIT flags that the share wants.
    wanted: u64,
    /// Those that guest and server agreed on.
    negotiated: AtomicU64,
}

impl PassthroughFs {
    /// Opens the shared directory. What the guest holds counts against `budget`.
    ///
    /// # Errors
    /// It is not there, not a directory, or /proc is missing.
    pub(super) fn new(config: &FsConfig, budget: Arc<DescriptorBudget>) -> Result<Self, FsError> {
        let share = |source: io::Error| FsError::share(config, source);
        let root = open_root(&config.shared_dir).map_err(share)?;
        let stat = statx_fd(&root).map_err(share)?;
        let key = NodeKey::of(&stat);
        let proc_fds = ProcFds::open().map_err(FsError::Proc)?;
        let mounts = match config.inode_handles {
            InodeHandles::Prefer => Mounts::with_root(key.mount, &root, &proc_fds),
            InodeHandles::Never => Mounts::none(),
        };
        if config.inode_handles == InodeHandles::Prefer && !mounts.is_enabled() {
            tracing::info!(
                "share {}: no file handles (they take CAP_DAC_READ_SEARCH and a file system that has them): a file that \
                 the guest has forgotten is only found again by name, which exportfs and overlayfs with index=on notice",
                config.tag
            );
        }
        // A directory in the middle of a mount is a root to the guest all the same.
        let handled = handled(&mounts, &stat, &root, &proc_fds).map(|handled| Handled { generation: 0, ..handled });
        Ok(PassthroughFs {
            closes_silently: closes_silently(&root),
            wanted: wanted(config, mounts.is_enabled()),
            nodes: NodeTable::new(key, root, handled, budget).map_err(share)?,
            mounts,
            handles: HandleTable::new(),
            locks: LockTable::new(),
            proc_fds,
            identity: Identity::current(),
            cache: config.cache,
            read_only: config.read_only,
            xattr: config.xattr,
            xattr_map: config.xattr_map.clone(),
            uids: config.uid_map.clone(),
            gids: config.gid_map.clone(),
            dax: dax::reserve(config)?,
            negotiated: AtomicU64::new(0),
        })
    }

    /// Starts a session with these flags; whatever an earlier one left is gone.
    pub(super) fn start_session(&self, flags: u64) {
        self.end_session();
        self.negotiated.store(flags, Ordering::Relaxed);
    }

    /// Closes every file and forgets every node but the root.
    pub(super) fn end_session(&self) {
        self.handles.clear();
        self.locks.retain(|_| false);
        if let Some(window) = &self.dax {
            window.clear();
        }
        self.nodes.forget_all();
        self.negotiated.store(0, Ordering::Relaxed);
    }

    /// The INIT flags that the share wants.
    pub(super) fn wanted_flags(&self) -> u64 {
        self.wanted
    }

    /// Whether this INIT flag was agreed on.
    pub(super) fn has(&self, flag: u64) -> bool {
        self.negotiated.load(Ordering::Relaxed) & flag == flag
    }

    /// How many nodes the guest knows and how many files it has open, for diagnosis.
    pub(super) fn usage(&self) -> (usize, usize) {
        (self.nodes.len(), self.handles.len())
    }

    fn node(&self, id: u64) -> io::Result<Arc<Node>> {
        self.nodes.get(id)
    }

    /// A descriptor (`O_PATH`) of a node's inode.
    ///
    /// # Errors
    /// ESTALE: the inode is gone.
    fn path(&self, node: &Node) -> io::Result<PathFd> {
        self.nodes.path(node)
    }

    /// Opens a node's inode for real. Only regular files and directories: opening a device, a FIFO or a socket acts on
    /// the host, and a symbolic link would be followed to wherever it points.
    ///
    /// # Errors
    /// ELOOP for a symbolic link, ENXIO for other special files, and the host's own.
    fn open_node(&self, node: &Node, flags: OFlags) -> io::Result<File> {
        match node.file_type {
            FileType::RegularFile | FileType::Directory => self.proc_fds.reopen(&self.path(node)?, flags),
            FileType::Symlink => Err(errno(libc::ELOOP)),
            _ => Err(errno(libc::ENXIO)),
        }
    }

    /// Gives an open file of `node` a handle.
    ///
    /// # Errors
    /// ENFILE: guests have as many files open as they may.
    fn add_file(&self, node: u64, file: File) -> io::Result<u64> {
        Ok(self.handles.insert_file(node, file, self.nodes.permit()?))
    }

    /// Gives an open directory a handle.
    ///
    /// # Errors
    /// As above.
    fn add_dir(&self, node: u64, file: File) -> io::Result<u64> {
        Ok(self.handles.insert_dir(node, file, self.nodes.permit()?))
    }

    /// # Errors
    /// EROFS on a share that is read-only.
    fn writable(&self) -> io::Result<()> {
        if self.read_only { Err(errno(libc::EROFS)) } else { Ok(()) }
    }

    /// The host's user id for the guest's.
    ///
    /// # Errors
    /// EPERM: the share's settings forbid it.
    fn host_uid(&self, uid: u32) -> io::Result<u32> {
        self.uids.to_host(uid).ok_or_else(|| errno(libc::EPERM))
    }

    /// The same for a group id.
    fn host_gid(&self, gid: u32) -> io::Result<u32> {
        self.gids.to_host(gid).ok_or_else(|| errno(libc::EPERM))
    }

    /// What a change of a file by a caller of the guest's group `gid` does to its set-user-ID and set-group-ID bits, if it may
    /// `clear` them. A group that the settings forbid is none that a file has.
    pub(super) fn set_id_bits(&self, clear: bool, gid: u32) -> SetIdBits {
        const NOBODY: u32 = 65534;
        if clear {
            SetIdBits::ClearFor(self.gids.to_host(gid).filter(|gid| *gid != u32::MAX).unwrap_or(NOBODY))
        } else {
            SetIdBits::Keep
        }
    }

    /// On whose behalf a request runs, in the host's terms.
    ///
    /// # Errors
    /// As above.
    pub(super) fn host_caller(&self, caller: Caller) -> io::Result<Caller> {
        let Caller { uid, gid, groups } = caller;
        let groups = groups.into_iter().map(|gid| self.host_gid(gid)).collect::<io::Result<_>>()?;
        Ok(Caller { uid: self.host_uid(uid)?, gid: self.host_gid(gid)?, groups })
    }

    /// A file's attributes in the guest's terms.
    fn guest_stat(&self, mut stat: Statx) -> Statx {
        stat.stx_uid = self.uids.to_guest(stat.stx_uid);
        stat.stx_gid = self.gids.to_guest(stat.stx_gid);
        stat
    }

    fn announces_submounts(&self) -> bool {
        self.has(init_flag::SUBMOUNTS)
    }
}

/// Whether the host opens files in `dir` by handle.
#[cfg(test)]
pub(super) fn has_handles(dir: &Path) -> bool {
    let fd = File::open(dir).unwrap();
    FileHandle::of(&fd, 0).is_some_and(|handle| handle.open(&fd).is_ok())
}

/// By what the inode that `path` refers to is known again: its file handle, if the host can open it by that.
fn handled(mounts: &Mounts, stat: &Statx, path: &OwnedFd, proc_fds: &ProcFds) -> Option<Handled> {
    let mount = mounts.of(stat.stx_mnt_id, path, file_type(stat), proc_fds);
    let opened = mount.as_ref().and_then(|mount| FileHandle::of(path, mount.slot));
    let (handle, mount) = match opened {
        Some(handle) => (handle, mount),
        None => (FileHandle::of_birth(stat)?, None),
    };
    let is_mounts_root = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    Some(Handled { handle, mount, generation: if is_mounts_root { 0 } else { handle.generation() } })
}

fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}
