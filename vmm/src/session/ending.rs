//! How the talk with a guest ended, and what that says of the run.

use std::path::Path;
use std::time::Duration;

use super::console_log::{self, ConsoleFindings};
use super::{NotReady, RunEvent, RunOutcome};
use crate::machine::StopReason;

/// How the talk with the guest ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// Everything ran; the guest said goodbye.
    Complete,
    /// The same, but a test was killed at its deadline.
    TestTimedOut(String),
    /// The same, but a suite could not be started.
    NotStarted(String),
    /// Everything ran, then the guest did not shut down.
    NoGoodbye(Duration),
    /// The guest never came to work.
    NotReady(NotReady<StopReason>),
    /// The machine stopped in the middle.
    Stopped(StopReason),
    /// The agent is gone or talks nonsense.
    AgentLost(String),
    /// Nothing is heard from the guest any more.
    Hung(String),
    /// The run's own deadline passed.
    OverTime(String),
    /// Nothing can be said about the tests.
    CannotTest(String),
    /// Ctrl-C.
    Interrupted,
}

impl Ending {
    /// What the test that ran just then is told to have ended of.
    pub(super) fn why(&self) -> String {
        match self {
            Self::Stopped(reason) => format!("the machine stopped: {reason}"),
            Self::AgentLost(reason)
            | Self::Hung(reason)
            | Self::OverTime(reason)
            | Self::TestTimedOut(reason)
            | Self::NotStarted(reason)
            | Self::CannotTest(reason) => reason.clone(),
            Self::Interrupted => "the run was interrupted".into(),
            Self::NotReady(reason) => reason.to_string(),
            Self::Complete | Self::NoGoodbye(_) => "the run ended".into(),
        }
    }

    /// Whether it is the guest that is to blame for not going on.
    pub(super) fn is_guests(&self) -> bool {
        match self {
            Self::Stopped(reason) => !is_ours(reason),
            Self::AgentLost(_) | Self::Hung(_) => true,
            _ => false,
        }
    }
}

/// What became of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It did all that it was given.
    Done,
    /// It died or hangs with something given to it not done; another guest can do the rest.
    Lost,
    /// It never came to work.
    NeverReady,
    /// Nothing more is to be started: Ctrl-C, the run's deadline, trouble of this side.
    Over,
}

/// The end of one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestEnd {
    /// What it would come to if this guest were all of the run.
    pub outcome: RunOutcome,
    /// Whether and how a run can go on.
    pub fate: Fate,
}

/// What the guest's console says of its end.
pub(super) fn findings(console_log: Option<&Path>, sink: &mut dyn FnMut(RunEvent)) -> ConsoleFindings {
    let Some(path) = console_log else { return ConsoleFindings::default() };
    console_log::read(path).unwrap_or_else(|error| {
        sink(RunEvent::Note { line: format!("failed to read {}: {error}", path.display()) });
        ConsoleFindings::default()
    })
}

pub(super) fn guest_end(ending: Ending, stop_reason: &StopReason, findings: &ConsoleFindings) -> GuestEnd {
    let fate = match &ending {
        Ending::Complete | Ending::TestTimedOut(_) | Ending::NotStarted(_) | Ending::NoGoodbye(_) => Fate::Done,
        Ending::NotReady(_) => Fate::NeverReady,
        ending if ending.is_guests() && !is_ours(stop_reason) => Fate::Lost,
        _ => Fate::Over,
    };
    GuestEnd { outcome: outcome(ending, stop_reason, findings), fate }
}

fn outcome(ending: Ending, stop_reason: &StopReason, findings: &ConsoleFindings) -> RunOutcome {
    if matches!(ending, Ending::Interrupted) {
        return RunOutcome::Interrupted;
    }
    // Whatever else was noticed, it came of this.
    if let Some(death) = findings.kernel_death() {
        return RunOutcome::GuestDied { reason: death };
    }
    let reason = match &findings.agent_fatal {
        Some(fatal) => format!("{}; the guest's agent gave up: {fatal}", ending.why()),
        None => ending.why(),
    };
    match ending {
        Ending::Complete => RunOutcome::Completed,
        Ending::Interrupted => RunOutcome::Interrupted,
        Ending::Hung(reason) | Ending::OverTime(reason) | Ending::TestTimedOut(reason) => {
            RunOutcome::TimedOut { reason }
        }
        Ending::NoGoodbye(limit) => RunOutcome::TimedOut {
            reason: format!("the guest did not shut down within {}", humantime::format_duration(limit)),
        },
        Ending::CannotTest(_) | Ending::NotStarted(_) => RunOutcome::CannotTest { reason },
        Ending::NotReady(NotReady::TimedOut(_)) => RunOutcome::TimedOut { reason },
        Ending::NotReady(NotReady::Stopped(StopReason::TripleFault { .. })) => RunOutcome::GuestDied { reason },
        Ending::NotReady(_) => RunOutcome::CannotTest { reason },
        Ending::Stopped(_) | Ending::AgentLost(_) if is_ours(stop_reason) => RunOutcome::CannotTest { reason },
        Ending::Stopped(_) | Ending::AgentLost(_) => RunOutcome::GuestDied { reason },
    }
}

/// Whether the machine stopped for a reason that says nothing about the guest.
fn is_ours(reason: &StopReason) -> bool {
    matches!(reason, StopReason::KvmFailed { .. } | StopReason::ThreadPanicked { .. })
}
