//! A run for the reporters' tests, told by a guest that means no good.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use similar::{ChangeTag, TextDiff};
use wire::{MountReport, TestStatus};

use super::reporter::FinishedRun;
use crate::exit_code::ExitCode;
use crate::session::{OutputStream, RunEvent, RunOutcome, SuiteEnd, TimedEvent};
use crate::verdict::Tally;

/// What a guest may put anywhere: terminal escapes, XML's forbidden and special characters, path tricks, no ASCII.
pub(super) const GARBAGE: &str = "../\x1b[31m\0<&\"']]>\u{fffe}\u{202e}é\n\x07end";

/// One event at the given time.
pub(super) fn at(at_ms: u64, event: RunEvent) -> TimedEvent {
    TimedEvent { at_ms, guest: 0, event }
}

/// A piece of output of suite `s`.
pub(super) fn output(text: &str) -> TimedEvent {
    at(5, RunEvent::Output { suite: "s".into(), test: None, stream: OutputStream::Stdout, text: text.into() })
}

/// A test's result in suite `s`, after 1.234567 s.
pub(super) fn result(test: &str, status: TestStatus, message: &str) -> RunEvent {
    let (suite, test, message) = ("s".into(), test.into(), message.into());
    RunEvent::TestFinished { suite, test, status, duration_us: 1_234_567, message }
}

/// Every kind of event, with [`GARBAGE`] wherever the guest has a say.
pub(super) fn hostile_run() -> Vec<TimedEvent> {
    let started = |test: &str| RunEvent::TestStarted { suite: "s".into(), test: test.into() };
    let good = MountReport { tag: "myfs1".into(), mount_point: "/mnt/virtiofs1".into(), error: None };
    let bad = MountReport {
        tag: "my\x1b[31mfs2".into(),
        mount_point: "/mnt/virtiofs2".into(),
        error: Some("mount: \x1b[2Jno such device".into()),
    };
    let events = vec![
        RunEvent::RunStarted { run: "r".into(), suites: vec!["s".into()], host: "kvm".into() },
        RunEvent::BootStarted,
        RunEvent::GuestReady { kernel_release: "6.12.1".into(), uptime_ms: 1500, mounts: vec![good, bad] },
        RunEvent::SuiteStarted { suite: "s".into() },
        started("good"),
        result("good", TestStatus::Pass, ""),
        started(GARBAGE),
        output(GARBAGE).event,
        result(GARBAGE, TestStatus::Fail, GARBAGE),
        result("skipped", TestStatus::Skip, "needs \x1b]0;title\x07root"),
        RunEvent::Note { line: "agent: \x1b[1mhello".into() },
        started("cut"),
        output("last words\n").event,
        RunEvent::SuiteFinished { suite: "s".into(), end: Some(SuiteEnd::Signaled(9)), duration_ms: 2500 },
        RunEvent::SuiteNotStarted { suite: "t".into(), error: "exec /x: \x1b[5mno".into() },
        RunEvent::MachineStopped { reason: "guest reset the machine".into() },
        RunEvent::RunFinished { outcome: RunOutcome::GuestDied { reason: "Kernel panic \x1b[7m- not syncing".into() } },
    ];
    (0..).zip(events).map(|(ms, event)| at(ms, event)).collect()
}

/// Fails with a line by line difference.
pub(super) fn assert_same_text(got: &str, wanted: &str) {
    if got == wanted {
        return;
    }
    let diff = TextDiff::from_lines(wanted, got);
    let mut shown = String::new();
    for change in diff.iter_all_changes() {
        let sign = match change.tag() {
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
            ChangeTag::Equal => ' ',
        };
        shown.push_str(&format!("{sign}{change:?}\n", change = change.value()));
    }
    panic!("not the text wanted (-) but (+):\n{shown}");
}

/// The end of a run called `r` that took 3.2 s.
pub(super) fn finished_run<'a>(tally: &'a Tally, outcome: &'a RunOutcome, exit_code: ExitCode) -> FinishedRun<'a> {
    FinishedRun {
        name: "r",
        dir: Path::new("/results/r"),
        started: "2026-11-23T15:01:02Z",
        host: "kvm",
        statistics: None,
        kernel_release: Some("6.12.1"),
        duration: Duration::from_millis(3200),
        tally,
        outcome,
        exit_code,
        failed_reporters: &[],
        command: "vmm run s",
    }
}

/// Collects what is written.
#[derive(Clone, Default)]
pub(super) struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
