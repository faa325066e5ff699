//! Tests side by side, some of them ahead of the search: threads test what it is likely to ask for next, and it is told only
//! when it asks. So it sees the same steps in the same order as with one thread.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Scope};

use anyhow::{Context, anyhow};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use guest_image::Progress;

use super::history::Node;
use super::journal::Step;
use super::runner::Runner;
use super::search::{Event, Next, Repeat, Search};
use super::tester::{Task, Tester};

/// The runs that `search` will want, likeliest first and at most `count`: the one it asks for, then what it may ask for
/// whatever comes of that. A node that is wanted several times comes several times.
#[must_use]
pub(super) fn wanted(search: &Search, count: usize) -> Vec<Node> {
    let Next::Test(node) = search.next() else { return Vec::new() };
    let more = match search.rules().repeat {
        Repeat::Times(times) => (times as usize).saturating_sub(search.runs(node).len()).max(1),
        Repeat::Auto => count,
    };
    let mut nodes = vec![node; more.min(count)];
    if search.history().is_end(node) {
        // What it looks like is not known yet. The other ends come next in any case.
        let ends = search.history().old().iter().chain([&search.history().new_end()]).copied().collect::<Vec<_>>();
        nodes.extend(ends.into_iter().filter(|end| *end != node && search.runs(*end).is_empty()));
        nodes.truncate(count);
        return nodes;
    }
    let mut states = VecDeque::from([(search.clone(), node)]);
    while nodes.len() < count
        && let Some((state, node)) = states.pop_front()
    {
        for new in [false, true] {
            let mut state = state.clone();
            state.record(node, Event::Given { new });
            if let Next::Test(next) = state.next()
                && next != node
            {
                if !nodes.contains(&next) {
                    nodes.push(next);
                }
                states.push_back((state, next));
            }
        }
    }
    nodes.truncate(count);
    nodes
}

/// Threads that test.
#[derive(Debug)]
pub(super) struct Pool {
    workers: Vec<Worker>,
    results: Receiver<(usize, anyhow::Result<Option<Step>>)>,
    /// Tested and not asked for yet.
    ahead: Vec<(Node, Step)>,
    /// Of which node people are told how far it is.
    shown: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Worker {
    tasks: Sender<(Task, Arc<AtomicBool>)>,
    busy: Option<Busy>,
}

#[derive(Debug)]
struct Busy {
    node: Node,
    cancelled: Arc<AtomicBool>,
}

impl Pool {
    /// One thread for each of `runners`. They end when this is dropped.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(super) fn start<'scope, 'env>(
        scope: &'scope Scope<'scope, 'env>,
        tester: &'env Tester<'env>,
        runners: Vec<Box<dyn Runner>>,
        progress: &'env dyn Progress,
    ) -> io::Result<Self> {
        let (sender, results) = unbounded();
        let shown = Arc::new(AtomicUsize::new(0));
        let mut workers = Vec::new();
        for (at, mut runner) in runners.into_iter().enumerate() {
            let (tasks, received) = bounded::<(Task, Arc<AtomicBool>)>(1);
            let (sender, shown) = (sender.clone(), Arc::clone(&shown));
            thread::Builder::new().name(format!("bisect-{at}")).spawn_scoped(scope, move || {
                for (task, cancelled) in received {
                    let progress = OneOfSeveral { progress, node: task.node, shown: &shown, cancelled: &cancelled };
                    // Or whoever waits for the result would wait for ever.
                    let test = AssertUnwindSafe(|| tester.test(&task, &mut *runner, &progress));
                    let result = catch_unwind(test).unwrap_or_else(|_| Err(anyhow!("a thread that tests panicked")));
                    if sender.send((at, result)).is_err() {
                        return;
                    }
                }
            })?;
            workers.push(Worker { tasks, busy: None });
        }
        Ok(Self { workers, results, ahead: Vec::new(), shown })
    }

    /// How many runs [`Self::step`] can use.
    #[must_use]
    pub(super) fn room(&self) -> usize {
        self.workers.len() + self.ahead.len()
    }

    /// The step that the first of `wanted` comes to; meanwhile the others are tested, as far as there are threads. `None` when
    /// the user wants to stop.
    ///
    /// # Errors
    /// See [`Tester::test`], also where it went wrong ahead.
    pub(super) fn step(&mut self, wanted: &[Node], task: &dyn Fn(Node) -> Task) -> anyhow::Result<Option<Step>> {
        let node = *wanted.first().context("nothing to test was given")?;
        self.shown.store(node, Ordering::Relaxed);
        loop {
            if let Some(at) = self.ahead.iter().position(|(other, _)| *other == node) {
                return Ok(Some(self.ahead.remove(at).1));
            }
            self.share_out(wanted, task)?;
            let (worker, result) = self.results.recv().context("the threads that test are gone")?;
            let Some(Busy { node, cancelled }) = self.workers[worker].busy.take() else { continue };
            match result? {
                Some(step) => self.ahead.push((node, step)),
                None if cancelled.load(Ordering::Relaxed) => {}
                None => return Ok(None),
            }
        }
    }

