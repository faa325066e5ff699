//! The command line, as clap reads it. Raw: nothing is checked here beyond syntax; [`crate::config`] does that.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::command;
use crate::host::HostChoice;
use crate::machine::Polling;
use crate::report::OutputFormat;
use crate::schedule::{GuestPer, Shard};

/// Boots a Linux kernel with virtio-fs built into the monitor and runs file-system suites on it.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, max_term_width = 110, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Where images, kernels and suites are kept [default: $XDG_CACHE_HOME/vmm or ~/.cache/vmm]
    #[arg(long, global = true, value_name = "DIR", env = "VMM_CACHE_DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Say more on standard error: given once what is done, twice every detail
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Set by an outer `vmm` for the one it starts inside an emulated host: the only host there is.
    #[arg(long, global = true, hide = true, env = crate::host::emulated::INSIDE_VARIABLE, value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub inside_emulated_host: bool,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run test suites in a guest and judge their results
    Run(RunArgs),
    /// Run one command in a guest; its output and exit code become ours
    Exec(ExecArgs),
    /// Open an interactive shell in a guest
    Shell(ShellArgs),
    /// Build, list and remove guest root images
    Image(command::image::ImageArgs),
    /// Build guest kernels
    Kernel(command::kernel::KernelArgs),
    /// Add, list and show test suites
    Suite(command::suite::SuiteArgs),
    /// Make, import and show baselines: what is expected of a suite's tests
    Baseline(command::baseline::BaselineArgs),
    /// Tell what changed between the results of two runs
    Compare(command::compare::CompareArgs),
    /// Make one result of the parts of a run that was divided with --shard
    Merge(command::merge::MergeArgs),
    /// Show what shares served, or where two runs part in it
    Trace(command::trace::TraceArgs),
    /// Find the commit, or the kernel of a list, with which a test began to fail
    Bisect(command::bisect::BisectArgs),
    /// Check whether this machine can run guests, and say what to mend
    Doctor(command::doctor::DoctorArgs),
    /// Use the emulated host: a Linux with working KVM where this machine has none
    Host(command::host::HostArgs),
}

/// How long the guest may trust what it has cached of a share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CacheChoice {
    /// One second, data dropped when the file changed
    #[default]
    Auto,
    /// A day: nobody else changes the share
    Always,
    /// Not at all, file data included
    Never,
}

/// Whether the server finds inodes by file handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum InodeHandlesChoice {
    /// Where the host can; takes CAP_DAC_READ_SEARCH
    #[default]
    Prefer,
    /// By open descriptors; a file that the guest forgot is another to it afterwards
    Never,
}

/// Mount option `dax=` of the guest's shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DaxMode {
    /// All files
    #[default]
    Always,
    /// Those of 1 MiB or more
    Inode,
    /// None, though there is a window
    Never,
}

impl DaxMode {
    /// The option as the kernel has it.
    #[must_use]
    pub fn mount_option(self) -> &'static str {
        match self {
            Self::Always => "dax=always",
            Self::Inode => "dax=inode",
            Self::Never => "dax=never",
        }
    }
}

