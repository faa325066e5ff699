//! `vmm doctor`: facts about this host ([`HostFacts`], gathered once), judged one by one ([`Check`]). A check that does
//! not pass names the command that mends it.

mod checks;
mod facts;

use serde::Serialize;

pub(super) use facts::meminfo_mib;
pub use facts::{FileSystem, HostFacts, Qemu, Where};

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Runs can be made, but not as well as they could.
    Warning,
    /// No run can be made before this is mended.
    Failure,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, one or two words.
    pub name: String,
    /// What it came to.
    pub status: Status,
    /// What was found.
    pub detail: String,
    /// The command that mends it, when it is not ok and a command can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
    /// Debian packages that are missing because of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
}

/// All checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether runs can be made.
    pub ready: bool,
    /// How runs will be made: `kvm` or `emulated`.
    pub host: &'static str,
    /// In the order in which they are told.
    pub checks: Vec<Check>,
}

/// Judges `facts`.
#[must_use]
pub fn examine(facts: &HostFacts) -> Report {
    let checks = checks::all(facts);
    Report {
        ready: checks.iter().all(|check| check.status != Status::Failure),
        host: if facts.kvm.is_usable() { "kvm" } else { "emulated" },
        checks,
    }
}

impl Report {
    /// Debian packages to install, sorted, each once.
    #[must_use]
    pub fn missing_packages(&self) -> Vec<&str> {
        let mut packages: Vec<&str> = self.checks.iter().flat_map(|c| &c.packages).map(String::as_str).collect();
        packages.sort_unstable();
        packages.dedup();
        packages
    }
}
