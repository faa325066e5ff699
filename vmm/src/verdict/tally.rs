//! The results of a run so far, judged: what the exit code, the summary and every file written at the end are made from.

use serde::Serialize;
use wire::TestStatus;

use super::baseline::{Baseline, Judgement};
use crate::session::{RunEvent, SuiteEnd};

/// Results kept one by one. A guest that tells more is counted, not stored: it must not fill the host's memory.
pub const MAX_ROWS: usize = 250_000;
/// Longest message kept with a result, bytes.
pub const MAX_MESSAGE: usize = 16 << 10;
/// Longest name kept with a result, bytes.
const MAX_NAME: usize = 1 << 10;
/// All messages together, bytes; later ones are dropped.
const MAX_ALL_MESSAGES: usize = 64 << 20;

/// How many results of each judgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Passed.
    pub pass: u64,
    /// Failed unexpectedly.
    pub fail: u64,
    /// Could not be judged, unexpectedly.
    pub error: u64,
    /// Skipped by the suite.
    pub skip: u64,
    /// Failed as expected.
    pub expected_fail: u64,
    /// Passed though expected to fail.
    pub fixed: u64,
    /// Excluded.
    pub expunged: u64,
}

impl Counts {
    fn add(&mut self, judgement: Judgement) {
        let slot = match judgement {
            Judgement::Pass => &mut self.pass,
            Judgement::Fail => &mut self.fail,
            Judgement::Error => &mut self.error,
            Judgement::Skip => &mut self.skip,
            Judgement::ExpectedFail => &mut self.expected_fail,
            Judgement::Fixed => &mut self.fixed,
            Judgement::Expunged => &mut self.expunged,
        };
        *slot += 1;
    }

    /// Results of any kind.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.ran() + self.skip + self.expunged
    }

    /// Tests that ran and count.
    #[must_use]
    pub fn ran(&self) -> u64 {
        self.pass + self.fixed + self.expected_fail + self.bad()
    }

    /// Results that should have been better.
    #[must_use]
    pub fn bad(&self) -> u64 {
        self.fail + self.error
    }
}

/// One result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The test's name.
    pub test: String,
    /// What the suite says.
    pub status: TestStatus,
    /// What that means.
    pub judgement: Judgement,
    /// Microseconds; 0 when not known.
    pub duration_us: u64,
    /// The suite's message, at most [`MAX_MESSAGE`] bytes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What the baseline says of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub baseline: String,
}

/// One suite of the run.
#[derive(Clone, Debug, Serialize)]
pub struct SuiteTally {
    /// Its name.
    pub name: String,
    /// Its results' counts.
    pub counts: Counts,
    /// How its process ended, when it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<SuiteEnd>,
    /// Milliseconds from its start to its end.
    pub duration_ms: u64,
    /// Why it is not complete, in words: not started, crashed, cut off. `None` when it came to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Whether `trouble` is that it was never started.
    pub not_started: bool,
    /// Its results in the order they came.
    pub tests: Vec<Row>,
    /// The test that has begun and not ended.
    #[serde(skip)]
    pub running: Option<String>,
}

impl SuiteTally {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            counts: Counts::default(),
            end: None,
            duration_ms: 0,
            trouble: None,
            not_started: false,
            tests: Vec::new(),
            running: None,
        }
    }
}

/// Everything learned so far.
#[derive(Debug, Default)]
pub struct Tally {
    baseline: Baseline,
    counts: Counts,
    suites: Vec<SuiteTally>,
    rows: usize,
    message_bytes: usize,
}

impl Tally {
    /// An empty one that judges by `baseline`.
    #[must_use]
    pub fn new(baseline: Baseline) -> Self {
        Self { baseline, ..Self::default() }
    }

    /// All suites' counts together.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The suites heard of so far.
    #[must_use]
    pub fn suites(&self) -> &[SuiteTally] {
        &self.suites
    }

    /// Results that came after [`MAX_ROWS`]: counted, but not kept.
    #[must_use]
    pub fn rows_dropped(&self) -> u64 {
        self.counts.total().saturating_sub(self.rows as u64)
    }

    /// Takes an event in; for a test's result, what it means.
    pub fn on_event(&mut self, event: &RunEvent) -> Option<Judgement> {
        match event {
            RunEvent::SuiteStarted { suite } => {
                self.suites.push(SuiteTally::new(suite));
            }
            RunEvent::TestStarted { suite, test } => self.suite(suite).running = Some(test.clone()),
            RunEvent::TestFinished { suite, test, status, duration_us, message } => {
                return Some(self.add_result(suite, test, *status, *duration_us, message));
            }
            RunEvent::SuiteFinished { suite, end, duration_ms } => {
                let suite = self.suite(suite);
                suite.end = *end;
                suite.duration_ms = *duration_ms;
                suite.trouble = trouble_of(suite);
                if end.is_some() {
                    suite.running = None;
                }
            }
            RunEvent::SuiteNotStarted { suite, error } => {
                let suite = self.suite(suite);
                suite.trouble = Some(format!("could not be started: {error}"));
                suite.not_started = true;
            }
            _ => {}
        }
        None
    }

    fn add_result(
        &mut self,
        suite: &str,
        test: &str,
        status: TestStatus,
        duration_us: u64,
        message: &str,
    ) -> Judgement {
        let (judgement, line) = self.baseline.judge(test, status);
        let baseline = line.map(|line| line.reason.clone()).unwrap_or_default();
        self.counts.add(judgement);
        let room = MAX_ALL_MESSAGES.saturating_sub(self.message_bytes).min(MAX_MESSAGE);
        let message = truncated(message, room).to_owned();
        let keep = self.rows < MAX_ROWS;
        if keep {
            self.rows += 1;
            self.message_bytes += message.len();
        }
        let suite = self.suite(suite);
        suite.counts.add(judgement);
        if suite.running.as_deref() == Some(test) {
            suite.running = None;
        }
        if keep {
            let test = truncated(test, MAX_NAME).to_owned();
            suite.tests.push(Row { test, status, judgement, duration_us, message, baseline });
        }
        judgement
    }

