//! What the device counts.

use fuse_backend_rs::abi::fuse_abi::{FsyncIn, Opcode};
use vm_memory::ByteValued;

use super::harness::{Guest, ROOT};
use crate::virtio::VirtioDevice;
use crate::virtio::fs::OperationStats;
use crate::virtio::fs::constants::opcode;

fn operation(guest: &Guest, name: &str) -> Option<OperationStats> {
    guest.device.stats().read().operations.into_iter().find(|operation| operation.name == name)
}

#[test]
fn every_request_is_counted_once_with_its_bytes_and_errors() {
    let mut guest = Guest::new();
    std::fs::write(guest.path("a"), "x").unwrap();
    let node = guest.node("a");
    for _ in 0..3 {
        assert_eq!(guest.lookup(ROOT, "missing").map(drop), Err(libc::ENOENT));
    }
    let lookup = operation(&guest, "LOOKUP").unwrap();
    assert_eq!((lookup.opcode, lookup.count, lookup.errors), (1, 4, 3));
    assert_eq!((lookup.bytes_in, lookup.bytes_out), (40 + 2 + 3 * (40 + 8), 16 + 128 + 3 * 16));
    assert!(0 < lookup.max_ns && lookup.p50_ns <= lookup.p99_ns && lookup.p99_ns <= lookup.max_ns, "{lookup:?}");
    assert!(lookup.max_ns <= lookup.total_ns && lookup.total_ns <= 4 * lookup.max_ns);
    guest.forget(node, 1);
    assert_eq!(
        operation(&guest, "FORGET").map(|forget| (forget.count, forget.errors, forget.bytes_out)),
        Some((1, 0, 0))
    );
    assert_eq!(guest.request(63, ROOT, &[0; 8]), Err(libc::ENOSYS));
    assert_eq!(guest.request(1 << 20, ROOT, &[0; 8]), Err(libc::ENOSYS));
    let unknown = guest.device.stats().read().operations;
    assert_eq!(unknown.iter().filter(|other| other.name == "UNKNOWN").map(|other| other.errors).sum::<u64>(), 2);
    assert!(operation(&guest, "WRITE").is_none(), "nobody asked");
}

#[test]
fn requests_that_are_answered_later_are_counted_too() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let fsync = FsyncIn { fh: open.fh, ..FsyncIn::default() };
    guest.request(opcode::FSYNC, entry.nodeid, fsync.as_slice()).unwrap();
    let bad = FsyncIn { fh: 99, ..fsync };
    assert_eq!(guest.request(opcode::FSYNC, entry.nodeid, bad.as_slice()), Err(libc::EBADF));
    let fsync = operation(&guest, "FSYNC").unwrap();
    assert_eq!((fsync.count, fsync.errors, fsync.bytes_in, fsync.bytes_out), (2, 1, 2 * 56, 2 * 16));
}

#[test]
fn numbers_outlive_a_reset_and_the_device_and_are_written_as_json() {
    let mut guest = Guest::new();
    guest.getattr(ROOT).unwrap();
    let stats = guest.device.stats();
    guest.device.reset();
    drop(guest);
    let stats = stats.read();
    assert_eq!((stats.tag.as_str(), stats.operations.len()), ("myfs1", 2), "INIT and GETATTR");
    let json = serde_json::to_value(&stats).unwrap();
    let getattr =
        json["operations"].as_array().unwrap().iter().find(|operation| operation["name"] == "GETATTR").unwrap();
    assert_eq!((getattr["count"].as_u64(), getattr["opcode"].as_u64()), (Some(1), Some(Opcode::Getattr as u64)));
    for field in ["errors", "bytes_in", "bytes_out", "p50_ns", "p99_ns", "max_ns", "total_ns"] {
        assert!(getattr[field].is_u64(), "{field}");
    }
}
