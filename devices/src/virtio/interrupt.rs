//! What a running device tells its driver and its owner.

/// A device that can no longer serve its driver, and why: becomes DEVICE_NEEDS_RESET for the guest and a stop reason
/// for the machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{device}: {reason}")]
pub struct DeviceFailure {
    /// [`super::VirtioDevice::name`] of the device.
    pub device: String,
    /// What happened, one sentence fragment.
    pub reason: String,
}

/// The device's way to its driver. Implemented by the transport, and by recorders in tests.
pub trait VirtioInterrupt: Send + Sync {
    /// Tells the driver that queue `queue_index` has used buffers (its MSI-X vector, if it has one). Devices call it
    /// once per batch and only when the queue's notification suppression says so.
    fn signal_used(&self, queue_index: u16);
    /// Tells the driver that configuration space changed.
    fn signal_config(&self);
    /// Sets DEVICE_NEEDS_RESET, raises a configuration interrupt and stops the run with this reason. The first failure
    /// of a device counts, later ones are logged.
    fn fail(&self, failure: DeviceFailure);
}
