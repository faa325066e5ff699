//! What a run that did not come to its end left, for going on with it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use guest_image::suite::SuiteRun;
use wire::TestStatus;

use super::event_log::{self, SavedRunError};
use crate::schedule::Done;
use crate::session::{RunEvent, RunOutcome, TimedEvent};

/// A run's events up to where it was cut off.
#[derive(Clone, Debug)]
pub struct EarlierPart {
    dir: PathBuf,
    events: Vec<TimedEvent>,
    outcome: Option<RunOutcome>,
}

impl EarlierPart {
    /// Reads what a run left in `dir`.
    ///
    /// # Errors
    /// See [`SavedRunError`].
    pub fn read(dir: &Path) -> Result<Self, SavedRunError> {
        let (mut events, mut outcome) = (Vec::new(), None);
        event_log::read(dir, |event| match event.event {
            RunEvent::RunFinished { outcome: came_to } => outcome = Some(came_to),
            _ => events.push(event),
        })?;
        Ok(Self { dir: dir.to_path_buf(), events, outcome })
    }

    /// The results folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether the run came to its end, so that there is nothing to go on with.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.outcome == Some(RunOutcome::Completed)
    }

    /// The highest number of a guest that it had.
    #[must_use]
    pub fn guests(&self) -> u32 {
        self.events.iter().map(|event| event.guest).max().unwrap_or_default()
    }

    /// What it came to; `None` if it was killed, or still goes on.
    #[must_use]
    pub fn outcome(&self) -> Option<&RunOutcome> {
        self.outcome.as_ref()
    }

    /// When its last event was, milliseconds after it began.
    pub(super) fn ended_at_ms(&self) -> u64 {
        self.events.last().map_or(0, |event| event.at_ms)
    }

    /// All but its end.
    #[must_use]
    pub fn events(&self) -> &[TimedEvent] {
        &self.events
    }

    /// What is done of each suite. What is not, and will run again, is dropped from the events.
    #[must_use]
    pub fn settle(&mut self, suites: &[SuiteRun]) -> Vec<Done> {
        let reason = match self.outcome.take() {
            Some(RunOutcome::TimedOut { reason } | RunOutcome::CannotTest { reason }) => reason,
            _ => String::new(),
        };
        // The run's own deadline cut the test off that ran: it may well pass.
        let cut_off = |event: &RunEvent| matches!(event, RunEvent::TestFinished { status: TestStatus::Error, message, .. } if *message == reason);
        self.events.retain(|event| !cut_off(&event.event));
        let done: Vec<Done> = suites.iter().map(|suite| self.done(suite)).collect();
        let by_name: HashMap<&str, (&SuiteRun, &Done)> =
            suites.iter().zip(&done).map(|(suite, done)| (suite.plan.name.as_str(), (suite, done))).collect();
        self.events.retain(|event| match event.event.suite().and_then(|name| by_name.get(name)) {
            Some((suite, done)) => is_settled(&event.event, suite, done),
            None => true,
        });
        done
    }

    fn done(&self, suite: &SuiteRun) -> Done {
        let mut done = Done::default();
        let of_it = self.events.iter().filter(|event| event.event.suite() == Some(&suite.plan.name));
        for event in of_it {
            match &event.event {
                RunEvent::SuiteFinished { end: Some(_), .. } => done.ended = true,
                RunEvent::TestFinished { test, .. } if suite.has_one_result_per_test() => {
                    done.tests.extend(suite.test_of(test).map(str::to_owned));
                }
                RunEvent::ListedTestFinished { test, .. } => {
                    done.tests.insert(test.clone());
                }
                _ => {}
            }
        }
        done
    }
}

