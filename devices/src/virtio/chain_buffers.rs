//! A descriptor chain taken apart, with everything checked that virtio-queue's iterator passes over in silence.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, VolatileSlice};

/// The buffers of one chain. Their addresses are not checked yet: see [`slices`].
#[derive(Clone, Debug, Default)]
pub struct ChainBuffers {
    /// Device-readable buffers, in order.
    pub readable: Vec<Descriptor>,
    /// Device-writable buffers, in order.
    pub writable: Vec<Descriptor>,
}

/// A chain that no driver may make. The device cannot know what was meant, so it cannot answer either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    /// The chain ends where it says that it goes on: a loop, an index past the table, more than 4 GiB in all, an
    /// indirect table that is nested, misshapen or outside guest memory (virtio 1.2 § 2.7.5).
    #[error("descriptor chain {head} is broken after {good} descriptors")]
    Unfinished {
        /// Index of its first descriptor.
        head: u16,
        /// How many descriptors could be followed.
        good: usize,
    },
    /// A device-readable buffer comes after a device-writable one (§ 2.7.4.2).
    #[error("descriptor chain {head} has a readable buffer after a writable one")]
    Order {
        /// Index of its first descriptor.
        head: u16,
    },
}

impl ChainBuffers {
    /// Takes `chain` apart.
    ///
    /// # Errors
    /// See [`BrokenChain`].
    pub fn collect<M>(chain: DescriptorChain<M>) -> Result<Self, BrokenChain>
    where
        M: Deref,
        M::Target: GuestMemory,
    {
        let head = chain.head_index();
        let mut buffers = ChainBuffers::default();
        // The iterator just ends when it cannot go on, and it bounds the number of descriptors by the table's size.
        let (mut unfinished, mut good) = (true, 0);
        for descriptor in chain {
            unfinished = descriptor.has_next();
            good += 1;
            if descriptor.is_write_only() {
                buffers.writable.push(descriptor);
            } else if buffers.writable.is_empty() {
                buffers.readable.push(descriptor);
            } else {
                return Err(BrokenChain::Order { head });
            }
        }
        if unfinished { Err(BrokenChain::Unfinished { head, good }) } else { Ok(buffers) }
    }

    /// Bytes in the device-writable buffers.
    pub fn writable_len(&self) -> u64 {
        self.writable.iter().map(|descriptor| u64::from(descriptor.len())).sum()
    }

    /// Bytes in the device-readable buffers.
    pub fn readable_len(&self) -> u64 {
        self.readable.iter().map(|descriptor| u64::from(descriptor.len())).sum()
    }
}

/// `descriptors` as slices of guest memory, split where regions meet, without those of zero length; `None` if any byte
/// of them is outside.
pub fn slices<'m>(memory: &'m GuestMemoryMmap, descriptors: &[Descriptor]) -> Option<Vec<VolatileSlice<'m>>> {
    let mut slices = Vec::with_capacity(descriptors.len());
    for descriptor in descriptors.iter().filter(|descriptor| descriptor.len() > 0) {
        let (mut address, mut left) = (descriptor.addr(), descriptor.len() as usize);
        while left > 0 {
            let here = memory.get_slices(address, left).next()?.ok()?;
            let len = here.len();
            // Zero would be for ever; a region never yields it.
            left = left.checked_sub(len).filter(|_| len > 0)?;
            address = GuestAddress(address.0.checked_add(len as u64)?);
            slices.push(here);
        }
    }
    Some(slices)
}

#[cfg(test)]
mod tests {
    use virtio_queue::QueueOwnedT;
    use vm_memory::GuestAddressSpace;

    use super::*;
    use crate::virtio::test_support::*;

    fn collect(driver: &mut FakeDriver) -> Result<ChainBuffers, BrokenChain> {
        let mut active = driver.activation(0).queues.remove(0);
        let chain = active.queue.iter(driver.memory().memory()).unwrap().next().unwrap();
        ChainBuffers::collect(chain)
    }

    fn raw(flags: u16, next: u16) -> RawDescriptor {
        RawDescriptor { address: 0x1000, len: 16, flags, next }
    }

