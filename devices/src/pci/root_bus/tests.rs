use std::io;

use proptest::prelude::*;

use super::*;
use crate::pci::MemoryBar;

const SIZE: u64 = 0x8000;
const BASE: u64 = 0xc000_0000;

struct Card {
    config: ConfigSpace,
    bar: MemoryBar,
}

impl Card {
    fn new() -> Self {
        let header = Header {
            vendor: 0x1234,
            device: 0x5678,
            revision: 9,
            class: 0x01_80_00,
            subsystem_vendor: 0xaaaa,
            subsystem: 0xbbbb,
        };
        let mut config = ConfigSpace::new(&header);
        config.add_register_bar(SIZE);
        config.set_bar_base(BarIndex::Registers, BASE);
        let mut bar = MemoryBar::new(BarIndex::Registers, SIZE);
        bar.set_base(BASE);
        Card { config, bar }
    }
}

impl PciFunction for Card {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) -> Vec<BarMove> {
        self.config.write(offset, data);
        self.bar.pending_move(&self.config).into_iter().collect()
    }
    fn bar_moved(&mut self, _bar: BarIndex, base: u64) {
        self.bar.set_base(base);
    }
}

/// Records moves; refuses those to `refused`. Takes the function's lock, as a VMM that waits for accesses does.
struct Mover {
    card: Arc<Mutex<Card>>,
    moves: Mutex<Vec<BarMove>>,
    refused: u64,
}

impl BarMover for Mover {
    fn move_bar(&self, _address: PciAddress, bar: BarMove) -> io::Result<()> {
        assert!(self.card.try_lock().is_ok(), "the function's lock must be free while its BAR moves");
        if bar.new == self.refused {
            return Err(io::Error::other("taken"));
        }
        self.moves.lock().unwrap().push(bar);
        Ok(())
    }
}

fn bus() -> (PciRoot, Arc<Mutex<Card>>, Arc<Mover>) {
    let card = Arc::new(Mutex::new(Card::new()));
    let mover = Arc::new(Mover { card: card.clone(), moves: Mutex::default(), refused: 0xdead_0000 });
    let mut root = PciRoot::new();
    root.add(PciAddress::new(3).unwrap(), card.clone(), mover.clone()).unwrap();
    (root, card, mover)
}

fn select(root: &mut PciRoot, device: u32, register: u32) {
    root.write(0, &(ENABLE | device << 11 | register).to_le_bytes());
}

fn read(root: &mut PciRoot, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    root.read(offset, &mut data);
    data
}

fn write_register(root: &mut PciRoot, register: u32, value: u32) {
    select(root, 3, register);
    root.write(4, &value.to_le_bytes());
}

#[test]
fn linux_finds_the_mechanism_and_the_host_bridge() {
    let (mut root, ..) = bus();
    root.write(3, &[1]);
    root.write(0, &0x8000_0000u32.to_le_bytes());
    assert_eq!(read(&mut root, 0, 4), 0x8000_0000u32.to_le_bytes());
    select(&mut root, 0, 8);
    assert_eq!(read(&mut root, 6, 2), [0x00, 0x06], "class: host bridge");
}

#[test]
fn bytes_and_words_of_the_address_port_do_not_change_it() {
    let (mut root, ..) = bus();
    select(&mut root, 3, 0);
    root.write(0, &[0]);
    root.write(1, &[0, 0]);
    root.write(0, &[0; 8]);
    assert_eq!(read(&mut root, 0, 4), (ENABLE | 3 << 11).to_le_bytes());
    assert_eq!(read(&mut root, 0, 1), [0xff]);
}

#[test]
fn data_is_read_in_every_width_at_every_byte() {
    let (mut root, ..) = bus();
    select(&mut root, 3, 0);
    let whole = [0x34, 0x12, 0x78, 0x56];
    for byte in 0..4 {
        for len in [1, 2, 4, 8] {
            let data = read(&mut root, 4 + byte as u64, len);
            let there = len.min(4 - byte);
            assert_eq!(data[..there], whole[byte..byte + there], "{len} bytes at {byte}");
            assert!(data[there..].iter().all(|b| *b == 0xff), "{len} bytes at {byte}: past the port's end");
        }
    }
}

