//! When a queue's worker looks for the next request before it sleeps.
//!
//! A guest that waits for one answer after the other has its next request ready soon after it got the last. To sleep meanwhile
//! costs two switches of the CPU, and the guest an exit to wake the worker. To look for it costs the CPU's time. So a
//! worker looks only while that pays: after a wait that was short enough for it. KVM decides the same way how long a halted
//! vCPU is waited for (`virt/kvm/kvm_main.c`, `kvm_vcpu_halt`).

use std::thread;
use std::time::{Duration, Instant};

/// So many looks before the CPU is offered to others and the time is asked for.
const LOOKS: usize = 8;

/// One worker's waiting.
#[derive(Debug)]
pub(super) struct Polling {
    /// At most so long for one request; zero: never.
    longest: Duration,
    /// When there was nothing left to do, until there is something again.
    idle_since: Option<Instant>,
    /// Whether the last wait was not longer than `longest`.
    pays: bool,
}

impl Polling {
    /// Looks at most for `longest` at a time; not at all if that is zero.
    pub(super) fn new(longest: Duration) -> Self {
        Polling { longest, idle_since: None, pays: false }
    }

    /// Called when there is nothing left to do, before the driver is asked to kick again: looks for more with `ready`, if that
    /// pays. True as soon as that is; false if the worker should sleep, also because `give_up` says so.
    ///
    /// # Errors
    /// What `ready` failed with.
    pub(super) fn wait<E>(
        &mut self,
        mut ready: impl FnMut() -> Result<bool, E>,
        give_up: impl Fn() -> bool,
    ) -> Result<bool, E> {
        if self.longest.is_zero() {
            return Ok(false);
        }
        let began = Instant::now();
        if self.pays {
            loop {
                for _ in 0..LOOKS {
                    if ready()? {
                        return Ok(true);
                    }
                    std::hint::spin_loop();
                }
                if give_up() || began.elapsed() >= self.longest {
                    break;
                }
                // Whoever else has work goes first: another guest's vCPU, for one.
                thread::yield_now();
            }
        }
        self.idle_since = Some(began);
        Ok(false)
    }

    /// Called when the worker was woken.
    pub(super) fn woken(&mut self) {
        if let Some(since) = self.idle_since.take() {
            self.pays = since.elapsed() <= self.longest;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;

    /// How often `ready` was asked, and what came of it.
    fn wait(polling: &mut Polling, ready_at: usize) -> (usize, bool) {
        let looks = Cell::new(0);
        let ready = || {
            looks.set(looks.get() + 1);
            Ok::<_, Infallible>(looks.get() == ready_at)
        };
        let Ok(found) = polling.wait(ready, || false);
        (looks.get(), found)
    }

    #[test]
    fn it_looks_after_a_short_wait() {
        let mut polling = Polling::new(Duration::from_secs(3600));
        assert_eq!(wait(&mut polling, 1), (0, false), "nothing is known of this guest yet");
        polling.woken();
        assert_eq!(wait(&mut polling, 20), (20, true), "the last wait was short");
        assert_eq!(wait(&mut polling, 3), (3, true));
    }

    #[test]
    fn it_sleeps_after_a_long_wait() {
        let longest = Duration::from_millis(5);
        let mut polling = Polling { longest, idle_since: None, pays: true };
        let began = Instant::now();
        let (looks, found) = wait(&mut polling, usize::MAX);
        assert!(looks > 0 && !found && began.elapsed() >= longest, "{looks} looks in {:?}", began.elapsed());
        thread::sleep(Duration::from_millis(1));
        polling.woken();
        assert_eq!(wait(&mut polling, 1), (0, false), "what was waited for took longer");
    }

    #[test]
    fn it_never_looks_when_it_must_not_and_stops_when_told_to() {
        let mut never = Polling::new(Duration::ZERO);
        never.woken();
        assert_eq!(wait(&mut never, 1), (0, false));
        never.woken();
        assert_eq!(wait(&mut never, 1), (0, false));

        let mut long = Polling::new(Duration::from_secs(3600));
        assert_eq!(wait(&mut long, 1), (0, false));
        long.woken();
        let told = Cell::new(0);
        let stop = || told.replace(told.get() + 1) == 5;
        assert_eq!(long.wait(|| Ok::<_, Infallible>(false), stop), Ok(false));
    }

    #[test]
    fn a_failure_to_look_is_the_waits() {
        let mut polling = Polling::new(Duration::from_secs(3600));
        assert_eq!(wait(&mut polling, 1), (0, false));
        polling.woken();
        assert_eq!(polling.wait(|| Err("broken"), || false), Err("broken"));
    }
}
