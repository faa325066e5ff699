//! `vmm baseline`: what is expected of a suite's tests, made from runs or lists, and shown.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use guest_image::suite::Manifest;

use super::print;
use crate::cli::{CacheChoice, RunArgs};
use crate::config::UsageError;
use crate::exit_code::ExitCode;
use crate::report::{SavedRun, SavedRunError, printable};
use crate::verdict::{
    Baseline, BaselineError, BaselineFile, BaselineRow, BaselineUpdate, Expected, Situation, import, read_list,
    shipped, shipped_suites,
};

/// Stands for no baseline at all in `--baseline`.
const NONE: &str = "none";
/// Names that are listed; all are in the file.
const LISTED: usize = 20;

/// `vmm baseline`.
#[derive(Args, Clone, Debug)]
pub struct BaselineArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: BaselineAction,
}

/// The actions of `vmm baseline`.
#[derive(Subcommand, Clone, Debug)]
pub enum BaselineAction {
    /// Make a baseline of the results of runs, or bring one up to date: what fails gets a row with its counts, what passes
    /// now loses it
    Update {
        /// Results folders of runs with the same suite
        #[arg(value_name = "RESULTS", required = true)]
        results: Vec<PathBuf>,
        /// Write it here instead of to standard output
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Start from this baseline: its reasons, links and whatever the runs say nothing of are kept, comments are not
        #[arg(long, value_name = "OLD")]
        from: Option<PathBuf>,
        /// The suite, where the runs have several
        #[arg(long, value_name = "NAME")]
        suite: Option<String>,
    },
    /// Make a baseline of a list of tests: an exclude file as xfstests' `check -E` reads it, or an expunge list of kdevops
    /// with comments such as `# F:1/11 reason`
    Import {
        /// The list
        #[arg(value_name = "FILE")]
        list: PathBuf,
        /// The suite whose tests they are
        #[arg(long, value_name = "NAME")]
        suite: String,
        /// What is expected of tests that the list gives no rate of failure for
        #[arg(long = "as", value_name = "WHAT", value_enum, default_value_t)]
        plain: Plain,
        /// Write it here instead of to standard output
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Show a baseline: a file, or the one that is built in for a suite
    Show {
        /// The file or the suite
        #[arg(value_name = "FILE|SUITE")]
        what: PathBuf,
        /// Print it as the file that it is
        #[arg(long)]
        toml: bool,
    },
}

/// What a list without a rate says of a test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Plain {
    /// It does not count, whatever it does
    #[default]
    Expunge,
    /// It fails
    Fail,
}

/// Does what `args` say.
///
/// # Errors
/// A file or folder that is not what it should be: [`UsageError`]. Also what cannot be read or written.
pub fn baseline(args: &BaselineArgs) -> anyhow::Result<ExitCode> {
    match &args.action {
        BaselineAction::Update { results, output, from, suite } => {
            // Before anything is read that takes long.
            check_output(output.as_deref(), from.as_deref())?;
            let old = from.as_deref().map(BaselineFile::read).transpose().map_err(wrong_file)?;
            let runs =
                results.iter().map(|dir| SavedRun::read(dir).map_err(wrong_run)).collect::<Result<Vec<_>, _>>()?;
            let update = BaselineUpdate::new(&runs, suite.as_deref(), old).map_err(|e| UsageError(e.to_string()))?;
            write(output.as_deref(), &update.file)?;
            eprint!("{}", changes(&update, &runs));
        }
        BaselineAction::Import { list, suite, plain, output } => {
            check_output(output.as_deref(), None)?;
            let listed = read_list(list).map_err(wrong_file)?;
            let plain = match plain {
                Plain::Expunge => Expected::Expunge,
                Plain::Fail => Expected::Fail,
            };
            write(output.as_deref(), &checked(import(suite, listed, plain))?)?;
        }
        BaselineAction::Show { what, toml } => {
            let (name, file) = named(what)?;
            print(&if *toml { file.to_toml()? } else { shown(&name, &file) })?;
        }
    }
    Ok(ExitCode::Success)
}

