//! Random accesses: nothing panics, and a reset afterwards always works.

use proptest::prelude::*;

use super::Guest;
use super::guest::*;
use crate::bus::BusDevice;
use crate::pci::PciFunction;
use crate::virtio::block::BlockDevice;
use crate::virtio::pci::BAR_SIZE;
use crate::virtio::test_support::FakeDriver;

#[derive(Clone, Debug)]
enum Access {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    ReadConfig(usize, usize),
    WriteConfig(usize, Vec<u8>),
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    let small = prop_oneof![Just(0u64), Just(1), Just(3), Just(11), Just(15), Just(0x1_0000_0000), 0u64..0x20_0000];
    (prop_oneof![small, any::<u64>()], prop_oneof![Just(1usize), Just(2), Just(4), Just(8), 0usize..9])
        .prop_map(|(value, len)| value.to_le_bytes()[..len].to_vec())
}

fn access() -> impl Strategy<Value = Access> {
    // Common configuration most of the time: everything else hangs on it.
    let offset = || prop_oneof![5 => 0u64..0x40, 2 => 0x3000u64..0x3010, 2 => 0x4000u64..0x4040, 1 => 0u64..BAR_SIZE + 16, 1 => any::<u64>()];
    prop_oneof![
        4 => (offset(), value()).prop_map(|(offset, data)| Access::Write(offset, data)),
        1 => (offset(), 0usize..9).prop_map(|(offset, len)| Access::Read(offset, len)),
        1 => (0usize..300, value()).prop_map(|(offset, data)| Access::WriteConfig(offset, data)),
        1 => (0usize..300, 0usize..9).prop_map(|(offset, len)| Access::ReadConfig(offset, len)),
    ]
}

fn apply(guest: &mut Guest, access: &Access) {
    match access {
        Access::Read(offset, len) => guest.device.read(*offset, &mut vec![0; *len]),
        Access::Write(offset, data) => guest.device.write(*offset, data),
        Access::ReadConfig(offset, len) => guest.device.read_config(*offset, &mut vec![0; *len]),
        Access::WriteConfig(offset, data) => drop(guest.device.write_config(*offset, data)),
    }
}

/// Brings the device to life again after anything.
fn assert_recovers(guest: &mut Guest) {
    guest.device.write_config(4, &[6, 0]);
    assert_eq!(guest.set_status(0), 0);
    guest.bring_up(&[0]);
    assert_eq!(guest.status(), DRIVER_OK);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_accesses_never_panic_and_a_reset_recovers(accesses in prop::collection::vec(access(), 0..100), up in any::<bool>()) {
        let (mut guest, _) = Guest::with_probe();
        if up {
            guest.bring_up(&[0, 1]);
        }
        for access in &accesses {
            apply(&mut guest, access);
        }
        assert_recovers(&mut guest);
    }

    #[test]
    fn random_accesses_to_a_running_disk_never_panic_and_a_reset_recovers(accesses in prop::collection::vec(access(), 0..40)) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let device = Box::new(BlockDevice::new(file, "root").unwrap());
        let mut guest = Guest::new(device, FakeDriver::new(&[256]));
        guest.bring_up(&[0]);
        guest.driver.queue(0).kick();
        for access in &accesses {
            apply(&mut guest, access);
        }
        assert_recovers(&mut guest);
        let panicked = guest.failures().into_iter().find(|failure| failure.reason.contains("panicked"));
        prop_assert_eq!(panicked, None);
    }
}
