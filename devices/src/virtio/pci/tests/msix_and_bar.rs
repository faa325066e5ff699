use std::io;
use std::sync::{Arc, Mutex};

use super::Guest;
use super::guest::*;
use crate::bus::BusDevice;
use crate::pci::msi::MsiMessage;
use crate::pci::msi::recording::MsiEvent;
use crate::pci::{BarIndex, BarMove, BarMover, PciAddress, PciFunction, PciRoot};
use crate::virtio::pci::BAR_SIZE;

#[test]
fn each_queue_signals_the_vector_it_was_given() {
    let (mut guest, log) = Guest::with_probe();
    guest.bring_up(&[0, 1]);
    guest.set_up_msix(2);
    let interrupt = log.lock().unwrap().activation.as_ref().unwrap().interrupt.clone();
    interrupt.signal_used(0);
    interrupt.signal_used(1);
    interrupt.signal_used(1);
    interrupt.signal_used(2);
    interrupt.signal_used(u16::MAX);
    interrupt.signal_config();
    assert_eq!([0, 1, 2].map(|vector| guest.vectors.triggers(vector)), [1, 1, 2]);
    assert!(guest.vectors.events().contains(&MsiEvent::Enable(1, MsiMessage { address: 0, data: 101 })));
}

#[test]
fn without_a_vector_a_used_buffer_shows_in_isr_status() {
    let (mut guest, log) = Guest::with_probe();
    guest.bring_up(&[0]);
    let interrupt = log.lock().unwrap().activation.as_ref().unwrap().interrupt.clone();
    interrupt.signal_used(0);
    let isr = guest.structure(3);
    assert_eq!(guest.read(isr), [1]);
    assert_eq!(guest.read(isr), [0]);
    interrupt.signal_used(0);
    guest.set_status(0);
    assert_eq!(guest.read(isr), [0], "a reset clears it");
}

#[test]
fn a_vector_outside_the_table_reads_back_as_none() {
    let (mut guest, _) = Guest::with_probe();
    for register in [0x10, 0x1a] {
        guest.set_common(register, 2, 2);
        assert_eq!(guest.common(register, 2), 2);
        for vector in [3, 0x7ff, 0xfffe, 0xffff] {
            guest.set_common(register, 2, vector);
            assert_eq!(guest.common(register, 2), 0xffff);
        }
    }
}

#[test]
fn a_signal_to_a_masked_vector_comes_when_it_is_unmasked() {
    let (mut guest, log) = Guest::with_probe();
    guest.bring_up(&[0, 1]);
    guest.set_up_msix(2);
    let interrupt = log.lock().unwrap().activation.as_ref().unwrap().interrupt.clone();
    guest.mask_vector(2, true);
    interrupt.signal_used(1);
    assert_eq!((guest.vectors.triggers(2), guest.read(0x5000)), (0, [0b100u8]));
    guest.mask_vector(2, false);
    assert_eq!((guest.vectors.triggers(2), guest.read(0x5000)), (1, [0u8]));
    guest.write_msix_control(0xc000);
    interrupt.signal_used(0);
    assert_eq!(guest.vectors.triggers(1), 0);
    guest.write_msix_control(0x8000);
    assert_eq!(guest.vectors.triggers(1), 1);
}

#[test]
fn the_msix_table_reads_back_what_was_written() {
    let (mut guest, _) = Guest::with_probe();
    guest.device.write(0x4010, &0xfee0_0000u64.to_le_bytes());
    guest.device.write(0x4018, &0x4022u32.to_le_bytes());
    assert_eq!(guest.read(0x4010), [0, 0, 0xe0, 0xfe, 0, 0, 0, 0]);
    assert_eq!(guest.read(0x4018), [0x22, 0x40, 0, 0, 1, 0, 0, 0]);
    assert_eq!(guest.read(0x4030), [0u8; 8], "past the table");
}

