//! How long each part of a run may take.

use std::time::{Duration, Instant};

/// Deadlines of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// From the machine's start until its agent speaks (`--boot-timeout`).
    pub boot: Duration,
    /// For one test (`--test-timeout`); `None` for no limit. The agent keeps it; this side steps in when the agent does not.
    pub test: Option<Duration>,
    /// For the whole run (`--timeout`); `None` for no limit.
    pub total: Option<Duration>,
    /// While tests run, without a sign of the guest's agent, which is asked now and then: after that the guest hangs
    /// (`--hang-timeout`).
    pub agent: Duration,
    /// For a suite to list its tests.
    pub listing: Duration,
    /// From asking the guest to power off until it has.
    pub shutdown: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            boot: Duration::from_secs(60),
            test: Some(Duration::from_secs(300)),
            total: None,
            agent: Duration::from_secs(60),
            listing: Duration::from_secs(120),
            shutdown: Duration::from_secs(20),
        }
    }
}

impl Deadlines {
    /// The same on a host that is `factor` times slower; a factor below 1 shortens nothing.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        let factor = if factor.is_finite() { factor.max(1.0) } else { 1.0 };
        let scale =
            |limit: Duration| Duration::try_from_secs_f64(limit.as_secs_f64() * factor).unwrap_or(Duration::MAX);
        Self {
            boot: scale(self.boot),
            test: self.test.map(scale),
            total: self.total.map(scale),
            agent: scale(self.agent),
            listing: scale(self.listing),
            shutdown: scale(self.shutdown),
        }
    }

    /// How long this side waits for a sign of the running test: longer than the agent, which knows better.
    pub(super) fn silence(&self) -> Option<Duration> {
        self.test.map(|limit| limit.saturating_add(limit / 2).saturating_add(Duration::from_secs(15)))
    }
}

/// A length of time and the moment it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeLimit {
    /// The moment.
    pub until: Instant,
    /// The length, for messages.
    pub length: Duration,
}

impl TimeLimit {
    /// Starts now. `None` for a length that no clock can show.
    #[must_use]
    pub fn start(length: Duration) -> Option<Self> {
        Instant::now().checked_add(length).map(|until| Self { until, length })
    }

    /// What is left; zero once it is over.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_host_gets_more_time_and_a_fast_one_no_less() {
        let deadlines = Deadlines { total: Some(Duration::from_secs(100)), ..Deadlines::default() };
        let slow = deadlines.scaled(3.0);
        assert_eq!((slow.boot, slow.total), (Duration::from_secs(180), Some(Duration::from_secs(300))));
        for factor in [0.1, 1.0, -5.0, f64::NAN, f64::INFINITY] {
            assert_eq!(deadlines.scaled(factor), deadlines);
        }
        assert_eq!(deadlines.scaled(f64::MAX).boot, Duration::MAX);
    }
}
