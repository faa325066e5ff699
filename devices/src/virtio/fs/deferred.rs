//! Requests that are answered later than the ones behind them.
//!
//! A queue's worker must not wait for a disk or for somebody's lock, so it hands such a request on with a [`Ticket`] and
//! goes on. Whoever holds the ticket answers it from any thread; the answer comes back to the worker, which alone touches
//! the queue and the guest's memory. After a reset there is no worker any more, and late answers go nowhere.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::passthrough::errno;

/// A reply's body, or its errno.
pub(super) type Answer = io::Result<Vec<u8>>;

/// The answers that one queue's worker has not seen yet.
#[derive(Debug)]
pub(super) struct Answers {
    ready: Mutex<Vec<(u64, Answer)>>,
    event: EventFd,
}

impl Answers {
    /// # Errors
    /// No eventfd could be had.
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Arc::new(Answers { ready: Mutex::new(Vec::new()), event }))
    }

    /// Readable when there are some.
    pub(super) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Takes them all, each with its ticket's number.
    pub(super) fn take(&self) -> Vec<(u64, Answer)> {
        std::mem::take(&mut *self.ready.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The duty to answer one request. Dropped unanswered, as by a panic, it answers EIO.
#[derive(Debug)]
pub(super) struct Ticket {
    number: u64,
    answers: Arc<Answers>,
    answer: Option<Answer>,
}

impl Ticket {
    pub(super) fn new(number: u64, answers: Arc<Answers>) -> Self {
        Ticket { number, answers, answer: None }
    }

    /// Answers the request.
    pub(super) fn answer(mut self, answer: Answer) {
        self.answer = Some(answer);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let answer = self.answer.take().unwrap_or_else(|| Err(errno(libc::EIO)));
        self.answers.ready.lock().unwrap_or_else(PoisonError::into_inner).push((self.number, answer));
        if let Err(error) = self.answers.event.write(1) {
            // Only possible when the counter is full, and then it is readable already.
            tracing::debug!("an answer was not announced: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_arrive_in_any_order_and_a_lost_ticket_is_an_error() {
        let answers = Answers::new().unwrap();
        let [one, two, three] = [1, 2, 3].map(|number| Ticket::new(number, answers.clone()));
        assert!(answers.event().read().is_err(), "nothing yet");
        two.answer(Ok(b"two".to_vec()));
        drop(three);
        one.answer(Err(errno(libc::EINTR)));
        assert_eq!(answers.event().read().unwrap(), 3);
        let answered = answers.take().into_iter();
        let codes: Vec<_> = answered.map(|(n, answer)| (n, answer.map_err(|error| error.raw_os_error()))).collect();
        let (io, interrupted) = (Some(libc::EIO), Some(libc::EINTR));
        assert_eq!(codes, [(2, Ok(b"two".to_vec())), (3, Err(io)), (1, Err(interrupted))]);
        assert!(answers.take().is_empty());
    }
}
