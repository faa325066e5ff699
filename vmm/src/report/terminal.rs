//! What a person sees, on standard output or, where that is for programs, on standard error: on a terminal a progress bar with failures above it, in a pipe one line per result as it comes.

use std::env;
use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use console::Style;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use wire::TestStatus;

use super::printable::printable;
use super::reporter::{FinishedRun, Reporter, outcome_in_words};
use super::tap::OutputFormat;
use crate::exit_code::ExitCode;
use crate::session::{RunEvent, SuiteEnd, TimedEvent};
use crate::verdict::{BaselineUse, Counts, FailureKind, Judgement, Tally};

/// What this reporter is called.
pub(super) const NAME: &str = "standard output";
/// Lines of a failure's message that are shown; the rest is in its artefact.
const MESSAGE_LINES: usize = 20;
/// Longest line shown, characters.
const LINE_LENGTH: usize = 400;
/// Names listed after `Failures:`; all are in `results.json`.
const LISTED: usize = 200;

/// How much to say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Failures and the summary.
    Quiet,
    /// A bar and failures on a terminal; every result in a pipe.
    #[default]
    Normal,
    /// Every result, and what the tests print.
    Verbose,
}

/// What standard output is and how to write to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalConfig {
    /// Whether a progress bar can be drawn.
    pub bar: bool,
    /// Whether to use colours.
    pub colour: bool,
    /// How much to say.
    pub verbosity: Verbosity,
}

impl TerminalConfig {
    /// Looks at where a person's text goes with `format`, `TERM`, `NO_COLOR` (<https://no-color.org>) and `CLICOLOR_FORCE`
    /// (<https://bixense.com/clicolors>).
    #[must_use]
    pub fn detect(verbosity: Verbosity, format: OutputFormat) -> Self {
        let is_terminal = match format {
            OutputFormat::Text => io::stdout().is_terminal(),
            // Both on one terminal: the bar would be drawn over the other's lines.
            OutputFormat::Tap | OutputFormat::Ktap => io::stderr().is_terminal() && !io::stdout().is_terminal(),
        };
        // Without a bar every result would be told twice: beside the other format, failures and the summary will do.
        let verbosity = match (format, verbosity) {
            (OutputFormat::Tap | OutputFormat::Ktap, Verbosity::Normal) if !is_terminal => Verbosity::Quiet,
            (_, verbosity) => verbosity,
        };
        Self::from(is_terminal, verbosity, |name| env::var_os(name))
    }

    fn from<S: AsRef<OsStr>>(is_terminal: bool, verbosity: Verbosity, variable: impl Fn(&str) -> Option<S>) -> Self {
        let is = |name, what: fn(&OsStr) -> bool| variable(name).is_some_and(|value| what(value.as_ref()));
        let able = is_terminal && !is("TERM", |term| term == "dumb");
        let forced = is("CLICOLOR_FORCE", |value| !value.is_empty() && value != "0");
        let refused = is("NO_COLOR", |value| !value.is_empty());
        Self { bar: able && verbosity != Verbosity::Quiet, colour: !refused && (able || forced), verbosity }
    }
}

/// Writes to standard output, above the bar if there is one.
pub(super) struct Terminal {
    verbosity: Verbosity,
    bar: Option<ProgressBar>,
    to: Box<dyn Write + Send>,
    colours: Colours,
    /// An unfinished line of the test's output.
    partial: String,
}

struct Colours {
    good: Style,
    bad: Style,
    other: Style,
    faint: Style,
    strong: Style,
}

impl Colours {
    fn new(on: bool) -> Self {
        let style = |style: Style| style.force_styling(on);
        Self {
            good: style(Style::new().green()),
            bad: style(Style::new().red().bold()),
            other: style(Style::new().yellow()),
            faint: style(Style::new().dim()),
            strong: style(Style::new().bold()),
        }
    }
}

impl Terminal {
    /// On standard output, or on standard error where `format` has that for programs.
    pub(super) fn of_person(config: TerminalConfig, format: OutputFormat) -> Self {
        match format {
            OutputFormat::Text => {
                Self::new(config, config.bar.then(ProgressDrawTarget::stdout), Box::new(io::stdout()))
            }
            OutputFormat::Tap | OutputFormat::Ktap => {
                Self::new(config, config.bar.then(ProgressDrawTarget::stderr), Box::new(io::stderr()))
            }
        }
    }

    /// On anything else, without a bar.
    #[cfg(test)]
    pub(super) fn writing_to(config: TerminalConfig, to: Box<dyn Write + Send>) -> Self {
        Self::new(config, None, to)
    }

