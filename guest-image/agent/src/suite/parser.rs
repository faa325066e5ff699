//! What the readers of the different formats have in common.

use wire::{ProcessEnd, TestStatus};

use super::pjdfstest_rs::PjdfstestRs;
use super::prove_tap::ProveTap;
use super::unionmount::Unionmount;
use super::whole_process::WholeProcess;
use super::xfstests::Xfstests;

/// Something a suite's output told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TestEvent {
    /// A test begins.
    Started {
        /// Unique in the suite.
        name: String,
    },
    /// A test has its result.
    Finished {
        /// Unique in the suite.
        name: String,
        /// The result.
        status: TestStatus,
        /// Why; may be empty.
        message: String,
    },
}

impl TestEvent {
    pub(super) fn finished(name: impl Into<String>, status: TestStatus, message: impl Into<String>) -> Self {
        Self::Finished { name: name.into(), status, message: message.into() }
    }
}

/// A reader of one of the formats.
#[derive(Debug)]
pub(super) enum Parser {
    ProveTap(ProveTap),
    PjdfstestRs(PjdfstestRs),
    Xfstests(Xfstests),
    Unionmount(Unionmount),
    WholeProcess(WholeProcess),
}

impl Parser {
    /// The process has been started.
    pub(super) fn begin(&mut self) -> Vec<TestEvent> {
        match self {
            Self::WholeProcess(parser) => parser.begin(),
            _ => Vec::new(),
        }
    }

    /// One line of standard output.
    pub(super) fn line(&mut self, line: &str) -> Vec<TestEvent> {
        match self {
            Self::ProveTap(parser) => parser.line(line),
            Self::PjdfstestRs(parser) => parser.line(line),
            Self::Xfstests(parser) => parser.line(line),
            Self::Unionmount(parser) => parser.line(line),
            Self::WholeProcess(_) => Vec::new(),
        }
    }

    /// The beginning of a line whose end has not come yet: some suites tell a test's start in it.
    pub(super) fn unfinished_line(&mut self, start: &str) -> Vec<TestEvent> {
        match self {
            Self::Xfstests(parser) => parser.unfinished_line(start),
            _ => Vec::new(),
        }
    }

    /// Whether a result waits for lines that explain it.
    pub(super) fn is_holding_back(&self) -> bool {
        match self {
            Self::ProveTap(parser) => parser.is_holding_back(),
            Self::PjdfstestRs(parser) => parser.is_holding_back(),
            // What these hold back is explained by what comes next, which is never long in coming.
            Self::Xfstests(_) | Self::Unionmount(_) | Self::WholeProcess(_) => false,
        }
    }

    /// Nothing was printed for a while: what was held back.
    pub(super) fn idle(&mut self) -> Vec<TestEvent> {
        match self {
            Self::ProveTap(parser) => parser.release(),
            Self::PjdfstestRs(parser) => parser.release(),
            Self::Xfstests(_) | Self::Unionmount(_) | Self::WholeProcess(_) => Vec::new(),
        }
    }

    /// The running test is about to be killed.
    pub(super) fn abort(&mut self, reason: &str) -> Vec<TestEvent> {
        match self {
            Self::ProveTap(parser) => parser.abort(reason),
            Self::PjdfstestRs(parser) => parser.abort(reason),
            Self::Xfstests(parser) => parser.abort(reason),
            Self::Unionmount(parser) => parser.abort(reason),
            Self::WholeProcess(parser) => parser.abort(reason),
        }
    }

    /// Whether the harness can go on when its running test is killed: `prove` and `check` run each file as a process of its
    /// own.
    pub(super) fn survives_abort(&self) -> bool {
        matches!(self, Self::ProveTap(_) | Self::Xfstests(_))
    }

    /// All output was read and the process is gone: the results that are still owed.
    pub(super) fn finish(&mut self, end: ProcessEnd) -> Vec<TestEvent> {
        match self {
            Self::ProveTap(parser) => parser.finish(end),
            Self::PjdfstestRs(parser) => parser.finish(end),
            Self::Xfstests(parser) => parser.finish(end),
            Self::Unionmount(parser) => parser.finish(end),
            Self::WholeProcess(parser) => parser.finish(end),
        }
    }
}

/// An end in words.
pub(super) fn describe(end: ProcessEnd) -> String {
    match end {
        ProcessEnd::Exited(code) => format!("exit code {code}"),
        ProcessEnd::Signaled(signal) => format!("killed by signal {signal}"),
    }
}
