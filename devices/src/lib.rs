//! What the guest of a `vmm` machine sees: the PCI root, virtio devices (fs, vsock, block) and the serial port.
//!
//! Nothing in this crate knows of KVM. A device sees guest memory ([`GuestMem`]), an interrupt trait
//! ([`virtio::VirtioInterrupt`]) and bus accesses ([`bus::BusDevice`]), so each is tested here against a fake driver.
//! Everything that arrives from the guest is hostile: no size, index or address is used unchecked.
//!
//! A device's work happens on a [`worker_thread::WorkerThread`], usually one per queue, which runs an
//! [`event_loop`] over the queue's kicks and its own stop event.

pub mod bus;
pub mod event_loop;
pub mod pci;
pub mod serial_console;
pub mod virtio;
pub mod worker_thread;

/// Guest memory as every device holds it: one shared memfd mapping, replaceable as a whole (DAX windows).
pub type GuestMem = vm_memory::GuestMemoryAtomic<vm_memory::GuestMemoryMmap>;
