//! `report.html`: the run as one page that needs nothing else, to look at, to filter and to pass on.
//!
//! The results are JSON in the page; its script puts them there as text only, so nothing a guest says becomes markup.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use serde::Serialize;

use super::atomic_file::write_atomically;
use super::printable::printable;
use super::reporter::{FinishedRun, Reporter, outcome_in_words};
use crate::exit_code::ExitCode;
use crate::session::{RunEvent, TimedEvent};
use crate::verdict::{BaselineUse, Counts, Expected, Judgement, Row, Tally};

const PAGE: &str = include_str!("html_page.html");
/// Where in the page the results go.
const DATA: &str = "@DATA@";
/// The end of a bad test's output that is shown, bytes; its artefacts have more.
const OUTPUT_SHOWN: usize = 16 << 10;
/// All output in the page, bytes.
const ALL_OUTPUT: usize = 8 << 20;
/// The end of the kernel's log that is shown, bytes.
const KERNEL_LOG_SHOWN: usize = 64 << 10;

/// Stands in for a test's name where a suite fell over.
const WHOLE_SUITE: &str = "(the whole suite)";

/// Keeps the ends of what was printed; the page is written when the run ends, however it ends.
pub(super) struct Html {
    dir: PathBuf,
    /// By number.
    guests: HashMap<u32, Guest>,
    kernel_log: Tail,
    /// What bad tests printed, by suite and test.
    outputs: HashMap<(String, String), String>,
    output_left: usize,
}

/// What a guest is at.
struct Guest {
    /// Since its last result.
    printed: Tail,
    /// Suite and name of the test that has begun and not ended.
    running: Option<(String, String)>,
}

impl Default for Guest {
    fn default() -> Self {
        Self { printed: Tail::new(OUTPUT_SHOWN), running: None }
    }
}

impl Html {
    /// Will write `report.html` in `dir`.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            guests: HashMap::new(),
            kernel_log: Tail::new(KERNEL_LOG_SHOWN),
            outputs: HashMap::new(),
            output_left: ALL_OUTPUT,
        }
    }

    fn keep_output(&mut self, guest: u32, suite: &str, test: &str) {
        let text = self.guests.entry(guest).or_default().printed.take();
        if !text.is_empty() && text.len() <= self.output_left {
            self.output_left -= text.len();
            self.outputs.insert((suite.to_owned(), test.to_owned()), text);
        }
    }

    fn page(&mut self, run: &FinishedRun<'_>) -> io::Result<String> {
        let running = self.guests.iter_mut().filter_map(|(number, guest)| Some((*number, guest.running.take()?)));
        for (guest, (suite, test)) in running.collect::<Vec<_>>() {
            self.keep_output(guest, &suite, &test);
        }
        let kernel_log = self.kernel_log.text();
        let tests = run.tally.suites().iter().flat_map(|suite| {
            let rows = suite.tests.iter().map(|row| self.test(&suite.name, row));
            let whole = suite.trouble.as_ref().map(|trouble| self.without_result(&suite.name, WHOLE_SUITE, trouble));
            let cut = suite.running.as_ref().map(|test| {
                let why = outcome_in_words(run.outcome).unwrap_or_else(|| "it never ended".to_owned());
                self.without_result(&suite.name, test, &format!("no result: {why}"))
            });
            rows.chain(cut).chain(whole)
        });
        let baselines = run.tally.baselines(run.outcome);
        let mut facts = facts(run);
        facts.extend(baselines.iter().map(|used| ("Baseline", baseline_in_words(used))));
        let data = Data {
            run: run.name,
            verdict: verdict(run),
            exit_code: run.exit_code as u8,
            facts,
            tests: tests.collect(),
            did_not_occur: baselines.iter().flat_map(did_not_occur).collect(),
            not_listed: run.tally.rows_dropped(),
            kernel_log: shown(&kernel_log),
        };
        // `</script>` and `<!--` would end or change the element that the data are in.
        let json = serde_json::to_string(&data)?.replace('<', "\\u003c");
        Ok(PAGE.replacen(DATA, &json, 1))
    }

    fn test(&self, suite: &str, row: &Row) -> Test {
        Test {
            suite: printable(suite).into_owned(),
            test: printable(&row.test).into_owned(),
            judgement: row.judgement,
            duration_us: row.duration_us,
            message: shown(&row.explanation()),
            expected: row.known.as_ref().map(|known| known.expect),
            baseline: shown(&row.baseline()),
            link: row.known.as_ref().and_then(|known| known.link.clone()),
            output: self.output(suite, &row.test),
        }
    }

    /// What the suite told no result of.
    fn without_result(&self, suite: &str, test: &str, message: &str) -> Test {
        Test {
            suite: printable(suite).into_owned(),
            test: printable(test).into_owned(),
            judgement: Judgement::Error,
            duration_us: 0,
            message: shown(message),
            expected: None,
            baseline: String::new(),
            link: None,
            output: self.output(suite, test),
        }
    }

    fn output(&self, suite: &str, test: &str) -> String {
        self.outputs.get(&(suite.to_owned(), test.to_owned())).map(|text| shown(text)).unwrap_or_default()
    }
}

