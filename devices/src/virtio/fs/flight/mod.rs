//! The flight recorder: the last requests of a share, and those that have no reply yet, for whoever wants to know why a
//! test failed or where a guest hangs.
//!
//! Each queue's worker writes to a ring of its own, a few words for each request, without a lock and without asking for
//! memory; whoever reads merges the rings. Requests that are answered later leave the ring for a list until then.

mod arguments;
mod record;
mod ring;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Tag;
use super::chain::Request;
use record::{begun, ended};
use ring::{Ring, Words};

pub(super) use arguments::replies_with_entry;
pub use record::Record;
pub(super) use record::{Ending, is_named};

/// How many requests of each queue are kept unless told otherwise: 96 KiB.
pub const FLIGHT_RECORDS: usize = 512;

/// Where to read a device's requests, also when the device itself was given away.
#[derive(Clone)]
pub struct FlightReader {
    shared: Arc<Shared>,
}

struct Shared {
    tag: Tag,
    epoch: Instant,
    queues: Box<[QueueFlight]>,
}

/// What one queue's worker writes to.
pub(super) struct QueueFlight {
    epoch: Instant,
    ring: Ring,
    /// Requests that are answered later, by the number of their ticket.
    deferred: Mutex<BTreeMap<u64, Words>>,
}

/// How far somebody has read each queue: see [`FlightReader::read_on`].
#[derive(Clone, Debug, Default)]
pub struct FlightPosition {
    queues: Vec<u64>,
}

/// What was served since somebody read last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlightNews {
    /// Requests that were answered, by the time they were taken.
    pub records: Vec<Record>,
    /// How many more there were, which nobody came to read in time.
    pub dropped: u64,
}

impl fmt::Debug for FlightReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FlightReader").field("share", &self.shared.tag).finish_non_exhaustive()
    }
}

fn nanoseconds(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.saturating_duration_since(from).as_nanos()).unwrap_or(u64::MAX)
}

impl QueueFlight {
    fn new(epoch: Instant, records: usize) -> Self {
        QueueFlight { epoch, ring: Ring::new(records), deferred: Mutex::default() }
    }

    fn deferred(&self) -> MutexGuard<'_, BTreeMap<u64, Words>> {
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was in flight when an earlier worker ended has no reply to wait for any more.
    pub(super) fn start_over(&self) {
        self.ring.withdraw();
        self.deferred().clear();
    }

    /// A request was taken off the queue, and a fault is to be injected into it if `injected`.
    pub(super) fn begin(&self, request: &Request<'_>, at: Instant, injected: bool) {
        self.ring.open(begun(request, nanoseconds(self.epoch, at), injected));
    }

    /// The request that was begun last is answered.
    pub(super) fn end(&self, ending: &Ending) {
        self.ring.close(ended(|word| self.ring.open_word(word), ending));
    }

    /// The request that was begun last is answered later.
    pub(super) fn defer(&self, ticket: u64) {
        if let Some(words) = self.ring.withdraw() {
            self.deferred().insert(ticket, words);
        }
    }

    /// A request is answered that was deferred.
    pub(super) fn end_deferred(&self, ticket: u64, ending: &Ending) {
        let Some(words) = self.deferred().remove(&ticket) else { return };
        self.ring.open(words.into_iter().enumerate());
        self.ring.close(ended(|word| self.ring.open_word(word), ending));
    }
}

impl FlightReader {
    /// Nothing recorded yet, for a device with so many queues, each with room for so many requests.
    pub(super) fn new(tag: Tag, queues: usize, records: usize) -> Self {
        let epoch = Instant::now();
        let queues = (0..queues).map(|_| QueueFlight::new(epoch, records)).collect();
        FlightReader { shared: Arc::new(Shared { tag, epoch, queues }) }
    }

    /// What a queue's worker records with.
    pub(super) fn queue(&self, index: u16) -> Option<&QueueFlight> {
        self.shared.queues.get(usize::from(index))
    }

    /// The share's tag.
    pub fn share(&self) -> &str {
        self.shared.tag.as_str()
    }

    fn queues(&self) -> impl Iterator<Item = (u16, &QueueFlight)> {
        (0..).zip(&self.shared.queues)
    }

    fn record(&self, queue: u16, words: &Words, now: Option<u64>) -> Record {
        Record::new(self.share(), queue, words, now)
    }

    /// The last requests, by the time they were taken, those in flight included.
    pub fn read(&self) -> Vec<Record> {
        let mut records = self.in_flight();
        for (index, queue) in self.queues() {
            let next = queue.ring.next();
            let kept = next.saturating_sub(queue.ring.len())..next;
            records.extend(kept.filter_map(|at| queue.ring.closed(at)).map(|words| self.record(index, &words, None)));
        }
        records.sort_by_key(|record| record.at_ns);
        records
    }

    /// The requests that have no reply yet, oldest first.
    pub fn in_flight(&self) -> Vec<Record> {
        let now = nanoseconds(self.shared.epoch, Instant::now());
        let mut records = Vec::new();
        for (index, queue) in self.queues() {
            let deferred: Vec<Words> = queue.deferred().values().copied().collect();
            let all = deferred.iter().copied().chain(queue.ring.opened());
            records.extend(all.map(|words| self.record(index, &words, Some(now))));
        }
        records.sort_by_key(|record| record.at_ns);
        records
    }

    /// What was answered since the call before with the same position. Called often enough, nothing is dropped.
    pub fn read_on(&self, position: &mut FlightPosition) -> FlightNews {
        position.queues.resize(self.shared.queues.len(), 0);
        let mut news = FlightNews::default();
        for ((index, queue), read) in self.queues().zip(&mut position.queues) {
            let next = queue.ring.next();
            for at in next.saturating_sub(queue.ring.len()).max(*read)..next {
                let words = queue.ring.closed(at);
                news.records.extend(words.map(|words| self.record(index, &words, None)));
                news.dropped += u64::from(words.is_none());
            }
            news.dropped += next.saturating_sub(queue.ring.len()).saturating_sub(*read);
            *read = next;
        }
        news.records.sort_by_key(|record| record.at_ns);
        news
    }
}