    fn new(config: TerminalConfig, target: Option<ProgressDrawTarget>, to: Box<dyn Write + Send>) -> Self {
        let bar = target.map(|target| {
            let bar = ProgressBar::with_draw_target(None, target);
            // The template is constant; the default style would do as well if it did not parse.
            if let Ok(style) = ProgressStyle::with_template("{spinner} [{elapsed_precise}] {wide_msg}") {
                bar.set_style(style);
            }
            bar
        });
        let colours = Colours::new(config.colour);
        Self { verbosity: config.verbosity, bar, to, colours, partial: String::new() }
    }

    /// One whole line, already printable.
    fn line(&mut self, line: &str) -> io::Result<()> {
        match &self.bar {
            Some(bar) if !bar.is_finished() => {
                bar.println(line);
                Ok(())
            }
            _ => {
                // One write, so that lines of several processes do not mix and each is out as it happens.
                self.to.write_all(format!("{line}\n").as_bytes())?;
                self.to.flush()
            }
        }
    }

    fn normal(&mut self, line: &str) -> io::Result<()> {
        if self.verbosity == Verbosity::Quiet { Ok(()) } else { self.line(line) }
    }

    fn show_progress(&self, counts: Counts, what: &str) {
        if let Some(bar) = &self.bar {
            let Counts { pass, skip, fixed, expected_fail, flaky, .. } = counts;
            let mut text = format!("{} passed, {} failed, {skip} skipped", pass + fixed, counts.bad());
            if expected_fail + flaky > 0 {
                text.push_str(&format!(", {} failed as expected", expected_fail + flaky));
            }
            if !what.is_empty() {
                text.push_str("  ");
                text.push_str(&shown(what));
            }
            bar.set_message(text);
        }
    }

    fn on_result(&mut self, event: &RunEvent, judgement: Judgement) -> io::Result<()> {
        let RunEvent::TestFinished { suite, test, status, duration_us, message } = event else { return Ok(()) };
        let bad = judgement.is_bad();
        let every = match self.verbosity {
            Verbosity::Quiet => false,
            Verbosity::Normal => self.bar.is_none(),
            Verbosity::Verbose => true,
        };
        if !bad && !every {
            return Ok(());
        }
        self.end_partial()?;
        let (word, style) = match judgement {
            Judgement::Pass => ("PASS", &self.colours.good),
            Judgement::Fixed => ("FIXED", &self.colours.good),
            Judgement::Fail => ("FAIL", &self.colours.bad),
            Judgement::Error => ("ERROR", &self.colours.bad),
            Judgement::Skip => ("SKIP", &self.colours.other),
            Judgement::NotRun => ("NOT RUN", &self.colours.bad),
            Judgement::Flaky => ("FLAKY", &self.colours.other),
            Judgement::FlakyBeyondRate => ("FLAKIER", &self.colours.bad),
            Judgement::ExpectedFail => ("XFAIL", &self.colours.other),
            Judgement::Expunged => ("EXPUNGED", &self.colours.other),
        };
        let word = style.apply_to(format!("{word:>8}"));
        let time = match *duration_us {
            0 => " ".repeat(11),
            us => format!("[{:>8.3}s]", Duration::from_micros(us).as_secs_f64()),
        };
        let skipped_why = match status {
            TestStatus::Skip if !bad && !message.is_empty() => format!("  ({})", shown(message)),
            _ => String::new(),
        };
        self.line(&format!("{word} {time} {} {}{skipped_why}", shown(suite), shown(test)))?;
        if bad { self.message(message) } else { Ok(()) }
    }

    /// A failure's message, indented.
    fn message(&mut self, message: &str) -> io::Result<()> {
        let mut lines = message.lines();
        for line in lines.by_ref().take(MESSAGE_LINES) {
            self.line(&format!("           | {}", shown(line)))?;
        }
        match lines.count() {
            0 => Ok(()),
            more => self.line(&format!("           | [{more} more lines in the results folder]")),
        }
    }

    /// A test's output, line by line; a line without end is shown in pieces.
    fn output(&mut self, text: &str) -> io::Result<()> {
        self.partial.push_str(text);
        while let Some(end) = self.partial.find('\n') {
            let line: String = self.partial.drain(..=end).collect();
            self.output_line(line.trim_end())?;
        }
        if self.partial.len() > 64 * LINE_LENGTH {
            self.end_partial()?;
        }
        Ok(())
    }

    fn output_line(&mut self, line: &str) -> io::Result<()> {
        let line = format!("           : {}", self.colours.faint.apply_to(shown(line)));
        self.line(&line)
    }

