//! The device as its transport sees it.

use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::VsockHandle;
use super::host_side::HostSide;
use super::muxer::Muxer;
use super::worker::Worker;
use crate::virtio::{ActivateError, Activation, ActiveQueue, DeviceType, VirtioDevice};
use crate::worker_thread::WorkerThread;

const NAME: &str = "vsock";
/// What the guest receives, what it sends, events (virtio 1.2 § 5.10.2).
const QUEUE_SIZES: [u16; 3] = [256; 3];
const RX_QUEUE: u16 = 0;
const TX_QUEUE: u16 = 1;

/// What can be chosen about the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockOptions {
    /// Connections at the same time. The guest's requests beyond are refused. Each takes a file descriptor of this
    /// process, two if this process is also its host end.
    pub max_connections: usize,
    /// Bytes of a connection's payload from the guest that are buffered when the host does not read, beyond what the
    /// host socket takes: the credit that the guest gets.
    pub buffer_size: u32,
    /// How long the guest may take to answer a connection request of the host.
    pub connect_timeout: Duration,
    /// How long the guest may take to confirm the end of a connection that the host has closed. Linux waits 8 seconds
    /// in the other direction (VSOCK_CLOSE_TIMEOUT).
    pub close_timeout: Duration,
}

impl Default for VsockOptions {
    fn default() -> Self {
        VsockOptions {
            max_connections: 1024,
            // The default of Linux (VSOCK_DEFAULT_BUFFER_SIZE).
            buffer_size: 256 * 1024,
            connect_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(8),
        }
    }
}

/// A socket device. Make its PCI function with a [`crate::virtio`] transport and keep the [`VsockHandle`].
pub struct VsockDevice {
    guest_cid: u64,
    options: VsockOptions,
    host: Arc<HostSide>,
    worker: Option<WorkerThread>,
}

impl VsockDevice {
    /// A device for a guest with this CID: 3 or more, below 2^32 - 1 (§ 5.10.4 reserves the others). It opens nothing
    /// until it is activated.
    pub fn new(guest_cid: u64, options: VsockOptions) -> (VsockDevice, VsockHandle) {
        let host = Arc::new(HostSide::default());
        let handle = VsockHandle::new(host.clone(), options.connect_timeout);
        (VsockDevice { guest_cid, options, host, worker: None }, handle)
    }
}

impl VirtioDevice for VsockDevice {
    fn name(&self) -> &str {
        NAME
    }

    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// No VIRTIO_VSOCK_F_SEQPACKET, and without any VIRTIO_VSOCK_F_* streams are understood (§ 5.10.3).
    fn device_features(&self) -> u64 {
        (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    }

    /// § 5.10.4: the guest's CID, eight bytes.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let config = self.guest_cid.to_le_bytes();
        let rest = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
        for (to, from) in data.iter_mut().zip(rest) {
            *to = *from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, interrupt, mut queues, .. } = activation;
        let rx = take_queue(&mut queues, RX_QUEUE)?;
        let tx = take_queue(&mut queues, TX_QUEUE)?;
        // The event queue carries only TRANSPORT_RESET, for guests that were moved: nothing is ever put there.
        let muxer = Muxer::new(self.guest_cid, self.options.clone(), self.host.clone());
        let worker =
            Worker::new(memory, interrupt.clone(), rx, tx, muxer, &self.host).map_err(ActivateError::Worker)?;
        let thread = WorkerThread::spawn(NAME, NAME, interrupt, move |stop| worker.run(&stop));
        self.worker = Some(thread.map_err(ActivateError::Worker)?);
        Ok(())
    }

    fn reset(&mut self) {
        // Joins; the worker's connections and its claim on the host side end with it.
        self.worker = None;
    }
}

fn take_queue(queues: &mut Vec<ActiveQueue>, index: u16) -> Result<ActiveQueue, ActivateError> {
    let position = queues.iter().position(|queue| queue.index == index);
    position.map(|position| queues.swap_remove(position)).ok_or(ActivateError::MissingQueue(index))
}
