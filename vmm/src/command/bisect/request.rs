//! From what the user typed to a request that makes sense, before anything is built or made.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{BisectArgs, BootFailure, ends, given, kernel_list};
use crate::bisect::git::Repository;
use crate::bisect::git_log::{self, Mark};
use crate::bisect::{Event, Request, Rules, Step, Subject, is_exec};
use crate::cli::{Cli, Command};
use crate::command::Invocation;
use crate::command::run::RunRequest;
use crate::config::{MachineOptions, UsageError};

/// What a bisection begins with.
#[derive(Debug)]
pub(super) struct Asked {
    /// The request.
    pub(super) request: Request,
    /// What a log has said already.
    pub(super) given: Vec<Step>,
}

/// Checks everything that can be checked without building or booting.
///
/// # Errors
/// [`UsageError`] that says what is wrong and what to do.
pub(super) fn checked(args: &BisectArgs, cache_dir: &Path, invocation: &Invocation) -> anyhow::Result<Asked> {
    let question = question(args, cache_dir, invocation)?;
    let (subject, old, new, given) = match (&args.tree, &args.server_tree, &args.kernels) {
        (Some(tree), None, None) => of_tree(args, tree, false)?,
        (None, Some(tree), None) => of_tree(args, tree, true)?,
        (None, None, Some(list)) => of_kernels(args, list)?,
        _ => bail!(UsageError(
            "say what to search: --tree DIR (a kernel's history), --kernels FILE|DIR (ready kernels) or --server-tree DIR"
                .to_owned()
        )),
    };
    let request = Request {
        version: Request::VERSION,
        subject,
        old,
        new,
        rules: Rules { repeat: args.repeat, error: args.error, fix: args.fix, max_untestable: args.max_untestable },
        boot_failure_is_bad: args.boot_failure == BootFailure::Bad,
        question,
        directory: invocation.directory.clone(),
        command: invocation.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
    };
    Ok(Asked { request, given })
}

/// The words of the question, which must be a command line of ours that leaves open what we fill in.
fn question(args: &BisectArgs, cache_dir: &Path, invocation: &Invocation) -> anyhow::Result<Vec<String>> {
    if args.question.is_empty() {
        bail!(UsageError("say at the end what to run in each guest: `run SUITE` or `exec -- CMD`".to_owned()));
    }
    let text = |word: &OsString| {
        let shown = word.display();
        word.to_str().map(str::to_owned).ok_or_else(|| UsageError(format!("{shown} is not UTF-8 and cannot be kept")))
    };
    let words = args.question.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    let mut ours = vec!["--results", "--resume", "--console", "--tty", "-t"];
    if args.server_tree.is_none() {
        ours.push("--kernel");
    }
    let before_dashes = words.iter().take_while(|word| *word != "--");
    for word in before_dashes {
        let flag = word.split('=').next().unwrap_or_default();
        if ours.contains(&flag) {
            bail!(UsageError(format!("{flag} cannot be part of what is run: the bisection gives it itself")));
        }
    }
    let command_line = std::iter::once(OsString::from("vmm")).chain(args.question.iter().cloned()).collect();
    // Clap prints its own error and leaves with 2, or prints the help that was asked for.
    let parsed = Cli::try_parse_with_suite_flags(command_line).unwrap_or_else(|error| error.exit());
    match &parsed.command {
        Command::Run(run) => {
            let options = MachineOptions::new(&run.machine, cache_dir, invocation.inside_emulated_host)?;
            RunRequest::new(run, options, 0)?;
        }
        Command::Exec(exec) => {
            MachineOptions::new(&exec.machine, cache_dir, invocation.inside_emulated_host)?;
        }
        _ => bail!(UsageError("what is run in each guest is `run SUITE` or `exec -- CMD`".to_owned())),
    }
    debug_assert!(is_exec(&words) || words[0] == "run");
    Ok(words)
}

type Found = (Subject, Vec<String>, String, Vec<Step>);

