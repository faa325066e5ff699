//! The suite that runs, as this side knows it: from an agent's frames to run events.

use std::time::Instant;

use wire::{Stream, TestStatus, ToHost};

use super::lossy_text::LossyText;
use super::{RunEvent, SuiteEnd};

/// A running suite.
#[derive(Debug)]
pub(super) struct SuiteState {
    suite: String,
    started: Instant,
    /// The test that runs, when the suite tells.
    test: Option<String>,
    stdout: LossyText,
    stderr: LossyText,
    /// When the suite last made progress.
    pub(super) progress_at: Instant,
    /// The first test that was over its time, in words.
    pub(super) timed_out: Option<String>,
}

/// What a frame came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The suite goes on.
    GoesOn,
    /// It has ended by itself.
    Finished,
    /// It could not be started.
    NotStarted(String),
    /// This frame has no business here.
    OutOfTurn,
}

impl SuiteState {
    pub(super) fn new(suite: &str) -> Self {
        let now = Instant::now();
        Self {
            suite: suite.to_owned(),
            started: now,
            test: None,
            stdout: LossyText::default(),
            stderr: LossyText::default(),
            progress_at: now,
            timed_out: None,
        }
    }

    /// The running test in words.
    pub(super) fn running(&self) -> String {
        match &self.test {
            Some(test) => format!("test {test} of suite {}", self.suite),
            None => format!("suite {}", self.suite),
        }
    }

    pub(super) fn on_frame(&mut self, frame: ToHost, sink: &mut dyn FnMut(RunEvent)) -> Step {
        let suite = self.suite.clone();
        match frame {
            ToHost::SuiteStarted { .. } => {
                self.progress_at = Instant::now();
                sink(RunEvent::SuiteStarted { suite });
            }
            ToHost::TestStarted { name } => {
                self.progress_at = Instant::now();
                self.test = Some(name.clone());
                sink(RunEvent::TestStarted { suite, test: name });
            }
            ToHost::Output { stream, data } => {
                let text = self.text_of(stream).push(&data);
                self.tell_output(stream, text, sink);
            }
            ToHost::TestTimedOut { limit_ms } => {
                let limit = humantime::format_duration(std::time::Duration::from_millis(limit_ms));
                let running = self.running();
                self.timed_out
                    .get_or_insert_with(|| format!("{running} was killed: no result within {limit} (--test-timeout)"));
            }
            ToHost::Artefact { test, kind, data } => {
                sink(RunEvent::Artefact { suite, test, kind, bytes: data.len() as u64, data });
            }
            ToHost::TestFinished { name, status, duration_us, message } => {
                self.progress_at = Instant::now();
                self.test.take_if(|running| *running == name);
                sink(RunEvent::TestFinished { suite, test: name, status, duration_us, message });
            }
            ToHost::SuiteFinished { end } => {
                self.finish(Some(end.into()), sink);
                return Step::Finished;
            }
            ToHost::SuiteNotStarted { error } => {
                sink(RunEvent::SuiteNotStarted { suite, error: error.clone() });
                return Step::NotStarted(error);
            }
            ToHost::KernelLog { text } => sink(RunEvent::KernelLog { text }),
            ToHost::Log { line } => sink(RunEvent::Note { line }),
            ToHost::Hello { .. }
            | ToHost::StdinConsumed { .. }
            | ToHost::StdinClosed
            | ToHost::ExecFinished { .. }
            | ToHost::ExecNotStarted { .. }
            | ToHost::Pong
            | ToHost::Goodbye => return Step::OutOfTurn,
        }
        Step::GoesOn
    }

    /// The test that runs, empty if none is known to.
    pub(super) fn test(&self) -> &str {
        self.test.as_deref().unwrap_or_default()
    }

    /// A file of this side's that explains what became of `test`.
    pub(super) fn tell_artefact(&self, test: &str, kind: &str, data: Vec<u8>, sink: &mut dyn FnMut(RunEvent)) {
        let (suite, test, kind) = (self.suite.clone(), test.to_owned(), kind.to_owned());
        sink(RunEvent::Artefact { suite, test, kind, bytes: data.len() as u64, data });
    }

    /// The suite did not come to its end: `why` is the running test's message. Without, that test has no result.
    pub(super) fn cut_off(mut self, why: Option<String>, sink: &mut dyn FnMut(RunEvent)) {
        if let Some((test, message)) = self.test.take().zip(why) {
            let duration_us = u64::try_from(self.progress_at.elapsed().as_micros()).unwrap_or(u64::MAX);
            let suite = self.suite.clone();
            sink(RunEvent::TestFinished { suite, test, status: TestStatus::Error, duration_us, message });
        }
        self.finish(None, sink);
    }

    fn finish(&mut self, end: Option<SuiteEnd>, sink: &mut dyn FnMut(RunEvent)) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(text) = self.text_of(stream).finish() {
                self.tell_output(stream, text, sink);
            }
        }
        let duration_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        sink(RunEvent::SuiteFinished { suite: self.suite.clone(), end, duration_ms });
    }

    fn text_of(&mut self, stream: Stream) -> &mut LossyText {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn tell_output(&self, stream: Stream, text: String, sink: &mut dyn FnMut(RunEvent)) {
        if !text.is_empty() {
            sink(RunEvent::Output { suite: self.suite.clone(), test: self.test.clone(), stream: stream.into(), text });
        }
    }
}
