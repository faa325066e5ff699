//! The device's half of one virtqueue, with the notification suppression of both sides (virtio 1.2 § 2.7.7, § 2.7.10).

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{DescriptorChain, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::virtio::ActiveQueue;
use crate::worker_thread::WorkerError;

/// VIRTQ_AVAIL_F_NO_INTERRUPT: without EVENT_IDX, the driver's wish not to be signalled.
const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// A queue and what became of it in the current batch.
pub(super) struct Ring {
    active: ActiveQueue,
    used: bool,
}

impl Ring {
    pub(super) fn new(active: ActiveQueue) -> Self {
        Ring { active, used: false }
    }

    pub(super) fn index(&self) -> u16 {
        self.active.index
    }

    /// The eventfd that the driver kicks.
    pub(super) fn notify(&self) -> &vmm_sys_util::eventfd::EventFd {
        &self.active.notify
    }

    /// The next available chain.
    pub(super) fn next_chain<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Result<Option<DescriptorChain<&'m GuestMemoryMmap>>, WorkerError> {
        let index = self.active.index;
        let mut chains =
            self.active.queue.iter(memory).map_err(|source| WorkerError::Queue { queue: index, source })?;
        Ok(chains.next())
    }

    /// Puts the chain that [`Ring::next_chain`] returned last back, as if it had not been taken.
    pub(super) fn undo_next(&mut self) {
        self.active.queue.go_to_previous_position();
    }

    /// Returns a chain to the driver, `len` bytes written.
    pub(super) fn add_used(&mut self, memory: &GuestMemoryMmap, head: u16, len: u32) -> Result<(), WorkerError> {
        self.used = true;
        let result = self.active.queue.add_used(memory, head, len);
        self.checked(result)
    }

    /// Asks the driver for a kick at the next chain it adds; true if there is one already.
    pub(super) fn arm(&mut self, memory: &GuestMemoryMmap) -> Result<bool, WorkerError> {
        let result = self.active.queue.enable_notification(memory);
        self.checked(result)
    }

    /// Tells the driver that it need not kick.
    pub(super) fn disarm(&mut self, memory: &GuestMemoryMmap) -> Result<(), WorkerError> {
        let result = self.active.queue.disable_notification(memory);
        self.checked(result)
    }

    /// Ends a batch: true if chains were returned in it and the driver wants to hear of them.
    pub(super) fn take_signal(&mut self, memory: &GuestMemoryMmap) -> Result<bool, WorkerError> {
        if !std::mem::take(&mut self.used) {
            return Ok(false);
        }
        if self.active.queue.event_idx_enabled() {
            let result = self.active.queue.needs_notification(memory);
            return self.checked(result);
        }
        // virtio-queue leaves the flag to us. The used index must be visible before it is read (§ 2.7.7.2).
        fence(Ordering::SeqCst);
        let flags = memory.load::<u16>(GuestAddress(self.active.queue.avail_ring()), Ordering::Relaxed);
        let flags = self.checked(flags.map_err(virtio_queue::Error::GuestMemory))?;
        Ok(u16::from_le(flags) & AVAIL_F_NO_INTERRUPT == 0)
    }

    fn checked<T>(&self, result: Result<T, virtio_queue::Error>) -> Result<T, WorkerError> {
        result.map_err(|source| WorkerError::Queue { queue: self.active.index, source })
    }
}
