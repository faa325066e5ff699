//! One run of the question in a guest: this program once more, as a process of its own. What it says is read from its
//! results, so that whatever becomes of it, the bisection goes on.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use guest_image::Progress;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use super::signature::{End, Observation};
use crate::config::UsageError;
use crate::exit_code::ExitCode;
use crate::session::RunOutcome;
use crate::session::console_log::begins_report;
use crate::verdict::truncated;

/// How often the run is looked after.
const POLL: Duration = Duration::from_millis(100);
/// A run that was asked to stop keeps its results first; an emulated host takes some time to go.
const GRACE: Duration = Duration::from_secs(60);
/// Begins the lines by which the shell around a command tells how far it is.
pub(super) const MARK: &str = "vmm-bisect-mark-";
/// Of a log, bytes: its end is what tells.
const MAX_LOG: u64 = 64 << 10;
/// Of what a guest died of, bytes.
const MAX_DEATH: usize = 1 << 10;
/// Longest `results.json` that is read.
const MAX_RESULTS: u64 = 512 << 20;

/// What to run.
#[derive(Clone, Debug)]
pub struct GuestRun<'a> {
    /// This program, or the one that is tested.
    pub binary: &'a Path,
    /// `run` or `exec` and what follows it.
    pub question: &'a [String],
    /// Where it was typed.
    pub directory: &'a Path,
    /// For `--kernel`, if the kernel is what is searched.
    pub kernel: Option<&'a str>,
    /// The cache.
    pub cache_dir: &'a Path,
    /// A folder for its results; made here.
    pub results: &'a Path,
    /// Tests to tell when they passed.
    pub interesting: &'a BTreeSet<String>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    /// The guest came up.
    Seen(Observation),
    /// The kernel did not come as far as user space.
    BootFailed(String),
    /// The suite never got going, or the kernel lacks something.
    Untestable(String),
    /// Host trouble, which says nothing of the kernel.
    Trouble(String),
    /// The user wants to stop.
    Interrupted,
}

