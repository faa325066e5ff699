//! Whose the files are that a guest makes. These tests need root; as an ordinary user every file is the server's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use fuse_backend_rs::abi::fuse_abi::{MkdirIn, MknodIn, WRITE_KILL_PRIV, WriteIn};
use vm_memory::ByteValued;

use super::harness::{ALL_FLAGS, Guest, ROOT, is_root, message, name};
use super::names::rename;
use crate::virtio::fs::constants::{init_flag, opcode};

/// A guest whose root directory has this owner and mode.
fn guest(owner: (u32, u32), mode: u32) -> Guest {
    let guest = Guest::new();
    chown(guest.dir.path(), Some(owner.0), Some(owner.1)).unwrap();
    fs::set_permissions(guest.dir.path(), fs::Permissions::from_mode(mode)).unwrap();
    guest
}

/// The extension that names supplementary groups.
pub(super) fn groups(groups: &[u32]) -> Vec<u8> {
    let size = 12 + 4 * groups.len();
    let mut bytes: Vec<u8> = [size.next_multiple_of(8) as u32, 32, groups.len() as u32]
        .iter()
        .chain(groups)
        .flat_map(|word| word.to_le_bytes())
        .collect();
    bytes.resize(size.next_multiple_of(8), 0);
    bytes
}

/// Makes one file of each kind; returns the first error.
pub(super) fn make_all(guest: &mut Guest) -> Result<(), i32> {
    guest.create(ROOT, "file", libc::O_RDWR, 0o644)?;
    let mkdir = message(&[MkdirIn { mode: 0o755, umask: 0 }.as_slice(), &name("dir")]);
    guest.request(opcode::MKDIR, ROOT, &mkdir)?;
    let mknod = message(&[MknodIn { mode: libc::S_IFIFO | 0o644, ..MknodIn::default() }.as_slice(), &name("fifo")]);
    guest.request(opcode::MKNOD, ROOT, &mknod)?;
    guest.request(opcode::SYMLINK, ROOT, &message(&[&name("link"), &name("target")]))?;
    Ok(())
}

pub(super) const ALL: [&str; 4] = ["file", "dir", "fifo", "link"];

#[test]
fn every_kind_of_file_is_the_callers() {
    if !is_root() {
        return;
    }
    for (uid, gid) in [(0, 0), (0, 7), (1000, 0), (1000, 1001)] {
        let mut guest = guest((0, 0), 0o777);
        (guest.uid, guest.gid) = (uid, gid);
        make_all(&mut guest).unwrap();
        for file in ALL {
            assert_eq!(guest.owner(file), (uid, gid), "{file}");
        }
    }
}

#[test]
fn a_whiteout_is_the_callers() {
    if !is_root() {
        return;
    }
    // Sticky, so that on the host only the owner may rename what is in it; the guest's kernel has agreed.
    for mode in [0o777, 0o700, 0o1777] {
        let mut guest = guest((0, 0), mode);
        let fh = guest.create(ROOT, "a", libc::O_RDWR, 0o644).map(|(entry, open)| (entry.nodeid, open.fh)).unwrap();
        (guest.uid, guest.gid) = (1000, 1001);
        // Leaves a group behind that this thread's accesses have.
        let write = WriteIn { fh: fh.1, size: 1, fuse_flags: WRITE_KILL_PRIV, ..WriteIn::default() };
        guest.write_with(fh.0, write, b"x").unwrap();
        (guest.uid, guest.gid) = (1002, 1003);
        match rename(&mut guest, (ROOT, "a"), (ROOT, "b"), Some(libc::RENAME_WHITEOUT)) {
            Ok(_) => assert_eq!((guest.owner("a"), guest.owner("b")), ((1002, 1003), (0, 0)), "{mode:o}"),
            Err(error) => assert_eq!(error, libc::EINVAL, "only a file system may lack whiteouts"),
        }
        guest.uid = u32::MAX;
        assert_eq!(rename(&mut guest, (ROOT, "b"), (ROOT, "c"), Some(libc::RENAME_WHITEOUT)), Err(libc::EINVAL));
        // Without one nobody is asked for.
        rename(&mut guest, (ROOT, "b"), (ROOT, "c"), None).unwrap();
    }
}

