//! One queue as the driver sets it up through common configuration.

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

/// Registers of one queue (virtio 1.2 § 4.1.4.3), taken as the driver writes them and judged when it enables the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QueueConfig {
    max_size: u16,
    pub(super) size: u16,
    pub(super) enabled: bool,
    pub(super) desc: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

/// Why a queue cannot be enabled.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum BadQueue {
    #[error("size {size} is not a power of two up to {max}")]
    Size { size: u16, max: u16 },
    #[error("{area} at {address:#x} is not aligned to {align}")]
    Alignment { area: &'static str, address: u64, align: u64 },
    #[error("{area}, {len} bytes at {address:#x}, is not inside guest memory")]
    Outside { area: &'static str, address: u64, len: u64 },
}

impl QueueConfig {
    pub(super) fn new(max_size: u16) -> Self {
        QueueConfig { max_size, size: max_size, enabled: false, desc: 0, driver: 0, device: 0 }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.max_size);
    }

    /// Checks everything a device may rely on later (§ 2.7).
    pub(super) fn check(&self, memory: &GuestMemoryMmap) -> Result<(), BadQueue> {
        if !self.size.is_power_of_two() || self.size > self.max_size {
            return Err(BadQueue::Size { size: self.size, max: self.max_size });
        }
        let entries = u64::from(self.size);
        for (area, address, align, len) in [
            ("descriptor table", self.desc, 16, 16 * entries),
            // With flags, idx and the event field, which is there whether or not it is negotiated.
            ("available ring", self.driver, 2, 6 + 2 * entries),
            ("used ring", self.device, 4, 6 + 8 * entries),
        ] {
            if address % align != 0 {
                return Err(BadQueue::Alignment { area, address, align });
            }
            if !memory.check_range(GuestAddress(address), len as usize) {
                return Err(BadQueue::Outside { area, address, len });
            }
        }
        Ok(())
    }

    /// The queue as a device uses it. `None` unless [`QueueConfig::check`] passes.
    pub(super) fn to_queue(&self, event_idx: bool) -> Option<Queue> {
        let mut queue = Queue::new(self.max_size).ok()?;
        queue.try_set_size(self.size).ok()?;
        queue.try_set_desc_table_address(GuestAddress(self.desc)).ok()?;
        queue.try_set_avail_ring_address(GuestAddress(self.driver)).ok()?;
        queue.try_set_used_ring_address(GuestAddress(self.device)).ok()?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Some(queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000), (GuestAddress(0x20000), 0x10000)]).unwrap()
    }

    fn good() -> QueueConfig {
        QueueConfig { desc: 0x1000, driver: 0x3000, device: 0x4000, ..QueueConfig::new(256) }
    }

    #[test]
    fn a_good_queue_passes_and_becomes_ready() {
        good().check(&memory()).unwrap();
        let queue = good().to_queue(true).unwrap();
        assert_eq!(
            (queue.size(), queue.desc_table(), queue.avail_ring(), queue.used_ring()),
            (256, 0x1000, 0x3000, 0x4000)
        );
        assert!(queue.ready() && queue.event_idx_enabled());
    }

    #[test]
    fn sizes_must_be_powers_of_two_up_to_the_maximum() {
        for size in [0, 3, 255, 257, 512, 32768, u16::MAX] {
            let queue = QueueConfig { size, ..good() };
            assert_eq!(queue.check(&memory()), Err(BadQueue::Size { size, max: 256 }));
            assert_eq!(queue.to_queue(false), None);
        }
        QueueConfig { size: 1, ..good() }.check(&memory()).unwrap();
    }

    #[test]
    fn misaligned_areas_are_refused() {
        for queue in [
            QueueConfig { desc: 0x1008, ..good() },
            QueueConfig { driver: 0x3001, ..good() },
            QueueConfig { device: 0x4002, ..good() },
        ] {
            let error = queue.check(&memory()).unwrap_err();
            assert!(matches!(error, BadQueue::Alignment { .. }), "{error}");
        }
    }

    #[test]
    fn areas_that_end_at_the_end_of_memory_pass_and_one_byte_further_do_not() {
        QueueConfig { desc: 0x10000 - 4096, ..good() }.check(&memory()).unwrap();
        for desc in [0x10000 - 4096 + 16, 0x10000, 0x30000, u64::MAX - 15, 0x1_0000_0000_0000] {
            let error = QueueConfig { desc, ..good() }.check(&memory()).unwrap_err();
            assert!(matches!(error, BadQueue::Outside { .. }), "{error}");
        }
    }

    #[test]
    fn an_area_that_spans_a_hole_is_refused() {
        let queue = QueueConfig { device: 0xff00, ..good() };
        assert!(matches!(queue.check(&memory()), Err(BadQueue::Outside { area: "used ring", .. })));
    }
}
