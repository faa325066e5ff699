//! A bisection on disk: what was asked, in `request.json`, and what was learned, a line for each step, in `journal.jsonl`.
//!
//! A line is written and flushed to the disk before the next step begins. Whoever opens the folder again replays it: a
//! finished step is never repeated, and a line that was cut off is a step that was not finished.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::search::{Event, Rules};
use crate::config::UsageError;

/// A process that was forked and has not executed its program yet still holds its parent's locks, even if that was killed.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_POLL: Duration = Duration::from_millis(20);
/// Of [`Request`].
const VERSION: u32 = 1;
const REQUEST: &str = "request.json";
const JOURNAL: &str = "journal.jsonl";

/// What is searched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Subject {
    /// The commits of a kernel tree.
    Tree {
        /// The user's work tree.
        tree: PathBuf,
        /// What to configure from.
        config: Option<PathBuf>,
        /// Only commits that touch these.
        paths: Vec<String>,
        /// Follow only the first parent of a merge.
        first_parent: bool,
    },
    /// Kernels in order, as `--kernel` takes them.
    Kernels {
        /// All of them, the ends included.
        list: Vec<String>,
    },
    /// The commits of this program: `vmm` is built at each and runs the question.
    Server {
        /// The user's work tree.
        tree: PathBuf,
        /// Only commits that touch these.
        paths: Vec<String>,
        /// Follow only the first parent of a merge.
        first_parent: bool,
    },
}

/// What was asked, checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// Of this format.
    pub version: u32,
    /// What is searched.
    pub subject: Subject,
    /// The old ends, as commits or kernels.
    pub old: Vec<String>,
    /// The new end.
    pub new: String,
    /// How to search.
    pub rules: Rules,
    /// Whether a kernel that does not boot shows the failure that is looked for.
    pub boot_failure_is_bad: bool,
    /// `run SUITE…` or `exec … -- CMD`, as typed.
    pub question: Vec<String>,
    /// Where it was typed: paths in the question are relative to it.
    pub directory: PathBuf,
    /// The whole command, for the report.
    pub command: Vec<String>,
}

impl Request {
    /// The format that is written.
    pub const VERSION: u32 = VERSION;
}

/// One step: what was learned of one commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The commit or kernel.
    pub id: String,
    /// What was learned.
    pub event: Event,
    /// Hash of the kernel, or of the `vmm`, that was run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// What building it took, ms; of a commit's first step.
    #[serde(default)]
    pub build_ms: u64,
    /// What running it took, ms, the machine's start included.
    #[serde(default)]
    pub test_ms: u64,
    /// Where the run's output is, below this folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// What is worth knowing besides: options that vanished.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// An open bisection. Only one process has it at a time.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    file: File,
    steps: Vec<Step>,
}

impl Journal {
    /// Begins one in an empty folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn create(dir: &Path, request: &Request) -> anyhow::Result<Self> {
        let path = dir.join(REQUEST);
        let mut text = serde_json::to_vec_pretty(request)?;
        text.push(b'\n');
        let mut file = File::create_new(&path).with_context(|| format!("failed to make {}", path.display()))?;
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .with_context(|| format!("failed to write {}", path.display()))?;
        let journal = dir.join(JOURNAL);
        File::create_new(&journal).with_context(|| format!("failed to make {}", journal.display()))?;
        Ok(Self::open(dir)?.1)
    }

    /// Opens one to go on.
    ///
    /// # Errors
    /// [`UsageError`]: there is none, another version's, or another process works on it.
    pub fn open(dir: &Path) -> anyhow::Result<(Request, Self)> {
        let shown = dir.display();
        let text = match fs::read(dir.join(REQUEST)) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                bail!(UsageError(format!("{shown} holds no bisection; give the folder that `vmm bisect` named")))
            }
            Err(error) => return Err(error).with_context(|| format!("failed to read {shown}/{REQUEST}")),
        };
        let request: Request = serde_json::from_slice(&text).map_err(|error| {
            UsageError(format!("{shown}/{REQUEST}: not a bisection that this vmm can go on with: {error}"))
        })?;
        if request.version != VERSION {
            bail!(UsageError(format!("{shown} was begun by another version of vmm; go on with that")));
        }
        let path = dir.join(JOURNAL);
        let file = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file = file.with_context(|| format!("failed to open {}", path.display()))?;
        if !lock_soon(&file) {
            bail!(UsageError(format!("another vmm works on {shown} at this moment; wait for it, or end it")));
        }
        let steps = read_steps(&path, &file)?;
        Ok((request, Self { dir: dir.to_owned(), file, steps }))
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All steps so far.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Adds a step. It is on the disk when this returns.
    ///
    /// # Errors
    /// It cannot be written; then the step has not happened.
    pub fn add(&mut self, step: Step) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(&step)?;
        line.push(b'\n');
        let before = self.file.metadata().map(|meta| meta.len());
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        if let (Err(_), Ok(length)) = (&written, before) {
            // A full disk takes half a line, which would hide the next one.
            let _ = self.file.set_len(length);
        }
        written.with_context(|| format!("failed to write {}", self.dir.join(JOURNAL).display()))?;
        self.steps.push(step);
        Ok(())
    }
}

