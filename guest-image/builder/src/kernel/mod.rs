//! Kernels: from a [`KernelSpec`] to files that a machine can boot and an initramfs can be made for.

mod config;
mod debian;
mod file;
pub(crate) mod needs;
mod spec;
mod tree;

use std::path::PathBuf;

use crate::cache::Cache;
use crate::error::Result;
use crate::progress::Progress;

pub use config::KernelConfig;
pub use spec::{DebianKernel, KernelSpec};
pub use tree::{BuildRequest, BuiltKernel, build, require_tools};

/// First folder below the cache's root.
pub const KIND: &str = "kernel";

/// A kernel, ready to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The ELF kernel: what our own loader boots.
    pub vmlinux: PathBuf,
    /// The kernel as it was given or packaged, a bzImage or the vmlinux itself: what other loaders boot.
    pub image: PathBuf,
    /// What `uname -r` will say.
    pub release: String,
    /// Where its modules may be found, if anywhere.
    pub modules: Option<PathBuf>,
    /// Its `.config`, if known.
    pub config: Option<PathBuf>,
    /// Of [`Kernel::image`], hexadecimal.
    pub sha256: String,
}

/// Gives the kernel that `spec` describes, from the cache when it is there. Debian's are downloaded once.
///
/// # Errors
/// No such kernel, not a kernel, no network, no space; see [`crate::Error`].
pub fn resolve(cache: &Cache, spec: &KernelSpec, progress: &dyn Progress) -> Result<Kernel> {
    match spec {
        KernelSpec::Debian(kernel) => debian::resolve(cache, *kernel, progress),
        KernelSpec::Path(path) => file::resolve(cache, path, progress),
    }
}

/// Gets the newest version of Debian's kernel and replaces the one in the cache.
///
/// # Errors
/// As [`resolve`].
pub fn refresh(cache: &Cache, kernel: DebianKernel, progress: &dyn Progress) -> Result<Kernel> {
    debian::refresh(cache, kernel, progress)
}
