//! What changed between two runs of the same tests.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::Serialize;
use wire::TestStatus;

use super::tally::Row;
use crate::exit_code::ExitCode;
use crate::report::SavedRun;

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
        let (before, after) = (Results::of(old), Results::of(new));
        let mut durations_us = (0u64, 0u64);
        let mut in_both = 0;
        let mut tests = Vec::new();
        for name in &after.order {
            let (was, is) = (before.by_name.get(name).copied(), after.by_name.get(name).copied());
            if let Some((was, is)) = was.zip(is) {
                in_both += 1;
                if (was.status, is.status) == (TestStatus::Pass, TestStatus::Pass) {
                    durations_us.0 = durations_us.0.saturating_add(was.duration_us);
                    durations_us.1 = durations_us.1.saturating_add(is.duration_us);
                }
            }
            tests.push(compared(*name, was, is));
        }
        let gone = before.order.iter().filter(|name| !after.by_name.contains_key(*name));
        tests.extend(gone.map(|name| compared(*name, before.by_name.get(name).copied(), None)));
        Self { tests, in_both, durations_us, new_is_complete: new.is_complete() }
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

/// Suite and test.
type Name<'r> = (&'r str, &'r str);

/// One result for each test of a run: the worst, where it has several.
struct Results<'r> {
    order: Vec<Name<'r>>,
    by_name: HashMap<Name<'r>, &'r Row>,
}

impl<'r> Results<'r> {
    fn of(run: &'r SavedRun) -> Self {
        let mut results = Results { order: Vec::new(), by_name: HashMap::new() };
        let rows = run.tally.suites().iter().flat_map(|suite| suite.tests.iter().map(|row| (suite.name.as_str(), row)));
        for (suite, row) in rows {
            let name = (suite, row.test.as_str());
            match results.by_name.entry(name) {
                Entry::Vacant(free) => {
                    free.insert(row);
                    results.order.push(name);
                }
                Entry::Occupied(mut known) if badness(row.status) > badness(known.get().status) => {
                    known.insert(row);
                }
                Entry::Occupied(_) => {}
            }
        }
        results
    }
}

/// How much a result is to worry about.
fn badness(status: TestStatus) -> u8 {
    match status {
        TestStatus::Skip => 0,
        TestStatus::Pass => 1,
        TestStatus::Fail => 2,
        TestStatus::Error => 3,
    }
}

fn compared((suite, test): Name<'_>, old: Option<&Row>, new: Option<&Row>) -> ComparedTest {
    let message = new.or(old).map(|row| row.message.clone()).unwrap_or_default();
    let (old, new) = (old.map(|row| row.status), new.map(|row| row.status));
    ComparedTest { suite: suite.to_owned(), test: test.to_owned(), change: Change::of(old, new), old, new, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{RunEvent, RunOutcome, SuiteEnd};
    use crate::verdict::Tally;

    fn run(results: &[(&str, TestStatus)]) -> SavedRun {
        run_that(Some(RunOutcome::Completed), Some(SuiteEnd::Exited(1)), results)
    }

    fn run_that(outcome: Option<RunOutcome>, end: Option<SuiteEnd>, results: &[(&str, TestStatus)]) -> SavedRun {
        let mut tally = Tally::default();
        // Accounts for the exit code.
        let results = results.iter().copied().chain([("known", TestStatus::Fail)]);
        for (test, status) in results {
            let (suite, test, message) = ("s".into(), test.into(), String::new());
            tally.on_event(&RunEvent::TestFinished { suite, test, status, duration_us: 10, message });
        }
        tally.on_event(&RunEvent::SuiteFinished { suite: "s".into(), end, duration_ms: 1 });
        SavedRun { outcome, tally, ..SavedRun::default() }
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
        assert_eq!(
            changes,
            [
                ("a", Change::Worse),
                ("b", Change::Better),
                ("d", Change::New),
                ("known", Change::StillFailing),
                ("c", Change::Gone)
            ]
        );
        assert_eq!((comparison.in_both, comparison.exit_code()), (3, ExitCode::Regression));
    }

    #[test]
    fn without_anything_worse_it_depends_on_whether_all_was_there_to_compare() {
        let results = [("a", Pass), ("b", Fail)];
        let old = run(&results);
        let code = |new: &SavedRun| Comparison::new(&old, new).exit_code();
        assert_eq!(code(&old), ExitCode::Success);
        let nothing_in_common = Comparison::new(&SavedRun::default(), &run(&[]));
        assert_eq!(nothing_in_common.exit_code(), ExitCode::Regression, "what fails and was not there");
        for outcome in [None, Some(RunOutcome::Interrupted)] {
            assert_eq!(code(&run_that(outcome, Some(SuiteEnd::Exited(1)), &results)), ExitCode::CannotTest);
        }
        for end in [None, Some(SuiteEnd::Signaled(11))] {
            assert_eq!(code(&run_that(Some(RunOutcome::Completed), end, &results)), ExitCode::CannotTest);
        }
        let empty = SavedRun { outcome: Some(RunOutcome::Completed), ..SavedRun::default() };
        assert_eq!(code(&empty), ExitCode::NothingRan);
        assert_eq!(Comparison::new(&old, &old).durations_us, (10, 10), "of what passed in both");
    }

    #[test]
    fn of_several_results_of_one_test_the_worst_counts() {
        let comparison = Comparison::new(&run(&[("a", Pass)]), &run(&[("a", Pass), ("a", Fail), ("a", Pass)]));
        assert_eq!(
            comparison.tests.iter().map(|t| t.change).collect::<Vec<_>>(),
            [Change::Worse, Change::StillFailing]
        );
    }
}