    #[test]
    fn a_good_chain_comes_apart_direct_and_indirect() {
        for indirect in [false, true] {
            let mut driver = FakeDriver::new(&[8]);
            let segments = [readable(b"ab"), readable(b"c"), writable(5), writable(0)];
            if indirect {
                driver.queue(0).add_indirect(&segments)
            } else {
                driver.queue(0).add(&segments)
            };
            let buffers = collect(&mut driver).unwrap();
            assert_eq!((buffers.readable.len(), buffers.readable_len()), (2, 3));
            assert_eq!((buffers.writable.len(), buffers.writable_len()), (2, 5));
            let memory = driver.memory().memory();
            assert_eq!(slices(&memory, &buffers.writable).unwrap().len(), 1, "a zero-length buffer has no slice");
        }
    }

    #[test]
    fn a_loop_is_broken() {
        let mut driver = FakeDriver::new(&[8]);
        driver.queue(0).write_descriptor(6, raw(DESC_F_NEXT, 7));
        driver.queue(0).write_descriptor(7, raw(DESC_F_NEXT, 6));
        driver.queue(0).make_available(6);
        assert_eq!(collect(&mut driver).unwrap_err(), BrokenChain::Unfinished { head: 6, good: 8 });
    }

    #[test]
    fn a_next_or_a_head_past_the_table_is_broken() {
        let mut driver = FakeDriver::new(&[8]);
        driver.queue(0).write_descriptor(7, raw(DESC_F_NEXT, 8));
        driver.queue(0).make_available(7);
        assert_eq!(collect(&mut driver).unwrap_err(), BrokenChain::Unfinished { head: 7, good: 1 });
        let mut driver = FakeDriver::new(&[8]);
        driver.queue(0).make_available(8);
        assert_eq!(collect(&mut driver).unwrap_err(), BrokenChain::Unfinished { head: 8, good: 0 });
    }

    #[test]
    fn readable_after_writable_is_broken() {
        let mut driver = FakeDriver::new(&[8]);
        driver.queue(0).add(&[writable(1), readable(b"x")]);
        assert_eq!(collect(&mut driver).unwrap_err(), BrokenChain::Order { head: 0 });
    }

    #[test]
    fn misshapen_nested_and_outlying_indirect_tables_are_broken() {
        let indirect = |address, len| RawDescriptor { address, len, flags: DESC_F_INDIRECT, next: 0 };
        for table in [indirect(0x1000, 17), indirect(0x1000, 0), indirect(MEMORY_SIZE, 32), indirect(u64::MAX - 7, 16)]
        {
            let mut driver = FakeDriver::new(&[8]);
            driver.queue(0).add(&[Segment::Raw(table)]);
            let error = collect(&mut driver).unwrap_err();
            assert_eq!(error, BrokenChain::Unfinished { head: 0, good: 0 }, "{table:?}");
        }
        let mut driver = FakeDriver::new(&[8]);
        driver.queue(0).add_indirect(&[Segment::Raw(indirect(0x1000, 16))]);
        assert_eq!(collect(&mut driver).unwrap_err(), BrokenChain::Unfinished { head: 0, good: 0 });
    }

    #[test]
    fn more_than_4_gib_in_one_chain_is_broken() {
        let mut driver = FakeDriver::new(&[8]);
        let huge = Segment::Raw(RawDescriptor { address: 0x1000, len: u32::MAX, flags: DESC_F_WRITE, next: 0 });
        driver.queue(0).add(&[huge.clone(), huge]);
        assert_eq!(collect(&mut driver).unwrap_err(), BrokenChain::Unfinished { head: 0, good: 1 });
    }

    #[test]
    fn buffers_outside_memory_have_no_slices() {
        let driver = FakeDriver::new(&[8]);
        let memory = driver.memory().memory();
        let end = MEMORY_SIZE;
        assert!(slices(&memory, &[Descriptor::new(end - 16, 16, 0, 0)]).is_some());
        for (address, len) in [(end - 16, 17), (end, 1), (u64::MAX, 1), (u64::MAX - 7, 16), (0, u32::MAX)] {
            assert!(slices(&memory, &[Descriptor::new(address, len, 0, 0)]).is_none(), "{address:#x} {len}");
        }
    }

    #[test]
    fn a_buffer_across_two_regions_is_two_slices_and_across_a_hole_none() {
        let memory = GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), 0x1000),
            (GuestAddress(0x1000), 0x1000),
            (GuestAddress(0x4000), 0x1000),
        ])
        .unwrap();
        let lens = |address, len| -> Option<Vec<usize>> {
            Some(slices(&memory, &[Descriptor::new(address, len, 0, 0)])?.iter().map(VolatileSlice::len).collect())
        };
        assert_eq!(lens(0xff0, 32), Some(vec![16, 16]));
        assert_eq!(lens(0x1ff0, 32), None);
    }
}
