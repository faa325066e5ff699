//! Messages that make no sense: each gets an errno, and the device goes on.

use fuse_backend_rs::abi::fuse_abi::{
    BatchForgetIn, CreateIn, ForgetIn, ForgetOne, GetattrIn, InHeader, InitIn, InitOut, IoctlIn, MkdirIn, Opcode,
    ReadIn, SetxattrIn, WriteIn,
};
use vm_memory::ByteValued;

use super::harness::{ALL_FLAGS, Guest, ROOT, check, message, name, object};
use crate::virtio::fs::constants::{MAX_OWN_BODY, opcode};
use crate::virtio::test_support::{readable, writable};

/// Every opcode there is, and some there are not.
fn opcodes() -> impl Iterator<Item = u32> {
    (0..64).chain([4096, u32::MAX, Opcode::InitBswapReserved as u32])
}

fn has_no_reply(code: u32) -> bool {
    [opcode::FORGET, opcode::BATCH_FORGET, opcode::INTERRUPT, opcode::NOTIFY_REPLY].contains(&code)
}

#[test]
fn an_unknown_opcode_is_not_implemented() {
    let mut guest = Guest::new();
    for code in [0, 7, 19, 48, 49, 54, 55, 63, 4096, u32::MAX, Opcode::InitBswapReserved as u32] {
        assert_eq!(guest.request(code, ROOT, &[0; 64]), Err(libc::ENOSYS), "opcode {code}");
    }
    // Locks stay in the guest by default, POLL has a default there, mapping needs a window.
    for code in [Opcode::Getlk, Opcode::Setlk, Opcode::Setlkw, Opcode::Poll, Opcode::Access, Opcode::Bmap] {
        assert_eq!(guest.request(code as u32, ROOT, &[0; 64]), Err(libc::ENOSYS), "{code:?}");
    }
    guest.assert_alive();
}

#[test]
fn before_init_every_request_is_refused_and_forget_does_nothing() {
    let mut guest = Guest::without_session(|_| {});
    for code in opcodes().filter(|code| *code != opcode::INIT && !has_no_reply(*code)) {
        assert_eq!(guest.request(code, ROOT, &[0; 128]), Err(libc::EIO), "opcode {code}");
    }
    guest.forget(ROOT, 1);
    guest.init(ALL_FLAGS).unwrap();
    guest.assert_alive();
}

#[test]
fn an_empty_body_is_refused_by_every_opcode_that_needs_one_and_survived_by_all() {
    let mut guest = Guest::new();
    // These need none.
    let bodyless = [Opcode::Readlink, Opcode::Statfs, Opcode::Destroy].map(|code| code as u32);
    for code in opcodes().filter(|code| !has_no_reply(*code)) {
        let answer = guest.request(code, ROOT, &[]);
        if !bodyless.contains(&code) && code != opcode::SYNCFS {
            assert!(answer.is_err(), "opcode {code}");
        }
        if code == opcode::DESTROY {
            guest.init(ALL_FLAGS).unwrap();
        }
    }
    guest.assert_alive();
}

#[test]
fn a_body_of_ones_is_survived_by_every_opcode() {
    let mut guest = Guest::new();
    for len in [1, 7, 8, 40, 128, 5000] {
        for code in opcodes().filter(|code| !has_no_reply(*code)) {
            let answer = guest.request(code, ROOT, &vec![0xff; len]);
            if code == opcode::DESTROY {
                guest.init(ALL_FLAGS).unwrap();
            }
            assert!(answer.is_ok() || answer.unwrap_err() > 0);
        }
    }
    guest.assert_alive();
}

#[test]
fn a_header_that_lies_about_its_length_is_refused() {
    let mut guest = Guest::new();
    for len in [0, 1, 39, 57, 4096, 1 << 20, u32::MAX] {
        let body = GetattrIn::default();
        let header = InHeader { len, ..guest.header(Opcode::Getattr as u32, ROOT, 16) };
        let reply = guest.raw(1, &[readable(header.as_slice()), readable(body.as_slice()), writable(200)]);
        assert_eq!(check(&reply, header.unique), Err(libc::EIO), "len {len}");
    }
    guest.assert_alive();
}

