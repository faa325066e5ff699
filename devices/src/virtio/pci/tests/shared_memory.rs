//! Memory that a device shares: its capability and its BAR.

use std::sync::{Arc, Mutex};

use super::Guest;
use crate::pci::{BarIndex, BarMove, PciFunction};
use crate::virtio::fs::{FsConfig, FsDevice, Tag};
use crate::virtio::test_support::FakeDriver;

fn guest(window: u64) -> (Guest, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let config = FsConfig { dax_window: window, ..FsConfig::new(Tag::new("t").unwrap(), dir.path()) };
    (Guest::new(Box::new(FsDevice::new(config).unwrap()), FakeDriver::new(&[8, 8])), dir)
}

#[test]
fn a_dax_window_is_found_by_its_capability_in_a_bar_of_its_own() {
    let (mut guest, _dir) = guest(6 << 30);
    let at = guest.virtio_capability(8);
    // cap_len, cfg_type, bar, id (virtio 1.2 § 4.1.4).
    assert_eq!(guest.config(at + 2), [24, 8, 2, 0]);
    let number = |guest: &mut Guest, offset| u64::from(u32::from_le_bytes(guest.config(at + offset)));
    assert_eq!(number(&mut guest, 8) | number(&mut guest, 16) << 32, 0, "offset");
    assert_eq!(number(&mut guest, 12) | number(&mut guest, 20) << 32, 6 << 30, "length");
    guest.device.write_config(0x18, &[0xff; 4]);
    guest.device.write_config(0x1c, &[0xff; 4]);
    let sized = u64::from_le_bytes(guest.config(0x18));
    assert_eq!((sized & 0xf, !(sized & !0xf) + 1), (0b1100, 8 << 30), "64-bit, prefetchable, a power of two");
}

#[test]
fn a_device_without_shared_memory_has_neither() {
    let (mut guest, _dir) = guest(0);
    let capabilities = guest.capabilities();
    assert!(capabilities.iter().all(|(offset, id)| *id != 9 || guest.config::<1>(offset + 3) != [8]));
    guest.device.write_config(0x18, &[0xff; 4]);
    assert_eq!(guest.config::<8>(0x18), [0; 8]);
}

#[test]
fn both_bars_move_when_the_memory_bit_is_set_again() {
    let (guest, _dir) = guest(2 << 20);
    let device = Arc::new(Mutex::new(guest.device));
    let mut device = device.lock().unwrap();
    device.set_bar_base(0xc000_0000);
    device.set_shared_memory_base(1 << 32);
    device.write_config(4, &[0, 0]);
    device.write_config(0x10, &[0, 0, 0, 0xd0]);
    device.write_config(0x18, &[0, 0, 0x20, 0]);
    assert_eq!(device.write_config(0x1c, &[2, 0, 0, 0]), []);
    let moves = [
        BarMove { bar: BarIndex::Registers, old: 0xc000_0000, new: 0xd000_0000, size: 0x8000 },
        BarMove { bar: BarIndex::SharedMemory, old: 1 << 32, new: (2 << 32) + (2 << 20), size: 2 << 20 },
    ];
    assert_eq!(device.write_config(4, &[2, 0]), moves);
    for moved in moves {
        device.bar_moved(moved.bar, moved.new);
    }
    assert_eq!(device.write_config(4, &[2, 0]), []);
}
