//! A run's work as a whole.

use guest_image::suite::SuiteRun;

use super::lists::Lists;
use super::policy::{GuestPer, Policy};
use super::suite_work::{Done, SuiteWork};
use super::times::TestTimes;
use crate::session::{Fate, GuestEnd, RunEvent, RunOutcome, Task};

/// That many guests in a row which died before a test of theirs had come to its end, and there is no use in one more.
const FUTILE: u32 = 5;

/// All suites of a run, and what became of its guests so far.
#[derive(Debug)]
pub struct Schedule {
    suites: Vec<SuiteWork>,
    policy: Policy,
    /// The suite whose list was asked for.
    listing: Option<usize>,
    /// Lists of earlier runs.
    lists: Option<Lists>,
    guests: u32,
    futile: u32,
    /// Why nothing more is to be started.
    over: Option<RunOutcome>,
    /// What no single result tells: the first of its kind.
    outcome: Option<RunOutcome>,
}

impl Schedule {
    /// A run of `suites`, each with what of it is done already.
    #[must_use]
    pub fn new(suites: impl IntoIterator<Item = (SuiteRun, Done)>, policy: Policy) -> Self {
        let suites = suites.into_iter().map(|(run, done)| SuiteWork::new(run, done, &policy)).collect();
        Self { suites, policy, listing: None, lists: None, guests: 0, futile: 0, over: None, outcome: None }
    }

    /// Only these tests of suites, each in a guest of its own if `policy` says so.
    #[must_use]
    pub fn of_tests(suites: impl IntoIterator<Item = (SuiteRun, Vec<String>)>, policy: Policy) -> Self {
        let suites = suites.into_iter().map(|(run, tests)| SuiteWork::of_tests(run, tests, &policy)).collect();
        Self { suites, ..Self::new([], policy) }
    }

    /// With what is known of the tests' times, by suite.
    #[must_use]
    pub fn with_times(self, times: impl Fn(&str) -> TestTimes) -> Self {
        let suites = self.suites.into_iter().map(|suite| {
            let known = times(suite.name());
            suite.with_times(known)
        });
        Self { suites: suites.collect(), ..self }
    }

    /// With the lists of earlier runs, which new ones join.
    #[must_use]
    pub fn with_lists(self, lists: Lists) -> Self {
        Self { lists: Some(lists), ..self }
    }

    /// Guests are numbered behind these, which the run had before.
    #[must_use]
    pub fn after_guests(self, guests: u32) -> Self {
        Self { guests, ..self }
    }

    /// Takes the lists that are wanted and known. Gives events that come of it.
    pub fn take_known_lists(&mut self) -> Vec<RunEvent> {
        let Some(lists) = &self.lists else { return Vec::new() };
        let wanting = self.suites.iter_mut().filter(|suite| suite.wants_list(&self.policy));
        wanting
            .filter_map(|suite| Some((lists.read(&suite.run)?, suite)))
            .flat_map(|(list, suite)| suite.listed(Ok(list), &self.policy))
            .collect()
    }

    /// How many guests are of use at once for now: one, until all tests are known by name.
    #[must_use]
    pub fn useful_guests(&self) -> usize {
        let waiting: Option<usize> = self.suites.iter().map(SuiteWork::waiting).sum();
        waiting.unwrap_or(1)
    }

    /// A number for a guest that is about to be booted, counted from 1; `None` when there is nothing for one to do.
    pub fn new_guest(&mut self) -> Option<u32> {
        if self.over.is_some() || !self.suites.iter().any(SuiteWork::has_work) {
            return None;
        }
        self.guests += 1;
        Some(self.guests)
    }

    /// What `guest` does next, which has done `tasks` so far; `None` when it is to power off.
    pub fn next_task(&mut self, guest: u32, tasks: u32) -> Option<Task> {
        if self.over.is_some() || (tasks > 0 && self.policy.guest_per != GuestPer::Run) {
            return None;
        }
        // Lists come first: once anything runs, other guests may work beside this one.
        let to_list = self.suites.iter().position(|suite| suite.wants_list(&self.policy));
        if let Some((index, command)) = to_list.and_then(|index| Some((index, self.suites[index].run.listing.clone()?)))
        {
            self.listing = Some(index);
            return Some(Task::List(command));
        }
        self.suites.iter_mut().find_map(|suite| suite.take(guest, &self.policy)).map(Task::Run)
    }

