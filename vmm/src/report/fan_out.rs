//! The only way into the reports: every event to every reporter, and the end of the run.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use jiff::Timestamp;

use super::artefacts::Artefacts;
use super::atomic_file::write_atomically;
use super::error::ReportError;
use super::html::Html;
use super::json_lines::JsonLines;
use super::junit::Junit;
use super::kernel_log::KernelLog;
use super::manifest::{ManifestInputs, write_manifest};
use super::replay;
use super::reporter::{FinishedRun, Reporter};
use super::results_dir::ResultsDir;
use super::summary::SummaryFile;
use super::tap::{OutputFormat, Tap};
use super::terminal::{self, Terminal, TerminalConfig};
use crate::exit_code::ExitCode;
use crate::session::{RunEvent, RunOutcome, TimedEvent};
use crate::verdict::{Baseline, Tally, exit_code, with_failed_reporter};

/// The first guest's console log in the results folder; the machine writes it.
pub const CONSOLE_LOG: &str = "console.log";

/// Completes the manifest; see [`write_manifest`].
type HashJob = Box<dyn FnOnce(&AtomicBool) -> io::Result<()> + Send>;

/// What is to be reported, and where.
#[derive(Debug)]
pub struct ReportConfig {
    /// The run gets a folder of its own in this one, which is made when it is not there.
    pub results_parent: PathBuf,
    /// Suites that will run, in order.
    pub suites: Vec<String>,
    /// Where the machine runs: `kvm` or `emulated`.
    pub host: String,
    /// What results are compared with.
    pub baseline: Baseline,
    /// What standard output is for.
    pub format: OutputFormat,
    /// What the terminal is like: standard output where that is for people, else standard error.
    pub terminal: TerminalConfig,
    /// For `manifest.json` and the replay command.
    pub manifest: ManifestInputs,
}

/// All reporters of one run.
///
/// A reporter that fails, because the disk is full or the pipe is closed, is named once and left out from then on; the run
/// goes on, and ends with [`ExitCode::CannotTest`] unless it would end with something worse. Dropped without
/// [`finish`](Self::finish), because of an early return or a panic, everything is written all the same.
pub struct Reporters {
    dir: ResultsDir,
    host: String,
    started: Timestamp,
    clock: Instant,
    tally: Tally,
    /// Files first, so that what a person has seen is on disk.
    reporters: Vec<Box<dyn Reporter>>,
    failures: Vec<String>,
    kernel_release: Option<String>,
    statistics: Option<serde_json::Value>,
    command: String,
    hashing: Option<JoinHandle<io::Result<()>>>,
    give_up_hashing: Arc<AtomicBool>,
    run_finished: bool,
    finished: bool,
}

impl Reporters {
    /// Makes the results folder and reports [`RunEvent::RunStarted`]; nobody else need send that.
    ///
    /// # Errors
    /// [`ReportError`] when the folder or a first file in it cannot be made; nothing is left behind then.
    pub fn create(config: ReportConfig) -> Result<Self, ReportError> {
        let terminal = Terminal::of_person(config.terminal, config.format);
        Self::create_with(config, terminal)
    }

    fn create_with(config: ReportConfig, terminal: Terminal) -> Result<Self, ReportError> {
        let started = Timestamp::now();
        let dir = ResultsDir::create(&config.results_parent, &config.suites.join("+"), started)?;
        match Self::in_dir(&dir, started, &config, terminal) {
            Ok((reporters, hashing)) => Ok(Self::begin(dir, started, config, reporters, hashing)),
            Err(error) => {
                dir.remove();
                Err(error)
            }
        }
    }

    fn in_dir(
        dir: &ResultsDir,
        started: Timestamp,
        config: &ReportConfig,
        terminal: Terminal,
    ) -> Result<(Vec<Box<dyn Reporter>>, HashJob), ReportError> {
        let path = dir.path();
        let failed = |what, name: &str, source| ReportError::Create { what, path: path.join(name), source };
        let events =
            JsonLines::create(&path.join("events.jsonl")).map_err(|e| failed("the event log", "events.jsonl", e))?;
        let inputs = config.manifest.clone();
        let script = replay::script(&inputs.directory, &inputs.command);
        write_atomically(path, "replay.sh", 0o755, &script).map_err(|e| failed("the replay script", "replay.sh", e))?;
        let hashing = write_manifest(path, dir.name(), &started.to_string(), &config.host, inputs)
            .map_err(|e| failed("the manifest", "manifest.json", e))?;
        let kernel_log =
            KernelLog::create(&path.join("kernel.log")).map_err(|e| failed("the kernel's log", "kernel.log", e))?;
        let mut reporters: Vec<Box<dyn Reporter>> = vec![
            Box::new(events),
            Box::new(kernel_log),
            Box::new(Artefacts::new(path.join("artefacts"))),
            Box::new(Junit::new(path.to_path_buf())),
            Box::new(Html::new(path.to_path_buf())),
            Box::new(SummaryFile::new(path.to_path_buf())),
        ];
        reporters.extend(Tap::stdout(config.format).map(|tap| Box::new(tap) as Box<dyn Reporter>));
        reporters.push(Box::new(terminal));
        Ok((reporters, Box::new(hashing)))
    }