#[test]
fn message_control_can_be_written_a_byte_or_a_dword_at_a_time() {
    for (offset, data) in [(3, &[0x80][..]), (0, &[0, 0, 0, 0x80][..]), (2, &[0, 0x80][..])] {
        let (mut guest, _) = Guest::with_probe();
        let (msix, _) = guest.capabilities()[0];
        guest.device.write_config(msix + offset, data);
        guest.mask_vector(0, false);
        assert_eq!(guest.vectors.events().len(), 1, "{offset}");
    }
}

#[test]
fn with_its_memory_bit_off_the_function_answers_nothing() {
    let (mut guest, _) = Guest::with_probe();
    guest.set_status(ACKNOWLEDGE);
    guest.device.write_config(4, &[0, 0]);
    assert_eq!(guest.read(0x14), [0xff]);
    guest.device.write(0x14, &[0]);
    guest.device.write_config(4, &[2, 0]);
    assert_eq!(guest.status(), ACKNOWLEDGE);
}

#[test]
fn the_bar_can_be_reached_through_configuration_space() {
    let (mut guest, log) = Guest::with_probe();
    let access = guest.virtio_capability(5);
    let window = |guest: &mut Guest, offset: u64, len: u8| {
        guest.device.write_config(access + 4, &[0]);
        guest.device.write_config(access + 8, &(offset as u32).to_le_bytes());
        guest.device.write_config(access + 12, &[len, 0, 0, 0]);
    };
    window(&mut guest, 0x14, 1);
    guest.device.write_config(access + 16, &[ACKNOWLEDGE]);
    assert_eq!(guest.status(), ACKNOWLEDGE);
    let mut data = [0; 4];
    guest.device.read_config(access + 16, &mut data);
    assert_eq!(data, [ACKNOWLEDGE, 0, 0, 0]);
    let config = guest.structure(4);
    window(&mut guest, config, 4);
    guest.device.read_config(access + 16, &mut data);
    assert_eq!(data, [0xc0, 0xc1, 0xc2, 0xc3]);
    // Another BAR, a wrong length, an offset that is not a multiple of it: nothing happens.
    for (bar, offset, len) in [(1, 0x14, 1), (0, 0x14, 0), (0, 0x14, 3), (0, 0x14, 8), (0, 0x15, 2), (0, 0x16, 4)] {
        window(&mut guest, offset, len);
        guest.device.write_config(access + 4, &[bar]);
        guest.device.write_config(access + 16, &[0; 4]);
    }
    assert_eq!((guest.status(), log.lock().unwrap().config_writes.len()), (ACKNOWLEDGE, 0));
}

struct Bus {
    moves: Mutex<Vec<BarMove>>,
}

impl BarMover for Bus {
    fn move_bar(&self, _address: PciAddress, bar: BarMove) -> io::Result<()> {
        self.moves.lock().unwrap().push(bar);
        Ok(())
    }
}

#[test]
fn a_bar_that_the_guest_moves_is_followed_once() {
    let (guest, _) = Guest::with_probe();
    let device = Arc::new(Mutex::new(guest.device));
    device.lock().unwrap().set_bar_base(0xc000_0000);
    let bus = Arc::new(Bus { moves: Mutex::default() });
    let mut root = PciRoot::new();
    root.add(PciAddress::new(1).unwrap(), device.clone(), bus.clone()).unwrap();
    let mut write = |register: u32, value: u32| {
        root.write(0, &(1 << 31 | 1 << 11 | register).to_le_bytes());
        root.write(4, &value.to_le_bytes());
    };
    for (register, value) in [
        (4, 0),
        (0x10, u32::MAX),
        (0x10, 0xc000_0000),
        (0x14, u32::MAX),
        (0x14, 0),
        (4, 6),
        (4, 0),
        (0x10, 0x1000_0000),
        (0x14, 0x20),
        (4, 6),
    ] {
        write(register, value);
    }
    let new = 0x20_1000_0000;
    assert_eq!(
        *bus.moves.lock().unwrap(),
        [BarMove { bar: BarIndex::Registers, old: 0xc000_0000, new, size: BAR_SIZE }]
    );
    assert_eq!(device.lock().unwrap().bar_base(), new);
}