    /// The latest suite of that name; results of one that was never announced are not lost either.
    fn suite(&mut self, name: &str) -> &mut SuiteTally {
        let at = self.suites.iter().rposition(|suite| suite.name == name).unwrap_or_else(|| {
            self.suites.push(SuiteTally::new(name));
            self.suites.len() - 1
        });
        &mut self.suites[at]
    }
}

/// A suite's process says by its exit code that something is wrong; when no single result accounts for that, the suite is
/// in trouble as a whole.
fn trouble_of(suite: &SuiteTally) -> Option<String> {
    let explained = suite.counts.bad() + suite.counts.expected_fail + suite.counts.expunged > 0;
    match suite.end {
        Some(SuiteEnd::Exited(0)) => None,
        Some(SuiteEnd::Exited(_)) if explained => None,
        Some(SuiteEnd::Exited(code)) => Some(format!("ended with exit code {code}, though no test failed")),
        Some(SuiteEnd::Signaled(signal)) => Some(format!("killed by signal {signal}")),
        None => Some("cut off before its end".to_owned()),
    }
}

/// The longest start of `text` that has at most `limit` bytes.
pub(crate) fn truncated(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(test: &str, status: TestStatus) -> RunEvent {
        RunEvent::TestFinished { suite: "s".into(), test: test.into(), status, duration_us: 5, message: String::new() }
    }

    fn ended(end: Option<SuiteEnd>) -> RunEvent {
        RunEvent::SuiteFinished { suite: "s".into(), end, duration_ms: 7 }
    }

    #[test]
    fn results_are_counted_and_kept_in_order() {
        let mut tally = Tally::default();
        tally.on_event(&RunEvent::SuiteStarted { suite: "s".into() });
        tally.on_event(&finished("a", TestStatus::Pass));
        tally.on_event(&finished("b", TestStatus::Fail));
        tally.on_event(&finished("c", TestStatus::Skip));
        tally.on_event(&finished("d", TestStatus::Error));
        let counts = tally.counts();
        assert_eq!((counts.pass, counts.fail, counts.skip, counts.error), (1, 1, 1, 1));
        assert_eq!((counts.total(), counts.ran(), counts.bad()), (4, 3, 2));
        let names: Vec<_> = tally.suites()[0].tests.iter().map(|row| row.test.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_suite_that_was_never_announced_keeps_its_results() {
        let mut tally = Tally::default();
        tally.on_event(&finished("a", TestStatus::Pass));
        assert_eq!(tally.suites().len(), 1);
    }

    #[test]
    fn the_running_test_is_known_until_it_ends() {
        let mut tally = Tally::default();
        tally.on_event(&RunEvent::TestStarted { suite: "s".into(), test: "a".into() });
        assert_eq!(tally.suites()[0].running.as_deref(), Some("a"));
        tally.on_event(&finished("a", TestStatus::Pass));
        assert_eq!(tally.suites()[0].running, None);
    }

    #[test]
    fn an_exit_code_that_failures_explain_is_no_trouble() {
        let mut tally = Tally::default();
        tally.on_event(&finished("a", TestStatus::Fail));
        tally.on_event(&ended(Some(SuiteEnd::Exited(1))));
        assert_eq!(tally.suites()[0].trouble, None);
    }

    #[test]
    fn an_exit_code_that_nothing_explains_is_trouble() {
        for end in [Some(SuiteEnd::Exited(1)), Some(SuiteEnd::Signaled(11)), None] {
            let mut tally = Tally::default();
            tally.on_event(&finished("a", TestStatus::Pass));
            tally.on_event(&ended(end));
            assert!(tally.suites()[0].trouble.is_some(), "{end:?}");
        }
    }

    #[test]
    fn a_crash_is_trouble_even_when_tests_failed_before() {
        let mut tally = Tally::default();
        tally.on_event(&finished("a", TestStatus::Fail));
        tally.on_event(&ended(Some(SuiteEnd::Signaled(11))));
        assert_eq!(tally.suites()[0].trouble.as_deref(), Some("killed by signal 11"));
    }

    #[test]
    fn a_message_is_cut_at_a_character_and_the_sum_is_bounded() {
        let mut tally = Tally::default();
        let message = "é".repeat(MAX_MESSAGE);
        for i in 0..(MAX_ALL_MESSAGES / MAX_MESSAGE + 100) {
            let test = format!("t{i}");
            let status = TestStatus::Fail;
            let message = message.clone();
            tally.on_event(&RunEvent::TestFinished { suite: "s".into(), test, status, duration_us: 0, message });
        }
        let tests = &tally.suites()[0].tests;
        assert_eq!(tests[0].message.len(), MAX_MESSAGE);
        assert!(tests.iter().map(|row| row.message.len()).sum::<usize>() <= MAX_ALL_MESSAGES);
        assert!(tests.last().unwrap().message.is_empty());
    }

    #[test]
    fn a_guest_that_never_stops_telling_results_is_counted_but_not_stored() {
        let mut tally = Tally::default();
        let event = finished("a", TestStatus::Pass);
        for _ in 0..=MAX_ROWS {
            tally.on_event(&event);
        }
        assert_eq!(tally.counts().pass, MAX_ROWS as u64 + 1);
        assert_eq!(tally.suites()[0].tests.len(), MAX_ROWS);
        assert_eq!(tally.rows_dropped(), 1);
    }
}
