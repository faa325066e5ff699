//! `vmm host`: any command inside an emulated host.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;
use clap::{Args, Subcommand};
use guest_image::{Cache, Progress};

use crate::config::parse_mib;
use crate::exit_code::ExitCode;
use crate::host::emulated::{DEFAULT_SCRATCH_GIB, EmulatedHostConfig, EmulatedHostError, run_inside};
use crate::host::{HostChoice, RunsOn};

/// Debian's full kernel boots in less, but a guest would have no room.
const MIN_MEMORY_MIB: u64 = 512;

/// `vmm host`.
#[derive(Args, Clone, Debug)]
pub struct HostArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub action: HostAction,
}

/// What can be done with an emulated host.
#[derive(Clone, Debug, Subcommand)]
pub enum HostAction {
    /// Run a command where KVM works: here if it does, else in an emulated host
    ///
    /// In there it finds this machine's files, a scratch disk at $VMM_SCRATCH_DIR, and the same terminal; its exit code
    /// becomes ours.
    Exec(HostExecArgs),
}

/// `vmm host exec`.
#[derive(Args, Clone, Debug)]
pub struct HostExecArgs {
    /// Which machine to run it on
    #[arg(long, value_name = "HOST", value_enum, default_value_t)]
    pub host: HostChoice,
    /// CPUs of the emulated host [default: as many as this machine has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub host_cpus: Option<u32>,
    /// Memory of the emulated host; a plain number is MiB, suffixes M, G and T are understood [default: 8G, less where
    /// there is less]
    #[arg(long, value_name = "SIZE", value_parser = host_memory)]
    pub host_memory: Option<u64>,
    /// Size of the emulated host's scratch disk, GiB; only what is written takes space
    #[arg(long, value_name = "GIB", default_value_t = DEFAULT_SCRATCH_GIB, value_parser = clap::value_parser!(u64).range(1..=4096))]
    pub host_scratch: u64,
    /// Words added to the command line of the emulated host's kernel
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    pub host_append: String,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub argv: Vec<OsString>,
}

/// Runs `vmm host …`; the exit code is the command's own. With usable KVM this process becomes the command.
///
/// # Errors
/// There is no host to run it on, or it did not last.
pub fn host(
    args: &HostArgs,
    open_cache: impl FnOnce() -> anyhow::Result<Cache>,
    progress: &dyn Progress,
) -> anyhow::Result<u8> {
    let HostAction::Exec(args) = &args.action;
    match args.host.decide()? {
        RunsOn::ThisMachine(_) => Ok(become_command(&args.argv)),
        RunsOn::EmulatedHost(reason) => {
            let cache = open_cache()?;
            let mut config = EmulatedHostConfig::prepare(&cache, progress)?;
            config.cpus = args.host_cpus.unwrap_or(config.cpus);
            config.memory_mib = args.host_memory.unwrap_or(config.memory_mib);
            config.scratch_gib = args.host_scratch;
            config.append.clone_from(&args.host_append);
            exit_code(run_inside(&config, &reason, &args.argv))
        }
    }
}

/// The code to leave with after [`run_inside`]: the command's own, or 130 when the user gave up on it.
///
/// # Errors
/// Everything else.
pub fn exit_code(result: Result<u8, EmulatedHostError>) -> anyhow::Result<u8> {
    match result {
        Err(EmulatedHostError::Interrupted) => Ok(ExitCode::Interrupted as u8),
        result => result.context("no result from the emulated host"),
    }
}

fn host_memory(text: &str) -> Result<u64, String> {
    let mib = parse_mib(text)?;
    if mib < MIN_MEMORY_MIB { Err(format!("it needs at least {MIN_MEMORY_MIB} MiB to boot")) } else { Ok(mib) }
}

/// Only returns when the command cannot be started.
fn become_command(argv: &[OsString]) -> u8 {
    let Some((program, arguments)) = argv.split_first() else { return ExitCode::Usage as u8 };
    let error = Command::new(program).args(arguments).exec();
    // Rust's exec gave SIGPIPE back its default before it failed, and we live on.
    // SAFETY: signal takes plain numbers; nothing else of this process handles SIGPIPE.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    eprintln!("vmm: failed to start {}: {error}", program.display());
    if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        host: HostArgs,
    }

    fn parse(words: &[&str]) -> Result<HostExecArgs, clap::Error> {
        let HostAction::Exec(args) = Cli::try_parse_from(words)?.host.action;
        Ok(args)
    }

    #[test]
    fn the_command_is_taken_as_it_is() {
        let args =
            parse(&["host", "exec", "--host", "emulated", "--", "sh", "-c", "exit 3", "--host"]).expect("parses");
        assert_eq!(args.host, HostChoice::Emulated);
        assert_eq!(args.argv, ["sh", "-c", "exit 3", "--host"]);
    }

    #[test]
    fn a_command_is_required_and_sizes_are_checked() {
        assert!(parse(&["host", "exec"]).is_err());
        assert!(parse(&["host", "exec", "--host-cpus", "0", "--", "true"]).is_err());
        assert!(parse(&["host", "exec", "--host-memory", "100", "--", "true"]).is_err());
        assert!(parse(&["host", "exec", "--host-memory", "12X", "--", "true"]).is_err());
        let memory = |size| parse(&["host", "exec", "--host-memory", size, "--", "true"]).expect(size).host_memory;
        assert_eq!([memory("12G"), memory("2048"), memory("768M")], [Some(12 << 10), Some(2048), Some(768)]);
        assert!(parse(&["host", "exec", "--host-scratch", "0", "--", "true"]).is_err());
    }

    #[test]
    fn who_gives_up_gets_130_and_other_trouble_is_an_error() {
        assert_eq!(exit_code(Ok(7)).expect("a code"), 7);
        assert_eq!(exit_code(Err(EmulatedHostError::Interrupted)).expect("a code"), 130);
        assert!(exit_code(Err(EmulatedHostError::Prepare("x".to_owned()))).is_err());
    }

    #[test]
    fn a_command_that_is_not_there_is_127() {
        assert_eq!(become_command(&["/no/such/command".into()]), 127);
        assert_eq!(become_command(&["/".into()]), 126);
    }
}
