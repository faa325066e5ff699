//! One suite's work: what waits, what is under way, what is done.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

use guest_image::suite::SuiteRun;
use wire::{SuitePlan, TestStatus, is_unnamed_test};

use super::policy::Policy;
use super::times::TestTimes;
use crate::session::{AUTOPSY, RunEvent, SuiteEnd};

/// What an earlier part of the run did of a suite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Listed tests that have all their results.
    pub tests: HashSet<String>,
    /// Whether it came to its end.
    pub ended: bool,
}

/// What a test takes, µs, as long as nothing is known of any.
const UNKNOWN_TIME: u64 = 1_000_000;

/// What is known of a suite's tests.
#[derive(Debug, PartialEq, Eq)]
enum Tests {
    /// Nobody asked yet.
    Unknown,
    /// All that the suite would run here, in order, with their places in that.
    Listed(HashMap<String, usize>),
    /// They cannot be told apart: it runs as one whole.
    OneWhole,
}

/// What one guest has of the suite.
#[derive(Debug)]
pub(super) struct UnderWay {
    given: Instant,
    /// Whether a test of it has begun.
    has_begun: bool,
    /// Those it was given; `None` for all of a suite that was not listed.
    tests: Option<Vec<String>>,
    /// The listed test that its last event was about, until it has all its results.
    current: Option<String>,
    /// What was learned of its death while no test was known to run.
    autopsy: Option<Vec<u8>>,
    /// Whether its last word was the error of a test that it was given: should it end now, that is why.
    blamed: bool,
}

impl UnderWay {
    fn now(tests: Option<Vec<String>>) -> Self {
        Self { given: Instant::now(), has_begun: false, tests, current: None, autopsy: None, blamed: false }
    }
}

/// The death of a guest that some test brought about; which one is not known before there is a list.
#[derive(Debug)]
struct Suspect {
    why: String,
    autopsy: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct SuiteWork {
    pub(super) run: SuiteRun,
    tests: Tests,
    waiting: VecDeque<String>,
    times: TestTimes,
    mean_time: u64,
    /// What it took at least, µs, from giving a guest a portion to its first test.
    start: Option<u64>,
    finished: HashSet<String>,
    under_way: HashMap<u32, UnderWay>,
    suspect: Option<Suspect>,
    /// Whether all of it was given out without a list.
    given_whole: bool,
    announced: bool,
    closed: bool,
    started: Instant,
    end: Option<SuiteEnd>,
}

impl SuiteWork {
    pub(super) fn new(run: SuiteRun, done: Done) -> Self {
        let announced = done.ended || !done.tests.is_empty();
        Self {
            tests: if run.listing.is_some() { Tests::Unknown } else { Tests::OneWhole },
            run,
            waiting: VecDeque::new(),
            times: TestTimes::new(),
            mean_time: UNKNOWN_TIME,
            start: None,
            finished: done.tests,
            under_way: HashMap::new(),
            suspect: None,
            given_whole: false,
            announced,
            closed: done.ended,
            started: Instant::now(),
            end: None,
        }
    }

    /// Of which only these tests run, known already.
    pub(super) fn of_tests(run: SuiteRun, tests: Vec<String>) -> Self {
        let mut work = Self::new(run, Done::default());
        work.tests = Tests::Listed(tests.iter().cloned().zip(0..).collect());
        work.waiting = tests.into();
        work
    }

    /// The same, with what is known of its tests' times.
    pub(super) fn with_times(self, times: TestTimes) -> Self {
        let mean_time = times.values().sum::<u64>().checked_div(times.len() as u64).unwrap_or(UNKNOWN_TIME);
        Self { times, mean_time, ..self }
    }

    pub(super) fn name(&self) -> &str {
        &self.run.plan.name
    }

    /// Whether a guest could be given something of it.
    pub(super) fn has_work(&self) -> bool {
        !self.closed && (!self.waiting.is_empty() || (!matches!(self.tests, Tests::Listed(_)) && !self.given_whole))
    }

    /// How many of its tests wait; `None` if they are not known by name.
    pub(super) fn waiting(&self) -> Option<usize> {
        (self.closed || matches!(self.tests, Tests::Listed(_))).then_some(self.waiting.len())
    }

