//! The bisection itself: what the search wants is made and run, and what is learned is on the disk before anything else
//! happens.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use guest_image::Progress;

use super::git_log::{self, Mark};
use super::guest_run::{GuestEnd, GuestRun};
use super::history::Node;
use super::journal::{Journal, Request, Step};
use super::names::Names;
use super::runner::Runner;
use super::search::{Conclusion, Event, Next, Repeat, Search};
use super::signature::{End, Observation};
use super::workshop::{Made, Making, Workshop};
use crate::report::{check_results_dir, printable, write_atomically};

/// Host trouble says nothing of a commit, so it is tried again before the commit is given up.
const TRIES_AGAINST_TROUBLE: u32 = 3;
/// A kernel that does not boot is given a second chance: an emulated CPU is not as sound as a real one.
const TRIES_TO_BOOT: u32 = 2;
/// The log for git, in the bisection's folder.
pub const GIT_LOG: &str = "bisect.log";

/// How far it came.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// To its end.
    Done(Conclusion),
    /// The user wanted to stop.
    Interrupted,
}

/// Everything that a bisection works with.
pub struct Bisection<'a> {
    /// What was asked.
    pub request: &'a Request,
    /// What is learned goes here.
    pub journal: &'a mut Journal,
    /// What was learned so far.
    pub search: &'a mut Search,
    /// Builds.
    pub workshop: Workshop<'a>,
    /// Runs.
    pub runner: &'a mut dyn Runner,
    /// What commits are called.
    pub names: &'a Names,
    /// The cache's root.
    pub cache_dir: &'a Path,
}