/// Whether this event stays, of what is done of its suite.
fn is_settled(event: &RunEvent, suite: &SuiteRun, done: &Done) -> bool {
    if done.ended {
        return true;
    }
    let is_done = |result: &str| suite.test_of(result).is_some_and(|test| done.tests.contains(test));
    match event {
        RunEvent::SuiteFinished { .. } | RunEvent::SuiteNotStarted { .. } => false,
        RunEvent::TestStarted { test, .. }
        | RunEvent::TestFinished { test, .. }
        | RunEvent::Artefact { test, .. }
        | RunEvent::Output { test: Some(test), .. } => is_done(test),
        _ => !done.tests.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use guest_image::suite::Manifest;

    use super::super::event_log::EVENTS;
    use super::*;

    fn suite(format: &str) -> SuiteRun {
        let text = format!(
            "name = 's'\ndescription = 'd'\nformat = '{format}'\n[build]\nmethod = 'source'\n[run]\nargv = ['run']\ncwd = '/'\n"
        );
        Manifest::parse("m", &text).unwrap().runs(&[], 0).remove(0)
    }

    fn part(events: &[RunEvent]) -> EarlierPart {
        let dir = tempfile::tempdir().unwrap();
        let line = |event: &RunEvent| {
            serde_json::to_string(&TimedEvent { at_ms: 7, guest: 1, event: event.clone() }).unwrap() + "\n"
        };
        let text: String = events.iter().map(line).collect();
        std::fs::write(dir.path().join(EVENTS), text + "{\"at_ms\":8,\"ev").unwrap();
        EarlierPart::read(dir.path()).unwrap()
    }

    fn started(test: &str) -> RunEvent {
        RunEvent::TestStarted { suite: "s".into(), test: test.into() }
    }

    fn result(test: &str, status: TestStatus, message: &str) -> RunEvent {
        RunEvent::TestFinished { suite: "s".into(), test: test.into(), status, duration_us: 1, message: message.into() }
    }

    fn suite_started() -> RunEvent {
        RunEvent::SuiteStarted { suite: "s".into() }
    }

    use TestStatus::{Error, Pass};

    #[test]
    fn a_run_that_was_killed_has_its_results_and_not_the_test_that_ran() {
        let events = [suite_started(), started("g/001"), result("g/001", Pass, ""), started("g/002")];
        let mut part = part(&events);
        let done = part.settle(&[suite("xfstests")]);
        assert_eq!(done, [Done { tests: ["g/001".to_owned()].into(), ended: false }]);
        let left: Vec<_> = part.events().iter().map(|event| event.event.clone()).collect();
        assert_eq!(left, events[..3]);
        assert_eq!((part.is_complete(), part.ended_at_ms()), (false, 7));
    }

    #[test]
    fn of_a_test_with_several_results_all_go_unless_it_is_done() {
        let finished = RunEvent::ListedTestFinished { suite: "s".into(), test: "d/a.t".into() };
        let events = [suite_started(), result("d/a.t:1", Pass, ""), finished.clone(), result("d/b.t:1", Pass, "")];
        let mut part = part(&events);
        let done = part.settle(&[suite("prove-tap")]);
        assert_eq!(done, [Done { tests: ["d/a.t".to_owned()].into(), ended: false }]);
        let left: Vec<_> = part.events().iter().map(|event| event.event.clone()).collect();
        assert_eq!(left, events[..3]);
    }

    #[test]
    fn a_suite_of_which_nothing_is_done_begins_anew() {
        let mut part = part(&[suite_started(), started("s")]);
        assert_eq!(part.settle(&[suite("exit-code")]), [Done::default()]);
        assert!(part.events().is_empty());
    }

    #[test]
    fn a_suite_that_came_to_its_end_stays_as_it_is() {
        let ended = RunEvent::SuiteFinished {
            suite: "s".into(),
            end: Some(crate::session::SuiteEnd::Exited(0)),
            duration_ms: 1,
        };
        let mut part = part(&[suite_started(), result("s", Pass, ""), ended]);
        assert!(part.settle(&[suite("exit-code")])[0].ended);
        assert_eq!(part.events().len(), 3);
    }

    #[test]
    fn a_test_that_the_runs_deadline_cut_off_runs_again_and_one_that_killed_its_guest_does_not() {
        let outcome = RunOutcome::TimedOut { reason: "too long".into() };
        let events = [
            suite_started(),
            result("g/001", Error, "the guest died"),
            result("g/002", Error, "too long"),
            RunEvent::SuiteFinished { suite: "s".into(), end: None, duration_ms: 1 },
            RunEvent::RunFinished { outcome },
        ];
        let mut part = part(&events);
        assert_eq!(part.settle(&[suite("xfstests")])[0].tests, ["g/001".to_owned()].into());
        assert_eq!(part.events().len(), 2);
    }
}