#[test]
fn a_request_shorter_than_a_header_is_answered_with_its_unique_if_it_has_one() {
    let mut guest = Guest::new();
    let header = guest.header(Opcode::Getattr as u32, ROOT, 0);
    for len in [16, 20, 39] {
        let reply = guest.raw(1, &[readable(&header.as_slice()[..len]), writable(64)]);
        assert_eq!(check(&reply, header.unique), Err(libc::EIO));
    }
    for len in [1, 15] {
        let reply = guest.raw(1, &[readable(&header.as_slice()[..len]), writable(64)]);
        assert_eq!(check(&reply, 0), Err(libc::EIO));
    }
    let reply = guest.raw(1, &[writable(64)]);
    assert_eq!(check(&reply, 0), Err(libc::EIO), "no request at all");
    guest.assert_alive();
}

#[test]
fn a_header_may_be_spread_over_descriptors() {
    let mut guest = Guest::new();
    let header = guest.header(Opcode::Getattr as u32, ROOT, size_of::<GetattrIn>());
    let bytes = message(&[header.as_slice(), GetattrIn::default().as_slice()]);
    let mut segments: Vec<_> = bytes.chunks(3).map(readable).collect();
    segments.extend((0..12).map(|_| writable(10)));
    let reply = guest.raw(1, &segments);
    assert_eq!(check(&reply, header.unique).unwrap().len(), 104);
}

#[test]
fn names_that_are_none_are_refused() {
    let mut guest = Guest::new();
    let too_long = "x".repeat(256);
    let far_too_long = "x".repeat(5000);
    for (bad, expected) in [
        ("", libc::EINVAL),
        ("a/b", libc::EINVAL),
        ("/", libc::EINVAL),
        ("/etc/passwd", libc::EINVAL),
        ("../a", libc::EINVAL),
        (&too_long, libc::ENAMETOOLONG),
        (&far_too_long, libc::ENAMETOOLONG),
    ] {
        // What Linux calls a node that it did not come by through a directory: the node itself.
        let looked_up = if bad == "/" { Ok(()) } else { Err(expected) };
        assert_eq!(guest.lookup(ROOT, bad).map(|entry| assert_eq!(entry.nodeid, ROOT)), looked_up, "lookup {bad:?}");
        let mkdir = message(&[MkdirIn { mode: 0o755, umask: 0 }.as_slice(), &name(bad)]);
        assert_eq!(guest.request(opcode::MKDIR, ROOT, &mkdir), Err(expected), "mkdir {bad:?}");
        assert_eq!(guest.create(ROOT, bad, libc::O_RDWR, 0o644).map(drop), Err(expected), "create {bad:?}");
        for code in [Opcode::Unlink, Opcode::Rmdir] {
            assert_eq!(guest.request(code as u32, ROOT, &name(bad)), Err(expected), "{code:?} {bad:?}");
        }
        let symlink = message(&[&name(bad), b"target\0"]);
        assert_eq!(guest.request(opcode::SYMLINK, ROOT, &symlink), Err(expected), "symlink {bad:?}");
    }
    for bad in [".", ".."] {
        assert_eq!(guest.request(Opcode::Rmdir as u32, ROOT, &name(bad)), Err(libc::EINVAL), "{bad}");
        assert_eq!(guest.create(ROOT, bad, libc::O_RDWR, 0o644).map(drop), Err(libc::EINVAL), "{bad}");
    }
    assert_eq!(std::fs::read_dir(guest.dir.path()).unwrap().count(), 0, "nothing was made");
    guest.assert_alive();
}

