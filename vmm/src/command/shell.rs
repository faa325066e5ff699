//! `vmm shell`: an interactive shell in a fresh guest.

use std::process::ExitCode as ProcessExitCode;

use super::exec::{self, ExecOptions};
use crate::session::exec_client::ForwardedSignals;
use crate::session::{Deadlines, GuestHandle};

/// The shell to run: bash where the image has it, else sh. On a terminal if ours is one; else it reads a script.
#[must_use]
pub fn options() -> ExecOptions {
    let start = "command -v bash >/dev/null && exec bash -l; exec sh -l";
    ExecOptions { tty: true, ..ExecOptions::new(vec!["sh".into(), "-c".into(), start.into()]) }
}

/// Runs the shell in a machine that was just started, until it exits. Ctrl-C and window size go inside; Ctrl-] typed three
/// times leaves a guest that does not answer.
#[must_use]
pub fn run(guest: GuestHandle<'_>, signals: &ForwardedSignals, deadlines: &Deadlines) -> ProcessExitCode {
    exec::run(&options(), guest, signals, deadlines)
}
