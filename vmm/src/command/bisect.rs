//! `vmm bisect`: the command line, and what becomes of it.

mod ends;
mod kept_host;
mod kernel_list;
mod request;
mod words;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::Invocation;
use super::progress::TerminalProgress;
use crate::bisect::git::Repository;
use crate::bisect::{
    Bisection, Event, History, Journal, MARKDOWN, Names, Outcome, Repeat, Report, Request, Search, Step, Subject,
    Workshop,
};
use crate::config::UsageError;
use crate::exit_code::ExitCode;
use crate::guest_setup::open_cache;
use crate::report::{ResultsDir, check_results_dir};

pub(crate) use words::separate_question;

/// Ends the name of a bisection's folder.
const LABEL: &str = "bisect";

/// `vmm bisect`.
#[derive(Args, Clone, Debug)]
#[command(
    override_usage = "vmm bisect [--tree|--server-tree DIR] --good REV... --bad REV [OPTIONS] [-- PATHS] run SUITE [SUITE ARGS]\n       \
                      vmm bisect --kernels FILE|DIR [OPTIONS] exec -- CMD\n       vmm bisect --resume [DIR]",
    after_help = "Exit code: 0 when one commit (kernel) is named, 125 when that could not be told, 130 when interrupted."
)]
pub struct BisectArgs {
    /// Search the history of this kernel tree; each kernel is built in a work tree of our own
    #[arg(long, value_name = "DIR", conflicts_with_all = ["server_tree", "kernels"])]
    pub tree: Option<PathBuf>,
    /// Search the history of this program: `vmm` is built at each commit and runs what follows
    #[arg(long, value_name = "DIR", conflicts_with = "kernels")]
    pub server_tree: Option<PathBuf>,
    /// Search ready kernels, oldest first: a file with one a line, as --kernel takes them, or a folder of them, sorted by name
    #[arg(long, value_name = "FILE|DIR", conflicts_with_all = ["config", "first_parent", "path", "replay"])]
    pub kernels: Option<PathBuf>,
    /// Does not fail yet [for --kernels: the first, unless its name or number is given]
    #[arg(long, value_name = "REV", num_args = 1..)]
    pub good: Vec<String>,
    /// Fails [for --kernels: the last, unless its name or number is given]
    #[arg(long, value_name = "REV", num_args = 1..)]
    pub bad: Vec<String>,
    /// Look for the commit that mended it: --bad is the older end then
    #[arg(long)]
    pub fix: bool,
    /// Only commits that touch PATH; the same as PATHS behind `--` (repeatable)
    #[arg(long, value_name = "PATH")]
    pub path: Vec<String>,
    /// Follow only the first parent of merges
    #[arg(long)]
    pub first_parent: bool,
    /// Configure kernels from FILE; our own options are merged into it [default: make tinyconfig]
    #[arg(long, value_name = "FILE", conflicts_with = "server_tree")]
    pub config: Option<PathBuf>,
    /// Run each up to N times until it fails; `auto`: until the chance of naming a wrong commit is below --error, however
    /// often the failure shows
    #[arg(long, value_name = "N|auto", default_value = "1", value_parser = parse_repeat)]
    pub repeat: Repeat,
    /// The chance of naming a wrong commit that is acceptable with --repeat auto
    #[arg(long, value_name = "CHANCE", default_value = "0.01", value_parser = parse_error)]
    pub error: f64,
    /// Test up to N commits at a time, ahead of the search; one at a time is built. Finds the same, sooner on a machine that is
    /// idle enough. What was tested ahead is tested again when the bisection is interrupted before it is asked for
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub jobs: u32,
    /// What a kernel that does not come as far as user space is
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    pub boot_failure: BootFailure,
    /// Give up when more than N in question cannot be tested
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub max_untestable: usize,
    /// The bisection gets a new folder in here
    #[arg(long, value_name = "DIR", default_value = "results")]
    pub results: PathBuf,
    /// Take the verdicts of a `git bisect log`, the ends too unless --good and --bad are given
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
    /// Go on with the bisection in this folder [default: the newest in --results]
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with_all = ["tree", "server_tree", "kernels", "good", "bad", "replay", "question"])]
    pub resume: Option<Option<PathBuf>>,
    /// What to run in each guest: `run SUITE [SUITE ARGS]` or `exec -- CMD`, with their own options
    #[arg(last = true, value_name = "QUESTION")]
    pub question: Vec<OsString>,
}

