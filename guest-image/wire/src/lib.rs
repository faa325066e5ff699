//! The frames exchanged between the host side of `vmm` and the agent in a guest.
//!
//! One stream, both directions: each frame is a little-endian `u32` byte count followed by that many bytes of
//! [postcard](https://docs.rs/postcard) encoding of a [`ToHost`] or [`ToGuest`]. A frame is at most [`MAX_FRAME`]
//! bytes. The same frames travel over virtio-vsock (guests under test) and over a virtio-serial port (the emulated
//! host). The agent speaks first, with [`ToHost::Hello`].
//!
//! Neither side trusts the other: a length over the limit, a frame that does not decode or a version that differs ends
//! the stream with an error.

mod frame;

pub use frame::{FrameDecoder, FrameError, encode_frame, read_frame, write_frame};

use serde::{Deserialize, Serialize};

/// Changes whenever a frame's meaning or encoding does. Both sides must have the same.
pub const PROTOCOL_VERSION: u16 = 3;
/// Largest frame body, bytes.
pub const MAX_FRAME: usize = 1 << 20;
/// Largest `data` in [`ToHost::Output`] or [`ToGuest::Stdin`], bytes.
pub const MAX_CHUNK: usize = 64 << 10;
/// Largest `data` in [`ToHost::Artefact`], bytes: of a longer file the start and the end are sent.
pub const MAX_ARTEFACT: usize = 512 << 10;
/// The kind of a [`ToHost::Artefact`] that the agent makes itself: where the processes of a test were when it was killed.
pub const STACKS: &str = "stacks";
/// How many bytes of [`ToGuest::Stdin`] the host may have under way that no [`ToHost::StdinConsumed`] has acknowledged.
/// It bounds the agent's memory, and it keeps the stream free for the frames that must overtake a stuck standard input.
pub const STDIN_WINDOW: usize = 256 << 10;
/// The vsock port of the host that the agent connects to (host CID 2).
pub const AGENT_PORT: u32 = 1024;

/// A share the agent was asked to mount, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountReport {
    /// The virtio-fs tag.
    pub tag: String,
    /// Where it was mounted, absolute.
    pub mount_point: String,
    /// `None` when mounted, else what failed.
    pub error: Option<String>,
}

/// Which stream a piece of output came from. With a PTY everything is `Stdout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProcessEnd {
    /// Called `exit` with this code.
    Exited(i32),
    /// Killed by this signal number.
    Signaled(i32),
}

/// What one test came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TestStatus {
    /// Did what it should.
    Pass,
    /// Did not.
    Fail,
    /// The suite itself decided not to run it.
    Skip,
    /// It could not be judged: killed by a deadline, crashed, or its results were cut off.
    Error,
}

/// How a suite's output becomes single results. Parsed by the agent, so that a test's start is known when it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultFormat {
    /// `prove -v`: TAP of many files, one result per TAP line, named `file.t:number`.
    ProveTap,
    /// What the `pjdfstest` crate's binary prints: one result per test function.
    PjdfstestRs,
    /// What `check` of xfstests prints: one result per test script, named `generic/001`.
    Xfstests,
    /// What `run` of unionmount-testsuite prints: one result per `TEST` line.
    Unionmount,
    /// No parsing: one result for the whole process, pass when it exits 0.
    ExitCode,
}

/// The name of the result of a test that its suite did not name: by the result before, if there is one.
#[must_use]
pub fn unnamed_test(before: Option<&str>) -> String {
    before.map_or_else(|| FIRST_TEST.to_owned(), |before| format!("{AFTER}{before}"))
}

/// Whether `name` is that of [`unnamed_test`].
#[must_use]
pub fn is_unnamed_test(name: &str) -> bool {
    name == FIRST_TEST || name.starts_with(AFTER)
}

const FIRST_TEST: &str = "first test";
const AFTER: &str = "after ";

/// One process to start in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Program and arguments; the program is looked up in `PATH` when it has no slash. Never empty.
    pub argv: Vec<String>,
    /// The whole environment, name and value; nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute; created if it is not there.
    pub cwd: String,
}

/// A suite to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuitePlan {
    /// The name it is reported under.
    pub name: String,
    /// What to start.
    pub command: Command,
    /// How to read its output.
    pub format: ResultFormat,
    /// One test may take this long, milliseconds, before its whole process group is killed and it is an `Error`;
    /// 0 for no limit.
    pub test_timeout_ms: u64,
    /// Where a test leaves files that explain a failure, with `{test}` in place of its name: those that go on with a dot
    /// there are sent when it fails.
    pub artefacts: Option<String>,
}

