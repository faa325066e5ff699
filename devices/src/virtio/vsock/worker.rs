//! The device's thread: one epoll over kicks, host sockets, requests and the stop event. It works in turns: take the
//! events, take what the guest sent, give it what there is, signal each queue at most once.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::connection::Readiness;
use super::guest_buffers::{Direction, GuestBuffers};
use super::host_side::{HostSide, Serving};
use super::muxer::{Change, ConnectionId, Muxer};
use super::packet::HEADER_SIZE;
use super::programs::Programs;
use super::ring::Ring;
use crate::GuestMem;
use crate::event_loop::take_kick;
use crate::virtio::{ActiveQueue, VirtioInterrupt};
use crate::worker_thread::{StopEvent, WorkerError};

/// Chains of one queue that are handled before the other queue, the host sockets and the stop event get their turn.
const CHAINS_PER_TURN: usize = 64;
/// Events taken from the kernel at once; more take another turn.
const EVENTS_PER_TURN: usize = 64;

// Tokens: the upper two bits say what an event is for, the others which of those.
const STOP: u32 = 0;
const RX_KICK: u32 = 1;
const TX_KICK: u32 = 2;
const WAKE: u32 = 3;
const CONNECTIONS: u32 = 1 << 30;
const LISTENERS: u32 = 2 << 30;
const WAITING: u32 = 3 << 30;
const IDENTIFIER_LIMIT: u32 = ConnectionId::LIMIT;

/// See the module's documentation.
pub(super) struct Worker {
    memory: GuestMem,
    interrupt: Arc<dyn VirtioInterrupt>,
    rx: Ring,
    tx: Ring,
    muxer: Muxer,
    programs: Programs,
    host: Arc<HostSide>,
    wake: EventFd,
    /// The transmit queue may have chains.
    tx_pending: bool,
    /// The receive queue had no chain when one was needed, and the driver was asked for a kick.
    rx_starved: bool,
    /// Dropped last: requests are refused from then on.
    _serving: Serving,
}

impl Worker {
    pub(super) fn new(
        memory: GuestMem,
        interrupt: Arc<dyn VirtioInterrupt>,
        rx: ActiveQueue,
        tx: ActiveQueue,
        muxer: Muxer,
        host: &Arc<HostSide>,
    ) -> io::Result<Self> {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let serving = host.serve(wake.try_clone()?);
        Ok(Worker {
            memory,
            interrupt,
            rx: Ring::new(rx),
            tx: Ring::new(tx),
            muxer,
            programs: Programs::new(host.clone(), LISTENERS, WAITING, IDENTIFIER_LIMIT),
            host: host.clone(),
            wake,
            // The driver may have filled the queues before it set DRIVER_OK.
            tx_pending: true,
            rx_starved: false,
            _serving: serving,
        })
    }

    /// Works until `stop` is requested.
    ///
    /// # Errors
    /// The driver broke a queue, or epoll failed. What only a connection suffers from is no error here.
    pub(super) fn run(mut self, stop: &StopEvent) -> Result<(), WorkerError> {
        let ready = Rc::new(RefCell::new(Vec::new()));
        let mut manager = EventManager::new_with_capacity(EVENTS_PER_TURN).map_err(WorkerError::Events)?;
        let id = manager.add_subscriber(Collector(ready.clone()));
        let mut ops = manager.event_ops(id).map_err(WorkerError::Events)?;
        self.watch_fixed(stop, &mut ops).map_err(WorkerError::Events)?;
        self.rx.disarm(&self.memory.memory())?;
        self.programs.sync(&mut ops);
        loop {
            let mut ops = manager.event_ops(id).map_err(WorkerError::Events)?;
            self.turn(ready.take(), &mut ops)?;
            if stop.is_requested() {
                return Ok(());
            }
            manager.run_with_timeout(self.timeout()).map_err(WorkerError::Events)?;
        }
    }

    fn watch_fixed(&self, stop: &StopEvent, ops: &mut EventOps) -> Result<(), event_manager::Error> {
        ops.add(Events::with_data(stop, STOP, EventSet::IN))?;
        ops.add(Events::with_data(self.rx.notify(), RX_KICK, EventSet::IN))?;
        ops.add(Events::with_data(self.tx.notify(), TX_KICK, EventSet::IN))?;
        ops.add(Events::with_data(&self.wake, WAKE, EventSet::IN))
    }

    /// How long to wait for events, as epoll takes it: milliseconds, -1 for ever.
    fn timeout(&self) -> i32 {
        let transmit = self.tx_pending && self.muxer.accepts_packets();
        let receive = self.muxer.wants_to_send() && !self.rx_starved;
        if transmit || receive {
            return 0;
        }
        let deadline = self.muxer.next_deadline().into_iter().chain(self.programs.next_deadline()).min();
        deadline.map_or(-1, |deadline| {
            // Rounded up, so that the deadline has passed when the wait is over.
            let left = deadline.saturating_duration_since(Instant::now()).as_micros().div_ceil(1000);
            i32::try_from(left).unwrap_or(i32::MAX)
        })
    }

