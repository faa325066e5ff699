//! Everything that can happen in a run, as the only thing reporters see.

use serde::{Deserialize, Serialize};
use wire::{MountReport, ProcessEnd, Stream, TestStatus};

use crate::exit_code::ExitCode;

/// The kind of an [artefact](RunEvent::Artefact) that tells what was seen of a guest that died or hangs.
pub const AUTOPSY: &str = "autopsy";

/// The kind of an artefact with the last requests that the shares served before a test failed.
pub const LAST_REQUESTS: &str = "fuse.jsonl";

/// A [`RunEvent`] with the time since the run began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimedEvent {
    /// Milliseconds since [`RunEvent::RunStarted`].
    pub at_ms: u64,
    /// The guest it happened in, counted from 1; 0 where it is of the run as a whole, or of an older version's.
    #[serde(default, skip_serializing_if = "is_of_no_guest")]
    pub guest: u32,
    /// What happened.
    #[serde(flatten)]
    pub event: RunEvent,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_of_no_guest(guest: &u32) -> bool {
    *guest == 0
}

/// One thing that happened. Serialized as a JSON object with an `event` field in kebab case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum RunEvent {
    /// First event of every run.
    RunStarted {
        /// Name of the results folder.
        run: String,
        /// Suites that will run, in order.
        suites: Vec<String>,
        /// Where the machine runs: `kvm` or `emulated`.
        host: String,
    },
    /// The guest's kernel has been started.
    BootStarted,
    /// The agent has spoken.
    GuestReady {
        /// `uname -r`.
        kernel_release: String,
        /// Guest uptime at that moment, milliseconds.
        uptime_ms: u64,
        /// What became of each share.
        mounts: Vec<MountReport>,
    },
    /// A suite's process runs.
    SuiteStarted {
        /// Its name.
        suite: String,
    },
    /// A test begins.
    TestStarted {
        /// The suite it belongs to.
        suite: String,
        /// Its name, unique in the suite.
        test: String,
    },
    /// Something was printed. Bytes that are no UTF-8 are replaced.
    Output {
        /// The suite that runs.
        suite: String,
        /// The test that runs, when known.
        test: Option<String>,
        /// Standard output or standard error.
        stream: OutputStream,
        /// The text, not necessarily whole lines.
        text: String,
    },
    /// A file that explains a failure; the test's result follows.
    Artefact {
        /// The suite it belongs to.
        suite: String,
        /// The test that left it; empty for what is left of a guest that died while no test was known to run.
        test: String,
        /// What it is, as the end of a file's name: `out.bad`, `full`, `dmesg`.
        kind: String,
        /// Length of `data`.
        bytes: u64,
        /// The content. Not in JSON: it becomes a file of its own.
        #[serde(skip)]
        data: Vec<u8>,
    },
    /// A test has its result.
    TestFinished {
        /// The suite it belongs to.
        suite: String,
        /// Its name.
        test: String,
        /// The result.
        status: TestStatus,
        /// Microseconds; 0 when not known.
        duration_us: u64,
        /// Why it failed or was skipped; may be empty.
        message: String,
    },
    /// A test that failed ran again, alone in a fresh guest.
    TestRetried {
        /// The suite it belongs to.
        suite: String,
        /// Its name.
        test: String,
        /// The result of this attempt.
        status: TestStatus,
        /// Microseconds; 0 when not known.
        duration_us: u64,
        /// Why it failed or was skipped; may be empty.
        message: String,
    },
    /// A test of the suite's list has all its results, where one test has several.
    ListedTestFinished {
        /// The suite it belongs to.
        suite: String,
        /// Its name in the list.
        test: String,
    },
    /// A suite's process has ended.
    SuiteFinished {
        /// Its name.
        suite: String,
        /// How it ended; `None` when it did not end by itself (the machine stopped, a deadline passed).
        end: Option<SuiteEnd>,
        /// Milliseconds since it started.
        duration_ms: u64,
    },
    /// A suite could not be started.
    SuiteNotStarted {
        /// Its name.
        suite: String,
        /// What was tried and what failed.
        error: String,
    },
    /// The guest's kernel logged something.
    KernelLog {
        /// Whole lines, as `dmesg` shows them.
        text: String,
    },
    /// A line worth telling that is no result: from the agent or the driver.
    Note {
        /// One line.
        line: String,
    },
    /// The machine is gone.
    MachineStopped {
        /// Why, in words.
        reason: String,
    },
    /// Last event of every run.
    RunFinished {
        /// What it came to.
        outcome: RunOutcome,
    },
}

impl RunEvent {
    /// The suite that it is about.
    #[must_use]
    pub fn suite(&self) -> Option<&str> {
        match self {
            Self::SuiteStarted { suite }
            | Self::TestStarted { suite, .. }
            | Self::Output { suite, .. }
            | Self::Artefact { suite, .. }
            | Self::TestFinished { suite, .. }
            | Self::TestRetried { suite, .. }
            | Self::ListedTestFinished { suite, .. }
            | Self::SuiteFinished { suite, .. }
            | Self::SuiteNotStarted { suite, .. } => Some(suite),
            Self::RunStarted { .. }
            | Self::BootStarted
            | Self::GuestReady { .. }
            | Self::KernelLog { .. }
            | Self::Note { .. }
            | Self::MachineStopped { .. }
            | Self::RunFinished { .. } => None,
        }
    }
}

/// [`wire::Stream`] for JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputStream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

impl From<Stream> for OutputStream {
    fn from(stream: Stream) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout,
            Stream::Stderr => Self::Stderr,
        }
    }
}

/// [`wire::ProcessEnd`] for JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SuiteEnd {
    /// Exit code.
    Exited(i32),
    /// Signal number.
    Signaled(i32),
}

impl std::fmt::Display for SuiteEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Signaled(signal) => write!(f, "signal {signal}"),
        }
    }
}

impl From<ProcessEnd> for SuiteEnd {
    fn from(end: ProcessEnd) -> Self {
        match end {
            ProcessEnd::Exited(code) => Self::Exited(code),
            ProcessEnd::Signaled(signal) => Self::Signaled(signal),
        }
    }
}

/// How the run as a whole ended, before anyone looks at single results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RunOutcome {
    /// Every suite came to its end and the guest powered off as asked.
    Completed,
    /// The guest panicked, oopsed, or stopped unasked.
    GuestDied {
        /// What is known: the panic line, the stop reason.
        reason: String,
    },
    /// A deadline passed.
    TimedOut {
        /// Which one, and its length.
        reason: String,
    },
    /// Host, image or boot trouble: nothing can be said about the tests.
    CannotTest {
        /// What.
        reason: String,
    },
    /// Ctrl-C or SIGTERM.
    Interrupted,
}

impl RunOutcome {
    /// The exit code this outcome forces, whatever the single results say; `None` when they decide.
    #[must_use]
    pub fn forced_exit_code(&self) -> Option<ExitCode> {
        match self {
            Self::Completed => None,
            Self::GuestDied { .. } => Some(ExitCode::GuestDied),
            Self::TimedOut { .. } => Some(ExitCode::Timeout),
            Self::CannotTest { .. } => Some(ExitCode::CannotTest),
            Self::Interrupted => Some(ExitCode::Interrupted),
        }
    }
}
