//! The last resort of an agent that has no stream to the host: the kernel's log, which the host keeps as `console.log`.

use std::fs::OpenOptions;
use std::io::Write;

/// Everything the agent writes to the kernel's log begins with this.
pub const PREFIX: &str = "vmm-agent: ";

/// Writes one line to the kernel's log as an error, so that it reaches the console of a `quiet` kernel too.
pub fn error(line: &str) {
    let line = line.replace('\n', "; ");
    // A record is at most 1024 - 32 bytes (CONSOLE_LOG_MAX, devkmsg_write in kernel/printk/printk.c).
    let shown: String = line.chars().take(900).collect();
    let record = format!("<3>{PREFIX}{shown}\n");
    let written = OpenOptions::new().write(true).open("/dev/kmsg").and_then(|mut log| log.write_all(record.as_bytes()));
    if written.is_err() {
        // Before /dev is mounted there may still be the console that the kernel opened for its first process.
        let _ = writeln!(std::io::stderr(), "{PREFIX}{shown}");
    }
}
