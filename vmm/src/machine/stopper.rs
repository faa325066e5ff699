//! Ends a machine once, for the first reason that comes up, from whichever thread it comes up on.

use std::num::NonZero;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::{io, ptr};

use crossbeam_channel::{Receiver, Sender, bounded};
use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use rustix::fd::BorrowedFd;
use rustix::mm::{MapFlags, ProtFlags};

use super::StopReason;

/// The signal that makes a vCPU thread leave `KVM_RUN`: the first of the real-time signals that C libraries leave
/// to programs.
fn kick_signal() -> i32 {
    libc::SIGRTMIN()
}

/// Remembers the first stop reason, reports it, and gets every vCPU out of the guest.
#[derive(Debug)]
pub struct Stopper {
    stopping: AtomicBool,
    first: OnceLock<StopReason>,
    sender: Sender<StopReason>,
    vcpus: Mutex<Vec<VcpuKick>>,
}

impl Stopper {
    /// A stopper and the channel that gets exactly one reason.
    #[must_use]
    pub fn new() -> (Arc<Self>, Receiver<StopReason>) {
        let (sender, stopped) = bounded(1);
        let stopper =
            Self { stopping: AtomicBool::new(false), first: OnceLock::new(), sender, vcpus: Mutex::new(Vec::new()) };
        (Arc::new(stopper), stopped)
    }

    /// Stops the machine. The first call's reason is reported, later ones are logged.
    pub fn stop(&self, reason: StopReason) {
        match self.first.set(reason.clone()) {
            Err(reason) => tracing::debug!("machine is stopping already; also: {reason}"),
            Ok(()) => {
                self.stopping.store(true, Ordering::SeqCst);
                if let Err(error) = self.sender.try_send(reason) {
                    tracing::debug!("nobody waits for the machine to stop: {error}");
                }
            }
        }
        self.kick_all();
    }

    /// Gets every vCPU out of the guest; those of a machine that is not stopping go in again.
    pub(super) fn kick_all(&self) {
        for vcpu in self.vcpus.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            vcpu.kick();
        }
    }

    /// Whether [`Stopper::stop`] was called. vCPU threads ask before each `KVM_RUN`.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// The first reason, once there is one.
    #[must_use]
    pub fn reason(&self) -> Option<&StopReason> {
        self.first.get()
    }

    /// Adds a vCPU thread to those that are kicked.
    pub(super) fn add_vcpu(&self, vcpu: VcpuKick) {
        let mut vcpus = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at under the lock that `stop` takes after it has set the flag: no thread is forgotten.
        if self.is_stopping() {
            vcpu.kick();
        }
        vcpus.push(vcpu);
    }
}

/// Installs the handler without which the kick's signal would end the process. Harmless to call again.
///
/// # Errors
/// The handler could not be installed.
pub(super) fn install_kick_handler() -> io::Result<()> {
    extern "C" fn interrupt_only(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    vmm_sys_util::signal::register_signal_handler(kick_signal(), interrupt_only).map_err(Into::into)
}

/// What it takes to get one vCPU thread out of `KVM_RUN`, now or when it next enters it.
#[derive(Debug)]
pub(super) struct VcpuKick {
    /// The first page of the vCPU's `kvm_run`, mapped a second time, so that its lifetime is ours.
    run: *mut kvm_run,
    thread: i32,
}

// SAFETY: the pointer is to a mapping that this value owns, and only one byte of it is accessed, atomically.
unsafe impl Send for VcpuKick {}
// SAFETY: as above.
unsafe impl Sync for VcpuKick {}

/// As much of `kvm_run` as is mapped for the flag.
const RUN_PAGE: usize = 4096;

impl VcpuKick {
    /// For the calling thread, which is about to run `vcpu`.
    ///
    /// # Errors
    /// The vCPU's page could not be mapped.
    pub(super) fn for_this_thread(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: the descriptor is open as long as `vcpu` is borrowed, which outlives this use.
        let vcpu = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let run = unsafe {
            rustix::mm::mmap(ptr::null_mut(), RUN_PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, vcpu, 0)
        }?;
        let thread: NonZero<i32> = rustix::thread::gettid().as_raw_nonzero();
        Ok(Self { run: run.cast(), thread: thread.get() })
    }

    fn kick(&self) {
        // SAFETY: the mapping is alive as long as `self` and the field lies in its first page. KVM reads the byte when
        // the vCPU enters; an atomic store is all the synchronisation its documentation asks for.
        let immediate_exit = unsafe { AtomicU8::from_ptr(&raw mut (*self.run).immediate_exit) };
        immediate_exit.store(1, Ordering::SeqCst);
        // SAFETY: sends a signal with a handler to a thread of this process. When the thread is gone already the call
        // fails, and should its id have been given to another of our threads, the handler does nothing there.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.thread, kick_signal()) };
    }
}

impl Drop for VcpuKick {
    fn drop(&mut self) {
        // SAFETY: unmaps what `for_this_thread` mapped; nothing refers to it any more.
        if let Err(error) = unsafe { rustix::mm::munmap(self.run.cast(), RUN_PAGE) } {
            tracing::debug!("failed to unmap a vCPU's page: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_is_reported_and_no_other() {
        let (stopper, stopped) = Stopper::new();
        assert!(!stopper.is_stopping());
        stopper.stop(StopReason::PowerOff);
        stopper.stop(StopReason::Reset);
        assert!(stopper.is_stopping());
        assert_eq!(stopped.try_recv(), Ok(StopReason::PowerOff));
        assert!(stopped.try_recv().is_err());
        assert_eq!(stopper.reason(), Some(&StopReason::PowerOff));
    }
}