#[test]
fn odd_writes_change_only_the_bytes_they_name() {
    let (mut root, ..) = bus();
    write_register(&mut root, 0x3c, 0);
    select(&mut root, 3, 0x3c);
    root.write(5, &[0x77, 0x77]);
    root.write(4, &[0x0b]);
    assert_eq!(read(&mut root, 4, 4), [0x0b, 0, 0, 0]);
    select(&mut root, 3, 0x14);
    root.write(6, &[0xcd, 0xab, 0xff, 0xff]);
    assert_eq!(read(&mut root, 4, 4), [0, 0, 0xcd, 0xab]);
}

#[test]
fn nobody_answers_for_absent_devices_functions_buses_or_a_disabled_address() {
    let (mut root, ..) = bus();
    for address in [ENABLE | 4 << 11, ENABLE | 3 << 11 | 1 << 8, ENABLE | 1 << 16 | 3 << 11, 3 << 11] {
        root.write(0, &address.to_le_bytes());
        assert_eq!(read(&mut root, 4, 4), [0xff; 4], "{address:#x}");
        root.write(4, &[0; 4]);
    }
}

#[test]
fn one_address_takes_one_function() {
    let (mut root, card, mover) = bus();
    let error = root.add(PciAddress::HOST_BRIDGE, card, mover).unwrap_err();
    assert_eq!(error.to_string(), "PCI address 0000:00:00.0 is taken already");
}

#[test]
fn a_bar_that_linux_sizes_and_puts_back_does_not_move() {
    let (mut root, _, mover) = bus();
    write_register(&mut root, 0x04, 2);
    write_register(&mut root, 0x04, 0);
    write_register(&mut root, 0x10, u32::MAX);
    select(&mut root, 3, 0x10);
    assert_eq!(read(&mut root, 4, 4), 0xffff_8004u32.to_le_bytes());
    write_register(&mut root, 0x10, BASE as u32);
    write_register(&mut root, 0x14, u32::MAX);
    write_register(&mut root, 0x14, 0);
    write_register(&mut root, 0x04, 2);
    assert_eq!(*mover.moves.lock().unwrap(), []);
}

#[test]
fn a_moved_bar_is_reported_once_and_then_is_where_the_guest_put_it() {
    let (mut root, card, mover) = bus();
    write_register(&mut root, 0x10, 0xd000_0000);
    write_register(&mut root, 0x14, 0x10);
    write_register(&mut root, 0x04, 2);
    write_register(&mut root, 0x04, 6);
    let new = 0x10_d000_0000;
    assert_eq!(*mover.moves.lock().unwrap(), [BarMove { bar: BarIndex::Registers, old: BASE, new, size: SIZE }]);
    assert_eq!(card.lock().unwrap().bar.base(), new);
}

#[test]
fn a_bar_whose_move_the_vmm_refuses_stays() {
    let (mut root, card, mover) = bus();
    write_register(&mut root, 0x04, 2);
    write_register(&mut root, 0x10, 0xdead_0000);
    assert_eq!(card.lock().unwrap().bar.base(), BASE);
    write_register(&mut root, 0x10, 0xd000_0000);
    assert_eq!(
        *mover.moves.lock().unwrap(),
        [BarMove { bar: BarIndex::Registers, old: BASE, new: 0xd000_0000, size: SIZE }]
    );
}

proptest! {
    #[test]
    fn no_access_panics(
        accesses in prop::collection::vec((any::<bool>(), 0u64..16, prop::collection::vec(any::<u8>(), 0..9)), 0..64),
        device in 0u32..5,
        register in 0u32..256,
    ) {
        let (mut root, ..) = bus();
        for (is_write, offset, mut data) in accesses {
            select(&mut root, device, register);
            if is_write { root.write(offset, &data) } else { root.read(offset, &mut data) }
        }
        select(&mut root, 3, 0);
        prop_assert_eq!(read(&mut root, 4, 4), vec![0x34, 0x12, 0x78, 0x56]);
    }
}
