//! `junit.xml`, in the dialect that Jenkins, GitLab and GitHub reporters accept.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::atomic_file::write_atomically;
use super::printable::printable;
use super::reporter::{FinishedRun, Reporter, outcome_in_words};
use crate::session::TimedEvent;
use crate::verdict::{Judgement, Row, SuiteTally, Tally};

/// The suite that holds what happened to the machine itself.
const MACHINE_SUITE: &str = "vmm";

/// Written when the run ends, however it ends. What XML cannot carry is shown as an escape: quick-junit would drop most of
/// it without a word, and let two noncharacters through.
pub(super) struct Junit {
    dir: PathBuf,
}

impl Junit {
    /// Will write `junit.xml` in `dir`.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }
}

impl Reporter for Junit {
    fn name(&self) -> &'static str {
        "junit.xml"
    }

    fn on_event(&mut self, _: &TimedEvent, _: Option<Judgement>, _: &Tally) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self, run: &FinishedRun<'_>) -> io::Result<()> {
        let mut xml = Vec::new();
        report(run).serialize(&mut xml).map_err(io::Error::other)?;
        write_atomically(&self.dir, "junit.xml", 0o644, &xml)
    }
}

fn report(run: &FinishedRun<'_>) -> Report {
    let mut report = Report::new(run.name);
    report.set_time(run.duration);
    let trouble = outcome_in_words(run.outcome);
    for suite in run.tally.suites() {
        report.add_test_suite(test_suite(suite, trouble.as_deref(), run));
    }
    if let Some(trouble) = trouble {
        let mut machine = TestSuite::new(MACHINE_SUITE);
        machine.extra.insert("timestamp".into(), run.started.into());
        machine.add_test_case(test_case(MACHINE_SUITE, "machine", error_status(&trouble)));
        report.add_test_suite(machine);
    }
    report
}

fn test_suite(suite: &SuiteTally, run_trouble: Option<&str>, run: &FinishedRun<'_>) -> TestSuite {
    let mut out = TestSuite::new(printable(&suite.name));
    out.extra.insert("timestamp".into(), run.started.into());
    out.set_time(Duration::from_millis(suite.duration_ms));
    if let Some(release) = run.kernel_release {
        out.add_property(("kernel", printable(release).as_ref()));
    }
    out.add_property(("host", run.host));
    out.add_test_cases(suite.tests.iter().map(|row| row_case(&suite.name, row)));
    let trouble = suite.trouble.as_deref();
    if let Some(test) = &suite.running {
        let why = run_trouble.or(trouble).unwrap_or("it never ended");
        out.add_test_case(test_case(&suite.name, test, error_status(&format!("no result: {why}"))));
    }
    if let Some(trouble) = trouble {
        out.add_test_case(test_case(&suite.name, &format!("{} (the whole suite)", suite.name), error_status(trouble)));
    }
    out
}

fn row_case(suite: &str, row: &Row) -> TestCase {
    let skipped = |why: &str, detail: &str| {
        let mut status = TestCaseStatus::skipped();
        status.set_message(if detail.is_empty() { why.to_owned() } else { format!("{why}: {}", printable(detail)) });
        status
    };
    let status = match row.judgement {
        Judgement::Pass | Judgement::Fixed => TestCaseStatus::success(),
        Judgement::Fail | Judgement::FlakyBeyondRate => non_success(NonSuccessKind::Failure, &row.message),
        Judgement::NotRun => {
            non_success(NonSuccessKind::Failure, &format!("skipped, though it should run: {}", row.message))
        }
        Judgement::Error => error_status(&row.message),
        Judgement::Skip => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(printable(&row.message));
            status
        }
        // JUnit has no word for these; as failures they would turn a good run red.
        Judgement::ExpectedFail => skipped("failed as expected", &row.baseline()),
        Judgement::Flaky => skipped("failed as it does now and then", &row.baseline()),
        Judgement::Expunged => skipped("expunged", &row.baseline()),
    };
    let mut case = test_case(suite, &row.test, status);
    if row.duration_us > 0 {
        case.set_time(Duration::from_micros(row.duration_us));
    }
    case
}

fn test_case(suite: &str, name: &str, status: TestCaseStatus) -> TestCase {
    let mut case = TestCase::new(printable(name), status);
    case.set_classname(printable(suite));
    case
}

fn error_status(message: &str) -> TestCaseStatus {
    non_success(NonSuccessKind::Error, message)
}

/// The first line as the message, which reporters show in a list, and everything as the description.
fn non_success(kind: NonSuccessKind, message: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::non_success(kind);
    let lines: Vec<_> = message.lines().map(printable).collect();
    status.set_message(lines.first().map(AsRef::as_ref).unwrap_or_default());
    status.set_description(lines.join("\n"));
    status
}

#[cfg(test)]
mod tests;
