//! Fans each run event out as it happens: terminal or TAP, JSON lines, JUnit, results folder. Never sees the machine.
//!
//! [`Reporters`] is the only way in. It stamps an event, lets the verdict judge it and hands it to every reporter; what the
//! run came to is written when it ends, however it ends. A reporter that fails is reported once and left out from then on.
//! Everything a guest says passes through here on its way to a terminal or a file, so everything is bounded and escaped.

mod artefacts;
mod atomic_file;
mod earlier_part;
mod error;
mod event_log;
mod fan_out;
mod html;
mod json_lines;
mod junit;
mod kernel_log;
mod manifest;
mod printable;
mod replay;
mod reporter;
mod results_dir;
mod saved_manifest;
mod saved_run;
mod summary;
mod tap;
mod terminal;
#[cfg(test)]
mod test_events;

pub(crate) use atomic_file::write_atomically;
pub use earlier_part::EarlierPart;
pub use error::ReportError;
pub use event_log::SavedRunError;
pub use fan_out::{CONSOLE_LOG, ReportConfig, Reporters};
pub use manifest::{ManifestFile, ManifestInputs, ManifestShare};
pub(crate) use printable::printable;
pub(crate) use replay::shell_line;
pub(crate) use reporter::outcome_in_words;
pub(crate) use results_dir::ResultsDir;
pub use results_dir::check as check_results_dir;
pub use saved_manifest::{SavedManifest, SavedManifestError};
pub use saved_run::SavedRun;
pub use tap::OutputFormat;
pub use terminal::{TerminalConfig, Verbosity};
