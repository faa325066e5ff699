//! Extended attributes.
//!
//! They are reached by `/proc/self/fd/N`, which works for every type of file and opens none. POSIX ACLs are passed on only
//! when guest and server agreed on that in INIT: an ACL that is stored but not enforced misleads.

use std::borrow::Cow;
use std::ffi::CStr;
use std::io;

use fuse_backend_rs::api::filesystem::{GetxattrReply, ListxattrReply};
use rustix::buffer::spare_capacity;
use rustix::fs::XattrFlags;

use super::credentials::SetIdBits;
use super::host::FdPath;
use super::{PassthroughFs, errno};
use crate::virtio::fs::constants::{XATTR_MAX, init_flag};

/// The attributes that hold POSIX ACLs.
const ACL_NAMES: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

fn is_acl(name: &[u8]) -> bool {
    ACL_NAMES.contains(&name)
}

impl PassthroughFs {
    /// The host's name of an attribute.
    ///
    /// # Errors
    /// ENOSYS on a share without extended attributes: the guest then stops asking. EOPNOTSUPP for POSIX ACLs. What the
    /// share's map says.
    fn host_name<'n>(&self, name: &'n CStr) -> io::Result<Cow<'n, CStr>> {
        if !self.xattr {
            return Err(errno(libc::ENOSYS));
        }
        let acls = self.has(init_flag::POSIX_ACL);
        if !acls && is_acl(name.to_bytes()) {
            return Err(errno(libc::EOPNOTSUPP));
        }
        let host = self.xattr_map.to_host(name)?;
        if !acls && is_acl(host.to_bytes()) { Err(errno(libc::EOPNOTSUPP)) } else { Ok(host) }
    }

    /// SETXATTR. `kill_set_gid`: the group of a caller whose ACL has to clear the set-group-ID bit.
    pub(in crate::virtio::fs) fn set_xattr(
        &self,
        node: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
        kill_set_gid: Option<u32>,
    ) -> io::Result<()> {
        self.writable()?;
        let host_name = self.host_name(name)?;
        let value = if is_acl(name.to_bytes()) { self.host_acl(value)? } else { Cow::Borrowed(value) };
        let node = self.node(node)?;
        let fd = self.path(&node)?;
        let path = FdPath::new(&fd);
        let flags = XattrFlags::from_bits_retain(flags);
        match kill_set_gid {
            Some(gid) if name.to_bytes() == ACL_NAMES[0] => {
                self.host_gid(gid)?;
                self.identity.choose_set_id_bits(self.set_id_bits(true, gid));
            }
            _ => {
                // Who may keep a set-group-ID bit was decided in the guest.
                self.identity.choose_set_id_bits(SetIdBits::Keep);
            }
        }
        Ok(rustix::fs::setxattr(path.path(), &*host_name, &value, flags)?)
    }

    pub(super) fn get_xattr(&self, node: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        let host_name = self.host_name(name).map_err(|error| match error.raw_os_error() {
            // What may not be named is not there.
            Some(libc::EPERM) => errno(libc::ENODATA),
            _ => error,
        })?;
        let node = self.node(node)?;
        let fd = self.path(&node)?;
        let path = FdPath::new(&fd);
        if size == 0 {
            return Ok(GetxattrReply::Count(count(rustix::fs::getxattr_query(path.path(), &*host_name)?)?));
        }
        let mut value = Vec::with_capacity((size as usize).min(XATTR_MAX));
        rustix::fs::getxattr(path.path(), &*host_name, spare_capacity(&mut value))?;
        Ok(GetxattrReply::Value(if is_acl(name.to_bytes()) { self.guest_acl(value) } else { value }))
    }

    pub(super) fn list_xattr(&self, node: u64, size: u32) -> io::Result<ListxattrReply> {
        if !self.xattr {
            return Err(errno(libc::ENOSYS));
        }
        let node = self.node(node)?;
        let fd = self.path(&node)?;
        let path = FdPath::new(&fd);
        let mut names = Vec::with_capacity(XATTR_MAX);
        rustix::fs::listxattr(path.path(), spare_capacity(&mut names))?;
        let names = if self.has(init_flag::POSIX_ACL) { names } else { without_acls(names) };
        let names = self.guest_names(names);
        if size == 0 {
            Ok(ListxattrReply::Count(count(names.len())?))
        } else if names.len() > size as usize {
            Err(errno(libc::ERANGE))
        } else {
            Ok(ListxattrReply::Names(names))
        }
    }

    pub(super) fn remove_xattr(&self, node: u64, name: &CStr) -> io::Result<()> {
        self.writable()?;
        let host_name = self.host_name(name)?;
        let node = self.node(node)?;
        let fd = self.path(&node)?;
        Ok(rustix::fs::removexattr(FdPath::new(&fd).path(), &*host_name)?)
    }

    /// A list of NUL-terminated names as the guest shall see it.
    fn guest_names(&self, names: Vec<u8>) -> Vec<u8> {
        if self.xattr_map.is_identity() {
            return names;
        }
        let names = names.split_inclusive(|byte| *byte == 0).filter_map(|name| self.xattr_map.to_guest(name));
        names.flatten().copied().collect()
    }

    /// An ACL with the host's ids for the guest's.
    ///
    /// # Errors
    /// EPERM: one of the ids is forbidden.
    fn host_acl<'v>(&self, value: &'v [u8]) -> io::Result<Cow<'v, [u8]>> {
        if self.uids.is_identity() && self.gids.is_identity() {
            return Ok(Cow::Borrowed(value));
        }
        let mut value = value.to_vec();
        each_acl_id(&mut value, |user, id| if user { self.host_uid(id) } else { self.host_gid(id) })?;
        Ok(Cow::Owned(value))
    }

    /// An ACL with the guest's ids for the host's.
    fn guest_acl(&self, mut value: Vec<u8>) -> Vec<u8> {
        let to_guest = |user, id| Ok(if user { self.uids.to_guest(id) } else { self.gids.to_guest(id) });
        // Translating this way refuses no id.
        let _: io::Result<()> = each_acl_id(&mut value, to_guest);
        value
    }
}

