//! Why a run cannot be reported at all.

use std::io;
use std::path::PathBuf;

/// Trouble before the run begins; nothing is left behind. Trouble later does not end the run, see
/// [`Reporters`](super::Reporters).
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The results folder or a file in it cannot be made.
    #[error("failed to create {what} {}; choose another place with --results DIR", path.display())]
    Create {
        /// What was to be made.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Too little room for a run's results.
    #[error(
        "{free_kib} KiB are free in {}, a run's results need at least {needed_kib} KiB; make room there or choose another \
         place with --results DIR",
        path.display()
    )]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// Free for this user.
        free_kib: u64,
        /// The least that is asked for.
        needed_kib: u64,
    },
}