/// How shares are served: common to all of a machine's.
#[derive(Args, Clone, Debug, Default)]
pub struct ServeArgs {
    /// Refuse every change of the shares
    #[arg(long)]
    pub readonly: bool,
    /// Let the guest keep written data back; only where nobody else changes the shares
    #[arg(long)]
    pub writeback: bool,
    /// Serve POSIX ACLs
    #[arg(long)]
    pub posix_acl: bool,
    /// Let the guest's security module label files as they are made
    #[arg(long)]
    pub security_label: bool,
    /// Take the guest's file locks (fcntl, flock) through to the shared directories
    #[arg(long)]
    pub posix_locks: bool,
    /// Whether the server finds inodes by file handle
    #[arg(long, value_name = "WHEN", value_enum, default_value_t)]
    pub inode_file_handles: InodeHandlesChoice,
    /// Store extended attributes under other names: rules as virtiofsd's --xattrmap has them, such as
    /// `:map:trusted.:user.virtiofs.:`
    #[arg(long, value_name = "RULES")]
    pub xattrmap: Option<String>,
    /// Translate user ids: map:GUEST:HOST:COUNT, squash-guest:GUEST:HOST:COUNT, squash-host:HOST:GUEST:COUNT or
    /// forbid-guest:GUEST:COUNT (repeatable)
    #[arg(long, value_name = "RULE")]
    pub translate_uid: Vec<String>,
    /// Translate group ids, likewise (repeatable)
    #[arg(long, value_name = "RULE")]
    pub translate_gid: Vec<String>,
    /// Inject a fault into requests on purpose: [SHARE:]op=OPERATION[,name=NAME][,nth=N|,every=N] and errno=NAME, short,
    /// stall or delay=TIME, such as myfs1:op=WRITE,nth=7,errno=EIO (repeatable; each share counts for itself)
    #[arg(long, value_name = "RULE")]
    pub fault: Vec<String>,
    /// Serve with a fault that tests should notice.
    #[cfg(feature = "planted-bugs")]
    #[arg(long, hide = true, value_name = "NAME", env = "VMM_PLANTED_BUG")]
    pub planted_bug: Option<devices::virtio::fs::PlantedBug>,
    /// Give each share a window of SIZE through which the guest maps its files (DAX): a multiple of 2M, up to 8G
    #[arg(long, value_name = "SIZE")]
    pub dax: Option<String>,
    /// Which files the guest accesses through the window: what shares are mounted with (`-o dax=`)
    /// [default with --dax: always]
    #[arg(long, value_name = "MODE", value_enum, requires = "dax")]
    pub dax_mode: Option<DaxMode>,
}

/// What the guest is made of: common to `run`, `exec` and `shell`.
#[derive(Args, Clone, Debug)]
pub struct MachineArgs {
    /// Guest kernel: a bzImage or vmlinux, a kernel tree (the newest built in it or by `vmm kernel build`), or debian:6.12 / debian:6.1
    #[arg(long, value_name = "KERNEL", default_value = "debian:6.12")]
    pub kernel: String,
    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Guest memory; a plain number is MiB, suffixes M, G and T are understood
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub memory: String,
    /// Words added to the kernel's command line (may be given more than once)
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true)]
    pub append: Vec<String>,
    /// Serve directory PATH as virtio-fs device TAG, instead of two empty scratch directories myfs1 and myfs2 (repeatable)
    #[arg(long, value_name = "PATH:TAG")]
    pub shared_dir: Vec<OsString>,
    /// How long the guest may trust what it has cached of a share
    #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
    pub cache: CacheChoice,
    /// How shares are served.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// How long at most a share's worker looks for the guest's next request, and KVM for what wakes a halted vCPU, before
    /// they sleep: off, a time such as 50us, or auto, which is 1ms in an emulated host with two CPUs for each guest and off
    /// elsewhere
    #[arg(long, value_name = "TIME", default_value = "auto")]
    pub poll: Polling,
    /// At the end print what each share served and how long it took, and why vCPUs left the guest; `run` also writes it
    /// to stats.json and results.json
    #[arg(long)]
    pub stats: bool,
    /// Write every request that the shares serve to FILE, a line of JSON each, for `vmm trace`
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Which machine the guest runs on
    #[arg(long, value_name = "HOST", value_enum, default_value_t)]
    pub host: HostChoice,
    /// Where scratch shares are made and removed again; ext4 or xfs, not a network file system
    /// [default: `scratch` in the cache directory]
    #[arg(long, value_name = "DIR", env = "VMM_SCRATCH_DIR")]
    pub scratch_dir: Option<PathBuf>,
    /// Connect programs of this machine to the guest's vsock: guest connections to port P go to the Unix socket PATH_P,
    /// and a program that connects to PATH and says `CONNECT P` reaches port P of the guest
    #[arg(long, value_name = "PATH")]
    pub vsock_socket: Option<PathBuf>,
    /// The guest's agent must have spoken after this long; suffixes ms, s, m, h [default: 30s, more on a slow host]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub boot_timeout: Option<std::time::Duration>,
    /// The whole command must have ended after this long [default: none]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub timeout: Option<std::time::Duration>,
    /// Keep the guest's console here [default: `console.log` in the results folder; for exec and shell only if given]
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
}

