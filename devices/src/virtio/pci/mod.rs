//! The modern virtio transport over PCI (virtio 1.2 § 4.1): a 64-bit memory BAR (two for a device that shares memory), MSI-X, no legacy interface, no
//! INTx, no queue reset.
//!
//! ```text
//! let device = VirtioPciDevice::new(Box::new(device), memory, buffers, vectors, on_failure)?;
//! device.set_bar_base(0xc000_0000);                      // the MMIO bus gets [base, base + BAR_SIZE)
//! for (offset, event) in device.notify_events()? { … }   // one ioeventfd each, at base + offset
//! root.add(address, Arc::new(Mutex::new(device)), mover)?;
//! ```

mod capabilities;
mod common_config;
mod device;
mod device_status;
mod layout;
mod queue_config;
mod transport_interrupt;

#[cfg(test)]
mod tests;

pub use device::{SetupError, VirtioPciDevice};
pub use layout::{BAR_SIZE, MAX_QUEUES};
pub use transport_interrupt::OnFailure;
