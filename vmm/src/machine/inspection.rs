//! Looking at a guest from outside: where its vCPUs are, and a nudge that makes a hung kernel tell what it is at.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;

use super::stopper::Stopper;

/// What vCPU threads are asked for, and what they found. One for a machine.
#[derive(Debug, Default)]
pub struct Inspection {
    /// How often vCPUs were asked; each remembers the last number that it answered.
    asked: AtomicU32,
    seen: Mutex<Vec<Seen>>,
    changed: Condvar,
}

/// A vCPU's registers as it last told them.
#[derive(Clone, Debug, Default)]
struct Seen {
    answered: u32,
    registers: String,
}

impl Inspection {
    /// For that many vCPUs.
    pub(super) fn new(vcpus: u32) -> Arc<Self> {
        Arc::new(Self { seen: Mutex::new(vec![Seen::default(); vcpus as usize]), ..Self::default() })
    }

    /// Called by a vCPU's thread before it enters the guest: answers, if it was asked something new, and has the guest
    /// interrupted by an NMI. A kick that comes before the thread can be kicked is not lost: it is here that it is seen.
    pub(super) fn answer_if_asked(&self, index: u32, vcpu: &VcpuFd, answered: &mut u32) {
        let asked = self.asked.load(Ordering::SeqCst);
        if *answered == asked {
            return;
        }
        *answered = asked;
        self.record(index, vcpu, asked);
        // One is enough: a kernel that panics of it has the other CPUs tell where they are. An old KVM may lack it.
        if index == 0
            && let Err(error) = vcpu.nmi()
        {
            tracing::debug!("no NMI for vCPU {index}: {error}");
        }
    }

    /// What the vCPU's registers are as its thread ends.
    pub(super) fn record_last(&self, index: u32, vcpu: &VcpuFd) {
        self.record(index, vcpu, self.asked.load(Ordering::SeqCst));
    }

    fn record(&self, index: u32, vcpu: &VcpuFd, answered: u32) {
        let registers = registers(vcpu);
        if let Some(seen) = self.lock().get_mut(index as usize) {
            *seen = Seen { answered, registers };
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks at one machine. It may have stopped.
#[derive(Clone, Debug)]
pub struct Inspector {
    pub(super) inspection: Arc<Inspection>,
    pub(super) stopper: Arc<Stopper>,
}

impl Inspector {
    /// The registers of each vCPU, one line each; of one that has stopped, those it stopped with. A guest that still runs gets
    /// an NMI at its first vCPU, of which Linux panics if it is told so (`unknown_nmi_panic`) and prints what each CPU is at.
    /// A vCPU that does not leave the guest within `limit` has no line of its own.
    #[must_use]
    pub fn look(&self, limit: Duration) -> Vec<String> {
        let deadline = Instant::now() + limit;
        let asked = self.inspection.asked.fetch_add(1, Ordering::SeqCst) + 1;
        if !self.stopper.is_stopping() {
            self.stopper.kick_all();
        }
        let mut seen = self.inspection.lock();
        while !self.stopper.is_stopping() && seen.iter().any(|vcpu| vcpu.answered != asked) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            seen = self.inspection.changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let told = seen.iter().enumerate().filter(|(_, vcpu)| !vcpu.registers.is_empty());
        told.map(|(index, vcpu)| format!("vCPU {index}: {}", vcpu.registers)).collect()
    }

    /// Whether the machine has stopped, or was told to.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.stopper.is_stopping()
    }
}

/// The registers that tell where the guest was, for a bug report.
pub(super) fn registers(vcpu: &VcpuFd) -> String {
    match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => format!(
            "rip {:#x} rsp {:#x} rflags {:#x} cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x}",
            regs.rip, regs.rsp, regs.rflags, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer
        ),
        _ => "registers cannot be read".to_owned(),
    }
}
