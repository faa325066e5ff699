//! Requests that may take long: answered when they are done, the ones behind them before.

use std::fs;

use fuse_backend_rs::abi::fuse_abi::{CopyFileRangeIn, FallocateIn, FsyncIn, Opcode, WriteOut};
use vm_memory::ByteValued;

use super::harness::{Guest, ROOT, Sent, object};
use crate::virtio::VirtioDevice;
use crate::virtio::fs::constants::{LARGE_RANGE, opcode};
use crate::virtio::test_support::{MEMORY_SIZE, RawDescriptor, Segment, readable, writable};

#[test]
fn many_slow_requests_and_quick_ones_are_all_answered_once() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    guest.write(entry.nodeid, open.fh, 0, b"data").unwrap();
    let fsync = FsyncIn { fh: open.fh, ..FsyncIn::default() };
    let mut sent: Vec<Sent> = Vec::new();
    for round in 0..30 {
        let (code, body) = match round % 3 {
            0 => (opcode::FSYNC, fsync.as_slice().to_vec()),
            1 => (opcode::SYNCFS, vec![0; 8]),
            _ => (Opcode::Getattr as u32, vec![0; 16]),
        };
        sent.push(guest.send(code, if round % 3 == 1 { ROOT } else { entry.nodeid }, &body));
    }
    while !sent.is_empty() {
        let (unique, answer) = guest.next_reply(&sent.iter().collect::<Vec<_>>());
        answer.unwrap();
        sent.retain(|sent| sent.unique != unique);
    }
    guest.assert_alive();
}

#[test]
fn large_ranges_are_copied_and_allocated_by_another_thread_with_the_same_result() {
    let mut guest = Guest::new();
    let (from, source) = guest.create(ROOT, "from", libc::O_RDWR, 0o644).unwrap();
    let (to, target) = guest.create(ROOT, "to", libc::O_RDWR, 0o644).unwrap();
    let data: Vec<u8> = (0..4u64 << 20).map(|index| (index / 4096) as u8).collect();
    fs::write(guest.path("from"), &data).unwrap();
    for length in [LARGE_RANGE - 1, LARGE_RANGE, 3 << 20] {
        let copy = CopyFileRangeIn {
            fh_in: source.fh,
            nodeid_out: to.nodeid,
            fh_out: target.fh,
            len: length,
            ..CopyFileRangeIn::default()
        };
        let reply = guest.request(opcode::COPY_FILE_RANGE, from.nodeid, copy.as_slice()).unwrap();
        assert_eq!(u64::from(object::<WriteOut>(&reply).size), length);
        assert!(fs::read(guest.path("to")).unwrap() == data[..length as usize]);
    }
    let allocate = FallocateIn { fh: target.fh, length: 8 << 20, ..FallocateIn::default() };
    guest.request(opcode::FALLOCATE, to.nodeid, allocate.as_slice()).unwrap();
    assert_eq!(fs::metadata(guest.path("to")).unwrap().len(), 8 << 20);
    let bad = FallocateIn { mode: u32::MAX, ..allocate };
    assert_eq!(guest.request(opcode::FALLOCATE, to.nodeid, bad.as_slice()), Err(libc::EOPNOTSUPP));
}

#[test]
fn a_file_closed_while_it_is_synced_is_synced() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let fsync = FsyncIn { fh: open.fh, ..FsyncIn::default() };
    let sync = guest.send(opcode::FSYNC, entry.nodeid, fsync.as_slice());
    let close = guest.send(opcode::RELEASE, entry.nodeid, &[open.fh.to_le_bytes(), [0; 8], [0; 8]].concat());
    for _ in 0..2 {
        guest.next_reply(&[&sync, &close]).1.unwrap();
    }
}

#[test]
fn a_late_reply_may_be_spread_over_buffers_and_one_that_has_no_room_is_an_error() {
    let mut guest = Guest::new();
    let header = guest.header(opcode::SYNCFS, ROOT, 8);
    let mut segments = vec![readable(header.as_slice()), readable([0; 8])];
    segments.extend((0..16).map(|_| writable(1)));
    let reply = guest.raw(1, &segments);
    assert_eq!(super::harness::check(&reply, header.unique), Ok(vec![]));
    // GETLK's like have a body; a copy's count is the shortest.
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let copy = CopyFileRangeIn {
        fh_in: open.fh,
        nodeid_out: entry.nodeid,
        fh_out: open.fh,
        offset_out: 10 << 20,
        len: LARGE_RANGE,
        ..CopyFileRangeIn::default()
    };
    let answer = guest.request_with_room(opcode::COPY_FILE_RANGE, entry.nodeid, copy.as_slice(), 7);
    assert_eq!(answer, Err(libc::EIO));
}

#[test]
fn a_late_reply_outside_of_guest_memory_stops_the_device() {
    let mut guest = Guest::new();
    let header = guest.header(opcode::SYNCFS, ROOT, 8);
    let outside = Segment::Raw(RawDescriptor { address: MEMORY_SIZE - 8, len: 64, flags: 2, next: 0 });
    guest.driver.queue(1).add(&[readable(header.as_slice()), readable([0; 8]), outside]);
    guest.driver.queue(1).kick();
    let failure = guest.driver.interrupt().wait_failure(std::time::Duration::from_secs(20)).unwrap();
    assert!(failure.reason.contains("outside of guest memory"), "{}", failure.reason);
    guest.device.reset();
}
