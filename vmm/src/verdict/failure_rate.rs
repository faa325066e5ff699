//! How often a test fails, and whether so many failures more are what one would expect of it.

use std::fmt;

use serde::Serialize;

use super::judgement::Attempts;

/// So many failures of so many attempts are not chance any more when they are less probable than this.
const IMPROBABLE: f64 = 0.01;

/// How often a test was seen to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FailureRate {
    /// Runs in which it failed, at most `runs`.
    pub failed: u32,
    /// Runs in all, not 0.
    pub runs: u32,
}

impl FailureRate {
    /// Whether what happened now is within the rate: see [`within_rate`].
    #[must_use]
    pub fn explains(self, attempts: Attempts) -> bool {
        within_rate(attempts.failed, attempts.ran, self.failed, self.runs)
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { failed: self.failed.saturating_add(other.failed), runs: self.runs.saturating_add(other.runs) }
    }
}

impl fmt::Display for FailureRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} runs", self.failed, self.runs)
    }
}

/// Whether `failed` failures or more of `attempts` have a probability of at least 1 % for a test that fails as often as
/// `baseline_failed` of `baseline_runs` says, each attempt independent of the others.
#[must_use]
pub fn within_rate(failed: u32, attempts: u32, baseline_failed: u32, baseline_runs: u32) -> bool {
    if failed == 0 || (baseline_runs > 0 && baseline_failed >= baseline_runs) {
        return true;
    }
    if baseline_failed == 0 || baseline_runs == 0 {
        return false;
    }
    let rate = f64::from(baseline_failed) / f64::from(baseline_runs);
    at_least(failed, attempts.max(failed), rate) >= IMPROBABLE
}

/// The probability of `failed` failures or more of `attempts`: 1 less those of fewer, term by term (binomial distribution).
/// By logarithms, or the first terms of many attempts would be lost. `rate` is above 0 and below 1.
fn at_least(failed: u32, attempts: u32, rate: f64) -> f64 {
    let odds = (rate / (1.0 - rate)).ln();
    let attempts = f64::from(attempts);
    let mut term = attempts * (-rate).ln_1p();
    let mut fewer = 0.0;
    for count in 0..failed {
        fewer += term.exp();
        let count = f64::from(count);
        term += ((attempts - count) / (count + 1.0)).ln() + odds;
    }
    1.0 - fewer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_failure_is_within_every_rate() {
        for (failed, runs) in [(0, 0), (0, 5), (1, 2000), (5, 5)] {
            assert!(within_rate(0, 0, failed, runs) && within_rate(0, 7, failed, runs));
        }
    }

    #[test]
    fn one_failure_of_one_attempt_is_within_any_rate_down_to_one_in_a_hundred() {
        assert!(within_rate(1, 1, 1, 11));
        assert!(within_rate(1, 1, 2, 199));
        assert!(!within_rate(1, 1, 1, 101));
        // Enough attempts make a rare failure probable again.
        assert!(within_rate(1, 2, 1, 101));
    }

    #[test]
    fn what_never_failed_must_not_and_what_always_failed_may() {
        assert!(!within_rate(1, 1000, 0, 1000));
        assert!(!within_rate(1, 1, 0, 0));
        assert!(within_rate(9, 9, 4, 4));
    }

    #[test]
    fn the_probability_is_that_of_the_binomial_distribution() {
        // 1/11 three times of three: 0.00075; twice of two: 0.0083; twice of four: 0.0424.
        assert!((at_least(3, 3, 1.0 / 11.0) - (1.0f64 / 1331.0)).abs() < 1e-12);
        assert!((at_least(2, 2, 1.0 / 11.0) - (1.0f64 / 121.0)).abs() < 1e-12);
        let four = 1.0 - (10.0f64 / 11.0).powi(4) - 4.0 * (1.0 / 11.0) * (10.0f64 / 11.0).powi(3);
        assert!((at_least(2, 4, 1.0 / 11.0) - four).abs() < 1e-12);
        assert!(!within_rate(3, 3, 1, 11) && !within_rate(2, 2, 1, 11) && within_rate(2, 4, 1, 11));
        // A coin: 7 heads of 7 happen once in 128 times, 6 once in 64.
        assert!(!within_rate(7, 7, 1, 2) && within_rate(6, 6, 1, 2));
    }

    #[test]
    fn many_attempts_are_judged_as_few_are() {
        // Mean 50,000, deviation 158 and a bit; 2.33 deviations are the last percent.
        assert!(within_rate(50_300, 100_000, 1, 2));
        assert!(!within_rate(50_400, 100_000, 1, 2));
        assert!(!within_rate(100_000, 100_000, 1, 2));
        assert!(within_rate(u32::from(u16::MAX), u32::MAX, 1, 1000));
    }

    #[test]
    fn more_failures_than_attempts_are_as_many_attempts() {
        assert_eq!(within_rate(2, 0, 1, 11), within_rate(2, 2, 1, 11));
    }
}
