//! One test of one commit: it is made, run, and told what came of it. Several threads do this side by side.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use guest_image::Progress;

use super::guest_run::{GuestEnd, GuestRun};
use super::history::Node;
use super::journal::{Journal, Request, Step};
use super::runner::Runner;
use super::search::Event;
use super::signature::{End, Observation};
use super::workshop::{Made, Making, Workshop};
use crate::report::check_results_dir;

/// Host trouble says nothing of a commit, so it is tried again before the commit is given up.
const TRIES_AGAINST_TROUBLE: u32 = 3;
/// A kernel that does not boot is given a second chance: an emulated CPU is not as sound as a real one.
const TRIES_TO_BOOT: u32 = 2;
/// Runs have numbered folders in this one, below the bisection's.
const RUNS: &str = "runs";

/// What to test.
#[derive(Clone, Debug)]
pub(super) struct Task {
    /// In the history.
    pub(super) node: Node,
    /// The commit or kernel.
    pub(super) id: String,
    /// What people are told.
    pub(super) name: String,
    /// Whether nothing was seen of it yet, so that a kernel that is byte for byte the same tells enough.
    pub(super) is_first: bool,
    /// Tests to tell when they passed.
    pub(super) interesting: BTreeSet<String>,
}

/// What all threads share.
#[derive(Debug)]
pub(super) struct Tester<'a> {
    request: &'a Request,
    /// There is one work tree, and a build takes all CPUs.
    workshop: Mutex<Workshop<'a>>,
    cache_dir: &'a Path,
    dir: PathBuf,
    next_run: AtomicU32,
    /// Kernels that were tested: hash, id, what was learned.
    known: Mutex<Vec<(String, String, Event)>>,
}

impl<'a> Tester<'a> {
    /// For the bisection that `journal` is of; what a killed run left there keeps its folder.
    ///
    /// # Errors
    /// The bisection's folder cannot be read.
    pub(super) fn new(
        request: &'a Request,
        journal: &Journal,
        workshop: Workshop<'a>,
        cache_dir: &'a Path,
    ) -> anyhow::Result<Self> {
        let runs = journal.dir().join(RUNS);
        let taken = match fs::read_dir(&runs) {
            Ok(entries) => entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).max(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| format!("failed to read {}", runs.display())),
        };
        let tester = Self {
            request,
            workshop: Mutex::new(workshop),
            cache_dir,
            dir: journal.dir().to_owned(),
            next_run: AtomicU32::new(taken.unwrap_or(0) + 1),
            known: Mutex::default(),
        };
        journal.steps().iter().for_each(|step| tester.learn(step));
        Ok(tester)
    }

    /// A step that is in the journal now.
    pub(super) fn learn(&self, step: &Step) {
        if let Some(sha256) = &step.sha256 {
            let known = (sha256.clone(), step.id.clone(), step.event.clone());
            self.known.lock().unwrap_or_else(PoisonError::into_inner).push(known);
        }
    }

    /// Makes and runs it; `None` when it was to stop, and then nothing is left of it.
    ///
    /// # Errors
    /// The machine cannot go on: no space, no compiler, a question that is wrong.
    pub(super) fn test(
        &self,
        task: &Task,
        runner: &mut dyn Runner,
        progress: &dyn Progress,
    ) -> anyhow::Result<Option<Step>> {
        let done = |event, sha256, build: Duration| Step {
            id: task.id.clone(),
            event,
            sha256,
            build_ms: milliseconds(build),
            test_ms: 0,
            run: None,
            notes: Vec::new(),
        };
        let mut workshop = self.workshop.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        let making = workshop.make(&task.id, progress)?;
        drop(workshop);
        let made = match making {
            Making::Interrupted => return Ok(None),
            Making::Failed(why) => {
                let why = format!("does not build: {why}");
                return Ok(Some(done(Event::Untestable { why }, None, begun.elapsed())));
            }
            Making::Made(made) => made,
        };
        if progress.interrupted() {
            return Ok(None);
        }
        if task.is_first
            && let Some(event) = self.known_from_its_twin(&task.id, &made.sha256)
        {
            return Ok(Some(Step { notes: made.notes, ..done(event, Some(made.sha256), made.took) }));
        }
        self.run(task, &made, runner, progress)
    }

    /// Removes what a step that is not wanted left.
    pub(super) fn forget(&self, step: &Step) {
        if let Some(run) = &step.run {
            // It is only in the way.
            let _ = fs::remove_dir_all(self.dir.join(run));
        }
    }

    /// What is known of a kernel that is byte for byte this one.
    fn known_from_its_twin(&self, id: &str, sha256: &str) -> Option<Event> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, twin, event) = known.iter().find(|(hash, other, _)| other != id && hash == sha256)?;
        match event {
            Event::Untestable { why } => Some(Event::Untestable { why: why.clone() }),
            Event::SameAs { other } => Some(Event::SameAs { other: other.clone() }),
            Event::Ran { .. } => Some(Event::SameAs { other: twin.clone() }),
            Event::Given { .. } => None,
        }
    }

    fn run(
        &self,
        task: &Task,
        made: &Made,
        runner: &mut dyn Runner,
        progress: &dyn Progress,
    ) -> anyhow::Result<Option<Step>> {
        let mut tries = 0;
        loop {
            tries += 1;
            let run = format!("{RUNS}/{:03}", self.next_run.fetch_add(1, Ordering::Relaxed));
            let results = self.dir.join(&run);
            check_results_dir(&results)?;
            progress.step(&format!("running {}", task.name));
            let begun = Instant::now();
            let guest = GuestRun {
                binary: &made.binary,
                question: &self.request.question,
                directory: &self.request.directory,
                kernel: made.kernel.as_deref(),
                cache_dir: self.cache_dir,
                results: &results,
                interesting: &task.interesting,
            };
            let event = match guest.run(runner, progress)? {
                GuestEnd::Interrupted => {
                    let _ = fs::remove_dir_all(&results);
                    return Ok(None);
                }
                GuestEnd::Seen(observation) => Event::Ran { observation },
                GuestEnd::BootFailed(why) if self.request.boot_failure_is_bad => {
                    Event::Ran { observation: Observation::of(End::BootFailed(why)) }
                }
                GuestEnd::BootFailed(_) if tries < TRIES_TO_BOOT => continue,
                GuestEnd::BootFailed(why) => Event::Untestable { why: format!("does not boot: {why}") },
                GuestEnd::Trouble(_) if tries < TRIES_AGAINST_TROUBLE => continue,
                GuestEnd::Trouble(why) => Event::Untestable { why: format!("no guest could be run: {why}") },
                GuestEnd::Untestable(why) => Event::Untestable { why },
            };
            return Ok(Some(Step {
                id: task.id.clone(),
                event,
                sha256: Some(made.sha256.clone()),
                build_ms: milliseconds(made.took),
                test_ms: milliseconds(begun.elapsed()),
                run: Some(run),
                notes: if made.took.is_zero() { Vec::new() } else { made.notes.clone() },
            }));
        }
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
