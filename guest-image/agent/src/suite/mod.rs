//! A running suite: its output becomes single results while it streams, and each test has a deadline.

mod artefacts;
mod lines;
mod parser;
mod pjdfstest_rs;
mod prove_tap;
mod unionmount;
mod whole_process;
mod xfstests;

use std::time::{Duration, Instant};

use wire::{MAX_ARTEFACT, ProcessEnd, ResultFormat, STACKS, Stream, SuitePlan, TestStatus, ToHost};

use crate::job::Job;
use crate::link::Link;
use lines::LineSplitter;
use parser::{Parser, TestEvent};

/// A result whose explanation may still follow is told after this much silence.
const IDLE: Duration = Duration::from_millis(200);
/// A harness whose test was killed has at least this long to come to itself before it is killed too.
const KILL_GRACE: Duration = Duration::from_secs(10);
/// Longest [`ToHost::TestFinished`] message, bytes.
const MAX_MESSAGE: usize = 64 << 10;
/// Longest test name, bytes.
const MAX_NAME: usize = 1024;

/// What is known about the running suite.
#[derive(Debug)]
pub struct Suite {
    parser: Parser,
    stdout: LineSplitter,
    test_timeout: Option<Duration>,
    /// When the last test began or ended: the running test's clock.
    progress_at: Instant,
    last_output: Instant,
    /// When the running test was killed, until the harness shows life again.
    killed_at: Option<Instant>,
    /// [`SuitePlan::artefacts`].
    artefacts: Option<String>,
}

impl Suite {
    /// A suite that is about to run as `plan` says.
    #[must_use]
    pub fn new(plan: &SuitePlan) -> Self {
        let parser = match plan.format {
            ResultFormat::ProveTap => Parser::ProveTap(prove_tap::ProveTap::default()),
            ResultFormat::PjdfstestRs => Parser::PjdfstestRs(pjdfstest_rs::PjdfstestRs::default()),
            ResultFormat::Xfstests => Parser::Xfstests(xfstests::Xfstests::default()),
            ResultFormat::Unionmount => Parser::Unionmount(unionmount::Unionmount::default()),
            ResultFormat::ExitCode => Parser::WholeProcess(whole_process::WholeProcess::new(&plan.name)),
        };
        let now = Instant::now();
        Self {
            parser,
            stdout: LineSplitter::default(),
            test_timeout: (plan.test_timeout_ms > 0).then(|| Duration::from_millis(plan.test_timeout_ms)),
            progress_at: now,
            last_output: now,
            killed_at: None,
            artefacts: plan.artefacts.clone(),
        }
    }

    /// The process has been started.
    pub fn begin(&mut self, link: &mut Link) {
        let events = self.parser.begin();
        self.tell(events, link);
    }

    /// Passes output on, and each result right behind the line that told it.
    pub fn output(&mut self, stream: Stream, data: &[u8], link: &mut Link) {
        self.last_output = Instant::now();
        if stream == Stream::Stderr {
            link.send(&ToHost::Output { stream, data: data.to_vec() });
            return;
        }
        let mut told = 0;
        let mut at = 0;
        while at < data.len() {
            let end = data[at..].iter().position(|&b| b == b'\n').map_or(data.len(), |newline| at + newline + 1);
            let events = match self.stdout.push(&data[at..end]) {
                Some(line) => self.parser.line(&line),
                None => self.stdout.unfinished().map(|start| self.parser.unfinished_line(&start)).unwrap_or_default(),
            };
            at = end;
            if !events.is_empty() {
                link.send(&ToHost::Output { stream, data: data[told..at].to_vec() });
                told = at;
                self.tell(events, link);
            }
        }
        if told < data.len() {
            link.send(&ToHost::Output { stream, data: data[told..].to_vec() });
        }
    }

