//! Why a machine stopped.

use devices::virtio::DeviceFailure;

/// The first thing that ended the machine; later ones are logged only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StopReason {
    /// The guest powered itself off (ACPI S5).
    #[error("guest powered off")]
    PowerOff,
    /// The guest asked for a reset (i8042, ACPI reset register): what a kernel with `panic=-1` does after a panic.
    #[error("guest reset the machine")]
    Reset,
    /// A vCPU entered shutdown (triple fault).
    #[error("vCPU {vcpu} triple-faulted")]
    TripleFault {
        /// Index of the vCPU.
        vcpu: u32,
    },
    /// KVM could not go on with a vCPU.
    #[error("KVM stopped vCPU {vcpu}: {detail}")]
    KvmFailed {
        /// Index of the vCPU.
        vcpu: u32,
        /// Exit reason and registers, one line.
        detail: String,
    },
    /// A device gave up.
    #[error("device failed: {0}")]
    DeviceFailed(DeviceFailure),
    /// One of our own threads panicked.
    #[error("thread {thread} of the VMM panicked: {message}")]
    ThreadPanicked {
        /// The thread's name.
        thread: String,
        /// The panic's message.
        message: String,
    },
    /// The owner ended it.
    #[error("machine stopped by its owner")]
    Requested,
}
