//! The driver's half of one split virtqueue (virtio 1.2 § 2.7).

use std::collections::HashMap;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::allocator::Allocator;
use crate::GuestMem;
use crate::virtio::ActiveQueue;

/// VIRTQ_DESC_F_NEXT: the chain goes on at `next`.
pub const DESC_F_NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE: the device writes this buffer.
pub const DESC_F_WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT: the buffer is a descriptor table.
pub const DESC_F_INDIRECT: u16 = 4;

/// VIRTQ_USED_F_NO_NOTIFY: the device asks not to be kicked.
const USED_F_NO_NOTIFY: u16 = 1;
const DESCRIPTOR_SIZE: u64 = 16;
/// How long [`DriverQueue::request`] waits. Generous: the machine that runs the tests may be busy.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A descriptor exactly as it lies in guest memory (§ 2.7.5), with every field free to be wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RawDescriptor {
    /// Guest-physical address of the buffer.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// DESC_F_*.
    pub flags: u16,
    /// Index of the next descriptor, with DESC_F_NEXT.
    pub next: u16,
}

// SAFETY: 8 + 4 + 2 + 2 bytes, repr(C), no padding, every bit pattern is valid.
unsafe impl ByteValued for RawDescriptor {}

/// One buffer of a chain to be built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Device-readable, holding these bytes.
    Readable(Vec<u8>),
    /// Device-writable, of this many bytes, filled with 0xa5.
    Writable(u32),
    /// A descriptor with this address, length and flags taken as they are (`next` and DESC_F_NEXT are added).
    Raw(RawDescriptor),
}

/// A device-readable segment with these bytes.
pub fn readable(data: impl AsRef<[u8]>) -> Segment {
    Segment::Readable(data.as_ref().to_vec())
}

/// A device-writable segment of `len` bytes.
pub fn writable(len: u32) -> Segment {
    Segment::Writable(len)
}

/// Where a segment of a chain lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: GuestAddress,
    /// Bytes.
    pub len: u32,
    /// Written by the device (true) or read (false).
    pub writable: bool,
    allocated: bool,
}

/// A chain that was made available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Index of its first descriptor: what the used ring will name.
    pub head: u16,
    /// Its buffers, in order.
    pub buffers: Vec<Buffer>,
    descriptors: Vec<u16>,
    indirect_table: Option<(GuestAddress, u64)>,
}

/// An entry of the used ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// The id that the device wrote.
    pub head: u16,
    /// The length that the device wrote.
    pub len: u32,
    /// The chain that was added with this head, unless it was made by hand or the device invented the id.
    pub chain: Option<Chain>,
}

/// What came back for a [`DriverQueue::request`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The used length.
    pub len: u32,
    /// All device-writable buffers put together, whatever `len` says.
    pub data: Vec<u8>,
}

/// The driver's half of one virtqueue.
pub struct DriverQueue {
    index: u16,
    size: u16,
    memory: GuestMem,
    allocator: Arc<Mutex<Allocator>>,
    notify: EventFd,
    event_idx: bool,
    /// Guest-physical address of the descriptor table.
    pub desc_table: GuestAddress,
    /// Guest-physical address of the available ring.
    pub avail_ring: GuestAddress,
    /// Guest-physical address of the used ring.
    pub used_ring: GuestAddress,
    free: Vec<u16>,
    avail_idx: u16,
    kicked_avail_idx: u16,
    used_idx: u16,
    in_flight: HashMap<u16, Chain>,
}

impl DriverQueue {
    pub(super) fn new(index: u16, size: u16, memory: GuestMem, allocator: Arc<Mutex<Allocator>>) -> Self {
        assert!(size.is_power_of_two(), "queue size {size} is not a power of two");
        let entries = u64::from(size);
        let (desc_table, avail_ring, used_ring) = {
            let mut allocator = lock(&allocator);
            // Rings with flags, idx and the event field: § 2.7.6, § 2.7.8.
            let desc_table = allocator.allocate(DESCRIPTOR_SIZE * entries);
            (desc_table, allocator.allocate(6 + 2 * entries), allocator.allocate(6 + 8 * entries))
        };
        let notify = EventFd::new(EFD_NONBLOCK).unwrap_or_else(|error| panic!("failed to make an eventfd: {error}"));
        let mut queue = DriverQueue {
            index,
            size,
            memory,
            allocator,
            notify,
            event_idx: true,
            desc_table,
            avail_ring,
            used_ring,
            free: Vec::new(),
            avail_idx: 0,
            kicked_avail_idx: 0,
            used_idx: 0,
            in_flight: HashMap::new(),
        };
        queue.reset();
        queue
    }

