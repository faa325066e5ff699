//! `vmm merge`: one result of the parts that a run was divided into with `--shard`.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use super::{Invocation, error_chain};
use crate::cli::{Cli, Command, RunArgs};
use crate::config::{MachineOptions, UsageError};
use crate::exit_code::ExitCode;
use crate::report::{
    EarlierPart, OutputFormat, ReportConfig, Reporters, SavedManifest, TerminalConfig, Verbosity, check_results_dir,
};
use crate::session::{RunEvent, RunOutcome, SuiteEnd};

/// `vmm merge`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Exit code: as that of one run of all tests.")]
pub struct MergeArgs {
    /// Results folders of all parts of a run, `vmm run --shard 1/N` to `N/N`
    #[arg(value_name = "RESULTS", required = true)]
    pub parts: Vec<PathBuf>,
    /// The merged results go to a new folder in here
    #[arg(long, value_name = "DIR", default_value = "results")]
    pub results: PathBuf,
}

/// One part of the run.
struct Part {
    dir: PathBuf,
    manifest: SavedManifest,
    events: EarlierPart,
}

/// Puts the parts together and judges them as one run.
///
/// # Errors
/// [`UsageError`] when they are not the parts of one run, each once and each complete. Also files that cannot be read or written.
pub fn merge(args: &MergeArgs, cache_dir: &Path, invocation: &Invocation) -> anyhow::Result<ExitCode> {
    check_results_dir(&args.results)?;
    let parts = read_parts(&args.parts)?;
    let first = parts.values().next().context("there is no part")?;
    let command = without(&first.manifest.command, &["--shard", "--results", "--jobs", "-j"]);
    let mut run_args = run_args(&command)?;
    if run_args.suites.is_empty() {
        // More may have been added since.
        run_args.suites = first.manifest.suite_names();
    }
    let options = MachineOptions::new(&run_args.machine, cache_dir, true)?;
    let suites = super::run::manifests_of(&run_args, &options)?;
    let command: Vec<OsString> = command.into_iter().map(OsString::from).collect();
    let mut reporters = Reporters::create(ReportConfig {
        results_parent: args.results.clone(),
        suites: suites.iter().map(|suite| suite.name.clone()).collect(),
        host: first.manifest.host_kind().to_owned(),
        baseline: super::baseline::of_run(&run_args, &suites, options.cache)?,
        format: OutputFormat::Text,
        terminal: TerminalConfig::detect(Verbosity::Quiet, OutputFormat::Text),
        manifest: first.manifest.inputs(command, invocation.binary.clone()),
    })?;
    let mut ends = Ends::of(parts.values());
    let mut outcome = RunOutcome::Completed;
    for part in parts.values() {
        if let (RunOutcome::Completed, Some(came_to)) = (&outcome, part.events.outcome()) {
            outcome = came_to.clone();
        }
        for event in part.events.events() {
            if let Some(told) = ends.merged(&event.event) {
                reporters.on_guest_event(event.guest, told);
            }
        }
    }
    for (index, part) in &parts {
        copy_files(part, *index, reporters.dir()).with_context(|| {
            format!("failed to copy files of {} to {}", part.dir.display(), reporters.dir().display())
        })?;
    }
    Ok(reporters.finish(&outcome))
}

/// The parts by their numbers.
fn read_parts(dirs: &[PathBuf]) -> anyhow::Result<BTreeMap<u32, Part>> {
    let mut parts: BTreeMap<u32, Part> = BTreeMap::new();
    let mut of = None;
    for dir in dirs {
        let shown = dir.display();
        let events = EarlierPart::read(dir).map_err(|error| UsageError(error_chain(&error)))?;
        let manifest = SavedManifest::read(dir)?;
        let Some(shard) = manifest.shard() else {
            anyhow::bail!(UsageError(format!("{shown} is of a run without --shard: it is a whole by itself")));
        };
        if events.outcome().is_none() {
            anyhow::bail!(UsageError(format!(
                "shard {shard} in {shown} did not come to its end; go on with it first: vmm run --resume {shown}"
            )));
        }
        if let Some(other) = parts.values().next() {
            if let Some(what) = difference(&other.manifest, &manifest) {
                let other = other.dir.display();
                anyhow::bail!(UsageError(format!("{other} and {shown} are parts of different runs: {what} differs")));
            }
            if *of.get_or_insert(shard.of) != shard.of {
                anyhow::bail!(UsageError(format!(
                    "{shown} is shard {shard}: the parts are of different numbers of shards"
                )));
            }
        }
        of = Some(shard.of);
        let part = Part { dir: dir.clone(), manifest, events };
        if let Some(twice) = parts.insert(shard.index, part) {
            anyhow::bail!(UsageError(format!("shard {shard} is given twice: {} and {shown}", twice.dir.display())));
        }
    }
    let of = of.unwrap_or_default();
    if let Some(missing) = (1..=of).find(|index| !parts.contains_key(index)) {
        anyhow::bail!(UsageError(format!("shard {missing}/{of} is missing; give the results of all {of}")));
    }
    Ok(parts)
}

/// What tells two runs apart that should be parts of one.
fn difference(one: &SavedManifest, other: &SavedManifest) -> Option<String> {
    let dividing = ["--shard", "--results", "--jobs", "-j", "--cache-dir", "--scratch-dir", "--host"];
    // The program may lie elsewhere on another machine.
    let words = |manifest: &SavedManifest| without(&manifest.command, &dividing).split_off(1);
    if words(one) != words(other) {
        return Some("the command line".to_owned());
    }
    if one.suites != other.suites {
        return Some("what suites there are".to_owned());
    }
    let files = one.inputs(Vec::new(), PathBuf::new()).files;
    let compared: Vec<_> = files
        .into_iter()
        .filter(|file| file.role == "kernel" || file.role == "image" || file.role.starts_with("suite "))
        .collect();
    other.differs_in(&compared).map(|(role, ..)| role.to_owned())
}

