//! Operations on names in a directory: remove, rename, link, read a symbolic link.

use std::ffi::CStr;
use std::io;

use fuse_backend_rs::api::filesystem::Entry;
use rustix::fs::{AtFlags, FileType, RenameFlags};

use super::credentials::Caller;
use super::host::FdPath;
use super::{PassthroughFs, errno};

/// Bytes of the longest symbolic link target, with a terminating NUL (PATH_MAX).
const PATH_MAX: usize = 4096;

/// Checks the name of a directory entry that is to be made, changed or removed.
///
/// The guest's kernel only sends single components, so anything else comes from a hostile one. How long a name may be
/// is the host file system's business (ENAMETOOLONG).
///
/// # Errors
/// EINVAL for an empty name, ".", ".." and any name with a slash.
pub(super) fn check_name(name: &CStr) -> io::Result<()> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(errno(libc::EINVAL)),
        bytes if bytes.contains(&b'/') => Err(errno(libc::EINVAL)),
        _ => Ok(()),
    }
}

impl PassthroughFs {
    pub(super) fn unlink_name(&self, parent: u64, name: &CStr, dir: bool) -> io::Result<()> {
        self.writable()?;
        check_name(name)?;
        let parent = self.node(parent)?;
        let flags = if dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        Ok(rustix::fs::unlinkat(self.path(&parent)?, name, flags)?)
    }

    /// RENAME and, with flags, RENAME2, by a caller with user id `uid` and group id `gid`.
    pub(in crate::virtio::fs) fn rename_name(
        &self,
        (uid, gid): (u32, u32),
        old_parent: u64,
        old_name: &CStr,
        new_parent: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.writable()?;
        check_name(old_name)?;
        check_name(new_name)?;
        let (old_parent, new_parent) = (self.node(old_parent)?, self.node(new_parent)?);
        let (old_dir, new_dir) = (self.path(&old_parent)?, self.path(&new_parent)?);
        let flags = RenameFlags::from_bits_retain(flags);
        let rename = || rustix::fs::renameat_with(&old_dir, old_name, &new_dir, new_name, flags);
        if flags.contains(RenameFlags::WHITEOUT) {
            // The whiteout is a new file, which is the caller's.
            return self.identity.make_as(&self.host_caller(Caller { uid, gid, groups: Vec::new() })?, rename);
        }
        Ok(rename()?)
    }

    pub(super) fn link_node(&self, node: u64, new_parent: u64, new_name: &CStr) -> io::Result<Entry> {
        self.writable()?;
        check_name(new_name)?;
        let (node, parent) = (self.node(node)?, self.node(new_parent)?);
        // Through /proc, because AT_EMPTY_PATH wants CAP_DAC_READ_SEARCH. Following the link there leads to the inode,
        // also when that is itself a symbolic link.
        let (fd, dir) = (self.path(&node)?, self.path(&parent)?);
        let from = FdPath::new(&fd);
        rustix::fs::linkat(self.proc_fds.dir(), from.name(), dir, new_name, AtFlags::SYMLINK_FOLLOW)?;
        self.lookup_child(&parent, new_name)
    }

    pub(super) fn read_link(&self, node: u64) -> io::Result<Vec<u8>> {
        let node = self.node(node)?;
        if node.file_type != FileType::Symlink {
            return Err(errno(libc::EINVAL));
        }
        let mut target = Vec::with_capacity(PATH_MAX);
        rustix::fs::readlinkat_raw(self.path(&node)?, c"", rustix::buffer::spare_capacity(&mut target))?;
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_single_component_is_a_name() {
        for bad in [c"", c".", c"..", c"/", c"a/b", c"../a", c"a/"] {
            assert_eq!(check_name(bad).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{bad:?}");
        }
        for good in [c"a", c"...", c".a", c"a b", c"\xff"] {
            check_name(good).unwrap();
        }
    }
}
