//! Whether the machine's timers work: where a hypervisor gets them wrong a sleep of milliseconds takes a minute, and
//! every deadline of a test with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// What is slept.
const SLEEP: Duration = Duration::from_millis(10);
/// A sleep that took less than this, milliseconds, shows that timers work.
const GOOD: u64 = 250;
/// How often to sleep until one is good. A busy host can make one long, or two; broken timers make all of them long.
const TRIES: usize = 8;
/// When no sleep has ended after this time, the answer is clear.
const GIVE_UP: Duration = Duration::from_secs(5);
/// Where the start took long by itself, the sleeper still gets this much time to have its turn.
const ITS_TURN: Duration = Duration::from_secs(1);

/// Sleeps under way in a thread of their own, while the start goes on.
#[derive(Debug)]
pub struct TimerCheck {
    started: Instant,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The shortest sleep so far, milliseconds.
    shortest: AtomicU64,
    /// How many tries are left.
    left: AtomicU64,
}

impl TimerCheck {
    /// Begins to sleep.
    #[must_use]
    pub fn start() -> Self {
        let shared = Arc::new(Shared { shortest: AtomicU64::new(u64::MAX), left: AtomicU64::new(TRIES as u64) });
        let report = Arc::clone(&shared);
        let begun = thread::Builder::new().name("timer-check".into()).spawn(move || {
            while report.left.load(Ordering::Acquire) > 0 {
                let start = Instant::now();
                thread::sleep(SLEEP);
                let took = milliseconds(start);
                report.shortest.fetch_min(took, Ordering::AcqRel);
                if took < GOOD {
                    report.left.store(0, Ordering::Release);
                } else {
                    report.left.fetch_sub(1, Ordering::AcqRel);
                }
            }
        });
        if begun.is_err() {
            // No thread, no answer: the timers are not known to be bad.
            shared.shortest.store(0, Ordering::Release);
            shared.left.store(0, Ordering::Release);
        }
        Self { started: Instant::now(), shared }
    }

    /// How long the shortest sleep took, milliseconds; if none has ended for seconds, what has passed. Waits without
    /// sleeping: this must come to an end where timers are dead.
    #[must_use]
    pub fn finish(self) -> u64 {
        let asked = Instant::now();
        while self.shared.left.load(Ordering::Acquire) > 0
            && (self.started.elapsed() < GIVE_UP || asked.elapsed() < ITS_TURN)
        {
            thread::yield_now();
        }
        self.shared.shortest.load(Ordering::Acquire).min(milliseconds(self.started))
    }
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_takes_its_time_here() {
        let took = TimerCheck::start().finish();
        assert!((10..1000).contains(&took), "{took} ms");
    }

    #[test]
    fn sleeps_that_do_not_end_are_given_up() {
        let shared = Arc::new(Shared { shortest: AtomicU64::new(u64::MAX), left: AtomicU64::new(3) });
        let check = TimerCheck { started: Instant::now() - GIVE_UP, shared };
        assert!(check.finish() >= 5000);
    }

    #[test]
    fn one_long_sleep_among_short_ones_is_forgiven_and_only_long_ones_are_not() {
        for (shortest, expected) in [(11, 11), (1200, 1200)] {
            let shared = Arc::new(Shared { shortest: AtomicU64::new(shortest), left: AtomicU64::new(0) });
            let check = TimerCheck { started: Instant::now() - GIVE_UP, shared };
            assert_eq!(check.finish(), expected);
        }
    }
}
