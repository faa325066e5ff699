//! `manifest.json` read back: how a run was started.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::manifest::{ManifestFile, ManifestInputs, ManifestShare};
use crate::schedule::Shard;

/// Why a run's manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedManifestError {
    /// It cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is none of this version's.
    #[error("{} is not what this vmm writes; use the version that wrote it", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// What a run's manifest says of how it was started.
#[derive(Clone, Debug, Deserialize)]
pub struct SavedManifest {
    /// The command line, program first.
    pub command: Vec<String>,
    /// Where it was typed.
    pub directory: PathBuf,
    /// Which part of the tests it ran, as `2/3`.
    #[serde(default)]
    shard: Option<String>,
    vmm_version: String,
    host: Host,
    guest: Guest,
    /// The suites that it ran, by name, each with where it came from.
    pub suites: BTreeMap<String, String>,
    shares: Vec<Share>,
    /// What it depended on, by role.
    files: BTreeMap<String, SavedFile>,
}

#[derive(Clone, Debug, Deserialize)]
struct Host {
    kind: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Guest {
    cpus: u32,
    memory_mib: u64,
    append: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Share {
    tag: String,
    path: PathBuf,
}

#[derive(Clone, Debug, Deserialize)]
struct SavedFile {
    path: PathBuf,
    sha256: Option<String>,
}

impl SavedManifest {
    /// Reads that of the run in `dir`.
    ///
    /// # Errors
    /// See [`SavedManifestError`].
    pub fn read(dir: &Path) -> Result<Self, SavedManifestError> {
        let path = dir.join("manifest.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(source) => return Err(SavedManifestError::Read { path, source }),
        };
        serde_json::from_slice(&text).map_err(|source| SavedManifestError::Malformed { path, source })
    }

    /// Which part of the tests it ran; `None` for all.
    #[must_use]
    pub fn shard(&self) -> Option<Shard> {
        self.shard.as_ref()?.parse().ok()
    }

    /// The suites that it ran, by name.
    #[must_use]
    pub fn suite_names(&self) -> Vec<String> {
        self.suites.keys().cloned().collect()
    }

    /// `kvm` or `emulated`.
    #[must_use]
    pub fn host_kind(&self) -> &str {
        &self.host.kind
    }

    /// The first of `files` that is not what this run began with: its role, its path then and its SHA-256 then. Where either
    /// hash is not known nothing is said.
    #[must_use]
    pub fn differs_in<'f>(&'f self, files: &'f [ManifestFile]) -> Option<(&'f str, &'f Path, &'f str)> {
        files.iter().find_map(|file| {
            let before = self.files.get(&file.role)?;
            let (was, is) = (before.sha256.as_deref()?, file.sha256.as_deref()?);
            (was != is).then_some((file.role.as_str(), before.path.as_path(), was))
        })
    }

    /// The same as what a report is made from, for all parts of the run together.
    #[must_use]
    pub fn inputs(&self, command: Vec<std::ffi::OsString>, vmm_binary: PathBuf) -> ManifestInputs {
        let file = |(role, file): (&String, &SavedFile)| ManifestFile {
            role: role.clone(),
            path: file.path.clone(),
            sha256: file.sha256.clone(),
        };
        ManifestInputs {
            command,
            directory: self.directory.clone(),
            vmm_binary,
            vmm_version: self.vmm_version.clone(),
            cpus: self.guest.cpus,
            memory_mib: self.guest.memory_mib,
            append: self.guest.append.clone(),
            // The binary is added by itself.
            files: self.files.iter().filter(|(role, _)| *role != "vmm").map(file).collect(),
            suites: self.suites.clone(),
            shard: None,
            shares: self.shares.iter().map(|s| ManifestShare { tag: s.tag.clone(), path: s.path.clone() }).collect(),
        }
    }
}
