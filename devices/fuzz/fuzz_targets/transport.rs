//! Virtqueues as only a hostile driver lays them out. An input is
//!
//! ```text
//! count u8, `count` times a descriptor (address u32, length u16, flags u8, next u8), heads u8, `heads` times a head u8,
//! then what lies at the addresses
//! ```
//!
//! An address is in the page of the input's rest, a little below or above it, or at the end of guest memory.

#![no_main]

use std::time::{Duration, Instant};

use devices::virtio::VirtioDevice;
use devices::virtio::fs::{FsConfig, FsDevice, Tag};
use devices::virtio::test_support::{FakeDriver, MEMORY_SIZE, RawDescriptor, readable, writable};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use vm_memory::GuestAddress;

/// Where the input's rest lies: far from the queues, which the fake driver lays out from the start.
const DATA: u64 = MEMORY_SIZE / 2;
const SIZE: u16 = 64;

fn address(raw: u32) -> u64 {
    let offset = u64::from(raw & 0xffff);
    match raw >> 30 {
        0 | 1 => DATA + offset,
        2 => MEMORY_SIZE - offset,
        _ => u64::from(raw) << 33 | offset,
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((count, rest)) = input.split_first() else { return };
    let (table, rest) = rest.split_at((usize::from(*count) * 8).min(rest.len()));
    let Some((heads, rest)) = rest.split_first() else { return };
    let (heads, data) = rest.split_at(usize::from(*heads).min(rest.len()));

    let dir = TempDir::with_prefix("fuzz-fs-").unwrap();
    std::fs::write(dir.path().join("file"), "data").unwrap();
    let mut device = FsDevice::new(FsConfig::new(Tag::new("fuzz").unwrap(), dir.path())).unwrap();
    let mut driver = FakeDriver::new(&[SIZE, SIZE]);
    let features = device.device_features();
    device.activate(driver.activation(features)).unwrap();
    // A session, so that requests are served.
    let mut init = vec![0; 104];
    for (at, word) in [(0, 104u32), (4, 26), (8, 2), (40, 7), (44, 45), (48, 4096), (52, u32::MAX), (56, u32::MAX)] {
        init[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    assert_eq!(driver.queue(1).request(&[readable(init), writable(200)]).len, 80);

    driver.write(GuestAddress(DATA), &data[..data.len().min(1 << 16)]);
    for (index, raw) in (0..SIZE).zip(table.chunks_exact(8)) {
        let descriptor = RawDescriptor {
            address: address(u32::from_le_bytes(raw[..4].try_into().unwrap())),
            len: u16::from_le_bytes([raw[4], raw[5]]).into(),
            flags: raw[6].into(),
            next: raw[7].into(),
        };
        driver.queue(1).write_descriptor(index, descriptor);
    }
    let before = driver.queue(1).device_used_idx();
    for head in heads.iter().take(usize::from(SIZE)) {
        driver.queue(1).make_available(u16::from(*head));
    }
    driver.queue(1).kick();
    let wanted = heads.len().min(usize::from(SIZE)) as u16;
    let begun = Instant::now();
    while driver.queue(1).device_used_idx().wrapping_sub(before) != wanted && driver.interrupt().failures().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10), "a chain was neither returned nor complained about");
        std::thread::sleep(Duration::from_micros(50));
    }
    let failures = driver.interrupt().failures().len();
    device.reset();
    assert!(begun.elapsed() < Duration::from_secs(15));
    assert_eq!(driver.interrupt().failures().len(), failures, "a worker did not stop");
    // And it starts again.
    driver.reset_queues();
    device.activate(driver.activation(features)).unwrap();
});
