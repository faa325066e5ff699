//! The contract between a virtio device and its transport.
//!
//! ```text
//!            reset()                     activate() ok
//!   ┌──────────────────────┐  DRIVER_OK ┌───────────┐   VirtioInterrupt::fail
//!   │ inactive: no threads │ ─────────▶ │  active   │ ─────────────────────────▶ failed (DEVICE_NEEDS_RESET)
//!   └──────────────────────┘ ◀───────── └───────────┘                               │
//!              ▲              status=0                                              │ status=0
//!              └────────────────────────────────────────────────────────────────────┘
//! ```

use std::io;
use std::sync::Arc;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::VirtioInterrupt;
use crate::GuestMem;

/// Virtio device id (virtio 1.2 § 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceType {
    /// Block device, § 5.2.
    Block = 2,
    /// Socket device, § 5.10.
    Vsock = 19,
    /// File system device, § 5.11.
    Fs = 26,
}

/// One queue the driver has enabled, moved into the device at activation.
#[derive(Debug)]
pub struct ActiveQueue {
    /// The queue's index in the device (0-based, as in the specification).
    pub index: u16,
    /// The validated queue: size, addresses inside guest memory and alignment have been checked by the transport;
    /// EVENT_IDX is set as negotiated.
    pub queue: Queue,
    /// Readable when the driver has kicked this queue (ioeventfd). The device resets it by reading.
    pub notify: EventFd,
}

/// Everything a device needs to run, moved in as one piece.
pub struct Activation {
    /// Guest memory that rings, requests and descriptors are in.
    pub memory: GuestMem,
    /// Guest memory that data buffers may be in: `memory` and the shared memory of every device. The latter may have no
    /// memory behind it at any time (a file that is cut short), so only system calls may touch it, which then fail with
    /// EFAULT; a load or store would be a SIGBUS.
    pub buffers: GuestMem,
    /// Where to signal used buffers, configuration changes and failure.
    pub interrupt: Arc<dyn VirtioInterrupt>,
    /// The enabled queues, ascending by index. Queues the driver left disabled are absent.
    pub queues: Vec<ActiveQueue>,
    /// Feature bits the driver accepted, a subset of what the device offered.
    pub features: u64,
}

/// Why a device could not start. The transport sets DEVICE_NEEDS_RESET and reports it as a failure of the machine.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// A queue the device cannot work without was not enabled by the driver.
    #[error("the driver did not enable queue {0}")]
    MissingQueue(u16),
    /// A host resource (thread, epoll instance, eventfd) could not be had.
    #[error("failed to start the device's worker")]
    Worker(#[source] io::Error),
}

/// A region of memory that a device shares with its driver (virtio 1.2 § 2.10): a range of this process's address space
/// that the VMM gives the guest. What is behind it changes as the device maps files there.
pub trait SharedMemory: Send + Sync {
    /// Which of the device's regions it is (`shmid`).
    fn id(&self) -> u8;
    /// Where it begins in this process. Reserved as long as this object lives.
    fn host_address(&self) -> *mut u8;
    /// Bytes, a multiple of the page size.
    fn size(&self) -> u64;
    /// Gives the guest back what was missing and has come back; whether there was anything since the calling thread asked
    /// last, whoever gave it back.
    fn restore_grown(&self) -> bool;
    /// Puts zeros wherever the guest was given memory that is no longer there; returns how many bytes. For a guest that
    /// cannot be told that it is gone.
    ///
    /// # Errors
    /// The host's own.
    fn cover_missing(&self) -> io::Result<u64>;
}

/// A virtio device behind any transport. See the state diagram at the top of this file.
pub trait VirtioDevice: Send {
    /// A short name for logs and thread names, unique in the machine: `fs[myfs1]`, `vsock`, `block[root]`.
    fn name(&self) -> &str;
    /// The device id.
    fn device_type(&self) -> DeviceType;
    /// The largest size of each queue, in entries; its length is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];
    /// Feature bits offered, without those the transport adds (`VIRTIO_F_VERSION_1`).
    fn device_features(&self) -> u64;
    /// Reads device configuration space; bytes past its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes device configuration space; most devices have nothing writable.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Memory that the device shares with its driver.
    fn shared_memory(&self) -> Option<Arc<dyn SharedMemory>> {
        None
    }
    /// Starts the device's workers. Called once between resets, after DRIVER_OK.
    ///
    /// # Errors
    /// See [`ActivateError`]; the device is then as after [`VirtioDevice::reset`].
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;
    /// Stops and joins every worker, in any state. When it returns nothing of the device touches guest memory and
    /// [`VirtioDevice::activate`] may be called again. Bounded: a worker blocked in the host kernel is given up on
    /// after a deadline, which is reported through [`VirtioInterrupt::fail`].
    fn reset(&mut self);
}