/// `vmm run`.
#[derive(Args, Debug)]
#[command(
    after_help = "Flags after a suite's name that are not vmm's own are the suite's: `vmm run xfstests -g quick`. \
                        Everything after `--` is the suite's in any case."
)]
pub struct RunArgs {
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Results go to a new folder in here
    #[arg(long, value_name = "DIR", default_value = "results")]
    pub results: PathBuf,
    /// One test may take this long before it is killed and counts as an error [default: 5m, more on a slow host]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub test_timeout: Option<std::time::Duration>,
    /// A guest that gives no sign of life for this long hangs, and is ended [default: 1m, more on a slow host]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub hang_timeout: Option<std::time::Duration>,
    /// Run N guests side by side, each with shares of its own
    #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub jobs: u16,
    /// Boot a fresh guest for each test, for a batch of them, or only when one was lost
    #[arg(long, value_name = "WORK", value_enum, default_value_t)]
    pub vm_per: GuestPer,
    /// Run only the I-th of N parts of the tests; `vmm merge` makes one result of all parts
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// Run each test that failed unexpectedly N times more, alone in a fresh guest, and say of its failure whether it is
    /// real, flaky or depends on what ran before; it stays a failure
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=100))]
    pub retries: u32,
    /// Go on with the run in this results folder that was interrupted, killed or ran out of time, as it was started; takes
    /// no other options
    #[arg(long, value_name = "RESULTS")]
    pub resume: Option<PathBuf>,
    /// Tests listed in FILE do not run or do not count; one a line, `#` starts a comment (repeatable)
    #[arg(long, value_name = "FILE")]
    pub exclude_file: Vec<PathBuf>,
    /// Compare with the baseline FILE (see `vmm baseline`), which goes before the one that is built in for the suite; `none`
    /// leaves that out (repeatable; of two files the later one goes first)
    #[arg(long, value_name = "FILE|none")]
    pub baseline: Vec<PathBuf>,
    /// Tests listed in FILE are expected to fail; one a line, `generic/476  # F:1/18 reason` (repeatable)
    #[arg(long, value_name = "FILE")]
    pub expect_failures: Vec<PathBuf>,
    /// What standard output is for
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub format: OutputFormat,
    /// Print nothing but failures and the summary
    #[arg(long, short)]
    pub quiet: bool,
    /// Suites, in order [default: pjdfstest-rs, then the others of `vmm suite list` that are built in and added]
    #[arg(value_name = "SUITE")]
    pub suites: Vec<String>,
    /// Arguments for the suite itself
    #[arg(last = true, value_name = "SUITE_ARGS")]
    pub suite_args: Vec<String>,
}

/// `vmm exec`.
#[derive(Args, Debug)]
pub struct ExecArgs {
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Give the command a terminal, as ssh -t does
    #[arg(long, short)]
    pub tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub argv: Vec<String>,
}

/// `vmm shell`.
#[derive(Args, Debug)]
pub struct ShellArgs {
    /// The machine.
    #[command(flatten)]
    pub machine: MachineArgs,
}

fn parse_duration(text: &str) -> Result<std::time::Duration, String> {
    let parsed = match text.parse::<u64>() {
        Ok(seconds) => Ok(std::time::Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text).map_err(|e| format!("{e}; write it as 90s, 5m or 1h30m")),
    }?;
    if parsed.is_zero() {
        Err("a deadline of nothing always passes; leave the flag out for none".to_owned())
    } else {
        Ok(parsed)
    }
}

impl Cli {
    /// Parses `args` (program name first), letting a suite's own flags through: see [`separate_suite_flags`]. What `bisect`
    /// is to run is a command line of its own.
    ///
    /// # Errors
    /// Clap's error, which also carries `--help` and `--version`.
    pub fn try_parse_with_suite_flags(args: Vec<OsString>) -> Result<Self, clap::Error> {
        let root = Self::command();
        let is_command = |word: &OsString| word.to_str().is_some_and(|word| root.find_subcommand(word).is_some());
        let command = args.iter().skip(1).position(is_command).map(|at| at + 1);
        Self::try_parse_from(match command {
            Some(at) if args[at] == "bisect" => command::bisect::separate_question(&root, args, at),
            _ => separate_suite_flags(args),
        })
    }
}

