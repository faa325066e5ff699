//! Requests that wait for a file lock (SETLKW).
//!
//! One thread tries all of them in turn: whenever the guest gives a lock back, which is when most of them get theirs, and
//! every [`POLL`], for locks that are held by somebody on the host. The host's own waiting call would take a thread for
//! each request and a signal to interrupt it.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::deferred::Ticket;
use super::passthrough::{LockRequest, errno};

/// How late a lock given back by somebody on the host may be noticed.
const POLL: Duration = Duration::from_millis(20);

/// The waiting requests of one share.
pub(super) struct LockWaits {
    name: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waits: Vec<Wait>,
    thread: Option<JoinHandle<()>>,
    closed: bool,
}

struct Wait {
    /// The request's `unique`, by which INTERRUPT names it.
    unique: u64,
    lock: LockRequest,
    ticket: Ticket,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut state = self.lock();
        while !state.closed {
            // Oldest first.
            for wait in std::mem::take(&mut state.waits) {
                match attempt(&wait.lock) {
                    None => state.waits.push(wait),
                    Some(result) => wait.ticket.answer(result.map(|()| Vec::new())),
                }
            }
            state = if state.waits.is_empty() {
                self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
            } else {
                self.changed.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }
}

/// Tries once; `None` when somebody else holds the lock.
fn attempt(lock: &LockRequest) -> Option<io::Result<()>> {
    match lock.attempt() {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        result => Some(result),
    }
}

impl LockWaits {
    /// No waits. The thread, once there is a need for it, is called `name`.
    pub(super) fn new(name: String) -> Self {
        LockWaits { name, shared: Arc::default() }
    }

    /// Answers the ticket when the lock was had, or the request `unique` was interrupted.
    pub(super) fn add(&self, unique: u64, lock: LockRequest, ticket: Ticket) {
        let mut state = self.shared.lock();
        if state.thread.is_none() {
            let shared = self.shared.clone();
            match thread::Builder::new().name(self.name.clone()).spawn(move || shared.work()) {
                Ok(thread) => state.thread = Some(thread),
                Err(error) => {
                    tracing::warn!("no thread to wait for locks: {error}");
                    return ticket.answer(Err(errno(libc::ENOLCK)));
                }
            }
        }
        state.waits.push(Wait { unique, lock, ticket });
        self.shared.changed.notify_one();
    }

    /// A lock was given back.
    pub(super) fn try_again(&self) {
        if !self.shared.lock().waits.is_empty() {
            self.shared.changed.notify_one();
        }
    }

    /// INTERRUPT: the request answers EINTR, if it waits.
    pub(super) fn interrupt(&self, unique: u64) {
        let mut state = self.shared.lock();
        if let Some(index) = state.waits.iter().position(|wait| wait.unique == unique) {
            state.waits.remove(index).ticket.answer(Err(errno(libc::EINTR)));
        }
    }

    /// All of them answer EINTR.
    pub(super) fn interrupt_all(&self) {
        for wait in std::mem::take(&mut self.shared.lock().waits) {
            wait.ticket.answer(Err(errno(libc::EINTR)));
        }
    }
}

impl Drop for LockWaits {
    fn drop(&mut self) {
        self.interrupt_all();
        let mut state = self.shared.lock();
        state.closed = true;
        let thread = state.thread.take();
        drop(state);
        self.shared.changed.notify_one();
        // It never waits for anything but this.
        if let Some(Err(_)) = thread.map(JoinHandle::join) {
            tracing::error!("the thread that waits for locks panicked");
        }
    }
}
