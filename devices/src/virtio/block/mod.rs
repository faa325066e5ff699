//! A read-only block device (virtio 1.2 § 5.2) that serves a file: the guest's root image and suite images.
//!
//! One queue, one worker. A request is read from the file straight into guest memory. What the driver asks for but
//! this device does not do is answered with VIRTIO_BLK_S_UNSUPP, what cannot be done with VIRTIO_BLK_S_IOERR; a chain
//! that has no place for a status byte cannot be answered and stops the device (DEVICE_NEEDS_RESET).

mod device;
mod request;
mod worker;

pub use device::BlockDevice;

#[cfg(test)]
mod tests;
