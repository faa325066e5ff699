//! One module per subcommand, and what they share: where to run, and how a started machine is handed to a session.

mod autopsy;
pub mod baseline;
pub mod bisect;
pub mod compare;
pub mod doctor;
pub mod exec;
mod guests;
pub mod host;
pub mod image;
pub mod kernel;
pub mod merge;
pub mod progress;
pub mod resume;
mod retry;
pub mod run;
pub mod shell;
pub mod suite;
pub mod trace;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode as ProcessExit;
use std::time::Duration;

use anyhow::Context;

use crate::cli::{Cli, Command, ExecArgs, MachineArgs};
use crate::config::{MachineOptions, cache_dir_or_default};
use crate::guest_setup::{GuestFiles, PreparedShares, open_cache};
use crate::host::RunsOn;
use crate::host::emulated::{EmulatedHostConfig, run_inside};
use crate::machine::{self, Flight, RunningVm};
use crate::session::exec_client::ForwardedSignals;
use crate::session::{Deadlines, GuestHandle};
use crate::trace::Trace;
use exec::ExecOptions;
use progress::TerminalProgress;
use resume::Resumed;

/// How long a machine that is told to stop may take before its threads are left behind.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// How this process was started.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// Program and arguments as typed.
    pub command: Vec<OsString>,
    /// Working directory.
    pub directory: PathBuf,
    /// This program's file.
    pub binary: PathBuf,
    /// Whether an outer `vmm` started us inside an emulated host.
    pub inside_emulated_host: bool,
}

impl Invocation {
    fn of_this_process(inside_emulated_host: bool) -> anyhow::Result<Self> {
        Ok(Self {
            command: std::env::args_os().collect(),
            directory: std::env::current_dir()
                .context("failed to read the working directory; if it was removed, cd to one that is there")?,
            binary: std::env::current_exe().context("failed to find this program's own file")?,
            inside_emulated_host,
        })
    }

    /// `kvm` or `emulated`, for reports.
    #[must_use]
    pub fn host_name(&self) -> &'static str {
        if self.inside_emulated_host { "emulated" } else { "kvm" }
    }
}

/// Runs the subcommand and gives the process's exit code.
///
/// # Errors
/// One error, to be printed with its causes; [`crate::config::UsageError`] among them means exit code 2.
pub fn dispatch(cli: Cli) -> anyhow::Result<ProcessExit> {
    let cache_dir = cache_dir_or_default(cli.cache_dir.as_deref())?;
    let mut invocation = Invocation::of_this_process(cli.inside_emulated_host)?;
    let machine_options = |args: &MachineArgs| MachineOptions::new(args, &cache_dir, cli.inside_emulated_host);
    let progress = TerminalProgress::new();
    match &cli.command {
        Command::Run(args) => {
            let resumed = args.resume.as_deref().map(|dir| Resumed::read(dir, &invocation.command)).transpose()?;
            if let Some(resumed) = &resumed {
                invocation.command.clone_from(&resumed.typed);
            }
            let args = resumed.as_ref().map_or(args, |resumed| &resumed.args);
            let options = machine_options(&args.machine)?;
            run::run(args, options, cli.verbose, &invocation, resumed.as_ref()).map(ProcessExit::from)
        }
        Command::Exec(args) => exec(&exec_options(args), &machine_options(&args.machine)?, &invocation),
        Command::Shell(args) => exec(&shell::options(), &machine_options(&args.machine)?, &invocation),
        Command::Image(args) => image::image(args, &open_cache(&cache_dir)?, &progress).map(Into::into),
        Command::Kernel(args) => kernel::kernel(args, &open_cache(&cache_dir)?, &progress).map(Into::into),
        Command::Suite(args) => suite::suite(args, &open_cache(&cache_dir)?, &progress).map(Into::into),
        Command::Baseline(args) => baseline::baseline(args).map(Into::into),
        Command::Compare(args) => compare::compare(args).map(Into::into),
        Command::Merge(args) => merge::merge(args, &cache_dir, &invocation).map(Into::into),
        Command::Trace(args) => trace::trace(args).map(Into::into),
        Command::Bisect(args) => bisect::bisect(args, &cache_dir, &invocation, &progress).map(Into::into),
        Command::Doctor(args) => doctor::doctor(args, &cache_dir, &cache_dir.join("scratch")).map(Into::into),
        Command::Host(args) => host::host(args, || open_cache(&cache_dir), &progress).map(ProcessExit::from),
    }
}

