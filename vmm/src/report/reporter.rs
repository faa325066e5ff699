//! What every reporter is.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::exit_code::ExitCode;
use crate::session::{RunOutcome, TimedEvent};
use crate::verdict::{Judgement, Tally};

/// Takes a run's events one by one, then its end. After an error it is not called again.
pub(super) trait Reporter: Send {
    /// What it makes, for a message about its failure.
    fn name(&self) -> &'static str;

    /// Whether events only go into what it writes at the end; then it is told those of an earlier part of the run, too.
    fn keeps_for_the_end(&self) -> bool {
        false
    }

    /// Takes one event; `tally` has it counted already. `judgement` is there when it is a test's result.
    fn on_event(&mut self, event: &TimedEvent, judgement: Option<Judgement>, tally: &Tally) -> io::Result<()>;

    /// Called once, after the last event.
    fn finish(&mut self, run: &FinishedRun<'_>) -> io::Result<()>;
}

/// A run that is over.
pub(super) struct FinishedRun<'a> {
    /// Name of the results folder.
    pub(super) name: &'a str,
    /// The results folder.
    pub(super) dir: &'a Path,
    /// When it began, RFC 3339.
    pub(super) started: &'a str,
    /// `kvm` or `emulated`.
    pub(super) host: &'a str,
    /// `uname -r` of the guest, if it got that far.
    pub(super) kernel_release: Option<&'a str>,
    /// What the machine cost, if that was asked for.
    pub(super) statistics: Option<&'a serde_json::Value>,
    /// How long it took.
    pub(super) duration: Duration,
    /// All results.
    pub(super) tally: &'a Tally,
    /// How it ended.
    pub(super) outcome: &'a RunOutcome,
    /// What the process will return, so far as is known now: a reporter that still fails may change it.
    pub(super) exit_code: ExitCode,
    /// Reporters that failed, and how.
    pub(super) failed_reporters: &'a [String],
    /// The command that replays it, as one would type it.
    pub(super) command: &'a str,
}

/// An outcome in words; `None` when the run came to its end.
pub(crate) fn outcome_in_words(outcome: &RunOutcome) -> Option<String> {
    match outcome {
        RunOutcome::Completed => None,
        RunOutcome::GuestDied { reason } => Some(format!("guest died: {reason}")),
        RunOutcome::TimedOut { reason } => Some(format!("timed out: {reason}")),
        RunOutcome::CannotTest { reason } => Some(format!("could not test: {reason}")),
        RunOutcome::Interrupted => Some("interrupted; results so far are kept".to_owned()),
    }
}