#[test]
fn a_set_group_id_directory_gives_its_group() {
    if !is_root() {
        return;
    }
    let mut guest = guest((0, 55), 0o2777);
    (guest.uid, guest.gid) = (1000, 1001);
    make_all(&mut guest).unwrap();
    for file in ALL {
        assert_eq!(guest.owner(file), (1000, 55), "{file}");
    }
    assert_eq!(guest.mode("dir"), 0o2755, "and the bit itself to directories");
}

#[test]
fn a_supplementary_group_that_the_guest_names_lets_its_member_in() {
    if !is_root() {
        return;
    }
    let mut guest = guest((0, 55), 0o2770);
    (guest.uid, guest.gid) = (1000, 1001);
    guest.extensions = groups(&[55]);
    make_all(&mut guest).unwrap();
    for file in ALL {
        assert_eq!(guest.owner(file), (1000, 55), "{file}");
    }
    // Set-group-ID on a new executable file stays for a member of the group.
    guest.create(ROOT, "sgid", libc::O_RDWR, 0o2755).unwrap();
    assert_eq!(guest.mode("sgid"), 0o2755);
}

#[test]
fn what_the_guest_allowed_is_done_although_the_host_sees_no_reason() {
    if !is_root() {
        return;
    }
    // Before Linux 6.3 a guest cannot name groups; a capability of a user it cannot name at all.
    for flags in [ALL_FLAGS, ALL_FLAGS & !init_flag::CREATE_SUPP_GROUP] {
        let mut guest = guest((0, 55), 0o770);
        guest.init(flags).unwrap();
        (guest.uid, guest.gid) = (1000, 1001);
        make_all(&mut guest).unwrap();
        for file in ALL {
            assert_eq!(guest.owner(file), (1000, 1001), "{file}");
        }
        // The server is itself again.
        (guest.uid, guest.gid) = (0, 0);
        guest.create(ROOT, "roots", libc::O_RDWR, 0o600).unwrap();
        assert_eq!(guest.owner("roots"), (0, 0));
    }
}

#[test]
fn a_file_made_unreadable_is_open_all_the_same_and_opened_again_by_create() {
    let mut guest = Guest::new();
    if is_root() {
        chown(guest.dir.path(), Some(1000), Some(1000)).unwrap();
        (guest.uid, guest.gid) = (1000, 1000);
    }
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0).unwrap();
    assert_eq!((entry.attr.mode, guest.mode("a")), (0o100000, 0));
    assert_eq!(guest.write(entry.nodeid, open.fh, 0, b"x"), Ok(1));
    if is_root() {
        let (again, open) = guest.create(ROOT, "a", libc::O_RDWR | libc::O_TRUNC, 0o777).unwrap();
        assert_eq!((again.nodeid, again.attr.mode), (entry.nodeid, 0o100000), "its mode is not changed");
        assert_eq!(guest.read(again.nodeid, open.fh, 0, 10).unwrap(), b"");
    }
    assert_eq!(guest.create(ROOT, "a", libc::O_RDWR | libc::O_EXCL, 0o777).map(drop), Err(libc::EEXIST));
}

#[test]
fn an_id_of_minus_one_makes_nothing() {
    if !is_root() {
        return;
    }
    let mut guest = guest((0, 0), 0o777);
    for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX)] {
        (guest.uid, guest.gid) = (uid, gid);
        assert_eq!(make_all(&mut guest), Err(libc::EINVAL));
    }
    (guest.uid, guest.gid) = (0, 0);
    guest.extensions = groups(&[u32::MAX]);
    assert_eq!(make_all(&mut guest), Err(libc::EINVAL));
    assert_eq!(fs::read_dir(guest.dir.path()).unwrap().count(), 0);
}

#[test]
fn extensions_that_lie_about_their_length_are_refused() {
    let mut guest = Guest::new();
    // The header counts 8 bytes each: more than the message has.
    for extensions in [vec![0xff; 8], vec![0; 8], groups(&[1, 2, 3])[..16].to_vec()] {
        guest.extensions = extensions;
        assert_eq!(make_all(&mut guest), Err(libc::EINVAL));
    }
    guest.extensions = Vec::new();
    let mut header = guest.header(opcode::SYMLINK, ROOT, 4);
    header.padding = 0xffff;
    let body = message(&[vm_memory::ByteValued::as_slice(&header), b"a\0b\0"]);
    let segments = [crate::virtio::test_support::readable(body), crate::virtio::test_support::writable(200)];
    let reply = guest.raw(1, &segments);
    assert_eq!(super::harness::check(&reply, header.unique), Err(libc::EIO));
    guest.assert_alive();
}
