//! Which kernel the user wants.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::Error;

/// A kernel by description; [`super::resolve`] makes files of it. On the command line: `debian:6.12`, `debian:6.1`, or
/// a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KernelSpec {
    /// From Debian's package.
    Debian(DebianKernel),
    /// A bzImage (`vmlinuz`), a vmlinux, or a kernel tree, whose newest is taken: built there or by `vmm kernel build`.
    Path(PathBuf),
}

/// Debian bookworm's kernels for amd64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DebianKernel {
    /// 6.1, the release's own, cloud flavour.
    Cloud6_1,
    /// 6.12, cloud flavour. The default for guests.
    Cloud6_12,
    /// 6.12 with all drivers: has 9p and KVM for AMD, as the emulated host needs.
    Full6_12,
}

impl DebianKernel {
    const ALL: [Self; 3] = [Self::Cloud6_12, Self::Cloud6_1, Self::Full6_12];

    /// As it stands after `debian:`.
    #[must_use]
    pub fn series(self) -> &'static str {
        match self {
            Self::Cloud6_1 => "6.1",
            Self::Cloud6_12 => "6.12",
            Self::Full6_12 => "6.12-full",
        }
    }

    /// The package that always depends on the newest of its kind.
    pub(super) fn metapackage(self) -> &'static str {
        match self {
            Self::Cloud6_1 => "linux-image-cloud-amd64",
            Self::Cloud6_12 => "linux-image-6.12-cloud-amd64",
            Self::Full6_12 => "linux-image-6.12-amd64",
        }
    }
}

impl Default for KernelSpec {
    fn default() -> Self {
        Self::Debian(DebianKernel::Cloud6_12)
    }
}

impl KernelSpec {
    /// The kernel of the emulated host.
    #[must_use]
    pub fn emulated_host() -> Self {
        Self::Debian(DebianKernel::Full6_12)
    }
}

impl FromStr for KernelSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let unknown = || {
            let known = DebianKernel::ALL.iter().map(|k| k.series()).collect();
            Error::UnknownKernelSeries { text: text.to_owned(), known }
        };
        match text.strip_prefix("debian:") {
            Some(series) => {
                DebianKernel::ALL.into_iter().find(|k| k.series() == series).map(Self::Debian).ok_or_else(unknown)
            }
            None if text.is_empty() => Err(unknown()),
            None => Ok(Self::Path(PathBuf::from(text))),
        }
    }
}

impl fmt::Display for KernelSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian(kernel) => write!(f, "debian:{}", kernel.series()),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spec_reads_back_as_it_is_shown() {
        for text in ["debian:6.1", "debian:6.12", "debian:6.12-full", "/boot/vmlinuz-6.12", "linux"] {
            assert_eq!(text.parse::<KernelSpec>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_unknown_series_is_refused_with_those_there_are() {
        let error = "debian:5.10".parse::<KernelSpec>().unwrap_err().to_string();
        assert!(error.contains("6.12, 6.1, 6.12-full"), "{error}");
        assert!("".parse::<KernelSpec>().is_err());
    }
}
