use std::time::Duration;

use super::Guest;
use super::guest::*;
use crate::virtio::block::BlockDevice;
use crate::virtio::test_support::*;

/// Every register of common configuration, for each queue.
fn registers(guest: &mut Guest) -> Vec<u64> {
    let mut all = vec![guest.common(0, 4), guest.common(8, 4), guest.common(0xc, 4), guest.common(0x10, 2)];
    all.extend([guest.common(0x14, 1), guest.common(0x16, 2)]);
    for queue in 0..2 {
        guest.set_common(0x16, 2, queue);
        all.extend([0x18, 0x1a, 0x1c].map(|register| guest.common(register, 2)));
        all.extend([0x20, 0x28, 0x30].map(|register| guest.common(register, 8)));
    }
    guest.set_common(0x16, 2, 0);
    all
}

#[test]
fn a_reset_in_any_state_leaves_the_registers_as_they_were_at_first() {
    let (mut fresh, _) = Guest::with_probe();
    let fresh = registers(&mut fresh);
    for steps in 0..8 {
        let (mut guest, log) = Guest::with_probe();
        let walk: [fn(&mut Guest); 8] = [
            |guest| assert_eq!(guest.set_status(ACKNOWLEDGE), ACKNOWLEDGE),
            |guest| assert_eq!(guest.set_status(DRIVER), DRIVER),
            |guest| guest.accept(VERSION_1 | EVENT_IDX),
            |guest| assert_eq!(guest.set_status(FEATURES_OK), FEATURES_OK),
            |guest| guest.set_up_queue(0),
            |guest| guest.set_up_queue(1),
            |guest| guest.set_up_msix(2),
            |guest| assert_eq!(guest.set_status(DRIVER_OK), DRIVER_OK),
        ];
        for step in &walk[..=steps] {
            step(&mut guest);
        }
        let started = guest.status() & 4 != 0;
        assert_eq!(guest.set_status(0), 0);
        assert_eq!(registers(&mut guest), fresh, "reset after {steps} steps");
        assert_eq!(log.lock().unwrap().resets, usize::from(started));
        guest.bring_up(&[0, 1]);
        assert_eq!(guest.status(), DRIVER_OK);
        assert_eq!(log.lock().unwrap().activations, 1 + usize::from(started));
    }
}

#[test]
fn a_kick_from_before_a_reset_is_gone_after_it() {
    let (mut guest, log) = Guest::with_probe();
    guest.bring_up(&[0]);
    guest.driver.queue(0).kick();
    guest.set_status(0);
    guest.bring_up(&[0]);
    assert!(log.lock().unwrap().activation.as_ref().unwrap().queues[0].notify.read().is_err());
}

#[test]
fn msix_survives_a_reset_of_the_device() {
    let (mut guest, log) = Guest::with_probe();
    guest.bring_up(&[0, 1]);
    guest.set_up_msix(2);
    guest.set_status(0);
    guest.bring_up(&[0, 1]);
    guest.set_common(0x16, 2, 1);
    guest.set_common(0x1a, 2, 2);
    log.lock().unwrap().activation.as_ref().unwrap().interrupt.signal_used(1);
    assert_eq!(guest.vectors.triggers(2), 1);
}

#[test]
fn a_reset_with_requests_in_flight_ends_and_the_device_serves_again() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let mut guest = Guest::new(Box::new(BlockDevice::new(file, "root").unwrap()), FakeDriver::new(&[256]));
    for round in 0..30 {
        guest.bring_up(&[0]);
        for _ in 0..10 {
            guest.driver.queue(0).add(&[readable([0; 16]), writable(1 << 18), writable(1)]);
        }
        guest.driver.queue(0).kick();
        if round % 3 == 0 {
            guest.driver.queue(0).wait_used(Duration::from_secs(20)).unwrap();
        }
        assert_eq!(guest.set_status(0), 0);
        let used = guest.driver.queue(0).device_used_idx();
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(guest.driver.queue(0).device_used_idx(), used, "nothing touches the rings after a reset");
    }
    guest.bring_up(&[0]);
    let reply = guest.driver.queue(0).request(&[readable([0; 16]), writable(512), writable(1)]);
    assert_eq!(reply.data[512], 0);
    assert_eq!(guest.failures(), []);
}

#[test]
fn the_vmm_stops_the_device_as_a_guest_would() {
    let (mut guest, log) = Guest::with_probe();
    guest.bring_up(&[0]);
    guest.device.reset();
    guest.device.reset();
    assert_eq!((guest.status(), log.lock().unwrap().resets), (0, 1));
}
