//! Faults on purpose, as a guest sees them.

use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::{FsyncIn, Opcode};
use vm_memory::ByteValued;

use super::harness::{Guest, ROOT, message};
use super::names::rename;
use crate::virtio::VirtioDevice;
use crate::virtio::fs::constants::opcode;
use crate::virtio::fs::{FaultRule, OperationStats, Record};
use crate::virtio::test_support::{readable, writable};

fn guest(rules: &[&str]) -> Guest {
    Guest::with(|config| config.faults = rules.iter().map(|rule| rule.parse::<FaultRule>().unwrap()).collect())
}

fn stats(guest: &Guest, name: &str) -> OperationStats {
    guest.device.stats().read().operations.into_iter().find(|operation| operation.name == name).unwrap()
}

fn records(guest: &Guest, name: &str) -> Vec<Record> {
    guest.device.flight().read().into_iter().filter(|record| record.operation == name).collect()
}

#[test]
fn the_seventh_write_fails_and_nothing_is_written_by_it() {
    let mut guest = guest(&["op=WRITE,nth=7,errno=EIO"]);
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let written: Vec<_> = (0..9).map(|at| guest.write(entry.nodeid, open.fh, at, b"x")).collect();
    assert_eq!(written.iter().position(Result::is_err), Some(6));
    assert_eq!((written[6], written[8]), (Err(libc::EIO), Ok(1)));
    assert_eq!(std::fs::read(guest.path("a")).unwrap(), b"xxxxxx\0xx");
    let write = stats(&guest, "WRITE");
    assert_eq!((write.count, write.errors, write.injected), (9, 1, 1));
    let marked: Vec<_> =
        records(&guest, "WRITE").iter().map(|record| (record.injected, record.error.clone())).collect();
    assert_eq!((marked[5].clone(), marked[6].clone()), ((false, None), (true, Some("EIO".into()))));
    assert_eq!(stats(&guest, "CREATE").injected, 0);
}

#[test]
fn every_third_lookup_of_a_name_fails_on_the_share_that_is_named_and_on_no_other() {
    let rules = ["myfs1:op=LOOKUP,name=a,every=3,errno=ENOMEM", "myfs2:op=GETATTR,errno=EIO"];
    let mut guest = guest(&rules);
    std::fs::write(guest.path("a"), "").unwrap();
    std::fs::write(guest.path("ab"), "").unwrap();
    let mut found = Vec::new();
    for _ in 0..6 {
        guest.lookup(ROOT, "ab").unwrap();
        found.push(guest.lookup(ROOT, "a").map(|entry| entry.generation));
    }
    let failed: Vec<_> = found.iter().map(|found| *found == Err(libc::ENOMEM)).collect();
    assert_eq!(failed, [false, false, true, false, false, true]);
    guest.getattr(ROOT).unwrap();
    assert_eq!((stats(&guest, "LOOKUP").injected, stats(&guest, "GETATTR").injected), (2, 0));
}

#[test]
fn names_of_any_length_are_found_also_behind_others() {
    let long = "l".repeat(255);
    let (lookup, renames) = (format!("op=LOOKUP,name={long},errno=ENOMEM"), "op=RENAME2,name=b,errno=EIO");
    let mut guest = guest(&[&lookup, renames]);
    std::fs::write(guest.path(&long), "").unwrap();
    assert_eq!(guest.lookup(ROOT, &long).map(drop), Err(libc::ENOMEM));
    assert_eq!(guest.lookup(ROOT, &long[1..]).map(drop), Err(libc::ENOENT), "another name");
    assert_eq!(rename(&mut guest, (ROOT, &long), (ROOT, "b"), Some(0)), Err(libc::EIO));
    rename(&mut guest, (ROOT, &long), (ROOT, "a"), Some(0)).unwrap();
    assert_eq!((stats(&guest, "LOOKUP").injected, stats(&guest, "RENAME2").injected), (1, 1));
}

#[test]
fn a_request_that_others_answer_can_fail_too() {
    let mut guest = guest(&["op=FSYNC,nth=2,errno=ENOSPC"]);
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let fsync = FsyncIn { fh: open.fh, ..FsyncIn::default() };
    let answers = [1, 2, 3].map(|_| guest.request(opcode::FSYNC, entry.nodeid, fsync.as_slice()));
    assert_eq!(answers, [Ok(vec![]), Err(libc::ENOSPC), Ok(vec![])]);
}

