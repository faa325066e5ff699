//! What the flight recorder keeps.

use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::{FileLock, LkIn, Opcode, SetattrIn};
use vm_memory::ByteValued;

use super::harness::{Guest, ROOT, message, name};
use crate::virtio::VirtioDevice;
use crate::virtio::fs::constants::opcode;
use crate::virtio::fs::{FlightPosition, Record};
use crate::virtio::test_support::{readable, writable};

/// The last requests of an operation.
fn of(guest: &Guest, operation: &str) -> Vec<Record> {
    guest.device.flight().read().into_iter().filter(|record| record.operation == operation).collect()
}

fn last(guest: &Guest) -> Record {
    guest.device.flight().read().pop().unwrap()
}

fn arguments(record: &Record) -> Vec<(&str, u64)> {
    record.arguments.iter().map(|(name, value)| (name.as_ref(), *value)).collect()
}

#[test]
fn a_request_is_told_with_its_names_its_numbers_and_what_became_of_it() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let create = last(&guest);
    assert_eq!(
        (create.operation.as_ref(), create.node, create.share.as_str(), create.queue),
        ("CREATE", ROOT, "myfs1", 1)
    );
    assert_eq!((&create.names[..], create.entry), (&["a".to_owned()][..], Some(entry.nodeid)));
    assert_eq!(arguments(&create), [("flags", 2), ("mode", 0o100644)]);
    assert_eq!((create.pid, create.uid, &create.error, create.in_flight), (42, guest.uid, &None, false));
    assert_eq!((create.bytes_in, create.bytes_out), (40 + 16 + 2, 16 + 128 + 16));
    assert!(0 < create.took_ns && create.took_ns < 20_000_000_000, "{create:?}");

    guest.write(entry.nodeid, open.fh, 7, b"data that is nobody's business").unwrap();
    let write = last(&guest);
    assert_eq!((write.node, arguments(&write)), (entry.nodeid, vec![("offset", 7), ("size", 30)]));
    assert!(write.at_ns >= create.at_ns + create.took_ns && write.unique > create.unique && write.names.is_empty());

    guest.lookup(ROOT, "missing").unwrap_err();
    let missing = last(&guest);
    assert_eq!((missing.error.as_deref(), missing.entry, missing.bytes_out), (Some("ENOENT"), None, 16));
    let attributes = SetattrIn { valid: 1, mode: 0o600, ..SetattrIn::default() };
    guest.request(Opcode::Setattr as u32, entry.nodeid, attributes.as_slice()).unwrap();
    assert_eq!(arguments(&last(&guest)), [("mode", 0o600), ("size", 0), ("valid", 1)]);
    guest.request(Opcode::Rename as u32, ROOT, &message(&[&ROOT.to_le_bytes(), &name("a"), &name("b")])).unwrap();
    let rename = last(&guest);
    assert_eq!((rename.names.join(" "), arguments(&rename)), ("a b".to_owned(), vec![("to", ROOT)]));
    guest.forget(entry.nodeid, 1);
    assert_eq!((last(&guest).queue, last(&guest).operation.as_ref(), last(&guest).bytes_out), (0, "FORGET", 0));
}

