//! `vmm trace`: what shares served, as `--trace` and failing tests leave it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::print;
use crate::config::UsageError;
use crate::exit_code::ExitCode;
use crate::trace::{Diff, DiffOptions, Divergence, Naming, SavedTrace, SavedTraceError, ShareDiff, describe};

/// Lines of one side of a difference that are shown.
const SHOWN: usize = 20;

/// `vmm trace`.
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TraceCommand,
}

/// Its subcommands.
#[derive(Clone, Debug, Subcommand)]
pub enum TraceCommand {
    /// Say where two traces part, times and numbers of requests and nodes aside; exit code 1 if they do
    Diff(DiffArgs),
    /// Print a trace, a line for each request
    Show {
        /// The trace
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

/// `vmm trace diff`.
#[derive(Args, Clone, Debug)]
pub struct DiffArgs {
    /// The trace of the run that went well
    #[arg(value_name = "A")]
    pub first: PathBuf,
    /// The trace of the run that did not
    #[arg(value_name = "B")]
    pub second: PathBuf,
    /// Leave names and paths out of the comparison: for tests that choose names at random
    #[arg(long)]
    pub ignore_names: bool,
    /// Compare also what a guest asks for again because its cache has become too old, which differs by chance
    #[arg(long)]
    pub refreshes: bool,
    /// How many differences of each share to show [default: the first]
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true)]
    pub differences: usize,
    /// Requests to show before and behind a difference
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub context: usize,
    /// Print JSON, every difference included
    #[arg(long)]
    pub json: bool,
}

/// The whole of `vmm trace`.
///
/// # Errors
/// A file is no trace: [`UsageError`]. It cannot be read.
pub fn trace(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    let (text, code) = match &args.command {
        TraceCommand::Diff(args) => {
            let (first, second) = (read(&args.first)?, read(&args.second)?);
            let options = DiffOptions { nameless: args.ignore_names, refreshes: args.refreshes, context: args.context };
            let diff = Diff::new(&first, &second, options);
            let text = match args.json {
                true => serde_json::to_string_pretty(&diff)? + "\n",
                false => {
                    caveats(&args.first, &first) + &caveats(&args.second, &second) + &text(&diff, args.differences)
                }
            };
            (text, if diff.is_same() { ExitCode::Success } else { ExitCode::Regression })
        }
        TraceCommand::Show { file } => {
            let trace = read(file)?;
            (caveats(file, &trace) + &lines(&trace), ExitCode::Success)
        }
    };
    print(&text)?;
    Ok(code)
}

fn read(path: &Path) -> anyhow::Result<SavedTrace> {
    SavedTrace::read(path).map_err(|error| match error {
        SavedTraceError::Read { .. } => anyhow::Error::from(error),
        wrong => UsageError(wrong.to_string()).into(),
    })
}

fn caveats(path: &Path, trace: &SavedTrace) -> String {
    let mut text = String::new();
    if trace.dropped > 0 {
        let _ = writeln!(text, "{}: {} requests are missing, they came too fast", path.display(), trace.dropped);
    }
    if trace.is_cut_off {
        let _ = writeln!(text, "{}: the last line is cut off", path.display());
    }
    text
}

fn lines(trace: &SavedTrace) -> String {
    let mut text = String::new();
    let mut namings = std::collections::HashMap::new();
    for (machine, record) in &trace.requests {
        let naming: &mut Naming = namings.entry((*machine, record.share.clone())).or_default();
        let (at, took) = (record.at_ns as f64 / 1e9, record.took_ns as f64 / 1e3);
        let (share, queue, pid) = (&record.share, record.queue, record.pid);
        let shown = describe(record, naming, false);
        let _ = writeln!(text, "{at:12.6} {share} q{queue} pid {pid:<5} {shown}  {took:.1} µs");
        naming.learn(record);
    }
    text
}

fn text(diff: &Diff, differences: usize) -> String {
    let mut text = String::new();
    for share in &diff.shares {
        share_text(&mut text, share, differences);
    }
    if diff.shares.is_empty() {
        text.push_str("Neither trace has a request.\n");
    }
    text
}

fn share_text(text: &mut String, share: &ShareDiff, differences: usize) {
    let different = share.divergences.len();
    let places = if different == 1 { "place" } else { "places" };
    let _ = match different {
        0 => writeln!(text, "{}: the same, {} requests", share.share, share.same),
        _ => writeln!(text, "{}: {} requests are the same, they part in {different} {places}", share.share, share.same),
    };
    for divergence in share.divergences.iter().take(differences) {
        divergence_text(text, divergence);
    }
    if different > differences.max(1) {
        let _ = writeln!(text, "\n  and {} more; --differences N shows them", different - differences);
    }
    let _ = writeln!(text, "\n  {:<20} {:>10} {:>10} {:>10}", "operation", "A", "B", "B - A");
    for (name, (first, second)) in &share.operations {
        let more = i128::try_from(*second).unwrap_or(0) - i128::try_from(*first).unwrap_or(0);
        let more = if more == 0 { String::new() } else { format!("{more:+}") };
        let _ = writeln!(text, "  {:<20} {first:>10} {second:>10} {more:>10}", crate::report::printable(name));
    }
    text.push('\n');
}

fn divergence_text(text: &mut String, divergence: &Divergence) {
    let (first, second) = divergence.at;
    let _ = writeln!(text, "\n  after {first} requests of A and {second} of B:");
    let mut list = |sign: &str, lines: &[String], shown: usize| {
        for line in lines.iter().take(shown) {
            let _ = writeln!(text, "  {sign} {line}");
        }
        if lines.len() > shown {
            let _ = writeln!(text, "  {sign} … and {} more", lines.len() - shown);
        }
    };
    list(" ", &divergence.before, usize::MAX);
    list("-", &divergence.only_first, SHOWN);
    list("+", &divergence.only_second, SHOWN);
    list(" ", &divergence.after, usize::MAX);
}
