//! Virtio 1.2 devices and their PCI transport.
//!
//! A device implements [`VirtioDevice`]; the transport owns negotiation, queue set-up and MSI-X and hands everything a
//! running device needs to it in one [`Activation`]. Modern (`VIRTIO_F_VERSION_1`) only.

pub mod block;
pub mod chain_buffers;
mod device_trait;
pub mod fs;
mod interrupt;
pub mod pci;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;
pub mod vsock;

pub use device_trait::{ActivateError, Activation, ActiveQueue, DeviceType, SharedMemory, VirtioDevice};
pub use interrupt::{DeviceFailure, VirtioInterrupt};
