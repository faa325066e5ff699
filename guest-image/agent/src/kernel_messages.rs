//! The guest kernel's log, from its first line, for the host to keep. A `quiet` kernel prints next to nothing on its serial
//! console, because each character there is a VM exit; here a screenful costs one packet.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Longest record that the kernel gives, bytes: `CONSOLE_EXT_LOG_MAX` of 6.1 (include/linux/printk.h); since 6.3 it is
/// `PRINTK_MESSAGE_MAX`, 2048. A longer one than the buffer would be lost (EINVAL).
const MAX_RECORD: usize = 8192;

/// A reader of `/dev/kmsg` (Documentation/ABI/testing/dev-kmsg).
#[derive(Debug)]
pub struct KernelMessages {
    device: File,
}

impl KernelMessages {
    /// Begins with the oldest message that the kernel still has.
    ///
    /// # Errors
    /// As opening the device for reading gives.
    pub fn open() -> io::Result<Self> {
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg").map(|device| Self { device })
    }

    /// What can be read now, as `dmesg` shows it, until it is `limit` bytes or a little more.
    pub fn read(&mut self, limit: usize) -> String {
        let mut text = String::new();
        let mut record = [0; MAX_RECORD];
        while text.len() < limit {
            match self.device.read(&mut record) {
                Ok(0) => break,
                Ok(length) => push_record(&mut text, &String::from_utf8_lossy(&record[..length])),
                // The ring buffer overtook us.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PIPE.raw_os_error()) => {
                    text.push_str("[messages of the kernel were lost here]\n");
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        text
    }
}

impl AsFd for KernelMessages {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// `priority,sequence,microseconds,flags[,…];text`, then lines of a device's properties, which begin with a space.
fn push_record(to: &mut String, record: &str) {
    let (head, rest) = record.split_once(';').unwrap_or(("", record));
    let text = rest.split('\n').next().unwrap_or_default();
    let time: u64 = head.split(',').nth(2).and_then(|time| time.parse().ok()).unwrap_or(0);
    // Writing to a string cannot fail.
    let _ = writeln!(to, "[{:5}.{:06}] {text}", time / 1_000_000, time % 1_000_000);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_as_dmesg_shows_it() {
        let mut text = String::new();
        push_record(&mut text, "6,339,5140900,-;NET: Registered PF_VSOCK protocol family\n");
        push_record(&mut text, "30,340,65000000123,-,caller=T1;a; b\n SUBSYSTEM=acpi\n DEVICE=+acpi:x\n");
        assert_eq!(text, "[    5.140900] NET: Registered PF_VSOCK protocol family\n[65000.000123] a; b\n");
    }

    #[test]
    fn what_is_no_record_is_shown_as_it_is() {
        let mut text = String::new();
        push_record(&mut text, "strange");
        assert_eq!(text, "[    0.000000] strange\n");
    }
}
