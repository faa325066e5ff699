//! 256 bytes of configuration space with a type 0 header (PCI Local Bus 3.0 § 6.1): the values, and which bits of them
//! the guest may change.

use super::PciError;

/// Bytes of conventional configuration space; type-1 access reaches no further.
pub const CONFIG_SPACE_SIZE: usize = 256;
/// Command register: the function answers memory accesses (§ 6.2.2).
pub const COMMAND_MEMORY_SPACE: u16 = 1 << 1;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES_POINTER: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;

/// Bus master (bit 2) and interrupt disable (bit 10) can be set too; nothing here depends on them.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY_SPACE | 1 << 2 | 1 << 10;
/// Status register: there is a capability list (§ 6.2.3).
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// A 64-bit memory BAR (§ 6.2.5.1).
const BAR_MEMORY_64: u32 = 0b100;
/// Reads of it have no side effects, so that a bridge may read ahead.
const BAR_PREFETCHABLE: u32 = 0b1000;

/// A function's memory BARs. Each is 64 bits wide and takes two registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BarIndex {
    /// BAR 0: registers.
    Registers = 0,
    /// BAR 2: memory that the device shares with the guest.
    SharedMemory = 2,
}

impl BarIndex {
    fn register(self) -> usize {
        BAR0 + 4 * self as usize
    }
}

/// What identifies a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Base class, sub-class and programming interface: 24 bits (PCI 3.0 appendix D).
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// The configuration space of one function.
pub struct ConfigSpace {
    bytes: [u8; CONFIG_SPACE_SIZE],
    /// Bits that a guest's write changes.
    writable: [u8; CONFIG_SPACE_SIZE],
    /// Where the pointer to the next capability goes, and where that capability may start.
    link: usize,
    next_capability: usize,
}

impl ConfigSpace {
    /// A type 0 header without BARs and capabilities.
    pub fn new(header: &Header) -> Self {
        let mut config = ConfigSpace {
            bytes: [0; CONFIG_SPACE_SIZE],
            writable: [0; CONFIG_SPACE_SIZE],
            link: CAPABILITIES_POINTER,
            next_capability: FIRST_CAPABILITY,
        };
        config.put(0x00, &header.vendor.to_le_bytes());
        config.put(0x02, &header.device.to_le_bytes());
        config.put(0x08, &((header.class << 8) | u32::from(header.revision)).to_le_bytes());
        config.put(0x2c, &header.subsystem_vendor.to_le_bytes());
        config.put(0x2e, &header.subsystem.to_le_bytes());
        config.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        // Cache line size and interrupt line are scratch registers for software.
        config.allow(0x0c, &[0xff]);
        config.allow(0x3c, &[0xff]);
        config
    }

    /// Adds the BAR for registers, of `size` bytes, a power of two of at least 16.
    pub fn add_register_bar(&mut self, size: u64) {
        self.add_bar(BarIndex::Registers, BAR_MEMORY_64, size);
    }

    /// Adds the BAR for shared memory, likewise. It is prefetchable, so that it may lie above 4 GiB behind any bridge.
    pub fn add_shared_memory_bar(&mut self, size: u64) {
        self.add_bar(BarIndex::SharedMemory, BAR_MEMORY_64 | BAR_PREFETCHABLE, size);
    }

    /// The lower address bits are not writable, which is what answers a guest that sizes the BAR (§ 6.2.5.1).
    fn add_bar(&mut self, bar: BarIndex, kind: u32, size: u64) {
        let mask = !(size.next_power_of_two().max(16) - 1);
        self.put(bar.register(), &kind.to_le_bytes());
        self.allow(bar.register(), &mask.to_le_bytes());
    }

    /// Where a BAR points to. Half-way through a change of both halves, or while it is sized, to nowhere useful.
    pub fn bar_base(&self, bar: BarIndex) -> u64 {
        u64::from_le_bytes(self.get(bar.register())) & !0xf
    }

    /// Puts a BAR at `base`, as firmware would.
    pub fn set_bar_base(&mut self, bar: BarIndex, base: u64) {
        self.write(bar.register(), &base.to_le_bytes());
    }

    /// Appends a capability: `body` comes after the two header bytes, `writable` says which of its bits a guest may
    /// change (missing bytes: none). Returns its offset.
    ///
    /// # Errors
    /// [`PciError::ConfigSpaceFull`].
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<usize, PciError> {
        let (offset, len) = (self.next_capability, body.len() + 2);
        let full = PciError::ConfigSpaceFull { id, len };
        let Ok(pointer) = u8::try_from(offset) else { return Err(full) };
        if offset + len > CONFIG_SPACE_SIZE {
            return Err(full);
        }
        self.put(offset, &[id, 0]);
        self.put(offset + 2, body);
        self.allow(offset + 2, writable);
        self.put(self.link, &[pointer]);
        let status = u16::from_le_bytes(self.get(STATUS)) | STATUS_CAPABILITIES;
        self.put(STATUS, &status.to_le_bytes());
        self.link = offset + 1;
        self.next_capability = (offset + len).next_multiple_of(4);
        Ok(offset)
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        u16::from_le_bytes(self.get(COMMAND))
    }

