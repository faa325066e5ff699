//! `results.json`: what a run came to, for programs.

use std::io;
use std::path::PathBuf;

use serde::Serialize;

use super::atomic_file::write_atomically;
use super::reporter::{FinishedRun, Reporter};
use crate::session::{RunOutcome, TimedEvent};
use crate::verdict::{BaselineUse, Counts, Judgement, SuiteTally, Tally};

/// Written when the run ends, however it ends.
pub(super) struct SummaryFile {
    dir: PathBuf,
}

impl SummaryFile {
    /// Will write `results.json` in `dir`.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }
}

#[derive(Serialize)]
struct Summary<'a> {
    run: &'a str,
    started: &'a str,
    duration_ms: u64,
    outcome: &'a RunOutcome,
    exit_code: u8,
    counts: Counts,
    host: &'a str,
    kernel_release: Option<&'a str>,
    command: &'a str,
    console_log: &'a str,
    failed_reporters: &'a [String],
    results_not_listed: u64,
    /// What the results were compared with.
    baselines: Vec<BaselineUse>,
    suites: &'a [SuiteTally],
    /// With `--stats`: requests of each share by operation, exits of each vCPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    statistics: Option<&'a serde_json::Value>,
}

impl Reporter for SummaryFile {
    fn name(&self) -> &'static str {
        "results.json"
    }

    fn on_event(&mut self, _: &TimedEvent, _: Option<Judgement>, _: &Tally) -> io::Result<()> {
        Ok(())
    }

    fn finish(&mut self, run: &FinishedRun<'_>) -> io::Result<()> {
        let summary = Summary {
            run: run.name,
            started: run.started,
            duration_ms: u64::try_from(run.duration.as_millis()).unwrap_or(u64::MAX),
            outcome: run.outcome,
            exit_code: run.exit_code as u8,
            counts: run.tally.counts(),
            host: run.host,
            kernel_release: run.kernel_release,
            command: run.command,
            console_log: super::fan_out::CONSOLE_LOG,
            failed_reporters: run.failed_reporters,
            results_not_listed: run.tally.rows_dropped(),
            baselines: run.tally.baselines(run.outcome),
            suites: run.tally.suites(),
            statistics: run.statistics,
        };
        let mut json = serde_json::to_vec_pretty(&summary)?;
        json.push(b'\n');
        write_atomically(&self.dir, "results.json", 0o644, &json)
    }
}
