//! What is known of a test beforehand, and what a result means beside that.

use serde::{Deserialize, Serialize};
use wire::TestStatus;

use super::failure_rate::FailureRate;

/// What a baseline expects of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expected {
    /// It passes; also that it is not skipped, which any other test may be.
    Pass,
    /// It fails.
    Fail,
    /// It cannot be judged: it hangs, or takes the guest along. That it only fails is as well.
    Error,
    /// The suite does not run it.
    Skip,
    /// It fails now and then, at a rate that was seen.
    Flaky,
    /// Whatever it does does not count.
    Expunge,
}

impl Expected {
    /// As it stands in a baseline.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Error => "error",
            Self::Skip => "skip",
            Self::Flaky => "flaky",
            Self::Expunge => "expunge",
        }
    }
}

/// What a baseline or a list says of a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Expectation {
    /// What it does.
    pub expect: Expected,
    /// How often it was seen to fail. Always there for [`Expected::Flaky`].
    #[serde(flatten)]
    pub seen: Option<FailureRate>,
    /// Why; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Where more is said; `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

impl Expectation {
    /// One line: the reason, and how often it fails if that is now and then.
    #[must_use]
    pub fn in_words(&self) -> String {
        match self.seen {
            Some(rate) if self.expect == Expected::Flaky && self.reason.is_empty() => format!("failed {rate}"),
            Some(rate) if self.expect == Expected::Flaky => format!("failed {rate}: {}", self.reason),
            _ => self.reason.clone(),
        }
    }
}

/// What a result means once it is compared with what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    /// Passed, as it should.
    Pass,
    /// Failed and should not have: a regression.
    Fail,
    /// Could not be judged, and that was not expected: a regression, too.
    Error,
    /// The suite decided not to run it.
    Skip,
    /// Skipped although the baseline says that it passes.
    NotRun,
    /// Failed, as the baseline says that it does.
    ExpectedFail,
    /// Passed although the baseline says that it does not.
    Fixed,
    /// Failed, as it does now and then, no more often than it did.
    Flaky,
    /// Failed more often than the rate that the baseline has seen explains.
    FlakyBeyondRate,
    /// Excluded by the user; whatever it did does not count.
    Expunged,
}

/// How often a test came to a result in this run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// Those that failed or could not be judged.
    pub failed: u32,
    /// Those that passed, too.
    pub ran: u32,
}

impl Attempts {
    /// Takes one more in.
    pub fn add(&mut self, status: TestStatus) {
        match status {
            TestStatus::Skip => {}
            TestStatus::Pass => self.ran = self.ran.saturating_add(1),
            TestStatus::Fail | TestStatus::Error => {
                self.ran = self.ran.saturating_add(1);
                self.failed = self.failed.saturating_add(1);
            }
        }
    }
}

impl Judgement {
    /// What `status` means for a test of which `known` is known; `attempts` has the result in it already.
    #[must_use]
    pub fn of(status: TestStatus, known: Option<&Expectation>, attempts: Attempts) -> Self {
        use Expected as E;
        let Some(known) = known else { return Self::without_baseline(status) };
        match (known.expect, status) {
            (E::Expunge, _) => Self::Expunged,
            (E::Pass, TestStatus::Skip) => Self::NotRun,
            (_, TestStatus::Skip) => Self::Skip,
            (E::Fail | E::Error | E::Skip, TestStatus::Pass) => Self::Fixed,
            (E::Fail, TestStatus::Fail) | (E::Error, TestStatus::Fail | TestStatus::Error) => Self::ExpectedFail,
            (E::Flaky, TestStatus::Fail | TestStatus::Error) => {
                if known.seen.is_some_and(|rate| rate.explains(attempts)) { Self::Flaky } else { Self::FlakyBeyondRate }
            }
            // A test that hangs where it used to fail got worse; one that ran where it used to be skipped and fails is news.
            (E::Pass | E::Fail | E::Skip | E::Flaky, status) => Self::without_baseline(status),
        }
    }