impl Reporter for Html {
    fn name(&self) -> &'static str {
        "report.html"
    }

    fn keeps_for_the_end(&self) -> bool {
        true
    }

    fn on_event(&mut self, event: &TimedEvent, judgement: Option<Judgement>, _: &Tally) -> io::Result<()> {
        let guest = self.guests.entry(event.guest).or_default();
        match &event.event {
            RunEvent::Output { text, .. } => guest.printed.push(text),
            RunEvent::KernelLog { text } => self.kernel_log.push(text),
            RunEvent::SuiteStarted { .. } => drop(guest.printed.take()),
            RunEvent::TestStarted { suite, test } => {
                guest.running = Some((suite.clone(), test.clone()));
                drop(guest.printed.take());
            }
            RunEvent::TestFinished { suite, test, .. } => {
                guest.running = None;
                match judgement {
                    Some(judgement) if judgement.is_failure() => self.keep_output(event.guest, suite, test),
                    _ => drop(guest.printed.take()),
                }
            }
            // Cut off, its last test is still running to the tally; else the suite as a whole is in trouble, if any is.
            RunEvent::SuiteFinished { suite, end, .. } => match guest.running.take() {
                Some((_, test)) if end.is_none() => self.keep_output(event.guest, suite, &test),
                _ => self.keep_output(event.guest, suite, WHOLE_SUITE),
            },
            // With all that it printed.
            RunEvent::MachineStopped { .. } if guest.running.is_none() && guest.printed.text.is_empty() => {
                self.guests.remove(&event.guest);
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, run: &FinishedRun<'_>) -> io::Result<()> {
        let page = self.page(run)?;
        write_atomically(&self.dir, "report.html", 0o644, page.as_bytes())
    }
}

#[derive(Serialize)]
struct Data<'a> {
    run: &'a str,
    verdict: String,
    exit_code: u8,
    facts: Vec<(&'static str, String)>,
    tests: Vec<Test>,
    did_not_occur: Vec<Missing>,
    not_listed: u64,
    kernel_log: String,
}

#[derive(Serialize)]
struct Test {
    suite: String,
    test: String,
    judgement: Judgement,
    duration_us: u64,
    message: String,
    /// What the baseline expects.
    expected: Option<Expected>,
    baseline: String,
    /// `http` or `https`: baselines are checked for that.
    link: Option<String>,
    output: String,
}

/// A test of a baseline that did not occur.
#[derive(Serialize)]
struct Missing {
    suite: String,
    test: String,
    expected: Expected,
    baseline: String,
}

fn did_not_occur(used: &BaselineUse) -> impl Iterator<Item = Missing> + '_ {
    used.did_not_occur.iter().map(|missing| Missing {
        suite: shown(
            &missing.section.as_ref().map_or(used.suite.clone(), |section| format!("{} {section}", used.suite)),
        ),
        test: shown(&missing.test),
        expected: missing.expect,
        baseline: shown(&missing.reason),
    })
}