#[test]
fn the_name_of_an_extended_attribute_is_found_in_both_messages_that_set_one() {
    for (extended, header) in
        [(false, &[1u8, 0, 0, 0, 1, 0, 0, 0][..]), (true, &[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]
    {
        let mut guest = Guest::without_session(|_| {});
        guest.init(if extended { !0 } else { 1 << 30 }).unwrap();
        drop(guest.request(opcode::SETXATTR, ROOT, &message(&[header, &name("user.x"), b"v"])));
        let set = last(&guest);
        assert_eq!(
            (&set.names[..], arguments(&set)),
            (&["user.x".to_owned()][..], vec![("flags", 1), ("size", 1)]),
            "{extended}"
        );
    }
}

#[test]
fn a_request_that_waits_is_in_flight_until_it_is_answered() {
    let mut guest = Guest::with(|config| config.posix_locks = true);
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let lock = |owner, kind: i32| {
        let lk = FileLock { start: 0, end: 9, type_: kind as u32, pid: 1 };
        LkIn { fh: open.fh, owner, lk, ..LkIn::default() }
    };
    guest.request(opcode::SETLK, entry.nodeid, lock(1, libc::F_WRLCK).as_slice()).unwrap();
    let waiting = guest.send(opcode::SETLKW, entry.nodeid, lock(2, libc::F_WRLCK).as_slice());
    let flight = guest.device.flight();
    let deadline = Instant::now() + Duration::from_secs(20);
    while flight.in_flight().is_empty() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    let [wait] = flight.in_flight().try_into().unwrap();
    assert_eq!((wait.operation.as_ref(), wait.node, wait.unique), ("SETLKW", entry.nodeid, waiting.unique));
    assert!(wait.in_flight && wait.error.is_none() && wait.bytes_out == 0);
    std::thread::sleep(Duration::from_millis(5));
    assert!(flight.in_flight()[0].took_ns > wait.took_ns, "it gets older");
    assert!(flight.read().iter().any(|record| record.unique == wait.unique && record.in_flight));
    let unlock = guest.send(opcode::SETLK, entry.nodeid, lock(1, libc::F_UNLCK).as_slice());
    for _ in 0..2 {
        guest.next_reply(&[&waiting, &unlock]).1.unwrap();
    }
    assert_eq!(flight.in_flight(), []);
    let [done] = of(&guest, "SETLKW").try_into().unwrap();
    assert!(!done.in_flight && done.took_ns > wait.took_ns && done.at_ns == wait.at_ns, "{done:?}");
}

#[test]
fn requests_outlive_the_device_and_the_next_session_waits_for_none_of_the_last() {
    let mut guest = Guest::with(|config| config.posix_locks = true);
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let lk = FileLock { start: 0, end: 9, type_: libc::F_WRLCK as u32, pid: 1 };
    let lock = LkIn { fh: open.fh, owner: 1, lk, ..LkIn::default() };
    guest.request(opcode::SETLK, entry.nodeid, lock.as_slice()).unwrap();
    guest.send(opcode::SETLKW, entry.nodeid, LkIn { owner: 2, ..lock }.as_slice());
    let flight = guest.device.flight();
    let deadline = Instant::now() + Duration::from_secs(20);
    while flight.in_flight().is_empty() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    guest.device.reset();
    assert_eq!(flight.in_flight().len(), 1, "whoever looks why it hung still sees it");
    let features = guest.device.device_features();
    let activation = guest.driver.activation(features);
    guest.device.activate(activation).unwrap();
    while !flight.in_flight().is_empty() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(guest);
    assert!(flight.read().iter().any(|record| record.operation == "CREATE"));
}

#[test]
fn as_many_are_kept_as_there_is_room_for_and_who_reads_on_is_told_what_was_missed() {
    let mut guest = Guest::with(|config| config.flight_records = 8);
    let (flight, mut position) = (guest.device.flight(), FlightPosition::default());
    let news = flight.read_on(&mut position);
    assert_eq!((news.records.len(), news.dropped), (1, 0), "INIT");
    for _ in 0..5 {
        guest.getattr(ROOT).unwrap();
    }
    let news = flight.read_on(&mut position);
    assert_eq!((news.records.len(), news.dropped), (5, 0));
    for _ in 0..20 {
        guest.getattr(ROOT).unwrap();
    }
    assert_eq!(flight.read().len(), 8);
    let news = flight.read_on(&mut position);
    assert_eq!((news.records.len(), news.dropped), (8, 12));
    assert_eq!(flight.read_on(&mut position), Default::default());
}

#[test]
fn what_a_guest_sends_wrong_is_kept_as_far_as_it_goes() {
    let mut guest = Guest::new();
    guest.request(Opcode::Lookup as u32, ROOT, b"no end").unwrap_err();
    let cut = last(&guest);
    assert_eq!((&cut.names[..], cut.names_cut), (&["no end".to_owned()][..], true));
    let long = "n".repeat(200);
    guest.lookup(ROOT, &long).unwrap_err();
    let cut = last(&guest);
    assert_eq!((&cut.names[..], cut.names_cut), (&["n".repeat(88)][..], true));
    guest.lookup(ROOT, "\x1b[31m\u{7f}").unwrap_err();
    assert_eq!(last(&guest).names, ["\x1b[31m\u{7f}"]);
    guest.request(Opcode::Lookup as u32, ROOT, &[0xff, 0xfe, 0]).unwrap_err();
    assert_eq!(last(&guest).names, ["\u{fffd}\u{fffd}"]);
    for opcode in [Opcode::Rename as u32, Opcode::Setattr as u32, opcode::CREATE, opcode::SETXATTR, opcode::SETLKW, 63]
    {
        drop(guest.request(opcode, ROOT, &[]));
        drop(guest.request(opcode, ROOT, &[0xff; 5]));
        assert!(last(&guest).error.is_some());
    }
    // A header in pieces, and a message that claims to be shorter than what is there.
    let mut header = guest.header(Opcode::Lookup as u32, ROOT, 2);
    header.len = 40;
    let (first, second) = header.as_slice().split_at(13);
    guest.raw(1, &[readable(first), readable(second), readable(name("x")), writable(16), writable(200)]);
    let piecemeal = last(&guest);
    assert_eq!((piecemeal.unique, piecemeal.operation.as_ref()), (header.unique, "LOOKUP"));
    assert_eq!((piecemeal.names.len(), piecemeal.names_cut), (0, true), "nothing beyond its length");
    guest.assert_alive();
}

#[test]
fn records_are_the_same_when_they_come_back_from_json() {
    let mut guest = Guest::new();
    guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    guest.lookup(ROOT, "missing").unwrap_err();
    for record in guest.device.flight().read() {
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
        assert!(!json.contains("null") && !json.contains("false"), "{json}");
    }
}