/// What a kernel that does not come as far as user space is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BootFailure {
    /// Untestable
    #[default]
    Skip,
    /// The failure that is looked for
    Bad,
}

fn parse_repeat(text: &str) -> Result<Repeat, String> {
    match (text, text.parse()) {
        ("auto", _) => Ok(Repeat::Auto),
        (_, Ok(times @ 1..=1000)) => Ok(Repeat::Times(times)),
        _ => Err("give `auto` or a number from 1 to 1000".to_owned()),
    }
}

fn parse_error(text: &str) -> Result<f64, String> {
    let error = text.parse::<f64>().ok().filter(|error| (1e-6..=0.2).contains(error));
    error.ok_or_else(|| "give a chance from 0.000001 to 0.2".to_owned())
}

/// Runs `vmm bisect`.
///
/// # Errors
/// [`UsageError`]: what was asked makes no sense. Else trouble of this machine; what was learned is on the disk.
pub fn bisect(
    args: &BisectArgs,
    cache_dir: &Path,
    invocation: &Invocation,
    progress: &TerminalProgress,
) -> anyhow::Result<ExitCode> {
    if let Some(dir) = &args.resume {
        let dir = match dir {
            Some(dir) => dir.clone(),
            None => newest(&args.results)?,
        };
        let dir = std::path::absolute(&dir).with_context(|| format!("failed to find {}", dir.display()))?;
        let (request, journal) = Journal::open(&dir)?;
        let names = names_of(&request)?;
        progress.print(&format!("Going on with {} after {} steps", dir.display(), journal.steps().len()));
        return go_on(&request, args.jobs, journal, &names, cache_dir, invocation, progress);
    }
    let asked = request::checked(args, cache_dir, invocation)?;
    check_results_dir(&args.results)?;
    let names = names_of(&asked.request)?;
    let folder = ResultsDir::create(&args.results, LABEL, Timestamp::now())?;
    let dir = folder.path().to_owned();
    let mut journal = Journal::create(&dir, &asked.request)?;
    for step in asked.given {
        journal.add(step)?;
    }
    let given = journal.steps().len();
    progress.print(&format!("Kept in {}", dir.display()));
    let result = go_on(&asked.request, args.jobs, journal, &names, cache_dir, invocation, progress);
    let is_mistake = |error: &anyhow::Error| error.chain().any(|cause| cause.is::<UsageError>());
    if result.as_ref().is_err_and(is_mistake) && Journal::open(&dir).is_ok_and(|(_, j)| j.steps().len() == given) {
        // Nothing was learned and it cannot be gone on with.
        folder.remove();
    }
    result
}

fn names_of(request: &Request) -> anyhow::Result<Names> {
    Ok(Names::new(match &request.subject {
        Subject::Tree { tree, .. } | Subject::Server { tree, .. } => Some(Repository::open(tree)?),
        Subject::Kernels { .. } => None,
    }))
}

fn history_of(request: &Request, repository: Option<&Repository>) -> anyhow::Result<History> {
    match (&request.subject, repository) {
        (Subject::Tree { paths, first_parent, .. } | Subject::Server { paths, first_parent, .. }, Some(repository)) => {
            let range = repository.range(&request.old, &request.new, paths, *first_parent)?;
            Ok(History::new(&range, &request.old, &request.new))
        }
        (Subject::Kernels { list }, _) => Ok(History::list(list)),
        _ => anyhow::bail!("there is no repository to search in"),
    }
}

