//! A thread that serves a device: named, told to stop by an eventfd, joined with a deadline, and never silently dead.
//!
//! ```text
//! let worker = WorkerThread::spawn("fs[myfs1]", "fs[myfs1] q1", interrupt, move |stop| {
//!     event_loop::run(&stop, &mut handler)          // returns once stop is requested
//! })?;
//! ...
//! drop(worker);                                     // asks it to stop and joins it
//! ```
//!
//! A worker ends in one of three ways. It returns `Ok` after it was asked to stop: that is the only quiet one. It
//! returns an error, or `Ok` unasked, or panics: each becomes a [`DeviceFailure`] through [`VirtioInterrupt::fail`].
//! It does not end within the deadline (blocked in the host kernel): it is left behind, and that is a failure too.

use std::any::Any;
use std::error::Error;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::virtio::{DeviceFailure, VirtioInterrupt};

/// How long a worker may take to stop. One request on a slow disk fits in, a person waiting does not mind it.
pub const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Why a worker cannot go on: its text becomes the reason of a [`DeviceFailure`].
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The epoll instance could not be made, changed or waited for.
    #[error("failed to wait for events: {0:?}")]
    Events(event_manager::Error),
    /// An eventfd of the worker could not be read or written.
    #[error("failed to use an eventfd")]
    EventFd(#[source] io::Error),
    /// A queue's rings make no sense (an available index too far ahead, a head out of range) or left guest memory.
    #[error("the driver broke queue {queue}")]
    Queue {
        /// The queue's index.
        queue: u16,
        /// What virtio-queue says is wrong.
        #[source]
        source: virtio_queue::Error,
    },
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

/// How a worker learns that it should stop: readable (level-triggered) once it was asked to.
#[derive(Debug, Clone)]
pub struct StopEvent {
    shared: Arc<StopShared>,
}

#[derive(Debug)]
struct StopShared {
    event: EventFd,
    requested: OnceLock<Instant>,
}

impl StopEvent {
    /// A stop event that was not requested yet.
    ///
    /// # Errors
    /// No eventfd could be had.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(StopEvent { shared: Arc::new(StopShared { event, requested: OnceLock::new() }) })
    }

    /// True once the worker was asked to stop. Cheap: ask it between any two requests, because a guest that keeps a
    /// queue full would else keep the worker from ever looking at its events.
    pub fn is_requested(&self) -> bool {
        self.shared.requested.get().is_some()
    }

    /// Waits until the worker is asked to stop, at most for `limit` if there is one; true if it was asked.
    pub fn wait(&self, limit: Option<Duration>) -> bool {
        let until = limit.and_then(|limit| Instant::now().checked_add(limit));
        while !self.is_requested() {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            // SAFETY: `self` owns the descriptor and is borrowed for as long.
            let event = unsafe { BorrowedFd::borrow_raw(self.shared.event.as_raw_fd()) };
            let mut fds = [PollFd::new(&event, PollFlags::IN)];
            if let Err(error) = poll(&mut fds, timeout.as_ref())
                && error != Errno::INTR
            {
                tracing::warn!("a worker cannot wait: {error}");
                return self.is_requested();
            }
        }
        true
    }

    /// Asks the worker to stop; returns when that was asked first.
    pub fn request(&self) -> Instant {
        let asked = *self.shared.requested.get_or_init(Instant::now);
        if let Err(error) = self.shared.event.write(1) {
            // Only possible when the counter is full, and then it is readable already.
            tracing::debug!("stop event not written: {error}");
        }
        asked
    }
}

impl AsRawFd for StopEvent {
    fn as_raw_fd(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }
}

/// Owner of one worker. Dropping it stops and joins the thread; to stop several at once call
/// [`WorkerThread::request_stop`] on each before dropping the first.
pub struct WorkerThread {
    name: String,
    device: String,
    stop: StopEvent,
    interrupt: Arc<dyn VirtioInterrupt>,
    deadline: Duration,
    handle: Option<JoinHandle<()>>,
    /// Disconnected when the thread has done everything but return.
    ended: Receiver<()>,
}

impl WorkerThread {
    /// Starts `body` on a thread called `name` (Linux shows its first 15 bytes). `device` is what failures are
    /// reported for, through `interrupt`. `body` must return soon after its [`StopEvent`] becomes readable.
    ///
    /// # Errors
    /// No eventfd or no thread could be had.
    pub fn spawn<F>(device: &str, name: &str, interrupt: Arc<dyn VirtioInterrupt>, body: F) -> io::Result<Self>
    where
        F: FnOnce(StopEvent) -> Result<(), WorkerError> + Send + 'static,
    {
        let stop = StopEvent::new()?;
        let (ending, ended) = channel();
        let guard = Reporter { device: device.to_owned(), name: name.to_owned(), interrupt: interrupt.clone(), ending };
        let body_stop = stop.clone();
        let handle = thread::Builder::new().name(name.to_owned()).spawn(move || guard.run(body, body_stop))?;
        let (name, device) = (name.to_owned(), device.to_owned());
        Ok(WorkerThread { name, device, stop, interrupt, deadline: STOP_DEADLINE, handle: Some(handle), ended })
    }

    /// Changes how long stopping may take.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Asks the worker to stop, without waiting.
    pub fn request_stop(&self) {
        let _asked = self.stop.request();
    }

