//! What a vCPU is before its first instruction: CPUID, MSRs, FPU, segments and paging for 64-bit boot, local APIC.

use std::io;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_fpu, kvm_lapic_state,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::address_map::{GDT, PAGE_TABLES, ZERO_PAGE};
use super::missing_memory;

/// What the VM's CPUs are made from, read once from KVM.
pub struct CpuModel {
    supported: CpuId,
    tsc_deadline_timer: bool,
    cpus: u32,
}

/// Leaf 1.
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
/// Leaf 6 EAX: the APIC timer never stops.
const LEAF6_EAX_ARAT: u32 = 1 << 2;
/// Leaf 0x8000_0001 ECX: the AMD leaves on extended APIC ids and caches, and performance counters.
const AMD_ECX_PERF_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

impl CpuModel {
    /// CPUs for a VM of `cpus` vCPUs.
    ///
    /// # Errors
    /// KVM's own.
    pub fn new(kvm: &Kvm, cpus: u32) -> io::Result<Self> {
        Ok(Self {
            supported: kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?,
            tsc_deadline_timer: kvm.check_extension(Cap::TscDeadlineTimer),
            cpus,
        })
    }

    /// The guest's physical address width, bits.
    #[must_use]
    pub fn address_bits(&self) -> u32 {
        let leaf = self.supported.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
        leaf.map_or(36, |entry| entry.eax & 0xff)
    }

    /// CPUID of the vCPU with index and APIC id `id`.
    ///
    /// # Errors
    /// More leaves than KVM takes.
    pub fn cpuid(&self, id: u32) -> io::Result<CpuId> {
        let mut entries = self.supported.as_slice().to_vec();
        add_core_level(&mut entries);
        filter(&mut entries, id, self.cpus, self.tsc_deadline_timer);
        CpuId::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))
    }
}

/// The topology leaves get their second level if they have none: newer KVMs tell of the first only, and nothing of what it stands
/// for (`__do_cpuid_func` in Linux arch/x86/kvm/cpuid.c), which makes a package of each vCPU.
fn add_core_level(entries: &mut Vec<kvm_cpuid_entry2>) {
    for function in [0xb, 0x1f] {
        let has = |index| entries.iter().any(|entry| entry.function == function && entry.index == index);
        if has(0) && !has(1) {
            let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
            entries.push(kvm_cpuid_entry2 { function, index: 1, flags, ..Default::default() });
            entries.iter_mut().filter(|entry| entry.function == function).for_each(|entry| entry.flags |= flags);
        }
    }
}

/// Turns what KVM supports into what vCPU `id` of `cpus` is: one package, one core per vCPU, no hyperthreads.
fn filter(entries: &mut [kvm_cpuid_entry2], id: u32, cpus: u32, tsc_deadline_timer: bool) {
    // APIC ids are indices, so that many bits number the cores of the package.
    let core_bits = cpus.next_power_of_two().trailing_zeros();
    let amd = entries.iter().any(|entry| entry.function == 0 && entry.ebx.to_le_bytes() == *b"Auth");
    for entry in entries {
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0x0000_ffff | id << 24 | cpus.min(255) << 16;
                entry.ecx |= LEAF1_ECX_HYPERVISOR;
                if tsc_deadline_timer {
                    entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
                }
                if cpus > 1 {
                    entry.edx |= LEAF1_EDX_HTT;
                } else {
                    entry.edx &= !LEAF1_EDX_HTT;
                }
            }
            // Intel: cores of the package; the last-level cache is shared by all, the others by none.
            4 if entry.eax & 0x1f != 0 => {
                let shared = if entry.eax >> 5 & 7 >= 3 { cpus.next_power_of_two() - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | shared << 14 | ((1 << core_bits) - 1) << 26;
            }
            6 => entry.eax |= LEAF6_EAX_ARAT,
            // No performance counters: a kernel that finds some programs one for its NMI watchdog.
            0xa | 0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            // Topology: level 0 the thread, level 1 the core.
            0xb | 0x1f => {
                (entry.eax, entry.ebx) = match entry.index {
                    0 => (0, 1),
                    1 => (core_bits, cpus),
                    _ => (0, 0),
                };
                let level_kind = if entry.index < 2 { entry.index + 1 } else { 0 };
                entry.ecx = entry.index | level_kind << 8;
                entry.edx = id;
            }
            0x8000_0001 => entry.ecx &= !AMD_ECX_PERF_COUNTERS,
            // AMD: uncorrected errors may be recovered from (SUCCOR, and its companion on overflow): without it Linux
            // panics at every one, also of a program.
            0x8000_0007 if amd => entry.ebx |= 0b11,
            0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | core_bits << 12 | (cpus - 1) & 0xff,
            // AMD: the last-level cache is shared by all.
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let shared = if entry.eax >> 5 & 7 >= 3 { cpus - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | shared << 14;
            }
            // AMD: extended APIC id, core id with one thread per core, one node.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }
}

/// Gives the vCPU its state at reset, and the boot vCPU (id 0) the state the 64-bit boot protocol asks for.
///
/// # Errors
/// KVM's own.
pub fn set_up(vcpu: &VcpuFd, model: &CpuModel, id: u32, entry: u64) -> io::Result<()> {
    vcpu.set_cpuid2(&model.cpuid(id)?)?;
    set_msrs(vcpu)?;
    missing_memory::set_up(vcpu)?;
    set_local_interrupts(vcpu)?;
    // The others wait for the boot vCPU's INIT and SIPI, which set their registers.
    if id == 0 {
        vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })?;
        let mut sregs = vcpu.get_sregs()?;
        set_long_mode(&mut sregs);
        vcpu.set_sregs(&sregs)?;
        // RSI holds the zero page; interrupts are off; bit 1 of RFLAGS is always set.
        vcpu.set_regs(&kvm_regs { rip: entry, rsi: ZERO_PAGE, rflags: 2, ..Default::default() })?;
    }
    Ok(())
}

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, everything write-back: KVM's own default differs, and a kernel warns of MTRRs that are off.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