impl GuestRun<'_> {
    /// Runs it to its end.
    ///
    /// # Errors
    /// [`UsageError`]: the question itself is wrong. It cannot be started, or its log not be written.
    pub fn run(&self, progress: &dyn Progress) -> anyhow::Result<GuestEnd> {
        fs::create_dir_all(self.results).with_context(|| format!("failed to make {}", self.results.display()))?;
        let log = self.results.join("output.log");
        // Not what a command would say by chance.
        let token = format!("{MARK}{}", std::process::id());
        let mut child = self.spawn(&log, &token)?;
        let Some(status) = wait(&mut child, &log, progress)? else { return Ok(GuestEnd::Interrupted) };
        let said = tail(&log);
        if is_exec(self.question) {
            return exec_end(status, &said, &token);
        }
        self.run_end(status, &said)
    }

    fn spawn(&self, log: &Path, token: &str) -> anyhow::Result<Child> {
        let file = File::create(log).with_context(|| format!("failed to make {}", log.display()))?;
        let errors = file.try_clone().context("failed to duplicate a file descriptor")?;
        let mut command = Command::new(self.binary);
        command.args(self.words(token)).current_dir(self.directory).env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        // A group of its own: Ctrl-C reaches us, and we tell it once.
        command.process_group(0);
        // SAFETY: the closure only makes one prctl(2) call, which is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                // Should we be killed, the guest must not go on.
                rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).map_err(Into::into)
            });
        }
        command.spawn().with_context(|| format!("failed to start {}", self.binary.display()))
    }

    fn words(&self, token: &str) -> Vec<String> {
        let Some((verb, rest)) = self.question.split_first() else { return Vec::new() };
        let mut words = vec![verb.clone(), "--cache-dir".to_owned(), self.cache_dir.display().to_string()];
        if let Some(kernel) = self.kernel {
            words.extend(["--kernel".to_owned(), kernel.to_owned()]);
        }
        if !is_exec(self.question) {
            words.extend(["--results".to_owned(), self.results.display().to_string()]);
            words.extend_from_slice(rest);
            return words;
        }
        // The command's own exit code is told apart from ours by what a shell around it says.
        let command = rest.iter().position(|word| word == "--").map_or(rest.len(), |at| at + 1);
        let script = format!("echo {token}-began >&2; \"$@\"; code=$?; echo {token}-ended $code >&2; exit $code");
        words.extend_from_slice(&rest[..command]);
        words.extend(["sh", "-c", &script, "sh"].map(str::to_owned));
        words.extend_from_slice(&rest[command..]);
        words
    }

    fn run_end(&self, status: ExitStatus, said: &str) -> anyhow::Result<GuestEnd> {
        let why = || last_words(status, said);
        if status.code() == Some(ExitCode::Usage as i32) {
            bail!(UsageError(format!("`vmm {}`: {}", self.question.join(" "), why())));
        }
        // `latest` points to the only one.
        let Some(results) = read_results(&self.results.join("latest/results.json")) else {
            return Ok(if is_unfit(said) { GuestEnd::Untestable(why()) } else { GuestEnd::Trouble(why()) });
        };
        // Such a host lets no kernel come up.
        let booted = results.kernel_release.is_some() || said.contains("timers of virtual machines are broken");
        let end = match results.outcome {
            RunOutcome::GuestDied { reason } if !booted => return Ok(GuestEnd::BootFailed(reason)),
            RunOutcome::CannotTest { reason } if !booted && self.was_started() => {
                return Ok(GuestEnd::BootFailed(reason));
            }
            RunOutcome::TimedOut { reason } if !booted => return Ok(GuestEnd::BootFailed(reason)),
            RunOutcome::CannotTest { reason } => return Ok(GuestEnd::Trouble(reason)),
            // Somebody else's Ctrl-C; ours was noticed before.
            RunOutcome::Interrupted => return Ok(GuestEnd::Trouble("something interrupted it".to_owned())),
            RunOutcome::GuestDied { reason } => End::Died(reason),
            RunOutcome::TimedOut { reason } => End::TimedOut(reason),
            RunOutcome::Completed if results.exit_code == ExitCode::NothingRan as u8 => End::NothingRan,
            RunOutcome::Completed if results.exit_code == ExitCode::CannotTest as u8 => {
                return Ok(GuestEnd::Untestable(why()));
            }
            RunOutcome::Completed => End::Completed,
        };
        let mut observation = Observation::of(end);
        for suite in results.suites {
            for test in suite.tests {
                let name = format!("{}: {}", suite.name, test.test);
                if test.judgement == "error" && took_its_guest(&test.message) {
                    let words = truncated(&test.message, MAX_DEATH).to_owned();
                    observation.deaths.insert(name.clone(), words);
                }
                match test.judgement.as_str() {
                    "fail" | "error" | "flaky-beyond-rate" => drop(observation.failed.insert(name)),
                    "pass" | "fixed" if self.interesting.contains(&name) => drop(observation.passed.insert(name)),
                    _ => {}
                }
            }
            // A suite that fell over fails as a whole; where the guest died, that is why.
            let whole = format!("{}: the suite as a whole", suite.name);
            match suite.trouble {
                Some(_) if observation.end == End::Completed => drop(observation.failed.insert(whole)),
                None if self.interesting.contains(&whole) => drop(observation.passed.insert(whole)),
                _ => {}
            }
        }
        // One test may have several results, and the worst counts.
        observation.passed = &observation.passed - &observation.failed;
        Ok(GuestEnd::Seen(observation))
    }

    /// Whether the guest's kernel was started at all.
    fn was_started(&self) -> bool {
        let events = fs::read_to_string(self.results.join("latest/events.jsonl")).unwrap_or_default();
        events.lines().any(|line| line.contains(r#""event":"boot-started""#))
    }
}

/// Whether it is `exec … -- CMD`.
#[must_use]
pub fn is_exec(question: &[String]) -> bool {
    question.first().is_some_and(|verb| verb == "exec")
}

fn exec_end(status: ExitStatus, said: &str, token: &str) -> anyhow::Result<GuestEnd> {
    let marked = |mark: &str| said.lines().rev().find_map(|line| line.split_once(&format!("{token}-{mark}")));
    let why = || last_words(status, said);
    let seen = |end| GuestEnd::Seen(Observation::of(end));
    if let Some(code) = marked("ended").and_then(|(_, code)| code.trim().parse::<i32>().ok()) {
        // As in `git bisect run`.
        return Ok(if code == ExitCode::CannotTest as i32 {
            GuestEnd::Untestable("the command says so: exit code 125".to_owned())
        } else {
            seen(End::Exited(code))
        });
    }
    let began = marked("began").is_some();
    Ok(match status.code() {
        Some(code) if code == ExitCode::Usage as i32 && !began => bail!(UsageError(why())),
        Some(code) if code == ExitCode::GuestDied as i32 && began => {
            seen(End::Died(why().trim_start_matches("the guest died: ").to_owned()))
        }
        Some(code) if code == ExitCode::Timeout as i32 && began => seen(End::TimedOut(why())),
        Some(code) if code == ExitCode::GuestDied as i32 || code == ExitCode::Timeout as i32 => {
            GuestEnd::BootFailed(why())
        }
        _ if is_unfit(said) => GuestEnd::Untestable(why()),
        // The guest stopped before its agent spoke, and our own host was not to blame.
        _ if !began && said.contains("before the guest's agent spoke") => GuestEnd::BootFailed(why()),
        _ => GuestEnd::Trouble(why()),
    })
}

/// Whether it was refused because of what the kernel is.
fn is_unfit(said: &str) -> bool {
    said.lines().any(|line| line.starts_with("vmm: kernel ") && line.contains(" cannot be used: "))
}

/// Waits; `None` when the user wants to stop, and then it has ended.
fn wait(child: &mut Child, log: &Path, progress: &dyn Progress) -> anyhow::Result<Option<ExitStatus>> {
    let mut ticks = 0u32;
    loop {
        if let Some(status) = child.try_wait().context("failed to wait for a run")? {
            return Ok((!progress.interrupted()).then_some(status));
        }
        if progress.interrupted() {
            stop(child);
            return Ok(None);
        }
        ticks += 1;
        if ticks.is_multiple_of(10)
            && let Some(line) = tail(log).lines().rev().find(|line| !line.trim().is_empty())
        {
            progress.detail(&crate::report::printable(line));
        }
        std::thread::sleep(POLL);
    }
}

fn stop(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let _ = pid.map(|pid| kill_process(pid, Signal::INT));
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline && !matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
        std::thread::sleep(POLL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// The end of a log, as text.
pub(super) fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG)))?;
        let mut bytes = Vec::new();
        file.take(MAX_LOG).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// Our own last line, without its mark, else how the process ended.
