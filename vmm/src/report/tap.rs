//! `--format tap` and `--format ktap`: results for other programs, on standard output, each as it comes.
//!
//! TAP (<https://testanything.org>): one test point for each result, named `suite: test`, flat, as several machines may tell
//! results at a time. What is written is version 14 without subtests, but says 13: those are the same there, and the
//! parser that comes with Perl, `prove`, refuses a higher number. KTAP is the kernel's dialect
//! (Documentation/dev-tools/ktap.rst), with no YAML and no plan behind the results.

use std::io::{self, Write};

use clap::ValueEnum;
use wire::TestStatus;

use super::printable::printable;
use super::reporter::{FinishedRun, Reporter, outcome_in_words};
use crate::session::{RunEvent, TimedEvent};
use crate::verdict::{Judgement, Row, Tally, truncated};

/// Longest name, reason or comment, bytes.
const LINE_LENGTH: usize = 400;
/// What is shown of a message, bytes; the rest is in the results folder.
const MESSAGE_LENGTH: usize = 4 << 10;
/// Stands in for a test's name where a suite fell over.
const WHOLE_SUITE: &str = "(the whole suite)";

/// What standard output is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people
    #[default]
    Text,
    /// TAP, as prove and most CI systems read it; failures and the summary go to standard error
    Tap,
    /// The kernel's dialect of TAP, likewise
    Ktap,
}

/// Writes test points.
pub(super) struct Tap {
    ktap: bool,
    to: Box<dyn Write + Send>,
    points: u64,
}

/// What a test point says besides its name.
struct Point<'a> {
    ok: bool,
    /// `SKIP reason` and the like; may be empty.
    directive: String,
    /// Name and value of what explains it.
    details: Vec<(&'static str, &'a str)>,
}

impl Tap {
    /// On standard output; `None` where that is for people.
    pub(super) fn stdout(format: OutputFormat) -> Option<Self> {
        match format {
            OutputFormat::Text => None,
            OutputFormat::Tap | OutputFormat::Ktap => Some(Self::new(format, Box::new(io::stdout()))),
        }
    }

    fn new(format: OutputFormat, to: Box<dyn Write + Send>) -> Self {
        Self { ktap: format == OutputFormat::Ktap, to, points: 0 }
    }

    /// In one write, and out at once.
    fn write(&mut self, text: &str) -> io::Result<()> {
        self.to.write_all(text.as_bytes())?;
        self.to.flush()
    }

    fn comment(&mut self, text: &str) -> io::Result<()> {
        self.write(&format!("# {}\n", one_line(text)))
    }

    fn point(&mut self, suite: &str, test: &str, point: &Point<'_>) -> io::Result<()> {
        self.points += 1;
        let name = format!("{}: {}", one_line(suite), one_line(test));
        let result = if point.ok { "ok" } else { "not ok" };
        let directive = match point.directive.as_str() {
            "" => String::new(),
            text => format!(" # {}", one_line(text)),
        };
        let mut text = String::new();
        if self.ktap {
            // There what explains a result goes before it, and no name has a hash.
            for (what, value) in &point.details {
                let lines = truncated(value, MESSAGE_LENGTH).lines();
                lines.for_each(|line| text.push_str(&format!("# {what}: {}\n", printable(line))));
            }
            text.push_str(&format!("{result} {} {}{directive}\n", self.points, name.replace('#', "\\u{23}")));
        } else {
            let name = name.replace('\\', "\\\\").replace('#', "\\#");
            text.push_str(&format!("{result} {} - {name}{directive}\n", self.points));
            if !point.details.is_empty() {
                text.push_str("  ---\n");
                for (what, value) in &point.details {
                    text.push_str(&format!("  {what}: {}\n", quoted(value)?));
                }
                text.push_str("  ...\n");
            }
        }
        self.write(&text)
    }

    fn result(&mut self, event: &RunEvent, judgement: Judgement, row: Option<&Row>) -> io::Result<()> {
        let RunEvent::TestFinished { suite, test, status, message, .. } = event else { return Ok(()) };
        let known = row.and_then(|row| row.known.as_deref());
        let said = known.map(|known| known.in_words()).unwrap_or_default();
        let because = |words: &str| if said.is_empty() { words.to_owned() } else { format!("{words}: {said}") };
        let expected = if self.ktap { "XFAIL" } else { "TODO" };
        let directive = match judgement {
            Judgement::Skip => format!("SKIP {message}"),
            Judgement::Expunged => format!("SKIP {}", because("expunged")),
            Judgement::ExpectedFail => format!("{expected} {}", because("failed as expected")),
            Judgement::Flaky => format!("{expected} flaky within its rate: {said}"),
            // A TODO that passes is a bonus to a TAP parser, and nothing to a KTAP one.
            Judgement::Fixed if !self.ktap => format!("TODO {}", because("passed though expected not to")),
            Judgement::Error if self.ktap => "ERROR".to_owned(),
            _ => String::new(),
        };
        // As kselftest has it: expected failures are ok there.
        let expected_ok = self.ktap && matches!(judgement, Judgement::ExpectedFail | Judgement::Flaky);
        let ok = !judgement.is_bad() && !judgement.is_failure() || expected_ok;
        let judged = serde_json::to_value(judgement)?;
        let mut details = Vec::new();
        if judgement.is_bad() || judgement.is_failure() {
            details.push(("status", status_word(*status)));
            details.push(("judgement", judged.as_str().unwrap_or_default()));
            details.push(("baseline", said.as_str()));
            details.push(("link", known.and_then(|known| known.link.as_deref()).unwrap_or_default()));
            details.push(("message", message.as_str()));
            details.retain(|(_, value)| !value.is_empty());
        }
        self.point(suite, test, &Point { ok, directive, details })
    }

