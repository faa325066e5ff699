//! Operations that make files: they run with the caller's ids, so that the host gives the file its owner, group and
//! set-group-ID bit by the same rules as for a local user.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, FOPEN_IN_KILL_SUIDGID};
use fuse_backend_rs::api::filesystem::{Entry, OpenOptions};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};

use super::credentials::{Creator, Label, SetIdBits};
use super::host::{FdPath, open_path_at};
use super::names::check_name;
use super::node::{Node, PathFd};
use super::{PassthroughFs, errno};

/// How long the guest may believe that a file has no name. A name that it does not have cannot change, and to look it up again,
/// as Linux does with an entry that has timed out, makes no sense: overlayfs, which keeps using the entry of a file that it
/// made so after the file has got a name, would have ESTALE.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86400);

/// What a CREATE or TMPFILE gives back.
pub(in crate::virtio::fs) struct Created {
    /// The file.
    pub(in crate::virtio::fs) entry: Entry,
    /// Its handle.
    pub(in crate::virtio::fs) handle: u64,
    /// What the guest may cache.
    pub(in crate::virtio::fs) options: OpenOptions,
}

/// The bits of a mode that `open`, `mkdir` and `mknod` take.
fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

/// Takes back a file that could not be finished; what the guest hears of is the reason for that.
fn remove(dir: &PathFd, name: &CStr, kind: AtFlags) {
    if let Err(error) = rustix::fs::unlinkat(dir, name, kind) {
        tracing::debug!("file {name:?} that could not be labelled stays: {error}");
    }
}

impl PassthroughFs {
    /// MKDIR.
    pub(in crate::virtio::fs) fn make_dir(
        &self,
        creator: &Creator,
        parent: u64,
        name: &CStr,
        mode: u32,
    ) -> io::Result<Entry> {
        self.writable()?;
        check_name(name)?;
        let parent = self.node(parent)?;
        let dir = self.path(&parent)?;
        self.identity.make_for(creator, || rustix::fs::mkdirat(&dir, name, permissions(mode)))?;
        self.label_name(&dir, name, &creator.labels, AtFlags::REMOVEDIR)?;
        self.lookup_child(&parent, name)
    }

    /// MKNOD: regular files, FIFOs, sockets and devices. A device node is only a name here: the server never opens one.
    pub(in crate::virtio::fs) fn make_node(
        &self,
        creator: &Creator,
        parent: u64,
        name: &CStr,
        mode: u32,
        rdev: u32,
    ) -> io::Result<Entry> {
        self.writable()?;
        check_name(name)?;
        let parent = self.node(parent)?;
        let dir = self.path(&parent)?;
        let file_type = FileType::from_raw_mode(mode);
        self.identity
            .make_for(creator, || rustix::fs::mknodat(&dir, name, file_type, permissions(mode), rdev.into()))?;
        self.label_name(&dir, name, &creator.labels, AtFlags::empty())?;
        self.lookup_child(&parent, name)
    }

    /// SYMLINK.
    pub(in crate::virtio::fs) fn make_symlink(
        &self,
        creator: &Creator,
        parent: u64,
        name: &CStr,
        target: &CStr,
    ) -> io::Result<Entry> {
        self.writable()?;
        check_name(name)?;
        let parent = self.node(parent)?;
        let dir = self.path(&parent)?;
        self.identity.make_for(creator, || rustix::fs::symlinkat(target, &dir, name))?;
        self.label_name(&dir, name, &creator.labels, AtFlags::empty())?;
        self.lookup_child(&parent, name)
    }

