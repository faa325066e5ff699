//! A [`VirtioInterrupt`] that remembers what it was told, and lets a test wait for it.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::virtio::{DeviceFailure, VirtioInterrupt};

/// Counts signals and keeps failures.
#[derive(Debug, Default)]
pub struct RecordingInterrupt {
    state: Mutex<Recorded>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Recorded {
    used: HashMap<u16, usize>,
    config: usize,
    failures: Vec<DeviceFailure>,
}

impl RecordingInterrupt {
    /// How often queue `queue_index` was signalled so far.
    pub fn used_signals(&self, queue_index: u16) -> usize {
        self.lock().used.get(&queue_index).copied().unwrap_or(0)
    }

    /// How often a configuration change was signalled so far.
    pub fn config_signals(&self) -> usize {
        self.lock().config
    }

    /// Every failure so far, in order.
    pub fn failures(&self) -> Vec<DeviceFailure> {
        self.lock().failures.clone()
    }

    /// Waits until queue `queue_index` was signalled at least `count` times; false when `timeout` passed first.
    #[must_use]
    pub fn wait_used_signals(&self, queue_index: u16, count: usize, timeout: Duration) -> bool {
        self.wait(timeout, |recorded| recorded.used.get(&queue_index).is_some_and(|n| *n >= count))
    }

    /// Waits for the first failure; `None` when `timeout` passed first.
    #[must_use]
    pub fn wait_failure(&self, timeout: Duration) -> Option<DeviceFailure> {
        self.wait(timeout, |recorded| !recorded.failures.is_empty());
        self.lock().failures.first().cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, timeout: Duration, reached: impl Fn(&Recorded) -> bool) -> bool {
        let outcome = self.changed.wait_timeout_while(self.lock(), timeout, |recorded| !reached(recorded));
        let (recorded, _) = outcome.unwrap_or_else(PoisonError::into_inner);
        reached(&recorded)
    }

    fn record(&self, change: impl FnOnce(&mut Recorded)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

impl VirtioInterrupt for RecordingInterrupt {
    fn signal_used(&self, queue_index: u16) {
        self.record(|recorded| *recorded.used.entry(queue_index).or_default() += 1);
    }

    fn signal_config(&self) {
        self.record(|recorded| recorded.config += 1);
    }

    fn fail(&self, failure: DeviceFailure) {
        self.record(|recorded| recorded.failures.push(failure));
    }
}