    /// The list that was asked for. Gives events that come of it.
    pub fn listed(&mut self, tests: Result<Vec<String>, String>) -> Vec<RunEvent> {
        let suite = self.listing.take().and_then(|index| self.suites.get_mut(index));
        if let (Some(suite), Some(lists), Ok(tests)) = (&suite, &self.lists, &tests)
            && let Err(error) = lists.keep(&suite.run, tests)
        {
            tracing::info!("the list of {}'s tests is not kept: {error}", suite.name());
        }
        suite.map(|suite| suite.listed(tests, &self.policy)).unwrap_or_default()
    }

    /// What an event of `guest` becomes in the run's events.
    pub fn observe(&mut self, guest: u32, event: RunEvent) -> Vec<RunEvent> {
        let Some(name) = event.suite() else { return vec![event] };
        let of_this = |suite: &&mut SuiteWork| suite.name() == name && suite.is_with(guest);
        let Some(suite) = self.suites.iter_mut().find(of_this) else { return vec![event] };
        let has_ended = matches!(event, RunEvent::SuiteFinished { .. });
        let mut events = suite.observe(guest, event);
        // A test that came to an end of its own shows that guests are of use.
        let is_result = |event: &RunEvent| matches!(event, RunEvent::TestFinished { status, .. } if *status != wire::TestStatus::Error);
        if events.iter().any(is_result) {
            self.futile = 0;
        }
        if has_ended {
            events.extend(self.take_known_lists());
        }
        events
    }

    /// `guest` has ended. Gives the events of that; whether there is a next one says [`Self::new_guest`].
    pub fn guest_ended(&mut self, guest: u32, end: &GuestEnd) -> Vec<RunEvent> {
        let why = crate::report::outcome_in_words(&end.outcome);
        let lost_by_a_test = (end.fate == Fate::Lost).then(|| why.as_deref().unwrap_or("the guest was lost"));
        let mut explained = false;
        let mut events = Vec::new();
        for suite in &mut self.suites {
            let (more, by_a_test) = suite.lose(guest, lost_by_a_test);
            explained |= by_a_test;
            events.extend(more);
        }
        match end.fate {
            Fate::Done => {
                if end.outcome != RunOutcome::Completed {
                    self.outcome.get_or_insert_with(|| end.outcome.clone());
                }
            }
            Fate::Lost => {
                if !explained {
                    self.outcome.get_or_insert_with(|| end.outcome.clone());
                }
                self.futile += 1;
                if self.futile >= FUTILE {
                    let line =
                        format!("{FUTILE} guests in a row died before a test of theirs had come to its end; giving up");
                    events.push(RunEvent::Note { line });
                    self.over.get_or_insert_with(|| end.outcome.clone());
                } else if self.over.is_none() && self.suites.iter().any(SuiteWork::has_work) {
                    let line = "going on in a fresh guest behind the test that the last one was lost with".to_owned();
                    events.push(RunEvent::Note { line });
                }
            }
            Fate::NeverReady | Fate::Over => {
                self.over.get_or_insert_with(|| end.outcome.clone());
            }
        }
        events
    }

    /// Nothing more is to be started: Ctrl-C.
    pub fn interrupt(&mut self) {
        self.over = Some(RunOutcome::Interrupted);
    }

    /// All guests have ended: closes what is open, and says what the run came to.
    pub fn finish(&mut self) -> (Vec<RunEvent>, RunOutcome) {
        let outcome = self.over.clone().or_else(|| self.outcome.clone()).unwrap_or(RunOutcome::Completed);
        let why = crate::report::outcome_in_words(&outcome).unwrap_or_else(|| "the run ended".to_owned());
        let events = self.suites.iter_mut().flat_map(|suite| suite.give_up(&why)).collect();
        (events, outcome)
    }
}

#[cfg(test)]
mod tests;
