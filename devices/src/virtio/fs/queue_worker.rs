//! The thread of one queue: takes chains, has them served, returns them, signals once per batch.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use event_manager::{EventOps, Events};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, OUT_HEADER_SIZE, ReplyRoom, Request, refuse};
use super::deferred::{Answers, Ticket};
use super::dispatch::{FuseServer, Outcome};
use super::fault::{Fault, Faults};
use super::flight::{Ending, FlightReader, QueueFlight, replies_with_entry};
use super::passthrough::prepare_thread;
use super::polling::Polling;
use super::stats::{FsStatsReader, Served};
use crate::GuestMem;
use crate::event_loop::{self, EventHandler, take_kick};
use crate::virtio::{ActiveQueue, VirtioInterrupt};
use crate::worker_thread::{StopEvent, WorkerError};

/// Token of the queue's kicks.
const QUEUE: u32 = 0;
/// Token of answers to requests that took long.
const ANSWERS: u32 = 1;

/// Serves one queue.
pub(super) struct QueueWorker {
    index: u16,
    queue: Queue,
    notify: EventFd,
    memory: GuestMem,
    /// With the DAX windows: see [`crate::virtio::Activation`].
    buffers: GuestMem,
    interrupt: Arc<dyn VirtioInterrupt>,
    server: Arc<FuseServer>,
    faults: Option<Arc<Faults>>,
    record: WorkersRecord,
    stop: StopEvent,
    polling: Polling,
    /// Requests that are answered later, by the number of their ticket. At most as many as the queue has entries: a driver
    /// that makes more available breaks the protocol, and waits.
    unanswered: HashMap<u64, Unanswered>,
    next_ticket: u64,
    answers: Arc<Answers>,
    /// Used entries that the driver was not told of yet.
    unsignalled: bool,
    /// Whether a malformed chain was reported: one line is enough, a guest must not fill the log.
    complained: bool,
}

/// Where a device's workers record what they serve.
#[derive(Clone, Debug)]
pub(super) struct WorkersRecord {
    pub(super) stats: FsStatsReader,
    pub(super) flight: FlightReader,
}

/// A request that is answered later.
struct Unanswered {
    head: u16,
    room: ReplyRoom,
    opcode: u32,
    bytes_in: u32,
    begun: Instant,
}

impl QueueWorker {
    /// `memory` is guest memory without DAX windows and with them.
    ///
    /// # Errors
    /// No eventfd could be had.
    pub(super) fn new(
        active: ActiveQueue,
        (memory, buffers): (GuestMem, GuestMem),
        interrupt: Arc<dyn VirtioInterrupt>,
        (server, faults): (Arc<FuseServer>, Option<Arc<Faults>>),
        record: WorkersRecord,
        (stop, polling): (StopEvent, Polling),
    ) -> Result<Self, WorkerError> {
        let ActiveQueue { index, queue, notify } = active;
        if let Some(flight) = record.flight.queue(index) {
            flight.start_over();
        }
        Ok(QueueWorker {
            index,
            queue,
            notify,
            memory,
            buffers,
            interrupt,
            server,
            faults,
            record,
            stop,
            polling,
            unanswered: HashMap::new(),
            next_ticket: 0,
            answers: Answers::new().map_err(WorkerError::EventFd)?,
            unsignalled: false,
            complained: false,
        })
    }

    /// Serves until asked to stop.
    pub(super) fn run(mut self) -> Result<(), WorkerError> {
        prepare_thread().map_err(|error| WorkerError::Other(format!("failed to set the thread up: {error}")))?;
        let stop = self.stop.clone();
        event_loop::run(&stop, &mut self)
    }

    /// Serves what is available until nothing is left and the driver knows that it has to kick again.
    fn drain(&mut self) -> Result<(), WorkerError> {
        let memory = self.memory.memory();
        let memory: &GuestMemoryMmap = &memory;
        loop {
            self.queue.disable_notification(memory).map_err(|source| self.broken(source))?;
            while let Some(chain) = self.pop(memory)? {
                let head = chain.head_index();
                let used = self.serve(memory, chain)?;
                if self.stop.is_requested() {
                    // The driver has reset the device, or is gone: its rings are its own again.
                    return Ok(());
                }
                if let Some(used) = used {
                    self.give_back(memory, head, used)?;
                }
                // Also while requests keep coming.
                self.give_answers(memory)?;
            }
            self.give_answers(memory)?;
            self.signal(memory)?;
            if self.poll(memory)? {
                continue;
            }
            if !self.queue.enable_notification(memory).map_err(|source| self.broken(source))? {
                return Ok(());
            }
        }
    }