    /// What was tested and never asked for. What is still under way is stopped.
    #[must_use]
    pub(super) fn leftovers(mut self) -> Vec<Step> {
        self.workers.iter().filter_map(|worker| worker.busy.as_ref()).for_each(Busy::cancel);
        while self.workers.iter().any(|worker| worker.busy.is_some()) {
            let Ok((worker, result)) = self.results.recv() else { break };
            if let (Some(Busy { node, .. }), Ok(Some(step))) = (self.workers[worker].busy.take(), result) {
                self.ahead.push((node, step));
            }
        }
        std::mem::take(&mut self.ahead).into_iter().map(|(_, step)| step).collect()
    }

    /// Stops what is not wanted any more, and gives the rest to threads that are free.
    fn share_out(&mut self, wanted: &[Node], task: &dyn Fn(Node) -> Task) -> anyhow::Result<()> {
        let mut missing = wanted.to_vec();
        let mut is_missing = |node: Node| {
            let found = missing.iter().position(|other| *other == node);
            found.map(|at| missing.remove(at)).is_some()
        };
        for (node, _) in &self.ahead {
            is_missing(*node);
        }
        for busy in self.workers.iter().filter_map(|worker| worker.busy.as_ref()) {
            if !is_missing(busy.node) {
                busy.cancel();
            }
        }
        let mut missing = missing.into_iter();
        for worker in self.workers.iter_mut().filter(|worker| worker.busy.is_none()) {
            let Some(node) = missing.next() else { break };
            let cancelled = Arc::new(AtomicBool::new(false));
            worker
                .tasks
                .send((task(node), Arc::clone(&cancelled)))
                .map_err(|_| anyhow!("a thread that tests is gone"))?;
            worker.busy = Some(Busy { node, cancelled });
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.workers.iter().filter_map(|worker| worker.busy.as_ref()).for_each(Busy::cancel);
    }
}

impl Busy {
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// Tells of one test among several, and ends it when it is not wanted any more.
struct OneOfSeveral<'a> {
    progress: &'a dyn Progress,
    node: Node,
    shown: &'a AtomicUsize,
    cancelled: &'a AtomicBool,
}

impl OneOfSeveral<'_> {
    fn is_shown(&self) -> bool {
        self.shown.load(Ordering::Relaxed) == self.node
    }
}

impl Progress for OneOfSeveral<'_> {
    fn step(&self, what: &str) {
        if self.is_shown() {
            self.progress.step(what);
        }
    }

    fn detail(&self, line: &str) {
        if self.is_shown() {
            self.progress.detail(line);
        }
    }

    fn fraction(&self, done: f64) {
        if self.is_shown() {
            self.progress.fraction(done);
        }
    }

    fn interrupted(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.progress.interrupted()
    }
}

#[cfg(test)]
mod tests {
    use super::super::history::History;
    use super::super::search::Rules;
    use super::super::signature::{End, Observation};
    use super::*;

    /// Of 17 kernels, `0` to `16`.
    fn search(repeat: Repeat) -> Search {
        let list: Vec<_> = (0..17).map(|n| n.to_string()).collect();
        Search::new(History::list(&list), Rules { repeat, error: 0.01, fix: false, max_untestable: 5 })
    }

    fn ran(code: i32) -> Event {
        Event::Ran { observation: Observation::of(End::Exited(code)) }
    }

    #[test]
    fn both_ends_are_wanted_at_once_and_nothing_else_before_they_are_known() {
        assert_eq!(wanted(&search(Repeat::Times(1)), 1), [16]);
        assert_eq!(wanted(&search(Repeat::Times(1)), 9), [16, 0]);
        assert_eq!(wanted(&search(Repeat::Times(3)), 9), [16, 16, 16, 0]);
    }

    #[test]
    fn behind_the_middle_both_quarters_are_wanted_and_then_the_eighths() {
        let mut search = search(Repeat::Times(1));
        search.record(16, ran(1));
        search.record(0, ran(0));
        assert_eq!(wanted(&search, 1), [8]);
        assert_eq!(wanted(&search, 3), [8, 12, 4]);
        assert_eq!(wanted(&search, 7), [8, 12, 4, 14, 10, 6, 2]);
        assert_eq!(wanted(&search, 99).len(), 15, "each once");
        search.record(8, ran(1));
        assert_eq!(wanted(&search, 3), [4, 6, 2]);
    }

    #[test]
    fn who_repeats_wants_the_same_one_again() {
        let mut times = search(Repeat::Times(2));
        let mut auto = search(Repeat::Auto);
        for search in [&mut times, &mut auto] {
            (0..9).for_each(|_| search.record(16, ran(1)));
            (0..60).for_each(|_| search.record(0, ran(0)));
        }
        assert_eq!(wanted(&times, 4), [8, 8, 12, 4]);
        times.record(8, ran(0));
        assert_eq!(wanted(&times, 4), [8, 12, 4, 14]);
        assert_eq!(wanted(&auto, 4), [8; 4]);
    }

    #[test]
    fn a_search_that_is_over_wants_nothing() {
        let mut search = search(Repeat::Times(1));
        search.record(16, ran(0));
        assert_eq!(wanted(&search, 4), [] as [Node; 0]);
    }
}
