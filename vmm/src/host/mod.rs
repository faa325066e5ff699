//! The host below the machine: probing KVM, `vmm doctor`, and the emulated host where KVM is of no use.

mod choice;
pub mod doctor;
pub mod emulated;
pub mod kvm_probe;
pub mod programs;

pub use choice::{HostChoice, KvmNotUsable, RunsOn};
