//! Extended attributes.

use std::fs;
use std::os::unix::fs::symlink;

use fuse_backend_rs::abi::fuse_abi::{GetxattrIn, GetxattrOut, Opcode};
use vm_memory::ByteValued;

use super::harness::{ALL_FLAGS, Answer, Guest, ROOT, is_root, message, name, object};
use crate::virtio::fs::constants::{init_flag, opcode};
use crate::virtio::fs::messages::SetxattrInExt;

pub(super) fn set(guest: &mut Guest, node: u64, attribute: &str, value: &[u8], flags: u32) -> Answer {
    let request = SetxattrInExt { size: value.len() as u32, flags, ..SetxattrInExt::default() };
    guest.request(opcode::SETXATTR, node, &message(&[request.as_slice(), &name(attribute), value]))
}

pub(super) fn get(guest: &mut Guest, node: u64, attribute: &str, size: u32) -> Answer {
    let request = GetxattrIn { size, padding: 0 };
    guest.request_with_room(Opcode::Getxattr as u32, node, &message(&[request.as_slice(), &name(attribute)]), 128 << 10)
}

pub(super) fn list(guest: &mut Guest, node: u64, size: u32) -> Answer {
    let request = GetxattrIn { size, padding: 0 };
    guest.request_with_room(Opcode::Listxattr as u32, node, request.as_slice(), 128 << 10)
}

pub(super) fn remove(guest: &mut Guest, node: u64, attribute: &str) -> Answer {
    guest.request(Opcode::Removexattr as u32, node, &name(attribute))
}

#[test]
fn attributes_are_set_read_listed_and_removed() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), "").unwrap();
    fs::create_dir(guest.path("dir")).unwrap();
    for file in ["a", "dir"] {
        let node = guest.node(file);
        assert_eq!(get(&mut guest, node, "user.x", 0), Err(libc::ENODATA));
        set(&mut guest, node, "user.x", b"value\0with nul", 0).unwrap();
        assert_eq!(get(&mut guest, node, "user.x", 100).unwrap(), b"value\0with nul");
        assert_eq!(object::<GetxattrOut>(&get(&mut guest, node, "user.x", 0).unwrap()).size, 14);
        assert_eq!(get(&mut guest, node, "user.x", 13), Err(libc::ERANGE));
        assert_eq!(get(&mut guest, node, "user.x", u32::MAX).unwrap().len(), 14);
        set(&mut guest, node, "user.empty", b"", 0).unwrap();
        assert_eq!(get(&mut guest, node, "user.empty", 10).unwrap(), b"");
        let mut names: Vec<Vec<u8>> = list(&mut guest, node, 1000)
            .unwrap()
            .split_inclusive(|byte| *byte == 0)
            .map(<[u8]>::to_vec)
            .filter(|name| name.starts_with(b"user."))
            .collect();
        names.sort();
        assert_eq!(names, [b"user.empty\0".to_vec(), b"user.x\0".to_vec()]);
        let size = object::<GetxattrOut>(&list(&mut guest, node, 0).unwrap()).size;
        assert_eq!(list(&mut guest, node, size).unwrap().len(), size as usize);
        assert_eq!(list(&mut guest, node, size - 1), Err(libc::ERANGE));
        remove(&mut guest, node, "user.x").unwrap();
        assert_eq!(remove(&mut guest, node, "user.x"), Err(libc::ENODATA));
    }
}

#[test]
fn create_and_replace_are_kept_apart() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), "").unwrap();
    let node = guest.node("a");
    assert_eq!(set(&mut guest, node, "user.x", b"1", libc::XATTR_REPLACE as u32), Err(libc::ENODATA));
    set(&mut guest, node, "user.x", b"1", libc::XATTR_CREATE as u32).unwrap();
    assert_eq!(set(&mut guest, node, "user.x", b"2", libc::XATTR_CREATE as u32), Err(libc::EEXIST));
    set(&mut guest, node, "user.x", b"3", libc::XATTR_REPLACE as u32).unwrap();
    assert_eq!(get(&mut guest, node, "user.x", 10).unwrap(), b"3");
    assert_eq!(set(&mut guest, node, "user.x", b"4", u32::MAX), Err(libc::EINVAL));
}

