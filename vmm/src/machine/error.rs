//! Why a machine could not be built.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use super::guest_memory::MemoryError;
use super::kernel_loader::LoadError;

/// One message each says what was tried, on what, why it failed and what to do.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// `/dev/kvm` is absent.
    #[error("there is no /dev/kvm: load the kvm_intel or kvm_amd module, or use `--host emulated`")]
    NoKvm,
    /// `/dev/kvm` may not be opened.
    #[error(
        "no permission to open /dev/kvm: add yourself to group kvm (`sudo usermod -aG kvm $USER`, then log in again)"
    )]
    KvmPermission,
    /// `/dev/kvm` does not open for another reason.
    #[error("failed to open /dev/kvm")]
    KvmOpen(#[source] io::Error),
    /// KVM is too old or not KVM.
    #[error("this KVM cannot run the machine: {0} is missing; a host kernel of 5.10 or newer has it")]
    KvmLacks(&'static str),
    /// A KVM call failed.
    #[error("failed to {action}")]
    Kvm {
        /// What was tried.
        action: &'static str,
        /// KVM's answer.
        source: io::Error,
    },
    /// `cpus` out of range.
    #[error("{asked} vCPUs cannot be had: give 1 to {limit} on this host")]
    Cpus {
        /// What was asked for.
        asked: u32,
        /// What this host can do.
        limit: u32,
    },
    /// Guest RAM could not be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initramfs or command line could not be put into guest RAM.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A file that a device needs does not open.
    #[error("failed to open {what} {}", path.display())]
    OpenFile {
        /// Which file: "console log", "root image".
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A device could not be made.
    #[error("failed to create device {device}: {reason}")]
    Device {
        /// Its name.
        device: String,
        /// The reason, with what to do where something can be done.
        reason: String,
    },
    /// More devices than the PCI bus has slots.
    #[error("too many devices: {0} of at most {max} PCI slots; give fewer shares or suites", max = super::pci_devices::MAX_DEVICES)]
    TooManyDevices(usize),
    /// A thread could not be started.
    #[error("failed to start thread {name}")]
    Thread {
        /// Its name.
        name: String,
        /// The reason.
        source: io::Error,
    },
}

impl BuildError {
    /// For `map_err` on KVM calls.
    pub(super) fn kvm<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Kvm { action, source: error.into() }
    }

    /// For `map_err` on opening files.
    pub(super) fn open(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::OpenFile { what, path: path.to_owned(), source }
    }

    /// A device that could not be made, with everything its error chain says.
    pub(super) fn device(name: &str, error: &(dyn Error + 'static)) -> Self {
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            reason = format!("{reason}: {error}");
            cause = error.source();
        }
        Self::Device { device: name.to_owned(), reason }
    }
}