/// What `vmm run` compares with: the lists and baselines that were given, and what is built in.
pub(super) fn of_run(args: &RunArgs, suites: &[Manifest], cache: CacheChoice) -> Result<Baseline, UsageError> {
    let mut baseline = Baseline::default();
    for file in &args.exclude_file {
        baseline.exclude_file(file).map_err(wrong_file)?;
    }
    for file in &args.expect_failures {
        baseline.expect_failures_file(file).map_err(wrong_file)?;
    }
    let names: Vec<String> = suites.iter().map(|suite| suite.name.clone()).collect();
    let cache = cache.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let situation = Situation { suites: &names, cache: &cache };
    for file in args.baseline.iter().filter(|file| !is_none(file)) {
        baseline.add_file(file.display().to_string(), BaselineFile::read(file).map_err(wrong_file)?, situation);
    }
    if !args.baseline.iter().any(|file| is_none(file)) {
        for (file, _) in names.iter().filter_map(|name| shipped(name)) {
            baseline.add_built_in(file, situation);
        }
    }
    if !args.suite_args.is_empty() || args.shard.is_some() {
        baseline.expect_only_some();
    }
    Ok(baseline)
}

fn is_none(file: &Path) -> bool {
    file.as_os_str() == NONE
}

fn wrong_file(error: BaselineError) -> UsageError {
    UsageError(super::error_chain(&error))
}

fn wrong_run(error: SavedRunError) -> anyhow::Error {
    match error {
        SavedRunError::Read { .. } => error.into(),
        wrong => UsageError(super::error_chain(&wrong)).into(),
    }
}

/// A suite's name and a test's may come from the command line and from lists: what is wrong with them is said at once.
fn checked(file: BaselineFile) -> anyhow::Result<BaselineFile> {
    let text = file.to_toml()?;
    Ok(BaselineFile::parse("the new baseline", &text).map_err(wrong_file)?)
}

/// A baseline that took work to write is not lost to a slip: it is written over only when it was what was begun with.
fn check_output(output: Option<&Path>, from: Option<&Path>) -> Result<(), UsageError> {
    let Some(output) = output.filter(|output| output.exists()) else { return Ok(()) };
    let same = from.is_some_and(|from| from.canonicalize().ok() == output.canonicalize().ok());
    if same {
        return Ok(());
    }
    let output = output.display();
    Err(UsageError(format!(
        "--output {output}: it is there already; give --from {output} to bring it up to date, or remove it"
    )))
}

fn write(output: Option<&Path>, file: &BaselineFile) -> anyhow::Result<()> {
    let text = file.to_toml()?;
    let Some(output) = output else { return print(&text) };
    let dir = output.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let whole = || -> std::io::Result<()> {
        let mut new = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
        new.write_all(text.as_bytes())?;
        // As any other file that a program writes; temporary ones are for the user alone.
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        new.as_file().set_permissions(permissions)?;
        new.persist(output).map_err(|error| error.error)?;
        Ok(())
    };
    whole().with_context(|| format!("failed to write {}", output.display()))
}

/// A file of that name, or the baseline that is built in for the suite.
fn named(what: &Path) -> Result<(String, BaselineFile), UsageError> {
    let built_in = what.to_str().and_then(shipped);
    match built_in {
        Some((file, _)) if !what.is_file() => Ok((format!("built in: {}", file.suite), file)),
        None if !what.exists() => Err(UsageError(format!(
            "{}: no such file, and no suite that has a baseline built in; those are {}",
            what.display(),
            shipped_suites().collect::<Vec<_>>().join(", ")
        ))),
        _ => Ok((what.display().to_string(), BaselineFile::read(what).map_err(wrong_file)?)),
    }
}

fn changes(update: &BaselineUpdate, runs: &[SavedRun]) -> String {
    let mut text = String::new();
    for run in runs.iter().filter(|run| !run.is_complete()) {
        let _ = writeln!(text, "{} did not come to its end: only tests that have a result count", printable(&run.name));
    }
    for (title, names) in [
        ("New", &update.added),
        ("Changed", &update.changed),
        ("Dropped, for they pass now", &update.dropped),
        ("Kept, though no run has them", &update.not_seen),
    ] {
        if !names.is_empty() {
            let shown: Vec<_> = names.iter().take(LISTED).map(|name| printable(name)).collect();
            let more = if names.len() > LISTED { ", …" } else { "" };
            let _ = writeln!(text, "{title} ({}): {}{more}", names.len(), shown.join(", "));
        }
    }
    let _ = writeln!(text, "The baseline has {} tests", update.file.tests.len());
    text
}

