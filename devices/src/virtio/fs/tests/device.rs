//! What the transport sees of the device, and its threads.

use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::{GetattrIn, Opcode};
use vm_memory::ByteValued;

use super::harness::{ALL_FLAGS, Guest, ROOT, check, has_handles};
use crate::virtio::fs::{FsConfig, FsDevice, FsError, Tag};
use crate::virtio::test_support::{FakeDriver, readable, writable};
use crate::virtio::{ActivateError, DeviceType, VirtioDevice};

const EVENT_IDX: u64 = 1 << 29;
const INDIRECT_DESC: u64 = 1 << 28;

fn config(tag: &str, dir: &std::path::Path) -> FsConfig {
    FsConfig::new(Tag::new(tag).unwrap(), dir)
}

#[test]
fn configuration_space_holds_the_tag_and_the_number_of_request_queues() {
    let dir = tempfile::tempdir().unwrap();
    let device = FsDevice::new(FsConfig { request_queues: 3, ..config("myfs1", dir.path()) }).unwrap();
    let mut space = [0xee; 48];
    device.read_config(0, &mut space);
    assert_eq!(&space[..6], b"myfs1\0");
    assert_eq!(&space[36..40], &3u32.to_le_bytes());
    assert_eq!(&space[40..], &[0; 8], "bytes past the end read as zero");
    let mut byte = [0xee];
    device.read_config(36, &mut byte);
    assert_eq!(byte, [3]);
    for offset in [40, u64::MAX] {
        let mut word = [0xee; 4];
        device.read_config(offset, &mut word);
        assert_eq!(word, [0; 4]);
    }
    assert_eq!(device.name(), "fs[myfs1]");
    assert_eq!(device.device_type(), DeviceType::Fs);
    assert_eq!(device.queue_max_sizes(), &[1024; 4]);
    assert_eq!(device.device_features(), EVENT_IDX | INDIRECT_DESC);
}

#[test]
fn a_share_that_cannot_be_served_is_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for bad in [dir.path().join("missing"), file] {
        let Err(error) = FsDevice::new(config("myfs1", &bad)) else { panic!("{bad:?} was shared") };
        assert!(matches!(&error, FsError::SharedDir { path, tag, .. } if *path == bad && tag == "myfs1"));
        assert!(error.to_string().contains("as myfs1"), "{error}");
    }
    for queues in [0, 65, u16::MAX] {
        let bad = FsConfig { request_queues: queues, ..config("myfs1", dir.path()) };
        assert!(matches!(FsDevice::new(bad), Err(FsError::RequestQueues { .. })));
    }
}

#[test]
fn a_driver_that_leaves_out_a_needed_queue_is_told_which() {
    let dir = tempfile::tempdir().unwrap();
    let mut device = FsDevice::new(FsConfig { request_queues: 2, ..config("myfs1", dir.path()) }).unwrap();
    let mut driver = FakeDriver::new(&[64; 3]);
    for (enabled, missing) in [(&[1u16, 2][..], 0), (&[0, 2][..], 1), (&[][..], 0)] {
        let error = device.activate(driver.activation_with(EVENT_IDX, enabled)).unwrap_err();
        assert!(matches!(error, ActivateError::MissingQueue(queue) if queue == missing), "{error}");
    }
    // A guest with one CPU enables one request queue.
    device.activate(driver.activation_with(EVENT_IDX, &[0, 1])).unwrap();
}

