//! Planted bugs do what they say: else a test that does not notice one would prove nothing.

use fuse_backend_rs::abi::fuse_abi::{EntryOut, FileLock, LkIn, Opcode, SetattrIn};
use vm_memory::ByteValued;

use super::harness::{Guest, ROOT, message, name, object};
use crate::virtio::fs::PlantedBug;
use crate::virtio::fs::constants::opcode;

fn guest(bug: PlantedBug) -> Guest {
    Guest::with(|config| {
        config.posix_locks = true;
        config.planted_bug = Some(bug);
    })
}

fn names(guest: &mut Guest) -> Vec<String> {
    let mut names: Vec<_> = guest.list(ROOT, 4096).into_iter().map(|listed| listed.name).collect();
    names.sort();
    names
}

#[test]
fn planted_bugs_have_names_that_lead_to_them() {
    for (name, bug) in PlantedBug::ALL {
        assert_eq!(name.parse(), Ok(bug));
    }
    assert!("none".parse::<PlantedBug>().unwrap_err().contains("rename-errno, mtime-lost"));
}

#[test]
fn planted_renames_fail_with_another_errno() {
    let mut guest = guest(PlantedBug::RenameErrno);
    std::fs::create_dir_all(guest.path("full/of")).unwrap();
    std::fs::create_dir(guest.path("dir")).unwrap();
    let body = message(&[&ROOT.to_le_bytes(), &name("dir"), &name("full")]);
    assert_eq!(guest.request(Opcode::Rename as u32, ROOT, &body), Err(libc::EBUSY));
}

#[test]
fn planted_directories_keep_their_time_and_files_their_bits_sizes_and_links() {
    let mut planted = guest(PlantedBug::MtimeLost);
    let before = planted.getattr(ROOT).unwrap().attr;
    std::thread::sleep(std::time::Duration::from_millis(20));
    planted.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let after = planted.getattr(ROOT).unwrap().attr;
    assert_eq!((before.mtime, before.mtimensec), (after.mtime, after.mtimensec));

    let mut planted = guest(PlantedBug::SuidKept);
    let (entry, open) = planted.create(ROOT, "a", libc::O_RDWR, 0o6755).unwrap();
    assert_eq!(planted.getattr(entry.nodeid).unwrap().attr.mode & 0o7777, 0o6755);
    std::fs::set_permissions(planted.path("a"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    planted.write(entry.nodeid, open.fh, 0, b"x").unwrap();
    assert_eq!(planted.getattr(entry.nodeid).unwrap().attr.mode & 0o7777, 0o6755);

    let mut planted = guest(PlantedBug::SizeStale);
    let (entry, open) = planted.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let cut = SetattrIn { valid: 1 << 3, size: 100, ..SetattrIn::default() };
    planted.request(Opcode::Setattr as u32, entry.nodeid, cut.as_slice()).unwrap();
    assert_eq!(planted.getattr(entry.nodeid).unwrap().attr.size, 0);
    planted.write(entry.nodeid, open.fh, 0, b"x").unwrap();
    assert_eq!(planted.getattr(entry.nodeid).unwrap().attr.size, 100);

    let mut planted = guest(PlantedBug::LinkCount);
    let (entry, _) = planted.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let body = message(&[&entry.nodeid.to_le_bytes(), &name("b")]);
    let linked: EntryOut = object(&planted.request(Opcode::Link as u32, ROOT, &body).unwrap());
    assert_eq!((entry.attr.nlink, linked.attr.nlink), (1, 1));
}

#[test]
fn planted_listings_lack_themselves_or_have_an_entry_twice() {
    let mut planted = guest(PlantedBug::DotMissing);
    std::fs::write(planted.path("a"), "").unwrap();
    assert_eq!(names(&mut planted), ["..", "a"]);
    let mut planted = guest(PlantedBug::EntryDoubled);
    std::fs::write(planted.path("a"), "").unwrap();
    assert_eq!(names(&mut planted), [".", "..", "a", "a"]);
    planted.assert_alive();
}

#[test]
fn planted_servers_drop_attributes_and_grant_locks_twice() {
    let mut planted = guest(PlantedBug::XattrDropped);
    let (entry, open) = planted.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let set = message(&[&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &name("user.a"), b"v"]);
    planted.request(opcode::SETXATTR, entry.nodeid, &set).unwrap();
    let get = message(&[&[8, 0, 0, 0, 0, 0, 0, 0], &name("user.a")]);
    assert_eq!(planted.request(Opcode::Getxattr as u32, entry.nodeid, &get), Err(libc::ENODATA));

    let lock = |fh, owner| {
        let lk = FileLock { start: 0, end: 9, type_: libc::F_WRLCK as u32, pid: 1 };
        LkIn { fh, owner, lk, ..LkIn::default() }
    };
    for (bug, second) in [(PlantedBug::LockTwice, Ok(vec![])), (PlantedBug::FsyncIgnored, Err(libc::EAGAIN))] {
        let mut planted = guest(bug);
        let (entry, open) = planted.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
        planted.request(opcode::SETLK, entry.nodeid, lock(open.fh, 1).as_slice()).unwrap();
        assert_eq!(planted.request(opcode::SETLK, entry.nodeid, lock(open.fh, 2).as_slice()), second);
    }
    let _ = open;
    let mut planted = guest(PlantedBug::FsyncIgnored);
    let handle_that_is_none = [9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(planted.request(opcode::FSYNC, ROOT, &handle_that_is_none), Ok(vec![]), "not even looked at");
}
