//! Reading a results folder back: what a run said, also one that was killed in the middle.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use wire::TestStatus;

use crate::session::{RunEvent, RunOutcome, TimedEvent};

/// Where a run keeps its events.
const EVENTS: &str = "events.jsonl";

/// Why a results folder cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SavedRunError {
    /// The folder has no events.
    #[error("{} is no results folder: there is no {EVENTS} in it; give a folder that `vmm run` made", .0.display())]
    NoResults(PathBuf),
    /// The events cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A line in the middle is no event that this version knows.
    #[error("{}, line {line}: not an event that this vmm knows; read it with the version that wrote it", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// One test's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedResult {
    /// The suite it belongs to.
    pub suite: String,
    /// Its name.
    pub test: String,
    /// The result; the worst one where a run has several of one test.
    pub status: TestStatus,
    /// Microseconds; 0 when not known.
    pub duration_us: u64,
    /// Why it failed or was skipped; may be empty.
    pub message: String,
}

/// What a results folder tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SavedRun {
    /// The folder's name at the time.
    pub name: String,
    /// `uname -r` of the guest, if it came so far.
    pub kernel_release: Option<String>,
    /// `None`: the run was killed, or still goes on.
    pub outcome: Option<RunOutcome>,
    /// Suites that did not come to their end, or failed as a whole.
    pub unfinished: Vec<String>,
    /// In the order they came.
    pub results: Vec<SavedResult>,
}

impl SavedRun {
    /// Reads what a run left in `dir`.
    ///
    /// # Errors
    /// See [`SavedRunError`]. A last line that was cut off is none: the run was killed while it wrote that.
    pub fn read(dir: &Path) -> Result<Self, SavedRunError> {
        let path = dir.join(EVENTS);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(SavedRunError::NoResults(dir.to_path_buf()));
            }
            Err(source) => return Err(SavedRunError::Read { path, source }),
        };
        let mut reader = Reader::default();
        let mut lines = BufReader::new(file);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = lines.read_until(b'\n', &mut line);
            if read.map_err(|source| SavedRunError::Read { path: path.clone(), source })? == 0 {
                break;
            }
            match serde_json::from_slice::<TimedEvent>(&line) {
                Ok(event) => reader.take(event.event),
                Err(_) if !line.ends_with(b"\n") => break,
                Err(source) => return Err(SavedRunError::Unknown { path, line: number, source }),
            }
        }
        Ok(reader.finish())
    }
}

#[derive(Default)]
struct Reader {
    run: SavedRun,
    /// Where each test's result is.
    seen: HashMap<(String, String), usize>,
}

impl Reader {
    fn take(&mut self, event: RunEvent) {
        match event {
            RunEvent::RunStarted { run, suites, .. } => {
                self.run.name = run;
                self.run.unfinished = suites;
            }
            RunEvent::GuestReady { kernel_release, .. } => self.run.kernel_release = Some(kernel_release),
            RunEvent::TestFinished { suite, test, status, duration_us, message } => {
                self.add(SavedResult { suite, test, status, duration_us, message });
            }
            RunEvent::SuiteFinished { suite, end: Some(_), .. } => self.run.unfinished.retain(|name| *name != suite),
            RunEvent::RunFinished { outcome } => self.run.outcome = Some(outcome),
            _ => {}
        }
    }

    fn add(&mut self, result: SavedResult) {
        let key = (result.suite.clone(), result.test.clone());
        match self.seen.get(&key).and_then(|at| self.run.results.get_mut(*at)) {
            Some(known) if badness(result.status) > badness(known.status) => *known = result,
            Some(_) => {}
            None => {
                self.seen.insert(key, self.run.results.len());
                self.run.results.push(result);
            }
        }
    }

    fn finish(self) -> SavedRun {
        self.run
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

#[cfg(test)]
mod tests {
    use std::fs;

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

    #[test]
    fn a_whole_run_reads_back() {
        let lines = [
            STARTED,
            &finished("a", "pass"),
            &finished("b", "skip"),
            r#"{"at_ms":2,"event":"suite-finished","suite":"s","end":{"exited":0},"duration_ms":1}"#,
            r#"{"at_ms":3,"event":"run-finished","outcome":{"kind":"completed"}}"#,
            "",
        ];
        let run = read(&lines.join("\n")).unwrap();
        assert_eq!((run.name.as_str(), run.outcome), ("r", Some(RunOutcome::Completed)));
        assert_eq!(run.unfinished, ["t"]);
        let results: Vec<_> = run.results.iter().map(|r| (r.test.as_str(), r.status)).collect();
        assert_eq!(results, [("a", TestStatus::Pass), ("b", TestStatus::Skip)]);
    }

    #[test]
    fn a_run_that_was_killed_has_what_it_wrote() {
        let text = format!("{STARTED}\n{}\n{}", finished("a", "fail"), &finished("b", "pass")[..30]);
        let run = read(&text).unwrap();
        assert_eq!((run.outcome, run.results.len()), (None, 1));
    }

    #[test]
    fn of_several_results_of_one_test_the_worst_counts() {
        let order = ["pass", "fail", "pass"].map(|status| finished("a", status)).join("\n");
        let run = read(&format!("{STARTED}\n{order}\n")).unwrap();
        assert_eq!(run.results.iter().map(|r| r.status).collect::<Vec<_>>(), [TestStatus::Fail]);
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
