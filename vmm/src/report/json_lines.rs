//! `events.jsonl`: every event as one line of JSON, written before anyone is told of the next one.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::atomic_file::write_atomically;
use super::event_log::EVENTS;
use super::reporter::{FinishedRun, Reporter};
use crate::session::{RunEvent, TimedEvent};
use crate::verdict::{Judgement, Tally};

/// Text of all `output` events together, bytes; a test that prints without end must not fill the disk.
const MAX_OUTPUT: usize = 256 << 20;

/// One `write` per event and no buffer of our own: what was written survives a SIGKILL of this process, and a line is
/// either whole or the last one.
pub(super) struct JsonLines<W> {
    to: W,
    output_left: usize,
}

impl JsonLines<File> {
    /// Creates the file, which must not be there.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Self::locked(File::options().append(true).create_new(true).open(path)?)
    }

    /// Goes on with the file behind `events`, which take the place of what is in it.
    pub(super) fn go_on(dir: &Path, events: &[TimedEvent]) -> io::Result<Self> {
        let path = dir.join(EVENTS);
        // Who still writes it keeps the lock; then nothing is replaced.
        drop(Self::locked(File::options().append(true).open(&path)?)?);
        let mut lines = JsonLines::new(Vec::new());
        events.iter().try_for_each(|event| lines.write(event))?;
        write_atomically(dir, EVENTS, 0o644, &lines.to)?;
        Self::locked(File::options().append(true).open(&path)?)
    }

    /// Whoever has the lock writes the run.
    fn locked(file: File) -> io::Result<Self> {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => Err(io::Error::other("the run still goes on: another vmm writes it")),
            // A file system without locks.
            _ => Ok(Self::new(file)),
        }
    }
}

impl<W: Write + Send> JsonLines<W> {
    fn new(to: W) -> Self {
        Self { to, output_left: MAX_OUTPUT }
    }

    fn write(&mut self, event: &TimedEvent) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.to.write_all(&line)
    }
}

impl<W: Write + Send> Reporter for JsonLines<W> {
    fn name(&self) -> &'static str {
        "events.jsonl"
    }

    fn on_event(&mut self, event: &TimedEvent, _: Option<Judgement>, _: &Tally) -> io::Result<()> {
        if let RunEvent::Output { text, .. } = &event.event {
            if self.output_left == 0 {
                return Ok(());
            }
            self.output_left = self.output_left.saturating_sub(text.len());
            if self.output_left == 0 {
                self.write(event)?;
                let line = format!("over {} MiB of output: what follows is left out of this file", MAX_OUTPUT >> 20);
                return self.write(&TimedEvent {
                    at_ms: event.at_ms,
                    guest: event.guest,
                    event: RunEvent::Note { line },
                });
            }
        }
        self.write(event)
    }

    fn finish(&mut self, _: &FinishedRun<'_>) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::test_events::{assert_same_text, hostile_run, output};

    fn written(events: &[TimedEvent]) -> String {
        let mut bytes = Vec::new();
        let mut lines = JsonLines::new(&mut bytes);
        for event in events {
            lines.on_event(event, None, &Tally::default()).unwrap();
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn each_event_is_one_line_that_reads_back_as_itself() {
        let events = hostile_run();
        let text = written(&events);
        assert_eq!(text.lines().count(), events.len());
        for (line, event) in text.lines().zip(&events) {
            assert_eq!(&serde_json::from_str::<TimedEvent>(line).unwrap(), event);
        }
    }

    #[test]
    fn the_lines_look_like_this() {
        let events: Vec<_> =
            hostile_run().into_iter().filter(|e| !matches!(e.event, RunEvent::Output { .. })).collect();
        assert_same_text(
            &written(&events[..6]),
            concat!(
                r#"{"at_ms":0,"event":"run-started","run":"r","suites":["s"],"host":"kvm"}"#,
                "\n",
                r#"{"at_ms":1,"event":"boot-started"}"#,
                "\n",
                r#"{"at_ms":2,"event":"guest-ready","kernel_release":"6.12.1","uptime_ms":1500,"mounts":[{"tag":"myfs1","mount_point":"/mnt/virtiofs1","error":null},{"tag":"my\u001b[31mfs2","mount_point":"/mnt/virtiofs2","error":"mount: \u001b[2Jno such device"}]}"#,
                "\n",
                r#"{"at_ms":3,"event":"suite-started","suite":"s"}"#,
                "\n",
                r#"{"at_ms":4,"event":"test-started","suite":"s","test":"good"}"#,
                "\n",
                r#"{"at_ms":5,"event":"test-finished","suite":"s","test":"good","status":"pass","duration_us":1234567,"message":""}"#,
                "\n",
            ),
        );
    }

    #[test]
    fn each_event_is_a_single_write() {
        struct Counting(usize);
        impl Write for Counting {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                assert!(bytes.ends_with(b"\n"));
                self.0 += 1;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut lines = JsonLines::new(Counting(0));
        let events = hostile_run();
        for event in &events {
            lines.on_event(event, None, &Tally::default()).unwrap();
        }
        assert_eq!(lines.to.0, events.len());
    }

    #[test]
    fn output_without_end_is_cut_and_results_still_come() {
        struct Last(u64, Vec<u8>);
        impl Write for Last {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += bytes.len() as u64;
                self.1 = bytes.to_vec();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut lines = JsonLines::new(Last(0, Vec::new()));
        lines.output_left = 10_000;
        let chunk = output(&"x".repeat(1000));
        for _ in 0..20 {
            lines.on_event(&chunk, None, &Tally::default()).unwrap();
        }
        assert!(String::from_utf8_lossy(&lines.to.1).contains("left out"));
        assert!((10_000..13_000).contains(&lines.to.0));
        let event = hostile_run().pop().unwrap();
        lines.on_event(&event, None, &Tally::default()).unwrap();
        assert!(String::from_utf8_lossy(&lines.to.1).contains("run-finished"));
    }
}
