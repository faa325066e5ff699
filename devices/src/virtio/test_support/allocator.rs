//! Hands out guest memory for rings and buffers: a bump pointer with a free list per power-of-two size.

use std::collections::HashMap;

use vm_memory::GuestAddress;

#[derive(Debug)]
pub(super) struct Allocator {
    next: u64,
    end: u64,
    free: HashMap<u64, Vec<u64>>,
}

impl Allocator {
    /// Hands out addresses in `start..end`.
    pub(super) fn new(start: u64, end: u64) -> Self {
        Allocator { next: start, end, free: HashMap::new() }
    }

    /// An address with room for `len` bytes, aligned to 16 or more (the descriptor table's need).
    pub(super) fn allocate(&mut self, len: u64) -> GuestAddress {
        let class = Self::class(len);
        if let Some(address) = self.free.get_mut(&class).and_then(Vec::pop) {
            return GuestAddress(address);
        }
        let align = class.min(4096);
        let address = self.next.next_multiple_of(align);
        assert!(address + class <= self.end, "the fake driver has no guest memory left for {len} bytes");
        self.next = address + class;
        GuestAddress(address)
    }

    /// Takes back what `allocate(len)` gave.
    pub(super) fn release(&mut self, address: GuestAddress, len: u64) {
        self.free.entry(Self::class(len)).or_default().push(address.0);
    }

    fn class(len: u64) -> u64 {
        len.max(16).next_power_of_two()
    }
}
