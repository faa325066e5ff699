//! The ACPI tables, as few as SMP, PCI, the serial port, power-off and reset need.
//!
//! Hardware-reduced (ACPI 6.5 § 4.1): no PM timer, no SCI, no PIC and PIT assumed, so the kernel probes for none of
//! them. Sleep control, sleep status and reset are three I/O ports.

use std::ops::Range;

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::address_map::{ACPI_TABLES, COM1, COM1_GSI, IO_APIC, LOCAL_APIC, PCI_CONFIG, PCI_WINDOW, POWER_CONTROL};
use super::kernel_loader::LoadError;
use super::power_control::{RESET_OFFSET, RESET_VALUE, S5_SLEEP_TYPE, SLEEP_CONTROL_OFFSET, SLEEP_STATUS_OFFSET};

const OEM_ID: [u8; 6] = *b"VMM   ";
const OEM_TABLE_ID: [u8; 8] = *b"VMMTABLE";
const OEM_REVISION: u32 = 1;

/// FADT boot architecture flags (ACPI 6.5 § 5.2.9.3): the kernel need not look for VGA or a CMOS clock. The 8042 flag
/// stays clear, so no keyboard driver probes; the reset command works all the same.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_RTC: u16 = 1 << 5;
/// Table and structure lengths and offsets of the specification.
const SDT_HEADER: u32 = 36;

/// Writes all tables for `cpus` vCPUs and a host bridge with `shared_memory` besides its other window, and returns where the RSDP is.
///
/// # Errors
/// [`LoadError::Write`] when they do not fit.
pub fn write_tables(
    memory: &GuestMemoryMmap,
    cpus: u32,
    shared_memory: &Range<u64>,
) -> Result<GuestAddress, LoadError> {
    let rsdp_address = ACPI_TABLES.start;
    let mut tables = TableWriter { memory, next: rsdp_address + Rsdp::len() as u64 };
    let dsdt = tables.append(dsdt(shared_memory).as_slice())?;
    let fadt = tables.append(&bytes_of(&fadt(dsdt)))?;
    let madt = tables.append(&bytes_of(&madt(cpus)))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.append(&bytes_of(&xsdt))?;
    let rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    memory.write_slice(&rsdp, GuestAddress(rsdp_address)).map_err(|_| LoadError::Write("the ACPI tables"))?;
    Ok(GuestAddress(rsdp_address))
}

struct TableWriter<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
}

impl TableWriter<'_> {
    fn append(&mut self, table: &[u8]) -> Result<u64, LoadError> {
        let address = self.next.next_multiple_of(16);
        self.next = address + table.len() as u64;
        if self.next > ACPI_TABLES.end {
            return Err(LoadError::Write("the ACPI tables"));
        }
        self.memory.write_slice(table, GuestAddress(address)).map_err(|_| LoadError::Write("the ACPI tables"))?;
        Ok(address)
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(offset: u16) -> GAS {
    let address = u64::from(POWER_CONTROL.start + offset);
    GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, address)
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_RTC).into();
    fadt.reset_reg = port(RESET_OFFSET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_OFFSET);
    fadt.sleep_status_reg = port(SLEEP_STATUS_OFFSET);
    fadt.finalize()
}

