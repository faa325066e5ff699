//! The bisection itself: what the search wants is made and run, and what is learned is on the disk before anything else
//! happens.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use guest_image::Progress;

use super::ahead::{Pool, wanted};
use super::git_log::{self, Mark};
use super::history::Node;
use super::journal::{Journal, Request, Step};
use super::names::Names;
use super::runner::Runner;
use super::search::{Conclusion, Event, Next, Repeat, Search};
use super::tester::{Task, Tester};
use super::workshop::Workshop;
use crate::report::{printable, write_atomically};

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
    /// Run, as many side by side as there are.
    pub runners: Vec<Box<dyn Runner>>,
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
    pub fn run(self, progress: &dyn Progress, say: &dyn Fn(&str)) -> anyhow::Result<Outcome> {
        let Self { request, journal, search, workshop, runners, names, cache_dir } = self;
        let tester = Tester::new(request, journal, workshop, cache_dir)?;
        let mut told = Told { request, journal, search, names };
        thread::scope(|scope| {
            let mut pool = Pool::start(scope, &tester, runners, progress).context("failed to start a thread")?;
            let outcome = told.go_on(&mut pool, &tester, say);
            pool.leftovers().iter().for_each(|step| tester.forget(step));
            outcome
        })
    }
}

/// What was learned, and where it is kept.
struct Told<'a> {
    request: &'a Request,
    journal: &'a mut Journal,
    search: &'a mut Search,
    names: &'a Names,
}

impl Told<'_> {
    fn go_on(&mut self, pool: &mut Pool, tester: &Tester<'_>, say: &dyn Fn(&str)) -> anyhow::Result<Outcome> {
        let mut told = None;
        loop {
            let node = match self.search.next() {
                Next::Done(conclusion) => return Ok(Outcome::Done(conclusion)),
                Next::Test(node) => node,
            };
            if !self.search.history().is_end(node) && told != Some(node) {
                say(&self.outlook());
                told = Some(node);
            }
            let wanted = wanted(self.search, pool.room());
            let Some(step) = pool.step(&wanted, &|node| self.task(node))? else { return Ok(Outcome::Interrupted) };
            self.journal.add(step.clone())?;
            tester.learn(&step);
            self.search.record(node, step.event.clone());
            self.write_git_log()?;
            say(&self.line(node, &step));
            step.notes.iter().for_each(|note| say(&format!("  warning: {}", printable(note))));
        }
    }

    fn task(&self, node: Node) -> Task {
        let id = self.search.history().id(node).to_owned();
        let name = self.names.short(&id);
        let (is_first, interesting) = (self.search.runs(node).is_empty(), self.search.interesting());
        Task { node, id, name, is_first, interesting }
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
                    // What to look for is not known before the first failure.
                    _ if self.search.signature().is_none() => {
                        format!(" [0 of {} runs failed]", self.search.runs(node).len())
                    }
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

#[cfg(test)]
#[path = "drive_tests.rs"]
mod tests;
