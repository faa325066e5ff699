//! Names: making, linking, renaming, removing.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use fuse_backend_rs::abi::fuse_abi::{EntryOut, LinkIn, MkdirIn, MknodIn, Opcode, Rename2In, RenameIn};
use vm_memory::ByteValued;

use super::harness::{Answer, Guest, ROOT, is_root, message, name, object};
use crate::virtio::fs::constants::opcode;

fn mkdir(guest: &mut Guest, parent: u64, dir: &str, mode: u32) -> Result<EntryOut, i32> {
    let body = message(&[MkdirIn { mode, umask: 0 }.as_slice(), &name(dir)]);
    guest.request(opcode::MKDIR, parent, &body).map(|reply| object(&reply))
}

pub(super) fn rename(guest: &mut Guest, from: (u64, &str), to: (u64, &str), flags: Option<u32>) -> Answer {
    let names = message(&[&name(from.1), &name(to.1)]);
    match flags {
        None => {
            let body = message(&[RenameIn { newdir: to.0 }.as_slice(), &names]);
            guest.request(Opcode::Rename as u32, from.0, &body)
        }
        Some(flags) => {
            let body = message(&[Rename2In { newdir: to.0, flags, padding: 0 }.as_slice(), &names]);
            guest.request(Opcode::Rename2 as u32, from.0, &body)
        }
    }
}

#[test]
fn directories_are_made_with_exactly_the_mode_asked_for() {
    let mut guest = Guest::new();
    // The guest has applied its umask; the server's own must not matter.
    for mode in [0o777, 0o700, 0o1777, 0o022] {
        let dir = format!("d{mode:o}");
        let entry = mkdir(&mut guest, ROOT, &dir, mode).unwrap();
        assert_eq!(entry.attr.mode, libc::S_IFDIR | mode);
        assert_eq!(guest.mode(&dir), mode);
    }
    assert_eq!(mkdir(&mut guest, ROOT, "d777", 0o755).map(drop), Err(libc::EEXIST));
    let inner = guest.node("d777");
    mkdir(&mut guest, inner, "inner", 0o755).unwrap();
    assert_eq!(guest.request(Opcode::Rmdir as u32, ROOT, &name("d777")), Err(libc::ENOTEMPTY));
    guest.request(Opcode::Rmdir as u32, inner, &name("inner")).unwrap();
    guest.request(Opcode::Rmdir as u32, ROOT, &name("d777")).unwrap();
    assert_eq!(guest.request(Opcode::Rmdir as u32, ROOT, &name("d777")), Err(libc::ENOENT));
    // A removed directory is still a node until it is forgotten, and nothing can be made in it.
    assert_eq!(mkdir(&mut guest, inner, "x", 0o755).map(drop), Err(libc::ENOENT));
}

#[test]
fn fifos_sockets_and_regular_files_are_made_as_nodes() {
    let mut guest = Guest::new();
    for (file, kind) in [("fifo", libc::S_IFIFO), ("socket", libc::S_IFSOCK), ("file", libc::S_IFREG)] {
        let body = message(&[MknodIn { mode: kind | 0o606, ..MknodIn::default() }.as_slice(), &name(file)]);
        let entry: EntryOut = guest.request(opcode::MKNOD, ROOT, &body).map(|reply| object(&reply)).unwrap();
        assert_eq!(entry.attr.mode, kind | 0o606, "{file}");
        assert_eq!(guest.request(opcode::MKNOD, ROOT, &body), Err(libc::EEXIST), "{file}");
    }
    assert!(fs::metadata(guest.path("fifo")).unwrap().file_type().is_fifo());
    assert!(fs::metadata(guest.path("socket")).unwrap().file_type().is_socket());
}

