//! DAX: files mapped into the window that the guest sees as memory (SETUPMAPPING, REMOVEMAPPING).
//!
//! Which files the guest accesses that way is its own choice with `-o dax=always`. With `-o dax=inode`, the default of
//! recent kernels, the server decides (Linux Documentation/filesystems/dax.rst) and says so in each file's attributes
//! (FUSE_ATTR_DAX): here it is regular files of at least [`DAX_FILE_SIZE`], so that one share has files of both kinds. A
//! guest keeps to what it was told when it first met the inode until it has forgotten it.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{Attr, FUSE_ATTR_DAX};
use fuse_backend_rs::abi::virtio_fs::SetupmappingIn;
use rustix::fs::{FileType, OFlags, Statx};

use super::host::file_type;
use super::{PassthroughFs, errno};
use crate::virtio::SharedMemory;
use crate::virtio::fs::FsConfig;
use crate::virtio::fs::constants::{DAX_FILE_SIZE, DAX_RANGE, MAPPING_READ, MAPPING_WRITE, MAX_DAX_WINDOW, init_flag};
use crate::virtio::fs::dax_window::{DaxWindow, MappedFile, watch};
use crate::virtio::fs::device::FsError;

/// What Linux sends as handle: it knows the inode only (`fuse_setup_one_mapping` in fs/fuse/dax.c).
const NO_HANDLE: u64 = u64::MAX;

/// The share's window, if it is to have one.
///
/// # Errors
/// Its size is wrong, or there is no room for it.
pub(super) fn reserve(config: &FsConfig) -> Result<Option<Arc<DaxWindow>>, FsError> {
    let (tag, size) = (config.tag.to_string(), config.dax_window);
    if size == 0 {
        return Ok(None);
    }
    if !size.is_multiple_of(DAX_RANGE) || size > MAX_DAX_WINDOW {
        return Err(FsError::DaxWindowSize { tag, size });
    }
    let started = DaxWindow::new(size).map(Arc::new).and_then(|window| {
        watch(&window, "dax window")?;
        Ok(window)
    });
    Ok(Some(started.map_err(|source| FsError::DaxWindow { tag, size, source })?))
}

impl PassthroughFs {
    /// The window as the transport gives it to the guest.
    pub(in crate::virtio::fs) fn shared_memory(&self) -> Option<Arc<dyn SharedMemory>> {
        Some(self.dax.clone()?)
    }

    fn window(&self) -> io::Result<&DaxWindow> {
        self.dax.as_deref().ok_or_else(|| errno(libc::ENOSYS))
    }

    /// SETUPMAPPING.
    ///
    /// # Errors
    /// EINVAL: flags that nobody knows, no regular file, not aligned or outside the window; EROFS: to be written to on a
    /// read-only share; EACCES: the handle is not good for that; ENOMEM: too many mappings; and the host's own.
    pub(in crate::virtio::fs) fn setup_mapping(&self, node: u64, request: &SetupmappingIn) -> io::Result<()> {
        let window = self.window()?;
        let writable = request.flags & MAPPING_WRITE != 0;
        // There is no memory that can be written and not read.
        if request.flags & !(MAPPING_READ | MAPPING_WRITE) != 0 || request.flags & MAPPING_READ == 0 {
            return Err(errno(libc::EINVAL));
        }
        if writable {
            self.writable()?;
        }
        let file = if request.fh == NO_HANDLE {
            let node = self.node(node)?;
            if node.file_type != FileType::RegularFile {
                return Err(errno(libc::EINVAL));
            }
            self.open_node(&node, if writable { OFlags::RDWR } else { OFlags::RDONLY })?
        } else {
            let open = self.handles.get(request.fh, node)?;
            if open.dir.is_some() {
                return Err(errno(libc::EINVAL));
            }
            check_access(&open.file, writable)?;
            open.file.try_clone()?
        };
        let file = MappedFile::new(node, file, self.nodes.permit()?);
        window.map(request.moffset, request.len, file, request.foffset, writable)
    }

    /// REMOVEMAPPING of ranges of the window, all or none.
    ///
    /// # Errors
    /// EINVAL: one is not aligned or lies outside.
    pub(in crate::virtio::fs) fn remove_mappings(&self, ranges: &[(u64, u64)]) -> io::Result<()> {
        let window = self.window()?;
        for (offset, len) in ranges {
            window.check(*offset, *len)?;
        }
        ranges.iter().try_for_each(|(offset, len)| window.unmap(*offset, *len))
    }

    /// Takes zeros out of the window where files have grown since they were found too short.
    pub(in crate::virtio::fs) fn restore_zeros(&self) {
        if let Some(window) = &self.dax {
            window.restore_zeros();
        }
    }

    /// FUSE_ATTR_DAX, or nothing.
    pub(super) fn dax_flag(&self, stat: &Statx) -> u32 {
        let large = file_type(stat) == FileType::RegularFile && stat.stx_size >= DAX_FILE_SIZE;
        if self.has(init_flag::HAS_INODE_DAX) && large { FUSE_ATTR_DAX } else { 0 }
    }

    /// GETATTR.
    pub(in crate::virtio::fs) fn flagged_attributes(&self, node: u64) -> io::Result<(Attr, Duration)> {
        let (stat, flags, valid) = self.attributes_and_flags(node)?;
        Ok((Attr::with_flags(stat, flags), valid))
    }
}

/// Brings back what was missing of a file in the window. For requests that may have made it longer, before they are answered.
pub(super) fn grown(window: Option<&DaxWindow>, node: u64) {
    if let Some(window) = window {
        window.restore_file(node);
    }
}

/// # Errors
/// EACCES: `mmap` would refuse as well, but only after the reservation was given up.
fn check_access(file: &impl AsFd, writable: bool) -> io::Result<()> {
    match rustix::fs::fcntl_getfl(file)? & OFlags::ACCMODE {
        OFlags::RDWR => Ok(()),
        OFlags::RDONLY if !writable => Ok(()),
        _ => Err(errno(libc::EACCES)),
    }
}