impl Bisection<'_> {
    /// Goes on to the end. `say` prints a line.
    ///
    /// # Errors
    /// The machine cannot go on: no space, no compiler, a question that is wrong. All that was learned is on the disk.
    pub fn run(&mut self, progress: &dyn Progress, say: &dyn Fn(&str)) -> anyhow::Result<Outcome> {
        let mut told = None;
        loop {
            let node = match self.search.next() {
                Next::Done(conclusion) => return Ok(Outcome::Done(conclusion)),
                Next::Test(node) => node,
            };
            let in_search = node != self.search.history().new_end() && !self.search.history().old().contains(&node);
            if in_search && told != Some(node) {
                say(&self.outlook());
                told = Some(node);
            }
            let Some(step) = self.step(node, progress)? else { return Ok(Outcome::Interrupted) };
            self.journal.add(step.clone())?;
            self.search.record(node, step.event.clone());
            self.write_git_log()?;
            say(&self.line(node, &step));
            step.notes.iter().for_each(|note| say(&format!("  warning: {}", printable(note))));
        }
    }

    /// How much is left.
    fn outlook(&self) -> String {
        let (commits, steps) = self.search.left();
        let spent: u64 = self.journal.steps().iter().map(|step| step.build_ms + step.test_ms).sum();
        let decided = self.search.tested().count().max(1) as u64;
        let left = Duration::from_secs(spent / decided * u64::from(steps) / 1000);
        let what = if self.names.are_commits() { "commits" } else { "kernels" };
        let time = humantime::format_duration(left);
        format!("{commits} {what} in question, about {steps} more to test, about {time}")
    }

    fn line(&self, node: Node, step: &Step) -> String {
        let what = match &step.event {
            Event::Ran { observation } => {
                let counts = self.search.counts(node);
                let times = match self.request.rules.repeat {
                    Repeat::Times(1) => String::new(),
                    _ => format!(" [{} of {} runs failed]", counts.fails, counts.runs()),
                };
                format!("{}{times}", observation.describe())
            }
            Event::Untestable { why } => format!("untestable: {}", why.lines().next().unwrap_or_default()),
            Event::SameAs { other } => {
                format!("not booted: its kernel is that of {}", self.names.short(other))
            }
            Event::Given { new } => format!("given as {}", if *new { "new" } else { "old" }),
        };
        let seconds = |ms: u64| ms as f64 / 1000.0;
        let (build, test) = (seconds(step.build_ms), seconds(step.test_ms));
        let name = self.names.long(self.search.history().id(node));
        format!("{}: {} (build {build:.1} s, test {test:.1} s)", printable(&name), printable(&what))
    }

    /// One step; `None` when the user wants to stop.
    fn step(&mut self, node: Node, progress: &dyn Progress) -> anyhow::Result<Option<Step>> {
        let id = self.search.history().id(node).to_owned();
        let done = |event, sha256, build: Duration| Step {
            id: id.clone(),
            event,
            sha256,
            build_ms: milliseconds(build),
            test_ms: 0,
            run: None,
            notes: Vec::new(),
        };
        let begun = Instant::now();
        let made = match self.workshop.make(&id, progress)? {
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
        if self.search.runs(node).is_empty()
            && let Some(event) = self.known_from_its_twin(&id, &made.sha256)
        {
            return Ok(Some(Step { notes: made.notes, ..done(event, Some(made.sha256), made.took) }));
        }
        self.test(&id, &made, progress)
    }

    /// What is known of a kernel that is byte for byte this one.
    fn known_from_its_twin(&self, id: &str, sha256: &str) -> Option<Event> {
        let twin = self.journal.steps().iter().find(|step| step.id != id && step.sha256.as_deref() == Some(sha256))?;
        match &twin.event {
            Event::Untestable { why } => Some(Event::Untestable { why: why.clone() }),
            Event::SameAs { other } => Some(Event::SameAs { other: other.clone() }),
            Event::Ran { .. } => Some(Event::SameAs { other: twin.id.clone() }),
            Event::Given { .. } => None,
        }
    }

    fn test(&mut self, id: &str, made: &Made, progress: &dyn Progress) -> anyhow::Result<Option<Step>> {
        let interesting = self.search.interesting();
        let mut tries = 0;
        loop {
            tries += 1;
            let run = self.free_folder()?;
            let results = self.journal.dir().join(&run);
            check_results_dir(&results)?;
            progress.step(&format!("running {}", self.names.short(id)));
            let begun = Instant::now();
            let guest = GuestRun {
                binary: &made.binary,
                question: &self.request.question,
                directory: &self.request.directory,
                kernel: made.kernel.as_deref(),
                cache_dir: self.cache_dir,
                results: &results,
                interesting: &interesting,
            };
            let event = match guest.run(self.runner, progress)? {
                GuestEnd::Interrupted => return Ok(None),
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
                id: id.to_owned(),
                event,
                sha256: Some(made.sha256.clone()),
                build_ms: milliseconds(made.took),
                test_ms: milliseconds(begun.elapsed()),
                run: Some(run),
                notes: if made.took.is_zero() { Vec::new() } else { made.notes.clone() },
            }));
        }
    }

    /// For the next run, below the bisection's folder. What a killed run left keeps its own.
    fn free_folder(&self) -> anyhow::Result<String> {
        let runs = self.journal.dir().join("runs");
        let taken = match std::fs::read_dir(&runs) {
            Ok(entries) => entries.count(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error).with_context(|| format!("failed to read {}", runs.display())),
        };
        Ok(format!("runs/{:03}", taken + 1))
    }

    /// Keeps the log for git beside the journal, as far as commits are decided.
    fn write_git_log(&self) -> anyhow::Result<()> {
        if !self.names.are_commits() {
            return Ok(());
        }
        let mut marks = Vec::new();
        for node in self.search.tested() {
            let mark = match (self.search.side(node), self.search.untestable(node)) {
                (Some(true), _) => Mark::New,
                (Some(false), _) => Mark::Old,
                (None, Some(_)) => Mark::Skip,
                (None, None) => continue,
            };
            let id = self.search.history().id(node);
            marks.push((mark, id.to_owned(), self.names.subject(id)));
        }
        let text = git_log::write(self.request.rules.fix, &marks);
        write_atomically(self.journal.dir(), GIT_LOG, 0o644, text.as_bytes())
            .with_context(|| format!("failed to write {}", self.journal.dir().join(GIT_LOG).display()))
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "drive_tests.rs"]
mod tests;
