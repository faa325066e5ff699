//! The epoll loop that a worker thread runs, on event-manager: one handler, its events told apart by a token.
//!
//! ```text
//! const QUEUE: u32 = 0;
//!
//! impl EventHandler for Worker {
//!     fn start(&mut self, ops: &mut EventOps) -> Result<(), WorkerError> {
//!         ops.add(Events::with_data(&self.notify, QUEUE, EventSet::IN)).map_err(WorkerError::Events)
//!     }
//!     fn handle(&mut self, event: Events, ops: &mut EventOps) -> Result<(), WorkerError> {
//!         match event.data() { QUEUE => { take_kick(&self.notify)?; self.serve_queue() } _ => Ok(()) }
//!     }
//! }
//! ```

use std::io;
use std::time::Duration;

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::worker_thread::{StopEvent, WorkerError};

/// Events taken from the kernel at once. A worker has few sources; more just take another turn.
const EVENTS_PER_TURN: usize = 32;

/// What a worker does with its events.
pub trait EventHandler {
    /// Registers the first events. `ops.add(Events::with_data(&fd, token, EventSet::IN))`.
    ///
    /// # Errors
    /// Ends the loop.
    fn start(&mut self, ops: &mut EventOps) -> Result<(), WorkerError>;

    /// Handles one ready event; `event.data()` is the token it was registered with, `event.event_set()` what is ready.
    /// May add, modify and remove events. A removed fd must be removed from `ops` before it is closed.
    ///
    /// # Errors
    /// Ends the loop.
    fn handle(&mut self, event: Events, ops: &mut EventOps) -> Result<(), WorkerError>;

    /// How long the next turn may wait for events before [`EventHandler::timed_out`] is called; `None`: for ever.
    fn next_timeout(&self) -> Option<Duration> {
        None
    }

    /// Called when a turn waited as long as [`EventHandler::next_timeout`] said and saw no event.
    ///
    /// # Errors
    /// Ends the loop.
    fn timed_out(&mut self) -> Result<(), WorkerError> {
        Ok(())
    }
}

/// Runs `handler` until `stop` is requested.
///
/// # Errors
/// What the handler returned, or a failure of epoll.
pub fn run<H: EventHandler>(stop: &StopEvent, handler: &mut H) -> Result<(), WorkerError> {
    let mut manager = EventManager::new_with_capacity(EVENTS_PER_TURN).map_err(WorkerError::Events)?;
    let id = manager.add_subscriber(Turn { handler, stop: stop.clone(), outcome: Ok(()) });
    loop {
        let turn = manager.subscriber_mut(id).map_err(WorkerError::Events)?;
        std::mem::replace(&mut turn.outcome, Ok(()))?;
        if stop.is_requested() {
            return Ok(());
        }
        let timeout = turn.handler.next_timeout();
        // Rounded up, so that a timer is never early and never spins; epoll counts in milliseconds.
        let millis = timeout.map_or(-1, |t| i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
        let events = manager.run_with_timeout(millis).map_err(WorkerError::Events)?;
        if events == 0 && timeout.is_some() && !stop.is_requested() {
            manager.subscriber_mut(id).map_err(WorkerError::Events)?.handler.timed_out()?;
        }
    }
}

/// Takes the kicks that have gathered in a non-blocking eventfd; it is then no longer readable.
///
/// # Errors
/// The eventfd could not be read. That it had no kicks is none.
pub fn take_kick(event: &EventFd) -> Result<(), WorkerError> {
    match event.read() {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(WorkerError::EventFd(error)),
        _ => Ok(()),
    }
}

/// event-manager's view of a handler: keeps the first error, because its callbacks cannot return one.
struct Turn<'h, H> {
    handler: &'h mut H,
    stop: StopEvent,
    outcome: Result<(), WorkerError>,
}