fn last_words(status: ExitStatus, said: &str) -> String {
    let ours = |line: &&str| line.starts_with("vmm: ") && !line.starts_with("vmm: warning");
    if let Some(line) = said.lines().rev().find(ours) {
        return line["vmm: ".len()..].to_owned();
    }
    match (status.code(), status.signal()) {
        (Some(code), _) => {
            let line = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            format!("exit code {code}: {}", line.trim())
        }
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "ended strangely".to_owned(),
    }
}

/// `results.json`, as far as it matters here.
#[derive(Deserialize)]
struct Results {
    outcome: RunOutcome,
    exit_code: u8,
    kernel_release: Option<String>,
    suites: Vec<Suite>,
}

#[derive(Deserialize)]
struct Suite {
    name: String,
    trouble: Option<String>,
    tests: Vec<Test>,
}

#[derive(Deserialize)]
struct Test {
    test: String,
    judgement: String,
    #[serde(default)]
    message: String,
}

/// Whether a test's message tells of the end of its guest.
fn took_its_guest(message: &str) -> bool {
    message.starts_with("the guest hangs") || begins_report(message)
}

fn read_results(path: &Path) -> Option<Results> {
    let file = File::open(path).ok()?;
    serde_json::from_reader(std::io::BufReader::new(file.take(MAX_RESULTS))).ok()
}

#[cfg(test)]
#[path = "guest_run_tests.rs"]
mod tests;
