//! The only way into the reports: every event to every reporter, and the end of the run.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use wire::TestStatus;

use super::artefacts::Artefacts;
use super::atomic_file::write_atomically;
use super::earlier_part::EarlierPart;
use super::error::ReportError;
use super::event_log::EVENTS;
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
use crate::verdict::{Baseline, Row, Tally, exit_code, with_failed_reporter};

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
    /// What earlier parts of the run took.
    earlier_ms: u64,
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

    /// Goes on with a run in its own folder, behind what `earlier` has of it.
    ///
    /// # Errors
    /// [`ReportError`], also when that run is not over; its folder stays as it was then.
    pub fn resume(config: ReportConfig, earlier: &EarlierPart) -> Result<Self, ReportError> {
        let terminal = Terminal::of_person(config.terminal, config.format);
        let started = Timestamp::now();
        let dir = ResultsDir::open(earlier.dir())?;
        let path = dir.path();
        let failed = |source| ReportError::Create { what: "the event log", path: path.join(EVENTS), source };
        let events = JsonLines::go_on(path, earlier.events()).map_err(failed)?;
        let (reporters, hashing) = Self::in_dir(&dir, started, &config, events, terminal)?;
        let mut all = Self::assemble(dir, started, &config, reporters, hashing);
        all.earlier_ms = earlier.ended_at_ms();
        all.replay(earlier.events());
        all.greet();
        Ok(all)
    }

    fn create_with(config: ReportConfig, terminal: Terminal) -> Result<Self, ReportError> {
        let started = Timestamp::now();
        let dir = ResultsDir::create(&config.results_parent, &config.suites.join("+"), started)?;
        let path = dir.path().join(EVENTS);
        let events = JsonLines::create(&path)
            .map_err(|source| ReportError::Create { what: "the event log", path, source })
            .and_then(|events| Self::in_dir(&dir, started, &config, events, terminal));
        match events {
            Ok((reporters, hashing)) => {
                let mut all = Self::assemble(dir, started, &config, reporters, hashing);
                let run = all.dir.name().to_owned();
                all.deliver(0, RunEvent::RunStarted { run, suites: config.suites, host: config.host });
                all.greet();
                Ok(all)
            }
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
        events: JsonLines<File>,
        terminal: Terminal,
    ) -> Result<(Vec<Box<dyn Reporter>>, HashJob), ReportError> {
        let path = dir.path();
        let failed = |what, name: &str, source| ReportError::Create { what, path: path.join(name), source };
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

    fn assemble(
        dir: ResultsDir,
        started: Timestamp,
        config: &ReportConfig,
        reporters: Vec<Box<dyn Reporter>>,
        job: HashJob,
    ) -> Self {
        let command: &[OsString] = &config.manifest.command;
        let give_up_hashing = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&give_up_hashing);
        let hashing = thread::Builder::new().name("manifest".into()).spawn(move || job(&flag));
        let mut failures = Vec::new();
        let hashing = hashing.map_err(|error| failures.push(failure("manifest.json", &error))).ok();
        Self {
            command: replay::shell_line(command).to_string_lossy().into_owned(),
            host: config.host.clone(),
            started,
            clock: Instant::now(),
            earlier_ms: 0,
            tally: Tally::new(config.baseline.clone()),
            reporters,
            failures,
            kernel_release: None,
            statistics: None,
            hashing,
            give_up_hashing,
            run_finished: false,
            finished: false,
            dir,
        }
    }

    /// Takes an earlier part of the run in: what is counted and kept for the end, not what is on disk or was shown.
    fn replay(&mut self, events: &[TimedEvent]) {
        for event in events {
            if let RunEvent::GuestReady { kernel_release, .. } = &event.event {
                self.kernel_release = Some(kernel_release.clone());
            }
            let judgement = self.tally.on_event(&event.event);
            for reporter in self.reporters.iter_mut().filter(|reporter| reporter.keeps_for_the_end()) {
                // It only keeps things in memory; were that to fail, its own end would tell.
                let _ = reporter.on_event(event, judgement, &self.tally);
            }
        }
        let done = self.tally.counts().total();
        self.on_event(RunEvent::Note { line: format!("resumed with {done} results of an earlier part of this run") });
    }

    /// What is said once when the reports stand.
    fn greet(&mut self) {
        for line in self.failures.clone() {
            self.on_event(RunEvent::Note { line });
        }
        if let Err(error) = self.dir.point_latest_here() {
            let latest = self.dir.path().with_file_name("latest");
            self.on_event(RunEvent::Note { line: format!("{} is not updated: {error}", latest.display()) });
        }
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

    /// Every result that is kept, with its suite.
    pub fn results(&self) -> impl Iterator<Item = (&str, &Row)> {
        self.tally.suites().iter().flat_map(|suite| suite.tests.iter().map(|row| (suite.name.as_str(), row)))
    }

    /// Suite and name of every test that failed and should not have.
    pub fn bad_results(&self) -> impl Iterator<Item = (&str, &str)> {
        let bad = |row: &Row| row.judgement.is_bad() && row.status != TestStatus::Skip;
        self.results().filter(move |(_, row)| bad(row)).map(|(suite, row)| (suite, row.test.as_str()))
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
        let since = u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX);
        let at_ms = self.earlier_ms.saturating_add(since);
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
        let line = failure(name, error);
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
            duration: self.clock.elapsed() + Duration::from_millis(self.earlier_ms),
            tally: &self.tally,
            outcome,
            exit_code: self.exit_code(outcome),
            failed_reporters: &self.failures,
            command: &self.command,
        }
    }
}

fn failure(name: &str, error: &io::Error) -> String {
    format!("{name} failed and is incomplete: {error}")
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
