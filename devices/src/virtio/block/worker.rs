//! The thread that serves the queue.

use std::fs::File;
use std::sync::Arc;

use event_manager::{EventOps, Events};
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;

use super::request;
use crate::GuestMem;
use crate::event_loop::{EventHandler, take_kick};
use crate::virtio::{ActiveQueue, VirtioInterrupt};
use crate::worker_thread::{StopEvent, WorkerError};

pub(super) struct BlockWorker {
    pub(super) memory: GuestMem,
    pub(super) interrupt: Arc<dyn VirtioInterrupt>,
    pub(super) queue: ActiveQueue,
    pub(super) file: Arc<File>,
    pub(super) id: String,
    pub(super) sectors: u64,
    pub(super) stop: StopEvent,
}

impl EventHandler for BlockWorker {
    fn start(&mut self, ops: &mut EventOps) -> Result<(), WorkerError> {
        ops.add(Events::new(&self.queue.notify, EventSet::IN)).map_err(WorkerError::Events)
    }

    fn handle(&mut self, _event: Events, _ops: &mut EventOps) -> Result<(), WorkerError> {
        take_kick(&self.queue.notify)?;
        self.serve()
    }
}

impl BlockWorker {
    /// Serves the queue until it is empty and the driver will kick for the next chain.
    fn serve(&mut self) -> Result<(), WorkerError> {
        let memory = self.memory.memory();
        let index = self.queue.index;
        let broken = |source| WorkerError::Queue { queue: index, source };
        loop {
            self.queue.queue.disable_notification(&*memory).map_err(broken)?;
            // One look at the available index per batch: at most a queue's worth, so a guest that keeps adding chains
            // still gets its interrupts.
            let batch: Vec<_> = self.queue.queue.iter(memory.clone()).map_err(broken)?.collect();
            for chain in batch {
                if self.stop.is_requested() {
                    return Ok(());
                }
                let head = chain.head_index();
                let served = request::serve(&memory, chain, &self.file, &self.id, self.sectors);
                let used = served.map_err(|error| WorkerError::Other(error.to_string()))?;
                self.queue.queue.add_used(&*memory, head, used).map_err(broken)?;
            }
            if self.queue.queue.needs_notification(&*memory).map_err(broken)? {
                self.interrupt.signal_used(index);
            }
            if !self.queue.queue.enable_notification(&*memory).map_err(broken)? || self.stop.is_requested() {
                return Ok(());
            }
        }
    }
}
