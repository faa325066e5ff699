//! From a port or an address to the device behind it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use devices::bus::BusDevice;

/// A device shared between the bus and whoever else needs it.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Ranges and their devices, ascending.
type Ranges = Vec<(Range<u64>, SharedDevice)>;

/// One address space, ports or memory: ranges that do not overlap. Filled by the builder; later only a guest that moves
/// a BAR changes it.
#[derive(Default)]
pub struct IoBus {
    ranges: RwLock<Ranges>,
}

/// A range overlaps one that is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bus range {wanted:#x?} overlaps {taken:#x?}")]
pub struct Overlap {
    wanted: Range<u64>,
    taken: Range<u64>,
}

impl IoBus {
    /// Puts `device` at `range`.
    ///
    /// # Errors
    /// [`Overlap`].
    pub fn insert(&self, range: Range<u64>, device: SharedDevice) -> Result<(), Overlap> {
        insert(&mut self.ranges.write().unwrap_or_else(PoisonError::into_inner), range, device)
    }

    /// Moves what starts at `old` to `new`, keeping its length. Nothing happens when nothing starts there.
    ///
    /// # Errors
    /// [`Overlap`]; everything is then as before.
    pub fn relocate(&self, old: u64, new: u64) -> Result<(), Overlap> {
        let mut ranges = self.ranges.write().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = ranges.iter().position(|(range, _)| range.start == old) else { return Ok(()) };
        let (range, device) = ranges.remove(at);
        let length = range.end - range.start;
        let result = insert(&mut ranges, new..new.saturating_add(length), device.clone());
        if result.is_err() {
            ranges.insert(at, (range, device));
        }
        result
    }

    /// Reads `data` from `address`; what nobody backs reads as `0xff`.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some((offset, device)) = self.find(address) else { return };
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        let size = access_size(data.len());
        for piece in data.chunks_mut(size) {
            device.read(offset, piece);
        }
    }

    /// Writes `data` to `address`; what nobody backs is dropped.
    pub fn write(&self, address: u64, data: &[u8]) {
        let Some((offset, device)) = self.find(address) else { return };
        let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in data.chunks(access_size(data.len())) {
            device.write(offset, piece);
        }
    }

    /// The device is handed out of the lock: what it does may change the bus.
    fn find(&self, address: u64) -> Option<(u64, SharedDevice)> {
        let ranges = self.ranges.read().unwrap_or_else(PoisonError::into_inner);
        let at = ranges.partition_point(|(range, _)| range.end <= address);
        let (range, device) = ranges.get(at)?;
        range.contains(&address).then(|| (address - range.start, device.clone()))
    }
}

fn insert(ranges: &mut Ranges, range: Range<u64>, device: SharedDevice) -> Result<(), Overlap> {
    let at = ranges.partition_point(|(other, _)| other.start < range.start);
    for (taken, _) in ranges[at.saturating_sub(1)..].iter().take(2) {
        if taken.start < range.end && range.start < taken.end {
            return Err(Overlap { wanted: range, taken: taken.clone() });
        }
    }
    ranges.insert(at, (range, device));
    Ok(())
}

/// A length that is no single access is a string instruction's (`rep outsb`): the same port again and again. KVM does
/// not say through kvm-ioctls how wide each access was; bytes are what drivers use.
fn access_size(length: usize) -> usize {
    if matches!(length, 1 | 2 | 4 | 8) { length } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers accesses and answers with its tag.
    struct Recorder {
        tag: u8,
        seen: Vec<(u64, usize)>,
    }

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            self.seen.push((offset, data.len()));
            data.fill(self.tag);
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.seen.push((offset, data.len()));
        }
    }

    fn recorder(tag: u8) -> Arc<Mutex<Recorder>> {
        Arc::new(Mutex::new(Recorder { tag, seen: Vec::new() }))
    }

    #[test]
    fn an_access_reaches_the_device_whose_range_holds_it_and_no_other() {
        let bus = IoBus::default();
        for (tag, range) in [(2, 20..30), (1, 10..20), (3, 40..41)] {
            bus.insert(range, recorder(tag)).unwrap();
        }
        let at = |address| {
            let mut data = [0];
            bus.read(address, &mut data);
            data[0]
        };
        assert_eq!(
            [9, 10, 19, 20, 29, 30, 39, 40, 41, u64::MAX].map(at),
            [0xff, 1, 1, 2, 2, 0xff, 0xff, 3, 0xff, 0xff]
        );
    }

    #[test]
    fn overlapping_ranges_are_refused() {
        let bus = IoBus::default();
        bus.insert(10..20, recorder(1)).unwrap();
        bus.insert(30..40, recorder(2)).unwrap();
        for range in [10..20, 5..11, 19..21, 0..100, 12..13, 25..31, 39..50] {
            assert!(bus.insert(range.clone(), recorder(3)).is_err(), "{range:?}");
        }
        bus.insert(20..30, recorder(3)).unwrap();
    }

    #[test]
    fn a_relocated_device_answers_at_its_new_place_only() {
        let bus = IoBus::default();
        bus.insert(0..10, recorder(1)).unwrap();
        bus.insert(20..30, recorder(2)).unwrap();
        assert!(bus.relocate(0, 15).is_err());
        bus.relocate(0, 5).unwrap();
        bus.relocate(99, 50).unwrap();
        let at = |address| {
            let mut data = [0];
            bus.read(address, &mut data);
            data[0]
        };
        assert_eq!([0, 5, 14, 15, 20].map(at), [0xff, 1, 1, 0xff, 2]);
    }

    #[test]
    fn a_string_instruction_becomes_single_bytes_to_the_same_port() {
        let bus = IoBus::default();
        let device = recorder(7);
        bus.insert(0x3f8..0x400, device.clone()).unwrap();
        bus.write(0x3f8, b"hello");
        bus.write(0x3f8, &[1; 4]);
        assert_eq!(device.lock().unwrap().seen, [(0, 1), (0, 1), (0, 1), (0, 1), (0, 1), (0, 4)]);
    }

    #[test]
    fn a_device_that_panicked_once_still_answers() {
        let bus = IoBus::default();
        let device = recorder(7);
        bus.insert(0..8, device.clone()).unwrap();
        let poisoner = device.clone();
        std::thread::spawn(move || {
            let _guard = poisoner.lock().unwrap();
            panic!("expected by the test");
        })
        .join()
        .unwrap_err();
        let mut data = [0];
        bus.read(0, &mut data);
        assert_eq!(data, [7]);
    }
}
