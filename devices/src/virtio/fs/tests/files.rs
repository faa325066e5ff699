//! Making, reading, writing and forgetting files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::harness::{Guest, ROOT, is_root};
use crate::virtio::VirtioDevice;
use crate::virtio::fs::InodeHandles;
use crate::virtio::fs::passthrough::DescriptorBudget;

#[test]
fn a_file_made_by_the_guest_is_the_callers_and_holds_what_was_written() {
    let mut guest = Guest::new();
    if is_root() {
        (guest.uid, guest.gid) = (1000, 1001);
        fs::set_permissions(guest.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    }
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o640).unwrap();
    assert_eq!((entry.attr.mode, entry.attr.uid, entry.attr.gid), (0o100640, guest.uid, guest.gid));
    assert_eq!(guest.owner("a"), (guest.uid, guest.gid));
    assert_eq!(guest.write(entry.nodeid, open.fh, 0, b"hello"), Ok(5));
    assert_eq!(guest.write(entry.nodeid, open.fh, 3, b"p me"), Ok(4));
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"help me");
    assert_eq!(guest.read(entry.nodeid, open.fh, 2, 100).unwrap(), b"lp me");
    assert_eq!(guest.read(entry.nodeid, open.fh, 100, 100).unwrap(), b"");
    guest.release(entry.nodeid, open.fh).unwrap();
    assert_eq!(guest.read(entry.nodeid, open.fh, 0, 1), Err(libc::EBADF));
    guest.assert_alive();
}

#[test]
fn a_lookup_finds_a_file_again_under_the_same_node_until_it_is_forgotten() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), "x").unwrap();
    let first = guest.lookup(ROOT, "a").unwrap();
    assert_eq!(first.attr.ino, fs::metadata(guest.path("a")).unwrap().ino());
    assert_eq!((first.entry_valid, first.attr_valid), (1, 1));
    fs::rename(guest.path("a"), guest.path("b")).unwrap();
    assert_eq!(guest.lookup(ROOT, "a").map(|entry| entry.nodeid), Err(libc::ENOENT));
    assert_eq!(guest.node("b"), first.nodeid);
    guest.forget(first.nodeid, 1);
    guest.getattr(first.nodeid).unwrap();
    guest.forget(first.nodeid, 1);
    assert_eq!(guest.getattr(first.nodeid).map(|_| ()), Err(libc::ESTALE));
}

#[test]
fn opening_follows_the_flags_that_matter_on_the_host() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), "hello").unwrap();
    let node = guest.node("a");
    let read_only = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.write(node, read_only, 0, b"x"), Err(libc::EBADF));
    // O_CREAT and O_EXCL were the guest kernel's business, O_DIRECT would want aligned buffers.
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_DIRECT | libc::O_NOFOLLOW | libc::O_TRUNC;
    let handle = guest.open(node, flags).unwrap();
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"", "O_TRUNC");
    assert_eq!(guest.write(node, handle, 1, b"x"), Ok(1));
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"\0x");
}

#[test]
fn only_directories_are_opened_as_directories_and_only_regular_files_as_files() {
    let mut guest = Guest::new();
    fs::write(guest.path("file"), "").unwrap();
    fs::create_dir(guest.path("dir")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", guest.path("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        guest.path("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    for (file, open, opendir) in [
        ("dir", Err(libc::EISDIR), Ok(())),
        ("file", Ok(()), Err(libc::ENOTDIR)),
        ("link", Err(libc::ELOOP), Err(libc::ENOTDIR)),
        ("fifo", Err(libc::ENXIO), Err(libc::ENOTDIR)),
    ] {
        let node = guest.node(file);
        assert_eq!(guest.open(node, libc::O_RDWR).map(drop), open, "{file}");
        assert_eq!(guest.opendir(node).map(drop), opendir, "{file}");
    }
    assert_eq!(guest.mode("fifo"), 0o600);
    guest.device.reset();
    assert_eq!(guest.driver.interrupt().failures(), []);
}

#[test]
fn a_listing_has_dot_and_dot_dot_and_the_inode_numbers_that_lookup_reports() {
    let mut guest = Guest::new();
    for index in 0..300 {
        fs::write(guest.path(format!("file-{index:03}")), "").unwrap();
    }
    let root = guest.getattr(ROOT).unwrap().attr.ino;
    let mut list = guest.list(ROOT, 4096);
    list.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<String> = list.iter().map(|listed| listed.name.clone()).collect();
    let files = (0..300).map(|index| format!("file-{index:03}"));
    assert_eq!(names, [".".to_owned(), "..".to_owned()].into_iter().chain(files).collect::<Vec<_>>());
    assert_eq!((list[0].dirent.ino, list[1].dirent.ino), (root, root), "the root's parent is outside the share");
    assert_eq!(list[2].dirent.ino, guest.lookup(ROOT, "file-000").unwrap().attr.ino);
    assert!(list[2].entry.is_none());
}

#[test]
fn a_guest_that_holds_as_many_files_as_it_may_is_told_so_and_goes_on_after_forgetting() {
    let budget = DescriptorBudget::new(4);
    let mut guest = Guest::with_budget(|config| config.inode_handles = InodeHandles::Never, budget.clone());
    guest.init(super::harness::ALL_FLAGS).unwrap();
    for file in ["a", "b", "c", "d"] {
        fs::write(guest.path(file), "").unwrap();
    }
    // The root, two nodes and a handle.
    let (a, b) = (guest.node("a"), guest.node("b"));
    let handle = guest.open(a, libc::O_RDONLY).unwrap();
    assert_eq!(guest.lookup(ROOT, "c").map(drop), Err(libc::ENFILE));
    assert_eq!(guest.open(b, libc::O_RDONLY).map(drop), Err(libc::ENFILE));
    assert_eq!(guest.create(ROOT, "new", libc::O_RDWR, 0o644).map(drop), Err(libc::ENFILE));
    guest.release(a, handle).unwrap();
    // Room for a node but not for its handle: the node must not stay.
    assert_eq!(guest.create(ROOT, "newer", libc::O_RDWR, 0o644).map(drop), Err(libc::ENFILE));
    assert_eq!(budget.left(), 1);
    guest.node("c");
    guest.forget(b, 1);
    guest.node("d");
    guest.device.reset();
    assert_eq!(budget.left(), 3);
}
