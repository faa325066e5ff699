//! The guest touched memory that is not there: a file of a DAX window that was cut short on the host, or a part of the
//! window that nothing is mapped in. `KVM_RUN` fails with EFAULT then.
//!
//! A program of the guest is told as hardware would tell it: by a machine check, of which Linux makes a SIGBUS for the
//! program alone. The guest's kernel, which no machine check can be told to without a panic, finds zeros there instead.

use std::sync::Arc;

use devices::virtio::SharedMemory;
use kvm_bindings::{KVMIO, kvm_x86_mce};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::address_map::PCI_WINDOW;

ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);
ioctl_iow_nr!(KVM_X86_SET_MCE, KVMIO, 0x9e, kvm_x86_mce);

/// IA32_MCG_CAP (Intel SDM vol. 3 § 16.3.1.1): ten banks, IA32_MCG_CTL is there, recoverable errors exist.
const CAPABILITIES: u64 = 10 | 1 << 8 | 1 << 24;
/// IA32_MCG_STATUS (§ 16.3.1.2): the program can go on where it was, that is where the error was, a machine check is in
/// progress, and on this processor alone.
const GLOBAL_STATUS: u64 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 3;
/// IA32_MCi_STATUS (§ 16.3.2.2): valid, uncorrected, enabled, MISC and ADDR valid, signalled, action required; a data load
/// failed (0x134, § 16.9.4.1: software recoverable, action required).
const BANK_STATUS: u64 = 1 << 63 | 1 << 61 | 1 << 60 | 1 << 59 | 1 << 58 | 1 << 56 | 1 << 55 | 0x134;
/// IA32_MCi_MISC (§ 16.3.2.4): a physical address that is good to the page.
const BANK_MISC: u64 = 2 << 6 | 12;
/// The address that failed, as the guest is told. Not the true one: it would take the page out of use for good, whereas
/// the file may grow again. Of a page that is no memory Linux takes nothing but the news.
const BANK_ADDRESS: u64 = PCI_WINDOW.end - 0x1000;
/// Bank 9; the first ones have quirks of old processors.
const BANK: u8 = 9;

const MC_VECTOR: u8 = 18;
const CR4_MCE: u64 = 1 << 6;

/// Lets `vcpu` have machine checks that can be recovered from.
///
/// # Errors
/// KVM's own.
pub(super) fn set_up(vcpu: &VcpuFd) -> Result<(), std::io::Error> {
    // SAFETY: the argument is a u64, as the ioctl reads it.
    match unsafe { ioctl_with_ref(vcpu, KVM_X86_SETUP_MCE(), &CAPABILITIES) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// What a vCPU's thread needs to deal with missing memory. Keeps all of it reserved as long as the guest may run.
pub struct MissingMemory {
    shared: Vec<Arc<dyn SharedMemory>>,
}

impl MissingMemory {
    /// For a machine whose guest has `shared`.
    #[must_use]
    pub fn new(shared: Vec<Arc<dyn SharedMemory>>) -> Self {
        Self { shared }
    }

    /// Makes the guest go on after an EFAULT; false when it cannot.
    pub(super) fn handle(&self, vcpu: &VcpuFd) -> bool {
        if self.shared.is_empty() {
            return false;
        }
        // Of all: each may have something that has come back.
        if self.shared.iter().filter(|shared| shared.restore_grown()).count() > 0 || raise_machine_check(vcpu) {
            return true;
        }
        let covered: u64 = self
            .shared
            .iter()
            .map(|shared| match shared.cover_missing() {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::warn!("no zeros for a file that was cut short: {error}");
                    0
                }
            })
            .sum();
        if covered > 0 {
            tracing::warn!("the guest's kernel used a mapped file that was cut short; it finds zeros there");
        }
        covered > 0
    }
}

/// Whether the guest runs a program and will get a machine check.
fn raise_machine_check(vcpu: &VcpuFd) -> bool {
    let Ok(sregs) = vcpu.get_sregs() else { return false };
    if sregs.ss.dpl != 3 || sregs.cr4 & CR4_MCE == 0 {
        return false;
    }
    let check = kvm_x86_mce {
        status: BANK_STATUS,
        addr: BANK_ADDRESS,
        misc: BANK_MISC,
        mcg_status: GLOBAL_STATUS,
        bank: BANK,
        ..Default::default()
    };
    // SAFETY: the argument is what the ioctl reads.
    if unsafe { ioctl_with_ref(vcpu, KVM_X86_SET_MCE(), &check) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!("KVM refuses a machine check: {error}");
        return false;
    }
    // A guest that has turned the bank off gets none, and KVM says nothing.
    vcpu.get_vcpu_events().is_ok_and(|events| {
        (events.exception.injected != 0 || events.exception.pending != 0) && events.exception.nr == MC_VECTOR
    })
}