#[test]
fn a_name_without_its_end_is_refused() {
    let mut guest = Guest::new();
    let mkdir = MkdirIn { mode: 0o755, umask: 0 };
    let create = CreateIn { mode: 0o644, ..CreateIn::default() };
    for (code, fixed) in [
        (Opcode::Lookup as u32, &[][..]),
        (Opcode::Unlink as u32, &[][..]),
        (Opcode::Rename as u32, &[0; 8][..]),
        (Opcode::Rename2 as u32, &[0; 16][..]),
        (opcode::SYMLINK, &[][..]),
        (opcode::MKDIR, mkdir.as_slice()),
        (opcode::CREATE, create.as_slice()),
    ] {
        assert_eq!(guest.request(code, ROOT, &message(&[fixed, b"abc"])), Err(libc::EIO), "opcode {code}");
    }
    // The second name.
    assert_eq!(guest.request(opcode::SYMLINK, ROOT, b"name\0target"), Err(libc::EIO));
    assert_eq!(guest.request(Opcode::Rename as u32, ROOT, &message(&[&[0; 8], b"a\0b"])), Err(libc::EIO));
    guest.assert_alive();
}

#[test]
fn an_unknown_node_is_stale() {
    let mut guest = Guest::new();
    for node in [0, 2, 99, u64::MAX] {
        assert_eq!(guest.getattr(node).map(drop), Err(libc::ESTALE), "node {node}");
        assert_eq!(guest.lookup(node, "a").map(drop), Err(libc::ESTALE));
        assert_eq!(guest.create(node, "a", libc::O_RDWR, 0o644).map(drop), Err(libc::ESTALE));
        assert_eq!(guest.open(node, 0).map(drop), Err(libc::ESTALE));
        assert_eq!(guest.request(Opcode::Statfs as u32, node, &[]), Err(libc::ESTALE));
        assert_eq!(guest.request(Opcode::Readlink as u32, node, &[]), Err(libc::ESTALE));
    }
    guest.assert_alive();
}

#[test]
fn an_unknown_handle_and_another_nodes_handle_are_bad() {
    let mut guest = Guest::new();
    let (a, open_a) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let (b, _) = guest.create(ROOT, "b", libc::O_RDWR, 0o644).unwrap();
    for (node, handle) in [(a.nodeid, 0), (a.nodeid, u64::MAX), (b.nodeid, open_a.fh), (ROOT, open_a.fh)] {
        assert_eq!(guest.read(node, handle, 0, 10), Err(libc::EBADF));
        assert_eq!(guest.write(node, handle, 0, b"x"), Err(libc::EBADF));
        assert_eq!(guest.release(node, handle), Err(libc::EBADF));
        for code in [Opcode::Fsync, Opcode::Flush, Opcode::Fallocate, Opcode::Lseek, Opcode::Readdir] {
            let body = message(&[&handle.to_le_bytes(), &[0; 32]]);
            assert_eq!(guest.request(code as u32, node, &body), Err(libc::EBADF), "{code:?}");
        }
    }
    // A file's handle does not read a directory.
    let body = message(&[&open_a.fh.to_le_bytes(), &[0; 32]]);
    assert_eq!(guest.request(Opcode::Readdir as u32, a.nodeid, &body), Err(libc::ENOTDIR));
    assert_eq!(guest.write(a.nodeid, open_a.fh, 0, b"x"), Ok(1));
}

#[test]
fn a_reply_that_does_not_fit_becomes_an_error() {
    let mut guest = Guest::new();
    std::fs::write(guest.path("a"), "x").unwrap();
    for room in [0, 1, 100] {
        let answer = guest.request_with_room(Opcode::Lookup as u32, ROOT, &name("a"), room);
        assert_eq!(answer, Err(libc::EIO), "room {room}");
        let mkdir = message(&[MkdirIn { mode: 0o755, umask: 0 }.as_slice(), &name(&format!("d{room}"))]);
        assert_eq!(guest.request_with_room(opcode::MKDIR, ROOT, &mkdir, room), Err(libc::EIO), "room {room}");
    }
    let node = guest.node("a");
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    let read = ReadIn { fh: handle, size: 4096, ..ReadIn::default() };
    assert_eq!(guest.request_with_room(Opcode::Read as u32, node, read.as_slice(), 100), Err(libc::EIO));
    let handle = guest.opendir(ROOT).unwrap();
    let read = ReadIn { fh: handle, size: 4096, ..ReadIn::default() };
    for code in [Opcode::Readdir, Opcode::Readdirplus] {
        let answer = guest.request_with_room(code as u32, ROOT, read.as_slice(), 100);
        assert_eq!(answer, Err(libc::ENOMEM), "{code:?}");
    }
    guest.assert_alive();
}

