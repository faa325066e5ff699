use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use proptest::prelude::*;

use super::*;
use crate::pci::msi::recording::{MsiEvent, RecordingVectors};

const ENABLE: u16 = CONTROL_ENABLE;

fn entry(address: u64, data: u32, control: u32) -> Vec<u8> {
    [&address.to_le_bytes()[..], &data.to_le_bytes(), &control.to_le_bytes()].concat()
}

fn write_entry(msix: &Msix, vector: u64, address: u64, data: u32, control: u32) {
    for (field, word) in entry(address, data, control).chunks(4).enumerate() {
        msix.write_table(vector * 16 + 4 * field as u64, word).unwrap();
    }
}

fn pending(msix: &Msix) -> u8 {
    let mut byte = [0];
    msix.read_pending(0, &mut byte);
    byte[0]
}

fn msix(count: u16) -> (Msix, Arc<RecordingVectors>) {
    let vectors = Arc::new(RecordingVectors::default());
    (Msix::new(vectors.clone(), count), vectors)
}

const MESSAGE: MsiMessage = MsiMessage { address: 0x1_fee0_1000, data: 0x4021 };

#[test]
fn after_reset_every_entry_is_masked_and_nothing_is_sent() {
    let (msix, vectors) = msix(3);
    let mut table = [0xff; 48];
    msix.read_table(0, &mut table);
    assert_eq!(table.chunks(16).collect::<Vec<_>>(), [&entry(0, 0, 1)[..]; 3]);
    msix.write_control(ENABLE).unwrap();
    msix.signal(0).unwrap();
    assert_eq!(vectors.events(), []);
    assert_eq!(pending(&msix), 1);
}

#[test]
fn an_unmasked_vector_is_routed_once_and_sent() {
    let (msix, vectors) = msix(2);
    msix.write_control(ENABLE).unwrap();
    write_entry(&msix, 1, MESSAGE.address, MESSAGE.data, 0);
    msix.signal(1).unwrap();
    assert_eq!(vectors.events(), [MsiEvent::Enable(1, MESSAGE), MsiEvent::Trigger(1)]);
}

#[test]
fn linux_sets_up_vectors_with_the_function_masked() {
    let (msix, vectors) = msix(2);
    msix.write_control(ENABLE | CONTROL_FUNCTION_MASK).unwrap();
    write_entry(&msix, 0, MESSAGE.address, MESSAGE.data, 0);
    assert_eq!(vectors.events(), []);
    msix.write_control(ENABLE).unwrap();
    assert_eq!(vectors.events(), [MsiEvent::Enable(0, MESSAGE)]);
}

#[test]
fn a_signal_to_a_masked_vector_is_pending_and_sent_once_when_it_is_unmasked() {
    let (msix, vectors) = msix(2);
    msix.write_control(ENABLE).unwrap();
    write_entry(&msix, 1, MESSAGE.address, MESSAGE.data, 1);
    msix.signal(1).unwrap();
    msix.signal(1).unwrap();
    assert_eq!(pending(&msix), 0b10);
    msix.write_table(16 + 12, &0u32.to_le_bytes()).unwrap();
    assert_eq!(vectors.events(), [MsiEvent::Enable(1, MESSAGE), MsiEvent::Trigger(1)]);
    assert_eq!(pending(&msix), 0);
}

#[test]
fn the_function_mask_holds_signals_back_until_it_is_cleared() {
    let (msix, vectors) = msix(2);
    msix.write_control(ENABLE).unwrap();
    write_entry(&msix, 0, MESSAGE.address, MESSAGE.data, 0);
    msix.write_control(ENABLE | CONTROL_FUNCTION_MASK).unwrap();
    msix.signal(0).unwrap();
    assert_eq!(pending(&msix), 1);
    msix.write_control(ENABLE).unwrap();
    let expected =
        [MsiEvent::Enable(0, MESSAGE), MsiEvent::Disable(0), MsiEvent::Enable(0, MESSAGE), MsiEvent::Trigger(0)];
    assert_eq!(vectors.events(), expected);
}

#[test]
fn a_changed_message_of_an_unmasked_entry_is_routed_anew() {
    let (msix, vectors) = msix(1);
    msix.write_control(ENABLE).unwrap();
    write_entry(&msix, 0, MESSAGE.address, MESSAGE.data, 0);
    msix.write_table(8, &7u32.to_le_bytes()).unwrap();
    msix.write_table(8, &7u32.to_le_bytes()).unwrap();
    let changed = MsiMessage { data: 7, ..MESSAGE };
    assert_eq!(vectors.events(), [MsiEvent::Enable(0, MESSAGE), MsiEvent::Enable(0, changed)]);
    msix.signal(0).unwrap();
    assert_eq!(vectors.events().last(), Some(&MsiEvent::Trigger(0)));
}

