use std::io::Write;
use std::sync::Arc;

use super::guest::*;
use super::{Guest, Probe};
use crate::bus::BusDevice;
use crate::pci::msi::recording::RecordingVectors;
use crate::virtio::VirtioDevice;
use crate::virtio::block::BlockDevice;
use crate::virtio::pci::{MAX_QUEUES, SetupError, VirtioPciDevice};
use crate::virtio::test_support::*;

#[test]
fn a_queue_starts_with_its_largest_size_and_its_own_notification_offset() {
    let (mut guest, _) = Guest::with_probe();
    for (queue, size) in [(0, 8), (1, 4)] {
        guest.set_common(0x16, 2, queue);
        let registers = [0x18, 0x1a, 0x1c, 0x1e].map(|register| guest.common(register, 2));
        assert_eq!(registers, [size, 0xffff, 0, queue]);
        assert_eq!([0x20, 0x28, 0x30].map(|register| guest.common(register, 8)), [0; 3]);
    }
}

#[test]
fn a_queue_that_does_not_exist_reads_as_zero_and_takes_nothing() {
    let (mut guest, log) = Guest::with_probe();
    guest.negotiate(VERSION_1);
    for queue in [2, 255, 0xffff] {
        guest.set_common(0x16, 2, queue);
        for (register, len) in [(0x18, 2), (0x1a, 2), (0x1c, 2), (0x20, 8), (0x28, 8), (0x30, 8)] {
            guest.set_common(register, len, 1);
            assert_eq!(guest.common(register, len), 0, "queue {queue} register {register:#x}");
        }
    }
    guest.set_up_queue(0);
    guest.set_status(DRIVER_OK);
    assert_eq!(log.lock().unwrap().activation.as_ref().unwrap().queues.len(), 1);
}

#[test]
fn addresses_can_be_written_whole_or_in_halves() {
    let (mut guest, _) = Guest::with_probe();
    for register in [0x20, 0x28, 0x30] {
        guest.set_common(register, 8, 0x1122_3344_5566_7788);
        assert_eq!(guest.common(register, 8), 0x1122_3344_5566_7788);
        guest.set_common(register + 4, 4, 0xaabb_ccdd);
        assert_eq!(guest.common(register, 8), 0xaabb_ccdd_5566_7788);
        guest.set_common(register, 4, 0);
        assert_eq!(guest.common(register, 8), 0xaabb_ccdd_0000_0000);
    }
}

#[test]
fn a_queue_enabled_twice_keeps_what_it_was_enabled_with() {
    let (mut guest, log) = Guest::with_probe();
    guest.negotiate(VERSION_1);
    guest.set_up_queue(0);
    let desc = guest.driver.queue(0).desc_table.0;
    guest.set_common(0x18, 2, 2);
    guest.set_common(0x20, 8, 0x10_0000);
    guest.set_common(0x1c, 2, 1);
    guest.set_common(0x1c, 2, 0);
    assert_eq!((guest.common(0x18, 2), guest.common(0x1c, 2), guest.common(0x20, 8)), (8, 1, desc));
    guest.set_status(DRIVER_OK);
    let log = log.lock().unwrap();
    let queues = &log.activation.as_ref().unwrap().queues;
    assert_eq!((queues.len(), queues[0].queue.state().desc_table), (1, desc));
    assert_eq!(guest.failures(), []);
}

#[test]
fn a_queue_is_not_enabled_before_features_are_settled_or_after_the_device_started() {
    let (mut guest, log) = Guest::with_probe();
    guest.set_status(ACKNOWLEDGE);
    guest.set_status(DRIVER);
    guest.set_up_queue(0);
    assert_eq!(guest.common(0x1c, 2), 0);
    guest.bring_up(&[0]);
    guest.set_up_queue(1);
    assert_eq!(guest.common(0x1c, 2), 0);
    assert_eq!(log.lock().unwrap().activations, 1);
}

