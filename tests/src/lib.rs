//! What the end-to-end tests have in common: starting the `vmm` binary as a user does, with or without a terminal, in a
//! sandbox that knows whether anything was left behind.
//!
//! One test binary runs all tests, so that it can be run as a whole inside an emulated host:
//! `vmm host exec -- target/debug/deps/e2e-…`. It finds `vmm` by `VMM_BIN`, or next to itself. Tests that boot a guest say
//! `--host kvm`: where KVM is of no use, they are to be run in there. Nothing here waits without a deadline.

pub mod fake_suite;
mod finished;
mod guarded_child;
pub mod guest_probe;
pub mod kernels;
mod running;
mod sandbox;
pub mod stream;
mod terminal;
mod vmm;

pub use finished::Finished;
pub use running::Running;
pub use sandbox::{Sandbox, SmallDisk};
pub use terminal::Terminal;
pub use vmm::{Vmm, patience, vmm_binary};