impl<H: EventHandler> MutEventSubscriber for Turn<'_, H> {
    fn init(&mut self, ops: &mut EventOps) {
        // The token does not matter: the loop asks the stop event itself after every turn.
        let stop = Events::with_data(&self.stop, u32::MAX, EventSet::IN);
        self.outcome = ops.add(stop).map_err(WorkerError::Events).and_then(|()| self.handler.start(ops));
    }

    fn process(&mut self, event: Events, ops: &mut EventOps) {
        // After an error or a request to stop the rest of the turn's events are nobody's business.
        if self.outcome.is_ok() && !self.stop.is_requested() {
            self.outcome = self.handler.handle(event, ops);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    struct Counter {
        event: EventFd,
        stop: StopEvent,
        handled: usize,
        timeouts: usize,
        timeout: Option<Duration>,
        fail_at: usize,
    }

    impl Counter {
        fn new(stop: &StopEvent) -> Self {
            let event = EventFd::new(EFD_NONBLOCK).unwrap();
            Counter { event, stop: stop.clone(), handled: 0, timeouts: 0, timeout: None, fail_at: usize::MAX }
        }
    }

    impl EventHandler for Counter {
        fn start(&mut self, ops: &mut EventOps) -> Result<(), WorkerError> {
            ops.add(Events::with_data(&self.event, 7, EventSet::IN)).map_err(WorkerError::Events)
        }
        fn handle(&mut self, event: Events, _ops: &mut EventOps) -> Result<(), WorkerError> {
            assert_eq!(event.data(), 7);
            take_kick(&self.event)?;
            self.handled += 1;
            if self.handled == self.fail_at {
                return Err(WorkerError::Other("enough".into()));
            }
            self.stop.request();
            Ok(())
        }
        fn next_timeout(&self) -> Option<Duration> {
            self.timeout
        }
        fn timed_out(&mut self) -> Result<(), WorkerError> {
            self.timeouts += 1;
            if self.timeouts == 3 {
                self.stop.request();
            }
            Ok(())
        }
    }

    #[test]
    fn events_reach_the_handler_with_their_token() {
        let stop = StopEvent::new().unwrap();
        let mut handler = Counter::new(&stop);
        handler.event.write(1).unwrap();
        run(&stop, &mut handler).unwrap();
        assert_eq!(handler.handled, 1);
    }

    #[test]
    fn a_request_to_stop_ends_a_loop_that_waits() {
        let stop = StopEvent::new().unwrap();
        let mut handler = Counter::new(&stop);
        thread::scope(|scope| {
            let looping = scope.spawn(|| run(&stop, &mut handler));
            thread::sleep(Duration::from_millis(10));
            stop.request();
            looping.join().unwrap().unwrap();
        });
        assert_eq!(handler.handled, 0);
    }

    #[test]
    fn an_error_of_the_handler_ends_the_loop() {
        let stop = StopEvent::new().unwrap();
        let mut handler = Counter::new(&stop);
        handler.fail_at = 1;
        handler.event.write(1).unwrap();
        assert_eq!(run(&stop, &mut handler).unwrap_err().to_string(), "enough");
    }

    #[test]
    fn a_timeout_is_told_and_never_early() {
        let stop = StopEvent::new().unwrap();
        let mut handler = Counter::new(&stop);
        handler.timeout = Some(Duration::from_micros(2_500));
        let start = std::time::Instant::now();
        run(&stop, &mut handler).unwrap();
        assert_eq!(handler.timeouts, 3);
        assert!(start.elapsed() >= Duration::from_micros(7_500));
    }

    #[test]
    fn registering_one_fd_twice_ends_the_loop_with_an_error() {
        struct Twice(EventFd);
        impl EventHandler for Twice {
            fn start(&mut self, ops: &mut EventOps) -> Result<(), WorkerError> {
                ops.add(Events::new(&self.0, EventSet::IN)).map_err(WorkerError::Events)?;
                ops.add(Events::new(&self.0, EventSet::IN)).map_err(WorkerError::Events)
            }
            fn handle(&mut self, _event: Events, _ops: &mut EventOps) -> Result<(), WorkerError> {
                Ok(())
            }
        }
        let stop = StopEvent::new().unwrap();
        let error = run(&stop, &mut Twice(EventFd::new(EFD_NONBLOCK).unwrap())).unwrap_err();
        assert!(matches!(error, WorkerError::Events(_)), "{error}");
    }
}