#[test]
fn a_queue_with_a_bad_size_or_address_stops_the_device_and_says_why() {
    for (register, len, value, text) in [
        (0x18, 2, 0, "size 0 is not a power of two up to 8"),
        (0x18, 2, 3, "size 3"),
        (0x18, 2, 16, "size 16"),
        (0x20, 8, 0x1008, "descriptor table at 0x1008 is not aligned to 16"),
        (0x28, 8, 0x1001, "available ring at 0x1001 is not aligned to 2"),
        (0x30, 8, 0x1002, "used ring at 0x1002 is not aligned to 4"),
        (0x20, 8, MEMORY_SIZE - 112, "descriptor table, 128 bytes at 0x1ffff90, is not inside guest memory"),
        (0x28, 8, u64::MAX - 1, "available ring"),
        (0x30, 8, MEMORY_SIZE, "used ring"),
    ] {
        let (mut guest, log) = Guest::with_probe();
        guest.negotiate(VERSION_1);
        guest.set_common(0x16, 2, 0);
        for (register, address) in [(0x20, 0x1000), (0x28, 0x2000), (0x30, 0x3000)] {
            guest.set_common(register, 8, address);
        }
        guest.set_common(register, len, value);
        guest.set_common(0x1c, 2, 1);
        assert_eq!(guest.common(0x1c, 2), 0);
        assert_eq!(guest.status(), FEATURES_OK | NEEDS_RESET);
        let failures = guest.failures();
        assert_eq!(failures.len(), 1);
        assert!(failures[0].reason.starts_with("the driver set queue 0 up wrongly: "), "{}", failures[0].reason);
        assert!(failures[0].reason.contains(text), "{}", failures[0].reason);
        guest.set_status(DRIVER_OK);
        assert_eq!(log.lock().unwrap().activations, 0, "a device that needs a reset does not start");
        guest.bring_up(&[0, 1]);
        assert_eq!((guest.status(), log.lock().unwrap().activations), (DRIVER_OK, 1));
    }
}

#[test]
fn a_write_to_a_notification_address_kicks_its_queue_whatever_is_written() {
    let (mut guest, log) = Guest::with_probe();
    guest.bring_up(&[0, 1]);
    let notify = guest.structure(2);
    guest.device.write(notify + 4, &[1, 0]);
    guest.device.write(notify + 4, &[0xff; 8]);
    for offset in [8, 12, 0x7fc, 0xfff] {
        guest.device.write(notify + offset, &[0, 0]);
    }
    let log = log.lock().unwrap();
    let queues = &log.activation.as_ref().unwrap().queues;
    assert!(queues[0].notify.read().is_err(), "queue 0 was not kicked");
    assert_eq!(queues[1].notify.read().unwrap(), 2);
}

#[test]
fn a_full_kick_counter_does_not_block_the_vcpu() {
    let (mut guest, _) = Guest::with_probe();
    let (offset, event) = guest.device.notify_events().unwrap().remove(0);
    event.write(u64::MAX - 1).unwrap();
    guest.device.write(offset, &[0, 0]);
    assert_eq!(event.read().unwrap(), u64::MAX - 1);
}

#[test]
fn each_queue_has_a_notification_address_for_an_ioeventfd() {
    let (mut guest, log) = Guest::with_probe();
    let notify = guest.structure(2);
    let events = guest.device.notify_events().unwrap();
    assert_eq!(events.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), [notify, notify + 4]);
    guest.bring_up(&[0, 1]);
    events[1].1.write(1).unwrap();
    assert_eq!(log.lock().unwrap().activation.as_ref().unwrap().queues[1].notify.read().unwrap(), 1);
}

#[test]
fn more_queues_than_the_msix_table_has_room_for_are_refused() {
    let probe = |queues| Box::new(Probe { log: Arc::default(), queue_sizes: vec![8; queues] });
    let memory = FakeDriver::new(&[]).memory().clone();
    let new = |queues| {
        let vectors = Arc::new(RecordingVectors::default());
        VirtioPciDevice::new(probe(queues), memory.clone(), memory.clone(), vectors, Arc::new(|_| ()))
    };
    assert!(matches!(new(MAX_QUEUES + 1), Err(SetupError::TooManyQueues { queues: 256, .. })));
    assert_eq!(new(MAX_QUEUES).unwrap().notify_events().unwrap().len(), MAX_QUEUES);
    assert_eq!(VirtioPciDevice::vector_count(probe(3).as_ref()), 4);
}

#[test]
fn a_disk_behind_the_transport_is_read_by_a_driver() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[0x5a; 4096]).unwrap();
    let device = BlockDevice::new(file, "root").unwrap();
    let features = device.device_features();
    let mut guest = Guest::new(Box::new(device), FakeDriver::new(&[256]));
    assert_eq!(guest.offered(), features | VERSION_1);
    guest.bring_up(&[0]);
    guest.set_up_msix(1);
    let header = [0; 16];
    let reply = guest.driver.queue(0).request(&[readable(header), writable(512), writable(1)]);
    assert_eq!((reply.len, &reply.data[..512], reply.data[512]), (513, &[0x5a; 512][..], 0));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while guest.vectors.triggers(1) == 0 {
        assert!(std::time::Instant::now() < deadline, "no interrupt");
        std::thread::yield_now();
    }
    assert_eq!(guest.failures(), []);
}
