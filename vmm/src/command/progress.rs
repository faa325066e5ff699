//! What long work looks like: a line that moves on a terminal, one line for each step anywhere else. On standard error,
//! as standard output is for results.
//!
//! From the first step until [`TerminalProgress::finish`] Ctrl-C and SIGTERM ask the work to stop, so that it can clean up;
//! a second Ctrl-C ends the process at once, and with it every program that works for it.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use guest_image::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::SigId;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::exit_code::ExitCode;

/// How often the line on the terminal moves.
const TICK: Duration = Duration::from_millis(120);
/// The bar's resolution.
const BAR_STEPS: u64 = 1000;
/// Steps that took less are not worth a word when they are done.
const WORTH_TELLING: Duration = Duration::from_secs(1);

/// [`Progress`] on standard error.
#[derive(Debug)]
pub struct TerminalProgress {
    on_terminal: bool,
    interrupted: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bar: Option<ProgressBar>,
    step: Option<(String, Instant)>,
    handlers: Vec<SigId>,
}

impl Default for TerminalProgress {
    fn default() -> Self {
        Self::new()
    }
}

impl TerminalProgress {
    /// For the terminal that standard error is, if it is one.
    #[must_use]
    pub fn new() -> Self {
        Self {
            on_terminal: std::io::stderr().is_terminal(),
            interrupted: Arc::new(AtomicBool::new(false)),
            state: Mutex::default(),
        }
    }

    /// The work is done or failed: the line goes, what a long step took stays. A later step begins anew.
    pub fn finish(&self) {
        let mut state = self.state();
        state.end_step();
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
        for handler in state.handlers.drain(..) {
            signal_hook::low_level::unregister(handler);
        }
    }

    /// Prints a line on standard output, above the one that moves. That nobody reads it is no reason to end.
    pub fn print(&self, line: &str) {
        let state = self.state();
        let print = || drop(writeln!(std::io::stdout().lock(), "{line}"));
        match &state.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // What a panic left in it is only text.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Failing to catch a signal leaves it as it was: it then ends the process, and the next start sweeps.
    fn catch_signals(&self, state: &mut State) {
        if !state.handlers.is_empty() {
            return;
        }
        for signal in [SIGINT, SIGTERM] {
            let interrupted = Arc::clone(&self.interrupted);
            let handler = move || {
                if interrupted.swap(true, Ordering::SeqCst) {
                    // What they started would go on without anybody who knows of it.
                    guest_image::kill_running_tools();
                    signal_hook::low_level::exit(i32::from(ExitCode::Interrupted as u8));
                }
            };
            // SAFETY: the handler uses atomics, kill(2) and _exit(2), which are async-signal-safe, and does not unwind.
            let handler = unsafe { signal_hook::low_level::register(signal, handler) };
            state.handlers.extend(handler);
        }
    }
}

impl State {
    fn end_step(&mut self) {
        let Some((step, begun)) = self.step.take() else { return };
        if let Some(bar) = &self.bar
            && begun.elapsed() >= WORTH_TELLING
        {
            bar.suspend(|| eprintln!("{step} ({:.1} s)", begun.elapsed().as_secs_f64()));
        }
    }
}

impl Drop for TerminalProgress {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Progress for TerminalProgress {
    fn step(&self, what: &str) {
        let mut state = self.state();
        self.catch_signals(&mut state);
        state.end_step();
        state.step = Some((what.to_owned(), Instant::now()));
        if !self.on_terminal {
            eprintln!("{what}");
            return;
        }
        let bar = state.bar.get_or_insert_with(new_bar);
        bar.set_style(spinner());
        bar.set_position(0);
        bar.reset_elapsed();
        bar.set_prefix(what.to_owned());
        bar.set_message(String::new());
    }

    fn detail(&self, line: &str) {
        tracing::debug!("{line}");
        if let Some(bar) = &self.state().bar {
            bar.set_message(line.trim().to_owned());
        }
    }

    fn fraction(&self, done: f64) {
        if let Some(bar) = &self.state().bar {
            bar.set_style(measured());
            // The cast saturates; a fraction is 0 to 1.
            bar.set_position((done * BAR_STEPS as f64) as u64);
        }
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(BAR_STEPS), ProgressDrawTarget::stderr());
    bar.enable_steady_tick(TICK);
    bar
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix} {elapsed:.dim} {wide_msg:.dim}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn measured() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix} {bar:30} {percent:>3}% {wide_msg:.dim}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// `1.5 GiB`: binary multiples, one digit behind the point.
#[must_use]
pub(super) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Failures that have an exit code of their own are told here and become it: the user's Ctrl-C, and mistakes on the
/// command line. Any other is the caller's to report.
pub(super) fn or_exit_code<T>(result: guest_image::Result<T>) -> anyhow::Result<Result<T, ExitCode>> {
    use guest_image::Error;
    let error = match result {
        Ok(value) => return Ok(Ok(value)),
        Err(error) => error,
    };
    let code = match error {
        Error::Interrupted { .. } => ExitCode::Interrupted,
        Error::UnknownSuite { .. }
        | Error::UnknownKernelSeries { .. }
        | Error::NoKernel { .. }
        | Error::UnfitManifest { .. } => ExitCode::Usage,
        _ => return Err(error.into()),
    };
    eprintln!("vmm: {error}");
    Ok(Err(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_templates_of_both_styles_parse() {
        assert!(ProgressStyle::with_template("{spinner} {prefix} {elapsed:.dim} {wide_msg:.dim}").is_ok());
        let mut progress = TerminalProgress::new();
        progress.on_terminal = true;
        progress.step("working");
        progress.fraction(0.5);
        assert_eq!(progress.state().bar.as_ref().map(ProgressBar::position), Some(BAR_STEPS / 2));
        progress.finish();
        assert!(progress.state().bar.is_none() && progress.state().handlers.is_empty());
    }

    #[test]
    fn a_signal_during_work_asks_it_to_stop() {
        let progress = TerminalProgress::new();
        assert!(!progress.interrupted());
        progress.step("working");
        signal_hook::low_level::raise(SIGTERM).unwrap();
        assert!(progress.interrupted());
    }

    #[test]
    fn interruptions_and_mistakes_become_exit_codes_and_other_failures_do_not() {
        use guest_image::Error;
        let interrupted = Err::<(), _>(Error::Interrupted { doing: "testing".into() });
        assert_eq!(or_exit_code(interrupted).unwrap(), Err(ExitCode::Interrupted));
        let unknown = Err::<(), _>(Error::UnknownSuite { name: "x".into(), known: Vec::new() });
        assert_eq!(or_exit_code(unknown).unwrap(), Err(ExitCode::Usage));
        assert_eq!(or_exit_code(Ok(1)).unwrap(), Ok(1));
        assert!(or_exit_code::<()>(Err(Error::NoNamespaces { reason: "x".into() })).is_err());
    }
}
