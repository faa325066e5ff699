//! A fake driver for device tests: real guest memory with real split virtqueues (virtio 1.2 § 2.7) in it, written the
//! way a guest writes them, and in the ways a hostile one would.
//!
//! ```text
//! let mut driver = FakeDriver::new(&[256]);                       // one queue of 256 entries, EVENT_IDX on
//! device.activate(driver.activation(features))?;                  // no transport in between
//! let reply = driver.queue(0).request(&[readable(header), writable(512)]);
//! assert_eq!(reply.len, 512);                                     // used length; reply.data: what the device wrote
//! ```
//!
//! For more than one request in flight: [`DriverQueue::add`], [`DriverQueue::kick`], [`DriverQueue::wait_used`]. For
//! broken input: [`DriverQueue::write_descriptor`], [`DriverQueue::make_available`], [`DriverQueue::set_avail_idx`].
//! What the device told its driver is in the [`RecordingInterrupt`] of [`FakeDriver::interrupt`].
//!
//! Everything here panics on misuse, with the reason: it runs in tests only.

mod allocator;
mod driver_queue;
mod fake_driver;
mod recording_interrupt;

pub use driver_queue::{
    Buffer, Chain, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DriverQueue, RawDescriptor, Reply, Segment, Used,
    readable, writable,
};
pub use fake_driver::{FakeDriver, MEMORY_SIZE};
pub use recording_interrupt::RecordingInterrupt;

#[cfg(test)]
mod tests;