/// Size of a terminal, in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// Frames from the agent to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost {
    /// First frame: who speaks.
    Hello {
        /// The agent's [`PROTOCOL_VERSION`].
        protocol: u16,
        /// `uname -r` of the guest.
        kernel_release: String,
        /// `/proc/uptime` of the guest when the agent connected, milliseconds.
        uptime_ms: u64,
        /// How long the shortest of a few sleeps of 10 ms took, milliseconds: over 1000 means that the timers of the machine
        /// below are broken.
        sleep_10ms_took_ms: u64,
        /// What became of each share.
        mounts: Vec<MountReport>,
    },
    /// A suite's process has been started.
    SuiteStarted {
        /// [`SuitePlan::name`].
        suite: String,
    },
    /// A test of the running suite begins. Suites that only tell results do without.
    TestStarted {
        /// The test's name, unique in its suite.
        name: String,
    },
    /// What the running suite or command printed.
    Output {
        /// Where to.
        stream: Stream,
        /// At most [`MAX_CHUNK`] bytes, any content.
        data: Vec<u8>,
    },
    /// The running test is over [`SuitePlan::test_timeout_ms`] and is being killed; its `TestFinished` follows.
    TestTimedOut {
        /// The limit, milliseconds.
        limit_ms: u64,
    },
    /// A file that explains a failure; its test's `TestFinished` follows.
    Artefact {
        /// The test's name.
        test: String,
        /// What follows the test's name in the file's: `out.bad`, `full`, `dmesg`.
        kind: String,
        /// The content, at most [`MAX_ARTEFACT`] bytes.
        data: Vec<u8>,
    },
    /// A test has its result.
    TestFinished {
        /// As in `TestStarted`.
        name: String,
        /// The result.
        status: TestStatus,
        /// How long it took, microseconds; 0 when the suite does not tell.
        duration_us: u64,
        /// Why it failed or was skipped, as the suite says; may be empty, at most 64 KiB.
        message: String,
    },
    /// The suite's process has ended and its group is gone.
    SuiteFinished {
        /// How.
        end: ProcessEnd,
    },
    /// The suite could not be started at all.
    SuiteNotStarted {
        /// What was tried and what failed.
        error: String,
    },
    /// The command took this many bytes of its standard input: that much of [`STDIN_WINDOW`] is free again. Up to
    /// [`MAX_CHUNK`] bytes may stay unacknowledged; a host that sends while a whole chunk fits never waits for those.
    StdinConsumed {
        /// Bytes since the last frame of this kind.
        bytes: u32,
    },
    /// The command closed its standard input: what more is sent is thrown away.
    StdinClosed,
    /// The command of [`ToGuest::Exec`] has ended; all its output came before.
    ExecFinished {
        /// How.
        end: ProcessEnd,
    },
    /// The command of [`ToGuest::Exec`] could not be started (not found, not executable).
    ExecNotStarted {
        /// `errno` of the failure: ENOENT gives exit code 127, all else 126, as shells have it.
        errno: i32,
        /// What was tried.
        error: String,
    },
    /// A word of the agent about itself, for the log.
    Log {
        /// One line.
        line: String,
    },
    /// What the guest's kernel logged, as `dmesg` shows it; from its first line, as long as suites run.
    KernelLog {
        /// Whole lines, [`MAX_CHUNK`] bytes or a little more.
        text: String,
    },
    /// The answer to [`ToGuest::Ping`].
    Pong,
    /// Last frame: the shares are synced and unmounted, the machine goes down next.
    Goodbye,
}

/// Frames from the host to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuest {
    /// Run a suite; answered by `SuiteStarted … SuiteFinished` or `SuiteNotStarted`.
    RunSuite(SuitePlan),
    /// Run one command; answered by `Output … ExecFinished` or `ExecNotStarted`.
    Exec {
        /// What to start.
        command: Command,
        /// On a new PTY of this size when given, else on three pipes.
        pty: Option<WindowSize>,
        /// Whether stdin frames will follow; without, stdin is `/dev/null`.
        stdin: bool,
    },
    /// Bytes for the command's standard input. At most [`STDIN_WINDOW`] bytes may be unacknowledged.
    Stdin {
        /// At most [`MAX_CHUNK`] bytes.
        data: Vec<u8>,
    },
    /// No more standard input: closes the pipe, or types the end-of-file character on a PTY.
    StdinEof,
    /// The host's terminal changed its size.
    Resize(WindowSize),
    /// Send a signal to the command's process group.
    Signal(i32),
    /// Kill the running test's process group; it is reported as `Error` with this message and the suite goes on if it can.
    KillTest {
        /// Why.
        reason: String,
    },
    /// Answer with `Pong`, at once.
    Ping,
    /// Kill what runs, sync, unmount, say `Goodbye`, power off.
    Shutdown,
}