fn madt(cpus: u32) -> MADT {
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC));
    // The builder has checked that every APIC id fits in the 8 bits of this structure.
    for id in (0..cpus).map(|id| id as u8) {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

fn dsdt(shared_memory: &Range<u64>) -> Sdt {
    let ports = IO::new(PCI_CONFIG.start, PCI_CONFIG.start, 1, 8);
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let registers = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        PCI_WINDOW.start as u32,
        (PCI_WINDOW.end - 1) as u32,
        None,
    );
    let mut bridge: Vec<&dyn Aml> = vec![&bus, &ports, &registers];
    let prefetchable = (!shared_memory.is_empty()).then(|| {
        let (first, last) = (shared_memory.start, shared_memory.end - 1);
        AddressSpace::new_memory(AddressSpaceCacheable::PreFetchable, true, first, last, None)
    });
    if let Some(prefetchable) = &prefetchable {
        bridge.push(prefetchable);
    }
    let mut dsdt = Sdt::new(*b"DSDT", SDT_HEADER, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    Scope::new(
        "_SB_".into(),
        vec![
            // A conventional host bridge: no ECAM, no _OSC to negotiate, and no _PRT as no device uses INTx.
            &Device::new(
                "PCI0".into(),
                vec![
                    &Name::new("_HID".into(), &EISAName::new("PNP0A03")),
                    &Name::new("_UID".into(), &aml::ZERO),
                    &Name::new("_CRS".into(), &ResourceTemplate::new(bridge)),
                ],
            ),
            &Device::new(
                "COM1".into(),
                vec![
                    &Name::new("_HID".into(), &EISAName::new("PNP0501")),
                    &Name::new("_UID".into(), &aml::ZERO),
                    &Name::new(
                        "_CRS".into(),
                        &ResourceTemplate::new(vec![
                            &Interrupt::new(true, true, false, false, COM1_GSI),
                            &IO::new(COM1.start, COM1.start, 1, 8),
                        ]),
                    ),
                ],
            ),
        ],
    )
    .to_aml_bytes(&mut dsdt);
    Name::new("_S5_".into(), &Package::new(vec![&S5_SLEEP_TYPE])).to_aml_bytes(&mut dsdt);
    dsdt
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap()
    }

    fn read(memory: &GuestMemoryMmap, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn number(bytes: &[u8]) -> u64 {
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// The table at `address`, its signature and checksum checked.
    fn table(memory: &GuestMemoryMmap, address: u64, signature: &[u8; 4]) -> Vec<u8> {
        let header = read(memory, address, 36);
        assert_eq!(&header[..4], signature);
        let whole = read(memory, address, number(&header[4..8]) as usize);
        assert_eq!(sum(&whole), 0, "checksum of {}", String::from_utf8_lossy(signature));
        assert!(ACPI_TABLES.contains(&(address + whole.len() as u64)));
        whole
    }

    /// FADT, MADT and DSDT as a kernel finds them from the RSDP on.
    fn walk(cpus: u32) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        walk_with(cpus, &(0..0))
    }

    fn walk_with(cpus: u32, shared_memory: &Range<u64>) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let memory = memory();
        let rsdp_address = write_tables(&memory, cpus, shared_memory).unwrap();
        let rsdp = read(&memory, rsdp_address.0, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        let xsdt = table(&memory, number(&rsdp[24..32]), b"XSDT");
        let fadt = table(&memory, number(&xsdt[36..44]), b"FACP");
        let madt = table(&memory, number(&xsdt[44..52]), b"APIC");
        assert_eq!(xsdt.len(), 52);
        let dsdt = table(&memory, number(&fadt[140..148]), b"DSDT");
        (fadt, madt, dsdt)
    }

    #[test]
    fn every_table_is_found_from_the_rsdp_with_a_good_checksum() {
        for cpus in [1, 4, 254] {
            walk(cpus);
        }
    }

    #[test]
    fn the_fadt_says_how_to_power_off_and_reset() {
        let (fadt, ..) = walk(1);
        let flags = number(&fadt[112..116]);
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10, "hardware-reduced and reset register");
        let gas = |at: usize| (fadt[at], fadt[at + 1], number(&fadt[at + 4..at + 12]));
        assert_eq!(gas(116), (1, 8, 0x602), "reset register");
        assert_eq!(fadt[128], RESET_VALUE);
        assert_eq!(gas(244), (1, 8, 0x600), "sleep control");
        assert_eq!(gas(256), (1, 8, 0x601), "sleep status");
    }

    #[test]
    fn the_madt_lists_each_vcpu_and_the_io_apic() {
        let (_, madt, _) = walk(4);
        assert_eq!(number(&madt[36..40]), u64::from(LOCAL_APIC));
        for id in 0..4u8 {
            let at = 44 + usize::from(id) * 8;
            assert_eq!(madt[at..at + 8], [0, 8, id, id, 1, 0, 0, 0]);
        }
        assert_eq!(madt[76..78], [1, 12]);
        assert_eq!(number(&madt[80..84]), u64::from(IO_APIC));
        assert_eq!(madt.len(), 88);
    }

    #[test]
    fn the_host_bridge_announces_shared_memory_if_there_is_any() {
        let qwords = [0_u64, 0x1_4000_0000, 0x1_7fff_ffff, 0, 0x4000_0000].map(u64::to_le_bytes).concat();
        let announced = |dsdt: &[u8]| dsdt.windows(qwords.len()).any(|window| window == qwords);
        let (.., dsdt) = walk_with(1, &(0x1_4000_0000..0x1_8000_0000));
        assert!(announced(&dsdt), "granularity, first, last, translation, length");
        let (.., dsdt) = walk(1);
        assert!(!announced(&dsdt));
    }

    #[test]
    fn the_dsdt_holds_the_host_bridge_the_serial_port_and_s5() {
        let (.., dsdt) = walk(1);
        for name in [b"_SB_", b"PCI0", b"COM1", b"_S5_"] {
            assert!(dsdt.windows(4).any(|w| w == name), "{}", String::from_utf8_lossy(name));
        }
        // _S5_ is the last object: Name, its path, Package of one byte constant.
        assert!(dsdt.ends_with(&[0x08, b'_', b'S', b'5', b'_', 0x12, 4, 1, 0x0a, S5_SLEEP_TYPE]));
    }
}