fn shown(name: &str, file: &BaselineFile) -> String {
    let mut lines = vec![("baseline", name.to_owned()), ("suite", file.suite.clone())];
    lines.push(("kernel", file.kernel.as_ref().map_or_else(|| "any".to_owned(), ToString::to_string)));
    lines.push(("cache", if file.cache.is_empty() { "any".to_owned() } else { file.cache.join(", ") }));
    let told = [("vmm", &file.vmm), ("version", &file.suite_version), ("note", &file.note)];
    lines.extend(told.into_iter().filter_map(|(title, value)| Some((title, value.clone()?))));
    lines.push(("tests", file.tests.len().to_string()));
    let mut text: String = lines.iter().map(|(title, value)| format!("{title:8} {}\n", printable(value))).collect();
    let width = file.tests.iter().map(|row| test_name(row).chars().count()).max().unwrap_or(0).min(40);
    for row in &file.tests {
        let rate = row.known.seen.map(|rate| format!("{}/{}", rate.failed, rate.runs)).unwrap_or_default();
        let link = row.known.link.as_deref().unwrap_or_default();
        let line = format!(
            "  {:8} {rate:>7}  {:width$}  {} {link}",
            row.known.expect.word(),
            printable(&test_name(row)),
            printable(&row.known.reason)
        );
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn test_name(row: &BaselineRow) -> String {
    row.section.as_ref().map_or_else(|| row.name.clone(), |section| format!("{section}: {}", row.name))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn run_args(words: &[&str]) -> RunArgs {
        let words = ["vmm", "run"].iter().chain(words).map(Into::into).collect();
        match Cli::try_parse_with_suite_flags(words).unwrap().command {
            Command::Run(args) => args,
            other => panic!("not run: {other:?}"),
        }
    }

    fn manifest(name: &str) -> Manifest {
        let dir = tempfile::tempdir().unwrap();
        guest_image::suite::manifest(&guest_image::Cache::open(dir.path()).unwrap(), name).unwrap()
    }

    fn expected_of(words: &[&str]) -> Option<Expected> {
        let suites = [manifest("pjdfstest-rs")];
        let mut baseline = of_run(&run_args(words), &suites, CacheChoice::Auto).unwrap();
        baseline.find("pjdfstest-rs", "link::link_count_max").map(|known| known.expect)
    }

    #[test]
    fn the_built_in_baseline_is_used_unless_it_is_left_out_and_a_users_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("my.toml");
        let text = "suite = 'pjdfstest-rs'\n[[test]]\nname = 'link::link_count_max'\nexpect = 'fail'\n";
        std::fs::write(&file, text).unwrap();
        let file = file.to_str().unwrap();
        assert_eq!(expected_of(&[]), Some(Expected::Skip));
        assert_eq!(expected_of(&["--baseline", "none"]), None);
        assert_eq!(expected_of(&["--baseline", file]), Some(Expected::Fail));
        assert_eq!(expected_of(&["--baseline", "none", "--baseline", file]), Some(Expected::Fail));
        let other_cache = text.replace("[[", "cache = ['never']\n[[");
        std::fs::write(file, other_cache).unwrap();
        assert_eq!(expected_of(&["--baseline", file]), Some(Expected::Skip));
    }

    #[test]
    fn a_file_that_somebody_wrote_is_not_written_over_by_a_slip() {
        let dir = tempfile::tempdir().unwrap();
        let (there, other) = (dir.path().join("there"), dir.path().join("other"));
        std::fs::write(&there, "").unwrap();
        check_output(None, None).unwrap();
        check_output(Some(&other), None).unwrap();
        check_output(Some(&there), Some(&there)).unwrap();
        for from in [None, Some(other.as_path())] {
            let error = check_output(Some(&there), from).unwrap_err().to_string();
            assert!(error.contains("--from") && error.contains(there.to_str().unwrap()), "{error}");
        }
        write(Some(&there), &BaselineFile { suite: "s".into(), ..BaselineFile::default() }).unwrap();
        assert_eq!(std::fs::read_to_string(&there).unwrap(), "suite = \"s\"\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_baseline_is_shown_by_file_or_by_suite() {
        let (name, file) = named(Path::new("pjdfstest-rs")).unwrap();
        let text = shown(&name, &file);
        assert!(text.contains("baseline built in: pjdfstest-rs\n"), "{text}");
        assert!(text.contains("\n  skip              link::link_count_max  the suite asks"), "{text}");
        let error = named(Path::new("nosuch")).unwrap_err().to_string();
        assert!(error.contains("nosuch") && error.contains("pjdfstest-rs, unionmount"), "{error}");
        assert!(Cli::try_parse_from(["vmm", "baseline", "update"]).is_err(), "no results");
    }
}