    fn end_partial(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.partial) {
            rest if rest.is_empty() => Ok(()),
            rest => self.output_line(&rest),
        }
    }

    fn suite_finished(&mut self, name: &str, duration_ms: u64, end: Option<SuiteEnd>, tally: &Tally) -> io::Result<()> {
        let suite = tally.suites().iter().rfind(|suite| suite.name == name);
        let counts = suite.map(|suite| suite.counts).unwrap_or_default();
        let seconds = Duration::from_millis(duration_ms).as_secs_f64();
        let name = shown(name).into_owned();
        if let Some(trouble) = suite.and_then(|suite| suite.trouble.as_deref()) {
            let text = format!("{name}: {} after {seconds:.1} s", shown(trouble));
            let text = self.colours.bad.apply_to(text).to_string();
            return self.line(&text);
        }
        let how = if end.is_some() { "finished" } else { "cut off" };
        self.normal(&format!("{name} {how} after {seconds:.1} s: {}", in_words(counts)))
    }
}

impl Reporter for Terminal {
    fn name(&self) -> &'static str {
        NAME
    }

    fn on_event(&mut self, event: &TimedEvent, judgement: Option<Judgement>, tally: &Tally) -> io::Result<()> {
        let counts = tally.counts();
        match &event.event {
            RunEvent::RunStarted { suites, host, .. } => {
                if let Some(bar) = &self.bar {
                    bar.enable_steady_tick(Duration::from_millis(250));
                }
                let suites = suites.join(", ");
                self.normal(&format!("running {} (host: {})", shown(&suites), shown(host)))
            }
            RunEvent::BootStarted => {
                self.show_progress(counts, "booting the guest");
                if self.bar.is_none() { self.normal("booting the guest") } else { Ok(()) }
            }
            RunEvent::GuestReady { kernel_release, uptime_ms, mounts } => {
                self.show_progress(counts, "guest is up");
                let seconds = Duration::from_millis(*uptime_ms).as_secs_f64();
                self.normal(&format!("guest is up after {seconds:.1} s: Linux {}", shown(kernel_release)))?;
                for mount in mounts {
                    let (tag, place) = (shown(&mount.tag), shown(&mount.mount_point));
                    match &mount.error {
                        None => self.normal(&format!("  {tag} on {place}"))?,
                        Some(error) => {
                            let text = format!("  {tag} NOT on {place}: {}", shown(error));
                            let text = self.colours.bad.apply_to(text).to_string();
                            self.line(&text)?;
                        }
                    }
                }
                Ok(())
            }
            RunEvent::SuiteStarted { suite } => {
                self.show_progress(counts, suite);
                self.normal(&format!("{} started", shown(suite)))
            }
            RunEvent::TestStarted { test, .. } => {
                self.show_progress(counts, test);
                Ok(())
            }
            RunEvent::Output { text, .. } if self.verbosity == Verbosity::Verbose => self.output(text),
            RunEvent::Output { .. }
            | RunEvent::Artefact { .. }
            | RunEvent::KernelLog { .. }
            | RunEvent::ListedTestFinished { .. } => Ok(()),
            RunEvent::TestFinished { test, .. } => {
                self.show_progress(counts, test);
                judgement.map_or(Ok(()), |judgement| self.on_result(&event.event, judgement))
            }
            RunEvent::TestRetried { suite, test, status, .. } => {
                let word = format!("{status:?}").to_uppercase();
                let line = format!("{word:>8}  again, alone: {} {}", shown(suite), shown(test));
                self.normal(&self.colours.faint.apply_to(line).to_string())
            }
            RunEvent::SuiteFinished { suite, end, duration_ms } => {
                self.end_partial()?;
                self.suite_finished(suite, *duration_ms, *end, tally)
            }
            RunEvent::SuiteNotStarted { suite, error } => {
                let text = format!("{} could not be started: {}", shown(suite), shown(error));
                let text = self.colours.bad.apply_to(text).to_string();
                self.line(&text)
            }
            RunEvent::Note { line } => {
                let line = self.colours.faint.apply_to(shown(line)).to_string();
                self.normal(&line)
            }
            // The first is the ordinary end of every run, the second is the summary's first line.
            RunEvent::MachineStopped { .. } | RunEvent::RunFinished { .. } => Ok(()),
        }
    }

    fn finish(&mut self, run: &FinishedRun<'_>) -> io::Result<()> {
        self.end_partial()?;
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let counts = run.tally.counts();
        let bad = |text: &str| self.colours.bad.apply_to(text).to_string();
        let mut lines = vec![String::new()];
        if let Some(trouble) = outcome_in_words(run.outcome) {
            lines.push(bad(&shown(&trouble)));
        }
        for suite in run.tally.suites() {
            if let Some(trouble) = &suite.trouble {
                lines.push(bad(&format!("{}: {}", shown(&suite.name), shown(trouble))));
            }
        }
        lines.push(format!("Ran: {} tests in {:.1} s: {}", counts.ran(), run.duration.as_secs_f64(), in_words(counts)));
        for (title, wanted) in [
            ("Fixed", &[Judgement::Fixed][..]),
            ("Still failing", &[Judgement::ExpectedFail]),
            ("Flaky, within the rate", &[Judgement::Flaky]),
            ("Expunged", &[Judgement::Expunged]),
            ("Not run, though they should", &[Judgement::NotRun]),
            ("Flaky, beyond the rate", &[Judgement::FlakyBeyondRate]),
            ("Failures", &[Judgement::Fail, Judgement::Error, Judgement::FlakyBeyondRate]),
        ] {
            if let Some(names) = listed(run.tally, wanted) {
                lines.push(format!("{title}: {names}"));
            }
        }
        lines.extend(by_kind(run.tally));
        lines.extend(run.tally.baselines(run.outcome).iter().filter_map(did_not_occur));
        match (counts.bad(), run.exit_code) {
            (0, ExitCode::Success) => {
                let text = format!("Passed all {} tests", counts.ran());
                lines.push(self.colours.good.apply_to(text).to_string());
            }
            (0, ExitCode::NothingRan) => lines.push(bad("Nothing ran")),
            // Neither good nor bad can be said of the whole.
            (0, _) => {}
            (failed, _) => lines.push(bad(&format!("Failed {failed} of {} tests", counts.due()))),
        }
        for failed in run.failed_reporters {
            lines.push(bad(&shown(failed)));
        }
        let dir = run.dir.display().to_string();
        lines.push(format!("Results: {}", self.colours.strong.apply_to(shown(&dir))));
        lines.push(format!("Replay: {}", shown(run.command)));
        lines.into_iter().try_for_each(|line| self.line(&line))
    }
}

