//! Names and ids that are others on the host.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use fuse_backend_rs::abi::fuse_abi::{AttrOut, Opcode, SetattrIn};
use vm_memory::ByteValued;

use super::harness::{Guest, ROOT, is_root, object};
use super::ownership::{ALL, groups, make_all};
use super::xattrs::{get, list, remove, set};
use crate::virtio::fs::constants::opcode;
use crate::virtio::fs::messages::{StatxIn, StatxOut};

/// A guest whose users and groups are translated so.
fn translated(users: &str, groups: &str) -> Guest {
    let guest = Guest::with(|config| {
        config.uid_map = users.parse().unwrap();
        config.gid_map = groups.parse().unwrap();
        config.posix_acl = true;
    });
    fs::set_permissions(guest.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    guest
}

fn set_owner(guest: &mut Guest, node: u64, uid: u32, gid: u32) -> Result<AttrOut, i32> {
    let request = SetattrIn { valid: 1 << 1 | 1 << 2, uid, gid, ..SetattrIn::default() };
    guest.request(Opcode::Setattr as u32, node, request.as_slice()).map(|reply| object(&reply))
}

#[test]
fn files_are_made_for_and_shown_to_the_translated_owner() {
    if !is_root() {
        return;
    }
    let mut guest = translated("map:0:1000:500", "map:0:2000:500");
    (guest.uid, guest.gid) = (7, 8);
    make_all(&mut guest).unwrap();
    for file in ALL {
        assert_eq!(guest.owner(file), (1007, 2008), "{file}");
        let attr = guest.lookup(ROOT, file).unwrap().attr;
        assert_eq!((attr.uid, attr.gid), (7, 8), "{file}");
    }
    let node = guest.node("file");
    let attr = set_owner(&mut guest, node, 499, 500).unwrap().attr;
    assert_eq!((attr.uid, attr.gid, guest.owner("file")), (499, 500, (1499, 500)));
    let attr = guest.getattr(node).unwrap().attr;
    assert_eq!((attr.uid, attr.gid), (499, 500));
    let request = StatxIn { sx_mask: 0xfff, ..StatxIn::default() };
    let out: StatxOut = object(&guest.request(opcode::STATX, node, request.as_slice()).unwrap());
    assert_eq!((out.uid, out.gid), (499, 500));
}

#[test]
fn supplementary_groups_are_translated_too() {
    if !is_root() {
        return;
    }
    let mut guest = translated("map:0:0:1", "map:50:60:10");
    chown(guest.dir.path(), Some(0), Some(65)).unwrap();
    fs::set_permissions(guest.dir.path(), fs::Permissions::from_mode(0o2770)).unwrap();
    (guest.uid, guest.gid) = (1000, 1001);
    guest.extensions = groups(&[55]);
    make_all(&mut guest).unwrap();
    assert_eq!(guest.owner("file"), (1000, 65));
    assert_eq!(guest.lookup(ROOT, "file").unwrap().attr.gid, 55);
}

#[test]
fn squashed_and_forbidden_ids() {
    if !is_root() {
        return;
    }
    let mut guest = translated("squash-guest:100:5:10,forbid-guest:200:1,squash-host:0:99:1", "forbid-guest:300:1");
    guest.uid = 103;
    guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    assert_eq!(guest.owner("a").0, 5);
    let node = guest.node("a");
    for (uid, gid) in [(200, 0), (0, 300)] {
        assert_eq!(set_owner(&mut guest, node, uid, gid).map(drop), Err(libc::EPERM));
        (guest.uid, guest.gid) = (uid, gid);
        assert_eq!(make_all(&mut guest), Err(libc::EPERM));
    }
    assert_eq!(fs::read_dir(guest.dir.path()).unwrap().count(), 1);
    assert_eq!(guest.getattr(ROOT).unwrap().attr.uid, 99, "the host's root");
    assert_eq!(set_owner(&mut guest, node, u32::MAX, 0).map(drop), Err(libc::EINVAL));
}

#[test]
fn ids_in_acls_are_translated() {
    let mut guest = translated("map:1000:3000:10,forbid-guest:9:1", "map:1000:4000:10");
    let acl = |user, group| {
        let none = u32::MAX;
        super::acls::acl(&[(1, 7, none), (2, 6, user), (4, 4, none), (8, 4, group), (16, 6, none), (32, 0, none)])
    };
    const ACCESS: &str = "system.posix_acl_access";
    match set(&mut guest, ROOT, ACCESS, &acl(1001, 1002), 0) {
        Err(error) => return assert_eq!(error, libc::EOPNOTSUPP, "a file system without ACLs"),
        Ok(_) => assert_eq!(get(&mut guest, ROOT, ACCESS, 100).unwrap(), acl(1001, 1002)),
    }
    let mut value = Vec::with_capacity(100);
    rustix::fs::getxattr(guest.dir.path(), ACCESS, rustix::buffer::spare_capacity(&mut value)).unwrap();
    assert_eq!(value, acl(3001, 4002));
    assert_eq!(set(&mut guest, ROOT, ACCESS, &acl(9, 0), 0), Err(libc::EPERM));
    assert_eq!(set(&mut guest, ROOT, ACCESS, &[2], 0), Err(libc::EINVAL));
}

#[test]
fn attributes_are_stored_under_the_mapped_name() {
    let mut guest = Guest::with(|config| config.xattr_map = ":map:trusted.:user.virtiofs.:".parse().unwrap());
    let host = |guest: &Guest, name: &str| {
        let mut value = Vec::with_capacity(100);
        let read = rustix::fs::getxattr(guest.dir.path(), name, rustix::buffer::spare_capacity(&mut value));
        read.ok().map(|_| value)
    };
    set(&mut guest, ROOT, "trusted.overlay.opaque", b"y", 0).unwrap();
    assert_eq!(host(&guest, "user.virtiofs.trusted.overlay.opaque").as_deref(), Some(&b"y"[..]));
    assert_eq!(get(&mut guest, ROOT, "trusted.overlay.opaque", 10).unwrap(), b"y");
    set(&mut guest, ROOT, "user.plain", b"z", 0).unwrap();
    assert_eq!(host(&guest, "user.plain").as_deref(), Some(&b"z"[..]));
    let names = list(&mut guest, ROOT, 1000).unwrap();
    let mut names: Vec<&[u8]> = names.split_inclusive(|byte| *byte == 0).collect();
    names.retain(|name| !name.starts_with(b"security."));
    names.sort();
    assert_eq!(names, [&b"trusted.overlay.opaque\0"[..], b"user.plain\0"]);
    let hidden = "user.virtiofs.trusted.overlay.opaque";
    assert_eq!(get(&mut guest, ROOT, hidden, 10), Err(libc::ENODATA));
    assert_eq!(set(&mut guest, ROOT, hidden, b"n", 0), Err(libc::EPERM));
    assert_eq!(remove(&mut guest, ROOT, hidden), Err(libc::EPERM));
    remove(&mut guest, ROOT, "trusted.overlay.opaque").unwrap();
    assert_eq!(host(&guest, hidden), None);
}

#[test]
fn a_map_does_not_lead_around_the_refusal_of_acls() {
    let mut guest = Guest::with(|config| config.xattr_map = ":prefix:all:posix:system.::ok:all:::".parse().unwrap());
    assert_eq!(set(&mut guest, ROOT, "posix_acl_access", &[2, 0, 0, 0], 0), Err(libc::EOPNOTSUPP));
    assert_eq!(get(&mut guest, ROOT, "posix_acl_access", 10), Err(libc::EOPNOTSUPP));
}
