//! Where everything is in the guest's physical address space and in its port space.
//!
//! ```text
//! 0           low RAM: boot structures, ACPI tables below 1 MiB, kernel at 16 MiB, initramfs at the top
//! 3 GiB       PCI memory window: one BAR per virtio device
//! 0xfec0_0000 I/O APIC;  0xfee0_0000 local APICs;  0xfffb_c000 KVM's identity map and TSS
//! 4 GiB       the rest of RAM, then the second PCI memory window: DAX windows
//! ```

use std::ops::Range;

/// Size units, bytes.
pub const KIB: u64 = 1 << 10;
/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;
/// 2^30 bytes.
pub const GIB: u64 = 1 << 30;

/// Where RAM makes room for devices.
pub const HOLE: Range<u64> = 3 * GIB..4 * GIB;
/// Where BARs are placed; announced in the host bridge's `_CRS`.
pub const PCI_WINDOW: Range<u64> = 3 * GIB..0xfec0_0000;

/// I/O APIC of the in-kernel irqchip.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APIC of the in-kernel irqchip.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// One page KVM needs on Intel hosts without unrestricted guests.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages KVM needs on the same hosts.
pub const KVM_TSS: usize = 0xfffb_d000;

/// Boot-time GDT.
pub const GDT: u64 = 0x500;
/// `struct boot_params`, 4 KiB (Linux `Documentation/arch/x86/zero-page.rst`).
pub const ZERO_PAGE: u64 = 0x7000;
/// Boot-time page tables: PML4, one PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line, at most [`COMMAND_LINE_MAX`] bytes with its terminator.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// `COMMAND_LINE_SIZE` of x86 (Linux `arch/x86/include/asm/setup.h`).
pub const COMMAND_LINE_MAX: usize = 2048;
/// End of conventional memory: what lies between it and 640 KiB is left to an EBDA that nobody has.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// RSDP and the tables it leads to; inside the area where a kernel without `acpi_rsdp_addr` searches it.
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0x10_0000;
/// Where extended memory and thereby a kernel may begin.
pub const HIGH_MEMORY: u64 = MIB;

/// COM1, 8 ports.
pub const COM1: Range<u16> = 0x3f8..0x400;
/// COM1's interrupt, an I/O APIC pin.
pub const COM1_GSI: u32 = 4;
/// Keyboard controller: only its reset command is there.
pub const I8042: Range<u16> = 0x60..0x65;
/// PCI type-1 configuration access.
pub const PCI_CONFIG: Range<u16> = 0xcf8..0xd00;
/// ACPI sleep control, sleep status and reset register, one port each (see [`super::power_control`]).
pub const POWER_CONTROL: Range<u16> = 0x600..0x603;

/// The RAM ranges of a guest with `bytes` of memory: one, or two around the hole.
#[must_use]
pub fn ram_ranges(bytes: u64) -> Vec<Range<u64>> {
    if bytes <= HOLE.start {
        return std::iter::once(0..bytes).collect();
    }
    vec![0..HOLE.start, HOLE.end..HOLE.end + (bytes - HOLE.start)]
}

/// Where BARs of shared memory are placed in a guest with `bytes` of RAM: room for `count` of `size` bytes each, a power
/// of two. Above everything else, and a multiple of both `size` and 1 GiB, so that RAM and they share no memory block of
/// the guest's.
#[must_use]
pub fn shared_memory_window(bytes: u64, count: u64, size: u64) -> Range<u64> {
    let start = ram_end(bytes).next_multiple_of(size.max(GIB));
    start..start + count * size
}

/// Where RAM and the hole end.
fn ram_end(bytes: u64) -> u64 {
    ram_ranges(bytes).last().map_or(0, |range| range.end).max(HOLE.end)
}

/// Guest-physical address width that `bytes` of RAM need with `more` behind them.
#[must_use]
pub fn address_bits(bytes: u64, more: &Range<u64>) -> u32 {
    let end = ram_end(bytes).max(more.end);
    u64::BITS - (end - 1).leading_zeros()
}

/// Kinds of memory in an e820 map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// The e820 map of a guest with `bytes` of RAM, ascending and without overlaps.
#[must_use]
pub fn e820(bytes: u64) -> Vec<(Range<u64>, MemoryKind)> {
    let mut map = vec![
        (0..LOW_MEMORY_END, MemoryKind::Ram),
        (LOW_MEMORY_END..640 * KIB, MemoryKind::Reserved),
        (ACPI_TABLES, MemoryKind::Reserved),
    ];
    for range in ram_ranges(bytes) {
        map.push((range.start.max(HIGH_MEMORY)..range.end, MemoryKind::Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_up_to_three_gib_is_one_range() {
        for mib in [128, 256, 1024, 3072] {
            let ranges = ram_ranges(mib * MIB);
            assert_eq!((ranges.len(), ranges[0].clone()), (1, 0..mib * MIB));
        }
    }

    #[test]
    fn larger_ram_goes_on_above_the_hole_and_loses_nothing() {
        for mib in [3073, 4096, 8192, 1 << 20] {
            let ranges = ram_ranges(mib * MIB);
            assert_eq!(ranges[0], 0..HOLE.start);
            assert_eq!(ranges[1].start, HOLE.end);
            assert_eq!(ranges.iter().map(|r| r.end - r.start).sum::<u64>(), mib * MIB);
        }
    }

    #[test]
    fn the_e820_map_is_ascending_and_describes_no_device_as_ram() {
        for mib in [128, 3072, 8192] {
            let map = e820(mib * MIB);
            for pair in map.windows(2) {
                assert!(pair[0].0.end <= pair[1].0.start, "{pair:x?}");
            }
            for (range, kind) in map {
                assert!(range.start < range.end);
                assert!(kind == MemoryKind::Reserved || range.end <= HOLE.start || range.start >= HOLE.end);
            }
        }
    }

    #[test]
    fn boot_structures_do_not_overlap() {
        let mut used = [
            (GDT, 32),
            (ZERO_PAGE, 4096),
            (PAGE_TABLES, 6 * 4096),
            (COMMAND_LINE, COMMAND_LINE_MAX as u64),
            (ACPI_TABLES.start, ACPI_TABLES.end - ACPI_TABLES.start),
        ];
        used.sort_unstable();
        for pair in used.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }

    #[test]
    fn the_address_width_grows_with_ram_above_the_hole() {
        assert_eq!(address_bits(512 * MIB, &(0..0)), 32);
        assert_eq!(address_bits(4 * GIB, &(0..0)), 33);
        assert_eq!(address_bits(8 * GIB, &(0..0)), 34);
        assert_eq!(address_bits(8 * GIB, &shared_memory_window(8 * GIB, 2, 4 * GIB)), 35);
    }

    #[test]
    fn shared_memory_lies_above_ram_and_is_aligned_to_its_size() {
        for (ram, size) in [(128 * MIB, 2 * MIB), (GIB, 8 * GIB), (5 * GIB + MIB, GIB), (100 * GIB, 4 * GIB)] {
            let window = shared_memory_window(ram, 3, size);
            assert!(window.start >= ram_ranges(ram).last().unwrap().end && window.start >= HOLE.end);
            assert!(window.start.is_multiple_of(size) && window.start.is_multiple_of(GIB));
            assert_eq!(window.end - window.start, 3 * size);
        }
    }
}
