use super::Guest;
use super::guest::*;
use crate::bus::BusDevice;

#[test]
fn the_function_identifies_itself_as_a_modern_virtio_device() {
    let (mut guest, _) = Guest::with_probe();
    assert_eq!(guest.config(0), [0xf4, 0x1a, 0x5a, 0x10], "vendor 1af4, device 1040 + 26");
    assert_eq!(guest.config(8), [1, 0x00, 0x80, 0x01], "revision 1, other mass storage");
    assert_eq!(guest.config(0x2c), [0xf4, 0x1a, 0x40, 0]);
    assert_eq!(guest.config(0x3d), [0], "no INTx");
}

#[test]
fn the_capabilities_are_the_ones_a_modern_driver_needs() {
    let (mut guest, _) = Guest::with_probe();
    let ids: Vec<u8> = guest.capabilities().into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids, [0x11, 9, 9, 9, 9, 9]);
    // cfg_type, least length of the structure (Linux: vp_modern_probe).
    for (cfg_type, least) in [(1, 56), (2, 8), (3, 1), (4, 4)] {
        let at = guest.virtio_capability(cfg_type);
        let ([bar], [cap_len]) = (guest.config(at + 4), guest.config(at + 2));
        let (offset, len) = (u32::from_le_bytes(guest.config(at + 8)), u32::from_le_bytes(guest.config(at + 12)));
        assert_eq!(bar, 0);
        assert!(len >= least && offset % 4 == 0 && u64::from(offset + len) <= crate::virtio::pci::BAR_SIZE);
        assert_eq!(cap_len, if cfg_type == 2 { 20 } else { 16 });
    }
    let notify = guest.virtio_capability(2);
    assert_eq!(guest.config(notify + 16), [4, 0, 0, 0], "notify_off_multiplier");
    let (msix, _) = guest.capabilities()[0];
    assert_eq!(guest.config(msix + 2), [2, 0], "three vectors, off");
    assert_eq!(guest.config(msix + 4), [0x00, 0x40, 0, 0, 0x00, 0x50, 0, 0]);
}

#[test]
fn linux_brings_the_device_up() {
    let (mut guest, log) = Guest::with_probe();
    assert_eq!(guest.offered(), 0x21 | EVENT_IDX | VERSION_1);
    assert_eq!(guest.common(0x12, 2), 2, "num_queues");
    guest.bring_up(&[0, 1]);
    assert_eq!(guest.status(), DRIVER_OK);
    let log = log.lock().unwrap();
    let activation = log.activation.as_ref().unwrap();
    assert_eq!(activation.features, 0x21 | EVENT_IDX | VERSION_1);
    let queues: Vec<_> = activation.queues.iter().map(|queue| (queue.index, queue.queue.state())).collect();
    assert_eq!(queues.len(), 2);
    for (index, state) in queues {
        let queue = guest.driver.queue(index);
        assert_eq!((state.size, state.ready, state.event_idx_enabled), (queue.size(), true, true));
        assert_eq!(
            (state.desc_table, state.avail_ring, state.used_ring),
            (queue.desc_table.0, queue.avail_ring.0, queue.used_ring.0)
        );
    }
    drop(log);
    assert_eq!(guest.failures(), []);
}

#[test]
fn queues_that_were_not_enabled_are_absent_and_features_that_were_not_accepted_too() {
    let (mut guest, log) = Guest::with_probe();
    guest.negotiate(VERSION_1);
    guest.set_up_queue(0);
    guest.set_status(DRIVER_OK);
    let log = log.lock().unwrap();
    let activation = log.activation.as_ref().unwrap();
    assert_eq!((activation.features, activation.queues.len()), (VERSION_1, 1));
    assert!(!activation.queues[0].queue.state().event_idx_enabled);
}

#[test]
fn features_without_version_1_or_never_offered_are_refused() {
    for features in [0, 0x21, VERSION_1 | 2, VERSION_1 | 1 << 63, u64::MAX] {
        let (mut guest, log) = Guest::with_probe();
        guest.set_status(ACKNOWLEDGE);
        guest.set_status(DRIVER);
        guest.accept(features);
        assert_eq!(guest.set_status(FEATURES_OK), DRIVER, "{features:#x}");
        assert_eq!(guest.set_status(DRIVER_OK), DRIVER, "{features:#x}");
        assert_eq!(log.lock().unwrap().activations, 0);
        // The driver may try again with others.
        guest.accept(VERSION_1);
        assert_eq!(guest.set_status(FEATURES_OK), FEATURES_OK);
    }
}

#[test]
fn features_do_not_change_after_features_ok() {
    let (mut guest, _) = Guest::with_probe();
    guest.negotiate(VERSION_1);
    guest.accept(u64::MAX);
    guest.set_common(8, 4, 0);
    assert_eq!(guest.common(0xc, 4), 0);
}

#[test]
fn feature_words_past_the_second_are_zero_and_take_nothing() {
    let (mut guest, _) = Guest::with_probe();
    guest.set_common(0, 4, 2);
    assert_eq!((guest.common(0, 4), guest.common(4, 4)), (2, 0));
    guest.set_status(ACKNOWLEDGE);
    guest.set_status(DRIVER);
    guest.set_common(8, 4, 0x8000_0001);
    guest.set_common(0xc, 4, 0xffff_ffff);
    guest.accept(VERSION_1);
    assert_eq!(guest.set_status(FEATURES_OK), FEATURES_OK);
}

#[test]
fn status_steps_out_of_order_have_no_effect() {
    let (mut guest, log) = Guest::with_probe();
    assert_eq!(guest.set_status(2), 0);
    assert_eq!(guest.set_status(4), 0);
    assert_eq!(guest.set_status(NEEDS_RESET), 0, "only the device sets DEVICE_NEEDS_RESET");
    guest.accept(VERSION_1);
    assert_eq!(guest.set_status(7), DRIVER, "no DRIVER_OK without FEATURES_OK");
    assert_eq!(log.lock().unwrap().activations, 0);
    assert_eq!(guest.set_status(128 | 3), 131);
}

#[test]
fn status_bits_are_cleared_by_a_reset_only() {
    let (mut guest, log) = Guest::with_probe();
    guest.bring_up(&[0]);
    assert_eq!(guest.set_status(ACKNOWLEDGE), DRIVER_OK);
    assert_eq!(guest.set_status(DRIVER_OK), DRIVER_OK);
    assert_eq!(log.lock().unwrap().activations, 1, "DRIVER_OK again starts nothing again");
    assert_eq!(guest.set_status(0), 0);
}

#[test]
fn device_config_reaches_the_device() {
    let (mut guest, log) = Guest::with_probe();
    let at = guest.structure(4);
    assert_eq!(guest.read(at + 1), [0xc1, 0xc2, 0xc3, 0, 0, 0, 0, 0]);
    guest.device.write(at + 2, &[7, 8]);
    assert_eq!(log.lock().unwrap().config_writes, [(2, vec![7, 8])]);
}

#[test]
fn a_configuration_change_shows_in_generation_and_isr() {
    let (mut guest, log) = Guest::with_probe();
    guest.bring_up(&[0]);
    let before = guest.common(0x15, 1);
    log.lock().unwrap().activation.as_ref().unwrap().interrupt.signal_config();
    assert_ne!(guest.common(0x15, 1), before);
    let isr = guest.structure(3);
    assert_eq!(guest.read(isr), [2]);
    assert_eq!(guest.read(isr), [0], "reading clears it");
}