    pub(super) fn is_with(&self, guest: u32) -> bool {
        self.under_way.contains_key(&guest)
    }

    /// Whether its tests must be listed before more of it can run.
    pub(super) fn wants_list(&self, policy: &Policy) -> bool {
        let in_part = policy.divides() || !self.finished.is_empty() || self.suspect.is_some();
        !self.closed && self.tests == Tests::Unknown && in_part && self.under_way.is_empty()
    }

    /// Something of it that `guest` can run now.
    pub(super) fn take(&mut self, guest: u32, policy: &Policy) -> Option<SuitePlan> {
        if self.closed {
            return None;
        }
        if !matches!(self.tests, Tests::Listed(_)) {
            if self.given_whole {
                return None;
            }
            self.given_whole = true;
            self.under_way.insert(guest, UnderWay::now(None));
            return Some(self.run.plan.clone());
        }
        let times: Vec<u64> = self.waiting.iter().map(|test| self.time_of(test)).collect();
        let portion = policy.portion(&times, self.start.unwrap_or(0)).min(self.waiting.len());
        let tests: Vec<String> = self.waiting.drain(..portion).collect();
        let plan = self.run.with_tests(tests.iter().map(String::as_str)).filter(|_| !tests.is_empty())?;
        self.under_way.insert(guest, UnderWay::now(Some(tests)));
        Some(plan)
    }

    /// Its list, or why there is none.
    pub(super) fn listed(&mut self, list: Result<Vec<String>, String>, policy: &Policy) -> Vec<RunEvent> {
        match list {
            Ok(list) => {
                let here = |&(place, _): &(usize, String)| policy.shard.is_none_or(|shard| shard.has(place));
                let list: Vec<String> = list.into_iter().enumerate().filter(here).map(|(_, test)| test).collect();
                self.tests = Tests::Listed(list.iter().cloned().zip(0..).collect());
                let mut waiting: Vec<String> = list.into_iter().filter(|test| !self.finished.contains(test)).collect();
                if policy.jobs > 1 {
                    waiting.sort_by_key(|test| std::cmp::Reverse(self.time_of(test)));
                }
                self.waiting = waiting.into();
                let mut events = Vec::new();
                if let Some(suspect) = self.suspect.take()
                    && let Some(test) = self.waiting.pop_front()
                {
                    events.extend(self.convict(test, suspect));
                }
                events.extend(self.end_if_done());
                events
            }
            Err(error) => {
                self.tests = Tests::OneWhole;
                let mut events = vec![RunEvent::Note {
                    line: format!("the tests of {} cannot be told apart: {error}", self.name()),
                }];
                if !self.finished.is_empty() || self.suspect.is_some() {
                    events.extend(self.cut_off(&error));
                }
                events
            }
        }
    }

    /// What an event of this suite from `guest` becomes in the run's events.
    pub(super) fn observe(&mut self, guest: u32, event: RunEvent) -> Vec<RunEvent> {
        match event {
            RunEvent::SuiteStarted { .. } => {
                if std::mem::replace(&mut self.announced, true) {
                    Vec::new()
                } else {
                    vec![event]
                }
            }
            RunEvent::TestStarted { ref test, .. } => {
                self.blame(guest, None);
                self.time_start(guest);
                let mut events = self.come_to(guest, &test.clone());
                events.push(event);
                events
            }
            RunEvent::TestFinished { ref test, status, .. } => {
                let test = test.clone();
                self.blame(guest, (status == TestStatus::Error).then_some(&test));
                let mut events = self.come_to(guest, &test);
                events.push(event);
                if self.run.has_one_result_per_test() {
                    self.finish_current(guest);
                }
                events
            }
            RunEvent::Artefact { ref test, ref kind, ref data, .. } if kind == AUTOPSY => {
                let Some(under_way) = self.under_way.get_mut(&guest) else { return vec![event] };
                if test.is_empty() {
                    under_way.autopsy = Some(data.clone());
                    return Vec::new();
                }
                under_way.blamed = true;
                vec![event]
            }
            // Its command was killed with a test that took too long, or died of one.
            RunEvent::SuiteFinished { end: Some(SuiteEnd::Signaled(signal)), .. } if self.tests != Tests::OneWhole => {
                self.lose(guest, Some(&format!("the suite was killed by signal {signal}"))).0
            }
            RunEvent::SuiteFinished { end: Some(end), .. } => self.portion_ended(guest, end),
            // Its guest is lost; `lose` says what comes of that.
            RunEvent::SuiteFinished { end: None, .. } => Vec::new(),
            RunEvent::SuiteNotStarted { ref error, .. } => {
                self.under_way.remove(&guest);
                if self.announced {
                    let line = format!("the rest of {} could not be started: {error}", self.name());
                    return [vec![RunEvent::Note { line }], self.cut_off(error)].concat();
                }
                self.closed = true;
                vec![event]
            }
            event => vec![event],
        }
    }