    /// When [`watch`](Self::watch) has something to do though nothing happens.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let idle = self.parser.is_holding_back().then(|| self.last_output + IDLE);
        let test = match self.killed_at {
            Some(at) => Some(at + self.kill_grace()),
            None => self.test_timeout.map(|limit| self.progress_at + limit),
        };
        [idle, test].into_iter().flatten().min()
    }

    /// As long as a test may take: `check` of xfstests unmounts, looks the file systems over and reads the kernel's log before
    /// it goes on, and says nothing the while.
    fn kill_grace(&self) -> Duration {
        KILL_GRACE.max(self.test_timeout.unwrap_or_default())
    }

    /// Tells what waited long enough, and kills a test that is over its time.
    pub fn watch(&mut self, job: &Job, link: &mut Link) {
        if self.parser.is_holding_back() && self.last_output.elapsed() >= IDLE {
            let events = self.parser.idle();
            self.tell(events, link);
        }
        if job.drain_deadline().is_some() {
            return;
        }
        match (self.killed_at, self.test_timeout) {
            (Some(at), _) if at.elapsed() >= self.kill_grace() => {
                link.send(&ToHost::Log {
                    line: "the suite did not go on after its test was killed; killing it too".into(),
                });
                self.killed_at = None;
                self.test_timeout = None;
                job.kill();
            }
            (None, Some(limit)) if self.progress_at.elapsed() >= limit => {
                link.send(&ToHost::TestTimedOut { limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) });
                self.kill_test(&format!("killed: no result within {} s", seconds(limit)), job, link);
            }
            _ => {}
        }
    }

    /// Kills the running test with all it started, and reports it as an error; its harness goes on if it can.
    pub fn kill_test(&mut self, reason: &str, job: &Job, link: &mut Link) {
        let stacks = job.stacks();
        let events = self.parser.abort(reason);
        for event in &events {
            if let TestEvent::Finished { name, status: TestStatus::Error, .. } = event
                && !stacks.is_empty()
            {
                let (test, data) = (cut(name.clone(), MAX_NAME), cut(stacks.clone(), MAX_ARTEFACT).into_bytes());
                link.send(&ToHost::Artefact { test, kind: STACKS.to_owned(), data });
            }
        }
        self.tell(events, link);
        if self.parser.survives_abort() {
            job.kill_children();
            self.killed_at = Some(Instant::now());
        } else {
            job.kill();
        }
    }

    /// The process has ended and all output was passed on: the results that are still owed.
    pub fn finish(&mut self, end: ProcessEnd, link: &mut Link) {
        if let Some(line) = self.stdout.finish() {
            let events = self.parser.line(&line);
            self.tell(events, link);
        }
        let events = self.parser.finish(end);
        self.tell(events, link);
    }

    fn tell(&mut self, events: Vec<TestEvent>, link: &mut Link) {
        for event in events {
            // Where suites do not tell a test's time it is what passed since the last sign of progress.
            let took = self.progress_at.elapsed();
            self.progress_at = Instant::now();
            self.killed_at = None;
            let frame = match event {
                TestEvent::Started { name } => ToHost::TestStarted { name: cut(name, MAX_NAME) },
                TestEvent::Finished { name, status, message } => {
                    let name = cut(name, MAX_NAME);
                    if let (Some(pattern), TestStatus::Fail | TestStatus::Error) = (&self.artefacts, status) {
                        for (kind, data) in artefacts::of_test(pattern, &name) {
                            link.send(&ToHost::Artefact { test: name.clone(), kind, data });
                        }
                    }
                    let duration_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                    ToHost::TestFinished { name, status, duration_us, message: cut(message, MAX_MESSAGE) }
                }
            };
            link.send(&frame);
        }
    }
}

fn seconds(limit: Duration) -> String {
    let text = format!("{:.3}", limit.as_secs_f64());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Cuts at a character's border.
fn cut(mut text: String, limit: usize) -> String {
    if text.len() > limit {
        let border = (0..=limit).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(border);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("aä".into(), 2), "a");
        assert_eq!(cut("aä".into(), 3), "aä");
    }

    #[test]
    fn limits_read_as_seconds() {
        assert_eq!(seconds(Duration::from_millis(1500)), "1.5");
        assert_eq!(seconds(Duration::from_secs(60)), "60");
        assert_eq!(seconds(Duration::from_millis(5)), "0.005");
    }
}
