//! `vmm run`: suites in a fresh guest, every result told as it comes, one verdict at the end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use guest_image::suite::{self, Manifest, SuiteRun};

use super::Invocation;
use super::guests::{Guests, statistics_json};
use super::resume::Resumed;
use super::retry::Retry;
use crate::cli::RunArgs;
use crate::config::{MachineOptions, UsageError};
use crate::exit_code::ExitCode;
use crate::guest_setup::{GuestFiles, PreparedShares, open_cache};
use crate::machine::ShareConfig;
use crate::report::{
    CONSOLE_LOG, EarlierPart, ManifestFile, ManifestInputs, ManifestShare, OutputFormat, ReportConfig, Reporters,
    TerminalConfig, Verbosity, check_results_dir,
};
use crate::schedule::crew;
use crate::schedule::times::{self, TestTimes};
use crate::schedule::{Done, Lists, Policy, Schedule};
use crate::session::exec_client::ForwardedSignals;
use crate::session::{Deadlines, RunEvent, RunPlan};
use crate::trace::Trace;
use crate::verdict::Baseline;

/// A run, checked as far as it can be before anything is built or started.
#[derive(Debug)]
pub struct RunRequest {
    /// The machine.
    pub options: MachineOptions,
    /// The suites, in order.
    pub suites: Vec<Manifest>,
    suite_args: Vec<String>,
    results: PathBuf,
    test_timeout: Option<Duration>,
    hang_timeout: Option<Duration>,
    baseline: Baseline,
    format: OutputFormat,
    verbosity: Verbosity,
    policy: Policy,
    retries: u32,
}

impl RunRequest {
    /// Checks what the user gave.
    ///
    /// # Errors
    /// [`UsageError`]: an unknown suite, arguments for several suites at once, too few shares, a list that does not parse.
    /// Also results that cannot be written, and a cache that cannot be read.
    pub fn new(args: &RunArgs, options: MachineOptions, verbose: u8) -> anyhow::Result<Self> {
        // Before the cache is opened, which may be another user's as well.
        check_results_dir(&args.results)?;
        let suites = manifests_of(args, &options)?;
        if suites.len() > 1 && !args.suite_args.is_empty() {
            anyhow::bail!(UsageError(format!(
                "the arguments `{}` could be for any of {} suites; name one suite to give it arguments",
                args.suite_args.join(" "),
                suites.len()
            )));
        }
        check_shares(&suites, &options)?;
        let policy = policy(args, &options)?;
        let options = MachineOptions { polling: options.polling.beside(policy.jobs), ..options };
        let baseline = super::baseline::of_run(args, &suites, options.cache)?;
        Ok(Self {
            options,
            suites,
            suite_args: args.suite_args.clone(),
            policy,
            retries: args.retries,
            results: args.results.clone(),
            test_timeout: args.test_timeout,
            hang_timeout: args.hang_timeout,
            baseline,
            format: args.format,
            verbosity: match (args.quiet, verbose) {
                (true, _) => Verbosity::Quiet,
                (false, 0) => Verbosity::Normal,
                (false, _) => Verbosity::Verbose,
            },
        })
    }

    /// The suites' names, in order.
    #[must_use]
    pub fn suite_names(&self) -> Vec<String> {
        self.suites.iter().map(|suite| suite.name.clone()).collect()
    }

