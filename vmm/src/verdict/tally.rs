//! The results of a run so far, judged: what the exit code, the summary and every file written at the end are made from.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use wire::TestStatus;

use super::baseline::{Baseline, BaselineUse, split_section};
use super::baseline_file::MAX_NAME;
use super::counts::Counts;
use super::judgement::{Attempts, Expectation, Expected, Judgement};
use super::retried::Retried;
use crate::session::{RunEvent, RunOutcome, SuiteEnd};

/// Results kept one by one. A guest that tells more is counted, not stored: it must not fill the host's memory.
pub const MAX_ROWS: usize = 250_000;
/// Longest message kept with a result, bytes.
pub const MAX_MESSAGE: usize = 16 << 10;
/// All messages together, bytes; later ones are dropped.
const MAX_ALL_MESSAGES: usize = 64 << 20;

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
    /// What it did when it ran again alone, if it failed and did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retried: Option<Retried>,
    /// The suite's message, at most [`MAX_MESSAGE`] bytes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// What the baseline says of it.
    #[serde(rename = "baseline", skip_serializing_if = "Option::is_none", serialize_with = "inside")]
    pub known: Option<Arc<Expectation>>,
}

fn inside<S: Serializer>(known: &Option<Arc<Expectation>>, to: S) -> Result<S::Ok, S::Error> {
    known.as_deref().serialize(to)
}

impl Row {
    /// The suite's message, and what the test did when it ran again.
    #[must_use]
    pub fn explanation(&self) -> String {
        match self.retried {
            Some(retried) => format!("{}\n{}", retried.in_words(), self.message).trim_end().to_owned(),
            None => self.message.clone(),
        }
    }

    /// What the baseline says of it in one line; empty if nothing.
    #[must_use]
    pub fn baseline(&self) -> String {
        self.known.as_ref().map(|known| known.in_words()).unwrap_or_default()
    }
}

/// The results of a test that fails now and then: what the next one is, more of them may change of those before.
#[derive(Debug, Default)]
struct FlakyTest {
    attempts: Attempts,
    /// Suite and row of its failures that are kept.
    failures: Vec<(usize, usize)>,
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
    /// By suite and test; no more than the baselines name.
    flaky: HashMap<(String, String), FlakyTest>,
    /// What is to be told of the baseline.
    notes: Vec<String>,
    kernel_known: bool,
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

    /// What became of each baseline in a run that came to `outcome`.
    #[must_use]
    pub fn baselines(&self, outcome: &RunOutcome) -> Vec<BaselineUse> {
        self.baseline.uses(*outcome == RunOutcome::Completed, |suite, section| {
            let all = || self.suites.iter().map(|tally| (split_section(&tally.name), tally));
            let mut these = all()
                .filter(|((name, its_section), _)| *name == suite && (section.is_none() || section == *its_section))
                .peekable();
            these.peek().is_some() && these.all(|(_, tally)| tally.end.is_some() && tally.trouble.is_none())
        })
    }

