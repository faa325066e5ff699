//! Random messages: whatever arrives is answered, and nothing outside of the share changes.

use fuse_backend_rs::abi::fuse_abi::Opcode;

use super::harness::{ALL_FLAGS, Guest, ROOT};
use crate::virtio::fs::constants::opcode;

/// xorshift64: the same messages in every run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// One of these.
    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Mostly small numbers, some that are known to the guest, some extreme.
    fn word(&mut self, known: &[u64]) -> u64 {
        match self.below(4) {
            0 => known[self.below(known.len() as u64) as usize],
            1 => self.below(16),
            2 => [u64::MAX, 1 << 63, u64::from(u32::MAX), 1 << 20][self.below(4) as usize],
            _ => self.next(),
        }
    }
}

#[test]
fn any_message_is_answered_and_the_device_lives_on() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("untouched"), "untouched").unwrap();
    let mut guest = Guest::new();
    std::fs::create_dir(guest.path("dir")).unwrap();
    std::fs::write(guest.path("file"), "data").unwrap();
    std::os::unix::fs::symlink(outside.path(), guest.path("out")).unwrap();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for _ in 0..4000 {
        let (dir, file, out) = (guest.lookup(ROOT, "dir"), guest.lookup(ROOT, "file"), guest.lookup(ROOT, "out"));
        let mut known = vec![ROOT, 2, 3];
        known.extend([dir, file, out].into_iter().flatten().map(|entry| entry.nodeid));
        let code = random.below(56) as u32;
        if [opcode::FORGET, opcode::BATCH_FORGET, opcode::INTERRUPT, opcode::NOTIFY_REPLY].contains(&code) {
            continue;
        }
        let node = random.word(&known);
        let mut body = Vec::new();
        for _ in 0..random.below(8) {
            body.extend(random.word(&known).to_le_bytes());
        }
        for _ in 0..random.below(3) {
            body.extend(
                [&b"dir\0"[..], b"file\0", b"out\0", b"..\0", b"new\0", b"a/b\0", b"\0", b"user.x\0"]
                    [random.below(8) as usize],
            );
        }
        let room = [0, 16, 200, 4096][random.below(4) as usize];
        // Large sizes are the guest's right; the reply buffer bounds them.
        let _ = guest.request_with_room(code, node, &body, room);
        if code == Opcode::Destroy as u32 || code == opcode::INIT {
            guest.init(ALL_FLAGS).unwrap();
        }
    }
    guest.assert_alive();
    assert_eq!(std::fs::read(outside.path().join("untouched")).unwrap(), b"untouched");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}