    /// A test of `guest`'s has begun.
    fn time_start(&mut self, guest: u32) {
        let Some(under_way) = self.under_way.get_mut(&guest) else { return };
        if !std::mem::replace(&mut under_way.has_begun, true) {
            let took = u64::try_from(under_way.given.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.start = Some(self.start.map_or(took, |least| least.min(took)));
        }
    }

    /// What `guest` told last was the error of this result, or something else.
    fn blame(&mut self, guest: u32, error: Option<&str>) {
        let of_test = error.filter(|name| !is_unnamed_test(name)).and_then(|name| self.run.test_of(name));
        if let Some(under_way) = self.under_way.get_mut(&guest) {
            let given = &under_way.tests;
            under_way.blamed =
                of_test.is_some_and(|test| given.as_ref().is_none_or(|tests| tests.iter().any(|given| given == test)));
        }
    }

    /// `guest` runs no more of it. If that came of what it ran, the test that ran counts as done: it has its error. What it had not
    /// come to waits again. Gives the events of that, and whether a test explains the loss.
    pub(super) fn lose(&mut self, guest: u32, by_a_test: Option<&str>) -> (Vec<RunEvent>, bool) {
        let Some(under_way) = self.under_way.remove(&guest) else { return (Vec::new(), false) };
        let mut events = Vec::new();
        let mut explained = false;
        let is_listed = under_way.tests.is_some();
        let mut rest = under_way.tests.unwrap_or_default();
        rest.retain(|test| !self.finished.contains(test));
        if let Some(why) = by_a_test {
            explained = self.tests != Tests::OneWhole;
            // An error behind the last result that was told is of no listed test.
            let current = under_way.current.filter(|test| !is_listed || rest.contains(test));
            match current {
                Some(current) => {
                    rest.retain(|test| *test != current);
                    events.extend(self.finish(current));
                }
                None if under_way.blamed => {}
                None => {
                    let suspect = Suspect { why: why.to_owned(), autopsy: under_way.autopsy };
                    rest.sort_by_key(|test| self.place_of(test));
                    if rest.is_empty() {
                        self.suspect = Some(suspect);
                    } else {
                        let test = rest.remove(0);
                        events.extend(self.convict(test, suspect));
                    }
                }
            }
        }
        for test in rest.into_iter().rev() {
            self.waiting.push_front(test);
        }
        match self.tests {
            Tests::OneWhole => events.extend(self.cut_off(by_a_test.unwrap_or("the run ended"))),
            Tests::Unknown => self.given_whole = false,
            Tests::Listed(_) => {
                self.suspect = None;
                events.extend(self.end_if_done());
            }
        }
        (events, explained)
    }

    /// Nothing more of it will run.
    pub(super) fn give_up(&mut self, why: &str) -> Vec<RunEvent> {
        if self.closed { Vec::new() } else { self.cut_off(why) }
    }

    fn cut_off(&mut self, why: &str) -> Vec<RunEvent> {
        self.closed = true;
        self.waiting.clear();
        let suite = self.name().to_owned();
        let autopsy = self.suspect.take().and_then(|suspect| suspect.autopsy);
        let mut events: Vec<RunEvent> = autopsy.map(|left| artefact(&suite, "", left)).into_iter().collect();
        events.push(match self.announced {
            true => RunEvent::SuiteFinished { suite, end: None, duration_ms: self.duration_ms() },
            false => RunEvent::SuiteNotStarted { suite, error: format!("not run: {why}") },
        });
        events
    }

    /// The first test in order that could have been the one is told to be it, and why it is.
    fn convict(&mut self, test: String, suspect: Suspect) -> Vec<RunEvent> {
        let suite = self.name().to_owned();
        let mut events: Vec<RunEvent> = suspect.autopsy.map(|left| artefact(&suite, &test, left)).into_iter().collect();
        let message =
            format!("{} (no test was known to run; this is the first in order that has no result)", suspect.why);
        let (status, name) = (TestStatus::Error, test.clone());
        events.push(RunEvent::TestFinished { suite, test: name, status, duration_us: 0, message });
        events.extend(self.finish(test));
        events
    }

    /// A portion came to its end: whatever of it told no result has none to tell.
    fn portion_ended(&mut self, guest: u32, end: SuiteEnd) -> Vec<RunEvent> {
        let mut events = Vec::new();
        if let Some(under_way) = self.under_way.remove(&guest) {
            for test in under_way.tests.unwrap_or_default().into_iter().chain(under_way.current) {
                events.extend(self.finish(test));
            }
        }
        self.end = Some(worse(self.end, end));
        events.extend(self.end_if_done());
        events
    }

    fn end_if_done(&mut self) -> Option<RunEvent> {
        let whole_to_come = !matches!(self.tests, Tests::Listed(_)) && !self.given_whole;
        if self.closed || whole_to_come || !self.waiting.is_empty() || !self.under_way.is_empty() {
            return None;
        }
        self.closed = true;
        // Nothing of it ran here: its only test may be in another shard.
        self.announced.then(|| RunEvent::SuiteFinished {
            suite: self.name().to_owned(),
            // Every part of it was lost with its guest, each with an error that tells.
            end: Some(self.end.unwrap_or(SuiteEnd::Exited(1))),
            duration_ms: self.duration_ms(),
        })
    }

    /// The test with this result runs in `guest`; the one before it has all of its own.
    fn come_to(&mut self, guest: u32, result: &str) -> Vec<RunEvent> {
        let Some(test) = self.run.test_of(result).map(str::to_owned) else { return Vec::new() };
        let Some(under_way) = self.under_way.get_mut(&guest) else { return Vec::new() };
        match under_way.current.replace(test) {
            Some(before) if under_way.current.as_ref() != Some(&before) => self.finish(before).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    fn finish_current(&mut self, guest: u32) {
        let current = self.under_way.get_mut(&guest).and_then(|under_way| under_way.current.take());
        if let Some(test) = current {
            self.finish(test);
        }
    }

    /// A listed test has all its results. Told where that does not go without saying.
    fn finish(&mut self, test: String) -> Option<RunEvent> {
        let told = (!self.run.has_one_result_per_test())
            .then(|| RunEvent::ListedTestFinished { suite: self.name().to_owned(), test: test.clone() });
        self.finished.insert(test).then_some(told).flatten()
    }

    /// What it took last; the mean of all where that is not known.
    fn time_of(&self, test: &str) -> u64 {
        self.times.get(test).copied().unwrap_or(self.mean_time).max(1)
    }

    fn place_of(&self, test: &str) -> usize {
        match &self.tests {
            Tests::Listed(places) => places.get(test).copied().unwrap_or(usize::MAX),
            _ => usize::MAX,
        }
    }

    fn duration_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

fn artefact(suite: &str, test: &str, data: Vec<u8>) -> RunEvent {
    let kind = AUTOPSY.to_owned();
    RunEvent::Artefact { suite: suite.to_owned(), test: test.to_owned(), kind, bytes: data.len() as u64, data }
}

/// The end that is more to worry about.
fn worse(before: Option<SuiteEnd>, end: SuiteEnd) -> SuiteEnd {
    match (before, end) {
        (Some(before @ SuiteEnd::Signaled(_)), _) | (Some(before), SuiteEnd::Exited(0)) => before,
        _ => end,
    }
}