#[test]
fn a_request_without_room_for_any_reply_stops_the_device() {
    for room in [None, Some(1), Some(15)] {
        let mut guest = Guest::new();
        let header = guest.header(Opcode::Getattr as u32, ROOT, 16);
        let mut segments = vec![readable(header.as_slice()), readable([0; 16])];
        segments.extend(room.map(writable));
        guest.driver.queue(1).add(&segments);
        guest.driver.queue(1).kick();
        let failure = guest.driver.interrupt().wait_failure(std::time::Duration::from_secs(20)).unwrap();
        assert_eq!(failure.device, "fs[myfs1]");
        assert!(failure.reason.contains("opcode 3 leaves"), "{}", failure.reason);
    }
}

#[test]
fn init_again_starts_anew() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    guest.init(ALL_FLAGS).unwrap();
    assert_eq!(guest.getattr(entry.nodeid).map(drop), Err(libc::ESTALE));
    assert_eq!(guest.read(entry.nodeid, open.fh, 0, 1), Err(libc::EBADF));
    guest.node("a");
    guest.assert_alive();
}

#[test]
fn destroy_ends_the_session_and_init_starts_another() {
    let mut guest = Guest::new();
    let (entry, _) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    assert_eq!(guest.request(opcode::DESTROY, ROOT, &[]), Ok(vec![]));
    assert_eq!(guest.getattr(ROOT).map(drop), Err(libc::EIO));
    guest.init(ALL_FLAGS).unwrap();
    assert_eq!(guest.getattr(entry.nodeid).map(drop), Err(libc::ESTALE));
    guest.node("a");
    guest.assert_alive();
}

#[test]
fn an_init_of_a_newer_or_older_protocol_starts_no_session() {
    let mut guest = Guest::without_session(|_| {});
    let newer = InitIn { major: 8, minor: 0, ..InitIn::default() };
    let reply = guest.request(opcode::INIT, 0, newer.as_slice()).unwrap();
    assert_eq!(object::<InitOut>(&reply).major, 7);
    assert_eq!(guest.getattr(ROOT).map(drop), Err(libc::EIO));
    let older = InitIn { major: 7, minor: 20, ..InitIn::default() };
    assert_eq!(guest.request(opcode::INIT, 0, older.as_slice()), Err(libc::EPROTO));
    // A guest before protocol 7.36 sends no second half.
    guest.init(ALL_FLAGS & 0x3fff_ffff).unwrap();
    guest.assert_alive();
}

#[test]
fn an_init_that_promises_more_flags_than_it_sends_is_refused() {
    let mut guest = Guest::without_session(|_| {});
    let short = InitIn { major: 7, minor: 38, max_readahead: 0, flags: 1 << 30 };
    assert_eq!(guest.request(opcode::INIT, 0, short.as_slice()), Err(libc::EIO));
    assert_eq!(guest.getattr(ROOT).map(drop), Err(libc::EIO));
}

#[test]
fn forgetting_too_much_or_the_unknown_does_no_harm() {
    let mut guest = Guest::new();
    std::fs::write(guest.path("a"), "x").unwrap();
    let node = guest.node("a");
    guest.forget(node, u64::MAX);
    guest.forget(node, 1);
    guest.forget(ROOT, u64::MAX);
    guest.forget(0, 1);
    guest.forget(u64::MAX, u64::MAX);
    assert_eq!(guest.getattr(node).map(drop), Err(libc::ESTALE));
    guest.node("a");
    guest.assert_alive();
}

