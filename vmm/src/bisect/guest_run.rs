//! One run of the question in a guest: this program once more. What it says is read from its results, so that whatever
//! becomes of it, the bisection goes on.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use anyhow::{Context, bail};
use guest_image::Progress;
use serde::Deserialize;

use super::runner::{Call, Runner, head, tail};
use super::signature::{End, Observation};
use crate::config::UsageError;
use crate::exit_code::ExitCode;
use crate::session::RunOutcome;
use crate::session::console_log::begins_report;
use crate::verdict::truncated;

/// Begins the lines by which the shell around a command tells how far it is.
pub(super) const MARK: &str = "vmm-bisect-mark-";
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

impl GuestEnd {
    /// Whether nothing happened that the machine below could have suffered from.
    fn left_its_host_alone(&self) -> bool {
        let Self::Seen(Observation { end, deaths, .. }) = self else { return false };
        deaths.is_empty() && matches!(end, End::Completed | End::NothingRan | End::Exited(_))
    }
}

impl GuestRun<'_> {
    /// Runs it to its end.
    ///
    /// # Errors
    /// [`UsageError`]: the question itself is wrong. It cannot be started, or its log not be written.
    pub fn run(&self, runner: &mut dyn Runner, progress: &dyn Progress) -> anyhow::Result<GuestEnd> {
        fs::create_dir_all(self.results).with_context(|| format!("failed to make {}", self.results.display()))?;
        let log = self.results.join("output.log");
        // Not what a command would say by chance.
        let token = format!("{MARK}{}", std::process::id());
        let words = self.words(&token);
        let call = Call { binary: self.binary, words: &words, directory: self.directory, log: &log };
        let Some(status) = runner.run(&call, progress)? else { return Ok(GuestEnd::Interrupted) };
        let said = tail(&log);
        let end = if is_exec(self.question) {
            // What the command has printed since may be more than the end of the log.
            let began = head(&log).contains(&format!("{token}-began"));
            exec_end(status, &said, &token, began)
        } else {
            self.run_end(status, &said)
        }?;
        if !end.left_its_host_alone() {
            runner.begin_afresh();
        }
        Ok(end)
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

fn exec_end(status: ExitStatus, said: &str, token: &str, began: bool) -> anyhow::Result<GuestEnd> {
    let ended = said.lines().rev().find_map(|line| line.split_once(&format!("{token}-ended")));
    let why = || last_words(status, said);
    let seen = |end| GuestEnd::Seen(Observation::of(end));
    if let Some(code) = ended.and_then(|(_, code)| code.trim().parse::<i32>().ok()) {
        // As in `git bisect run`.
        return Ok(if code == ExitCode::CannotTest as i32 {
            GuestEnd::Untestable("the command says so: exit code 125".to_owned())
        } else {
            seen(End::Exited(code))
        });
    }
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
