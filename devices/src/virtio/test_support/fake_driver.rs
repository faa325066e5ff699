//! Guest memory, its queues and the recorder, put together.

use std::sync::{Arc, Mutex};

use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap, GuestRegionMmap};

use super::allocator::Allocator;
use super::{DriverQueue, RecordingInterrupt};
use crate::GuestMem;
use crate::virtio::{Activation, SharedMemory, VirtioInterrupt};

/// Bytes of guest memory, from guest-physical address 0.
pub const MEMORY_SIZE: u64 = 32 << 20;

/// The first page is never handed out, so that address 0 is always a wrong address.
const FIRST_FREE: u64 = 4096;

/// A driver with its guest memory. See the module's documentation.
pub struct FakeDriver {
    memory: GuestMem,
    buffers: GuestMem,
    interrupt: Arc<RecordingInterrupt>,
    queues: Vec<DriverQueue>,
}

impl FakeDriver {
    /// Lays out one queue per entry of `queue_sizes` (each a power of two).
    pub fn new(queue_sizes: &[u16]) -> Self {
        let region = [(GuestAddress(0), MEMORY_SIZE as usize)];
        let memory = GuestMemoryMmap::from_ranges(&region)
            .unwrap_or_else(|error| panic!("failed to map {MEMORY_SIZE} bytes of guest memory: {error}"));
        let memory = GuestMem::new(memory);
        let allocator = Arc::new(Mutex::new(Allocator::new(FIRST_FREE, MEMORY_SIZE)));
        let queues = (0u16..)
            .zip(queue_sizes)
            .map(|(index, size)| DriverQueue::new(index, *size, memory.clone(), allocator.clone()))
            .collect();
        FakeDriver { buffers: memory.clone(), memory, interrupt: Arc::new(RecordingInterrupt::default()), queues }
    }

    /// The guest memory.
    pub fn memory(&self) -> &GuestMem {
        &self.memory
    }

    /// Adds what `shared` has to the memory that data buffers may be in, from `base` on, as a VMM does.
    pub fn share_memory(&mut self, shared: &dyn SharedMemory, base: GuestAddress) {
        let size = usize::try_from(shared.size()).unwrap_or_else(|error| panic!("{error}"));
        // SAFETY: the caller keeps the device, and thereby the range, longer than this driver.
        let builder = unsafe { MmapRegionBuilder::new(size).with_raw_mmap_pointer(shared.host_address()) };
        let region = builder.build().unwrap_or_else(|error| panic!("no region: {error}"));
        let region = GuestRegionMmap::new(region, base).unwrap_or_else(|| panic!("it would end past 2^64"));
        let memory = self.memory.memory().insert_region(Arc::new(region));
        self.buffers = GuestMem::new(memory.unwrap_or_else(|error| panic!("it overlaps: {error}")));
    }

    /// What the device signalled.
    pub fn interrupt(&self) -> &RecordingInterrupt {
        &self.interrupt
    }

    /// The recorder as a device takes it.
    pub fn shared_interrupt(&self) -> Arc<RecordingInterrupt> {
        self.interrupt.clone()
    }

    /// One queue, to add chains to and take used ones from.
    pub fn queue(&mut self, index: u16) -> &mut DriverQueue {
        self.queues.get_mut(usize::from(index)).unwrap_or_else(|| panic!("the fake driver has no queue {index}"))
    }

    /// Gives the queues away, for tests that drive each from a thread of its own.
    pub fn into_queues(self) -> Vec<DriverQueue> {
        self.queues
    }

    /// An activation with every queue, as a transport would make it once `features` were accepted. EVENT_IDX is used
    /// on both sides if it is among them. After a device's reset call [`FakeDriver::reset_queues`] before the next one.
    pub fn activation(&mut self, features: u64) -> Activation {
        let all: Vec<u16> = self.queues.iter().map(DriverQueue::index).collect();
        self.activation_with(features, &all)
    }

    /// Like [`FakeDriver::activation`], with only the queues of these indices enabled.
    pub fn activation_with(&mut self, features: u64, enabled: &[u16]) -> Activation {
        let event_idx = features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let queues = self
            .queues
            .iter_mut()
            .filter(|queue| enabled.contains(&queue.index()))
            .map(|queue| queue.active_queue(event_idx))
            .collect();
        let interrupt: Arc<dyn VirtioInterrupt> = self.interrupt.clone();
        Activation { memory: self.memory.clone(), buffers: self.buffers.clone(), interrupt, queues, features }
    }

    /// Empties every ring, as a driver does before it sets a device up anew.
    pub fn reset_queues(&mut self) {
        for queue in &mut self.queues {
            queue.reset();
        }
    }

    /// Copies guest memory out.
    pub fn read(&self, address: GuestAddress, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.memory
            .memory()
            .read_slice(&mut data, address)
            .unwrap_or_else(|error| panic!("failed to read {len} bytes of guest memory at {:#x}: {error}", address.0));
        data
    }

    /// Writes guest memory.
    pub fn write(&self, address: GuestAddress, data: &[u8]) {
        self.memory.memory().write_slice(data, address).unwrap_or_else(|error| {
            panic!("failed to write {} bytes of guest memory at {:#x}: {error}", data.len(), address.0)
        });
    }
}
