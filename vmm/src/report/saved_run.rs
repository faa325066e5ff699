//! Reading a results folder back: what a run said, also one that was killed in the middle.

use std::path::Path;

use super::event_log::{self, SavedRunError};
use crate::session::{RunEvent, RunOutcome};
use crate::verdict::Tally;

/// What a results folder tells.
#[derive(Debug, Default)]
pub struct SavedRun {
    /// The folder's name at the time.
    pub name: String,
    /// `uname -r` of the guest, if it came so far.
    pub kernel_release: Option<String>,
    /// `None`: the run was killed, or still goes on.
    pub outcome: Option<RunOutcome>,
    /// Suites and results, judged without a baseline.
    pub tally: Tally,
}

impl SavedRun {
    /// Reads what a run left in `dir`.
    ///
    /// # Errors
    /// See [`SavedRunError`].
    pub fn read(dir: &Path) -> Result<Self, SavedRunError> {
        let mut run = Self::default();
        event_log::read(dir, |event| run.take(event.event))?;
        Ok(run)
    }

    fn take(&mut self, event: RunEvent) {
        self.tally.on_event(&event);
        match event {
            RunEvent::RunStarted { run, .. } => self.name = run,
            RunEvent::GuestReady { kernel_release, .. } => self.kernel_release = Some(kernel_release),
            RunEvent::RunFinished { outcome } => self.outcome = Some(outcome),
            _ => {}
        }
    }

    /// Whether it came to its end, and each suite to its own.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.outcome == Some(RunOutcome::Completed) && self.tally.suites().iter().all(|suite| suite.trouble.is_none())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use wire::TestStatus;

    use super::super::event_log::EVENTS;
    use super::*;

    const STARTED: &str = r#"{"at_ms":0,"event":"run-started","run":"r","suites":["s","t"],"host":"kvm"}"#;

    fn finished(test: &str, status: &str) -> String {
        format!(
            r#"{{"at_ms":1,"event":"test-finished","suite":"s","test":"{test}","status":"{status}","duration_us":7,"message":""}}"#
        )
    }

    fn read(text: &str) -> Result<SavedRun, SavedRunError> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(EVENTS), text).unwrap();
        SavedRun::read(dir.path())
    }

    fn ended(suite: &str, end: &str) -> String {
        format!(r#"{{"at_ms":2,"event":"suite-finished","suite":"{suite}","end":{end},"duration_ms":1}}"#)
    }

    const COMPLETED: &str = r#"{"at_ms":3,"event":"run-finished","outcome":{"kind":"completed"}}"#;

    #[test]
    fn a_whole_run_reads_back() {
        let lines =
            [STARTED, &finished("a", "pass"), &finished("b", "skip"), &ended("s", r#"{"exited":0}"#), COMPLETED, ""];
        let run = read(&lines.join("\n")).unwrap();
        assert_eq!((run.name.as_str(), run.is_complete()), ("r", true));
        let results: Vec<_> = run.tally.suites()[0].tests.iter().map(|r| (r.test.as_str(), r.status)).collect();
        assert_eq!(results, [("a", TestStatus::Pass), ("b", TestStatus::Skip)]);
    }

    #[test]
    fn suites_go_by_the_names_they_ran_under() {
        // unionmount is four suites: what was asked for is none of their names.
        let lines =
            [STARTED, &ended("s --ov", r#"{"exited":0}"#), &ended("s --ov --meta", r#"{"exited":0}"#), COMPLETED, ""];
        assert!(read(&lines.join("\n")).unwrap().is_complete());
    }

    #[test]
    fn a_suite_that_crashed_did_not_come_to_its_end() {
        for end in [r#"{"signaled":11}"#, r#"{"exited":3}"#, "null"] {
            let lines = [STARTED, &finished("a", "pass"), &ended("s", end), COMPLETED, ""];
            assert!(!read(&lines.join("\n")).unwrap().is_complete(), "{end}");
        }
    }

    #[test]
    fn a_run_that_was_killed_has_what_it_wrote() {
        let text = format!("{STARTED}\n{}\n{}", finished("a", "fail"), &finished("b", "pass")[..30]);
        let run = read(&text).unwrap();
        assert_eq!((&run.outcome, run.is_complete(), run.tally.counts().total()), (&None, false, 1));
    }

    #[test]
    fn what_is_no_results_folder_or_another_versions_is_one_error_with_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let error = SavedRun::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains(dir.path().to_str().unwrap()) && error.contains("no results folder"), "{error}");
        for text in ["{\"at_ms\":0,\"event\":\"from-the-future\"}\n", "garbage\n"] {
            let error = read(&format!("{STARTED}\n{text}")).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{error}");
        }
    }
}
