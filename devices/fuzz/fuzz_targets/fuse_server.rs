//! FUSE messages from a hostile guest. An input is a list of requests:
//!
//! ```text
//! opcode u8, node u8, options u8, length u8, then `length` bytes of body
//! ```
//!
//! A node below 128 is one of those that the server has told of so far, the root first, any other is a number that it
//! never gave out. Options: 1 puts a handle that is open over the body's first eight bytes, 2 leaves room for a header
//! only, 4 lies about the length, 8 says that the last 8 bytes are extensions, 16 asks as an ordinary user.

#![no_main]

use std::fs;
use std::path::Path;

use devices::virtio::VirtioDevice;
use devices::virtio::fs::{FsConfig, FsDevice, Tag};
use devices::virtio::test_support::{FakeDriver, readable, writable};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

const LOOKUP: u8 = 1;
const WITHOUT_REPLY: [u8; 4] = [2, 36, 41, 42];
const INIT: u8 = 26;
const SETLKW: u8 = 33;
const DESTROY: u8 = 38;
const FALLOCATE: u8 = 43;
/// Their replies begin with an entry, so with a node id; CREATE's and TMPFILE's go on with a handle.
const MAKE_NODES: [u8; 7] = [LOOKUP, 6, 8, 9, 13, CREATE, TMPFILE];
const CREATE: u8 = 35;
const TMPFILE: u8 = 51;
/// Their replies begin with a handle.
const MAKE_HANDLES: [u8; 2] = [14, 27];
const OUT_HEADER: usize = 16;
const ENTRY: usize = 128;

struct Guest {
    driver: FakeDriver,
    unique: u64,
    nodes: Vec<u64>,
    handles: Vec<u64>,
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

impl Guest {
    /// Sends one request and checks what must hold for every reply.
    fn request(&mut self, opcode: u8, node: u64, options: u8, mut body: Vec<u8>) {
        self.unique += 2;
        if options & 1 != 0 && !self.handles.is_empty() && body.len() >= 8 {
            let handle = self.handles[usize::from(body[0]) % self.handles.len()];
            body[..8].copy_from_slice(&handle.to_le_bytes());
        }
        if opcode == FALLOCATE && body.len() >= 24 {
            // Offset and length: no more than 16 MiB of the disk.
            body[8..16].iter_mut().skip(3).for_each(|byte| *byte = 0);
            body[16..24].iter_mut().skip(3).for_each(|byte| *byte = 0);
        }
        let lie = if options & 4 != 0 { 24 } else { 0 };
        let length = 40 + body.len() as u32 + lie;
        let id = if options & 16 != 0 { 1000u32 } else { 0 };
        let extensions = u32::from(options & 8 != 0 && body.len() >= 8);
        let mut message = Vec::with_capacity(64 + body.len());
        message.extend(length.to_le_bytes());
        message.extend(u32::from(opcode).to_le_bytes());
        message.extend(self.unique.to_le_bytes());
        message.extend(node.to_le_bytes());
        message.extend([id, id, 42, extensions].iter().flat_map(|word| word.to_le_bytes()));
        message.extend(&body);
        let room = if options & 2 != 0 { OUT_HEADER } else { 4096 };
        let reply = self.driver.queue(1).request(&[readable(message), writable(room as u32)]);
        if WITHOUT_REPLY.contains(&opcode) {
            return assert_eq!(reply.len, 0);
        }
        let len = u32::from_le_bytes(reply.data[..4].try_into().unwrap());
        let error = i32::from_le_bytes(reply.data[4..8].try_into().unwrap());
        assert_eq!(reply.len, len, "used length and reply length differ");
        assert_eq!(word(&reply.data, 8), Some(self.unique), "a reply to another request");
        assert!((-4095..=0).contains(&error), "no errno: {error}");
        assert!(error == 0 || len as usize == OUT_HEADER, "an error has no body");
        if error == 0 {
            self.learn(opcode, &reply.data[OUT_HEADER..len as usize]);
        }
    }

    fn learn(&mut self, opcode: u8, body: &[u8]) {
        if MAKE_NODES.contains(&opcode) {
            self.nodes.extend(word(body, 0).filter(|node| *node != 0));
        }
        if MAKE_HANDLES.contains(&opcode) {
            self.handles.extend(word(body, 0));
        }
        if [CREATE, TMPFILE].contains(&opcode) {
            self.handles.extend(word(body, ENTRY));
        }
    }

    fn init(&mut self) {
        self.nodes = vec![1];
        self.handles.clear();
        let flags = u32::MAX;
        let words = [7, 45, 131_072, flags, flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        self.request(INIT, 0, 0, words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect());
    }
}

/// A share with something in it, beside something that is not.
fn fill(dir: &Path) -> std::io::Result<()> {
    fs::create_dir_all(dir.join("share/dir/inner"))?;
    fs::write(dir.join("share/file"), vec![7; 10_000])?;
    fs::write(dir.join("share/dir/a"), "a")?;
    fs::write(dir.join("secret"), "secret")?;
    std::os::unix::fs::symlink("../secret", dir.join("share/link"))
}

fuzz_target!(|input: &[u8]| {
    let dir = TempDir::with_prefix("fuzz-fs-").unwrap();
    fill(dir.path()).unwrap();
    let mut config = FsConfig::new(Tag::new("fuzz").unwrap(), dir.path().join("share"));
    (config.posix_acl, config.posix_locks, config.security_context) = (true, true, true);
    let mut device = FsDevice::new(config).unwrap();
    let mut driver = FakeDriver::new(&[256, 256]);
    let features = device.device_features();
    device.activate(driver.activation(features)).unwrap();
    let mut guest = Guest { driver, unique: 0, nodes: vec![1], handles: Vec::new() };
    guest.init();
    let mut rest = input;
    while let [opcode, node, options, length, more @ ..] = rest {
        let (body, after) = more.split_at(more.len().min(usize::from(*length)));
        rest = after;
        // A wait for a lock may have no end.
        if *opcode == SETLKW {
            continue;
        }
        let id = match node {
            0..128 => guest.nodes[usize::from(*node) % guest.nodes.len()],
            _ => u64::from(*node) << 32,
        };
        guest.request(*opcode, id, *options, body.to_vec());
        if [INIT, DESTROY].contains(opcode) {
            guest.init();
        }
    }
    guest.request(LOOKUP, 1, 0, b".\0".to_vec());
    assert_eq!(guest.driver.interrupt().failures(), []);
    device.reset();
    assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something was made outside of the share");
});