#[test]
fn a_symbolic_link_has_attributes_of_its_own() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), "").unwrap();
    symlink("a", guest.path("link")).unwrap();
    let (file, link) = (guest.node("a"), guest.node("link"));
    // user.* is for files and directories only.
    assert_eq!(set(&mut guest, link, "user.x", b"1", 0), Err(libc::EPERM));
    if is_root() {
        set(&mut guest, link, "trusted.x", b"1", 0).unwrap();
        assert_eq!(get(&mut guest, link, "trusted.x", 10).unwrap(), b"1");
        assert_eq!(get(&mut guest, file, "trusted.x", 10), Err(libc::ENODATA));
        assert!(list(&mut guest, link, 100).unwrap().starts_with(b"trusted.x\0"));
        remove(&mut guest, link, "trusted.x").unwrap();
    }
    list(&mut guest, file, 1000).unwrap();
}

#[test]
fn posix_acls_are_not_supported() {
    let mut guest = Guest::new();
    for acl in ["system.posix_acl_access", "system.posix_acl_default"] {
        assert_eq!(set(&mut guest, ROOT, acl, &[2, 0, 0, 0], 0), Err(libc::EOPNOTSUPP));
        assert_eq!(get(&mut guest, ROOT, acl, 100), Err(libc::EOPNOTSUPP));
        assert_eq!(remove(&mut guest, ROOT, acl), Err(libc::EOPNOTSUPP));
    }
}

#[test]
fn a_guest_without_the_extended_request_sends_the_short_one() {
    let mut guest = Guest::new();
    guest.init(ALL_FLAGS & !init_flag::SETXATTR_EXT).unwrap();
    let request = fuse_backend_rs::abi::fuse_abi::SetxattrIn { size: 3, flags: 0 };
    let body = message(&[request.as_slice(), &name("user.x"), b"abc"]);
    guest.request(opcode::SETXATTR, ROOT, &body).unwrap();
    assert_eq!(get(&mut guest, ROOT, "user.x", 10).unwrap(), b"abc");
}

#[test]
fn a_value_of_another_size_than_said_is_refused() {
    let mut guest = Guest::new();
    for size in [0, 2, 4, u32::MAX] {
        let request = SetxattrInExt { size, ..SetxattrInExt::default() };
        let body = message(&[request.as_slice(), &name("user.x"), b"abc"]);
        assert_eq!(guest.request(opcode::SETXATTR, ROOT, &body), Err(libc::EIO), "size {size}");
    }
    let request = SetxattrInExt { size: 3, ..SetxattrInExt::default() };
    assert_eq!(guest.request(opcode::SETXATTR, ROOT, &message(&[request.as_slice(), b"user.x"])), Err(libc::EIO));
    assert_eq!(set(&mut guest, ROOT, "", b"x", 0), Err(libc::ERANGE));
    assert_eq!(set(&mut guest, ROOT, &"n".repeat(300), b"x", 0), Err(libc::ERANGE));
    assert_eq!(get(&mut guest, ROOT, "nonamespace", 10), Err(libc::EOPNOTSUPP));
}

#[test]
fn the_largest_value_linux_knows_is_passed_on_or_refused_by_the_host() {
    let mut guest = Guest::new();
    let value = vec![7; 64 << 10];
    match set(&mut guest, ROOT, "user.large", &value, 0) {
        Ok(_) => assert!(get(&mut guest, ROOT, "user.large", 64 << 10).unwrap() == value),
        Err(error) => assert!([libc::ENOSPC, libc::E2BIG].contains(&error), "{error}"),
    }
    let error = set(&mut guest, ROOT, "user.large", &vec![7; (64 << 10) + 1], 0).unwrap_err();
    assert_eq!(error, libc::E2BIG);
    guest.assert_alive();
}
