//! Failing tests run again, each alone in a fresh guest: is the failure the test's own?

use std::collections::BTreeMap;
use std::time::Instant;

use guest_image::suite::SuiteRun;

use super::guests::Guests;
use crate::report::Reporters;
use crate::schedule::{GuestPer, Policy, Schedule, crew};
use crate::session::exec_client::ForwardedSignals;
use crate::session::{RunEvent, RunOutcome, RunPlan};

/// More failing tests than this are no flakes.
const MOST_TESTS: usize = 50;

/// How to run them again.
pub(super) struct Retry<'a> {
    /// Times for each.
    pub(super) times: u32,
    pub(super) suites: &'a [SuiteRun],
    pub(super) jobs: usize,
    pub(super) plan: &'a RunPlan,
}

impl Retry<'_> {
    /// Runs what failed unexpectedly in a run that came to `outcome`, and tells the results. Gives what the run came to with that.
    pub(super) fn run(
        &self,
        outcome: &RunOutcome,
        guests: &Guests<'_>,
        signals: &ForwardedSignals,
        reporters: &mut Reporters,
    ) -> RunOutcome {
        let tests = self.tests(reporters);
        let count: usize = tests.values().map(Vec::len).sum();
        if count == 0 || matches!(outcome, RunOutcome::Interrupted | RunOutcome::CannotTest { .. }) {
            return outcome.clone();
        }
        if count > MOST_TESTS {
            let line =
                format!("{count} tests failed: too many to run each again (--retries is for up to {MOST_TESTS})");
            reporters.on_event(RunEvent::Note { line });
            return outcome.clone();
        }
        let policy = Policy { jobs: self.jobs, guest_per: GuestPer::Test, shard: None };
        for attempt in 1..=self.times {
            if self.plan.total_until.is_some_and(|until| Instant::now() >= until) {
                let line = "no time is left to run failed tests again (--timeout)".to_owned();
                reporters.on_event(RunEvent::Note { line });
                break;
            }
            let line = format!("running {count} failed tests again, each alone: attempt {attempt} of {}", self.times);
            reporters.on_event(RunEvent::Note { line });
            let these = self
                .suites
                .iter()
                .filter_map(|suite| Some((suite.clone(), tests.get(suite.plan.name.as_str())?.clone())));
            let schedule = Schedule::of_tests(these, policy).after_guests(guests.booted());
            let mut sink = |_, event| {
                if let RunEvent::TestFinished { suite, test, status, duration_us, message } = event {
                    reporters.on_event(RunEvent::TestRetried { suite, test, status, duration_us, message });
                }
            };
            let came_to =
                crew::run(schedule, self.jobs, self.plan, &|guest| guests.start(guest), &signals.signals, &mut sink);
            if matches!(came_to, RunOutcome::Interrupted | RunOutcome::CannotTest { .. }) {
                let why = crate::report::outcome_in_words(&came_to).unwrap_or_default();
                reporters.on_event(RunEvent::Note { line: format!("no failed test runs again any more: {why}") });
                return if came_to == RunOutcome::Interrupted { came_to } else { outcome.clone() };
            }
        }
        outcome.clone()
    }

    /// The listed tests that failed unexpectedly, by suite; of a suite that is one whole there are none.
    fn tests(&self, reporters: &Reporters) -> BTreeMap<&str, Vec<String>> {
        let mut tests: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (suite, result) in reporters.bad_results() {
            let Some(run) = self.suites.iter().find(|run| run.plan.name == suite && run.listing.is_some()) else {
                continue;
            };
            // Of a test without a name nobody knows how to run it.
            let Some(test) = run.test_of(result).filter(|test| !wire::is_unnamed_test(test)) else { continue };
            let of_suite = tests.entry(&run.plan.name).or_default();
            if !of_suite.iter().any(|known| known == test) {
                of_suite.push(test.to_owned());
            }
        }
        tests
    }
}
