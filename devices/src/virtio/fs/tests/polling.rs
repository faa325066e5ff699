//! A worker that looks for requests before it sleeps.

use std::time::{Duration, Instant};

use fuse_backend_rs::abi::fuse_abi::{GetattrIn, Opcode};
use vm_memory::ByteValued;

use super::harness::{Guest, ROOT};
use crate::virtio::VirtioDevice;
use crate::virtio::test_support::{Chain, readable, writable};

const PATIENCE: Duration = Duration::from_secs(20);

/// Makes a GETATTR available, and tells nobody.
fn getattr_without_kick(guest: &mut Guest) -> Chain {
    let header = guest.header(Opcode::Getattr as u32, ROOT, size_of::<GetattrIn>());
    let request = [header.as_slice(), GetattrIn::default().as_slice()].concat();
    guest.driver.queue(1).add(&[readable(request), writable(200)])
}

#[test]
fn requests_that_follow_each_other_need_no_kick() {
    let mut guest = Guest::with(|config| config.poll = Duration::from_secs(3600));
    // INIT was one; the wait before the second is known when that has come.
    guest.assert_alive();
    for round in 0..100 {
        let chain = getattr_without_kick(&mut guest);
        let used = guest.driver.queue(1).wait_used(PATIENCE).unwrap_or_else(|| panic!("round {round}: not served"));
        assert_eq!(used.head, chain.head);
        // Both requests before may have been there before it looked for the first time: then it asked for this one's kick.
        let kicked = guest.driver.queue(1).kick_if_wanted();
        assert!(!kicked || round == 0, "round {round}: it looks, and wants no kick");
        guest.driver.queue(1).free_buffers(&chain);
    }
}

#[test]
fn a_worker_that_looks_stops_at_once() {
    let mut guest = Guest::with(|config| config.poll = Duration::from_secs(3600));
    guest.assert_alive();
    let began = Instant::now();
    guest.device.reset();
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
}

#[test]
fn a_worker_that_has_given_up_looking_is_kicked_awake() {
    let mut guest = Guest::with(|config| config.poll = Duration::from_millis(1));
    for _ in 0..20 {
        guest.assert_alive();
        guest.assert_alive();
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn without_polling_a_request_waits_for_its_kick() {
    let mut guest = Guest::new();
    guest.assert_alive();
    let deadline = Instant::now() + PATIENCE;
    while guest.driver.queue(1).avail_event() != guest.driver.queue(1).device_used_idx() {
        assert!(Instant::now() < deadline, "it never asked for kicks");
        std::thread::sleep(Duration::from_millis(1));
    }
    // It asks for kicks before it looks for the last time.
    std::thread::sleep(Duration::from_millis(100));
    getattr_without_kick(&mut guest);
    assert!(guest.driver.queue(1).wait_used(Duration::from_millis(100)).is_none());
    assert!(guest.driver.queue(1).kick_if_wanted());
    assert!(guest.driver.queue(1).wait_used(PATIENCE).is_some());
}