#[test]
fn a_delay_is_waited_for_and_then_all_is_well() {
    let mut guest = guest(&["op=GETATTR,nth=1,delay=300ms", "op=FSYNC,delay=1ms"]);
    let begun = Instant::now();
    guest.getattr(ROOT).unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let [getattr] = records(&guest, "GETATTR").try_into().unwrap();
    assert!(getattr.injected && getattr.took_ns >= 300_000_000 && getattr.error.is_none());
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let fsync = FsyncIn { fh: open.fh, ..FsyncIn::default() };
    guest.request(opcode::FSYNC, entry.nodeid, fsync.as_slice()).unwrap();
    assert!(records(&guest, "FSYNC")[0].injected);
}

#[test]
fn a_short_reply_has_half_of_its_body_and_says_so() {
    let mut guest = guest(&["op=READ,short", "op=GETATTR,nth=1,short", "op=LOOKUP,short"]);
    std::fs::write(guest.path("a"), "0123456789").unwrap();
    let whole = size_of::<fuse_backend_rs::abi::fuse_abi::EntryOut>();
    let half = guest.request(Opcode::Lookup as u32, ROOT, b"a\0").unwrap();
    assert_eq!(half.len(), whole / 2);
    assert_eq!(guest.lookup(ROOT, "missing").map(drop), Err(libc::ENOENT), "an error has nothing to shorten");
    let node = u64::from_le_bytes(half[..8].try_into().unwrap());
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(node, handle, 0, 4096).unwrap(), b"01234");
    assert_eq!(guest.read(node, handle, 9, 4096).unwrap(), b"");
    assert_eq!(guest.read(node, handle, 10, 4096).unwrap(), b"");
    assert_eq!(guest.request(opcode::GETATTR, node, &[0; 16]).unwrap().len(), 52);
    assert_eq!(guest.request(opcode::GETATTR, node, &[0; 16]).unwrap().len(), 104);
}

#[test]
fn a_stalled_queue_answers_nothing_and_the_device_stops_all_the_same() {
    let mut guest = guest(&["op=STATFS,nth=1,stall"]);
    let statfs = guest.send(Opcode::Statfs as u32, ROOT, &[]);
    let behind = guest.send(opcode::GETATTR, ROOT, &[0; 16]);
    let flight = guest.device.flight();
    let deadline = Instant::now() + Duration::from_secs(20);
    while flight.in_flight().is_empty() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(guest.driver.queue(1).wait_used(Duration::from_millis(200)).is_none());
    let [hung] = flight.in_flight().try_into().unwrap();
    assert_eq!((hung.operation.as_ref(), hung.unique, hung.injected), ("STATFS", statfs.unique, true));
    assert_eq!((stats(&guest, "STATFS").injected, stats(&guest, "STATFS").count), (1, 0));
    let begun = Instant::now();
    guest.device.reset();
    assert!(begun.elapsed() < Duration::from_secs(4), "not left behind");
    assert_eq!(guest.driver.interrupt().failures(), []);
    let _ = behind;
}

#[test]
fn the_guest_hears_of_what_was_done_before_its_queue_waits() {
    for rule in ["op=STATFS,stall", "op=STATFS,delay=1m"] {
        let mut guest = guest(&[rule]);
        // The worker has signalled the reply to INIT and sleeps.
        let deadline = Instant::now() + Duration::from_secs(20);
        while guest.driver.queue(1).avail_event() != 1 {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
        let before = guest.driver.interrupt().used_signals(1);
        // Both at once, so that one batch has them.
        for (code, body) in [(opcode::GETATTR, &[0; 16][..]), (Opcode::Statfs as u32, &[])] {
            let header = guest.header(code, ROOT, body.len());
            let request = message(&[header.as_slice(), body]);
            guest.driver.queue(1).add(&[readable(request), writable(200)]);
        }
        guest.driver.queue(1).kick();
        assert!(guest.driver.interrupt().wait_used_signals(1, before + 1, Duration::from_secs(20)), "{rule}");
        assert_eq!(guest.driver.queue(1).device_used_idx(), 2);
        guest.device.reset();
    }
}

#[test]
fn a_stop_does_not_wait_for_a_delay() {
    let mut guest = guest(&["op=STATFS,delay=1m"]);
    guest.send(Opcode::Statfs as u32, ROOT, &[]);
    while guest.device.flight().in_flight().is_empty() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let begun = Instant::now();
    guest.device.reset();
    assert!(begun.elapsed() < Duration::from_secs(4));
}
