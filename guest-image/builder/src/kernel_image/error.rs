//! Why a file is no kernel we can boot.

use std::io;
use std::path::{Path, PathBuf};

/// One message says which file, what is wrong with it and what would do.
#[derive(Debug, thiserror::Error)]
pub enum KernelImageError {
    /// The file is something else.
    #[error(
        "{} is not an x86-64 Linux kernel but {what}; give a bzImage (arch/x86/boot/bzImage, vmlinuz) or an ELF vmlinux",
        path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What it is instead, with its article.
        what: String,
    },
    /// The file is a kernel, but damaged or of a kind that cannot be booted here.
    #[error("kernel {} cannot be used: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do where something can be done.
        why: String,
    },
    /// The file could not be read.
    #[error("failed to read kernel {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The unpacked kernel could not be written.
    #[error("failed to write unpacked kernel {}", path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl KernelImageError {
    pub(super) fn not_a_kernel(path: &Path, what: String) -> Self {
        Self::NotAKernel { path: path.to_owned(), what }
    }

    pub(super) fn unusable(path: &Path, why: String) -> Self {
        Self::Unusable { path: path.to_owned(), why }
    }

    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }

    pub(super) fn write(path: &Path, source: io::Error) -> Self {
        Self::Write { path: path.to_owned(), source }
    }
}
