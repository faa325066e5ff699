//! Slots that one thread writes and any thread reads, without a lock: a reader takes what it can have whole, the writer
//! never waits.
//!
//! Each slot is a sequence lock. What is in it is atomic words, so that a torn read is noticed instead of undefined.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// 64-bit words of a record.
pub(super) const WORDS: usize = 23;

/// A record as it lies in a slot.
pub(super) type Words = [u64; WORDS];

/// How many times a reader tries to get a slot that is being written.
const TRIES: usize = 100;

/// What is in a slot: the low bits of its sequence number, the rest is the position.
const WRITING: u64 = 1;
const OPEN: u64 = 2;
const CLOSED: u64 = 3;

struct Slot {
    /// Position << 2 | state; 0: never used.
    sequence: AtomicU64,
    words: [AtomicU64; WORDS],
}

/// The last records of one writer, and the one that it is about.
pub(super) struct Ring {
    slots: Box<[Slot]>,
    /// The position of the record that is open or will be next. Positions count up from 0 and never come again.
    next: AtomicU64,
}

impl Ring {
    /// Room for so many records, at least one.
    pub(super) fn new(slots: usize) -> Self {
        let slot = || Slot { sequence: AtomicU64::new(0), words: std::array::from_fn(|_| AtomicU64::new(0)) };
        Ring { slots: (0..slots.max(1)).map(|_| slot()).collect(), next: AtomicU64::new(0) }
    }

    fn slot(&self, position: u64) -> Option<&Slot> {
        let len = u64::try_from(self.slots.len()).unwrap_or(1);
        self.slots.get(usize::try_from(position % len).unwrap_or(0))
    }

    /// Where the next record will be: all before it are closed, and some of those still there.
    pub(super) fn next(&self) -> u64 {
        self.next.load(Ordering::Acquire)
    }

    /// How many records there is room for.
    pub(super) fn len(&self) -> u64 {
        u64::try_from(self.slots.len()).unwrap_or(u64::MAX)
    }

    fn write(&self, state: u64, words: impl IntoIterator<Item = (usize, u64)>) {
        let position = self.next.load(Ordering::Relaxed);
        let Some(slot) = self.slot(position) else { return };
        slot.sequence.store(position << 2 | WRITING, Ordering::Relaxed);
        fence(Ordering::Release);
        for (index, word) in words {
            if let Some(to) = slot.words.get(index) {
                to.store(word, Ordering::Relaxed);
            }
        }
        slot.sequence.store(position << 2 | state, Ordering::Release);
    }

    /// Begins a record of which only these words are known. The one that was open is gone.
    pub(super) fn open(&self, words: impl IntoIterator<Item = (usize, u64)>) {
        self.write(OPEN, words);
    }

    /// Completes the record that is open.
    pub(super) fn close(&self, words: impl IntoIterator<Item = (usize, u64)>) {
        self.write(CLOSED, words);
        self.next.fetch_add(1, Ordering::Release);
    }

    /// A word of the record that is open. For the writer: nobody else knows how long it is that.
    pub(super) fn open_word(&self, index: usize) -> u64 {
        let word = self.slot(self.next.load(Ordering::Relaxed)).and_then(|slot| slot.words.get(index));
        word.map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// Gives the record that is open up and returns it.
    pub(super) fn withdraw(&self) -> Option<Words> {
        let words = self.opened();
        let slot = self.slot(self.next.load(Ordering::Relaxed))?;
        slot.sequence.store(0, Ordering::Release);
        words
    }

    /// The record that is open.
    pub(super) fn opened(&self) -> Option<Words> {
        self.read(self.next(), OPEN)
    }

    /// A closed record, if it was not overwritten yet.
    pub(super) fn closed(&self, position: u64) -> Option<Words> {
        self.read(position, CLOSED)
    }

    fn read(&self, position: u64, state: u64) -> Option<Words> {
        let slot = self.slot(position)?;
        for _ in 0..TRIES {
            let before = slot.sequence.load(Ordering::Acquire);
            if before == position << 2 | WRITING {
                std::hint::spin_loop();
                continue;
            }
            if before != position << 2 | state {
                return None;
            }
            let words =
                std::array::from_fn(|index| slot.words.get(index).map_or(0, |word| word.load(Ordering::Relaxed)));
            fence(Ordering::Acquire);
            if slot.sequence.load(Ordering::Relaxed) == before {
                return Some(words);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn all(value: u64) -> impl Iterator<Item = (usize, u64)> {
        (0..WORDS).map(move |index| (index, value))
    }

    #[test]
    fn the_last_records_are_kept_and_older_ones_are_gone() {
        let ring = Ring::new(4);
        assert_eq!((ring.next(), ring.opened(), ring.closed(0)), (0, None, None));
        for value in 0..10 {
            ring.open(all(value));
            assert_eq!((ring.opened(), ring.open_word(3)), (Some([value; WORDS]), value));
            assert_eq!(ring.closed(value), None, "not yet");
            ring.close([(0, value + 100)]);
        }
        assert_eq!((ring.next(), ring.opened()), (10, None));
        let kept: Vec<_> =
            (0..10).filter_map(|position| ring.closed(position)).map(|words| words[..2].to_vec()).collect();
        assert_eq!(kept, [[106, 6], [107, 7], [108, 8], [109, 9]]);
    }

    #[test]
    fn a_withdrawn_record_leaves_its_place_to_the_next() {
        let ring = Ring::new(4);
        ring.open(all(1));
        assert_eq!(ring.withdraw(), Some([1; WORDS]));
        assert_eq!((ring.opened(), ring.closed(0), ring.next()), (None, None, 0));
        ring.open(all(2));
        ring.close([]);
        assert_eq!((ring.closed(0), ring.next()), (Some([2; WORDS]), 1));
    }

    #[test]
    fn a_reader_beside_the_writer_never_sees_half_a_record() {
        let (ring, end) = (Ring::new(8), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for value in 0..200_000 {
                    ring.open(all(value));
                    ring.close(all(value));
                }
                end.store(true, Ordering::Relaxed);
            });
            let mut seen = 0;
            while !end.load(Ordering::Relaxed) || seen == 0 {
                let next = ring.next();
                for position in next.saturating_sub(8)..next {
                    let Some(words) = ring.closed(position) else { continue };
                    assert_eq!(words, [position; WORDS]);
                    seen += 1;
                }
            }
        });
    }
}