    /// CREATE: makes a regular file, or opens the one that is there already.
    pub(in crate::virtio::fs) fn create_file(
        &self,
        creator: &Creator,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<Created> {
        self.writable()?;
        check_name(name)?;
        let parent = self.node(parent)?;
        let dir = self.path(&parent)?;
        // Exclusively first: an existing file is opened below as the server, since whether the caller may open it is the
        // guest's decision, and a mode such as 0200 must not get in the way.
        let flags = self.host_flags(args.flags) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = self.identity.make_for(creator, || rustix::fs::openat(&dir, name, flags, permissions(args.mode)));
        match made {
            Ok(fd) => {
                self.label(&fd, &creator.labels).inspect_err(|_| remove(&dir, name, AtFlags::empty()))?;
                self.created(File::from(fd), &parent)
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && args.flags & libc::O_EXCL as u32 == 0 => {
                self.open_existing(creator, &parent, name, args)
            }
            Err(error) => Err(error),
        }
    }

    /// TMPFILE: makes a regular file without a name in the file system of `parent`.
    pub(in crate::virtio::fs) fn create_unnamed(
        &self,
        creator: &Creator,
        parent: u64,
        args: CreateIn,
    ) -> io::Result<Created> {
        self.writable()?;
        let parent = self.node(parent)?;
        let dir = self.path(&parent)?;
        // O_EXCL keeps the host from ever linking it to a name; the guest enforces that itself.
        let flags = (self.host_flags(args.flags) & !OFlags::EXCL) | OFlags::TMPFILE | OFlags::CLOEXEC;
        let fd = self.identity.make_for(creator, || rustix::fs::openat(&dir, c".", flags, permissions(args.mode)))?;
        self.label(&fd, &creator.labels)?;
        let mut created = self.created(File::from(fd), &parent)?;
        created.entry.entry_timeout = NEVER;
        Ok(created)
    }

    /// Labels the file that was just made under a name, or removes it again.
    fn label_name(&self, dir: &PathFd, name: &CStr, labels: &[Label], kind: AtFlags) -> io::Result<()> {
        if labels.is_empty() {
            return Ok(());
        }
        let labelled = open_path_at(dir, name).and_then(|path| self.label(&path, labels));
        labelled.inspect_err(|_| remove(dir, name, kind))
    }

    fn label(&self, file: &impl AsFd, labels: &[Label]) -> io::Result<()> {
        let path = FdPath::new(file);
        labels.iter().try_for_each(|label| {
            let name = self.xattr_map.to_host(&label.name)?;
            Ok(rustix::fs::setxattr(path.path(), &*name, &label.value, XattrFlags::empty())?)
        })
    }

    /// Tells the guest of a file that was just made and is open. The node is taken from the open file: its name may
    /// lead elsewhere by now.
    fn created(&self, file: File, parent: &Node) -> io::Result<Created> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let path = rustix::fs::openat(self.proc_fds.dir(), FdPath::new(&file).name(), flags, Mode::empty())?;
        let entry = self.admit(path, Some(&parent.key))?;
        match self.add_file(entry.inode, file) {
            Ok(handle) => Ok(Created { entry, handle, options: self.cache.file_options() }),
            Err(error) => {
                // The guest will not learn of the node.
                self.nodes.forget(entry.inode, 1);
                Err(error)
            }
        }
    }

    fn open_existing(&self, creator: &Creator, parent: &Node, name: &CStr, args: CreateIn) -> io::Result<Created> {
        let mut entry = self.lookup_child(parent, name)?;
        let clear = args.fuse_flags & FOPEN_IN_KILL_SUIDGID != 0;
        let bits = if clear { SetIdBits::ClearFor(creator.caller.gid) } else { SetIdBits::Keep };
        let opened = self.open_file(entry.inode, args.flags, bits).inspect(|_| {
            // O_TRUNC has changed them.
            if let Ok((attr, _)) = self.attributes(entry.inode) {
                entry.attr = attr;
            }
        });
        match opened {
            Ok((handle, options)) => Ok(Created { entry, handle, options }),
            Err(error) => {
                // The guest will not learn of the node.
                self.nodes.forget(entry.inode, 1);
                // A name that the guest thought free and that is no regular file: it has to look again.
                let special = matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO | libc::EISDIR));
                Err(if special { errno(libc::ESTALE) } else { error })
            }
        }
    }
}