    fn turn(&mut self, events: Vec<Events>, ops: &mut EventOps) -> Result<(), WorkerError> {
        for event in events {
            self.event(event, ops)?;
        }
        let now = Instant::now();
        if self.muxer.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.muxer.expire(now);
        }
        if self.programs.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.programs.expire(now, ops);
        }
        self.take_from_guest()?;
        self.give_to_guest()?;
        let memory = self.memory.memory();
        for ring in [&mut self.rx, &mut self.tx] {
            if ring.take_signal(&memory)? {
                self.interrupt.signal_used(ring.index());
            }
        }
        self.apply_changes(ops);
        Ok(())
    }

    fn event(&mut self, event: Events, ops: &mut EventOps) -> Result<(), WorkerError> {
        let (token, set) = (event.data(), event.event_set());
        match token {
            // The loop asks the stop event itself.
            STOP => {}
            RX_KICK => {
                take_kick(self.rx.notify())?;
                self.rx.disarm(&self.memory.memory())?;
                self.rx_starved = false;
            }
            TX_KICK => {
                take_kick(self.tx.notify())?;
                self.tx_pending = true;
            }
            WAKE => {
                take_kick(&self.wake)?;
                self.programs.sync(ops);
                for request in self.host.take_requests() {
                    self.muxer.connect(request.guest_port, request.reply);
                }
            }
            _ => {
                let identifier = token % IDENTIFIER_LIMIT;
                match token - identifier {
                    CONNECTIONS => self.muxer.host_event(ConnectionId(identifier), readiness(set)),
                    LISTENERS => self.programs.accept(identifier, ops),
                    _ => {
                        if let Some(wish) = self.programs.line_ready(identifier, ops) {
                            self.muxer.connect_program(wish.guest_port, wish.stream);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Takes packets from the transmit queue, until it is empty or the turn is over.
    fn take_from_guest(&mut self) -> Result<(), WorkerError> {
        if !self.tx_pending {
            return Ok(());
        }
        let memory = self.memory.memory();
        self.tx.disarm(&memory)?;
        for _ in 0..CHAINS_PER_TURN {
            if !self.muxer.accepts_packets() {
                return Ok(());
            }
            let Some(chain) = self.tx.next_chain(&memory)? else {
                if self.tx.arm(&memory)? {
                    self.tx.disarm(&memory)?;
                    continue;
                }
                self.tx_pending = false;
                return Ok(());
            };
            let head = chain.head_index();
            match GuestBuffers::gather(&memory, chain, Direction::Readable) {
                Ok(packet) => self.muxer.receive(&packet),
                Err(error) => tracing::debug!("vsock: chain {head} of the transmit queue dropped: {error}"),
            }
            self.tx.add_used(&memory, head, 0)?;
        }
        Ok(())
    }

    /// Fills receive buffers, until nobody has anything for the guest, it gave no more, or the turn is over.
    fn give_to_guest(&mut self) -> Result<(), WorkerError> {
        if self.rx_starved {
            return Ok(());
        }
        let memory = self.memory.memory();
        for _ in 0..CHAINS_PER_TURN {
            if !self.muxer.wants_to_send() {
                return Ok(());
            }
            let Some(chain) = self.rx.next_chain(&memory)? else {
                if self.rx.arm(&memory)? {
                    self.rx.disarm(&memory)?;
                    continue;
                }
                self.rx_starved = true;
                return Ok(());
            };
            let head = chain.head_index();
            let len = match GuestBuffers::gather(&memory, chain, Direction::Writable) {
                Ok(buffers) => match self.muxer.fill(&buffers) {
                    Some(len) => len,
                    None if buffers.len() > HEADER_SIZE => {
                        // Nobody had anything after all: the buffer waits for the next packet.
                        self.rx.undo_next();
                        continue;
                    }
                    // No room for payload, and only that is there to be sent: the guest must do better.
                    None => 0,
                },
                Err(error) => {
                    tracing::debug!("vsock: chain {head} of the receive queue returned empty: {error}");
                    0
                }
            };
            self.rx.add_used(&memory, head, len)?;
        }
        Ok(())
    }

    /// Tells epoll of the sockets that came, changed and went.
    fn apply_changes(&mut self, ops: &mut EventOps) {
        loop {
            let changes = self.muxer.take_changes();
            if changes.is_empty() {
                return;
            }
            for change in changes {
                let done = match &change {
                    Change::Watch(id, fd) => ops.add(interest(*id, *fd, false)),
                    Change::WatchWritable(id, fd, writable) => ops.modify(interest(*id, *fd, *writable)),
                    Change::Close(socket) => ops.remove(Events::empty(socket)),
                };
                if let Err(error) = done {
                    tracing::warn!("vsock: {change:?} failed: {error}");
                    if let Change::Watch(id, _) | Change::WatchWritable(id, _, _) = change {
                        // Adds the change that closes its socket.
                        self.muxer.host_failed(id);
                    }
                }
            }
        }
    }
}

/// Edge-triggered: a connection remembers what is ready, and one that waits for credit or receive buffers does not keep
/// the worker awake.
fn interest(id: ConnectionId, fd: std::os::fd::RawFd, writable: bool) -> Events {
    let mut set = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    if writable {
        set |= EventSet::OUT;
    }
    Events::with_data_raw(fd, CONNECTIONS + id.0, set)
}

fn readiness(set: EventSet) -> Readiness {
    let error = set.contains(EventSet::ERROR);
    Readiness {
        readable: error || set.intersects(EventSet::IN | EventSet::READ_HANG_UP),
        writable: error || set.contains(EventSet::OUT),
        hung_up: set.contains(EventSet::HANG_UP),
    }
}

/// event-manager's view of the worker: keeps the events for [`Worker::turn`], which handles them as one batch.
struct Collector(Rc<RefCell<Vec<Events>>>);

impl MutEventSubscriber for Collector {
    fn init(&mut self, _ops: &mut EventOps) {}

    fn process(&mut self, event: Events, _ops: &mut EventOps) {
        self.0.borrow_mut().push(event);
    }
}