fn baseline_in_words(used: &BaselineUse) -> String {
    let what = match &used.not_applied {
        Some(why) => format!("not applied: {why}"),
        None if used.tests == 1 => "1 test".to_owned(),
        None => format!("{} tests", used.tests),
    };
    printable(&format!("{} ({what})", used.source)).into_owned()
}

/// One sentence: what the exit code says.
fn verdict(run: &FinishedRun<'_>) -> String {
    let counts = run.tally.counts();
    if let Some(words) = outcome_in_words(run.outcome) {
        return shown(&words);
    }
    match run.exit_code {
        ExitCode::Success => format!("Passed all {} tests", counts.ran()),
        ExitCode::NothingRan => "Nothing ran".to_owned(),
        ExitCode::Regression if counts.bad() > 0 => format!("Failed {} of {} tests", counts.bad(), counts.due()),
        ExitCode::Regression => "A suite did not come to its end".to_owned(),
        _ => "Could not be tested".to_owned(),
    }
}

fn facts(run: &FinishedRun<'_>) -> Vec<(&'static str, String)> {
    let Counts { pass, fail, error, skip, not_run, expected_fail, fixed, flaky, flaky_beyond_rate, expunged } =
        run.tally.counts();
    let counted = [
        (pass, "passed"),
        (fail, "failed"),
        (error, "errors"),
        (skip, "skipped"),
        (not_run, "not run though they should"),
        (flaky_beyond_rate, "failed beyond their rate"),
        (flaky, "flaky within their rate"),
        (expected_fail, "failed as expected"),
        (fixed, "fixed"),
        (expunged, "expunged"),
    ];
    let counts: Vec<_> = counted.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    let kernel = run.kernel_release.map_or_else(|| "no guest came up".to_owned(), |k| printable(k).into_owned());
    vec![
        ("Results", if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }),
        ("Kernel", kernel),
        ("Host", run.host.to_owned()),
        ("Started", run.started.to_owned()),
        ("Took", format!("{:.1} s", run.duration.as_secs_f64())),
        ("Exit code", (run.exit_code as u8).to_string()),
        ("Run again with", printable(run.command).into_owned()),
    ]
}

