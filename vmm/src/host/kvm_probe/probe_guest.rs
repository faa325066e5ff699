//! The probe guest: 64 KiB of memory, one vCPU in long mode, three programs of a few bytes each.

use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use super::{MIN_INSTRUCTIONS_PER_S, Verdict};

const MEMORY_SIZE: usize = 64 << 10;
const GDT: u64 = 0x500;
const CODE: u64 = 0x1000;
const DATA: u64 = 0x2000;
const STACK_TOP: u64 = 0x9000;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
const PD: u64 = 0xb000;
/// Three pages that Intel processors without unrestricted guest need; any hole of the guest's memory will do.
const TSS: usize = 0xfffb_d000;

/// Counts `ecx` down to zero, then halts.
const LOOP: Program = Program { at: CODE, code: b"\xff\xc9\x75\xfc\xf4" }; // 1: dec ecx; jnz 1b; hlt
/// What interpreters were found to lack, and stock kernels use in their slab allocator.
const CMPXCHG16B: Program = Program { at: CODE + 0x100, code: b"\xf0\x48\x0f\xc7\x0f\xf4" }; // lock cmpxchg16b [rdi]; hlt
/// Writes to a port `ecx` times, each write an exit, then halts.
const EXITS: Program = Program { at: CODE + 0x200, code: b"\xe6\x80\xff\xc9\x75\xfa\xf4" }; // 1: out 0x80,al; dec ecx; jnz 1b; hlt

/// Enough that an interpreter needs milliseconds for it, few enough that it needs no more than that.
const SHORT_LOOP: u32 = 20_000;
/// Where the short one is over at once, the cost of entering the guest would be part of the figure.
const LONG_LOOP: u32 = 400_000;
const SHORT_LOOP_IS_OVER_AT_ONCE: Duration = Duration::from_millis(2);
const INSTRUCTIONS_PER_ITERATION: f64 = 2.0;
const EXIT_COUNT: u32 = 16;
/// The best of so many runs counts: a neighbour that took the CPU meanwhile can only make one worse.
const ROUNDS: u32 = 3;
/// A machine that looks like an interpreter is looked at once more after this, when a busy neighbour may have left.
const SECOND_LOOK_AFTER: Duration = Duration::from_millis(50);

struct Program {
    at: u64,
    code: &'static [u8],
}

/// What ended a program before its `hlt`.
enum Stopped {
    /// KVM gave up on an instruction (`KVM_EXIT_INTERNAL_ERROR`); with the suberror.
    Internal(u32),
    /// Any other failure, in words.
    Failed(String),
}

/// Runs the three programs and judges what came out.
pub(super) fn run() -> Verdict {
    let mut guest = match ProbeGuest::new() {
        Ok(guest) => guest,
        Err(detail) => return Verdict::Error { detail },
    };
    let failed = |stopped, program: &str, instructions_per_s| match stopped {
        Stopped::Internal(suberror) => Verdict::EmulationFailure {
            detail: format!("{program} fails (KVM_EXIT_INTERNAL_ERROR, suberror {suberror})"),
            instructions_per_s,
        },
        Stopped::Failed(why) => Verdict::Error { detail: format!("the probe guest's {program} {why}") },
    };
    let instructions_per_s = match guest.loop_speed() {
        Ok(speed) => speed,
        Err(stopped) => return failed(stopped, "loop", 0),
    };
    if let Err(stopped) = guest.run(&CMPXCHG16B, 0) {
        return failed(stopped, "cmpxchg16b", instructions_per_s);
    }
    match guest.exit_cost() {
        Ok(exit_ns) => Verdict::from_speed(instructions_per_s, exit_ns),
        Err(stopped) => failed(stopped, "port writes", instructions_per_s),
    }
}

struct ProbeGuest {
    vcpu: VcpuFd,
    // The order of fields is the order in which they go: the memory last, when nothing maps it any more.
    _vm: VmFd,
    _memory: GuestMemoryMmap,
}

