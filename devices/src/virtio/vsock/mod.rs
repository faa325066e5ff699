//! virtio-vsock (virtio 1.2 § 5.10): stream sockets between the guest and this process.
//!
//! The guest's end of a connection is an `AF_VSOCK` socket; the host's end is a Unix stream socket, either one half of a
//! socket pair that code of this process gets through [`VsockHandle`], or a connection of another program
//! ([`VsockHandle::expose`], in the convention of Firecracker). One worker thread moves everything:
//!
//! ```text
//!  tx queue ─▶ guest_buffers ─▶ muxer ─▶ connection ─▶ host socket        device:  activation and reset
//!  rx queue ◀─ guest_buffers ◀─ muxer ◀─ connection ◀─ host socket        worker:  epoll, queues, batches
//!                                 │          └ credit                     handle:  what the rest of the process sees
//!                       host_side: listeners, requests to connect         programs: other programs' Unix sockets
//! ```
//!
//! Nothing is copied on the way except what a slow host reader leaves behind, and that is bounded by credit. Everything
//! in a packet is checked by the muxer and the connection; what a guest does wrong costs it that connection (RST), a
//! broken ring costs it the device. Datagram and seqpacket sockets are not offered.

mod connection;
mod credit;
mod device;
mod guest_buffers;
mod handle;
mod host_side;
mod host_socket;
mod muxer;
mod packet;
mod programs;
mod ring;
mod worker;

#[cfg(test)]
mod tests;

pub use device::{VsockDevice, VsockOptions};
pub use handle::{ExposedSocket, VsockHandle};
