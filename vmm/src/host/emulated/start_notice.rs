//! What the user sees while an emulated host starts: seconds that pass, and in the end one line that says why.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A line on standard error. On a terminal it moves while the host starts.
pub(super) struct StartNotice {
    bar: ProgressBar,
    reason: String,
}

impl StartNotice {
    /// `reason`: why an emulated host and not this machine.
    pub(super) fn new(reason: &str) -> Self {
        // Draws nothing when standard error is no terminal.
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        Self { bar, reason: reason.to_owned() }
    }

    /// It has been starting for `elapsed`.
    pub(super) fn waiting(&self, elapsed: Duration) {
        let message = format!("starting emulated host … {} s", elapsed.as_secs());
        if self.bar.message() != message {
            self.bar.set_message(message);
        }
        self.bar.tick();
    }

    /// It is up.
    pub(super) fn started(self) {
        self.bar.finish_and_clear();
        eprintln!("running in an emulated host: {}", self.reason);
    }
}

impl Drop for StartNotice {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