/// The names of the results judged one of `wanted`; `None` when there are none.
fn listed(tally: &Tally, wanted: &[Judgement]) -> Option<String> {
    let rows = || tally.suites().iter().flat_map(|suite| &suite.tests).filter(|row| wanted.contains(&row.judgement));
    let names: Vec<_> = rows().take(LISTED).map(|row| shown(&row.test)).collect();
    let more = rows().count().saturating_sub(LISTED);
    let mut text = names.join(" ");
    if more > 0 {
        text.push_str(&format!(" [and {more} more, see results.json]"));
    }
    (!text.is_empty()).then_some(text)
}

/// What became of the failures that ran again, by their kinds.
fn by_kind(tally: &Tally) -> Vec<String> {
    let kinds = [
        ("Failed again alone, each time", FailureKind::Real),
        ("Flaky: failed now and then alone", FailureKind::Flaky),
        ("Passed alone each time: depends on what ran before, or rare", FailureKind::DependsOnOrder),
    ];
    let named = |(title, kind)| {
        let rows = tally.suites().iter().flat_map(|suite| &suite.tests);
        let of_kind = rows.filter(|row| row.retried.is_some_and(|retried| retried.kind() == kind));
        let names: Vec<_> = of_kind.take(LISTED).map(|row| shown(&row.test)).collect();
        (!names.is_empty()).then(|| format!("{title}: {}", names.join(" ")))
    };
    kinds.into_iter().filter_map(named).collect()
}

/// The tests of a baseline that did not occur, if there are any.
fn did_not_occur(baseline: &BaselineUse) -> Option<String> {
    let missing = &baseline.did_not_occur;
    let names: Vec<_> = missing.iter().take(LISTED).map(|missing| shown(&missing.test)).collect();
    let more = missing.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" [and {more} more, see results.json]") } else { String::new() };
    let source = shown(&baseline.source);
    (!names.is_empty()).then(|| format!("In the baseline ({source}), but not in this run: {}{more}", names.join(" ")))
}

/// `350 passed, 1 failed, 48 skipped`: only what there is, but always the passed.
fn in_words(counts: Counts) -> String {
    let Counts { pass, fail, error, skip, not_run, expected_fail, fixed, flaky, flaky_beyond_rate, expunged } = counts;
    let mut text = format!("{pass} passed");
    for (count, what) in [
        (fixed, "fixed"),
        (fail, "failed"),
        (error, "broken off"),
        (flaky_beyond_rate, "failed beyond their rate"),
        (not_run, "not run though they should"),
        (expected_fail, "failed as expected"),
        (flaky, "flaky within their rate"),
        (skip, "skipped"),
        (expunged, "expunged"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    text
}

/// `text` on one line that a terminal can take, at most [`LINE_LENGTH`] characters of it.
fn shown(text: &str) -> std::borrow::Cow<'_, str> {
    match text.char_indices().nth(LINE_LENGTH) {
        None => printable(text),
        Some((end, _)) => format!("{}…", printable(&text[..end])).into(),
    }
}

#[cfg(test)]
mod tests;