/// Locks it, unless another process has it locked and keeps it.
fn lock_soon(file: &File) -> bool {
    let end = Instant::now() + LOCK_PATIENCE;
    loop {
        if rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        thread::sleep(LOCK_POLL);
    }
}

/// Reads whole lines; what follows the last one was being written when the process died, and goes.
fn read_steps(path: &Path, file: &File) -> anyhow::Result<Vec<Step>> {
    let text = fs::read(path).with_context(|| format!("failed to read {}", path.display()))?;
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if whole < text.len() {
        file.set_len(whole as u64).with_context(|| format!("failed to shorten {}", path.display()))?;
    }
    let lines = text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let step = |(at, line): (usize, &[u8])| {
        serde_json::from_slice(line).map_err(|error| {
            UsageError(format!("{}, line {}: not a step that this vmm knows: {error}", path.display(), at + 1)).into()
        })
    };
    lines.enumerate().map(step).collect()
}

#[cfg(test)]
mod tests {
    use super::super::search::Repeat;
    use super::super::signature::Observation;
    use super::*;

    fn request() -> Request {
        Request {
            version: VERSION,
            subject: Subject::Kernels { list: vec!["a".into(), "b".into()] },
            old: vec!["a".into()],
            new: "b".into(),
            rules: Rules { repeat: Repeat::Auto, error: 0.01, fix: false, max_untestable: 9 },
            boot_failure_is_bad: false,
            question: vec!["run".into()],
            directory: "/".into(),
            command: vec!["vmm".into(), "bisect".into()],
        }
    }

    fn step(id: &str) -> Step {
        let event = Event::Ran { observation: Observation::pass() };
        Step { id: id.into(), event, sha256: None, build_ms: 1, test_ms: 2, run: None, notes: Vec::new() }
    }

    #[test]
    fn what_was_asked_and_learned_reads_back_and_a_cut_off_line_never_happened() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path(), &request()).unwrap();
        journal.add(step("a")).unwrap();
        journal.add(step("b")).unwrap();
        drop(journal);
        let path = dir.path().join(JOURNAL);
        let text = fs::read(&path).unwrap();
        for end in text.len() - 30..text.len() {
            fs::write(&path, &text[..end]).unwrap();
            let (read, mut journal) = Journal::open(dir.path()).unwrap();
            assert_eq!((read, journal.steps()), (request(), &[step("a")][..]));
            journal.add(step("b")).unwrap();
            assert_eq!(fs::read(&path).unwrap(), text);
        }
    }

    #[test]
    fn only_one_process_works_on_a_bisection_and_what_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = |dir: &Path| Journal::open(dir).unwrap_err();
        assert!(error(dir.path()).to_string().contains("holds no bisection"));
        let journal = Journal::create(dir.path(), &request()).unwrap();
        assert!(error(dir.path()).is::<UsageError>() && error(dir.path()).to_string().contains("another vmm"));
        drop(journal);
        fs::write(dir.path().join(JOURNAL), "nonsense\n").unwrap();
        assert!(error(dir.path()).to_string().contains("line 1"));
        let newer = Request { version: VERSION + 1, ..request() };
        fs::write(dir.path().join(REQUEST), serde_json::to_vec(&newer).unwrap()).unwrap();
        assert!(error(dir.path()).to_string().contains("another version"));
    }
}
