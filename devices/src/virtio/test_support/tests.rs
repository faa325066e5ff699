use std::time::Duration;

use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use super::*;
use crate::virtio::{ActiveQueue, DeviceFailure, VirtioInterrupt};

const EVENT_IDX: u64 = 1 << 29;

/// Answers each chain in the device's queue by copying what it reads into what it may write.
fn echo(driver: &mut FakeDriver, active: &mut ActiveQueue) {
    let memory = driver.memory().memory();
    loop {
        active.queue.disable_notification(&*memory).unwrap();
        while let Some(chain) = active.queue.iter(memory.clone()).unwrap().next() {
            let input: Vec<u8> = chain
                .clone()
                .readable()
                .flat_map(|d| {
                    let mut data = vec![0; d.len() as usize];
                    memory.read_slice(&mut data, d.addr()).unwrap();
                    data
                })
                .collect();
            let target = chain.clone().writable().next().unwrap();
            memory.write_slice(&input, target.addr()).unwrap();
            active.queue.add_used(&*memory, chain.head_index(), input.len() as u32).unwrap();
        }
        if !active.queue.enable_notification(&*memory).unwrap() {
            break;
        }
    }
}

#[test]
fn a_chain_reaches_the_device_and_its_answer_comes_back() {
    let mut driver = FakeDriver::new(&[8]);
    let mut active = driver.activation(EVENT_IDX).queues.remove(0);
    let chain = driver.queue(0).add(&[readable(b"hello "), readable(b"device"), writable(64)]);
    assert!(driver.queue(0).kick_if_wanted());
    assert_eq!(active.notify.read().unwrap(), 1);
    echo(&mut driver, &mut active);
    let used = driver.queue(0).poll_used().unwrap();
    assert_eq!((used.head, used.len, used.chain.as_ref()), (chain.head, 12, Some(&chain)));
    assert_eq!(&driver.queue(0).written(&chain)[..13], b"hello device\xa5");
    assert_eq!(driver.queue(0).free_descriptors(), 8);
}

#[test]
fn indirect_chains_take_one_descriptor() {
    let mut driver = FakeDriver::new(&[2]);
    let mut active = driver.activation(EVENT_IDX).queues.remove(0);
    let chain = driver.queue(0).add_indirect(&[readable(b"a"), readable(b"b"), readable(b"c"), writable(3)]);
    assert_eq!(driver.queue(0).free_descriptors(), 1);
    echo(&mut driver, &mut active);
    assert_eq!(driver.queue(0).poll_used().unwrap().len, 3);
    assert_eq!(driver.queue(0).written(&chain), b"abc");
}

#[test]
fn the_ring_indices_wrap_and_memory_is_reused() {
    let mut driver = FakeDriver::new(&[4]);
    let mut active = driver.activation(0).queues.remove(0);
    for round in 0..66_000u32 {
        let chain = driver.queue(0).add(&[readable(round.to_le_bytes()), writable(16)]);
        echo(&mut driver, &mut active);
        assert_eq!(driver.queue(0).poll_used().unwrap().len, 4);
        assert_eq!(driver.queue(0).written(&chain)[..4], round.to_le_bytes());
        driver.queue(0).free_buffers(&chain);
    }
}

#[test]
fn with_event_idx_a_device_that_has_not_rearmed_is_not_kicked() {
    let mut driver = FakeDriver::new(&[8]);
    let mut active = driver.activation(EVENT_IDX).queues.remove(0);
    driver.queue(0).add(&[readable(b"x"), writable(1)]);
    assert!(driver.queue(0).kick_if_wanted());
    driver.queue(0).add(&[readable(b"x"), writable(1)]);
    assert!(!driver.queue(0).kick_if_wanted(), "avail_event still names the first chain");
    echo(&mut driver, &mut active);
    driver.queue(0).add(&[readable(b"x"), writable(1)]);
    assert!(driver.queue(0).kick_if_wanted());
}

#[test]
fn waiting_for_a_device_that_does_nothing_ends() {
    let mut driver = FakeDriver::new(&[8]);
    driver.queue(0).add(&[writable(1)]);
    assert_eq!(driver.queue(0).wait_used(Duration::from_millis(5)), None);
    assert_eq!(driver.interrupt().wait_failure(Duration::from_millis(5)), None);
}

#[test]
fn raw_descriptors_lie_in_the_table_as_given() {
    let mut driver = FakeDriver::new(&[8]);
    let raw = RawDescriptor { address: u64::MAX, len: 7, flags: DESC_F_NEXT, next: 99 };
    driver.queue(0).write_descriptor(7, raw);
    let at = GuestAddress(driver.queue(0).desc_table.0 + 7 * 16);
    assert_eq!(driver.read(at, 16), [&[0xff; 8][..], &[7, 0, 0, 0, 1, 0, 99, 0]].concat());
}

#[test]
fn the_recorder_counts_signals_per_queue_and_keeps_failures() {
    let driver = FakeDriver::new(&[8]);
    let interrupt = driver.shared_interrupt();
    interrupt.signal_used(3);
    interrupt.signal_used(3);
    interrupt.signal_config();
    let failure = DeviceFailure { device: "fs[a]".into(), reason: "broke".into() };
    interrupt.fail(failure.clone());
    assert_eq!((interrupt.used_signals(3), interrupt.used_signals(0), interrupt.config_signals()), (2, 0, 1));
    assert_eq!(interrupt.wait_failure(Duration::ZERO), Some(failure));
}

#[test]
fn a_reset_queue_starts_again_at_index_zero() {
    let mut driver = FakeDriver::new(&[4]);
    driver.queue(0).add(&[readable(b"lost"), writable(4)]);
    driver.queue(0).kick();
    driver.reset_queues();
    let mut active = driver.activation(EVENT_IDX).queues.remove(0);
    assert!(active.notify.read().is_err(), "a kick from before the reset must not linger");
    let chain = driver.queue(0).add(&[readable(b"kept"), writable(4)]);
    echo(&mut driver, &mut active);
    assert_eq!(driver.queue(0).poll_used().unwrap().chain, Some(chain));
}