    /// Looks for the next chain while that pays; true if there is one. While answers are due nothing is looked for, as they
    /// come by an event.
    fn poll(&mut self, memory: &GuestMemoryMmap) -> Result<bool, WorkerError> {
        let (index, next) = (self.index, self.queue.next_avail());
        let queue = &self.queue;
        let ready = || match queue.avail_idx(memory, Ordering::Acquire) {
            Ok(available) => Ok(available.0 != next),
            Err(source) => Err(WorkerError::Queue { queue: index, source }),
        };
        if self.unanswered.is_empty() { self.polling.wait(ready, || self.stop.is_requested()) } else { Ok(false) }
    }

    fn pop<'m>(&mut self, memory: &'m GuestMemoryMmap) -> Result<Option<Chain<'m>>, WorkerError> {
        let index = self.index;
        let next = self.queue.iter(memory).map(|mut available| available.next());
        next.map_err(|source| WorkerError::Queue { queue: index, source })
    }

    /// Serves one chain; returns its used length, `None` when it will be answered later.
    fn serve(&mut self, memory: &GuestMemoryMmap, chain: Chain<'_>) -> Result<Option<u32>, WorkerError> {
        let head = chain.head_index();
        let begun = Instant::now();
        let buffers = self.buffers.memory();
        match Request::parse(memory, &buffers, chain.clone()) {
            Ok(request) => {
                let fault = self.faults.as_ref().and_then(|faults| faults.strike(&request));
                if let Some(flight) = self.flight() {
                    flight.begin(&request, begun, fault.is_some());
                }
                let (errno, short) = fault.map_or((None, false), |fault| (fault.errno, fault.short));
                if fault.is_some_and(|fault| fault.waits()) {
                    // What is done already must not wait too.
                    self.signal(memory)?;
                }
                if fault.is_some_and(|fault| !self.inject(fault, request.header.opcode)) {
                    return Ok(None);
                }
                let ticket = || {
                    let room = !short && self.unanswered.len() < usize::from(self.queue.size());
                    room.then(|| {
                        self.next_ticket += 1;
                        let (opcode, bytes_in) = (request.header.opcode, request.header.len);
                        let unanswered = Unanswered { head, room: request.reply_room(), opcode, bytes_in, begun };
                        self.unanswered.insert(self.next_ticket, unanswered);
                        Ticket::new(self.next_ticket, self.answers.clone())
                    })
                };
                let outcome = match errno {
                    Some(error) => self.server.refuse(&request, error),
                    None => self.server.serve(&request, ticket),
                };
                match outcome {
                    Outcome::Used(used) => {
                        let shorter = short.then(|| request.shorten(used)).flatten();
                        let used = shorter.unwrap_or(used);
                        self.served(&request, begun, used);
                        Ok(Some(used))
                    }
                    Outcome::Deferred => {
                        if let Some(flight) = self.flight() {
                            flight.defer(self.next_ticket);
                        }
                        Ok(None)
                    }
                    Outcome::Unanswerable(reason) => Err(self.protest(&reason)),
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!("queue {} has a malformed chain (said once): {error}", self.index);
                }
                refuse(memory, chain, libc::EIO).map(Some).ok_or_else(|| self.protest(&error.to_string()))
            }
        }
    }

    /// Does what has to be done before a request is served that something is to happen to; false if it is not to be served
    /// any more, because the worker was asked to stop meanwhile.
    fn inject(&self, fault: Fault, opcode: u32) -> bool {
        if let Some(stats) = self.record.stats.queue(self.index) {
            stats.count_fault(opcode);
        }
        if fault.stall {
            tracing::info!("queue {} stalls on purpose, at a request with opcode {opcode}", self.index);
            return !self.stop.wait(None);
        }
        fault.delay.is_zero() || !self.stop.wait(Some(fault.delay))
    }

    /// Gives back the chains of requests that were answered meanwhile.
    fn give_answers(&mut self, memory: &GuestMemoryMmap) -> Result<(), WorkerError> {
        if self.unanswered.is_empty() {
            return Ok(());
        }
        for (number, answer) in self.answers.take() {
            let Some(unanswered) = self.unanswered.remove(&number) else { continue };
            let Unanswered { head, room, opcode, bytes_in, begun } = unanswered;
            let written = match &answer {
                Ok(body) => room.write(memory, 0, body),
                Err(error) => room.write(memory, error.raw_os_error().unwrap_or(libc::EIO), &[]),
            };
            let used = written.or_else(|| room.write(memory, libc::EIO, &[]));
            let used = used.ok_or_else(|| self.protest("its reply buffer is outside of guest memory"))?;
            let (took, error) = (begun.elapsed(), answer.as_ref().err().map(|e| e.raw_os_error().unwrap_or(libc::EIO)));
            self.count(Served { opcode, took, bytes_in, bytes_out: used, failed: error.is_some() });
            if let Some(flight) = self.flight() {
                flight.end_deferred(number, &Ending { took, bytes_out: used, error, ..Ending::default() });
            }
            self.give_back(memory, head, used)?;
        }
        Ok(())
    }

    /// Records a request that was served at once.
    fn served(&self, request: &Request<'_>, begun: Instant, used: u32) {
        let (took, opcode) = (begun.elapsed(), request.header.opcode);
        // Only a reply without a body can be an error.
        let error = (used as usize == OUT_HEADER_SIZE).then(|| request.reply_error()).flatten();
        let has_entry = used as usize > OUT_HEADER_SIZE && replies_with_entry(opcode);
        let entry = has_entry.then(|| request.reply_start()).flatten();
        let bytes_in = request.header.len.min(u32::try_from(request.readable).unwrap_or(u32::MAX));
        self.count(Served { opcode, took, bytes_in, bytes_out: used, failed: error.is_some() });
        if let Some(flight) = self.flight() {
            flight.end(&Ending { took, bytes_out: used, error, entry });
        }
    }

    fn flight(&self) -> Option<&QueueFlight> {
        self.record.flight.queue(self.index)
    }

    fn count(&self, served: Served) {
        if let Some(stats) = self.record.stats.queue(self.index) {
            stats.count(&served);
        }
    }

    fn give_back(&mut self, memory: &GuestMemoryMmap, head: u16, used: u32) -> Result<(), WorkerError> {
        self.queue.add_used(memory, head, used).map_err(|source| self.broken(source))?;
        self.unsignalled = true;
        Ok(())
    }

    /// Tells the driver of used entries, if there are new ones and it wants to know.
    fn signal(&mut self, memory: &GuestMemoryMmap) -> Result<(), WorkerError> {
        if std::mem::take(&mut self.unsignalled)
            && self.queue.needs_notification(memory).map_err(|source| self.broken(source))?
        {
            self.interrupt.signal_used(self.index);
        }
        Ok(())
    }

    fn broken(&self, source: virtio_queue::Error) -> WorkerError {
        WorkerError::Queue { queue: self.index, source }
    }

    fn protest(&self, reason: &str) -> WorkerError {
        WorkerError::Other(format!("the driver put a chain on queue {} that cannot be answered: {reason}", self.index))
    }
}

impl EventHandler for QueueWorker {
    fn start(&mut self, ops: &mut EventOps) -> Result<(), WorkerError> {
        ops.add(Events::with_data(&self.notify, QUEUE, EventSet::IN)).map_err(WorkerError::Events)?;
        ops.add(Events::with_data(self.answers.event(), ANSWERS, EventSet::IN)).map_err(WorkerError::Events)?;
        // Chains may have been made available before the device was activated, their kick lost.
        self.drain()
    }

    fn handle(&mut self, event: Events, _ops: &mut EventOps) -> Result<(), WorkerError> {
        self.polling.woken();
        take_kick(if event.data() == ANSWERS { self.answers.event() } else { &self.notify })?;
        self.drain()
    }
}