fn set_msrs(vcpu: &VcpuFd) -> io::Result<()> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRINGS), entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK)];
    let msrs = Msrs::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))?;
    let set = vcpu.set_msrs(&msrs)?;
    if set != entries.len() {
        return Err(io::Error::other(format!("KVM does not know MSR {:#x}", entries[set].index)));
    }
    Ok(())
}

/// Local vector table entries (Intel SDM vol. 3 § 11.5.1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_EXTINT: u8 = 7;
const DELIVERY_NMI: u8 = 4;

/// LINT0 takes external interrupts, LINT1 NMIs, as firmware leaves them.
fn set_local_interrupts(vcpu: &VcpuFd) -> io::Result<()> {
    let mut lapic = vcpu.get_lapic()?;
    set_delivery_mode(&mut lapic, LVT_LINT0, DELIVERY_EXTINT);
    set_delivery_mode(&mut lapic, LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic)?;
    Ok(())
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u8) {
    // Bits 8 to 10 of the register: the low bits of its second byte.
    let byte = &mut lapic.regs[register + 1];
    *byte = ((*byte as u8 & !7) | mode) as std::ffi::c_char;
}

const CR0_PROTECTED: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;

/// `__BOOT_CS`, `__BOOT_DS` of the boot protocol, as indices of the GDT.
const CODE_INDEX: u16 = 2;
const DATA_INDEX: u16 = 3;

fn set_long_mode(sregs: &mut kvm_sregs) {
    let flat = |index: u16, kind: u8, long: u8| kvm_segment {
        limit: 0xffff_ffff,
        selector: index * 8,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        l: long,
        db: 1 - long,
        ..Default::default()
    };
    // Execute/read accessed, read/write accessed (Intel SDM vol. 3 § 3.4.5.1).
    sregs.cs = flat(CODE_INDEX, 0xb, 1);
    let data = flat(DATA_INDEX, 3, 0);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt.base = GDT;
    sregs.gdt.limit = (size_of_val(&GDT_ENTRIES) - 1) as u16;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PROTECTED | CR0_EXTENSION_TYPE | CR0_PAGING;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LONG_MODE;
}

/// Null, unused, 64-bit code, data: descriptors of the flat segments above (Intel SDM vol. 3 § 3.4.5).
const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Present and writable; the page size bit makes an entry of the third level map 2 MiB.
const PAGE_PRESENT_WRITABLE: u64 = 3;
const PAGE_SIZE_2M: u64 = 1 << 7;

