//! Reads what the `pjdfstest` crate's binary prints.
//!
//! One line per test function when it has ended: its path, padded to a column, and `ok`, `FAILED`, `skipped`,
//! `PASSED UNEXPECTEDLY` or `failed as expected`; behind it, indented by a tab, the reasons of a skip or the panic's text
//! of a failure (whose further lines are not indented), and at the end a summary with the counts. It does not say when a
//! test begins.

use wire::{ProcessEnd, TestStatus};

use super::parser::{TestEvent, describe};

/// More explanation than this is not kept.
const MAX_EXPLANATION: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct PjdfstestRs {
    /// A result whose explanation may still follow.
    held: Option<Held>,
    last_name: Option<String>,
    seen: u64,
    /// The largest total of a summary. There may be several: a wrapper can run again, and better, what it kept back of a first
    /// run's results; then the first summary counts each test once.
    summary_total: Option<u64>,
    aborted: bool,
}

#[derive(Debug)]
struct Held {
    name: String,
    status: TestStatus,
    message: String,
}

impl PjdfstestRs {
    pub(super) fn line(&mut self, line: &str) -> Vec<TestEvent> {
        if let Some((name, status, message)) = result_line(line) {
            let mut events = self.release();
            self.seen += 1;
            self.last_name = Some(name.to_owned());
            let held = Held { name: name.to_owned(), status, message: message.to_owned() };
            if status == TestStatus::Pass {
                events.push(held.into_event());
            } else {
                self.held = Some(held);
            }
            return events;
        }
        if let Some(total) = summary_line(line) {
            self.summary_total = self.summary_total.max(Some(total));
            return self.release();
        }
        if let Some(held) = &mut self.held
            && held.message.len() + line.len() < MAX_EXPLANATION
        {
            if !held.message.is_empty() {
                held.message.push('\n');
            }
            held.message.push_str(line.strip_prefix('\t').unwrap_or(line));
        }
        Vec::new()
    }

    pub(super) fn is_holding_back(&self) -> bool {
        self.held.is_some()
    }

    pub(super) fn release(&mut self) -> Vec<TestEvent> {
        self.held.take().map(Held::into_event).into_iter().collect()
    }

    pub(super) fn abort(&mut self, reason: &str) -> Vec<TestEvent> {
        let mut events = self.release();
        if !self.aborted {
            self.aborted = true;
            events.push(TestEvent::finished(self.unnamed_test(), TestStatus::Error, reason));
        }
        events
    }

    pub(super) fn finish(&mut self, end: ProcessEnd) -> Vec<TestEvent> {
        let mut events = self.release();
        let error = match self.summary_total {
            _ if self.aborted => None,
            None => Some((
                self.unnamed_test(),
                format!("the suite ended ({}) without its summary, after {} results", describe(end), self.seen),
            )),
            Some(total) if total != self.seen => Some((
                "summary".to_owned(),
                format!("the suite counts {total} tests, its output has {} results", self.seen),
            )),
            Some(_) => None,
        };
        events.extend(error.map(|(name, message)| TestEvent::finished(name, TestStatus::Error, message)));
        events
    }

    /// The running test's name is not known before it ends, only what came before it.
    fn unnamed_test(&self) -> String {
        wire::unnamed_test(self.last_name.as_deref())
    }
}

impl Held {
    fn into_event(self) -> TestEvent {
        TestEvent::finished(self.name, self.status, self.message.trim_end())
    }
}

fn result_line(line: &str) -> Option<(&str, TestStatus, &'static str)> {
    let (name, rest) = line.split_once(' ')?;
    let is_path = name.contains("::")
        && name
            .split("::")
            .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
    if !is_path {
        return None;
    }
    let (status, message) = match rest.trim() {
        "ok" => (TestStatus::Pass, ""),
        "failed as expected" => (TestStatus::Pass, "failed as expected"),
        "FAILED" => (TestStatus::Fail, ""),
        "PASSED UNEXPECTEDLY" => (TestStatus::Fail, "passed unexpectedly"),
        "skipped" => (TestStatus::Skip, ""),
        _ => return None,
    };
    Some((name, status, message))
}

/// `Summary: 0 failed, 47 skipped, 351 passed, 0 expected failures, 398 total`
fn summary_line(line: &str) -> Option<u64> {
    line.strip_prefix("Summary: ")?.strip_suffix(" total")?.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests;