    fn begin(
        dir: ResultsDir,
        started: Timestamp,
        config: ReportConfig,
        reporters: Vec<Box<dyn Reporter>>,
        job: HashJob,
    ) -> Self {
        let command: &[OsString] = &config.manifest.command;
        let give_up_hashing = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&give_up_hashing);
        let hashing = thread::Builder::new().name("manifest".into()).spawn(move || job(&flag));
        let mut all = Self {
            command: replay::shell_line(command).to_string_lossy().into_owned(),
            host: config.host.clone(),
            started,
            clock: Instant::now(),
            tally: Tally::new(config.baseline),
            reporters,
            failures: Vec::new(),
            kernel_release: None,
            statistics: None,
            hashing: None,
            give_up_hashing,
            run_finished: false,
            finished: false,
            dir,
        };
        all.deliver(
            0,
            RunEvent::RunStarted { run: all.dir.name().to_owned(), suites: config.suites, host: config.host },
        );
        match hashing {
            Ok(thread) => all.hashing = Some(thread),
            Err(error) => all.failed("manifest.json", &error),
        }
        if let Err(error) = all.dir.point_latest_here() {
            let latest = all.dir.path().with_file_name("latest");
            all.on_event(RunEvent::Note { line: format!("{} is not updated: {error}", latest.display()) });
        }
        all
    }

    /// The run's folder, absolute.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The name of the run's folder.
    #[must_use]
    pub fn run_name(&self) -> &str {
        self.dir.name()
    }

    /// Stamps one event of the run as a whole and hands it to every reporter. [`RunEvent::RunStarted`] has been reported
    /// already and is dropped.
    pub fn on_event(&mut self, event: RunEvent) {
        self.on_guest_event(0, event);
    }

    /// The same with an event of a guest, by its number.
    pub fn on_guest_event(&mut self, guest: u32, event: RunEvent) {
        match event {
            RunEvent::RunStarted { .. } => {}
            event => self.deliver(guest, event),
        }
    }

    /// What the machine cost, for `results.json`.
    pub fn add_statistics(&mut self, statistics: serde_json::Value) {
        self.statistics = Some(statistics);
    }

    /// Ends the run: reports [`RunEvent::RunFinished`] unless that came already, writes every file that is written at the
    /// end, prints the summary and says what the process should return.
    pub fn finish(mut self, outcome: &RunOutcome) -> ExitCode {
        self.conclude(outcome)
    }

    fn deliver(&mut self, guest: u32, event: RunEvent) {
        match &event {
            RunEvent::GuestReady { kernel_release, .. } => self.kernel_release = Some(kernel_release.clone()),
            RunEvent::RunFinished { .. } => self.run_finished = true,
            _ => {}
        }
        let at_ms = u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX);
        let judgement = self.tally.on_event(&event);
        let event = TimedEvent { at_ms, guest, event };
        let tally = &self.tally;
        let mut failed = Vec::new();
        self.reporters.retain_mut(|reporter| match reporter.on_event(&event, judgement, tally) {
            Ok(()) => true,
            Err(error) => {
                failed.push((reporter.name(), error));
                false
            }
        });
        for (name, error) in failed {
            self.failed(name, &error);
        }
        for line in self.tally.take_notes() {
            self.deliver(0, RunEvent::Note { line });
        }
    }

    /// Tells the reporters that are left. The number of reporters bounds the recursion through `deliver`.
    fn failed(&mut self, name: &str, error: &io::Error) {
        let line = self.note_failure(name, error);
        self.deliver(0, RunEvent::Note { line });
    }

    fn note_failure(&mut self, name: &str, error: &io::Error) -> String {
        let line = format!("{name} failed and is incomplete: {error}");
        self.failures.push(line.clone());
        if name == terminal::NAME {
            tracing::error!("{line}");
        }
        line
    }

    fn conclude(&mut self, outcome: &RunOutcome) -> ExitCode {
        self.finished = true;
        if !self.run_finished {
            self.deliver(0, RunEvent::RunFinished { outcome: outcome.clone() });
        }
        if *outcome == RunOutcome::Interrupted {
            self.give_up_hashing.store(true, Ordering::Relaxed);
        }
        match self.hashing.take().map(JoinHandle::join) {
            Some(Ok(Err(error))) => self.failed("manifest.json", &error),
            Some(Err(_)) => self.failed("manifest.json", &io::Error::other("its thread panicked")),
            Some(Ok(Ok(()))) | None => {}
        }
        let started = self.started.to_string();
        for mut reporter in std::mem::take(&mut self.reporters) {
            if let Err(error) = reporter.finish(&self.finished_run(outcome, &started)) {
                self.note_failure(reporter.name(), &error);
            }
        }
        self.exit_code(outcome)
    }

    fn exit_code(&self, outcome: &RunOutcome) -> ExitCode {
        let code = exit_code(&self.tally, outcome);
        if self.failures.is_empty() { code } else { with_failed_reporter(code) }
    }

    fn finished_run<'a>(&'a self, outcome: &'a RunOutcome, started: &'a str) -> FinishedRun<'a> {
        FinishedRun {
            name: self.dir.name(),
            dir: self.dir.path(),
            started,
            host: &self.host,
            kernel_release: self.kernel_release.as_deref(),
            statistics: self.statistics.as_ref(),
            duration: self.clock.elapsed(),
            tally: &self.tally,
            outcome,
            exit_code: self.exit_code(outcome),
            failed_reporters: &self.failures,
            command: &self.command,
        }
    }
}

impl Drop for Reporters {
    fn drop(&mut self) {
        if !self.finished {
            let reason = "vmm gave up before the run came to an end".to_owned();
            self.conclude(&RunOutcome::CannotTest { reason });
        }
    }
}

#[cfg(test)]
mod hostile_guest_tests;
#[cfg(test)]
mod tests;
