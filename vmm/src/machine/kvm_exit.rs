//! What a vCPU exit means: a bus access, nothing, or the end. Pure, so that every case is tested without KVM.

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::VcpuExit;
use vmm_sys_util::errno;

/// What the vCPU thread has to do before the next `KVM_RUN`.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Fill `data` from a port.
    PortRead(u16, &'a mut [u8]),
    /// Give `data` to a port.
    PortWrite(u16, &'a [u8]),
    /// Fill `data` from memory that is not RAM.
    MmioRead(u64, &'a mut [u8]),
    /// Give `data` to memory that is not RAM.
    MmioWrite(u64, &'a [u8]),
    /// Nothing: a signal came, or KVM wants to be called again.
    Resume,
    /// End the machine.
    Stop(Ending),
}

/// Why an exit ends the machine; the vCPU thread adds its index and registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered off through a KVM event.
    PowerOff,
    /// The guest reset through a KVM event.
    Reset,
    /// Triple fault.
    TripleFault,
    /// KVM_EXIT_INTERNAL_ERROR; `kvm_run` says which, see [`internal_error`].
    InternalError,
    /// The guest touched memory that cannot be had. The machine only ends if nothing can be done about it.
    MissingMemory(String),
    /// KVM cannot go on.
    Failed(String),
}

/// Reads one result of `KVM_RUN`.
#[must_use]
pub fn action(exit: Result<VcpuExit<'_>, errno::Error>) -> Action<'_> {
    let failed = |detail: String| Action::Stop(Ending::Failed(detail));
    let missing = |detail: String| Action::Stop(Ending::MissingMemory(detail));
    match exit {
        Ok(VcpuExit::IoIn(port, data)) => Action::PortRead(port, data),
        Ok(VcpuExit::IoOut(port, data)) => Action::PortWrite(port, data),
        Ok(VcpuExit::MmioRead(address, data)) => Action::MmioRead(address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => Action::MmioWrite(address, data),
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Action::Resume,
        Ok(VcpuExit::Shutdown) => Action::Stop(Ending::TripleFault),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Action::Stop(Ending::PowerOff),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Action::Stop(Ending::Reset),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            failed(format!("the CPU refused to enter the guest (reason {reason:#x} on host CPU {cpu})"))
        }
        Ok(VcpuExit::InternalError) => Action::Stop(Ending::InternalError),
        Ok(VcpuExit::MemoryFault { gpa, size, .. }) => {
            missing(format!("guest memory at {gpa:#x}+{size:#x} cannot be had"))
        }
        Ok(other) => failed(format!("unexpected exit {other:?}")),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Action::Resume,
        Err(error) if error.errno() == libc::EFAULT => {
            missing("guest memory could not be had (is the host out of memory?)".to_owned())
        }
        Err(error) => failed(format!("KVM_RUN failed: {error}")),
    }
}

/// What an internal error's number means (`KVM_INTERNAL_ERROR_*` in Linux `include/uapi/linux/kvm.h`).
#[must_use]
pub fn internal_error(suberror: u32) -> String {
    match suberror {
        KVM_INTERNAL_ERROR_EMULATION => "it could not emulate an instruction".to_owned(),
        KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions came together that it cannot deliver".to_owned(),
        KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit came while an event was delivered".to_owned(),
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "the CPU left the guest for an unknown reason".to_owned(),
        other => format!("internal error {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(exit: Result<VcpuExit<'_>, errno::Error>) -> String {
        match action(exit) {
            Action::Stop(Ending::Failed(detail)) => detail,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn accesses_are_passed_on_with_their_data() {
        let mut data = [1, 2];
        assert_eq!(action(Ok(VcpuExit::IoOut(0x3f8, &[7]))), Action::PortWrite(0x3f8, &[7]));
        assert_eq!(action(Ok(VcpuExit::IoIn(0x3fd, &mut data))), Action::PortRead(0x3fd, &mut [1, 2]));
        assert_eq!(action(Ok(VcpuExit::MmioWrite(1 << 32, &[1; 8]))), Action::MmioWrite(1 << 32, &[1; 8]));
        assert_eq!(action(Ok(VcpuExit::MmioRead(9, &mut data))), Action::MmioRead(9, &mut [1, 2]));
    }

    #[test]
    fn a_signal_or_a_retry_resumes() {
        for number in [libc::EINTR, libc::EAGAIN] {
            assert_eq!(action(Err(errno::Error::new(number))), Action::Resume);
        }
        assert_eq!(action(Ok(VcpuExit::Intr)), Action::Resume);
    }

    #[test]
    fn the_guests_own_endings_are_told_apart() {
        assert_eq!(action(Ok(VcpuExit::Shutdown)), Action::Stop(Ending::TripleFault));
        assert_eq!(action(Ok(VcpuExit::SystemEvent(1, &[]))), Action::Stop(Ending::PowerOff));
        assert_eq!(action(Ok(VcpuExit::SystemEvent(2, &[]))), Action::Stop(Ending::Reset));
    }

    #[test]
    fn missing_memory_is_told_apart_from_other_failures() {
        let says = |exit, what: &str| match action(exit) {
            Action::Stop(Ending::MissingMemory(detail)) => assert!(detail.contains(what), "{detail}"),
            other => panic!("{other:?}"),
        };
        says(Err(errno::Error::new(libc::EFAULT)), "memory could not be had");
        says(Ok(VcpuExit::MemoryFault { flags: 0, gpa: 0x1_4000_0000, size: 4096 }), "0x140000000");
    }

    #[test]
    fn what_kvm_cannot_do_is_a_failure_that_says_what() {
        assert_eq!(action(Ok(VcpuExit::InternalError)), Action::Stop(Ending::InternalError));
        assert!(internal_error(1).contains("emulate") && internal_error(77).contains("77"));
        assert!(failure(Ok(VcpuExit::FailEntry(0x80000021, 3))).contains("0x80000021"));
        assert!(failure(Ok(VcpuExit::Hlt)).contains("Hlt"));
        assert!(failure(Ok(VcpuExit::SystemEvent(3, &[]))).contains("SystemEvent"));
        assert!(failure(Err(errno::Error::new(libc::EBADF))).contains("KVM_RUN"));
    }
}