    fn without_baseline(status: TestStatus) -> Self {
        match status {
            TestStatus::Pass => Self::Pass,
            TestStatus::Fail => Self::Fail,
            TestStatus::Error => Self::Error,
            TestStatus::Skip => Self::Skip,
        }
    }

    /// Whether it should have been better: then the run is a regression.
    #[must_use]
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Fail | Self::Error | Self::NotRun | Self::FlakyBeyondRate)
    }

    /// Whether the test failed and somebody may want to know how.
    #[must_use]
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Fail | Self::Error | Self::ExpectedFail | Self::Flaky | Self::FlakyBeyondRate)
    }
}

#[cfg(test)]
mod tests {
    use TestStatus::{Error, Fail, Pass, Skip};

    use super::*;

    fn known(expect: Expected, seen: Option<(u32, u32)>) -> Expectation {
        let seen = seen.map(|(failed, runs)| FailureRate { failed, runs });
        Expectation { expect, seen, reason: String::new(), link: None }
    }

    #[test]
    fn without_a_baseline_a_status_means_itself() {
        for (status, judgement) in
            [(Pass, Judgement::Pass), (Fail, Judgement::Fail), (Skip, Judgement::Skip), (Error, Judgement::Error)]
        {
            assert_eq!(Judgement::of(status, None, Attempts::default()), judgement);
        }
    }

    #[test]
    fn every_result_is_judged_by_what_was_expected_and_worse_than_that_is_a_regression() {
        use Judgement as J;
        // What is expected; what pass, fail, error and skip mean then.
        for (expect, means) in [
            (Expected::Pass, [J::Pass, J::Fail, J::Error, J::NotRun]),
            (Expected::Fail, [J::Fixed, J::ExpectedFail, J::Error, J::Skip]),
            (Expected::Error, [J::Fixed, J::ExpectedFail, J::ExpectedFail, J::Skip]),
            (Expected::Skip, [J::Fixed, J::Fail, J::Error, J::Skip]),
            (Expected::Expunge, [J::Expunged; 4]),
        ] {
            for (status, judgement) in [Pass, Fail, Error, Skip].into_iter().zip(means) {
                let mut attempts = Attempts::default();
                attempts.add(status);
                let judged = Judgement::of(status, Some(&known(expect, None)), attempts);
                assert_eq!(judged, judgement, "{expect:?} {status:?}");
            }
        }
    }

    #[test]
    fn a_flaky_test_may_fail_as_often_as_it_did_and_passing_is_no_news() {
        let flaky = known(Expected::Flaky, Some((1, 11)));
        let judge = |status, failed, ran| Judgement::of(status, Some(&flaky), Attempts { failed, ran });
        assert_eq!(judge(Pass, 0, 1), Judgement::Pass);
        assert_eq!(judge(Skip, 0, 0), Judgement::Skip);
        assert_eq!(judge(Fail, 1, 1), Judgement::Flaky);
        assert_eq!(judge(Error, 1, 2), Judgement::Flaky);
        assert_eq!(judge(Fail, 3, 3), Judgement::FlakyBeyondRate);
    }

    #[test]
    fn only_what_should_have_been_better_is_bad() {
        for (judgement, bad, failure) in [
            (Judgement::Pass, false, false),
            (Judgement::Fail, true, true),
            (Judgement::Error, true, true),
            (Judgement::Skip, false, false),
            (Judgement::NotRun, true, false),
            (Judgement::ExpectedFail, false, true),
            (Judgement::Fixed, false, false),
            (Judgement::Flaky, false, true),
            (Judgement::FlakyBeyondRate, true, true),
            (Judgement::Expunged, false, false),
        ] {
            assert_eq!((judgement.is_bad(), judgement.is_failure()), (bad, failure), "{judgement:?}");
        }
    }
}