#[test]
fn device_nodes_keep_their_number_and_cannot_be_opened_on_the_host() {
    if !is_root() {
        // Making them takes CAP_MKNOD.
        return;
    }
    let mut guest = Guest::new();
    // Minor above 255: the number is encoded in pieces.
    for (file, kind, (major, minor)) in [("char", libc::S_IFCHR, (1, 3)), ("block", libc::S_IFBLK, (259, 70000))] {
        let rdev = libc::makedev(major, minor) as u32;
        let body = message(&[MknodIn { mode: kind | 0o600, rdev, ..MknodIn::default() }.as_slice(), &name(file)]);
        let entry: EntryOut = guest.request(opcode::MKNOD, ROOT, &body).map(|reply| object(&reply)).unwrap();
        assert_eq!((entry.attr.mode, entry.attr.rdev), (kind | 0o600, rdev));
        assert_eq!(fs::metadata(guest.path(file)).unwrap().rdev(), libc::makedev(major, minor));
        assert_eq!(guest.open(entry.nodeid, libc::O_RDONLY).map(drop), Err(libc::ENXIO));
    }
}

#[test]
fn a_symbolic_link_holds_any_target() {
    let mut guest = Guest::new();
    let longest = "x/".repeat(2047);
    for (index, target) in ["a", "/nowhere/at all", "../..", &longest].into_iter().enumerate() {
        let link = format!("link{index}");
        let body = message(&[&name(&link), &name(target)]);
        let entry: EntryOut = guest.request(opcode::SYMLINK, ROOT, &body).map(|reply| object(&reply)).unwrap();
        assert_eq!(entry.attr.mode & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(entry.attr.size, target.len() as u64);
        assert_eq!(fs::read_link(guest.path(&link)).unwrap().as_os_str().as_bytes(), target.as_bytes());
        assert_eq!(guest.request(Opcode::Readlink as u32, entry.nodeid, &[]).unwrap(), target.as_bytes());
    }
    let body = message(&[&name("empty"), &name("")]);
    assert_eq!(guest.request(opcode::SYMLINK, ROOT, &body), Err(libc::ENOENT));
    let body = message(&[&name("long"), &name(&"x".repeat(4096))]);
    assert_eq!(guest.request(opcode::SYMLINK, ROOT, &body), Err(libc::ENAMETOOLONG));
    assert_eq!(guest.request(Opcode::Readlink as u32, ROOT, &[]), Err(libc::EINVAL), "no link");
}

#[test]
fn a_hard_link_is_the_same_node() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), "x").unwrap();
    fs::create_dir(guest.path("dir")).unwrap();
    let (a, dir) = (guest.node("a"), guest.node("dir"));
    let body = |node, to: &str| message(&[LinkIn { oldnodeid: node }.as_slice(), &name(to)]);
    let entry: EntryOut = guest.request(Opcode::Link as u32, dir, &body(a, "b")).map(|reply| object(&reply)).unwrap();
    assert_eq!((entry.nodeid, entry.attr.nlink), (a, 2));
    assert_eq!(fs::read(guest.path("dir/b")).unwrap(), b"x");
    assert_eq!(guest.request(Opcode::Link as u32, dir, &body(a, "b")), Err(libc::EEXIST));
    assert_eq!(guest.request(Opcode::Link as u32, ROOT, &body(dir, "d")), Err(libc::EPERM));
    assert_eq!(guest.request(Opcode::Link as u32, ROOT, &body(9999, "d")), Err(libc::ESTALE));
    assert_eq!(guest.request(Opcode::Link as u32, a, &body(a, "d")), Err(libc::ENOTDIR));
    // A file without a name cannot get one again.
    fs::remove_file(guest.path("a")).unwrap();
    fs::remove_file(guest.path("dir/b")).unwrap();
    assert_eq!(guest.request(Opcode::Link as u32, ROOT, &body(a, "c")), Err(libc::ENOENT));
}