fn go_on(
    request: &Request,
    jobs: u32,
    mut journal: Journal,
    names: &Names,
    cache_dir: &Path,
    invocation: &Invocation,
    progress: &TerminalProgress,
) -> anyhow::Result<ExitCode> {
    let dir = journal.dir().to_owned();
    let resume = || format!("vmm bisect --resume {}", dir.display());
    let mut search = Search::new(history_of(request, names.repository())?, request.rules.clone());
    for Step { id, event, .. } in journal.steps() {
        let node = search.history().find(id).with_context(|| {
            format!("{id} is no longer part of the history: the tree was changed; start anew, or bring it back")
        })?;
        search.record(node, event.clone());
    }
    let cache = open_cache(cache_dir)?;
    // From here on Ctrl-C asks us to stop, and we ask whatever runs.
    guest_image::Progress::step(progress, "preparing");
    let workshop = Workshop::new(&cache, request, names.repository(), &invocation.binary, progress);
    let outcome = workshop.and_then(|workshop| {
        let (journal, search) = (&mut journal, &mut search);
        let runners = kept_host::runners(request, jobs, &cache, invocation, progress)?;
        Bisection { request, journal, search, workshop, runners, names, cache_dir }
            .run(progress, &|line| progress.print(line))
    });
    progress.finish();
    let interrupted = |error: &anyhow::Error| {
        error.chain().any(|cause| matches!(cause.downcast_ref(), Some(guest_image::Error::Interrupted { .. })))
    };
    let conclusion = match outcome {
        Ok(Outcome::Done(conclusion)) => conclusion,
        Ok(Outcome::Interrupted) => {
            eprintln!("interrupted; go on with: {}", resume());
            return Ok(ExitCode::Interrupted);
        }
        Err(error) if interrupted(&error) => {
            eprintln!("interrupted; go on with: {}", resume());
            return Ok(ExitCode::Interrupted);
        }
        Err(error) => return Err(error.context(format!("the bisection stopped; go on later with: {}", resume()))),
    };
    let report = Report { request, search: &search, journal: &journal, names, conclusion: &conclusion };
    report.write()?;
    progress.print(&format!("\n{}\n\nReport: {}", report.verdict(), dir.join(MARKDOWN).display()));
    Ok(report.exit_code())
}

/// The folder of the newest bisection in `results`: their names begin with the time.
fn newest(results: &Path) -> anyhow::Result<PathBuf> {
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.rsplit_once(&format!("Z-{LABEL}")).is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with('-'))
    };
    let entries = std::fs::read_dir(results).ok().into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(named).max().ok_or_else(|| {
        UsageError(format!("there is no bisection in {}; give its folder: --resume DIR", results.display())).into()
    })
}

/// What a log says, as the first steps.
fn given(id: &str, event: Event) -> Step {
    Step { id: id.to_owned(), event, sha256: None, build_ms: 0, test_ms: 0, run: None, notes: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_bisection_is_found_among_other_results() {
        let dir = tempfile::tempdir().unwrap();
        assert!(newest(dir.path()).unwrap_err().is::<UsageError>());
        for name in
            ["2026-01-01T000000Z-bisect", "2026-01-02T000000Z-bisect-2", "2026-01-03T000000Z-xfstests", "latest"]
        {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert!(newest(dir.path()).unwrap().ends_with("2026-01-02T000000Z-bisect-2"));
    }

    #[test]
    fn numbers_out_of_reason_are_refused() {
        assert_eq!(parse_repeat("auto"), Ok(Repeat::Auto));
        assert_eq!(parse_repeat("3"), Ok(Repeat::Times(3)));
        for text in ["0", "-1", "1001", "often", ""] {
            assert!(parse_repeat(text).is_err(), "{text}");
        }
        assert_eq!(parse_error("0.05"), Ok(0.05));
        for text in ["0", "1", "NaN", "-0.1", "x"] {
            assert!(parse_error(text).is_err(), "{text}");
        }
    }
}