/// Writes the GDT and page tables that map the first 4 GiB to themselves. The kernel builds its own soon; all that it
/// touches before is itself, the zero page and the command line.
///
/// # Errors
/// Guest memory ends below them.
pub fn write_boot_tables(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_obj(GDT_ENTRIES, GuestAddress(GDT))?;
    let table = |index: u64| PAGE_TABLES + index * 4096;
    memory.write_obj(table(1) | PAGE_PRESENT_WRITABLE, GuestAddress(table(0)))?;
    for gib in 0..4 {
        memory.write_obj(table(2 + gib) | PAGE_PRESENT_WRITABLE, GuestAddress(table(1) + gib * 8))?;
        for entry in 0..512 {
            let page = gib << 30 | entry << 21 | PAGE_SIZE_2M | PAGE_PRESENT_WRITABLE;
            memory.write_obj(page, GuestAddress(table(2 + gib) + entry * 8))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, ..Default::default() }
    }

    fn filtered(mut entry: kvm_cpuid_entry2, id: u32, cpus: u32) -> kvm_cpuid_entry2 {
        filter(std::slice::from_mut(&mut entry), id, cpus, true);
        entry
    }

    #[test]
    fn only_amd_cpus_say_that_uncorrected_errors_can_be_recovered_from() {
        for (vendor, said) in [(*b"Auth", 0b11), (*b"Genu", 0)] {
            let first = kvm_cpuid_entry2 { ebx: u32::from_le_bytes(vendor), ..entry(0, 0) };
            let mut entries = [first, entry(0x8000_0007, 0)];
            filter(&mut entries, 0, 1, true);
            assert_eq!(entries[1].ebx, said);
        }
    }

    #[test]
    fn leaf_1_names_the_apic_id_the_hypervisor_and_the_deadline_timer() {
        let leaf = filtered(entry(1, 0), 3, 4);
        assert_eq!(leaf.ebx >> 24, 3);
        assert_eq!(leaf.ebx >> 16 & 0xff, 4);
        assert_eq!(leaf.ecx, LEAF1_ECX_HYPERVISOR | LEAF1_ECX_TSC_DEADLINE);
        assert_ne!(leaf.edx & LEAF1_EDX_HTT, 0);
        assert_eq!(filtered(entry(1, 0), 0, 1).edx & LEAF1_EDX_HTT, 0);
    }

    #[test]
    fn the_deadline_timer_is_offered_only_where_kvm_has_it() {
        let mut leaf = entry(1, 0);
        filter(std::slice::from_mut(&mut leaf), 0, 1, false);
        assert_eq!(leaf.ecx & LEAF1_ECX_TSC_DEADLINE, 0);
    }

    #[test]
    fn the_topology_leaf_has_one_thread_per_core_and_all_cores_in_one_package() {
        for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (254, 8)] {
            let id = cpus - 1;
            let thread = filtered(entry(0xb, 0), id, cpus);
            let core = filtered(entry(0xb, 1), id, cpus);
            assert_eq!((thread.eax, thread.ebx, thread.ecx, thread.edx), (0, 1, 1 << 8, id));
            assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (bits, cpus, 1 | 2 << 8, id));
            assert_eq!(filtered(entry(0xb, 2), id, cpus).ebx, 0);
            assert!(id >> bits == 0, "APIC ids fit in the package");
        }
    }

    #[test]
    fn a_topology_leaf_without_cores_gets_them_and_one_that_is_not_there_does_not_appear() {
        let mut entries = vec![entry(0, 0), entry(0xb, 0)];
        add_core_level(&mut entries);
        let levels = entries.iter().filter(|entry| entry.flags == KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
        assert_eq!(levels.map(|entry| (entry.function, entry.index)).collect::<Vec<_>>(), [(0xb, 0), (0xb, 1)]);
        assert_eq!(entries.len(), 3);
        add_core_level(&mut entries);
        assert_eq!(entries.len(), 3, "it has them now");
    }

    #[test]
    fn performance_counters_are_hidden() {
        let mut leaf = entry(0xa, 0);
        leaf.eax = 0x0730_0402;
        assert_eq!(filtered(leaf, 0, 1).eax, 0);
        let mut leaf = entry(0x8000_0001, 0);
        leaf.ecx = u32::MAX;
        assert_eq!(filtered(leaf, 0, 1).ecx & 1 << 23, 0);
    }

    #[test]
    fn only_the_last_level_cache_is_shared() {
        for leaf in [4, 0x8000_001d] {
            let cache = |level: u32| {
                let mut cache = entry(leaf, level);
                cache.eax = 1 | level << 5;
                (filtered(cache, 0, 4).eax >> 14 & 0xfff) + 1
            };
            assert_eq!((cache(1), cache(2), cache(3)), (1, 1, 4));
        }
    }

    #[test]
    fn the_boot_page_tables_map_the_first_4_gib_to_themselves() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_boot_tables(&memory).unwrap();
        let walk = |address: u64| {
            let entry = |table: u64, index: u64| -> u64 {
                memory.read_obj(GuestAddress((table & !0xfff) + (index & 511) * 8)).unwrap()
            };
            let pdpt = entry(PAGE_TABLES, address >> 39);
            let directory = entry(pdpt, address >> 30);
            let page = entry(directory, address >> 21);
            assert_ne!(page & PAGE_SIZE_2M, 0);
            (page & !0x1f_ffff) | address & 0x1f_ffff
        };
        for address in [0, 0x7000, 0x100_0000, 0x3fff_ffff, 0x4000_0000, 0xfee0_0000, 0xffff_ffff] {
            assert_eq!(walk(address), address);
        }
    }

    #[test]
    fn local_interrupt_modes_change_nothing_else_of_the_register() {
        let mut lapic = kvm_lapic_state::default();
        lapic.regs[LVT_LINT0 + 1] = -1;
        set_delivery_mode(&mut lapic, LVT_LINT0, DELIVERY_NMI);
        assert_eq!(lapic.regs[LVT_LINT0 + 1] as u8, 0xfc);
        assert_eq!(lapic.regs.iter().filter(|byte| **byte != 0).count(), 1);
    }
}
