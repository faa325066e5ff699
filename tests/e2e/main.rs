//! End-to-end tests: every one starts `vmm` as a user does.
//!
//! Run them where KVM is usable, or in an emulated host: `vmm host exec -- target/debug/deps/e2e-… --test-threads 1`.

mod bisect;
mod dax;
mod exec;
mod faults;
mod going_on;
mod guest_trouble;
mod host_trouble;
mod interrupt;
mod requests;
mod run;
mod shell;
mod suite_run;
mod usage;
mod verdict;
mod vsock;
