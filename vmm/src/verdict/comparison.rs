//! What changed between two runs of the same tests.

use std::collections::HashMap;

use serde::Serialize;
use wire::TestStatus;

use crate::exit_code::ExitCode;
use crate::report::{SavedResult, SavedRun};
use crate::session::RunOutcome;

/// What became of a test from the old run to the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// It fails now and did not then; also one that was not there.
    Worse,
    /// It failed then and passes now.
    Better,
    /// It passed then and is skipped now, or failed and is skipped.
    NoLongerRun,
    /// It was skipped then and passes now.
    NowRun,
    /// Only the old run has it.
    Gone,
    /// Only the new run has it, and it does not fail.
    New,
    /// It failed then and does now.
    StillFailing,
    /// As before.
    Same,
}

impl Change {
    /// All, in the order in which a reader wants them.
    pub const ALL: [Self; 8] = [
        Self::Worse,
        Self::Better,
        Self::NoLongerRun,
        Self::NowRun,
        Self::Gone,
        Self::New,
        Self::StillFailing,
        Self::Same,
    ];

    fn of(old: Option<TestStatus>, new: Option<TestStatus>) -> Self {
        let bad = |status| matches!(status, TestStatus::Fail | TestStatus::Error);
        match (old, new) {
            (Some(_), None) => Self::Gone,
            (Some(old), Some(new)) if bad(old) && bad(new) => Self::StillFailing,
            (_, Some(new)) if bad(new) => Self::Worse,
            (None, _) => Self::New,
            (Some(TestStatus::Skip), Some(TestStatus::Pass)) => Self::NowRun,
            (Some(TestStatus::Skip), _) | (Some(TestStatus::Pass), Some(TestStatus::Pass)) => Self::Same,
            (Some(_), Some(TestStatus::Skip)) => Self::NoLongerRun,
            (Some(_), Some(_)) => Self::Better,
        }
    }
}

/// One test in both runs.
#[derive(Clone, Debug, Serialize)]
pub struct ComparedTest {
    /// The suite it belongs to.
    pub suite: String,
    /// Its name.
    pub test: String,
    /// What became of it.
    pub change: Change,
    /// Its result in the old run, if that has it.
    pub old: Option<TestStatus>,
    /// Its result in the new run, if that has it.
    pub new: Option<TestStatus>,
    /// What the new run says of it, else the old one; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Two runs side by side.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Every test of either run: those of the new one in their order, then what is gone.
    pub tests: Vec<ComparedTest>,
    /// Tests that have a result in both.
    pub in_both: usize,
    /// Microseconds that the tests which passed in both took in the old run and in the new one.
    pub durations_us: (u64, u64),
    /// Whether the new run came to its end.
    pub new_is_complete: bool,
}

impl Comparison {
    /// Compares `new` with `old`.
    #[must_use]
    pub fn new(old: &SavedRun, new: &SavedRun) -> Self {
        fn by_name(run: &SavedRun) -> HashMap<(&str, &str), &SavedResult> {
            run.results.iter().map(|result| ((result.suite.as_str(), result.test.as_str()), result)).collect()
        }
        let (before, after) = (by_name(old), by_name(new));
        let mut durations_us = (0u64, 0u64);
        let mut in_both = 0;
        let mut tests = Vec::new();
        for result in &new.results {
            let was = before.get(&(result.suite.as_str(), result.test.as_str()));
            if let Some(was) = was {
                in_both += 1;
                if (was.status, result.status) == (TestStatus::Pass, TestStatus::Pass) {
                    durations_us.0 = durations_us.0.saturating_add(was.duration_us);
                    durations_us.1 = durations_us.1.saturating_add(result.duration_us);
                }
            }
            tests.push(compared(was.copied(), Some(result)));
        }
        let gone = old.results.iter().filter(|r| !after.contains_key(&(r.suite.as_str(), r.test.as_str())));
        tests.extend(gone.map(|result| compared(Some(result), None)));
        let new_is_complete = new.outcome == Some(RunOutcome::Completed) && new.unfinished.is_empty();
        Self { tests, in_both, durations_us, new_is_complete }
    }

