//! Security labels that files get as they are made, where the share lets the guest give them.

use std::fs;

use super::harness::{ALL_FLAGS, Guest, ROOT, is_root};
use super::ownership::{ALL, groups, make_all};
use crate::virtio::fs::constants::init_flag;

/// The extension with one label (`fuse_secctx_header`, `fuse_secctx`, name, label).
fn label(name: &str, value: &[u8]) -> Vec<u8> {
    let record = [&(value.len() as u32).to_le_bytes(), &[0; 4], name.as_bytes(), b"\0", value].concat();
    let size = (8 + record.len()).next_multiple_of(8);
    let mut bytes = [&(size as u32).to_le_bytes(), &1u32.to_le_bytes(), record.as_slice()].concat();
    bytes.resize(size, 0);
    bytes
}

fn read(guest: &Guest, file: &str, name: &str) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(100);
    let path = guest.path(file);
    rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value)).ok().map(|_| value)
}

/// `trusted.*` works on every kind of file, whatever security module the host has.
const NAME: &str = "trusted.label";

#[test]
fn every_kind_of_file_is_labelled() {
    if !is_root() {
        return;
    }
    let mut guest = Guest::with(|config| config.security_context = true);
    fs::set_permissions(guest.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    (guest.uid, guest.gid) = (1000, 1001);
    // With groups behind it, as Linux sends them.
    guest.extensions = [label(NAME, b"secret\0"), groups(&[55])].concat();
    make_all(&mut guest).unwrap();
    for file in ALL {
        assert_eq!(read(&guest, file, NAME).as_deref(), Some(&b"secret\0"[..]), "{file}");
        assert_eq!(guest.owner(file), (1000, 1001), "{file}");
    }
    guest.extensions = label("security.nobody", &[]);
    guest.create(ROOT, "other", libc::O_RDWR, 0o644).unwrap();
}

#[test]
fn a_label_of_a_guest_that_does_not_say_how_long_it_is_is_found_behind_the_names() {
    if !is_root() {
        return;
    }
    let mut guest = Guest::with(|config| config.security_context = true);
    guest.init(ALL_FLAGS & !init_flag::CREATE_SUPP_GROUP).unwrap();
    guest.extensions_counted = false;
    guest.extensions = label(NAME, b"secret\0");
    make_all(&mut guest).unwrap();
    for file in ALL {
        assert_eq!(read(&guest, file, NAME).as_deref(), Some(&b"secret\0"[..]), "{file}");
    }
    // `struct fuse_secctx_header` of no labels, and nothing at all.
    for (file, extensions) in [("none", [8, 0, 0, 0, 0, 0, 0, 0].to_vec()), ("nothing", Vec::new())] {
        guest.extensions = extensions;
        guest.create(ROOT, file, libc::O_RDWR, 0o644).unwrap();
        assert_eq!(read(&guest, file, NAME), None);
    }
    guest.extensions = label(NAME, b"secret")[..20].to_vec();
    assert_eq!(guest.create(ROOT, "cut", libc::O_RDWR, 0o644).map(drop), Err(libc::EINVAL));
    // Who knows of groups says how long they are, and nothing is nothing.
    guest.init(ALL_FLAGS).unwrap();
    guest.extensions = label(NAME, b"secret");
    guest.create(ROOT, "later", libc::O_RDWR, 0o644).unwrap();
    assert_eq!(read(&guest, "later", NAME), None);
}

#[test]
fn a_file_that_cannot_be_labelled_is_not_made() {
    let mut guest = Guest::with(|config| config.security_context = true);
    guest.extensions = label("nonamespace", b"x");
    assert_eq!(make_all(&mut guest), Err(libc::EOPNOTSUPP));
    for (code, body) in [
        (crate::virtio::fs::constants::opcode::MKDIR, &b"\xed\x01\0\0\0\0\0\0dir\0"[..]),
        (crate::virtio::fs::constants::opcode::SYMLINK, b"link\0target\0"),
    ] {
        assert_eq!(guest.request(code, ROOT, body), Err(libc::EOPNOTSUPP));
    }
    assert_eq!(fs::read_dir(guest.dir.path()).unwrap().count(), 0);
}

#[test]
fn labels_that_nobody_asked_for_are_ignored() {
    let mut guest = Guest::new();
    guest.extensions = label(NAME, b"x");
    make_all(&mut guest).unwrap();
    assert_eq!(read(&guest, "file", NAME), None);
    // A share that has them, a guest that does not know of them: then these bytes are part of no name either.
    let mut guest = Guest::with(|config| config.security_context = true);
    guest.init(ALL_FLAGS & !init_flag::SECURITY_CTX).unwrap();
    guest.extensions = label(NAME, b"x");
    make_all(&mut guest).unwrap();
    assert_eq!(read(&guest, "file", NAME), None);
}
