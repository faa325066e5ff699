//! `kernel.log`: everything the guest's kernel said, while it said it.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::printable::printable;
use super::reporter::{FinishedRun, Reporter};
use crate::session::{RunEvent, TimedEvent};
use crate::verdict::{Judgement, Tally};

/// A guest that prints without end must not fill the disk, bytes.
const MAX_BYTES: usize = 64 << 20;

/// Writes through, so that nothing is lost when this process is.
pub(super) struct KernelLog {
    file: File,
    left: usize,
}

impl KernelLog {
    /// Makes the file; what is in one that is there stays.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::options().append(true).create(true).open(path)?, left: MAX_BYTES })
    }
}

impl Reporter for KernelLog {
    fn name(&self) -> &'static str {
        "kernel.log"
    }

    fn on_event(&mut self, event: &TimedEvent, _: Option<Judgement>, _: &Tally) -> io::Result<()> {
        let RunEvent::KernelLog { text } = &event.event else { return Ok(()) };
        let text: String = text.lines().map(|line| format!("{}\n", printable(line))).collect();
        if text.len() > self.left {
            self.left = 0;
            return Ok(());
        }
        self.left -= text.len();
        self.file.write_all(text.as_bytes())
    }

    fn finish(&mut self, _: &FinishedRun<'_>) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(log: &mut KernelLog, text: &str) {
        let event = TimedEvent { at_ms: 0, guest: 1, event: RunEvent::KernelLog { text: text.into() } };
        log.on_event(&event, None, &Tally::default()).unwrap();
    }

    #[test]
    fn lines_are_on_disk_at_once_and_cannot_move_a_cursor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel.log");
        let mut kernel = KernelLog::create(&path).unwrap();
        log(&mut kernel, "[    0.000000] Linux version 6.12\n[    1.000000] \x1b[2Jbad\n");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("[    0.000000] Linux version 6.12\n[    1.000000] "), "{text:?}");
        assert!(!text.contains('\x1b') && text.ends_with("bad\n"), "{text:?}");
    }

    #[test]
    fn a_log_without_end_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel.log");
        let mut kernel = KernelLog { left: 20, ..KernelLog::create(&path).unwrap() };
        log(&mut kernel, "short\n");
        log(&mut kernel, "much longer than is left\n");
        log(&mut kernel, "x\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "short\n");
    }
}
