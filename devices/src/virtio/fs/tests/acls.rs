//! POSIX ACLs, where the share has them switched on.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use fuse_backend_rs::abi::fuse_abi::{CreateIn, MkdirIn, MknodIn, Opcode, SetattrIn};
use vm_memory::ByteValued;

use super::harness::{ALL_FLAGS, Guest, ROOT, is_root, message, name};
use super::xattrs::{get, list, remove, set};
use crate::virtio::fs::constants::{SETXATTR_ACL_KILL_SGID, init_flag, opcode};
use crate::virtio::fs::messages::SetxattrInExt;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const MASK: u16 = 16;
const OTHER: u16 = 32;

/// An ACL as the kernel stores it in an extended attribute (include/uapi/linux/posix_acl_xattr.h).
pub(super) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// Owner rwx, user 1000 rw-, group r--, others nothing.
fn example() -> Vec<u8> {
    let none = u32::MAX;
    acl(&[(USER_OBJ, 7, none), (USER, 6, 1000), (GROUP_OBJ, 4, none), (MASK, 6, none), (OTHER, 0, none)])
}

/// A guest with ACLs, if the host's file system has them.
fn guest() -> Option<Guest> {
    let guest = Guest::with(|config| config.posix_acl = true);
    let probe = rustix::fs::getxattr_query(guest.dir.path(), ACCESS);
    (probe != Err(rustix::io::Errno::OPNOTSUPP)).then_some(guest)
}

#[test]
fn acls_are_stored_and_change_the_mode() {
    let Some(mut guest) = guest() else { return };
    fs::write(guest.path("a"), "").unwrap();
    let node = guest.node("a");
    set(&mut guest, node, ACCESS, &example(), 0).unwrap();
    assert_eq!(get(&mut guest, node, ACCESS, 100).unwrap(), example());
    assert_eq!(guest.getattr(node).unwrap().attr.mode & 0o777, 0o760, "the group's bits are the mask's");
    assert!(list(&mut guest, node, 1000).unwrap().windows(ACCESS.len()).any(|part| part == ACCESS.as_bytes()));
    // And back: chmod changes the mask.
    let chmod = SetattrIn { valid: 1, mode: 0o740, ..SetattrIn::default() };
    guest.request(Opcode::Setattr as u32, node, chmod.as_slice()).unwrap();
    assert_ne!(get(&mut guest, node, ACCESS, 100).unwrap(), example());
    remove(&mut guest, node, ACCESS).unwrap();
    assert_eq!(get(&mut guest, node, ACCESS, 100), Err(libc::ENODATA));
    assert_eq!(set(&mut guest, node, ACCESS, &example()[..20], 0), Err(libc::EINVAL));
    assert_eq!(set(&mut guest, node, DEFAULT, &example(), 0), Err(libc::EACCES), "directories only");
}

#[test]
fn acls_need_all_that_makes_them_work() {
    let Some(mut guest) = guest() else { return };
    for missing in [init_flag::POSIX_ACL, init_flag::DONT_MASK, init_flag::SETXATTR_EXT] {
        guest.init(ALL_FLAGS & !missing).unwrap();
        assert_eq!(get(&mut guest, ROOT, ACCESS, 100), Err(libc::EOPNOTSUPP));
    }
    let out = guest.init(ALL_FLAGS).unwrap();
    let wanted = init_flag::POSIX_ACL | init_flag::DONT_MASK;
    assert_eq!(u64::from(out.flags) & wanted, wanted);
    assert_eq!(get(&mut guest, ROOT, ACCESS, 100), Err(libc::ENODATA));
}

/// Makes one of each with mode 0777 and this umask; returns their modes.
fn make_all(guest: &mut Guest, umask: u32) -> [u32; 4] {
    let create = CreateIn { flags: libc::O_RDWR as u32, mode: libc::S_IFREG | 0o777, umask, fuse_flags: 0 };
    guest.request(opcode::CREATE, ROOT, &message(&[create.as_slice(), &name("file")])).unwrap();
    let mkdir = MkdirIn { mode: 0o777, umask };
    guest.request(opcode::MKDIR, ROOT, &message(&[mkdir.as_slice(), &name("dir")])).unwrap();
    let mknod = MknodIn { mode: libc::S_IFIFO | 0o777, umask, ..MknodIn::default() };
    guest.request(opcode::MKNOD, ROOT, &message(&[mknod.as_slice(), &name("fifo")])).unwrap();
    let reply = guest.request(opcode::TMPFILE, ROOT, &message(&[create.as_slice(), &name("/")])).unwrap();
    let unnamed: fuse_backend_rs::abi::fuse_abi::EntryOut = super::harness::object(&reply);
    let modes = ["file", "dir", "fifo"].map(|file| guest.mode(file));
    fs::remove_file(guest.path("file")).unwrap();
    fs::remove_file(guest.path("fifo")).unwrap();
    fs::remove_dir(guest.path("dir")).unwrap();
    [modes[0], modes[1], modes[2], unnamed.attr.mode & 0o777]
}

#[test]
fn the_callers_umask_counts_unless_the_directory_has_a_default_acl() {
    let Some(mut guest) = guest() else { return };
    assert_eq!(make_all(&mut guest, 0o027), [0o750; 4]);
    assert_eq!(make_all(&mut guest, 0), [0o777; 4], "the last caller's umask is gone");
    assert_eq!(make_all(&mut guest, u32::MAX), [0; 4]);
    set(&mut guest, ROOT, DEFAULT, &example(), 0).unwrap();
    assert_eq!(make_all(&mut guest, 0o777), [0o760; 4]);
    // Without ACLs the guest has applied it.
    let mut guest = Guest::new();
    assert_eq!(make_all(&mut guest, 0o027), [0o777; 4]);
}

#[test]
fn setting_an_acl_clears_the_set_group_id_bit_when_the_guest_says_so() {
    let Some(mut guest) = guest() else { return };
    if !is_root() {
        return;
    }
    fs::write(guest.path("a"), "").unwrap();
    chown(guest.path("a"), Some(1000), Some(2000)).unwrap();
    let node = guest.node("a");
    (guest.uid, guest.gid) = (1000, 1000);
    let mut set_mode_after = |setxattr_flags| {
        fs::set_permissions(guest.path("a"), fs::Permissions::from_mode(0o2755)).unwrap();
        let value = example();
        let request = SetxattrInExt { size: value.len() as u32, setxattr_flags, ..SetxattrInExt::default() };
        guest.request(opcode::SETXATTR, node, &message(&[request.as_slice(), &name(ACCESS), &value])).unwrap();
        guest.mode("a")
    };
    assert_eq!(set_mode_after(SETXATTR_ACL_KILL_SGID), 0o760);
    assert_eq!(set_mode_after(0), 0o2760);
    assert_eq!(set_mode_after(SETXATTR_ACL_KILL_SGID), 0o760);
    // The server is itself again.
    (guest.uid, guest.gid) = (0, 0);
    guest.create(ROOT, "roots", libc::O_RDWR, 0o600).unwrap();
    assert_eq!(guest.owner("roots"), (0, 0));
}
