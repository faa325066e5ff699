//! Nothing outside of the shared directory is reached.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use fuse_backend_rs::abi::fuse_abi::{LinkIn, Opcode};
use vm_memory::ByteValued;

use super::harness::{Guest, ROOT, message, name};
use crate::virtio::VirtioDevice;
use crate::virtio::fs::{FsConfig, FsDevice, InodeHandles, Tag};

#[test]
fn the_roots_parent_is_the_root() {
    let mut guest = Guest::new();
    let root = guest.getattr(ROOT).unwrap().attr.ino;
    let parent = guest.lookup(ROOT, "..").unwrap();
    assert_eq!((parent.nodeid, parent.attr.ino), (ROOT, root));
    let itself = guest.lookup(ROOT, ".").unwrap();
    assert_eq!((itself.nodeid, itself.attr.ino), (ROOT, root));
}

#[test]
fn dot_and_dot_dot_are_looked_up_from_any_node() {
    let mut guest = Guest::with(|config| config.inode_handles = InodeHandles::Never);
    fs::create_dir_all(guest.path("a/b")).unwrap();
    fs::write(guest.path("a/file"), "").unwrap();
    let a = guest.node("a");
    let b = guest.lookup(a, "b").unwrap().nodeid;
    let file = guest.lookup(a, "file").unwrap().nodeid;
    assert_eq!(guest.lookup(b, "..").unwrap().nodeid, a);
    assert_eq!(guest.lookup(a, "..").unwrap().nodeid, ROOT);
    assert_eq!(guest.lookup(file, ".").unwrap().nodeid, file);
    assert_eq!(guest.lookup(file, "..").map(drop), Err(libc::ENOTDIR));
    // Each is counted like any other lookup.
    guest.forget(file, 1);
    guest.getattr(file).unwrap();
    guest.forget(file, 1);
    assert_eq!(guest.lookup(file, ".").map(drop), Err(libc::ESTALE));
}

#[test]
fn a_directory_moved_out_of_the_share_does_not_lead_out() {
    let mut guest = Guest::new();
    let outside = tempfile::tempdir_in(guest.dir.path().parent().unwrap()).unwrap();
    fs::create_dir_all(guest.path("a/b")).unwrap();
    let a = guest.node("a");
    let b = guest.lookup(a, "b").unwrap().nodeid;
    fs::rename(guest.path("a/b"), outside.path().join("b")).unwrap();
    assert_eq!(guest.lookup(b, "..").map(drop), Err(libc::ESTALE));
    fs::rename(outside.path().join("b"), guest.path("b")).unwrap();
    assert_eq!(guest.lookup(b, "..").unwrap().nodeid, ROOT);
}

#[test]
fn a_symbolic_link_is_a_link_to_every_operation() {
    let mut guest = Guest::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    fs::create_dir(outside.path().join("dir")).unwrap();
    symlink(outside.path().join("secret"), guest.path("file")).unwrap();
    symlink(outside.path().join("dir"), guest.path("dir")).unwrap();
    symlink(outside.path().join("new"), guest.path("dangling")).unwrap();
    for link in ["file", "dir", "dangling"] {
        let entry = guest.lookup(ROOT, link).unwrap();
        assert_eq!(entry.attr.mode & libc::S_IFMT, libc::S_IFLNK, "{link}");
        let target = guest.request(Opcode::Readlink as u32, entry.nodeid, &[]).unwrap();
        assert_eq!(target, fs::read_link(guest.path(link)).unwrap().as_os_str().as_encoded_bytes());
        assert_eq!(guest.lookup(entry.nodeid, "secret").map(drop), Err(libc::ENOTDIR));
        assert_eq!(guest.create(entry.nodeid, "new", libc::O_RDWR, 0o644).map(drop), Err(libc::ENOTDIR));
        assert_eq!(guest.open(entry.nodeid, libc::O_RDWR).map(drop), Err(libc::ELOOP));
        // A guest that thinks the name is free is sent back to look.
        let flags = libc::O_RDWR | libc::O_TRUNC;
        assert_eq!(guest.create(ROOT, link, flags, 0o644).map(drop), Err(libc::ESTALE), "{link}");
        assert_eq!(guest.create(ROOT, link, flags | libc::O_EXCL, 0o644).map(drop), Err(libc::EEXIST), "{link}");
    }
    // A hard link is to the link.
    let node = guest.node("file");
    let link = message(&[LinkIn { oldnodeid: node }.as_slice(), &name("second")]);
    guest.request(Opcode::Link as u32, ROOT, &link).unwrap();
    assert!(fs::symlink_metadata(guest.path("second")).unwrap().is_symlink());
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2, "nothing was made outside");
    assert_eq!(fs::metadata(outside.path().join("secret")).unwrap().nlink(), 1);
}

#[test]
fn a_component_that_becomes_a_symbolic_link_after_its_lookup_leads_nowhere_else() {
    let mut guest = Guest::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    fs::create_dir(guest.path("a")).unwrap();
    let a = guest.node("a");
    fs::rename(guest.path("a"), guest.path("b")).unwrap();
    symlink(outside.path(), guest.path("a")).unwrap();
    assert_eq!(guest.lookup(a, "secret").map(drop), Err(libc::ENOENT), "the node is still the old directory");
    guest.create(a, "new", libc::O_RDWR, 0o644).unwrap();
    assert!(guest.path("b/new").exists());
}

#[test]
fn the_shared_directory_itself_may_be_named_by_a_symbolic_link() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("real")).unwrap();
    symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
    let config = FsConfig::new(Tag::new("t").unwrap(), dir.path().join("link"));
    assert_eq!(FsDevice::new(config).unwrap().name(), "fs[t]");
}
