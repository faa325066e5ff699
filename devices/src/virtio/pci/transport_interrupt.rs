//! The transport's [`VirtioInterrupt`]: queue and configuration vectors, ISR status, DEVICE_NEEDS_RESET.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use crate::pci::{Msix, NO_VECTOR};
use crate::virtio::{DeviceFailure, VirtioInterrupt};

/// Told of each failure, once between two resets.
pub type OnFailure = Arc<dyn Fn(DeviceFailure) + Send + Sync>;

/// ISR status bits (virtio 1.2 § 4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Shared by the transport, which sets the vectors, and the device's workers, which signal. No lock on the way of a
/// signal: a table of atomics, then [`Msix::signal`].
pub(super) struct TransportInterrupt {
    device: String,
    msix: Msix,
    queue_vectors: Box<[AtomicU16]>,
    config_vector: AtomicU16,
    isr: AtomicU8,
    config_generation: AtomicU8,
    needs_reset: AtomicBool,
    /// The driver reached DRIVER_OK: before that no interrupt may be sent (§ 2.1.2).
    driver_ok: AtomicBool,
    on_failure: OnFailure,
}

impl TransportInterrupt {
    pub(super) fn new(device: &str, msix: Msix, queues: usize, on_failure: OnFailure) -> Self {
        TransportInterrupt {
            device: device.to_owned(),
            msix,
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            config_vector: AtomicU16::new(NO_VECTOR),
            isr: AtomicU8::new(0),
            config_generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
            driver_ok: AtomicBool::new(false),
            on_failure,
        }
    }

    pub(super) fn msix(&self) -> &Msix {
        &self.msix
    }

    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        self.queue_vectors.get(usize::from(queue)).map_or(0, |vector| vector.load(Ordering::Relaxed))
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(queue)) {
            slot.store(self.known(vector), Ordering::Release);
        }
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Relaxed)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.known(vector), Ordering::Release);
    }

    /// A vector outside the table cannot be mapped; the driver sees that by reading back "no vector" (§ 4.1.5.1.2.1).
    fn known(&self, vector: u16) -> u16 {
        if vector < self.msix.count() { vector } else { NO_VECTOR }
    }

    /// Reading ISR status clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    pub(super) fn config_generation(&self) -> u8 {
        self.config_generation.load(Ordering::Acquire)
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    pub(super) fn set_driver_ok(&self) {
        self.driver_ok.store(true, Ordering::Release);
    }

    /// Back to the state before the driver found the device. The MSI-X table is PCI's and stays.
    pub(super) fn reset(&self) {
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        self.isr.store(0, Ordering::Release);
        self.driver_ok.store(false, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
    }

    pub(super) fn fail_for(&self, reason: String) {
        self.fail(DeviceFailure { device: self.device.clone(), reason });
    }

    fn send(&self, vector: u16) {
        if let Err(error) = self.msix.signal(vector) {
            // An interrupt that gets lost is a guest that hangs: say so at once. `fail` comes back here for the
            // configuration vector, but not a second time.
            self.fail_for(format!("failed to send MSI-X vector {vector}: {error}"));
        }
    }
}

impl VirtioInterrupt for TransportInterrupt {
    fn signal_used(&self, queue_index: u16) {
        match self.queue_vectors.get(usize::from(queue_index)).map(|vector| vector.load(Ordering::Acquire)) {
            Some(NO_VECTOR) => {
                // For a driver that polls ISR status instead of using MSI-X.
                self.isr.fetch_or(ISR_QUEUE, Ordering::AcqRel);
            }
            Some(vector) => self.send(vector),
            None => tracing::debug!("{}: signal for queue {queue_index}, which does not exist", self.device),
        }
    }

    fn signal_config(&self) {
        self.config_generation.fetch_add(1, Ordering::AcqRel);
        self.isr.fetch_or(ISR_CONFIG, Ordering::AcqRel);
        let vector = self.config_vector.load(Ordering::Acquire);
        if vector != NO_VECTOR && self.driver_ok.load(Ordering::Acquire) {
            self.send(vector);
        }
    }

    fn fail(&self, failure: DeviceFailure) {
        if self.needs_reset.swap(true, Ordering::AcqRel) {
            tracing::warn!("after its first failure: {failure}");
            return;
        }
        tracing::error!("{failure}");
        self.signal_config();
        (self.on_failure)(failure);
    }
}