/// Moves a suite's own flags behind `--`: in `vmm run --cpus 2 xfstests -g quick --memory 2G` the words `-g quick`
/// belong to xfstests, `--memory 2G` to vmm. After the first suite name, long flags of `vmm run` stay vmm's and every
/// other flag, with what follows it, is the suite's.
fn separate_suite_flags(args: Vec<OsString>) -> Vec<OsString> {
    let root = Cli::command();
    let Some(run_at) = args.iter().skip(1).position(|a| a == "run").map(|i| i + 1) else { return args };
    let Some(run) = root.find_subcommand("run") else { return args };
    let takes_value = |word: &str| -> Option<bool> {
        let name = word.strip_prefix("--")?;
        let (name, inline) = name.split_once('=').map_or((name, false), |(n, _)| (n, true));
        if matches!(name, "help" | "version") {
            return Some(false);
        }
        let arg = run.get_arguments().chain(root.get_arguments()).find(|a| a.get_long() == Some(name))?;
        Some(arg.get_action().takes_values() && !inline)
    };
    let (ours, rest) = args.split_at(run_at + 1);
    let mut ours = ours.to_vec();
    let mut suite = Vec::new();
    let mut seen_suite = false;
    let mut in_suite_flags = false;
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        let text = word.to_string_lossy();
        if text == "--" {
            suite.extend(rest.by_ref().cloned());
            break;
        }
        if let Some(with_value) = takes_value(&text) {
            ours.push(word.clone());
            if with_value {
                ours.extend(rest.next().cloned());
            }
        } else if text.starts_with('-') && seen_suite {
            in_suite_flags = true;
            suite.push(word.clone());
        } else if in_suite_flags {
            suite.push(word.clone());
        } else {
            seen_suite |= !text.starts_with('-');
            ours.push(word.clone());
        }
    }
    if !suite.is_empty() {
        ours.push("--".into());
        ours.extend(suite);
    }
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(words: &str) -> RunArgs {
        let args = words.split_whitespace().map(OsString::from).collect();
        match Cli::try_parse_with_suite_flags(args).expect("parses").command {
            Command::Run(run) => run,
            other => panic!("not run: {other:?}"),
        }
    }

    #[test]
    fn clap_accepts_its_own_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_after_the_suite_that_are_not_ours_are_the_suites() {
        let args = run("vmm run --cpus 2 xfstests -g quick -x dangerous --memory 2G");
        assert_eq!(args.suites, ["xfstests"]);
        assert_eq!(args.suite_args, ["-g", "quick", "-x", "dangerous"]);
        assert_eq!((args.machine.cpus, args.machine.memory.as_str()), (2, "2G"));
    }

    #[test]
    fn everything_after_two_dashes_is_the_suites_even_our_own_flags() {
        let args = run("vmm run pjdfstest-rs -- --memory 7 chmod");
        assert_eq!(args.suites, ["pjdfstest-rs"]);
        assert_eq!(args.suite_args, ["--memory", "7", "chmod"]);
    }

    #[test]
    fn several_suites_may_be_named() {
        let args = run("vmm run pjdfstest-rs pjdfstest --quiet");
        assert_eq!(args.suites, ["pjdfstest-rs", "pjdfstest"]);
        assert!(args.quiet && args.suite_args.is_empty());
    }

    #[test]
    fn an_unknown_flag_before_any_suite_is_an_error() {
        let args = ["vmm", "run", "--cpu", "2"].map(OsString::from).to_vec();
        assert!(Cli::try_parse_with_suite_flags(args).is_err());
    }

    #[test]
    fn exec_passes_its_command_untouched() {
        let args = ["vmm", "exec", "--cpus", "4", "--", "sh", "-c", "exit 3"].map(OsString::from).to_vec();
        let Command::Exec(exec) = Cli::try_parse_with_suite_flags(args).expect("parses").command else { panic!() };
        assert_eq!(exec.argv, ["sh", "-c", "exit 3"]);
    }
}