    /// Lines that the user is to be told, each once.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Takes an event in; for a test's result, what it means.
    pub fn on_event(&mut self, event: &RunEvent) -> Option<Judgement> {
        match event {
            // One kernel for the whole run, however often it boots.
            RunEvent::GuestReady { kernel_release, .. } if !self.kernel_known => {
                self.kernel_known = true;
                self.notes = self.baseline.on_kernel(kernel_release);
            }
            RunEvent::SuiteStarted { suite } => {
                self.suites.push(SuiteTally::new(suite));
            }
            RunEvent::TestStarted { suite, test } => self.suite(suite).running = Some(test.clone()),
            RunEvent::TestFinished { suite, test, status, duration_us, message } => {
                return Some(self.add_result(suite, test, *status, *duration_us, message));
            }
            RunEvent::TestRetried { suite, test, status, .. } => {
                let rows =
                    self.suites.iter_mut().filter(|tally| tally.name == *suite).flat_map(|tally| &mut tally.tests);
                for row in rows.filter(|row| row.test == *test && (row.judgement.is_bad() || row.retried.is_some())) {
                    row.retried.get_or_insert_default().add(*status);
                }
                let known = self.baseline.find(suite, test);
                self.attempt(suite, test, *status, known.as_deref());
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
        let known = self.baseline.find(suite, test);
        let judgement = self.judge(suite, test, status, known.as_deref());
        self.counts.add(judgement);
        let room = MAX_ALL_MESSAGES.saturating_sub(self.message_bytes).min(MAX_MESSAGE);
        let message = truncated(message, room).to_owned();
        let keep = self.rows < MAX_ROWS;
        if keep {
            self.rows += 1;
            self.message_bytes += message.len();
        }
        let at = self.suite_index(suite);
        let tally = &mut self.suites[at];
        tally.counts.add(judgement);
        if tally.running.as_deref() == Some(test) {
            tally.running = None;
        }
        if keep {
            if matches!(judgement, Judgement::Flaky | Judgement::FlakyBeyondRate) {
                let key = (suite.to_owned(), test.to_owned());
                self.flaky.entry(key).or_default().failures.push((at, tally.tests.len()));
            }
            let test = truncated(test, MAX_NAME).to_owned();
            tally.tests.push(Row { test, status, judgement, duration_us, retried: None, message, known });
        }
        judgement
    }

    /// Judges a result that is not yet kept.
    fn judge(&mut self, suite: &str, test: &str, status: TestStatus, known: Option<&Expectation>) -> Judgement {
        let attempts = self.attempt(suite, test, status, known);
        Judgement::of(status, known, attempts)
    }

    /// Counts one more attempt of a test if it is flaky; gives all of them. They may make its earlier failures probable, or
    /// improbable: those are judged again.
    fn attempt(&mut self, suite: &str, test: &str, status: TestStatus, known: Option<&Expectation>) -> Attempts {
        let mut attempts = Attempts::default();
        if known.is_some_and(|known| known.expect == Expected::Flaky) {
            let flaky = self.flaky.entry((suite.to_owned(), test.to_owned())).or_default();
            flaky.attempts.add(status);
            attempts = flaky.attempts;
            let failures = Judgement::of(TestStatus::Fail, known, attempts);
            for &(suite, row) in &flaky.failures {
                let suite = &mut self.suites[suite];
                let earlier = std::mem::replace(&mut suite.tests[row].judgement, failures);
                suite.counts.change(earlier, failures);
                self.counts.change(earlier, failures);
            }
        }
        attempts
    }

    /// The latest suite of that name; results of one that was never announced are not lost either.
    fn suite(&mut self, name: &str) -> &mut SuiteTally {
        let at = self.suite_index(name);
        &mut self.suites[at]
    }

    fn suite_index(&mut self, name: &str) -> usize {
        self.suites.iter().rposition(|suite| suite.name == name).unwrap_or_else(|| {
            self.suites.push(SuiteTally::new(name));
            self.suites.len() - 1
        })
    }
}

/// A suite's process says by its exit code that something is wrong; when no single result accounts for that, the suite is
/// in trouble as a whole.
fn trouble_of(suite: &SuiteTally) -> Option<String> {
    let Counts { expected_fail, flaky, expunged, not_run, .. } = suite.counts;
    let explained = suite.counts.bad() - not_run + expected_fail + flaky + expunged > 0;
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
    use crate::verdict::{BaselineFile, Situation};

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

    fn tally_with(baseline: &str) -> Tally {
        let suites = ["s".to_owned()];
        let mut with = Baseline::default();
        let file = BaselineFile::parse("f", baseline).unwrap();
        with.add_file("f".into(), file, Situation { suites: &suites, cache: "auto" });
        Tally::new(with)
    }

    #[test]
    fn a_failure_that_ran_again_is_told_with_what_it_did_then() {
        let mut tally = Tally::default();
        tally.on_event(&finished("a", TestStatus::Fail));
        tally.on_event(&finished("b", TestStatus::Pass));
        for (test, status) in [("a", TestStatus::Fail), ("b", TestStatus::Pass), ("a", TestStatus::Pass)] {
            let (suite, test, message) = ("s".into(), test.into(), String::new());
            tally.on_event(&RunEvent::TestRetried { suite, test, status, duration_us: 1, message });
        }
        let rows = &tally.suites()[0].tests;
        assert_eq!(rows[0].retried, Some(Retried { attempts: 2, failed: 1 }));
        assert!(rows[0].explanation().starts_with("flaky: "), "{}", rows[0].explanation());
        assert_eq!(rows[1].retried, None);
        assert_eq!(tally.counts().bad(), 1, "a failure stays one");
    }

    #[test]
    fn results_are_judged_by_suite_section_and_test() {
        let mut tally = tally_with(
            "suite = 's'\n[[test]]\nname = 'a'\nexpect = 'fail'\nreason = 'bug 7'\n[[test]]\nname = 'b'\nexpect = 'pass'\n",
        );
        assert_eq!(tally.on_event(&finished("a", TestStatus::Fail)), Some(Judgement::ExpectedFail));
        assert_eq!(tally.on_event(&finished("b", TestStatus::Skip)), Some(Judgement::NotRun));
        let row = &tally.suites()[0].tests[0];
        assert_eq!(row.baseline(), "bug 7");
        let json = serde_json::to_value(row).unwrap();
        assert_eq!(json["baseline"], serde_json::json!({ "expect": "fail", "reason": "bug 7" }));
        let counts = tally.counts();
        assert_eq!((counts.bad(), counts.ran(), counts.due(), counts.total()), (1, 1, 2, 2));
    }

    #[test]
    fn failures_of_a_flaky_test_are_judged_by_all_its_attempts_whichever_came_first() {
        let text = "suite = 's'\n[[test]]\nname = 'a'\nexpect = 'flaky'\nfailed = 1\nruns = 11\n";
        let mut tally = tally_with(text);
        let mut judge = |status| tally.on_event(&finished("a", status)).unwrap();
        assert_eq!(judge(TestStatus::Fail), Judgement::Flaky);
        assert_eq!(judge(TestStatus::Fail), Judgement::FlakyBeyondRate);
        assert_eq!(judge(TestStatus::Pass), Judgement::Pass);
        // Two of three: 2.3 %.
        let counts = tally.counts();
        assert_eq!((counts.flaky, counts.flaky_beyond_rate, counts.pass), (2, 0, 1));
        assert_eq!(tally.suites()[0].counts, counts);
        let judged: Vec<_> = tally.suites()[0].tests.iter().map(|row| row.judgement).collect();
        assert_eq!(judged, [Judgement::Flaky, Judgement::Flaky, Judgement::Pass]);
        tally.on_event(&finished("a", TestStatus::Error));
        let counts = tally.counts();
        assert_eq!((counts.flaky, counts.flaky_beyond_rate, counts.bad()), (0, 3, 3));
    }

    #[test]
    fn attempts_of_a_flaky_test_that_ran_again_count_too() {
        let text = "suite = 's'\n[[test]]\nname = 'a'\nexpect = 'flaky'\nfailed = 1\nruns = 150\n";
        let mut tally = tally_with(text);
        assert_eq!(tally.on_event(&finished("a", TestStatus::Fail)), Some(Judgement::FlakyBeyondRate));
        for attempts in 1..=3 {
            let (suite, test, message) = ("s".into(), "a".into(), String::new());
            tally.on_event(&RunEvent::TestRetried { suite, test, status: TestStatus::Pass, duration_us: 1, message });
            let row = &tally.suites()[0].tests[0];
            assert_eq!((row.judgement, row.retried), (Judgement::Flaky, Some(Retried { attempts, failed: 0 })));
        }
        assert_eq!((tally.counts().flaky, tally.counts().bad()), (1, 0));
    }

    #[test]
    fn the_guests_kernel_decides_which_baselines_are_applied() {
        let text = "suite = 's'\nkernel = '>=6.13'\n[[test]]\nname = 'a'\nexpect = 'fail'\n";
        for (release, judgement, notes) in [("6.12.1", Judgement::Fail, 1), ("6.13.0-rc1", Judgement::ExpectedFail, 0)]
        {
            let mut tally = tally_with(text);
            let ready = RunEvent::GuestReady { kernel_release: release.into(), uptime_ms: 1, mounts: vec![] };
            tally.on_event(&ready);
            tally.on_event(&ready);
            assert_eq!((tally.take_notes().len(), tally.take_notes().len()), (notes, 0));
            assert_eq!(tally.on_event(&finished("a", TestStatus::Fail)), Some(judgement));
        }
    }

    #[test]
    fn tests_of_the_baseline_that_did_not_occur_are_told_once_their_suite_has_ended() {
        let text = "suite = 's'\n[[test]]\nname = 'gone'\nexpect = 'fail'\n";
        for (end, outcome, missing) in [
            (Some(SuiteEnd::Exited(0)), RunOutcome::Completed, 1),
            (Some(SuiteEnd::Signaled(9)), RunOutcome::Completed, 0),
            (None, RunOutcome::Completed, 0),
            (Some(SuiteEnd::Exited(0)), RunOutcome::Interrupted, 0),
        ] {
            let mut tally = tally_with(text);
            tally.on_event(&finished("a", TestStatus::Pass));
            assert!(tally.baselines(&RunOutcome::Completed)[0].did_not_occur.is_empty(), "it may still come");
            tally.on_event(&ended(end));
            assert_eq!(tally.baselines(&outcome)[0].did_not_occur.len(), missing, "{end:?} {outcome:?}");
        }
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
