//! Where KVM is of no use here, a bisection keeps one emulated host for all its runs: starting it takes longer than many a test.

use std::ffi::OsString;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;

use anyhow::Context;
use guest_image::{Cache, Progress};

use super::TerminalProgress;
use crate::bisect::{Call, LogDetails, Processes, Request, Runner, Subject, create_log};
use crate::cli::{Cli, Command};
use crate::command::Invocation;
use crate::command::run::RunRequest;
use crate::config::{MachineOptions, UsageError};
use crate::exit_code::ExitCode;
use crate::guest_setup::GuestFiles;
use crate::host::RunsOn;
use crate::host::emulated::{EmulatedHostConfig, EmulatedHostError, KeptHost};

/// What makes the runs of `request`, `jobs` of them.
///
/// # Errors
/// They need KVM and it is of no use, or an emulated host and one cannot be prepared.
pub(super) fn runners(
    request: &Request,
    jobs: u32,
    cache: &Cache,
    invocation: &Invocation,
    progress: &TerminalProgress,
) -> anyhow::Result<Vec<Box<dyn Runner>>> {
    let processes = || (0..jobs).map(|_| -> Box<dyn Runner> { Box::new(Processes) }).collect();
    // Another `vmm` may want another emulated host.
    if matches!(request.subject, Subject::Server { .. }) {
        return Ok(processes());
    }
    // Paths in the question are relative to where it was typed; everything else is absolute by now.
    let directory = &request.directory;
    std::env::set_current_dir(directory)
        .with_context(|| format!("failed to enter {}, where this was begun", directory.display()))?;
    let words = std::iter::once("vmm").chain(request.question.iter().map(String::as_str)).map(OsString::from);
    let asked = Asked::parse(words.collect(), cache, invocation.inside_emulated_host)?;
    match asked.options().host.decide()? {
        RunsOn::ThisMachine(_) => Ok(processes()),
        RunsOn::EmulatedHost(reason) => {
            let config = EmulatedHostConfig::prepare(cache, progress)?.one_of(jobs)?;
            progress.print(&format!("Guests run in an emulated host: {reason}"));
            let kept = || Kept { host: KeptHost::new(config.clone()), cache_dir: cache.root().to_owned() };
            Ok((0..jobs).map(|_| -> Box<dyn Runner> { Box::new(kept()) }).collect())
        }
    }
}

/// A question as it was understood.
enum Asked {
    Run(Box<RunRequest>),
    Exec(Box<MachineOptions>),
}

impl Asked {
    /// The first of the words is the program's name.
    fn parse(words: Vec<OsString>, cache: &Cache, inside_emulated_host: bool) -> anyhow::Result<Self> {
        let parsed = Cli::try_parse_with_suite_flags(words).map_err(|error| UsageError(error.to_string()))?;
        let options = |args| MachineOptions::new(args, cache.root(), inside_emulated_host);
        Ok(match &parsed.command {
            Command::Run(run) => Self::Run(Box::new(RunRequest::new(run, options(&run.machine)?, 0)?)),
            Command::Exec(exec) => Self::Exec(Box::new(options(&exec.machine)?)),
            _ => anyhow::bail!(UsageError("what is run in each guest is `run SUITE` or `exec -- CMD`".to_owned())),
        })
    }

    fn options(&self) -> &MachineOptions {
        match self {
            Self::Run(run) => &run.options,
            Self::Exec(options) => options,
        }
    }

    /// Everything that its guests need and that can only be had out here.
    fn files(&self, progress: &dyn Progress) -> anyhow::Result<GuestFiles> {
        let suites = match self {
            Self::Run(run) => run.suite_names(),
            Self::Exec(_) => Vec::new(),
        };
        GuestFiles::ensure(self.options(), &suites, progress)
    }
}

struct Kept {
    host: KeptHost,
    cache_dir: PathBuf,
}

impl Runner for Kept {
    fn run(&mut self, call: &Call<'_>, progress: &dyn Progress) -> anyhow::Result<Option<ExitStatus>> {
        let log = create_log(call.log)?;
        // As the process would end that makes its files itself.
        let end_with = |error: &anyhow::Error| -> anyhow::Result<Option<ExitStatus>> {
            let code = ExitCode::of(error);
            writeln!(&log, "vmm: {error:#}").with_context(|| format!("failed to write {}", call.log.display()))?;
            Ok((code != ExitCode::Interrupted).then(|| exited(code as u8)))
        };
        let argv = || std::iter::once(call.binary.into()).chain(call.words.iter().map(OsString::from)).collect();
        let cache = Cache::open(&self.cache_dir)?;
        let files = Asked::parse(argv(), &cache, false).and_then(|asked| asked.files(progress));
        if let Err(error) = files {
            return end_with(&error);
        }
        if !self.host.is_running() {
            progress.step("starting an emulated host");
        }
        let mut details = LogDetails::new(call.log);
        let mut waiting = || {
            details.show(progress);
            if progress.interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let plain = [("NO_COLOR", "1")];
        match self.host.run(&argv(), &plain, call.directory, &log, &mut waiting) {
            Ok(end) => Ok(Some(exited(end.exit_code()))),
            Err(EmulatedHostError::Interrupted) => Ok(None),
            Err(error) => end_with(&anyhow::Error::new(error).context("no result from the emulated host")),
        }
    }

    fn begin_afresh(&mut self) {
        self.host.end();
    }
}

fn exited(code: u8) -> ExitStatus {
    ExitStatus::from_raw(i32::from(code) << 8)
}