#[test]
fn workers_are_named_after_tag_and_queue() {
    let dir = tempfile::tempdir().unwrap();
    let mut device = FsDevice::new(config("a-rather-long-tag", dir.path())).unwrap();
    let mut driver = FakeDriver::new(&[64; 2]);
    device.activate(driver.activation(EVENT_IDX)).unwrap();
    let names = || -> Vec<String> {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let comm = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
        tasks.filter_map(|task| comm(task.unwrap())).map(|name| name.trim().to_owned()).collect()
    };
    // A thread names itself when it starts.
    let deadline = Instant::now() + Duration::from_secs(20);
    for expected in ["fs[a-rather] q0", "fs[a-rather] q1"] {
        while !names().iter().any(|name| name == expected) {
            assert!(Instant::now() < deadline, "no thread {expected:?} in {:?}", names());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    device.reset();
    assert!(!names().iter().any(|name| name.starts_with("fs[a-rather]")));
}

#[test]
fn chains_made_available_before_the_activation_are_served() {
    let mut guest = Guest::new();
    guest.device.reset();
    guest.driver.reset_queues();
    let header = guest.header(Opcode::Getattr as u32, ROOT, 16);
    let request = [header.as_slice(), GetattrIn::default().as_slice()].concat();
    guest.driver.queue(1).add(&[readable(request), writable(200)]);
    let features = guest.device.device_features();
    guest.device.activate(guest.driver.activation(features)).unwrap();
    let used = guest.driver.queue(1).wait_used(Duration::from_secs(20)).unwrap();
    assert_eq!(used.len, 16, "refused, since the reset ended the session");
}

/// Sends `count` GETATTRs with one kick and waits for all of them.
fn batch(guest: &mut Guest, count: usize) {
    let mut chains = Vec::new();
    for _ in 0..count {
        let header = guest.header(Opcode::Getattr as u32, ROOT, 16);
        let request = [header.as_slice(), GetattrIn::default().as_slice()].concat();
        chains.push((header.unique, guest.driver.queue(1).add(&[readable(request), writable(200)])));
    }
    guest.driver.queue(1).kick();
    for (unique, chain) in chains {
        let used = guest.driver.queue(1).wait_used(Duration::from_secs(20)).unwrap();
        assert_eq!(used.head, chain.head, "one queue is served in order");
        let data = guest.driver.queue(1).written(&chain);
        check(&crate::virtio::test_support::Reply { len: used.len, data }, unique).unwrap();
        guest.driver.queue(1).free_buffers(&chain);
    }
}

#[test]
fn without_event_idx_a_batch_is_signalled_at_least_once_and_less_than_per_request() {
    let mut guest = Guest::new();
    guest.device.reset();
    guest.driver.reset_queues();
    guest.device.activate(guest.driver.activation(INDIRECT_DESC)).unwrap();
    guest.init(ALL_FLAGS).unwrap();
    let before = guest.driver.interrupt().used_signals(1);
    batch(&mut guest, 200);
    assert!(guest.driver.interrupt().wait_used_signals(1, before + 1, Duration::from_secs(20)));
    assert!(guest.driver.interrupt().used_signals(1) - before < 100);
}

#[test]
fn with_event_idx_a_driver_that_does_not_want_to_know_is_not_signalled() {
    let mut guest = Guest::new();
    // Used index 0 has been passed; far ahead means "not now".
    let before = guest.driver.interrupt().used_signals(1);
    let far = guest.driver.queue(1).device_used_idx().wrapping_add(30000);
    guest.driver.queue(1).set_used_event(far);
    let header = guest.header(Opcode::Getattr as u32, ROOT, 16);
    let request = [header.as_slice(), GetattrIn::default().as_slice()].concat();
    let used_before = guest.driver.queue(1).device_used_idx();
    guest.driver.queue(1).add(&[readable(request), writable(200)]);
    guest.driver.queue(1).kick();
    let deadline = Instant::now() + Duration::from_secs(20);
    while guest.driver.queue(1).device_used_idx() == used_before {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    guest.device.reset();
    assert_eq!(guest.driver.interrupt().used_signals(1), before);
}

#[test]
fn more_requests_than_the_queue_is_long_are_all_served() {
    let mut guest = Guest::new();
    for _ in 0..10 {
        batch(&mut guest, 400);
    }
    guest.assert_alive();
}

#[test]
fn queues_are_served_in_parallel() {
    let mut guest = Guest::with(|config| config.request_queues = 4);
    std::fs::write(guest.path("a"), "x").unwrap();
    let node = guest.node("a");
    let Guest { device, driver, .. } = guest;
    let queues = driver.into_queues();
    std::thread::scope(|scope| {
        for mut queue in queues {
            scope.spawn(move || {
                for unique in 1..300u64 {
                    let header = fuse_backend_rs::abi::fuse_abi::InHeader {
                        len: 56,
                        opcode: Opcode::Getattr as u32,
                        unique,
                        nodeid: node,
                        ..Default::default()
                    };
                    let request = [header.as_slice(), GetattrIn::default().as_slice()].concat();
                    check(&queue.request(&[readable(request), writable(200)]), unique).unwrap();
                }
            });
        }
    });
    drop(device);
}

#[test]
fn a_reset_at_any_moment_stops_everything_and_the_device_starts_again() {
    let mut guest = Guest::new();
    std::fs::write(guest.path("a"), vec![7; 1 << 20]).unwrap();
    let features = guest.device.device_features();
    for round in 0..30u64 {
        let node = guest.node("a");
        let handle = guest.open(node, libc::O_RDWR).unwrap();
        // Reads and FORGETs in flight, without waiting for any.
        for _ in 0..8 {
            let read = fuse_backend_rs::abi::fuse_abi::ReadIn { fh: handle, size: 1 << 18, ..Default::default() };
            let header = guest.header(Opcode::Read as u32, node, size_of_val(&read));
            let segments = [readable(header.as_slice()), readable(read.as_slice()), writable(16), writable(1 << 18)];
            guest.driver.queue(1).add(&segments);
            let header = guest.header(Opcode::Forget as u32, node, 8);
            guest.driver.queue(0).add(&[readable(header.as_slice()), readable(1u64.to_le_bytes())]);
        }
        guest.driver.queue(1).kick();
        guest.driver.queue(0).kick();
        std::thread::sleep(Duration::from_micros(round * 37));
        guest.device.reset();
        let used = guest.driver.queue(1).device_used_idx();
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(guest.driver.queue(1).device_used_idx(), used, "nothing is touched after a reset");
        guest.driver.reset_queues();
        guest.device.activate(guest.driver.activation(features)).unwrap();
        guest.init(ALL_FLAGS).unwrap();
    }
    guest.assert_alive();
}

#[test]
fn a_reset_closes_what_the_guest_had_open() {
    let mut guest = Guest::new();
    // Found by where they point, since other tests open files at the same time.
    let open = |guest: &Guest| {
        let links =
            std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        links.filter(|link| link.starts_with(guest.dir.path())).count()
    };
    // The root, and where file handles work once more to open them in.
    let root = 1 + usize::from(has_handles());
    assert_eq!(open(&guest), root);
    guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    assert_eq!(open(&guest), root + 2, "a node and a handle");
    guest.device.reset();
    assert_eq!(open(&guest), root);
    guest.device.reset();
}
