//! The virtual machine: KVM, memory, boot, vCPUs, and the devices wired to it. Knows nothing of suites and results.
//!
//! [`start`] in `builder.rs` is the walk: read it top to bottom. Everything it makes ends up in a [`RunningVm`], the
//! sole owner of every thread.

pub mod acpi;
pub mod address_map;
mod builder;
pub mod command_line;
mod config;
pub mod cpu_setup;
mod error;
mod flight;
pub mod guest_memory;
mod inspection;
pub mod interrupts;
pub mod io_bus;
pub mod kernel_loader;
pub mod kvm_exit;
mod missing_memory;
pub mod pci_devices;
mod polling;
pub mod power_control;
mod running_vm;
mod shared_memory_slot;
mod statistics;
mod stop_reason;
mod stopper;
#[cfg(test)]
mod test_kernel;
#[cfg(test)]
mod tests;
pub mod vcpu;
pub mod vcpu_stats;
mod window_guard;

pub use builder::start;
pub use config::{MachineConfig, ShareConfig, ShareSettings};
pub use error::BuildError;
pub use flight::Flight;
pub use inspection::Inspector;
pub use polling::{Polling, PollingError};
pub use running_vm::RunningVm;
pub use statistics::{Statistics, StatisticsReader, VcpuExits};
pub use stop_reason::StopReason;