#[test]
fn a_file_is_renamed_over_another_and_keeps_its_node() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), "a").unwrap();
    fs::write(guest.path("b"), "b").unwrap();
    fs::create_dir(guest.path("dir")).unwrap();
    let (a, b, dir) = (guest.node("a"), guest.node("b"), guest.node("dir"));
    rename(&mut guest, (ROOT, "a"), (dir, "c"), None).unwrap();
    assert_eq!(guest.lookup(dir, "c").unwrap().nodeid, a);
    rename(&mut guest, (dir, "c"), (ROOT, "b"), None).unwrap();
    assert_eq!(guest.node("b"), a);
    assert_eq!(guest.getattr(b).unwrap().attr.nlink, 0, "the replaced file is still a node");
    assert_eq!(rename(&mut guest, (ROOT, "nothing"), (ROOT, "x"), None), Err(libc::ENOENT));
    assert_eq!(rename(&mut guest, (ROOT, "dir"), (dir, "x"), None), Err(libc::EINVAL), "into itself");
    assert_eq!(rename(&mut guest, (ROOT, "b"), (ROOT, "dir"), None), Err(libc::EISDIR));
    assert_eq!(rename(&mut guest, (ROOT, "b"), (a, "x"), None), Err(libc::ENOTDIR));
    for bad in ["", ".", "..", "x/y"] {
        assert_eq!(rename(&mut guest, (ROOT, "b"), (ROOT, bad), None), Err(libc::EINVAL), "to {bad:?}");
        assert_eq!(rename(&mut guest, (ROOT, bad), (ROOT, "b"), None), Err(libc::EINVAL), "from {bad:?}");
    }
}

#[test]
fn rename_flags_reach_the_host() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), "a").unwrap();
    fs::write(guest.path("b"), "b").unwrap();
    let from_to = |guest: &mut Guest, flags| rename(guest, (ROOT, "a"), (ROOT, "b"), Some(flags));
    assert_eq!(from_to(&mut guest, libc::RENAME_NOREPLACE), Err(libc::EEXIST));
    from_to(&mut guest, libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"b");
    assert_eq!(from_to(&mut guest, libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE), Err(libc::EINVAL));
    // A whiteout is a character device 0/0, which any user may make that way (Linux 5.8 and newer).
    match from_to(&mut guest, libc::RENAME_WHITEOUT) {
        Ok(_) => {
            let whiteout = fs::symlink_metadata(guest.path("a")).unwrap();
            assert!(whiteout.file_type().is_char_device());
            assert_eq!(whiteout.rdev(), 0);
        }
        Err(error) => assert!(!is_root() || error == libc::EINVAL, "{error}: only a file system may lack whiteouts"),
    }
}

#[test]
fn names_of_any_bytes_and_the_full_length_are_kept() {
    let mut guest = Guest::new();
    let longest = "n".repeat(255);
    for file in ["-", "a b", "\u{1f980}", "a\nb", &longest] {
        guest.create(ROOT, file, libc::O_RDWR, 0o644).unwrap();
        assert!(guest.path(file).exists(), "{file:?}");
        guest.request(Opcode::Unlink as u32, ROOT, &name(file)).unwrap();
        assert!(!guest.path(file).exists(), "{file:?}");
    }
    let odd = b"\xff\xfe\0";
    let body = message(&[MkdirIn { mode: 0o755, umask: 0 }.as_slice(), odd]);
    guest.request(opcode::MKDIR, ROOT, &body).unwrap();
    assert!(guest.path(std::ffi::OsStr::from_bytes(&odd[..2])).is_dir());
}

#[test]
fn unlink_and_rmdir_tell_files_from_directories() {
    let mut guest = Guest::new();
    fs::write(guest.path("file"), "").unwrap();
    fs::create_dir(guest.path("dir")).unwrap();
    assert_eq!(guest.request(Opcode::Unlink as u32, ROOT, &name("dir")), Err(libc::EISDIR));
    assert_eq!(guest.request(Opcode::Rmdir as u32, ROOT, &name("file")), Err(libc::ENOTDIR));
    assert_eq!(guest.request(Opcode::Unlink as u32, ROOT, &name("nothing")), Err(libc::ENOENT));
}

#[test]
fn a_file_that_was_removed_while_open_is_still_read_and_written() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    guest.request(Opcode::Unlink as u32, ROOT, &name("a")).unwrap();
    assert_eq!(guest.write(entry.nodeid, open.fh, 0, b"still here"), Ok(10));
    assert_eq!(guest.read(entry.nodeid, open.fh, 6, 10).unwrap(), b"here");
    assert_eq!(guest.getattr(entry.nodeid).unwrap().attr.nlink, 0);
    // And opened again by its node.
    let again = guest.open(entry.nodeid, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(entry.nodeid, again, 0, 5).unwrap(), b"still");
}
