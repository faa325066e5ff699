//! A trace that was written before.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use devices::virtio::fs::Record;

use super::line::{Line, VERSION};

/// The longest line that a trace can have, bytes: names are short.
const MAX_LINE: u64 = 64 << 10;

/// Why a file is no trace.
#[derive(Debug, thiserror::Error)]
pub enum SavedTraceError {
    /// It cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{}:{line} is no line of a trace ({why}); `vmm run --trace FILE` writes one, failing tests have one in artefacts/", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Which line.
        line: usize,
        /// What is wrong.
        why: String,
    },
}

/// All requests of a trace.
#[derive(Clone, Debug, Default)]
pub struct SavedTrace {
    /// In the order of the file, each with the number of the machine, from 0 if the trace does not say.
    pub requests: Vec<(u32, Record)>,
    /// How many were not written.
    pub dropped: u64,
    /// Whether the last line is cut off, as by a signal.
    pub is_cut_off: bool,
}

impl SavedTrace {
    /// Reads a file.
    ///
    /// # Errors
    /// See [`SavedTraceError`].
    pub fn read(path: &Path) -> Result<Self, SavedTraceError> {
        let failed = |source| SavedTraceError::Read { path: path.to_path_buf(), source };
        let mut from = BufReader::new(File::open(path).map_err(failed)?);
        let mut trace = Self::default();
        let (mut bytes, mut machine) = (Vec::new(), 0);
        for line in 1.. {
            bytes.clear();
            io::Read::take(&mut from, MAX_LINE).read_until(b'\n', &mut bytes).map_err(failed)?;
            if bytes.is_empty() && line > 1 {
                break;
            }
            let malformed = |why| SavedTraceError::Malformed { path: path.to_path_buf(), line, why };
            match serde_json::from_slice(&bytes) {
                Ok(Line::Trace { version: VERSION }) => {}
                Ok(Line::Trace { version }) => {
                    return Err(malformed(format!("version {version}, this vmm reads {VERSION}")));
                }
                Ok(_) if line == 1 => return Err(malformed("a trace begins with its version".to_owned())),
                Ok(Line::Machine { number }) => machine = number,
                Ok(Line::Request(record)) => trace.requests.push((machine, record)),
                Ok(Line::Dropped { requests, .. }) => trace.dropped = trace.dropped.saturating_add(requests),
                Err(_) if line > 1 && bytes.last() != Some(&b'\n') && bytes.len() < MAX_LINE as usize => {
                    trace.is_cut_off = true;
                    break;
                }
                Err(error) => return Err(malformed(error.to_string())),
            }
        }
        Ok(trace)
    }
}
