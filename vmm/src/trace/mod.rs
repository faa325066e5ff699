//! Requests of shares as lines of JSON: written while a machine runs (`--trace`), left beside a failing test, read again and
//! compared (`vmm trace`). Knows requests as `devices` tells them and nothing of suites.

mod diff;
mod line;
mod recorder;
mod request;
mod saved;

pub use diff::{Diff, DiffOptions, Divergence, ShareDiff};
pub use line::last_requests;
pub use recorder::{Trace, TraceError};
pub use request::{Naming, describe};
pub use saved::{SavedTrace, SavedTraceError};

#[cfg(test)]
mod tests;