    /// True while the thread runs its body.
    pub fn is_running(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| !handle.is_finished())
    }

    fn join(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        // The deadline counts from the first request: several workers that are stuck together cost one deadline.
        let asked = self.stop.request();
        let left = self.deadline.saturating_sub(asked.elapsed());
        // Nothing is ever sent: the channel disconnects when the body has ended.
        if self.ended.recv_timeout(left) == Err(RecvTimeoutError::Timeout) {
            let waited = asked.elapsed().as_secs_f32();
            let reason = format!(
                "worker {:?} did not stop within {waited:.1} s and was left behind, likely blocked in the host's \
                 kernel; see /proc/self/task/*/stack",
                self.name
            );
            self.interrupt.fail(DeviceFailure { device: self.device.clone(), reason });
            return;
        }
        if handle.join().is_err() {
            // The body's panics are caught; this one came from reporting a failure.
            tracing::error!("worker {:?} panicked outside its body", self.name);
        }
    }
}

impl Drop for WorkerThread {
    fn drop(&mut self) {
        self.join();
    }
}

/// Runs on the worker: turns the way its body ended into a report.
struct Reporter {
    device: String,
    name: String,
    interrupt: Arc<dyn VirtioInterrupt>,
    ending: Sender<()>,
}

impl Reporter {
    fn run(self, body: impl FnOnce(StopEvent) -> Result<(), WorkerError>, stop: StopEvent) {
        let asked = stop.clone();
        // Whatever the body shared with others is behind locks that poison or is dropped with it.
        let reason = match catch_unwind(AssertUnwindSafe(|| body(stop))) {
            Ok(Ok(())) if asked.is_requested() => None,
            Ok(Ok(())) => Some("ended without being asked to".to_owned()),
            Ok(Err(error)) => Some(chain_text(&error)),
            Err(payload) => Some(format!("panicked: {}", panic_text(payload.as_ref()))),
        };
        if let Some(reason) = reason {
            let reason = format!("worker {:?}: {reason}", self.name);
            self.interrupt.fail(DeviceFailure { device: self.device, reason });
        }
        drop(self.ending);
    }
}

/// An error and its sources in one line.
fn chain_text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;
    use crate::virtio::test_support::RecordingInterrupt;

    fn wait_for(stop: &StopEvent) {
        while !stop.is_requested() {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_worker_that_stops_when_asked_reports_nothing() {
        let interrupt = Arc::new(RecordingInterrupt::default());
        let worker = WorkerThread::spawn("dev", "dev q0", interrupt.clone(), |stop| {
            assert_eq!(thread::current().name(), Some("dev q0"));
            wait_for(&stop);
            Ok(())
        })
        .unwrap();
        assert!(worker.is_running());
        drop(worker);
        assert_eq!(interrupt.failures(), []);
    }

    #[test]
    fn a_panic_becomes_a_failure_that_names_the_worker_and_the_message() {
        let interrupt = Arc::new(RecordingInterrupt::default());
        let worker = WorkerThread::spawn("dev", "dev q0", interrupt.clone(), |_| panic!("index {} is bad", 7)).unwrap();
        let failure = interrupt.wait_failure(Duration::from_secs(10)).unwrap();
        assert_eq!(failure.device, "dev");
        assert_eq!(failure.reason, r#"worker "dev q0": panicked: index 7 is bad"#);
        drop(worker);
        assert_eq!(interrupt.failures().len(), 1, "joining a dead worker adds no second failure");
    }

    #[test]
    fn an_error_becomes_a_failure_with_its_sources() {
        let interrupt = Arc::new(RecordingInterrupt::default());
        let error = WorkerError::EventFd(io::Error::from_raw_os_error(libc::EBADF));
        let _worker = WorkerThread::spawn("dev", "w", interrupt.clone(), |_| Err(error)).unwrap();
        let failure = interrupt.wait_failure(Duration::from_secs(10)).unwrap();
        assert_eq!(failure.reason, r#"worker "w": failed to use an eventfd: Bad file descriptor (os error 9)"#);
    }

    #[test]
    fn a_worker_that_ends_unasked_is_a_failure() {
        let interrupt = Arc::new(RecordingInterrupt::default());
        let _worker = WorkerThread::spawn("dev", "w", interrupt.clone(), |_| Ok(())).unwrap();
        let failure = interrupt.wait_failure(Duration::from_secs(10)).unwrap();
        assert_eq!(failure.reason, r#"worker "w": ended without being asked to"#);
    }

    #[test]
    fn a_worker_that_does_not_stop_is_left_behind_after_the_deadline_and_reported() {
        let interrupt = Arc::new(RecordingInterrupt::default());
        let barrier = Arc::new(Barrier::new(2));
        let held = barrier.clone();
        let worker = WorkerThread::spawn("dev", "stuck", interrupt.clone(), move |_| {
            held.wait();
            Ok(())
        })
        .unwrap()
        .with_deadline(Duration::from_millis(20));
        drop(worker);
        let failures = interrupt.failures();
        assert_eq!(failures.len(), 1);
        assert!(failures[0].reason.contains("did not stop within"), "{}", failures[0].reason);
        barrier.wait();
    }

    #[test]
    fn the_deadline_counts_from_the_first_request_to_stop() {
        let interrupt = Arc::new(RecordingInterrupt::default());
        let barrier = Arc::new(Barrier::new(2));
        let held = barrier.clone();
        let deadline = Duration::from_secs(2);
        let worker = WorkerThread::spawn("dev", "stuck", interrupt.clone(), move |_| {
            held.wait();
            Ok(())
        });
        let worker = worker.unwrap().with_deadline(deadline);
        worker.request_stop();
        thread::sleep(deadline);
        let start = Instant::now();
        drop(worker);
        assert!(start.elapsed() < deadline, "waited once more");
        assert_eq!(interrupt.failures().len(), 1);
        barrier.wait();
    }
}
