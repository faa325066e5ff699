//! What the process tells its caller. All codes but [`ExitCode::Interrupted`] are below 128, so that
//! `git bisect run` can use `vmm run` as it is.

use crate::config::UsageError;

/// The exit codes of every command except `vmm exec` and `vmm host exec`, which pass on their command's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything as expected.
    Success = 0,
    /// Something failed that should not.
    Regression = 1,
    /// Bad flag, bad configuration, missing file.
    Usage = 2,
    /// The guest panicked or oopsed, or died unasked.
    GuestDied = 3,
    /// Every test was skipped, or none matched.
    NothingRan = 4,
    /// A deadline passed.
    Timeout = 124,
    /// Host, image, build or boot trouble: nothing can be said about the tests.
    CannotTest = 125,
    /// Stopped by Ctrl-C, results so far kept.
    Interrupted = 130,
}

impl ExitCode {
    /// Of a command that ended with `error`.
    #[must_use]
    pub fn of(error: &anyhow::Error) -> Self {
        let interrupted = |cause: &(dyn std::error::Error + 'static)| {
            matches!(cause.downcast_ref(), Some(guest_image::Error::Interrupted { .. }))
        };
        if error.chain().any(|cause| cause.is::<UsageError>()) {
            Self::Usage
        } else if error.chain().any(interrupted) {
            Self::Interrupted
        } else {
            Self::CannotTest
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
