//! What a guest's kernel said about its own end: panic, oops, or the agent's last words, found in the console's log.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// A line is read this far, bytes; a console may print anything.
const MAX_LINE: u64 = 4096;
/// The agent's own errors begin like this (`kernel_log::PREFIX` of the agent).
const AGENT_FATAL: &str = "vmm-agent: fatal: ";

/// Marks of a kernel that is in an undefined state from here on, though it may go on for a while.
const OOPS_MARKS: [&str; 8] = [
    "BUG: ",
    "Oops: ",
    "general protection fault",
    "kernel BUG at ",
    "Internal error: ",
    "KASAN: ",
    "double fault: ",
    "Unable to handle kernel ",
];

/// Begins like an oops, but tells of a slow host as often as of a bug, and the kernel is none the worse for it.
const SLOW_HOST_MARK: &str = "BUG: workqueue lockup";

/// What was found, each the first of its kind, without the time stamp.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsoleFindings {
    /// `Kernel panic - not syncing: …`.
    pub panic: Option<String>,
    /// The line that says what went wrong: `BUG: kernel NULL pointer dereference, …`.
    pub oops: Option<String>,
    /// Where it happened: `RIP: 0010:fuse_do_getattr+0x1a/0x2b0`.
    pub location: Option<String>,
    /// Why the agent gave up.
    pub agent_fatal: Option<String>,
    /// How many `WARNING:` reports there are.
    pub warnings: usize,
}

impl ConsoleFindings {
    /// What killed the kernel, in one line; `None` when it shows no sign of that.
    #[must_use]
    pub fn kernel_death(&self) -> Option<String> {
        let mut parts: Vec<&str> = Vec::new();
        // What is behind "not syncing" is often only "Fatal exception"; the oops before it has the substance.
        parts.extend(self.panic.as_deref());
        parts.extend(self.oops.as_deref());
        if !parts.is_empty() {
            parts.extend(self.location.as_deref());
        }
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// Whether a kernel's report of its own end begins in `line`.
pub(crate) fn begins_report(line: &str) -> bool {
    let mut findings = ConsoleFindings::default();
    look_at(line, &mut findings);
    findings.panic.is_some() || findings.oops.is_some()
}

/// Reads a console log. A log that is not there has nothing in it.
///
/// # Errors
/// When it cannot be read.
pub fn read(path: &Path) -> io::Result<ConsoleFindings> {
    match File::open(path) {
        Ok(file) => scan(BufReader::new(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(ConsoleFindings::default()),
        Err(error) => Err(error),
    }
}

fn scan(mut reader: impl BufRead) -> io::Result<ConsoleFindings> {
    let mut findings = ConsoleFindings::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(findings);
        }
        look_at(&String::from_utf8_lossy(&line), &mut findings);
    }
}

fn look_at(line: &str, findings: &mut ConsoleFindings) {
    let text = message(line);
    if let Some(at) = text.find("Kernel panic - not syncing") {
        // The trailer repeats it: "---[ end Kernel panic - not syncing: … ]---".
        findings.panic.get_or_insert_with(|| text[at..].to_owned());
    } else if let Some(at) = text.find(AGENT_FATAL) {
        findings.agent_fatal.get_or_insert_with(|| text[at + AGENT_FATAL.len()..].to_owned());
    } else if text.starts_with("WARNING: ") {
        findings.warnings += 1;
    } else if OOPS_MARKS.iter().any(|mark| text.starts_with(mark)) && !text.starts_with(SLOW_HOST_MARK) {
        findings.oops.get_or_insert_with(|| text.to_owned());
    } else if text.starts_with("RIP: ") && findings.oops.is_some() {
        findings.location.get_or_insert_with(|| text.to_owned());
    }
}

/// A line without `[   12.345678]`, `[  T123]` and the like before it.
fn message(line: &str) -> &str {
    let mut text = line.trim();
    while let Some((stamp, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let is_stamp = stamp.bytes().all(|b| b.is_ascii_digit() || matches!(b, b' ' | b'.' | b'T' | b'C'));
        if stamp.is_empty() || !is_stamp {
            break;
        }
        text = rest.trim_start();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan_text(text: &str) -> ConsoleFindings {
        scan(text.as_bytes()).unwrap()
    }

    #[test]
    fn an_oops_that_ends_in_a_panic_is_told_with_its_place() {
        let findings = scan_text(
            "[    0.000000] Linux version 6.12\r\n\
             [   12.000001] BUG: kernel NULL pointer dereference, address: 0000000000000008\r\n\
             [   12.000002] #PF: supervisor read access in kernel mode\r\n\
             [   12.000003] Oops: Oops: 0000 [#1] PREEMPT SMP NOPTI\r\n\
             [   12.000004] RIP: 0010:fuse_do_getattr+0x1a/0x2b0\r\n\
             [   12.000005] RIP: 0033:0x7f\r\n\
             [   12.000006] Kernel panic - not syncing: Fatal exception\r\n\
             [   12.000007] ---[ end Kernel panic - not syncing: Fatal exception ]---\r\n",
        );
        assert_eq!(
            findings.kernel_death().as_deref(),
            Some(
                "Kernel panic - not syncing: Fatal exception; BUG: kernel NULL pointer dereference, address: \
                 0000000000000008; RIP: 0010:fuse_do_getattr+0x1a/0x2b0"
            )
        );
    }

    #[test]
    fn a_panic_without_an_oops_is_enough() {
        let findings = scan_text("[    1.0][    T1] Kernel panic - not syncing: VFS: Unable to mount root fs\n");
        assert_eq!(
            findings.kernel_death().as_deref(),
            Some("Kernel panic - not syncing: VFS: Unable to mount root fs")
        );
    }

    #[test]
    fn a_warning_is_counted_and_kills_nothing() {
        let findings = scan_text("[    1.0] WARNING: CPU: 0 PID: 1 at fs/fuse/dev.c:1\n[    2.0] RIP: 0010:x\n");
        assert_eq!((findings.warnings, findings.kernel_death()), (1, None));
    }

    #[test]
    fn the_agents_last_words_are_found() {
        let findings = scan_text("[    2.1] vmm-agent: fatal: failed to connect to the host's vsock port 1024\n");
        assert_eq!(findings.agent_fatal.as_deref(), Some("failed to connect to the host's vsock port 1024"));
        assert_eq!(findings.kernel_death(), None);
    }

    #[test]
    fn a_healthy_log_and_no_log_have_nothing() {
        let text = "[    0.1] BIOS-provided physical RAM map:\n[    0.2] debug: BUG: no\n[abc] x\n[] y\n[\n\u{0}\n";
        assert_eq!(scan_text(text), ConsoleFindings::default());
        assert_eq!(read(Path::new("/no/such/console.log")).unwrap(), ConsoleFindings::default());
    }

    #[test]
    fn binary_data_and_endless_lines_are_read_in_bounded_pieces() {
        let mut bytes = vec![0xffu8; 1 << 20];
        bytes.extend_from_slice(b"\nKernel panic - not syncing: late\n");
        assert!(scan(&bytes[..]).unwrap().panic.is_some());
    }
}