    fn broken(&mut self, suite: &str, test: &str, why: &str) -> io::Result<()> {
        let directive = if self.ktap { "ERROR".to_owned() } else { String::new() };
        let details = vec![("status", "error"), ("message", why)];
        self.point(suite, test, &Point { ok: false, directive, details })
    }
}

impl Reporter for Tap {
    fn name(&self) -> &'static str {
        super::terminal::NAME
    }

    /// A document has all results.
    fn keeps_for_the_end(&self) -> bool {
        true
    }

    fn on_event(&mut self, event: &TimedEvent, judgement: Option<Judgement>, tally: &Tally) -> io::Result<()> {
        let latest = |name: &str| tally.suites().iter().rfind(|suite| suite.name == name);
        match &event.event {
            RunEvent::RunStarted { suites, host, .. } => {
                self.write(if self.ktap { "KTAP version 1\n" } else { "TAP version 13\n" })?;
                self.comment(&format!("running {} (host: {host})", suites.join(", ")))
            }
            RunEvent::GuestReady { kernel_release, .. } => {
                self.comment(&format!("guest is up: Linux {kernel_release}"))
            }
            RunEvent::TestFinished { suite, test, .. } => {
                let row = latest(suite).and_then(|suite| suite.tests.last()).filter(|row| row.test == *test);
                judgement.map_or(Ok(()), |judgement| self.result(&event.event, judgement, row))
            }
            RunEvent::SuiteFinished { suite, .. } => match latest(suite).and_then(|suite| suite.trouble.as_deref()) {
                Some(trouble) => self.broken(suite, WHOLE_SUITE, trouble),
                None => Ok(()),
            },
            RunEvent::SuiteNotStarted { suite, error } => {
                self.broken(suite, WHOLE_SUITE, &format!("could not be started: {error}"))
            }
            RunEvent::Note { line } => self.comment(line),
            _ => Ok(()),
        }
    }

    fn finish(&mut self, run: &FinishedRun<'_>) -> io::Result<()> {
        let trouble = outcome_in_words(run.outcome);
        for suite in run.tally.suites() {
            if let Some(test) = &suite.running {
                let why = trouble.as_deref().or(suite.trouble.as_deref()).unwrap_or("it never ended");
                self.broken(&suite.name, test, &format!("no result: {why}"))?;
            }
        }
        for failed in run.failed_reporters {
            self.comment(failed)?;
        }
        self.comment(&format!("results: {}", run.dir.display()))?;
        match trouble {
            Some(trouble) => {
                if self.ktap {
                    // It has no plan by which to see that something is missing.
                    self.broken("vmm", "machine", &trouble)?;
                }
                self.write(&format!("Bail out!  {}\n", one_line(&trouble)))
            }
            None if self.ktap => Ok(()),
            None if self.points == 0 => self.write("1..0 # SKIP nothing ran\n"),
            None => self.write(&format!("1..{}\n", self.points)),
        }
    }
}

/// Text on one line that neither a terminal nor a parser takes for more than that.
fn one_line(text: &str) -> String {
    let short = truncated(text, LINE_LENGTH);
    let shown = printable(short);
    if short.len() < text.len() { format!("{shown}…") } else { shown.into_owned() }
}

/// Text as a double quoted scalar of YAML, on one line: JSON's are such, and where control characters are gone already its
/// escapes are those that small parsers of YAML know, too.
fn quoted(text: &str) -> io::Result<String> {
    let short = truncated(text, MESSAGE_LENGTH).trim_end();
    let lines: Vec<_> = short.lines().map(printable).collect();
    Ok(serde_json::to_string(&lines.join("\n"))?)
}

fn status_word(status: TestStatus) -> &'static str {
    match status {
        TestStatus::Pass => "pass",
        TestStatus::Fail => "fail",
        TestStatus::Skip => "skip",
        TestStatus::Error => "error",
    }
}

#[cfg(test)]
mod tests;