/// A command line without these flags of `vmm run` and their values. What is behind `--` is the suite's.
fn without(command: &[String], flags: &[&str]) -> Vec<String> {
    let mut left = Vec::new();
    let mut words = command.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            left.push(word.clone());
            left.extend(words.by_ref().cloned());
        } else if flags.contains(&word.as_str()) {
            words.next();
        } else if !flags.iter().any(|flag| word.strip_prefix(flag).is_some_and(|rest| rest.starts_with('='))) {
            left.push(word.clone());
        }
    }
    left
}

fn run_args(command: &[String]) -> anyhow::Result<RunArgs> {
    let cli = Cli::try_parse_with_suite_flags(command.iter().map(OsString::from).collect())
        .context("the command line of the parts is not one of this vmm's")?;
    match cli.command {
        Command::Run(args) => Ok(args),
        _ => anyhow::bail!("the parts are not of a `vmm run`"),
    }
}

/// Makes one beginning and one end of each suite of those that its parts had.
struct Ends {
    /// How many parts of a suite have not ended.
    left: HashMap<String, usize>,
    begun: HashMap<String, bool>,
    worst: HashMap<String, Option<SuiteEnd>>,
    duration_ms: HashMap<String, u64>,
}

impl Ends {
    fn of<'p>(parts: impl Iterator<Item = &'p Part>) -> Self {
        let mut left: HashMap<String, usize> = HashMap::new();
        for event in parts.flat_map(|part| part.events.events()) {
            if let RunEvent::SuiteFinished { suite, .. } = &event.event {
                *left.entry(suite.clone()).or_default() += 1;
            }
        }
        Self { left, begun: HashMap::new(), worst: HashMap::new(), duration_ms: HashMap::new() }
    }

    /// What an event of a part is in the whole.
    fn merged(&mut self, event: &RunEvent) -> Option<RunEvent> {
        match event {
            RunEvent::RunStarted { .. } | RunEvent::RunFinished { .. } => None,
            RunEvent::SuiteStarted { suite } => {
                (!std::mem::replace(self.begun.entry(suite.clone()).or_default(), true)).then(|| event.clone())
            }
            RunEvent::SuiteFinished { suite, end, duration_ms } => {
                let total = self.duration_ms.entry(suite.clone()).or_default();
                *total = total.saturating_add(*duration_ms);
                let worst = self.worst.entry(suite.clone()).or_insert(Some(SuiteEnd::Exited(0)));
                *worst = worse(*worst, *end);
                let left = self.left.entry(suite.clone()).or_default();
                *left = left.saturating_sub(1);
                (*left == 0).then(|| RunEvent::SuiteFinished { suite: suite.clone(), end: *worst, duration_ms: *total })
            }
            event => Some(event.clone()),
        }
    }
}

/// The end that is more to worry about; `None` is a suite that was cut off.
fn worse(one: Option<SuiteEnd>, other: Option<SuiteEnd>) -> Option<SuiteEnd> {
    match (one?, other?) {
        (SuiteEnd::Exited(0), end) | (end, SuiteEnd::Exited(0)) => Some(end),
        (signaled @ SuiteEnd::Signaled(_), _) | (_, signaled @ SuiteEnd::Signaled(_)) => Some(signaled),
        (end, _) => Some(end),
    }
}

/// A part's artefacts, which are of tests that no other part has, and its guests' consoles.
fn copy_files(part: &Part, index: u32, to: &Path) -> io::Result<()> {
    for suite in read_dir(&part.dir.join("artefacts"))? {
        let into = to.join("artefacts").join(suite.file_name().unwrap_or_default());
        fs::create_dir_all(&into)?;
        for file in read_dir(&suite)? {
            fs::copy(&file, into.join(file.file_name().unwrap_or_default()))?;
        }
    }
    for file in read_dir(&part.dir)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("console") && name.ends_with(".log") {
            fs::copy(&file, to.join(format!("shard-{index}-{name}")))?;
        }
    }
    Ok(())
}

/// What is in a folder; nothing if there is none.
fn read_dir(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn what_divides_a_run_is_no_difference_between_its_parts() {
        let left =
            without(&words("vmm run --shard 1/3 s --cpus 2 --results=r -- --shard x"), &["--shard", "--results"]);
        assert_eq!(left, words("vmm run s --cpus 2 -- --shard x"));
    }

    #[test]
    fn a_suite_begins_and_ends_once_with_its_worst_end() {
        let mut ends = Ends {
            left: [("s".to_owned(), 2)].into(),
            begun: HashMap::new(),
            worst: HashMap::new(),
            duration_ms: HashMap::new(),
        };
        let started = RunEvent::SuiteStarted { suite: "s".into() };
        let ended =
            |code| RunEvent::SuiteFinished { suite: "s".into(), end: Some(SuiteEnd::Exited(code)), duration_ms: 5 };
        assert_eq!(ends.merged(&started), Some(started.clone()));
        assert_eq!(ends.merged(&ended(1)), None);
        assert_eq!(ends.merged(&started), None);
        let whole = RunEvent::SuiteFinished { suite: "s".into(), end: Some(SuiteEnd::Exited(1)), duration_ms: 10 };
        assert_eq!(ends.merged(&ended(0)), Some(whole));
    }

    #[test]
    fn a_part_that_was_cut_off_is_the_worst() {
        assert_eq!(worse(Some(SuiteEnd::Signaled(9)), None), None);
        assert_eq!(worse(Some(SuiteEnd::Exited(1)), Some(SuiteEnd::Signaled(9))), Some(SuiteEnd::Signaled(9)));
    }
}
