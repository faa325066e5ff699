//! Descriptor chains as only a hostile or broken driver makes them: each is returned, or the device stops with a reason.

use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{GetattrIn, Opcode};
use vm_memory::ByteValued;

use super::harness::{Guest, ROOT, check};
use crate::virtio::VirtioDevice;
use crate::virtio::fs::constants::QUEUE_SIZE;
use crate::virtio::test_support::{
    DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, MEMORY_SIZE, RawDescriptor, Segment, readable, writable,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A descriptor that is not in guest memory.
fn outside(len: u32, flags: u16) -> Segment {
    Segment::Raw(RawDescriptor { address: MEMORY_SIZE - 8, len, flags, next: 0 })
}

/// A valid GETATTR of the root, to be spoiled.
fn getattr(guest: &mut Guest) -> (u64, Vec<u8>) {
    let header = guest.header(Opcode::Getattr as u32, ROOT, size_of::<GetattrIn>());
    (header.unique, [header.as_slice(), GetattrIn::default().as_slice()].concat())
}

/// The reason with which the device stops after these segments.
fn fatal(segments: impl FnOnce(&mut Guest) -> Vec<Segment>) -> String {
    let mut guest = Guest::new();
    let segments = segments(&mut guest);
    guest.driver.queue(1).add(&segments);
    guest.driver.queue(1).kick();
    let failure = guest.driver.interrupt().wait_failure(PATIENCE).expect("the device has to stop");
    guest.device.reset();
    failure.reason
}

#[test]
fn a_reply_buffer_past_the_end_of_memory_stops_the_device() {
    let reason = fatal(|guest| vec![readable(getattr(guest).1), outside(4096, DESC_F_WRITE)]);
    assert!(reason.contains("outside of guest memory"), "{reason}");
    let reason = fatal(|guest| vec![readable(getattr(guest).1), writable(16), outside(1 << 20, DESC_F_WRITE)]);
    assert!(reason.contains("outside of guest memory"), "{reason}");
}

#[test]
fn a_chain_of_more_than_four_gibibytes_is_refused() {
    let mut guest = Guest::new();
    let (unique, message) = getattr(&mut guest);
    // Virtio 1.2 § 2.7.5.2: no chain is longer than 2^32 bytes.
    let reply = guest.raw(1, &[readable(message), writable(200), outside(u32::MAX, DESC_F_WRITE)]);
    assert_eq!(check(&reply, unique), Err(libc::EIO));
    guest.assert_alive();
}

#[test]
fn a_request_past_the_end_of_memory_is_answered() {
    let mut guest = Guest::new();
    let reply = guest.raw(1, &[outside(40, 0), writable(64)]);
    assert_eq!(check(&reply, 0), Err(libc::EIO));
    guest.assert_alive();
}

#[test]
fn a_body_past_the_end_of_memory_is_answered() {
    let mut guest = Guest::new();
    let header = guest.header(Opcode::Getattr as u32, ROOT, size_of::<GetattrIn>());
    let reply = guest.raw(1, &[readable(header.as_slice()), outside(16, 0), writable(200)]);
    assert_eq!(check(&reply, header.unique), Err(libc::EIO));
    // Also where only the file would be reached.
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let write = fuse_backend_rs::abi::fuse_abi::WriteIn { fh: open.fh, size: 16, ..Default::default() };
    let header = guest.header(Opcode::Write as u32, entry.nodeid, size_of_val(&write) + 16);
    let segments = [readable(header.as_slice()), readable(write.as_slice()), outside(16, 0), writable(200)];
    let reply = guest.raw(1, &segments);
    assert_eq!(check(&reply, header.unique), Err(libc::EIO));
    assert_eq!(std::fs::read(guest.path("a")).unwrap(), b"");
    guest.assert_alive();
}

#[test]
fn readable_after_writable_is_refused() {
    let mut guest = Guest::new();
    let (unique, message) = getattr(&mut guest);
    let reply = guest.raw(1, &[readable(&message[..40]), writable(200), readable(&message[40..])]);
    assert_eq!(check(&reply, unique), Err(libc::EIO));
    let (_, message) = getattr(&mut guest);
    let reply = guest.raw(1, &[writable(200), readable(message)]);
    assert_eq!(check(&reply, 0), Err(libc::EIO));
    guest.assert_alive();
}

#[test]
fn zero_length_descriptors_change_nothing() {
    let mut guest = Guest::new();
    let (unique, message) = getattr(&mut guest);
    let segments = [
        readable([]),
        readable(&message[..40]),
        readable([]),
        readable(&message[40..]),
        writable(0),
        writable(200),
        writable(0),
    ];
    let segments: Vec<Segment> = segments
        .into_iter()
        .map(|segment| match segment {
            // The fake driver allocates nothing for nothing; any address in memory will do.
            Segment::Readable(data) if data.is_empty() => {
                Segment::Raw(RawDescriptor { address: 4096, ..RawDescriptor::default() })
            }
            Segment::Writable(0) => {
                Segment::Raw(RawDescriptor { address: 4096, flags: DESC_F_WRITE, ..RawDescriptor::default() })
            }
            other => other,
        })
        .collect();
    let reply = guest.raw(1, &segments);
    assert_eq!(check(&reply, unique).unwrap().len(), 104);
    guest.assert_alive();
}

#[test]
fn a_chain_that_runs_in_a_circle_is_answered() {
    let mut guest = Guest::new();
    let (unique, message) = getattr(&mut guest);
    let chain = guest.driver.queue(1).add(&[readable(message), writable(200)]);
    // The reply buffer's descriptor leads back to itself: ever more room.
    let (head, reply) = (chain.head, chain.buffers[1]);
    let second = head + 1;
    let flags = DESC_F_WRITE | DESC_F_NEXT;
    let raw = RawDescriptor { address: reply.address.0, len: reply.len, flags, next: second };
    guest.driver.queue(1).write_descriptor(second, raw);
    guest.driver.queue(1).kick();
    let used = guest.driver.queue(1).wait_used(PATIENCE).expect("the chain has to come back");
    assert_eq!((used.head, used.len), (head, 16));
    let data = guest.driver.queue(1).written(&chain);
    assert_eq!(data[8..16], unique.to_le_bytes());
    guest.assert_alive();
}

#[test]
fn a_chain_that_leads_out_of_the_table_is_answered() {
    let mut guest = Guest::new();
    let (_, message) = getattr(&mut guest);
    let chain = guest.driver.queue(1).add(&[readable(message), writable(200)]);
    let reply = chain.buffers[1];
    let flags = DESC_F_WRITE | DESC_F_NEXT;
    let raw = RawDescriptor { address: reply.address.0, len: reply.len, flags, next: QUEUE_SIZE };
    guest.driver.queue(1).write_descriptor(chain.head + 1, raw);
    guest.driver.queue(1).kick();
    let used = guest.driver.queue(1).wait_used(PATIENCE).expect("the chain has to come back");
    assert_eq!(used.len, 16);
    guest.assert_alive();
}

#[test]
fn bad_indirect_tables_stop_the_device() {
    let raw = |address, len| vec![Segment::Raw(RawDescriptor { address, len, flags: DESC_F_INDIRECT, next: 0 })];
    // Not a multiple of a descriptor, outside of memory, empty.
    for (address, len) in [(4096, 24), (MEMORY_SIZE, 64), (u64::MAX - 64, 64), (4096, 0)] {
        let reason = fatal(|_| raw(address, len));
        assert!(reason.contains("descriptor chain is broken"), "{reason}");
    }
}

#[test]
fn an_indirect_table_within_an_indirect_table_stops_the_device() {
    let mut guest = Guest::new();
    let nested = RawDescriptor { address: 8192, len: 64, flags: DESC_F_INDIRECT, next: 0 };
    guest.driver.queue(1).add_indirect(&[Segment::Raw(nested)]);
    guest.driver.queue(1).kick();
    let failure = guest.driver.interrupt().wait_failure(PATIENCE).unwrap();
    assert!(failure.reason.contains("descriptor chain is broken"), "{}", failure.reason);
}

#[test]
fn a_chain_longer_than_a_queue_is_refused() {
    let mut guest = Guest::new();
    let (unique, message) = getattr(&mut guest);
    let mut segments = vec![readable(&message)];
    segments.extend((0..1200).map(|_| writable(1)));
    let reply = guest.driver.queue(1).request_indirect(&segments);
    assert_eq!(check(&reply, unique), Err(libc::EIO));
    // As long as allowed.
    let (unique, message) = getattr(&mut guest);
    let mut segments = vec![readable(&message)];
    segments.extend((0..1023).map(|_| writable(1)));
    let reply = guest.driver.queue(1).request_indirect(&segments);
    assert_eq!(check(&reply, unique).unwrap().len(), 104);
    guest.assert_alive();
}

#[test]
fn a_head_outside_of_the_queue_stops_the_device() {
    for head in [QUEUE_SIZE, u16::MAX] {
        let mut guest = Guest::new();
        guest.driver.queue(1).make_available(head);
        guest.driver.queue(1).kick();
        assert!(guest.driver.interrupt().wait_failure(PATIENCE).is_some());
    }
}

#[test]
fn an_available_index_that_jumps_stops_the_device() {
    let mut guest = Guest::new();
    guest.driver.queue(1).set_avail_idx(QUEUE_SIZE + 5);
    guest.driver.queue(1).kick();
    let failure = guest.driver.interrupt().wait_failure(PATIENCE).unwrap();
    assert!(failure.reason.contains("queue 1"), "{}", failure.reason);
}

#[test]
fn one_queues_failure_leaves_the_others_running_until_the_reset() {
    let mut guest = Guest::new();
    guest.driver.queue(1).set_avail_idx(QUEUE_SIZE + 5);
    guest.driver.queue(1).kick();
    assert!(guest.driver.interrupt().wait_failure(PATIENCE).is_some());
    let (unique, message) = getattr(&mut guest);
    let reply = guest.raw(0, &[readable(message), writable(200)]);
    check(&reply, unique).unwrap();
    guest.device.reset();
    guest.driver.reset_queues();
    let features = guest.device.device_features();
    guest.device.activate(guest.driver.activation(features)).unwrap();
    guest.init(u64::from(u32::MAX)).unwrap();
    guest.getattr(ROOT).unwrap();
}