fn exec_options(args: &ExecArgs) -> ExecOptions {
    ExecOptions { tty: args.tty, timeout: args.machine.timeout, ..ExecOptions::new(args.argv.clone()) }
}

fn exec(command: &ExecOptions, options: &MachineOptions, invocation: &Invocation) -> anyhow::Result<ProcessExit> {
    on_usable_host(options, &[], invocation, |files, speed_factor, signals| {
        let shares = PreparedShares::new(&options.shares)?;
        // The console is wanted when the guest dies, so it is kept until then even if nobody asked for it.
        let unasked =
            tempfile::NamedTempFile::new().context("failed to make a temporary file for the guest's console")?;
        let console_log = options.console.clone().unwrap_or_else(|| unasked.path().to_path_buf());
        let mut trace = options.trace.as_deref().map(Trace::create).transpose()?;
        let vm = machine::start(&files.machine(options, &shares.list(), &console_log))?;
        if let Some(trace) = &mut trace {
            trace.follow(vm.flight());
        }
        let stats = options.stats.then(|| vm.statistics());
        let guest = guest_handle(vm, console_log);
        let exit = exec::run(command, guest, signals, &deadlines(options, speed_factor));
        if let Some(stats) = stats {
            eprint!("{}", stats.read());
        }
        if let Some(trace) = trace {
            eprintln!("vmm: {}", trace.finish()?);
        }
        Ok(exit)
    })
}

/// Does `here` with everything a guest needs where KVM is usable, which may be this machine; else starts this very command
/// again inside an emulated host, after everything that needs a network or tools has been made ready out here.
fn on_usable_host<T: From<u8>>(
    options: &MachineOptions,
    suites: &[String],
    invocation: &Invocation,
    here: impl FnOnce(&GuestFiles, f64, &ForwardedSignals) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let progress = TerminalProgress::new();
    let runs_on = options.host.decide()?;
    let files = GuestFiles::ensure(options, suites, &progress)?;
    progress.finish();
    match runs_on {
        RunsOn::ThisMachine(verdict) => {
            let signals = ForwardedSignals::catch().context("failed to install signal handlers")?;
            here(&files, verdict.speed_factor(), &signals)
        }
        RunsOn::EmulatedHost(reason) => {
            let cache = open_cache(&options.cache_dir)?;
            let config = EmulatedHostConfig::prepare(&cache, &progress)?;
            progress.finish();
            let mut command = invocation.command.clone();
            if let Some(program) = command.first_mut() {
                *program = invocation.binary.clone().into();
            }
            host::exit_code(run_inside(&config, &reason, &command)).map(Into::into)
        }
    }
}

/// Hands a machine to a session, which then stops it.
fn guest_handle(vm: RunningVm, console_log: PathBuf) -> GuestHandle<'static> {
    let inspector = vm.inspector();
    let flight = vm.flight();
    let (console, recorder) = (console_log.clone(), flight.clone());
    GuestHandle {
        agent: vm.listen(wire::AGENT_PORT),
        stopped: vm.stopped().clone(),
        autopsy: Box::new(move || autopsy::perform(&inspector, &flight, &console)),
        last_requests: Box::new(move || last_requests(&recorder)),
        console_log: Some(console_log),
        stop: Box::new(move || vm.stop(STOP_DEADLINE)),
    }
}

fn last_requests(flight: &Flight) -> Vec<u8> {
    crate::trace::last_requests(flight).unwrap_or_else(|error| format!("{error}\n").into_bytes())
}

/// The user's deadlines as given, the defaults stretched for a host that is `speed_factor` times slower than hardware.
fn deadlines(options: &MachineOptions, speed_factor: f64) -> Deadlines {
    let defaults = Deadlines::default().scaled(speed_factor);
    Deadlines { boot: options.boot_timeout.unwrap_or(defaults.boot), total: options.timeout, ..defaults }
}

/// Writes a command's result to standard output. Where that is a pipe whose reader has seen enough, such as `head`, the
/// rest is nobody's business.
///
/// # Errors
/// Standard output could not be written.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("failed to write to standard output"),
    }
}

/// An error and its causes in one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
