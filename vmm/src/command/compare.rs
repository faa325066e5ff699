//! `vmm compare`: what changed between two results folders.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use wire::TestStatus;

use super::print;
use crate::config::UsageError;
use crate::exit_code::ExitCode;
use crate::report::{SavedRun, SavedRunError, printable};
use crate::session::RunOutcome;
use crate::verdict::{Change, ComparedTest, Comparison};

/// Characters of a message that are shown: the rest is in the results folder.
const MESSAGE_SHOWN: usize = 160;

/// `vmm compare`.
#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Exit code: 1 if a test fails that did not, 125 if the new run did not come to its end, 4 if the runs \
                        have no test in common, else 0."
)]
pub struct CompareArgs {
    /// Results folder of the run to compare with
    #[arg(value_name = "OLD")]
    pub old: PathBuf,
    /// Results folder of the run in question
    #[arg(value_name = "NEW")]
    pub new: PathBuf,
    /// Print JSON, every test included
    #[arg(long)]
    pub json: bool,
}

/// Prints what changed.
///
/// # Errors
/// A folder has no results or those of another version: [`UsageError`]. They cannot be read.
pub fn compare(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let read = |path| {
        SavedRun::read(path).map_err(|error| match error {
            SavedRunError::Read { .. } => anyhow::Error::from(error),
            wrong => UsageError(super::error_chain(&wrong)).into(),
        })
    };
    let (old, new) = (read(&args.old)?, read(&args.new)?);
    let comparison = Comparison::new(&old, &new);
    let shown = match args.json {
        true => serde_json::to_string_pretty(&comparison)? + "\n",
        false => text(&old, &new, &comparison),
    };
    print(&shown)?;
    Ok(comparison.exit_code())
}

fn text(old: &SavedRun, new: &SavedRun, comparison: &Comparison) -> String {
    let mut text = String::new();
    for (label, run) in [("old", old), ("new", new)] {
        let kernel = run.kernel_release.as_deref().unwrap_or("no guest");
        let end = outcome(run.outcome.as_ref());
        let (name, kernel, results) = (printable(&run.name), printable(kernel), run.tally.counts().total());
        let _ = writeln!(text, "{label}: {name}, {kernel}, {results} results, {end}");
        for suite in run.tally.suites() {
            if let Some(trouble) = &suite.trouble {
                let _ = writeln!(text, "     {} {}", printable(&suite.name), printable(trouble));
            }
        }
    }
    for change in Change::ALL {
        let count = comparison.of(change).count();
        if count == 0 {
            continue;
        }
        let _ = writeln!(text, "\n{} ({count}){}", title(change), if is_listed(change) { ":" } else { "" });
        if is_listed(change) {
            comparison.of(change).for_each(|test| line(&mut text, test));
        }
    }
    if let (before @ 1.., after) = comparison.durations_us {
        let (before, after) = (before as f64 / 1e6, after as f64 / 1e6);
        let ratio = after / before;
        let _ = writeln!(text, "\nWhat passed in both took {before:.1} s and takes {after:.1} s ({ratio:.2} of it)");
    }
    if !comparison.new_is_complete {
        text.push_str("\nThe new run, or a suite of it, did not come to its end: what is gone may have failed.\n");
    }
    text
}

/// Whether a change's tests are listed one by one.
fn is_listed(change: Change) -> bool {
    change != Change::Same
}

fn title(change: Change) -> &'static str {
    match change {
        Change::Worse => "Worse",
        Change::Better => "Better",
        Change::NoLongerRun => "No longer run",
        Change::NowRun => "Now run",
        Change::Gone => "Gone",
        Change::New => "New",
        Change::StillFailing => "Still failing",
        Change::Same => "Same",
    }
}

fn line(text: &mut String, test: &ComparedTest) {
    let (old, new) = (status(test.old), status(test.new));
    let _ = write!(text, "  {old:>5} -> {new:<5}  {} {}", printable(&test.suite), printable(&test.test));
    let message = test.message.lines().next().unwrap_or_default();
    if !message.is_empty() {
        let shown: String = message.chars().take(MESSAGE_SHOWN).collect();
        let _ = write!(text, "  {}", printable(&shown));
    }
    text.push('\n');
}

fn status(status: Option<TestStatus>) -> &'static str {
    match status {
        None => "-",
        Some(TestStatus::Pass) => "pass",
        Some(TestStatus::Fail) => "fail",
        Some(TestStatus::Skip) => "skip",
        Some(TestStatus::Error) => "error",
    }
}

fn outcome(outcome: Option<&RunOutcome>) -> String {
    match outcome {
        None => "killed, or still going on".to_owned(),
        Some(RunOutcome::Completed) => "came to its end".to_owned(),
        Some(RunOutcome::Interrupted) => "interrupted".to_owned(),
        Some(RunOutcome::GuestDied { reason }) => format!("guest died: {}", printable(reason)),
        Some(RunOutcome::TimedOut { reason }) => format!("timed out: {}", printable(reason)),
        Some(RunOutcome::CannotTest { reason }) => format!("could not be tested: {}", printable(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{RunEvent, SuiteEnd};
    use crate::verdict::Tally;

    fn run(name: &str, end: SuiteEnd, results: &[(&str, TestStatus, &str)]) -> SavedRun {
        let mut tally = Tally::default();
        for (test, status, message) in results {
            let (suite, test, message) = ("s".into(), (*test).into(), (*message).into());
            tally.on_event(&RunEvent::TestFinished { suite, test, status: *status, duration_us: 2_000_000, message });
        }
        tally.on_event(&RunEvent::SuiteFinished { suite: "s".into(), end: Some(end), duration_ms: 1 });
        let (kernel_release, outcome) = (Some("6.12.1".into()), Some(RunOutcome::Completed));
        SavedRun { name: name.into(), kernel_release, outcome, tally }
    }

    #[test]
    fn what_changed_is_told_worst_first_and_nothing_a_terminal_would_act_on() {
        let old = run(
            "a",
            SuiteEnd::Exited(1),
            &[("one", TestStatus::Pass, ""), ("two", TestStatus::Fail, ""), ("three", TestStatus::Pass, "")],
        );
        let new = run(
            "b",
            SuiteEnd::Signaled(9),
            &[
                ("two", TestStatus::Pass, ""),
                ("one", TestStatus::Fail, "EIO\x1b[2J\nmore"),
                ("three", TestStatus::Pass, ""),
            ],
        );
        let expected = "\
old: a, 6.12.1, 3 results, came to its end
new: b, 6.12.1, 3 results, came to its end
     s killed by signal 9

Worse (1):
   pass -> fail   s one  EIO\\u{1b}[2J

Better (1):
   fail -> pass   s two

Same (1)

What passed in both took 2.0 s and takes 2.0 s (1.00 of it)

The new run, or a suite of it, did not come to its end: what is gone may have failed.
";
        assert_eq!(text(&old, &new, &Comparison::new(&old, &new)), expected);
    }
}
