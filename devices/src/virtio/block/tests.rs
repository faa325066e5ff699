use std::io::Write;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::test_support::*;

const EVENT_IDX: u64 = 1 << 29;
const LONG: Duration = Duration::from_secs(20);

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// Byte `i` of the image.
fn image_byte(i: usize) -> u8 {
    (i / 512 * 7 + i) as u8
}

fn disk(len: usize) -> BlockDevice {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&(0..len).map(image_byte).collect::<Vec<_>>()).unwrap();
    BlockDevice::new(file, "root").unwrap()
}

fn running(len: usize) -> (BlockDevice, FakeDriver) {
    let mut device = disk(len);
    let mut driver = FakeDriver::new(&[256]);
    device.activate(driver.activation(device.device_features())).unwrap();
    (device, driver)
}

fn header(kind: u32, sector: u64) -> Segment {
    readable([&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat())
}

fn status(reply: &Reply) -> u8 {
    *reply.data.last().unwrap()
}

fn image(range: std::ops::Range<usize>) -> Vec<u8> {
    range.map(image_byte).collect()
}

/// A raw descriptor sent as the only chain stops the device.
fn assert_stops_device(send: impl FnOnce(&mut DriverQueue)) -> String {
    let (mut device, mut driver) = running(4096);
    send(driver.queue(0));
    driver.queue(0).kick();
    let failure = driver.interrupt().wait_failure(LONG).expect("the device neither answered nor failed");
    assert_eq!(failure.device, "block[root]");
    assert_eq!(driver.queue(0).poll_used(), None);
    // A reset brings it back.
    device.reset();
    driver.reset_queues();
    device.activate(driver.activation(device.device_features())).unwrap();
    let reply = driver.queue(0).request(&[header(0, 0), writable(512), writable(1)]);
    assert_eq!(status(&reply), OK);
    failure.reason
}

#[test]
fn config_space_tells_capacity_segments_and_block_size() {
    let device = disk(512 * 5 + 1);
    let mut config = [0xff; 32];
    device.read_config(0, &mut config);
    assert_eq!(config[..8], 6u64.to_le_bytes(), "a last sector that is not full counts");
    assert_eq!(config[12..16], 254u32.to_le_bytes());
    assert_eq!(config[20..24], 512u32.to_le_bytes());
    assert_eq!(config[24..], [0; 8]);
    device.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 32]);
}

#[test]
fn sectors_are_read_into_every_segment_and_the_used_length_counts_them() {
    let (_device, mut driver) = running(64 * 512);
    let reply = driver.queue(0).request(&[header(0, 3), writable(512), writable(1024), writable(1)]);
    assert_eq!((reply.len, status(&reply)), (1537, OK));
    assert_eq!(reply.data[..1536], image(3 * 512..6 * 512));
    let reply = driver.queue(0).request_indirect(&[header(0, 63), writable(512), writable(1)]);
    assert_eq!(reply.data[..512], image(63 * 512..64 * 512));
    assert!(driver.interrupt().used_signals(0) >= 1);
}

#[test]
fn a_request_may_be_cut_into_any_pieces() {
    let (_device, mut driver) = running(4096);
    let Segment::Readable(bytes) = header(0, 1) else { unreachable!() };
    let segments = [
        readable(&bytes[..1]),
        readable(&bytes[1..5]),
        readable(b""),
        readable(&bytes[5..]),
        writable(0),
        writable(513),
    ];
    let reply = driver.queue(0).request(&segments);
    assert_eq!((reply.len, status(&reply)), (513, OK));
    assert_eq!(reply.data[..512], image(512..1024));
    let reply = driver.queue(0).request(&[header(0, 0), writable(1), writable(511), writable(1), writable(0)]);
    assert_eq!((reply.len, status(&reply)), (513, OK));
    assert_eq!(reply.data[..512], image(0..512));
}

#[test]
fn the_end_of_an_image_that_fills_no_sector_reads_as_zeros() {
    let (_device, mut driver) = running(700);
    let reply = driver.queue(0).request(&[header(0, 0), writable(1024), writable(1)]);
    assert_eq!(status(&reply), OK);
    assert_eq!(reply.data[..700], image(0..700));
    assert_eq!(reply.data[700..1024], [0; 324]);
}