#[test]
fn many_nodes_are_forgotten_at_once() {
    let mut guest = Guest::new();
    let nodes: Vec<u64> = (0..3)
        .map(|index| {
            std::fs::write(guest.path(index.to_string()), "").unwrap();
            guest.node(&index.to_string())
        })
        .collect();
    let list: Vec<u8> =
        nodes.iter().take(2).flat_map(|node| ForgetOne { nodeid: *node, nlookup: 1 }.as_slice().to_vec()).collect();
    let body = message(&[BatchForgetIn { count: 2, dummy: 0 }.as_slice(), &list]);
    let header = guest.header(opcode::BATCH_FORGET, 0, body.len());
    let reply = guest.raw(0, &[readable(header.as_slice()), readable(&body)]);
    assert_eq!(reply.len, 0);
    assert_eq!(guest.getattr(nodes[0]).map(drop), Err(libc::ESTALE));
    assert_eq!(guest.getattr(nodes[1]).map(drop), Err(libc::ESTALE));
    guest.getattr(nodes[2]).unwrap();
}

#[test]
fn a_batch_forget_that_lies_about_its_count_is_dropped() {
    let mut guest = Guest::new();
    std::fs::write(guest.path("a"), "").unwrap();
    let node = guest.node("a");
    for count in [2, 65535, u32::MAX] {
        let one = ForgetOne { nodeid: node, nlookup: 1 };
        let body = message(&[BatchForgetIn { count, dummy: 0 }.as_slice(), one.as_slice()]);
        let header = guest.header(opcode::BATCH_FORGET, 0, body.len());
        let reply = guest.raw(0, &[readable(header.as_slice()), readable(&body)]);
        assert_eq!(reply.len, 0);
        guest.getattr(node).unwrap();
    }
    let header = guest.header(opcode::FORGET, node, 0);
    assert_eq!(guest.raw(0, &[readable(header.as_slice())]).len, 0, "no count at all");
    guest.getattr(node).unwrap();
}

#[test]
fn requests_without_reply_leave_a_reply_buffer_alone() {
    let mut guest = Guest::new();
    for code in [opcode::FORGET, opcode::BATCH_FORGET, opcode::INTERRUPT, opcode::NOTIFY_REPLY] {
        let header = guest.header(code, 77, size_of::<ForgetIn>());
        let reply = guest.raw(0, &[readable(header.as_slice()), readable([0; 8]), writable(64)]);
        assert_eq!((reply.len, reply.data), (0, vec![0xa5; 64]), "opcode {code}");
    }
    guest.assert_alive();
}

#[test]
fn a_body_longer_than_any_request_needs_is_too_big() {
    let mut guest = Guest::new();
    let body = message(&[SetxattrIn { size: 0, flags: 0 }.as_slice(), &vec![b'x'; MAX_OWN_BODY + 16]]);
    assert_eq!(guest.request(opcode::SETXATTR, ROOT, &body), Err(libc::E2BIG));
    let body = message(&[IoctlIn::default().as_slice(), &vec![b'x'; 200 << 10]]);
    assert_eq!(guest.request(opcode::IOCTL, ROOT, &body), Err(libc::E2BIG));
    guest.assert_alive();
}

#[test]
fn a_message_larger_than_the_largest_write_is_refused() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let size = (1u32 << 20) + 8192;
    let write = WriteIn { fh: open.fh, size, ..WriteIn::default() };
    assert_eq!(guest.write_with(entry.nodeid, write, &vec![1; size as usize]), Err(libc::ENOMEM));
    // A write that says it has more than the message holds writes what there is.
    let write = WriteIn { fh: open.fh, size: 1 << 20, ..WriteIn::default() };
    assert_eq!(guest.write_with(entry.nodeid, write, b"abc"), Ok(3));
    assert_eq!(std::fs::read(guest.path("a")).unwrap(), b"abc");
    guest.assert_alive();
}

#[test]
fn the_high_priority_queue_serves_any_request() {
    let mut guest = Guest::new();
    let header = guest.header(Opcode::Getattr as u32, ROOT, 16);
    let reply = guest.raw(0, &[readable(header.as_slice()), readable([0; 16]), writable(200)]);
    assert_eq!(check(&reply, header.unique).unwrap().len(), 104);
}
