//! Where a memory BAR answers, as opposed to what its register holds.

use super::{BarIndex, BarMove, COMMAND_MEMORY_SPACE, ConfigSpace};

/// A BAR of a function: follows the guest's writes without chasing every step of them.
///
/// A guest sizes a BAR by writing all ones to it, and moves a 64-bit BAR by two writes; well-behaved ones clear the
/// command register's memory bit meanwhile. Registering ioeventfds is slow, so the BAR counts as moved only when the
/// memory bit is set and the register holds a place other than the last one: clearing and setting the bit around a
/// sizing moves nothing.
#[derive(Debug)]
pub struct MemoryBar {
    bar: BarIndex,
    size: u64,
    decoded: u64,
    /// The place asked for last, so that a refused one is not asked for again with every write.
    asked: u64,
}

impl MemoryBar {
    /// A BAR of `size` bytes, a power of two, at no place yet.
    pub fn new(bar: BarIndex, size: u64) -> Self {
        MemoryBar { bar, size, decoded: 0, asked: 0 }
    }

    /// Guest-physical address that the VMM has the BAR at.
    pub fn base(&self) -> u64 {
        self.decoded
    }

    /// The VMM put the BAR there.
    pub fn set_base(&mut self, base: u64) {
        self.decoded = base;
        self.asked = base;
    }

    /// To be called after each write to configuration space: what the VMM has to move, if anything.
    pub fn pending_move(&mut self, config: &ConfigSpace) -> Option<BarMove> {
        let new = config.bar_base(self.bar);
        if config.command() & COMMAND_MEMORY_SPACE == 0 || new == self.asked {
            return None;
        }
        // With the memory bit left on, a sizing writes all ones to one half after the other.
        let all_ones = !self.size.wrapping_sub(1);
        let (low, high) = (all_ones as u32, (all_ones >> 32) as u32);
        // From 4 GiB on the lower half has no address bits, so that it says nothing.
        if (low != 0 && new as u32 == low) || (new >> 32) as u32 == high {
            return None;
        }
        self.asked = new;
        (new != self.decoded).then_some(BarMove { bar: self.bar, old: self.decoded, new, size: self.size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Header;

    const SIZE: u64 = 0x8000;
    const BASE: u64 = 0xc000_0000;

    fn placed() -> (ConfigSpace, MemoryBar) {
        let header = Header { vendor: 1, device: 2, revision: 0, class: 0, subsystem_vendor: 0, subsystem: 0 };
        let mut config = ConfigSpace::new(&header);
        config.add_register_bar(SIZE);
        config.set_bar_base(BarIndex::Registers, BASE);
        let mut bar = MemoryBar::new(BarIndex::Registers, SIZE);
        bar.set_base(BASE);
        (config, bar)
    }

    fn set_memory_space(config: &mut ConfigSpace, on: bool) {
        config.write(4, &[if on { 2 } else { 0 }, 0]);
    }

    #[test]
    fn sizing_with_the_memory_bit_off_moves_nothing() {
        let (mut config, mut bar) = placed();
        set_memory_space(&mut config, false);
        for (half, value) in [(0x10, [0xff; 4]), (0x10, [0, 0, 0, 0xc0]), (0x14, [0xff; 4]), (0x14, [0; 4])] {
            config.write(half, &value);
            assert_eq!(bar.pending_move(&config), None);
        }
        set_memory_space(&mut config, true);
        assert_eq!(bar.pending_move(&config), None);
    }

    #[test]
    fn sizing_with_the_memory_bit_on_moves_nothing() {
        let (mut config, mut bar) = placed();
        set_memory_space(&mut config, true);
        for (half, value) in [(0x10, [0xff; 4]), (0x10, [0, 0, 0, 0xc0]), (0x14, [0xff; 4]), (0x14, [0; 4])] {
            config.write(half, &value);
            assert_eq!(bar.pending_move(&config), None);
        }
    }

    #[test]
    fn a_new_place_counts_once_the_memory_bit_is_set() {
        let (mut config, mut bar) = placed();
        config.write(0x10, &[0, 0, 0x10, 0xd0]);
        config.write(0x14, &[4, 0, 0, 0]);
        assert_eq!(bar.pending_move(&config), None);
        set_memory_space(&mut config, true);
        let new = 0x4_d010_0000;
        assert_eq!(bar.pending_move(&config), Some(BarMove { bar: BarIndex::Registers, old: BASE, new, size: SIZE }));
        bar.set_base(new);
        assert_eq!(bar.pending_move(&config), None);
    }

    #[test]
    fn a_bar_of_4_gib_moves_to_places_whose_lower_half_is_zero() {
        let header = Header { vendor: 1, device: 2, revision: 0, class: 0, subsystem_vendor: 0, subsystem: 0 };
        let mut config = ConfigSpace::new(&header);
        config.add_shared_memory_bar(4 << 30);
        config.set_bar_base(BarIndex::SharedMemory, 4 << 30);
        let mut bar = MemoryBar::new(BarIndex::SharedMemory, 4 << 30);
        bar.set_base(4 << 30);
        set_memory_space(&mut config, true);
        config.write(0x1c, &[0xff; 4]);
        assert_eq!(bar.pending_move(&config), None, "a sizing");
        config.write(0x1c, &[8, 0, 0, 0]);
        let moved = BarMove { bar: BarIndex::SharedMemory, old: 4 << 30, new: 32 << 30, size: 4 << 30 };
        assert_eq!(bar.pending_move(&config), Some(moved));
    }

    #[test]
    fn a_refused_place_is_asked_for_once() {
        let (mut config, mut bar) = placed();
        set_memory_space(&mut config, true);
        config.write(0x10, &[0, 0, 0, 0xd0]);
        assert!(bar.pending_move(&config).is_some());
        assert_eq!(bar.pending_move(&config), None);
        config.write(0x10, &[0, 0, 0, 0xc0]);
        assert_eq!(bar.pending_move(&config), None, "it is there already");
        config.write(0x10, &[0, 0, 0, 0xd0]);
        assert!(bar.pending_move(&config).is_some(), "asked for anew");
    }
}
