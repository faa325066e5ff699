//! One suite's work: what waits, what is under way, what is done.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

use guest_image::suite::SuiteRun;
use wire::{SuitePlan, TestStatus, is_unnamed_test};

use super::policy::Policy;
use super::times::TestTimes;
use super::under_way::{Suspect, UnderWay};
use crate::session::{AUTOPSY, RunEvent, SuiteEnd};

/// What an earlier part of the run did of a suite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Listed tests that have all their results.
    pub tests: HashSet<String>,
    /// Whether it came to its end.
    pub ended: bool,
}

/// Why a test is told to be the one that a guest or a suite's command died of.
const FIRST_WITHOUT_RESULT: &str = "this is the first in order that has no result";
const LAST_TO_TELL: &str = "this is the last that told anything";

/// That many portions in a row that ended without a result of any test, and there is no use in one more.
const FUTILE: u32 = 3;

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
    /// Whether that ended in a way that leaves open whether all of it ran.
    in_doubt: bool,
    /// Portions in a row that ended without a result of any test.
    fruitless: u32,
    /// Whether a part of it was lost with its guest.
    lost: bool,
    announced: bool,
    closed: bool,
    started: Instant,
    end: Option<SuiteEnd>,
}

impl SuiteWork {
    pub(super) fn new(run: SuiteRun, done: Done, policy: &Policy) -> Self {
        let announced = done.ended || !done.tests.is_empty();
        let elsewhere = run.listing.is_none() && !policy.has_whole_suites();
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
            in_doubt: false,
            fruitless: 0,
            lost: false,
            announced,
            closed: done.ended || elsewhere,
            started: Instant::now(),
            end: None,
        }
    }

    /// Of which only these tests run, known already.
    pub(super) fn of_tests(run: SuiteRun, tests: Vec<String>, policy: &Policy) -> Self {
        let mut work = Self::new(run, Done::default(), policy);
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
                if let Some(suspect) = self.suspect.take() {
                    events.extend(match self.waiting.pop_front() {
                        Some(test) => self.convict(test, FIRST_WITHOUT_RESULT, suspect),
                        None => self.convict_the_end(suspect),
                    });
                }
                if std::mem::take(&mut self.in_doubt) {
                    events.extend(self.doubt_resolved());
                }
                events.extend(self.end_if_done());
                events
            }
            Err(error) => {
                self.tests = Tests::OneWhole;
                let mut events = vec![RunEvent::Note {
                    line: format!("the tests of {} cannot be told apart: {error}", self.name()),
                }];
                if std::mem::take(&mut self.in_doubt) {
                    self.given_whole = true;
                    events.extend(self.end_if_done());
                } else if !policy.has_whole_suites() {
                    self.closed = true;
                    let line = format!("{} is run as one whole, by the first shard", self.name());
                    events.push(RunEvent::Note { line });
                } else if !self.finished.is_empty() || self.suspect.is_some() {
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
                let mut events = self.release(guest);
                events.extend(self.come_to(guest, &test.clone()));
                events.push(event);
                events
            }
            // Should its guest or its command die of that, the test that had its turn is told to have had the error.
            RunEvent::TestFinished { ref test, status: TestStatus::Error, .. }
                if self.tests != Tests::OneWhole && is_unnamed_test(test) =>
            {
                self.blame(guest, None);
                self.hold_back(guest, event)
            }
            RunEvent::TestFinished { ref test, status, .. } => {
                let test = test.clone();
                self.blame(guest, (status == TestStatus::Error).then_some(&test));
                let mut events = self.release(guest);
                events.extend(self.come_to(guest, &test));
                events.push(event);
                if let Some(under_way) = self.under_way.get_mut(&guest) {
                    under_way.last = Some(test);
                }
                if self.run.has_one_result_per_test() {
                    self.finish_current(guest);
                }
                events
            }
            RunEvent::Artefact { ref test, .. } if test.is_empty() || is_unnamed_test(test) => {
                self.hold_back(guest, event)
            }
            RunEvent::Artefact { ref kind, .. } if kind == AUTOPSY => {
                if let Some(under_way) = self.under_way.get_mut(&guest) {
                    under_way.blamed = true;
                }
                vec![event]
            }
            // Its command was killed with a test that took too long, or died of one.
            RunEvent::SuiteFinished { end: Some(SuiteEnd::Signaled(signal)), .. } if self.tests != Tests::OneWhole => {
                self.lose(guest, Some(&format!("the suite was killed by signal {signal}"))).0
            }
            RunEvent::SuiteFinished { end: Some(end), .. } => {
                let mut events = self.release(guest);
                events.extend(self.portion_ended(guest, end));
                events
            }
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

    /// Keeps what `guest` tells of a test whose name is not known, until it is clear which test that is, if any.
    fn hold_back(&mut self, guest: u32, event: RunEvent) -> Vec<RunEvent> {
        match self.under_way.get_mut(&guest) {
            Some(under_way) => {
                under_way.held.push(event);
                Vec::new()
            }
            None => vec![event],
        }
    }

    /// What was held back, as it was told: `guest` goes on.
    fn release(&mut self, guest: u32) -> Vec<RunEvent> {
        self.under_way.get_mut(&guest).map(|under_way| std::mem::take(&mut under_way.held)).unwrap_or_default()
    }

    /// `guest` runs no more of it. If that came of what it ran, the test that ran counts as done: it has its error. What it had not
    /// come to waits again. Gives the events of that, and whether a test explains the loss.
    pub(super) fn lose(&mut self, guest: u32, by_a_test: Option<&str>) -> (Vec<RunEvent>, bool) {
        let Some(under_way) = self.under_way.remove(&guest) else { return (Vec::new(), false) };
        let why_lost = by_a_test.unwrap_or("the run ended");
        let mut events = Vec::new();
        let is_listed = under_way.tests.is_some();
        let mut rest = under_way.tests.unwrap_or_default();
        rest.retain(|test| !self.finished.contains(test));
        self.lost = true;
        let by_a_test = by_a_test.filter(|_| self.tests != Tests::OneWhole);
        if let Some(why) = by_a_test {
            // An error behind the last result that was told is of no listed test.
            let current = under_way.current.filter(|test| !is_listed || rest.contains(test));
            rest.retain(|test| Some(test) != current.as_ref());
            if under_way.blamed {
                events.extend(under_way.held);
                events.extend(current.and_then(|current| self.finish(current)));
            } else {
                let suspect = Suspect::new(why, under_way.held, under_way.last);
                rest.sort_by_key(|test| self.place_of(test));
                match current {
                    Some(current) => events.extend(self.convict(current, LAST_TO_TELL, suspect)),
                    None if !rest.is_empty() => {
                        let test = rest.remove(0);
                        events.extend(self.convict(test, FIRST_WITHOUT_RESULT, suspect));
                    }
                    None if self.tests == Tests::Unknown => self.suspect = Some(suspect),
                    None => events.extend(self.convict_the_end(suspect)),
                }
            }
        } else {
            events.extend(under_way.held);
        }
        self.wait_again(rest);
        match self.tests {
            Tests::OneWhole => events.extend(self.cut_off(why_lost)),
            Tests::Unknown => self.given_whole = false,
            Tests::Listed(_) => events.extend(self.end_if_done()),
        }
        (events, by_a_test.is_some())
    }

    /// Nothing more of it will run.
    pub(super) fn give_up(&mut self, why: &str) -> Vec<RunEvent> {
        if self.closed { Vec::new() } else { self.cut_off(why) }
    }

    fn cut_off(&mut self, why: &str) -> Vec<RunEvent> {
        self.closed = true;
        self.waiting.clear();
        let suite = self.name().to_owned();
        let mut events = self.suspect.take().map(|suspect| suspect.evidence).unwrap_or_default();
        events.push(match self.announced {
            true => RunEvent::SuiteFinished { suite, end: None, duration_ms: self.duration_ms() },
            false => RunEvent::SuiteNotStarted { suite, error: format!("not run: {why}") },
        });
        events
    }

    /// `test` is told to be the one that its guest died of, and why it is.
    fn convict(&mut self, test: String, because: &str, suspect: Suspect) -> Vec<RunEvent> {
        let mut events = self.error_of(&test, because, suspect);
        events.extend(self.finish(test));
        events
    }

    /// No test is left that could have been the one: something behind the last result was.
    fn convict_the_end(&self, suspect: Suspect) -> Vec<RunEvent> {
        let name = wire::unnamed_test(suspect.last.as_deref());
        self.error_of(&name, "all had their results", suspect)
    }

    fn error_of(&self, test: &str, because: &str, Suspect { why, evidence, .. }: Suspect) -> Vec<RunEvent> {
        let mut events = evidence;
        for event in &mut events {
            if let RunEvent::Artefact { test: of_test, .. } = event {
                test.clone_into(of_test);
            }
        }
        events.push(RunEvent::TestFinished {
            suite: self.name().to_owned(),
            test: test.to_owned(),
            status: TestStatus::Error,
            duration_us: 0,
            message: format!("{why} (no test was known to run; {because})"),
        });
        events
    }

    /// A portion came to its end. Of one that ended well, whatever told no result has none to tell.
    fn portion_ended(&mut self, guest: u32, end: SuiteEnd) -> Vec<RunEvent> {
        let mut events = Vec::new();
        self.end = Some(worse(self.end, end));
        let Some(under_way) = self.under_way.remove(&guest) else { return events };
        let ended_well = end == SuiteEnd::Exited(0);
        if let Some(current) = under_way.current {
            events.extend(self.finish(current));
        }
        match under_way.tests {
            Some(tests) if ended_well => {
                for test in tests {
                    events.extend(self.finish(test));
                }
            }
            Some(tests) => {
                let given = tests.len();
                let rest: Vec<_> = tests.into_iter().filter(|test| !self.finished.contains(test)).collect();
                let progress = rest.len() < given;
                events.extend(self.ended_early(rest, progress, end));
            }
            None if !ended_well && self.tests == Tests::Unknown && !self.finished.is_empty() => {
                self.in_doubt = true;
                self.given_whole = false;
            }
            None => {}
        }
        events.extend(self.end_if_done());
        events
    }

    /// A portion ended without a word of these tests, and not well: they have another chance, as long as that leads anywhere.
    fn ended_early(&mut self, mut rest: Vec<String>, progress: bool, end: SuiteEnd) -> Vec<RunEvent> {
        let mut events = Vec::new();
        self.fruitless = if progress { 0 } else { self.fruitless + 1 };
        if self.fruitless > 0 && !rest.is_empty() {
            let guilty = if self.fruitless < FUTILE { 1 } else { rest.len() };
            for test in rest.drain(..guilty).collect::<Vec<_>>() {
                let why = format!("the suite ended with {end}");
                events.extend(self.convict(test, FIRST_WITHOUT_RESULT, Suspect::new(&why, Vec::new(), None)));
            }
        }
        if !rest.is_empty() {
            events.push(self.runs_again(rest.len()));
            self.wait_again(rest);
        }
        events
    }

    /// It was given out whole, did not end well, and now there is a list: what has no result of its own runs.
    fn doubt_resolved(&mut self) -> Option<RunEvent> {
        let Tests::Listed(listed) = &self.tests else { return None };
        // Names of results that the list does not have, as those of a section of check's configuration: nothing can be said.
        if !listed.keys().any(|test| self.finished.contains(test)) {
            self.waiting.clear();
        }
        (!self.waiting.is_empty()).then(|| self.runs_again(self.waiting.len()))
    }

    fn runs_again(&self, count: usize) -> RunEvent {
        let tests = if count == 1 { "a test".to_owned() } else { format!("{count} tests") };
        let line = format!("{} ended before {tests} of it had a result: going on with that", self.name());
        RunEvent::Note { line }
    }

    /// These are the next to run.
    fn wait_again(&mut self, tests: Vec<String>) {
        for test in tests.into_iter().rev() {
            self.waiting.push_front(test);
        }
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
            // Without an end of its own, every part of it was lost with its guest, each with an error that tells; or there was
            // nothing left to do.
            end: Some(self.end.unwrap_or(SuiteEnd::Exited(i32::from(self.lost)))),
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

/// The end that is more to worry about.
fn worse(before: Option<SuiteEnd>, end: SuiteEnd) -> SuiteEnd {
    match (before, end) {
        (Some(before @ SuiteEnd::Signaled(_)), _) | (Some(before), SuiteEnd::Exited(0)) => before,
        _ => end,
    }
}