/// Text of several lines without anything that would turn it around or hide in it.
fn shown(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

/// The first boundary between characters at `at` bytes or behind.
fn char_boundary(text: &str, at: usize) -> usize {
    (at..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len())
}

/// The end of a text of any length.
struct Tail {
    text: String,
    limit: usize,
    cut: bool,
}

impl Tail {
    fn new(limit: usize) -> Self {
        Self { text: String::new(), limit, cut: false }
    }

    fn push(&mut self, text: &str) {
        let over = text.len().saturating_sub(self.limit);
        let text = &text[char_boundary(text, over)..];
        self.cut |= over > 0;
        self.text.push_str(text);
        // Not with every piece: moving the rest costs as much as it is long.
        if self.text.len() > 2 * self.limit {
            self.trim();
        }
    }

    fn trim(&mut self) {
        let over = self.text.len().saturating_sub(self.limit);
        self.text.drain(..char_boundary(&self.text, over));
        self.cut |= over > 0;
    }

    fn text(&mut self) -> String {
        self.trim();
        let mark = if self.cut { "[…]\n" } else { "" };
        format!("{mark}{}", self.text)
    }

    fn take(&mut self) -> String {
        let text = if self.text.is_empty() { String::new() } else { self.text() };
        *self = Self::new(self.limit);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::TestStatus;

    use crate::report::test_events::{GARBAGE, finished_run, hostile_run, result};
    use crate::session::{RunOutcome, SuiteEnd};
    use crate::verdict::{Baseline, BaselineFile, Situation};

    /// The page's data after the run that `test_events` tells.
    fn data_of(page: &str) -> serde_json::Value {
        let (_, rest) = page.split_once(r#"id="data">"#).unwrap();
        let (json, _) = rest.split_once("</script>").unwrap();
        serde_json::from_str(json).unwrap()
    }

    fn page_of_hostile_run() -> String {
        let dir = tempfile::tempdir().unwrap();
        let mut html = Html::new(dir.path().to_owned());
        let mut tally = Tally::default();
        for event in hostile_run() {
            let judgement = tally.on_event(&event.event);
            html.on_event(&event, judgement, &tally).unwrap();
        }
        let outcome = RunOutcome::GuestDied { reason: GARBAGE.into() };
        html.finish(&finished_run(&tally, &outcome, ExitCode::GuestDied)).unwrap();
        std::fs::read_to_string(dir.path().join("report.html")).unwrap()
    }

    #[test]
    fn the_page_has_every_result_and_what_a_bad_test_printed() {
        let data = data_of(&page_of_hostile_run());
        let tests = data["tests"].as_array().unwrap();
        let judged: Vec<_> = tests.iter().map(|test| test["judgement"].as_str().unwrap()).collect();
        assert!(judged.starts_with(&["pass", "fail", "skip"]), "{judged:?}");
        let outputs: Vec<_> = tests.iter().map(|test| test["output"].as_str().unwrap()).collect();
        assert!(outputs[0].is_empty() && outputs[1].ends_with("end"), "{outputs:?}");
        assert!(outputs.iter().any(|text| text.contains("last words")), "{outputs:?}");
    }

    #[test]
    fn nothing_a_guest_says_leaves_its_place_in_the_page() {
        let page = page_of_hostile_run();
        assert!(GARBAGE.contains('<'));
        let data = page.split_once(r#"id="data">"#).unwrap().1.split_once("</script>").unwrap().0;
        assert!(!data.contains('<') && !data.contains('\u{202e}') && !data.contains('\x1b'));
        assert_eq!(page.matches("<script").count(), PAGE.matches("<script").count());
    }

    #[test]
    fn the_page_says_what_the_baseline_expects_and_which_of_its_tests_did_not_occur() {
        let text = "suite = 's'\n[[test]]\nname = 'a'\nexpect = 'flaky'\nfailed = 1\nruns = 9\nreason = '</script>'\n\
                    link = 'https://example.org/1'\n[[test]]\nname = 'gone\u{202e}'\nexpect = 'fail'\n";
        let suites = ["s".to_owned()];
        let mut baseline = Baseline::default();
        let situation = Situation { suites: &suites, cache: "auto" };
        baseline.add_file("my.toml".into(), BaselineFile::parse("f", text).unwrap(), situation);
        baseline.add_file("other.toml".into(), BaselineFile::parse("f", "suite = 't'").unwrap(), situation);
        let mut tally = Tally::new(baseline);
        tally.on_event(&result("a", TestStatus::Fail, "EIO"));
        let end = Some(SuiteEnd::Exited(1));
        tally.on_event(&RunEvent::SuiteFinished { suite: "s".into(), end, duration_ms: 1 });
        let dir = tempfile::tempdir().unwrap();
        let outcome = RunOutcome::Completed;
        Html::new(dir.path().to_owned()).finish(&finished_run(&tally, &outcome, ExitCode::Success)).unwrap();
        let page = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
        assert_eq!(page.matches("<script").count(), PAGE.matches("<script").count());
        let data = data_of(&page);
        let test = &data["tests"][0];
        assert_eq!((test["judgement"].as_str(), test["expected"].as_str()), (Some("flaky"), Some("flaky")));
        assert_eq!(test["baseline"], "failed 1 of 9 runs: </script>");
        assert_eq!(test["link"], "https://example.org/1");
        assert_eq!(data["did_not_occur"][0]["test"], "gone\\u{202e}");
        let facts = data["facts"].to_string();
        assert!(facts.contains("my.toml (2 tests)") && facts.contains("other.toml (not applied: "), "{facts}");
    }

    #[test]
    fn output_without_end_is_kept_to_its_end() {
        let mut tail = Tail::new(10);
        for piece in ["é".repeat(100).as_str(), "0123456789", "abc"] {
            tail.push(piece);
        }
        assert_eq!(tail.take(), "[…]\n3456789abc");
        tail.push("short");
        assert_eq!(tail.take(), "short");
        assert_eq!(tail.take(), "");
    }
}