    /// Boots a guest on this machine's KVM, which is `speed_factor` times slower than hardware, and runs the suites.
    ///
    /// # Errors
    /// Nothing could be started or no result could be written. Once the guest runs, what goes wrong is part of the report.
    pub fn run_here(
        self,
        invocation: &Invocation,
        files: &GuestFiles,
        speed_factor: f64,
        signals: &ForwardedSignals,
        resumed: Option<&Resumed>,
    ) -> anyhow::Result<ExitCode> {
        let (plan, suites) = self.plan(speed_factor);
        let shares = PreparedShares::new(&self.options.shares)?;
        let manifest = self.manifest(invocation, files, &shares.list(), resumed);
        if let Some(resumed) = resumed {
            resumed.check_files(&manifest.files)?;
        }
        let mut earlier = resumed.map(|resumed| resumed.earlier.clone());
        let done = earlier.as_mut().map_or_else(|| vec![Done::default(); suites.len()], |part| part.settle(&suites));
        let schedule = Schedule::new(suites.iter().cloned().zip(done), self.policy)
            .after_guests(earlier.as_ref().map_or(0, EarlierPart::guests))
            .with_times(|suite| times::read(&self.options.cache_dir, suite))
            .with_lists(Lists::new(&self.options.cache_dir, files.digests()));
        let config = ReportConfig {
            results_parent: self.results.clone(),
            suites: self.suite_names(),
            host: invocation.host_name().to_owned(),
            baseline: self.baseline.clone(),
            format: self.format,
            terminal: TerminalConfig::detect(self.verbosity, self.format),
            manifest,
        };
        let mut reporters = match &earlier {
            Some(earlier) => Reporters::resume(config, earlier)?,
            None => Reporters::create(config)?,
        };
        let trace = self.options.trace.as_deref().map(Trace::create).transpose()?;
        let console_log = self.options.console.clone().unwrap_or_else(|| reporters.dir().join(CONSOLE_LOG));
        let guests = Guests::new(&self.options, files, console_log, shares, trace);
        let mut outcome = crew::run(
            schedule,
            self.policy.jobs,
            &plan,
            &|guest| guests.start(guest),
            &signals.signals,
            &mut |guest, event| reporters.on_guest_event(guest, event),
        );
        self.keep_times(&suites, &reporters);
        if self.retries > 0 {
            let retry = Retry { times: self.retries, suites: &suites, jobs: self.policy.jobs, plan: &plan };
            outcome = retry.run(&outcome, &guests, signals, &mut reporters);
        }
        let (statistics, trace) = guests.finish();
        reporters.on_event(RunEvent::RunFinished { outcome: outcome.clone() });
        let stats_file = reporters.dir().join("stats.json");
        let json = self.options.stats.then(|| statistics_json(&statistics)).transpose();
        let json = json.context("failed to write statistics as JSON")?;
        if let Some(json) = &json {
            reporters.add_statistics(json.clone());
        }
        let exit = reporters.finish(&outcome);
        if let Some(trace) = trace {
            eprintln!("vmm: {}", trace.finish()?);
        }
        for (guest, statistics) in &statistics {
            let heading = if *guest > 1 { format!("guest {guest}:\n") } else { String::new() };
            eprint!("{heading}{statistics}");
        }
        if let Some(json) = json {
            std::fs::write(&stats_file, format!("{json:#}\n"))
                .with_context(|| format!("failed to write {}", stats_file.display()))?;
        }
        Ok(exit)
    }

    /// What tests took, for the next run.
    fn keep_times(&self, suites: &[SuiteRun], reporters: &Reporters) {
        for suite in suites.iter().filter(|suite| suite.listing.is_some()) {
            let mut taken = TestTimes::new();
            for (_, row) in reporters.results().filter(|(name, _)| *name == suite.plan.name) {
                if let Some(test) = suite.test_of(&row.test) {
                    *taken.entry(test.to_owned()).or_default() += row.duration_us;
                }
            }
            if let Err(error) = times::keep(&self.options.cache_dir, &suite.plan.name, taken) {
                tracing::info!("the times of {}'s tests are not kept: {error}", suite.plan.name);
            }
        }
    }