    /// `N` bytes from `offset`; zeros past the end.
    pub fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut value = [0; N];
        self.read(offset, &mut value);
        value
    }

    /// A guest's read; zeros past the end.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        for (out, byte) in data.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *out = *byte;
        }
    }

    /// A guest's write: changes what is writable, drops the rest.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        let cells = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, mask), new) in cells.zip(data) {
            *byte = (*byte & !mask) | (new & mask);
        }
    }

    /// Sets bytes whatever the guest may write.
    fn put(&mut self, offset: usize, data: &[u8]) {
        for (byte, new) in self.bytes.iter_mut().skip(offset).zip(data) {
            *byte = *new;
        }
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        for (cell, bits) in self.writable.iter_mut().skip(offset).zip(mask) {
            *cell |= bits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header {
        vendor: 0x1af4,
        device: 0x105a,
        revision: 1,
        class: 0x01_80_00,
        subsystem_vendor: 0x1af4,
        subsystem: 0x40,
    };

    #[test]
    fn the_header_identifies_the_function_and_cannot_be_changed() {
        let mut config = ConfigSpace::new(&HEADER);
        config.write(0, &[0; 4]);
        config.write(8, &[0; 4]);
        assert_eq!(config.get(0), [0xf4, 0x1a, 0x5a, 0x10]);
        assert_eq!(config.get(8), [1, 0, 0x80, 1]);
        assert_eq!(config.get(0x2c), [0xf4, 0x1a, 0x40, 0]);
        assert_eq!(config.get::<1>(0x0e), [0], "type 0, one function");
    }

    #[test]
    fn all_ones_in_a_bar_read_back_as_its_size() {
        let mut config = ConfigSpace::new(&HEADER);
        config.add_register_bar(0x8000);
        config.write(0x10, &[0xff; 4]);
        config.write(0x14, &[0xff; 4]);
        assert_eq!(u32::from_le_bytes(config.get(0x10)), 0xffff_8004);
        assert_eq!(u32::from_le_bytes(config.get(0x14)), 0xffff_ffff);
        assert_eq!(u32::from_le_bytes(config.get(0x18)), 0, "no further BAR");
        config.set_bar_base(BarIndex::Registers, 0x12_3456_8000);
        assert_eq!(config.bar_base(BarIndex::Registers), 0x12_3456_8000);
    }

    #[test]
    fn the_bar_for_shared_memory_is_prefetchable_and_may_be_larger_than_4_gib() {
        let mut config = ConfigSpace::new(&HEADER);
        config.add_register_bar(0x8000);
        config.add_shared_memory_bar(8 << 30);
        config.write(0x18, &[0xff; 8]);
        assert_eq!(u32::from_le_bytes(config.get(0x18)), 0b1100);
        assert_eq!(u32::from_le_bytes(config.get(0x1c)), 0xffff_fffe);
        config.set_bar_base(BarIndex::SharedMemory, 16 << 30);
        assert_eq!((config.bar_base(BarIndex::SharedMemory), config.bar_base(BarIndex::Registers)), (16 << 30, 0));
    }

    #[test]
    fn capabilities_are_linked_in_order() {
        let mut config = ConfigSpace::new(&HEADER);
        assert_eq!(config.get::<2>(0x06), [0, 0]);
        let first = config.add_capability(0x11, &[1, 2, 3], &[0xff]).unwrap();
        let second = config.add_capability(0x09, &[4; 14], &[]).unwrap();
        assert_eq!(config.get::<1>(0x34), [first as u8]);
        assert_eq!(config.get(first), [0x11, second as u8, 1, 2, 3]);
        assert_eq!(config.get(second), [0x09, 0, 4]);
        assert_eq!((second % 4, config.get::<2>(0x06)), (0, [0x10, 0]));
        config.write(first, &[0xee; 5]);
        assert_eq!(config.get(first), [0x11, second as u8, 0xee, 2, 3]);
    }

    #[test]
    fn a_capability_that_does_not_fit_is_refused_and_changes_nothing() {
        let mut config = ConfigSpace::new(&HEADER);
        config.add_capability(9, &[0; 150], &[]).unwrap();
        let error = config.add_capability(9, &[0xff; 150], &[]).unwrap_err();
        assert!(matches!(error, PciError::ConfigSpaceFull { id: 9, len: 152 }), "{error}");
        assert_eq!(config.get::<2>(0x40), [9, 0]);
    }

    #[test]
    fn accesses_past_the_end_read_zero_and_are_dropped() {
        let mut config = ConfigSpace::new(&HEADER);
        config.write(254, &[0xff; 8]);
        config.write(usize::MAX, &[0xff; 8]);
        let mut data = [0xaa; 4];
        config.read(255, &mut data);
        assert_eq!(data, [0; 4]);
        config.read(usize::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn only_the_supported_command_bits_stick() {
        let mut config = ConfigSpace::new(&HEADER);
        config.write(0x04, &[0xff, 0xff]);
        assert_eq!(config.command(), 0x0406);
    }
}
