//! A vCPU's thread: `KVM_RUN` until the machine stops.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};
use devices::GuestMem;
use kvm_ioctls::VcpuFd;

use super::StopReason;
use super::inspection::{Inspection, registers};
use super::io_bus::IoBus;
use super::kvm_exit::{self, Action, Ending};
use super::missing_memory::MissingMemory;
use super::stopper::{Stopper, VcpuKick};

/// A vCPU thread needs little: its deepest stack is a device's register access. Virtual until touched.
const STACK_SIZE: usize = 256 << 10;

/// The address spaces a vCPU reaches devices through.
#[derive(Default)]
pub struct Buses {
    /// I/O ports.
    pub ports: IoBus,
    /// Memory that is not RAM.
    pub memory: IoBus,
}

/// Owner of one vCPU thread.
pub struct VcpuThread {
    /// The thread's name.
    pub name: String,
    handle: JoinHandle<()>,
    /// Disconnected when the thread has done everything but return.
    ended: Receiver<()>,
}

impl VcpuThread {
    /// Runs `vcpu` on a thread of its own until `stopper` stops the machine; what ends the vCPU stops the machine. The
    /// thread keeps `memory` mapped as long as it may run the guest.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn spawn(
        index: u32,
        vcpu: VcpuFd,
        memory: GuestMem,
        missing: MissingMemory,
        buses: Arc<Buses>,
        stopper: Arc<Stopper>,
        inspection: Arc<Inspection>,
    ) -> io::Result<Self> {
        let name = format!("vcpu{index}");
        let (alive, ended) = bounded(0);
        let thread_name = name.clone();
        let body = move || {
            let _alive = alive;
            let _memory = memory;
            let result = catch_unwind(AssertUnwindSafe(|| run(index, vcpu, &missing, &buses, &stopper, &inspection)));
            let reason = result.unwrap_or_else(|panic| {
                Some(StopReason::ThreadPanicked { thread: thread_name, message: panic_message(panic.as_ref()) })
            });
            if let Some(reason) = reason {
                stopper.stop(reason);
            }
        };
        let handle = std::thread::Builder::new().name(name.clone()).stack_size(STACK_SIZE).spawn(body)?;
        Ok(Self { name, handle, ended })
    }

    /// Waits for the thread to end until `deadline`; false when it did not.
    #[must_use]
    pub fn join_until(self, deadline: Instant) -> bool {
        if let Err(crossbeam_channel::RecvTimeoutError::Timeout) = self.ended.recv_deadline(deadline) {
            return false;
        }
        // The body has caught every panic.
        self.handle.join().is_ok()
    }
}

/// `None` when the machine was stopped from elsewhere.
fn run(
    index: u32,
    mut vcpu: VcpuFd,
    missing: &MissingMemory,
    buses: &Buses,
    stopper: &Stopper,
    inspection: &Inspection,
) -> Option<StopReason> {
    match VcpuKick::for_this_thread(&vcpu) {
        Ok(kick) => stopper.add_vcpu(kick),
        Err(error) => {
            return Some(StopReason::KvmFailed { vcpu: index, detail: format!("its page cannot be mapped: {error}") });
        }
    }
    let mut answered = 0;
    let reason = run_guest(index, &mut vcpu, missing, buses, stopper, &mut |vcpu| {
        inspection.answer_if_asked(index, vcpu, &mut answered);
    });
    inspection.record_last(index, &vcpu);
    reason
}

fn run_guest(
    index: u32,
    vcpu: &mut VcpuFd,
    missing: &MissingMemory,
    buses: &Buses,
    stopper: &Stopper,
    before_entry: &mut dyn FnMut(&VcpuFd),
) -> Option<StopReason> {
    while !stopper.is_stopping() {
        before_entry(vcpu);
        let ending = match kvm_exit::action(vcpu.run()) {
            Action::PortRead(port, data) => {
                buses.ports.read(u64::from(port), data);
                continue;
            }
            Action::PortWrite(port, data) => {
                buses.ports.write(u64::from(port), data);
                continue;
            }
            Action::MmioRead(address, data) => {
                buses.memory.read(address, data);
                continue;
            }
            Action::MmioWrite(address, data) => {
                buses.memory.write(address, data);
                continue;
            }
            Action::Resume => {
                // A kick asks for this. What it was for is looked at next.
                vcpu.set_kvm_immediate_exit(0);
                continue;
            }
            Action::Stop(ending) => ending,
        };
        let what = match ending {
            Ending::PowerOff => return Some(StopReason::PowerOff),
            Ending::Reset => return Some(StopReason::Reset),
            Ending::TripleFault => return Some(StopReason::TripleFault { vcpu: index }),
            // SAFETY: KVM fills this member of the union for the exit reason that has just been seen.
            Ending::InternalError => unsafe {
                kvm_exit::internal_error(vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror)
            },
            Ending::MissingMemory(_) if missing.handle(vcpu) => continue,
            Ending::MissingMemory(what) | Ending::Failed(what) => what,
        };
        return Some(StopReason::KvmFailed { vcpu: index, detail: format!("{what}; {}", registers(vcpu)) });
    }
    None
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use devices::bus::BusDevice;
    use kvm_ioctls::Kvm;

    use super::super::cpu_setup::{self, CpuModel};
    use super::super::guest_memory;
    use super::super::kernel_loader;
    use super::super::test_kernel::Code;
    use super::*;

    struct Panics;

    impl BusDevice for Panics {
        fn read(&mut self, _: u64, _: &mut [u8]) {}

        fn write(&mut self, _: u64, _: &[u8]) {
            panic!("expected by the test");
        }
    }

    #[test]
    fn a_panic_in_a_device_is_a_stop_reason_and_the_thread_ends() {
        let Ok(kvm) = Kvm::new() else { return println!("skipped: no usable /dev/kvm") };
        let vm = kvm.create_vm().unwrap();
        let memory = guest_memory::create(128).unwrap();
        guest_memory::register(&vm, &memory).unwrap();
        vm.create_irq_chip().unwrap();
        let kernel = Code::default().out(0x80, 1).halt().kernel();
        let kernel = kernel_loader::load_kernel(&memory, kernel.path()).unwrap();
        cpu_setup::write_boot_tables(&memory).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        cpu_setup::set_up(&vcpu, &CpuModel::new(&kvm, 1).unwrap(), 0, kernel.entry).unwrap();

        let buses = Arc::new(Buses::default());
        buses.ports.insert(0x80..0x81, Arc::new(Mutex::new(Panics))).unwrap();
        let (stopper, stopped) = Stopper::new();
        super::super::stopper::install_kick_handler().unwrap();
        let (memory, missing) = (GuestMem::new(memory), MissingMemory::new(Vec::new()));
        let thread = VcpuThread::spawn(0, vcpu, memory, missing, buses, stopper, Inspection::new(1)).unwrap();
        let reason = stopped.recv_timeout(Duration::from_secs(20)).unwrap();
        let StopReason::ThreadPanicked { thread: name, message } = reason else { panic!("{reason:?}") };
        assert_eq!((name.as_str(), message.as_str()), ("vcpu0", "expected by the test"));
        assert!(thread.join_until(Instant::now() + Duration::from_secs(20)));
    }
}
