use std::time::{Duration, Instant};

use super::Guest;
use super::guest::*;
use crate::virtio::test_support::FakeDriver;
use crate::virtio::{ActivateError, Activation, DeviceFailure, DeviceType, VirtioDevice};
use crate::worker_thread::WorkerThread;

fn failure(reason: &str) -> DeviceFailure {
    DeviceFailure { device: "probe".into(), reason: reason.into() }
}

#[test]
fn a_failure_sets_needs_reset_interrupts_the_driver_and_is_reported_once() {
    let (mut guest, log) = Guest::with_probe();
    guest.bring_up(&[0, 1]);
    guest.set_up_msix(2);
    let interrupt = log.lock().unwrap().activation.as_ref().unwrap().interrupt.clone();
    interrupt.fail(failure("first"));
    interrupt.fail(failure("second"));
    assert_eq!(guest.status(), DRIVER_OK | NEEDS_RESET);
    assert_eq!(guest.vectors.triggers(0), 1, "configuration change");
    assert_eq!(guest.failures(), [failure("first")]);
    assert_eq!(guest.set_status(0), 0);
    assert_eq!(log.lock().unwrap().resets, 1);
    guest.bring_up(&[0, 1]);
    assert_eq!(guest.status(), DRIVER_OK);
}

#[test]
fn before_driver_ok_a_failure_interrupts_nobody() {
    let (mut guest, _) = Guest::with_probe();
    guest.negotiate(VERSION_1);
    guest.set_up_msix(2);
    guest.set_common(0x16, 2, 0);
    guest.set_common(0x18, 2, 3);
    guest.set_common(0x1c, 2, 1);
    assert_eq!(guest.failures().len(), 1);
    assert_eq!(guest.vectors.triggers(0), 0);
}

#[test]
fn a_device_that_cannot_start_needs_a_reset_and_says_why() {
    let (mut guest, log) = Guest::with_probe();
    log.lock().unwrap().refuse = true;
    guest.bring_up(&[0]);
    assert_eq!(guest.status(), DRIVER_OK | NEEDS_RESET);
    let reason = "failed to start: failed to start the device's worker: told to refuse";
    assert_eq!(guest.failures(), [failure(reason)]);
    log.lock().unwrap().refuse = false;
    guest.bring_up(&[0]);
    assert_eq!(guest.status(), DRIVER_OK);
}

#[test]
fn a_device_whose_queue_is_missing_needs_a_reset() {
    let (mut guest, _) = Guest::with_probe();
    guest.bring_up(&[1]);
    assert_eq!(guest.status(), DRIVER_OK | NEEDS_RESET);
    assert_eq!(guest.failures(), [failure("failed to start: the driver did not enable queue 0")]);
}

#[test]
fn an_interrupt_that_cannot_be_sent_is_a_failure() {
    let (mut guest, log) = Guest::with_probe();
    guest.bring_up(&[0, 1]);
    guest.set_up_msix(2);
    guest.vectors.refuse(true);
    log.lock().unwrap().activation.as_ref().unwrap().interrupt.signal_used(0);
    assert_eq!(guest.failures(), [failure("failed to send MSI-X vector 1: told to refuse")]);
    assert_eq!(guest.status(), DRIVER_OK | NEEDS_RESET);
}

#[test]
fn a_vector_that_cannot_be_routed_is_a_failure() {
    let (mut guest, _) = Guest::with_probe();
    guest.write_msix_control(0x8000);
    guest.vectors.refuse(true);
    guest.mask_vector(1, false);
    assert_eq!(guest.failures(), [failure("failed to route an MSI-X vector: told to refuse")]);
}

/// Starts a worker that panics at once.
struct Panics(Option<WorkerThread>);

impl VirtioDevice for Panics {
    fn name(&self) -> &str {
        "panics"
    }
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[8]
    }
    fn device_features(&self) -> u64 {
        0
    }
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let worker = WorkerThread::spawn("panics", "w", activation.interrupt, |_| panic!("on purpose"));
        self.0 = Some(worker.map_err(ActivateError::Worker)?);
        Ok(())
    }
    fn reset(&mut self) {
        self.0 = None;
    }
}

#[test]
fn a_worker_that_panics_is_a_failure_the_guest_sees_and_a_reset_starts_it_again() {
    let mut guest = Guest::new(Box::new(Panics(None)), FakeDriver::new(&[8]));
    for round in 1..=2 {
        guest.bring_up(&[0]);
        let deadline = Instant::now() + Duration::from_secs(20);
        while guest.failures().len() < round {
            assert!(Instant::now() < deadline, "the panic was not reported");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(guest.status(), DRIVER_OK | NEEDS_RESET);
        assert_eq!(guest.failures()[round - 1].reason, r#"worker "w": panicked: on purpose"#);
    }
}

#[test]
fn a_device_can_fail_while_the_guest_resets_it() {
    // The worker reports from its own thread while the vCPU waits for it in the reset: neither may wait for the other.
    for _ in 0..200 {
        let mut guest = Guest::new(Box::new(Panics(None)), FakeDriver::new(&[8]));
        guest.bring_up(&[0]);
        assert_eq!(guest.set_status(0), 0);
        assert_eq!(guest.failures().len(), 1);
    }
}
