//! How many results there are of each kind.

use serde::Serialize;

use super::judgement::Judgement;

/// How many results of each judgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Passed.
    pub pass: u64,
    /// Failed unexpectedly.
    pub fail: u64,
    /// Could not be judged, unexpectedly.
    pub error: u64,
    /// Skipped by the suite.
    pub skip: u64,
    /// Skipped though expected to pass.
    pub not_run: u64,
    /// Failed as expected.
    pub expected_fail: u64,
    /// Passed though expected not to.
    pub fixed: u64,
    /// Failed within the rate at which they do.
    pub flaky: u64,
    /// Failed more often than that.
    pub flaky_beyond_rate: u64,
    /// Excluded.
    pub expunged: u64,
}

impl Counts {
    fn slot(&mut self, judgement: Judgement) -> &mut u64 {
        match judgement {
            Judgement::Pass => &mut self.pass,
            Judgement::Fail => &mut self.fail,
            Judgement::Error => &mut self.error,
            Judgement::Skip => &mut self.skip,
            Judgement::NotRun => &mut self.not_run,
            Judgement::ExpectedFail => &mut self.expected_fail,
            Judgement::Fixed => &mut self.fixed,
            Judgement::Flaky => &mut self.flaky,
            Judgement::FlakyBeyondRate => &mut self.flaky_beyond_rate,
            Judgement::Expunged => &mut self.expunged,
        }
    }

    /// One more result.
    pub(super) fn add(&mut self, judgement: Judgement) {
        *self.slot(judgement) += 1;
    }

    /// One result means something else than was thought.
    pub(super) fn change(&mut self, from: Judgement, to: Judgement) {
        *self.slot(from) -= 1;
        *self.slot(to) += 1;
    }

    /// Results of any kind.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ran() + self.skip + self.not_run + self.expunged
    }

    /// Tests that ran and count.
    #[must_use]
    pub fn ran(&self) -> u64 {
        self.pass + self.fixed + self.expected_fail + self.flaky + self.flaky_beyond_rate + self.fail + self.error
    }

    /// Tests that ran or should have.
    #[must_use]
    pub fn due(&self) -> u64 {
        self.ran() + self.not_run
    }

    /// Results that should have been better.
    #[must_use]
    pub fn bad(&self) -> u64 {
        self.fail + self.error + self.flaky_beyond_rate + self.not_run
    }
}