/// Replaces every id of a user (true) or group in an ACL as the kernel stores it: a u32, then entries of tag u16,
/// permissions u16, id u32 (include/uapi/linux/posix_acl_xattr.h). What is no ACL is left for the host to refuse.
fn each_acl_id(value: &mut [u8], translate: impl Fn(bool, u32) -> io::Result<u32>) -> io::Result<()> {
    const ACL_USER: u16 = 2;
    const ACL_GROUP: u16 = 8;
    let Some(entries) = value.get_mut(4..) else { return Ok(()) };
    for entry in entries.chunks_exact_mut(8) {
        let [tag0, tag1, _, _, id @ ..] = entry else { continue };
        let tag = u16::from_le_bytes([*tag0, *tag1]);
        if let (ACL_USER | ACL_GROUP, Some(id)) = (tag, id.first_chunk_mut::<4>()) {
            *id = translate(tag == ACL_USER, u32::from_le_bytes(*id))?.to_le_bytes();
        }
    }
    Ok(())
}

fn count(size: usize) -> io::Result<u32> {
    u32::try_from(size).map_err(|_| errno(libc::E2BIG))
}

/// Takes the ACLs out of a list of NUL-terminated names.
fn without_acls(names: Vec<u8>) -> Vec<u8> {
    let is_listed_acl = |name: &[u8]| name.strip_suffix(&[0]).is_some_and(is_acl);
    if !names.split_inclusive(|byte| *byte == 0).any(is_listed_acl) {
        return names;
    }
    names.split_inclusive(|byte| *byte == 0).filter(|name| !is_listed_acl(name)).flatten().copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acls_are_taken_out_of_a_list_and_nothing_else_is() {
        let list =
            b"user.a\0system.posix_acl_access\0user.system.posix_acl_access\0system.posix_acl_default\0".to_vec();
        assert_eq!(without_acls(list), b"user.a\0user.system.posix_acl_access\0");
        assert_eq!(without_acls(b"user.a\0".to_vec()), b"user.a\0");
        assert_eq!(without_acls(Vec::new()), b"");
    }
}