impl ProbeGuest {
    fn new() -> Result<Self, String> {
        let what = |what: &'static str| move |e: kvm_ioctls::Error| format!("{what} failed: {e}");
        let kvm = Kvm::new().map_err(what("opening /dev/kvm"))?;
        let vm = kvm.create_vm().map_err(what("KVM_CREATE_VM"))?;
        // Only Intel needs it, and only there does its failure matter: the run will tell.
        let _ = vm.set_tss_address(TSS);
        let memory = lay_out_memory().map_err(|e| format!("laying out the guest's memory failed: {e}"))?;
        let host_address =
            memory.get_host_address(GuestAddress(0)).map_err(|e| format!("the guest's memory is not mapped: {e}"))?;
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: MEMORY_SIZE as u64,
            userspace_addr: host_address as u64,
        };
        // SAFETY: the region is mapped for MEMORY_SIZE bytes and outlives the VM: see the order of our fields.
        unsafe { vm.set_user_memory_region(region) }.map_err(what("KVM_SET_USER_MEMORY_REGION"))?;
        let vcpu = vm.create_vcpu(0).map_err(what("KVM_CREATE_VCPU"))?;
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(what("KVM_GET_SUPPORTED_CPUID"))?;
        vcpu.set_cpuid2(&cpuid).map_err(what("KVM_SET_CPUID2"))?;
        enter_long_mode(&vcpu).map_err(what("setting up long mode"))?;
        Ok(Self { vcpu, _vm: vm, _memory: memory })
    }

    /// Instructions per second of [`LOOP`].
    fn loop_speed(&mut self) -> Result<u64, Stopped> {
        // The first entry builds shadow or nested page tables: not what is measured.
        self.run(&LOOP, 1)?;
        let mut iterations = SHORT_LOOP;
        let mut best = self.best_of(&LOOP, iterations)?;
        if rate(iterations, best) < MIN_INSTRUCTIONS_PER_S {
            thread::sleep(SECOND_LOOK_AFTER);
            best = best.min(self.best_of(&LOOP, iterations)?);
        }
        if best < SHORT_LOOP_IS_OVER_AT_ONCE {
            iterations = LONG_LOOP;
            best = self.best_of(&LOOP, iterations)?;
        }
        Ok(rate(iterations, best))
    }

    /// Nanoseconds of one exit to user space and back.
    fn exit_cost(&mut self) -> Result<u64, Stopped> {
        let best = self.best_of(&EXITS, EXIT_COUNT)?;
        Ok(u64::try_from((best / EXIT_COUNT).as_nanos()).unwrap_or(u64::MAX))
    }

    fn best_of(&mut self, program: &Program, count: u32) -> Result<Duration, Stopped> {
        let mut best = self.run(program, count)?;
        for _ in 1..ROUNDS {
            best = best.min(self.run(program, count)?);
        }
        Ok(best)
    }

    /// Runs `program` with `ecx` = `count` up to its `hlt`; how long that took.
    fn run(&mut self, program: &Program, count: u32) -> Result<Duration, Stopped> {
        let regs = kvm_regs {
            rip: program.at,
            rcx: u64::from(count),
            rdi: DATA,
            rsp: STACK_TOP,
            rflags: 2, // Bit 1 is always set.
            ..kvm_regs::default()
        };
        self.vcpu.set_regs(&regs).map_err(|e| Stopped::Failed(format!("could not be set up: KVM_SET_REGS: {e}")))?;
        let started = Instant::now();
        loop {
            match self.vcpu.run() {
                Ok(VcpuExit::Hlt) => return Ok(started.elapsed()),
                Ok(VcpuExit::IoOut(..)) => {}
                Ok(VcpuExit::InternalError) => {
                    // SAFETY: `internal` is the member of the union that goes with KVM_EXIT_INTERNAL_ERROR.
                    let suberror = unsafe { self.vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
                    return Err(Stopped::Internal(suberror));
                }
                Ok(other) => return Err(Stopped::Failed(format!("ended with {other:?}"))),
                Err(error) => return Err(Stopped::Failed(format!("did not run: KVM_RUN: {error}"))),
            }
        }
    }
}

/// Instructions per second of [`LOOP`].
fn rate(iterations: u32, took: Duration) -> u64 {
    let rate = f64::from(iterations) * INSTRUCTIONS_PER_ITERATION / took.as_secs_f64().max(1e-9);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive rate far below 2^63")]
    let whole = rate as u64;
    whole
}

/// Programs, a GDT, and page tables that map the first 2 MiB to themselves.
fn lay_out_memory() -> Result<GuestMemoryMmap, String> {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).map_err(|e| e.to_string())?;
    for Program { at, code } in [LOOP, CMPXCHG16B, EXITS] {
        memory.write_slice(code, GuestAddress(at)).map_err(|e| e.to_string())?;
    }
    // Null, 64-bit code, data: AMD APM volume 2 § 4.7, 4.8.
    let words = [(GDT, 0), (GDT + 8, 0x00af_9b00_0000_ffff), (GDT + 16, 0x00cf_9300_0000_ffff)];
    // Present, writable; in the last level also "large page": APM volume 2 § 5.3.
    let tables = [(PML4, PDPT | 3), (PDPT, PD | 3), (PD, 0x83)];
    for (at, word) in words.into_iter().chain(tables) {
        memory.write_obj::<u64>(word, GuestAddress(at)).map_err(|e| e.to_string())?;
    }
    Ok(memory)
}

/// 64-bit mode, paging on, interrupts off, privilege level 0.
fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    let code = kvm_segment {
        limit: 0xffff_ffff,
        selector: 8,
        type_: 11, // Execute, read, accessed.
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..kvm_segment::default()
    };
    // Read, write, accessed.
    let data = kvm_segment { selector: 16, type_: 3, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 23;
    sregs.cr3 = PML4;
    sregs.cr4 = 1 << 5; // PAE
    sregs.cr0 = 0x8000_0031; // PG, NE, ET, PE
    sregs.efer = 0x500; // LMA, LME
    vcpu.set_sregs(&sregs)
}