    fn plan(&self, speed_factor: f64) -> (RunPlan, Vec<SuiteRun>) {
        let deadlines = super::deadlines(&self.options, speed_factor);
        let test = self.test_timeout.or(deadlines.test);
        let agent = self.hang_timeout.unwrap_or(deadlines.agent);
        let deadlines = Deadlines { test, agent, ..deadlines };
        let milliseconds = test.map_or(0, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        let mount_options = self.options.dax_mode.map(|mode| format!("-o {}", mode.mount_option())).unwrap_or_default();
        let suites = self.suites.iter().flat_map(|suite| suite.runs(&self.suite_args, milliseconds));
        let suites = suites.map(|suite| suite.with_variable("VMM_MOUNT_OPTIONS", &mount_options));
        (RunPlan::starting_now(deadlines), suites.collect())
    }

    fn manifest(
        &self,
        invocation: &Invocation,
        files: &GuestFiles,
        shares: &[ShareConfig],
        resumed: Option<&Resumed>,
    ) -> ManifestInputs {
        let file = |role: &str, path: &Path, sha256: Option<&String>| ManifestFile {
            role: role.to_owned(),
            path: path.to_path_buf(),
            sha256: sha256.cloned(),
        };
        let mut list = vec![
            file("kernel", &files.kernel.image, Some(&files.kernel.sha256)),
            file("initramfs", &files.initramfs, None),
            file("image", &files.root.image, Some(&files.root.sha256)),
            file("image-packages", &files.root.lock, None),
        ];
        list.extend(files.kernel.config.iter().map(|config| file("kernel-config", config, None)));
        list.extend(
            files.suites.iter().map(|s| file(&format!("suite {}", s.manifest.name), &s.image, Some(&s.sha256))),
        );
        ManifestInputs {
            // A run that is resumed is still the one that was started.
            command: resumed.map_or(&invocation.command, |resumed| &resumed.command).clone(),
            directory: resumed.map_or(&invocation.directory, |resumed| &resumed.directory).clone(),
            vmm_binary: invocation.binary.clone(),
            vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
            cpus: self.options.cpus,
            memory_mib: self.options.memory_mib,
            append: self.options.append.clone(),
            files: list,
            suites: files.suites.iter().map(|s| (s.manifest.name.clone(), s.origin.clone())).collect(),
            shard: self.policy.shard,
            shares: shares.iter().map(|s| ManifestShare { tag: s.tag.clone(), path: s.path.clone() }).collect(),
        }
    }
}

/// The suites that a run is asked for, in order.
///
/// # Errors
/// There is no such suite, or the cache cannot be read.
pub(super) fn manifests_of(args: &RunArgs, options: &MachineOptions) -> anyhow::Result<Vec<Manifest>> {
    let cache = open_cache(&options.cache_dir)?;
    if args.suites.is_empty() {
        return Ok(suite::default_suites(&cache)?);
    }
    args.suites.iter().map(|name| suite::manifest(&cache, name).map_err(unless_unknown)).collect()
}

/// The user's mistake if there is no such suite, else trouble with the cache.
fn unless_unknown(error: guest_image::Error) -> anyhow::Error {
    match error {
        guest_image::Error::UnknownSuite { .. } => UsageError(error.to_string()).into(),
        error => error.into(),
    }
}

fn policy(args: &RunArgs, options: &MachineOptions) -> Result<Policy, UsageError> {
    let jobs = usize::from(args.jobs);
    if jobs > 1 && matches!(options.shares, crate::config::Shares::Given(_)) {
        return Err(UsageError(
            "--jobs: guests side by side need shares of their own, and --shared-dir gives them the same; leave it out for \
             scratch shares"
                .to_owned(),
        ));
    }
    if jobs > 1 && options.vsock_socket.is_some() {
        return Err(UsageError("--jobs: --vsock-socket is one guest's; leave one of the two out".to_owned()));
    }
    if jobs > 1 && options.trace.is_some() {
        return Err(UsageError("--jobs: a --trace is of one guest at a time; leave one of the two out".to_owned()));
    }
    Ok(Policy { jobs, guest_per: args.vm_per, shard: args.shard })
}

fn check_shares(suites: &[Manifest], options: &MachineOptions) -> Result<(), UsageError> {
    let crate::config::Shares::Given(given) = &options.shares else { return Ok(()) };
    for (suite, tag) in suites.iter().flat_map(|suite| {
        let needed = usize::try_from(suite.requires.shares).unwrap_or(usize::MAX);
        crate::config::DEFAULT_TAGS.iter().take(needed).map(move |tag| (suite, *tag))
    }) {
        if !given.iter().any(|share| share.tag == tag) {
            return Err(UsageError(format!(
                "suite {} needs a share with the tag {tag}; add --shared-dir PATH:{tag}, or give no --shared-dir at all for scratch shares",
                suite.name
            )));
        }
    }
    Ok(())
}

/// The whole of `vmm run`.
///
/// # Errors
/// See [`RunRequest`]; also a host that cannot run guests.
pub fn run(
    args: &RunArgs,
    options: MachineOptions,
    verbose: u8,
    invocation: &Invocation,
    resumed: Option<&Resumed>,
) -> anyhow::Result<u8> {
    let request = RunRequest::new(args, options, verbose)?;
    let suites = request.suite_names();
    let options = request.options.clone();
    super::on_usable_host(&options, &suites, invocation, |files, speed_factor, signals| {
        request.run_here(invocation, files, speed_factor, signals, resumed).map(|code| code as u8)
    })
}