    /// The queue's index in the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Chains that were added and have not come back.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Descriptors free to be used.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// The device's half, as a transport would pass it to a device.
    pub(super) fn active_queue(&mut self, event_idx: bool) -> ActiveQueue {
        self.event_idx = event_idx;
        let mut queue = Queue::new(self.size).unwrap_or_else(|error| panic!("failed to make a queue: {error}"));
        let halves = |address: GuestAddress| (Some(address.0 as u32), Some((address.0 >> 32) as u32));
        let (low, high) = halves(self.desc_table);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(self.avail_ring);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(self.used_ring);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        let notify = self.notify.try_clone().unwrap_or_else(|error| panic!("failed to copy an eventfd: {error}"));
        ActiveQueue { index: self.index, queue, notify }
    }

    /// Makes the queue kick and be kicked through this eventfd instead of its own (a transport's notify event).
    pub fn set_notify(&mut self, notify: EventFd) {
        self.notify = notify;
    }

    /// Says whether EVENT_IDX was negotiated, for a driver behind a transport.
    pub fn set_event_idx(&mut self, enabled: bool) {
        self.event_idx = enabled;
    }

    /// Empties the rings and forgets every chain.
    pub fn reset(&mut self) {
        let zeros = vec![0; usize::from(self.size) * 16 + 8];
        let entries = usize::from(self.size);
        for (address, len) in
            [(self.desc_table, 16 * entries), (self.avail_ring, 6 + 2 * entries), (self.used_ring, 6 + 8 * entries)]
        {
            self.write(address, zeros.get(..len).unwrap_or_default());
        }
        // Taken from the end: descriptor 0 first.
        self.free = (0..self.size).rev().collect();
        self.avail_idx = 0;
        self.kicked_avail_idx = 0;
        self.used_idx = 0;
        let chains: Vec<Chain> = self.in_flight.drain().map(|(_, chain)| chain).collect();
        for chain in chains {
            self.free_buffers(&chain);
        }
        // A kick that nobody took belongs to the time before the reset.
        drop(self.notify.read());
    }

    /// Adds one chain and makes it available. Does not kick.
    pub fn add(&mut self, segments: &[Segment]) -> Chain {
        let buffers: Vec<(RawDescriptor, Buffer)> = segments.iter().map(|segment| self.place(segment)).collect();
        let descriptors: Vec<u16> = buffers.iter().map(|_| self.take_descriptor()).collect();
        for (position, (&(mut raw, _), index)) in buffers.iter().zip(&descriptors).enumerate() {
            if let Some(next) = descriptors.get(position + 1) {
                raw.flags |= DESC_F_NEXT;
                raw.next = *next;
            }
            self.write_descriptor(*index, raw);
        }
        let head = *descriptors.first().unwrap_or_else(|| panic!("a chain needs at least one segment"));
        let buffers = buffers.into_iter().map(|(_, buffer)| buffer).collect();
        self.publish(Chain { head, buffers, descriptors, indirect_table: None })
    }

    /// Adds one chain through an indirect table (§ 2.7.5.3) and makes it available. Does not kick.
    pub fn add_indirect(&mut self, segments: &[Segment]) -> Chain {
        let buffers: Vec<(RawDescriptor, Buffer)> = segments.iter().map(|segment| self.place(segment)).collect();
        let table_len = DESCRIPTOR_SIZE * buffers.len() as u64;
        let table = lock(&self.allocator).allocate(table_len);
        for (position, &(mut raw, _)) in (0u16..).zip(&buffers) {
            if usize::from(position) + 1 < buffers.len() {
                raw.flags |= DESC_F_NEXT;
                raw.next = position + 1;
            }
            self.write(GuestAddress(table.0 + DESCRIPTOR_SIZE * u64::from(position)), raw.as_slice());
        }
        let head = self.take_descriptor();
        let len = table_len as u32;
        self.write_descriptor(head, RawDescriptor { address: table.0, len, flags: DESC_F_INDIRECT, next: 0 });
        let buffers = buffers.into_iter().map(|(_, buffer)| buffer).collect();
        self.publish(Chain { head, buffers, descriptors: vec![head], indirect_table: Some((table, table_len)) })
    }