fn of_tree(args: &BisectArgs, tree: &Path, is_server: bool) -> anyhow::Result<Found> {
    let repository = Repository::open(tree)?;
    let marks = match &args.replay {
        Some(file) => read_log(file, &repository)?,
        None => Vec::new(),
    };
    let marked = |wanted: Mark| marks.iter().filter(move |(mark, _)| *mark == wanted).map(|(_, id)| id.clone());
    let (mut good, mut bad) = (args.good.clone(), args.bad.clone());
    let (old, new) = if args.fix { (&mut bad, &mut good) } else { (&mut good, &mut bad) };
    if old.is_empty() {
        old.extend(marked(Mark::Old));
    }
    if new.is_empty() {
        new.extend(marked(Mark::New).next_back());
    }
    let ends = ends::check(&repository, &good, &bad, args.fix)?;
    let shown = tree.display();
    if !is_server {
        for file in ["Kbuild", "scripts/kconfig/merge_config.sh"] {
            if !repository.has_file(&ends.new, file)? {
                bail!(UsageError(format!("--tree {shown}: is not the history of a kernel: there is no {file} in it")));
            }
        }
        guest_image::kernel::require_tools()?;
    } else if !repository.has_file(&ends.new, "Cargo.lock")? {
        bail!(UsageError(format!("--server-tree {shown}: is not the history of vmm: there is no Cargo.lock in it")));
    }
    let paths = args.path.clone();
    let range = repository.range(&ends.old, &ends.new, &paths, args.first_parent)?;
    if range.is_empty() {
        bail!(UsageError(format!("no commit between the ends touches {}; give other PATHS", paths.join(" "))));
    }
    if repository.is_dirty()? {
        eprintln!("warning: {shown} has changes that are not committed; they are not tested, and stay as they are");
    }
    let tree = repository.tree().to_owned();
    let mut steps = Vec::new();
    for (mark, id) in marks {
        let is_failing_end = id == if args.fix { ends.old[0].clone() } else { ends.new.clone() };
        let known = range.iter().any(|(commit, _)| *commit == id) || ends.old.contains(&id);
        // What the failure looks like is not in a log, so that the failing end is run in any case.
        if !known || is_failing_end {
            continue;
        }
        let event = match mark {
            Mark::Old => Event::Given { new: false },
            Mark::New => Event::Given { new: true },
            Mark::Skip => Event::Untestable { why: "skipped in the log that was given".to_owned() },
        };
        steps.push(given(&id, event));
    }
    let first_parent = args.first_parent;
    let subject = if is_server {
        Subject::Server { tree, paths, first_parent }
    } else {
        Subject::Tree { tree, config: config(args.config.as_deref())?, paths, first_parent }
    };
    Ok((subject, ends.old, ends.new, steps))
}

fn config(path: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    let Some(path) = path else { return Ok(None) };
    let wrong = |why: &dyn std::fmt::Display| UsageError(format!("--config {}: {why}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| wrong(&error))?;
    if !text.contains("CONFIG_") {
        bail!(wrong(&"is not a kernel's configuration: there is no CONFIG_ in it"));
    }
    Ok(Some(fs::canonicalize(path).with_context(|| format!("failed to find {}", path.display()))?))
}

fn read_log(file: &Path, repository: &Repository) -> anyhow::Result<Vec<(Mark, String)>> {
    let wrong = |why: String| UsageError(format!("--replay {}: {why}", file.display()));
    let text = fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
    let marks = git_log::parse(&text).map_err(wrong)?;
    let flag = format!("--replay {}:", file.display());
    marks.into_iter().map(|(mark, revision)| Ok((mark, repository.resolve(&flag, &revision)?))).collect()
}

fn of_kernels(args: &BisectArgs, path: &Path) -> anyhow::Result<Found> {
    let list = kernel_list::read(path)?;
    let at = |flag: &str, given: &[String], default: usize| match given {
        [] => Ok(default),
        [one] => kernel_list::place(flag, one, &list),
        many => Err(UsageError(format!("{flag} was given {} times; a list has one", many.len()))),
    };
    let last = list.len() - 1;
    let (good, bad) = if args.fix {
        (at("--good", &args.good, last)?, at("--bad", &args.bad, 0)?)
    } else {
        (at("--good", &args.good, 0)?, at("--bad", &args.bad, last)?)
    };
    let (old, new) = if args.fix { (bad, good) } else { (good, bad) };
    if old >= new {
        let hint =
            if args.fix { "with --fix the bad one comes first" } else { "or look for what mended it with --fix" };
        bail!(UsageError(format!("--good and --bad are the wrong way round: exchange them, {hint}")));
    }
    let list = list[old..=new].to_vec();
    let (old, new) = (list[0].clone(), list[list.len() - 1].clone());
    Ok((Subject::Kernels { list }, vec![old], new, Vec::new()))
}
