//! What runs as PID 1 in a `vmm` guest.
//!
//! The walk of a guest: [`guest`] mounts, loads modules, switches to the root image, mounts the shares and connects to
//! the host; [`serve`] then answers the host's frames with one poll loop: it starts commands and suites ([`process`],
//! [`job`]), streams their output, and turns a suite's output into single results ([`suite`]). [`power`] ends it.
//!
//! [`serve`] needs nothing but a stream of bytes, so the same loop answers on virtio-vsock in a guest, on a
//! virtio-serial port in an emulated host, and on a socket pair in a test. Nothing here may know which.

pub mod child_signal;
pub mod cpu_wakers;
pub mod emulated_host;
pub mod guest;
pub mod job;
pub mod kernel_command_line;
pub mod kernel_log;
pub mod kernel_messages;
pub mod link;
pub mod modules;
pub mod mounts;
pub mod network;
pub mod power;
pub mod process;
pub mod process_tree;
pub mod root;
pub mod scope;
pub mod serve;
pub mod shares;
pub mod suite;
pub mod suite_images;
pub mod timer_check;
pub mod vsock;