#[test]
fn turning_msix_off_drops_what_was_pending() {
    let (msix, vectors) = msix(1);
    msix.write_control(ENABLE).unwrap();
    msix.signal(0).unwrap();
    msix.write_control(0).unwrap();
    msix.signal(0).unwrap();
    assert_eq!(pending(&msix), 0);
    msix.write_control(ENABLE).unwrap();
    write_entry(&msix, 0, MESSAGE.address, MESSAGE.data, 0);
    assert_eq!(vectors.events(), [MsiEvent::Enable(0, MESSAGE)]);
}

#[test]
fn eight_byte_writes_count_and_odd_ones_do_not() {
    let (msix, vectors) = msix(1);
    msix.write_control(ENABLE).unwrap();
    msix.write_table(0, &MESSAGE.address.to_le_bytes()).unwrap();
    for (offset, len) in [(0, 1), (0, 2), (2, 4), (4, 8), (13, 1), (6, 2), (0, 0)] {
        msix.write_table(offset, &[0xff; 8][..len]).unwrap();
    }
    msix.write_table(8, &u64::from(MESSAGE.data).to_le_bytes()).unwrap();
    assert_eq!(vectors.events(), [MsiEvent::Enable(0, MESSAGE)]);
}

#[test]
fn a_vector_past_the_table_is_dropped() {
    let (msix, vectors) = msix(1);
    msix.signal(1).unwrap();
    msix.signal(NO_VECTOR).unwrap();
    msix.write_table(16, &[0; 4]).unwrap();
    msix.write_table(u64::MAX - 3, &[0; 4]).unwrap();
    let mut data = [1; 4];
    msix.read_table(u64::MAX, &mut data);
    msix.read_pending(u64::MAX, &mut data);
    assert_eq!((data, vectors.events()), ([0; 4], vec![]));
}

#[test]
fn a_route_that_cannot_be_installed_is_an_error_and_the_vector_stays_masked() {
    let (msix, vectors) = msix(1);
    msix.write_control(ENABLE).unwrap();
    vectors.refuse(true);
    assert!(msix.write_table(12, &0u32.to_le_bytes()).is_err());
    msix.signal(0).unwrap();
    assert_eq!((vectors.events(), pending(&msix)), (vec![], 1));
}

/// Delivers only while enabled, as an irqfd does. The first trigger comes too late: between the decision to send and the
/// delivery the guest masks the vector, and unmasks it too if `unmask` is set.
#[derive(Default)]
struct Late {
    msix: OnceLock<Arc<Msix>>,
    unmask: bool,
    open: AtomicBool,
    triggers: AtomicUsize,
    delivered: AtomicUsize,
}

impl MsiVectors for Late {
    fn enable(&self, _vector: u16, _message: MsiMessage) -> io::Result<()> {
        self.open.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn disable(&self, _vector: u16) -> io::Result<()> {
        self.open.store(false, Ordering::SeqCst);
        Ok(())
    }
    fn trigger(&self, _vector: u16) -> io::Result<()> {
        if self.triggers.fetch_add(1, Ordering::SeqCst) == 0 {
            let msix = self.msix.get().unwrap();
            msix.write_table(12, &1u32.to_le_bytes())?;
            if self.unmask {
                msix.write_table(12, &0u32.to_le_bytes())?;
            }
            return Ok(());
        }
        if self.open.load(Ordering::SeqCst) {
            self.delivered.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

#[test]
fn a_signal_is_not_lost_when_its_vector_is_masked_while_it_is_sent() {
    for unmask in [false, true] {
        let late = Arc::new(Late { unmask, ..Late::default() });
        let msix = Arc::new(Msix::new(late.clone(), 1));
        late.msix.get_or_init(|| msix.clone());
        msix.write_control(ENABLE).unwrap();
        msix.write_table(12, &0u32.to_le_bytes()).unwrap();
        msix.signal(0).unwrap();
        assert_eq!(late.delivered.load(Ordering::SeqCst), usize::from(unmask));
        assert_eq!(pending(&msix), u8::from(!unmask));
        msix.write_table(12, &0u32.to_le_bytes()).unwrap();
        assert_eq!((late.delivered.load(Ordering::SeqCst), pending(&msix)), (1, 0));
    }
}

proptest! {
    #[test]
    fn random_writes_never_panic_and_the_table_reads_back(
        writes in prop::collection::vec((0u64..80, prop::collection::vec(any::<u8>(), 0..9), any::<u16>()), 0..64)
    ) {
        let (msix, _) = msix(4);
        for (offset, data, control) in writes {
            msix.write_table(offset, &data).unwrap();
            msix.write_control(control).unwrap();
            msix.signal(control % 6).unwrap();
            if data.len() == 4 && offset % 16 == 8 && offset < 64 {
                let mut back = [0; 4];
                msix.read_table(offset, &mut back);
                prop_assert_eq!(&back[..], &data[..]);
            }
        }
    }
}