    /// Writes one descriptor of the table, right or wrong. Does not take it from the free ones: combine with
    /// [`DriverQueue::add`] only on descriptors from the end of the table.
    pub fn write_descriptor(&self, index: u16, raw: RawDescriptor) {
        self.write(GuestAddress(self.desc_table.0 + DESCRIPTOR_SIZE * u64::from(index)), raw.as_slice());
    }

    /// Puts `head` into the available ring and publishes it, whether or not there is such a descriptor.
    pub fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.avail_idx % self.size);
        self.write(GuestAddress(self.avail_ring.0 + 4 + 2 * slot), &head.to_le_bytes());
        self.set_avail_idx(self.avail_idx.wrapping_add(1));
    }

    /// Publishes any available index, jumps beyond the queue's size included.
    pub fn set_avail_idx(&mut self, idx: u16) {
        self.avail_idx = idx;
        self.store(GuestAddress(self.avail_ring.0 + 2), idx, Ordering::Release);
    }

    /// Asks to be interrupted when the used index passes `idx` (used_event, § 2.7.7).
    pub fn set_used_event(&self, idx: u16) {
        self.store(GuestAddress(self.avail_ring.0 + 4 + 2 * u64::from(self.size)), idx, Ordering::SeqCst);
    }

    /// Sets the available ring's flags (VIRTQ_AVAIL_F_NO_INTERRUPT is 1).
    pub fn set_avail_flags(&self, flags: u16) {
        self.store(self.avail_ring, flags, Ordering::SeqCst);
    }

    /// The index at which the device wants to be kicked (avail_event, § 2.7.10).
    pub fn avail_event(&self) -> u16 {
        self.load(GuestAddress(self.used_ring.0 + 4 + 8 * u64::from(self.size)), Ordering::SeqCst)
    }

    /// The used index as the device published it.
    pub fn device_used_idx(&self) -> u16 {
        self.load(GuestAddress(self.used_ring.0 + 2), Ordering::Acquire)
    }

    /// Kicks the device, wanted or not.
    pub fn kick(&mut self) {
        self.kicked_avail_idx = self.avail_idx;
        self.notify.write(1).unwrap_or_else(|error| panic!("failed to kick queue {}: {error}", self.index));
    }

    /// Kicks the device if its notification suppression asks for it, as Linux does; says whether it did.
    pub fn kick_if_wanted(&mut self) -> bool {
        // The available index must be visible before the device's wish is read (§ 2.7.13.3.1).
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            // § 2.7.10.1: kick when avail_event lies among what was added since the last kick.
            let event = self.avail_event();
            self.avail_idx.wrapping_sub(event).wrapping_sub(1) < self.avail_idx.wrapping_sub(self.kicked_avail_idx)
        } else {
            self.load(self.used_ring, Ordering::SeqCst) & USED_F_NO_NOTIFY == 0
        };
        if wanted {
            self.kick();
        } else {
            self.kicked_avail_idx = self.avail_idx;
        }
        wanted
    }

    /// The next used entry, if there is one. Its descriptors become free, its buffers stay (see
    /// [`DriverQueue::free_buffers`]).
    pub fn poll_used(&mut self) -> Option<Used> {
        if self.device_used_idx() == self.used_idx {
            return None;
        }
        let slot = GuestAddress(self.used_ring.0 + 4 + 8 * u64::from(self.used_idx % self.size));
        let entry = self.read(slot, 8);
        let word = |range: std::ops::Range<usize>| {
            let bytes = entry.get(range).and_then(|bytes| bytes.try_into().ok());
            u32::from_le_bytes(bytes.unwrap_or_else(|| panic!("a used entry has 8 bytes")))
        };
        let (id, len) = (word(0..4), word(4..8));
        let head = u16::try_from(id).unwrap_or_else(|_| panic!("the device returned descriptor {id}"));
        self.used_idx = self.used_idx.wrapping_add(1);
        // As Linux does when it is ready for the next interrupt.
        self.set_used_event(self.used_idx);
        let chain = self.in_flight.remove(&head);
        if let Some(chain) = &chain {
            self.free.extend(chain.descriptors.iter().rev());
        }
        Some(Used { head, len, chain })
    }

    /// Waits for the next used entry; `None` when `timeout` passed first.
    pub fn wait_used(&mut self, timeout: Duration) -> Option<Used> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(used) = self.poll_used() {
                return Some(used);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(Duration::from_micros(100));
        }
    }

    /// Adds a chain, kicks, waits for it to come back and frees it. No other chain may be in flight on this queue.
    pub fn request(&mut self, segments: &[Segment]) -> Reply {
        let chain = self.add(segments);
        self.finish(&chain)
    }

    /// [`DriverQueue::request`] with an indirect descriptor.
    pub fn request_indirect(&mut self, segments: &[Segment]) -> Reply {
        let chain = self.add_indirect(segments);
        self.finish(&chain)
    }

    fn finish(&mut self, chain: &Chain) -> Reply {
        self.kick_if_wanted();
        let used = self
            .wait_used(REQUEST_TIMEOUT)
            .unwrap_or_else(|| panic!("the device did not return chain {} of queue {}", chain.head, self.index));
        assert_eq!(used.head, chain.head, "the device returned another chain than the only one in flight");
        let data = self.written(chain);
        self.free_buffers(chain);
        Reply { len: used.len, data }
    }

    /// All device-writable buffers of a chain, put together.
    pub fn written(&self, chain: &Chain) -> Vec<u8> {
        let writable = chain.buffers.iter().filter(|buffer| buffer.writable && buffer.allocated);
        writable.flat_map(|buffer| self.read(buffer.address, buffer.len as usize)).collect()
    }

    /// Gives a chain's guest memory back, once its contents are of no more interest.
    pub fn free_buffers(&self, chain: &Chain) {
        let mut allocator = lock(&self.allocator);
        for buffer in chain.buffers.iter().filter(|buffer| buffer.allocated) {
            allocator.release(buffer.address, u64::from(buffer.len));
        }
        if let Some((table, len)) = chain.indirect_table {
            allocator.release(table, len);
        }
    }

    fn place(&self, segment: &Segment) -> (RawDescriptor, Buffer) {
        let (fill, flags) = match segment {
            Segment::Readable(data) => (data.clone(), 0),
            // A pattern that a device that "wrote" nothing leaves visible.
            Segment::Writable(len) => (vec![0xa5; *len as usize], DESC_F_WRITE),
            Segment::Raw(raw) => {
                let writable = raw.flags & DESC_F_WRITE != 0;
                let address = GuestAddress(raw.address);
                return (*raw, Buffer { address, len: raw.len, writable, allocated: false });
            }
        };
        let address = lock(&self.allocator).allocate(fill.len() as u64);
        self.write(address, &fill);
        let len = u32::try_from(fill.len()).unwrap_or_else(|_| panic!("a segment of {} bytes", fill.len()));
        let writable = flags == DESC_F_WRITE;
        (RawDescriptor { address: address.0, len, flags, next: 0 }, Buffer { address, len, writable, allocated: true })
    }

    fn publish(&mut self, chain: Chain) -> Chain {
        self.make_available(chain.head);
        self.in_flight.insert(chain.head, chain.clone());
        chain
    }

    fn take_descriptor(&mut self) -> u16 {
        self.free.pop().unwrap_or_else(|| panic!("queue {} has no free descriptor", self.index))
    }

    fn write(&self, address: GuestAddress, data: &[u8]) {
        let result = self.memory.memory().write_slice(data, address);
        result.unwrap_or_else(|error| panic!("failed to write guest memory at {:#x}: {error}", address.0));
    }

    fn read(&self, address: GuestAddress, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        let result = self.memory.memory().read_slice(&mut data, address);
        result.unwrap_or_else(|error| panic!("failed to read guest memory at {:#x}: {error}", address.0));
        data
    }

    fn store(&self, address: GuestAddress, value: u16, order: Ordering) {
        let result = self.memory.memory().store(value.to_le(), address, order);
        result.unwrap_or_else(|error| panic!("failed to store to guest memory at {:#x}: {error}", address.0));
    }

    fn load(&self, address: GuestAddress, order: Ordering) -> u16 {
        let result = self.memory.memory().load(address, order);
        u16::from_le(result.unwrap_or_else(|error| panic!("failed to load guest memory at {:#x}: {error}", address.0)))
    }
}

fn lock(allocator: &Mutex<Allocator>) -> MutexGuard<'_, Allocator> {
    allocator.lock().unwrap_or_else(PoisonError::into_inner)
}