    /// The tests of which this is true.
    pub fn of(&self, change: Change) -> impl Iterator<Item = &ComparedTest> {
        self.tests.iter().filter(move |test| test.change == change)
    }

    /// 1 if a test got worse; 4 if the runs have no test in common; 125 if the new run did not come to its end, so that
    /// what is gone may have failed; else 0.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        if self.of(Change::Worse).next().is_some() {
            ExitCode::Regression
        } else if !self.new_is_complete {
            ExitCode::CannotTest
        } else if self.in_both == 0 {
            ExitCode::NothingRan
        } else {
            ExitCode::Success
        }
    }
}

fn compared(old: Option<&SavedResult>, new: Option<&SavedResult>) -> ComparedTest {
    let (suite, test) = new.or(old).map(|r| (r.suite.clone(), r.test.clone())).unwrap_or_default();
    let message = new.or(old).map(|r| r.message.clone()).unwrap_or_default();
    let (old, new) = (old.map(|r| r.status), new.map(|r| r.status));
    ComparedTest { suite, test, change: Change::of(old, new), old, new, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(results: &[(&str, TestStatus)]) -> SavedRun {
        let result = |(test, status): &(&str, TestStatus)| SavedResult {
            suite: "s".into(),
            test: (*test).into(),
            status: *status,
            duration_us: 10,
            message: String::new(),
        };
        SavedRun {
            outcome: Some(RunOutcome::Completed),
            results: results.iter().map(result).collect(),
            ..SavedRun::default()
        }
    }

    use TestStatus::{Error, Fail, Pass, Skip};

    #[test]
    fn every_pair_of_results_is_one_change() {
        let states = [None, Some(Pass), Some(Fail), Some(Error), Some(Skip)];
        for old in states {
            for new in states.into_iter().filter(|new| old.is_some() || new.is_some()) {
                let bad = |s| matches!(s, Some(Fail | Error));
                let change = Change::of(old, new);
                assert_eq!(change == Change::Worse, bad(new) && !bad(old), "{old:?} {new:?}");
                assert_eq!(change == Change::StillFailing, bad(new) && bad(old), "{old:?} {new:?}");
                assert_eq!(change == Change::Better, bad(old) && new == Some(Pass), "{old:?} {new:?}");
                assert_eq!(change == Change::Gone, new.is_none(), "{old:?} {new:?}");
            }
        }
        assert_eq!(Change::of(Some(Pass), Some(Skip)), Change::NoLongerRun);
        assert_eq!(Change::of(Some(Skip), Some(Pass)), Change::NowRun);
        assert_eq!(Change::of(None, Some(Skip)), Change::New);
        assert_eq!(Change::of(Some(Skip), Some(Skip)), Change::Same);
    }

    #[test]
    fn a_test_that_got_worse_decides_whatever_else_changed() {
        let old = run(&[("a", Pass), ("b", Fail), ("c", Pass)]);
        let new = run(&[("a", Fail), ("b", Pass), ("d", Pass)]);
        let comparison = Comparison::new(&old, &new);
        let changes: Vec<_> = comparison.tests.iter().map(|t| (t.test.as_str(), t.change)).collect();
        assert_eq!(changes, [("a", Change::Worse), ("b", Change::Better), ("d", Change::New), ("c", Change::Gone)]);
        assert_eq!((comparison.in_both, comparison.exit_code()), (2, ExitCode::Regression));
    }

    #[test]
    fn without_anything_worse_it_depends_on_whether_all_was_there_to_compare() {
        let old = run(&[("a", Pass), ("b", Fail)]);
        let code = |new: &SavedRun| Comparison::new(&old, new).exit_code();
        assert_eq!(code(&old), ExitCode::Success);
        assert_eq!(code(&run(&[("x", Pass)])), ExitCode::NothingRan);
        for outcome in [None, Some(RunOutcome::Interrupted)] {
            assert_eq!(code(&SavedRun { outcome, ..run(&[("a", Pass)]) }), ExitCode::CannotTest);
        }
        assert_eq!(code(&SavedRun { unfinished: vec!["t".into()], ..old.clone() }), ExitCode::CannotTest);
        assert_eq!(Comparison::new(&old, &old).durations_us, (10, 10), "of what passed in both");
    }
}
