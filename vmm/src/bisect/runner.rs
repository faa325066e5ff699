//! Where the question is run: in a process of its own each time, or wherever else a [`Runner`] takes it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use guest_image::Progress;
use rustix::process::{Pid, Signal, kill_process};

/// How often a run is looked after.
const POLL: Duration = Duration::from_millis(100);
/// Its log is looked at once in so many times.
const LOOKS_PER_DETAIL: u32 = 10;
/// A run that was asked to stop keeps its results first; an emulated host takes some time to go.
const GRACE: Duration = Duration::from_secs(60);
/// Of a log, bytes: its end is what tells.
const MAX_LOG: u64 = 64 << 10;

/// One call of `vmm`.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The program.
    pub binary: &'a Path,
    /// Its arguments.
    pub words: &'a [String],
    /// Its working directory.
    pub directory: &'a Path,
    /// Takes what it says; made or emptied here.
    pub log: &'a Path,
}

/// Makes runs, one after another.
pub trait Runner: Send {
    /// Makes one; `None` when the user wants to stop, and then it has ended.
    ///
    /// # Errors
    /// It cannot be started, or its log not be written.
    fn run(&mut self, call: &Call<'_>, progress: &dyn Progress) -> anyhow::Result<Option<ExitStatus>>;

    /// The last run ended badly: nothing of where it ran is to be used again.
    fn begin_afresh(&mut self) {}
}

/// Each run is a process that finds itself a host.
#[derive(Clone, Copy, Debug, Default)]
pub struct Processes;

impl Runner for Processes {
    fn run(&mut self, call: &Call<'_>, progress: &dyn Progress) -> anyhow::Result<Option<ExitStatus>> {
        let mut child = spawn(call)?;
        let mut details = LogDetails::new(call.log);
        loop {
            if let Some(status) = child.try_wait().context("failed to wait for a run")? {
                return Ok((!progress.interrupted()).then_some(status));
            }
            if progress.interrupted() {
                stop(&mut child);
                return Ok(None);
            }
            details.show(progress);
            std::thread::sleep(POLL);
        }
    }
}

fn spawn(call: &Call<'_>) -> anyhow::Result<Child> {
    let file = create_log(call.log)?;
    let errors = file.try_clone().context("failed to duplicate a file descriptor")?;
    let mut command = Command::new(call.binary);
    command.args(call.words).current_dir(call.directory).env("NO_COLOR", "1");
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
    command.spawn().with_context(|| format!("failed to start {}", call.binary.display()))
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

/// An empty log.
///
/// # Errors
/// It cannot be made.
pub fn create_log(path: &Path) -> anyhow::Result<File> {
    File::create(path).with_context(|| format!("failed to make {}", path.display()))
}

/// Shows the last line of a log as it grows.
#[derive(Debug)]
pub struct LogDetails<'a> {
    log: &'a Path,
    looks: u32,
}

impl<'a> LogDetails<'a> {
    /// Of `log`.
    #[must_use]
    pub fn new(log: &'a Path) -> Self {
        Self { log, looks: 0 }
    }

    /// To be called about ten times a second.
    pub fn show(&mut self, progress: &dyn Progress) {
        self.looks += 1;
        if self.looks.is_multiple_of(LOOKS_PER_DETAIL)
            && let Some(line) = tail(self.log).lines().rev().find(|line| !line.trim().is_empty())
        {
            progress.detail(&crate::report::printable(line));
        }
    }
}

/// The end of a log, as text.
pub(super) fn tail(path: &Path) -> String {
    part(path, |length| length.saturating_sub(MAX_LOG))
}

/// The start of a log, as text.
pub(super) fn head(path: &Path) -> String {
    part(path, |_| 0)
}

/// [`MAX_LOG`] of a log, from where `start` says by its length.
fn part(path: &Path, start: impl Fn(u64) -> u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start(length)))?;
        let mut bytes = Vec::new();
        file.take(MAX_LOG).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}
