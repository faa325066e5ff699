//! Reading `events.jsonl` back.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::session::TimedEvent;

/// Where a run keeps its events.
pub(super) const EVENTS: &str = "events.jsonl";

/// Why a results folder cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SavedRunError {
    /// The folder has no events.
    #[error("{} is no results folder: there is no {EVENTS} in it; give a folder that `vmm run` made", .0.display())]
    NoResults(PathBuf),
    /// The events cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A line in the middle is no event that this version knows.
    #[error("{}, line {line}: not an event that this vmm knows; read it with the version that wrote it", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// Gives `take` each event of the run in `dir`, in order.
///
/// # Errors
/// See [`SavedRunError`]. A last line that was cut off is none: the run was killed while it wrote that.
pub(super) fn read(dir: &Path, mut take: impl FnMut(TimedEvent)) -> Result<(), SavedRunError> {
    let path = dir.join(EVENTS);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(SavedRunError::NoResults(dir.to_path_buf()));
        }
        Err(source) => return Err(SavedRunError::Read { path, source }),
    };
    let mut lines = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = lines.read_until(b'\n', &mut line);
        if read.map_err(|source| SavedRunError::Read { path: path.clone(), source })? == 0 {
            break;
        }
        match serde_json::from_slice::<TimedEvent>(&line) {
            Ok(event) => take(event),
            Err(_) if !line.ends_with(b"\n") => break,
            Err(source) => return Err(SavedRunError::Unknown { path, line: number, source }),
        }
    }
    Ok(())
}