#[test]
fn reads_past_the_end_of_the_disk_fail() {
    let (_device, mut driver) = running(4 * 512);
    for (sector, len) in [(4, 512), (3, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (1 << 55, 512)] {
        let reply = driver.queue(0).request(&[header(0, sector), writable(len), writable(1)]);
        assert_eq!((status(&reply), reply.len), (IOERR, 0), "sector {sector}");
    }
}

#[test]
fn a_read_of_part_of_a_sector_fails_and_of_nothing_succeeds() {
    let (_device, mut driver) = running(4096);
    let reply = driver.queue(0).request(&[header(0, 0), writable(100), writable(1)]);
    assert_eq!(status(&reply), IOERR);
    let reply = driver.queue(0).request(&[header(0, 0), writable(1)]);
    assert_eq!((status(&reply), reply.len), (OK, 1));
}

#[test]
fn the_serial_number_is_the_name() {
    let (_device, mut driver) = running(4096);
    let reply = driver.queue(0).request(&[header(8, 0), writable(20), writable(1)]);
    assert_eq!((status(&reply), &reply.data[..20]), (OK, &b"root\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"[..]));
    let reply = driver.queue(0).request(&[header(8, 0), writable(3), writable(40), writable(1)]);
    assert_eq!((status(&reply), &reply.data[..4]), (OK, &b"root"[..]));
}

#[test]
fn writes_fail_and_unknown_requests_are_unsupported() {
    let (_device, mut driver) = running(4096);
    for kind in [1, 11, 13, 14] {
        let reply = driver.queue(0).request(&[header(kind, 0), readable([0; 512]), writable(1)]);
        assert_eq!((reply.data[0], reply.len), (IOERR, 1), "type {kind}");
    }
    for kind in [2, 4, 5, 10, u32::MAX] {
        let reply = driver.queue(0).request(&[header(kind, 0), writable(1)]);
        assert_eq!((reply.data[0], reply.len), (UNSUPP, 1), "type {kind}");
    }
}

#[test]
fn a_short_header_is_an_error_that_is_reported() {
    let (_device, mut driver) = running(4096);
    let reply = driver.queue(0).request(&[readable([0; 15]), writable(512), writable(1)]);
    assert_eq!(status(&reply), IOERR);
    let reply = driver.queue(0).request(&[writable(1)]);
    assert_eq!(status(&reply), IOERR);
}

#[test]
fn data_and_header_buffers_outside_memory_are_errors_that_are_reported() {
    let (_device, mut driver) = running(4096);
    for address in [MEMORY_SIZE, MEMORY_SIZE - 256, u64::MAX - 511, u64::MAX] {
        let data = Segment::Raw(RawDescriptor { address, len: 512, flags: DESC_F_WRITE, next: 0 });
        let reply = driver.queue(0).request(&[header(0, 0), data, writable(1)]);
        assert_eq!(status(&reply), IOERR, "{address:#x}");
        let bad_header = Segment::Raw(RawDescriptor { address, len: 512, flags: 0, next: 0 });
        let reply = driver.queue(0).request(&[bad_header, writable(512), writable(1)]);
        assert_eq!(status(&reply), IOERR, "{address:#x}");
    }
    assert_eq!(driver.interrupt().failures(), []);
}

#[test]
fn chains_that_cannot_be_answered_stop_the_device_until_it_is_reset() {
    let reason = assert_stops_device(|queue| drop(queue.add(&[header(0, 0)])));
    assert!(reason.contains("without a place for its status byte"), "{reason}");
    let reason = assert_stops_device(|queue| drop(queue.add(&[header(0, 0), writable(0)])));
    assert!(reason.contains("without a place for its status byte"), "{reason}");
    for address in [MEMORY_SIZE, u64::MAX] {
        let outside = Segment::Raw(RawDescriptor { address, len: 1, flags: DESC_F_WRITE, next: 0 });
        let reason = assert_stops_device(|queue| drop(queue.add(&[header(0, 0), outside])));
        assert!(reason.contains("without a place for its status byte"), "{reason}");
    }
    let reason = assert_stops_device(|queue| drop(queue.add(&[writable(1), header(0, 0)])));
    assert!(reason.contains("readable buffer after a writable one"), "{reason}");
}

#[test]
fn descriptor_loops_and_wrong_indices_stop_the_device_until_it_is_reset() {
    let descriptor = |next| RawDescriptor { address: 0x1000, len: 1, flags: DESC_F_NEXT | DESC_F_WRITE, next };
    let reason = assert_stops_device(|queue| {
        queue.write_descriptor(9, descriptor(9));
        queue.make_available(9);
    });
    assert!(reason.contains("descriptor chain 9 is broken"), "{reason}");
    let reason = assert_stops_device(|queue| {
        queue.write_descriptor(9, descriptor(256));
        queue.make_available(9);
    });
    assert!(reason.contains("descriptor chain 9 is broken"), "{reason}");
    for head in [256, u16::MAX] {
        let reason = assert_stops_device(|queue| queue.make_available(head));
        assert!(reason.contains(&format!("descriptor chain {head} is broken")), "{reason}");
    }
    for idx in [257, 0x8000, u16::MAX] {
        let reason = assert_stops_device(|queue| queue.set_avail_idx(idx));
        assert!(reason.contains("the driver broke queue 0"), "{reason}");
    }
}

#[test]
fn many_requests_in_flight_all_come_back() {
    let (_device, mut driver) = running(64 * 512);
    let mut sectors = std::collections::HashMap::new();
    for sector in 0..64u64 {
        let chain = driver.queue(0).add(&[header(0, sector), writable(512), writable(1)]);
        sectors.insert(chain.head, sector as usize);
        driver.queue(0).kick_if_wanted();
    }
    for _ in 0..64 {
        let used = driver.queue(0).wait_used(LONG).unwrap();
        let sector = sectors.remove(&used.head).unwrap();
        let data = driver.queue(0).written(&used.chain.unwrap());
        assert_eq!(data[..512], image(sector * 512..(sector + 1) * 512));
    }
    assert_eq!(driver.queue(0).free_descriptors(), 256);
}

#[test]
fn the_driver_is_not_interrupted_before_its_used_event() {
    let (_device, mut driver) = running(64 * 512);
    driver.queue(0).set_used_event(2);
    for _ in 0..3 {
        driver.queue(0).add(&[header(0, 0), writable(512), writable(1)]);
    }
    driver.queue(0).kick();
    assert!(driver.interrupt().wait_used_signals(0, 1, LONG));
    assert_eq!(driver.queue(0).device_used_idx(), 3);
}

#[test]
fn a_reset_with_requests_in_flight_ends_and_the_device_starts_again() {
    let (mut device, mut driver) = running(4 << 20);
    for round in 0..50 {
        for _ in 0..20 {
            driver.queue(0).add(&[header(0, 0), writable(65536), writable(1)]);
        }
        driver.queue(0).kick();
        if round % 2 == 0 {
            driver.queue(0).wait_used(LONG).unwrap();
        }
        device.reset();
        let used = driver.queue(0).device_used_idx();
        driver.reset_queues();
        assert!(used <= 20);
        device.activate(driver.activation(EVENT_IDX)).unwrap();
    }
    let reply = driver.queue(0).request(&[header(0, 0), writable(512), writable(1)]);
    assert_eq!(status(&reply), OK);
    assert_eq!(driver.interrupt().failures(), []);
}

#[test]
fn a_device_whose_queue_was_not_enabled_does_not_start() {
    let mut device = disk(512);
    let mut driver = FakeDriver::new(&[256]);
    let activation = driver.activation_with(EVENT_IDX, &[]);
    assert_eq!(device.activate(activation).unwrap_err().to_string(), "the driver did not enable queue 0");
    device.reset();
    device.activate(driver.activation(EVENT_IDX)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever lies in the descriptor table: the device answers or fails, it does not hang, loop or crash.
    #[test]
    fn random_descriptors_are_answered_or_stop_the_device(
        table in prop::collection::vec(
            (prop_oneof![0u64..MEMORY_SIZE, any::<u64>()], prop_oneof![0u32..5000, any::<u32>()], 0u16..8, 0u16..20), 16),
        heads in prop::collection::vec(0u16..18, 1..8),
    ) {
        let (mut device, _) = running(16 * 512);
        device.reset();
        let mut driver = FakeDriver::new(&[16]);
        device.activate(driver.activation(EVENT_IDX)).unwrap();
        // Rings and descriptors live in the first pages: writes of the device must not land there.
        for (index, (address, len, flags, next)) in (0u16..).zip(&table) {
            let address = if *address < 0x10000 { address + 0x10000 } else { *address };
            driver.queue(0).write_descriptor(index, RawDescriptor { address, len: *len, flags: *flags, next: *next });
        }
        for head in &heads {
            driver.queue(0).make_available(*head);
        }
        driver.queue(0).kick();
        let deadline = std::time::Instant::now() + LONG;
        while driver.queue(0).device_used_idx() != heads.len() as u16 && driver.interrupt().failures().is_empty() {
            prop_assert!(std::time::Instant::now() < deadline, "neither answered nor failed");
            std::thread::sleep(Duration::from_micros(50));
        }
        let failures = driver.interrupt().failures();
        prop_assert!(failures.iter().all(|failure| !failure.reason.contains("panicked")), "{failures:?}");
        drop(device);
    }
}
