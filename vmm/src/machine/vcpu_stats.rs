//! KVM's own counters of a vCPU (`KVM_GET_STATS_FD`): how often it left the guest, and why. Exits are what a guest
//! costs, so they are the figure that does not depend on the machine.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::{KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_MASK, KVMIO};
use kvm_ioctls::VcpuFd;

/// `KVM_GET_STATS_FD` (Linux `include/uapi/linux/kvm.h`): `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: u64 = (KVMIO as u64) << 8 | 0xce;
/// Bounds for what is read from the descriptor file.
const MAX_COUNTERS: u32 = 4096;
const MAX_NAME: u32 = 256;

/// The counters of one vCPU, readable while it runs and after.
#[derive(Debug)]
pub struct VcpuStats {
    file: File,
    /// Name and file offset of each cumulative counter of one value.
    counters: Vec<(String, u64)>,
}

impl VcpuStats {
    /// The counters of `vcpu`, or `None` where KVM has none (before Linux 5.14).
    #[must_use]
    pub fn of(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the call takes no argument and returns a new file descriptor or an error.
        let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { File::from_raw_fd(fd) };
        let counters = read_descriptors(&file).ok()?;
        Some(Self { file, counters })
    }

    /// Name and value of each counter, in KVM's order: `exits`, `io_exits`, `mmio_exits`, `halt_exits`, …
    ///
    /// # Errors
    /// The counters cannot be read.
    pub fn read(&self) -> io::Result<Vec<(&str, u64)>> {
        self.counters
            .iter()
            .map(|(name, offset)| {
                let mut value = [0; 8];
                self.file.read_exact_at(&mut value, *offset)?;
                Ok((name.as_str(), u64::from_le_bytes(value)))
            })
            .collect()
    }
}

/// Reads the header and the descriptors behind it (Linux `Documentation/virt/kvm/api.rst`, § 4.131).
fn read_descriptors(file: &File) -> io::Result<Vec<(String, u64)>> {
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "KVM statistics are malformed");
    let mut header = [0; 24];
    file.read_exact_at(&mut header, 0)?;
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (name_size, count, descriptors, data) = (word(4), word(8), word(16), word(20));
    if count > MAX_COUNTERS || name_size > MAX_NAME {
        return Err(malformed());
    }
    let step = 16 + name_size as usize;
    let mut bytes = vec![0; step * count as usize];
    file.read_exact_at(&mut bytes, u64::from(descriptors))?;
    let mut counters = Vec::new();
    for descriptor in bytes.chunks_exact(step) {
        let flags = u32::from_le_bytes([descriptor[0], descriptor[1], descriptor[2], descriptor[3]]);
        let values = u16::from_le_bytes([descriptor[6], descriptor[7]]);
        let offset = u32::from_le_bytes([descriptor[8], descriptor[9], descriptor[10], descriptor[11]]);
        if flags & KVM_STATS_TYPE_MASK == KVM_STATS_TYPE_CUMULATIVE && values == 1 {
            let name = descriptor[16..].split(|byte| *byte == 0).next().ok_or_else(malformed)?;
            counters.push((String::from_utf8_lossy(name).into_owned(), u64::from(data) + u64::from(offset)));
        }
    }
    Ok(counters)
}
