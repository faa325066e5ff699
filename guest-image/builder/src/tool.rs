//! Running other programs: found or named as missing, watched, stopped when the owner wants to stop.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{Error, IoContext, Result};
use crate::progress::Progress;

/// Lines of output that an error shows.
const TAIL_LINES: usize = 25;
/// Characters of each of them.
const TAIL_COLUMNS: usize = 300;
/// How the C library, apt and git say that a file system is full.
const NO_SPACE: &[&str] = &["No space left on device", "Disk quota exceeded", "enough free space in"];
/// How apt, git and cargo say that they got no answer.
const NO_NETWORK: &[&str] = &[
    "Temporary failure resolving",
    "Temporary failure in name resolution",
    "Could not resolve host",
    "Couldn't resolve host",
    "Network is unreachable",
    "Connection timed out",
    "connection timed out",
    "Could not connect to",
    "Failed to connect to",
];
/// How often the owner is asked whether to stop.
const POLL: Duration = Duration::from_millis(100);
/// How long a program may take to clean up after SIGTERM.
const GRACE: Duration = Duration::from_secs(30);

/// The process groups of programs that run; 0 is a free place. More than there are threads that run any.
static RUNNING: [AtomicI32; 16] = [const { AtomicI32::new(0) }; 16];

/// Kills every program that runs, with all that it has started: for a process that ends at once, as nobody else knows of what
/// they started. It only reads atomics and makes system calls, so a signal handler may call it.
pub fn kill_running() {
    for group in RUNNING.iter().filter_map(|place| Pid::from_raw(place.load(Ordering::Relaxed))) {
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// A program's place in [`RUNNING`], free again when dropped.
struct Place(Option<&'static AtomicI32>);

impl Place {
    fn take(child: &Child) -> Self {
        let group = i32::try_from(child.id()).unwrap_or(0);
        let mut places = RUNNING.iter();
        Self(places.find(|place| place.compare_exchange(0, group, Ordering::Relaxed, Ordering::Relaxed).is_ok()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            place.store(0, Ordering::Relaxed);
        }
    }
}

/// One run of one program.
#[derive(Debug)]
pub(crate) struct Tool {
    program: String,
    doing: String,
    command: Command,
    scratch: PathBuf,
}

/// What a program left.
pub(crate) struct ToolOutput {
    /// Standard output.
    pub(crate) stdout: String,
}

impl Tool {
    /// `doing` says what it is for, as it stands after "while": `unpacking the kernel`. `scratch` is named when the
    /// program runs out of space.
    pub(crate) fn new(program: &str, doing: impl Into<String>, scratch: &Path) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
        Self { program: program.to_owned(), doing: doing.into(), command, scratch: scratch.to_owned() }
    }

    /// Has errors speak of `program`, which the one that is started only leads to.
    pub(crate) fn shown_as(mut self, program: &str) -> Self {
        self.program = program.to_owned();
        self
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub(crate) fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs it to its end; each line that it prints becomes a detail of the current step.
    pub(crate) fn run(self, progress: &dyn Progress) -> Result<ToolOutput> {
        self.run_with(progress, |line| progress.detail(line))
    }

    /// Runs it; `on_line` is called with each line of either stream, as it comes.
    pub(crate) fn run_with(mut self, progress: &dyn Progress, mut on_line: impl FnMut(&str)) -> Result<ToolOutput> {
        let mut child = self.spawn()?;
        let _place = Place::take(&child);
        let (sender, lines) = mpsc::channel();
        let stdout = child.stdout.take().map(|s| forward(s, true, sender.clone()));
        let stderr = child.stderr.take().map(|s| forward(s, false, sender));
        let mut tail = std::collections::VecDeque::new();
        let mut text = String::new();
        loop {
            match lines.recv_timeout(POLL) {
                Ok((is_stdout, line)) => {
                    on_line(&line);
                    if is_stdout {
                        text.push_str(&line);
                        text.push('\n');
                    }
                    if tail.len() == TAIL_LINES {
                        tail.pop_front();
                    }
                    let shown = if line.chars().count() > TAIL_COLUMNS {
                        line.chars().take(TAIL_COLUMNS).chain(['…']).collect()
                    } else {
                        line
                    };
                    tail.push_back(shown);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if progress.interrupted() {
                stop(&mut child);
                return Err(Error::Interrupted { doing: self.doing });
            }
        }
        for thread in [stdout, stderr].into_iter().flatten() {
            let _ = thread.join();
        }
        let status = child.wait().at("wait for", &self.program)?;
        if status.success() {
            return Ok(ToolOutput { stdout: text });
        }
        Err(self.failure(status, &tail.into_iter().collect::<Vec<_>>().join("\n")))
    }

    fn spawn(&mut self) -> Result<Child> {
        // A process group of its own, so that what the program starts can be stopped with it.
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        // SAFETY: the closure only makes one prctl(2) call, which is async-signal-safe; it touches no memory that the
        // parent's threads may have left locked.
        unsafe {
            self.command.pre_exec(|| {
                // Should this process be killed outright, its tools must not go on filling the cache's folder.
                rustix::process::set_parent_process_death_signal(Some(Signal::TERM)).map_err(Into::into)
            });
        }
        self.command.spawn().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => missing(&[&self.program], &self.doing),
            _ => Error::io("start", &self.program, e),
        })
    }

    fn failure(&self, status: ExitStatus, output: &str) -> Error {
        let line_with = |signs: &[&str]| output.lines().find(|line| signs.iter().any(|sign| line.contains(sign)));
        if line_with(NO_SPACE).is_some() {
            return Error::no_space(&self.scratch, self.doing.clone());
        }
        if let Some(line) = line_with(NO_NETWORK) {
            return Error::NoNetwork { doing: self.doing.clone(), said: line.trim().to_owned() };
        }
        let status = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("killed by signal {signal}"),
            (None, None) => "ended strangely".to_owned(),
        };
        Error::ToolFailed {
            program: self.program.clone(),
            status,
            doing: self.doing.clone(),
            output: output.to_owned(),
        }
    }
}

fn forward(
    stream: impl Read + Send + 'static,
    is_stdout: bool,
    sender: mpsc::Sender<(bool, String)>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line);
            // Progress bars overwrite themselves with carriage returns: only the last state counts.
            let line = line.trim_end().rsplit('\r').next().unwrap_or_default().to_owned();
            if sender.send((is_stdout, line)).is_err() {
                break;
            }
        }
    })
}

/// Stops the program and all that it has started: kindly, as mmdebstrap has mounts to take off, then not.
fn stop(child: &mut Child) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let signal_group = |signal| group.map(|group| kill_process_group(group, signal));
    signal_group(Signal::TERM);
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline && !matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
        std::thread::sleep(POLL / 4);
    }
    // Also those that outlived the program itself.
    signal_group(Signal::KILL);
    let _ = child.wait();
}

/// Debian's package for each program that this crate runs.
const PACKAGES: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("mkfs.erofs", "erofs-utils"),
    ("newuidmap", "uidmap"),
    ("apt-get", "apt"),
    ("apt-cache", "apt"),
    ("dpkg-deb", "dpkg"),
    ("git", "git"),
    ("make", "make"),
    ("gcc", "gcc"),
    ("cc", "gcc"),
    ("ld", "binutils"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("python3", "python3"),
    ("autoreconf", "autoconf"),
    ("automake", "automake"),
    ("cargo", "cargo"),
    ("libelf.h", "libelf-dev"),
    ("openssl/evp.h", "libssl-dev"),
    ("libacl.a", "libacl1-dev"),
    ("libc.a", "libc6-dev"),
    ("debian-archive-keyring.gpg", "debian-archive-keyring"),
];

/// An error that names what is missing, all of it at once, and how to get it.
pub(crate) fn missing(programs: &[&str], purpose: &str) -> Error {
    let package = |program: &&str| {
        let known = PACKAGES.iter().find(|(name, _)| name == program);
        known.map_or(*program, |(_, package)| package).to_owned()
    };
    let mut packages: Vec<_> = programs.iter().map(package).collect();
    packages.sort();
    packages.dedup();
    let programs = programs.iter().map(|&p| p.to_owned()).collect();
    Error::MissingTools { programs, purpose: purpose.to_owned(), packages }
}

/// Fails when any of `programs` is not in `PATH` (or `/usr/sbin`, which an ordinary user's `PATH` lacks on Debian).
pub(crate) fn require(programs: &[&str], purpose: &str) -> Result<()> {
    let absent: Vec<_> = programs.iter().copied().filter(|p| find(p).is_none()).collect();
    if absent.is_empty() { Ok(()) } else { Err(missing(&absent, purpose)) }
}

/// Where a program is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|f| f.join(program)).find(|p| rustix::fs::access(p, rustix::fs::Access::EXEC_OK).is_ok() && p.is_file())
}

/// `program`, or its full path where `PATH` lacks its folder.
pub(crate) fn locate(program: &str) -> String {
    find(program).map_or_else(|| program.to_owned(), |p| p.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    fn shell(script: &str) -> Tool {
        Tool::new("sh", "testing", Path::new("/tmp")).arg("-c").arg(script)
    }

    #[test]
    fn a_failing_program_is_quoted_with_its_last_words() {
        let error = shell("echo one; echo two >&2; exit 3").run(&Silent).err().unwrap().to_string();
        assert!(error.contains("exit code 3") && error.contains("two"), "{error}");
    }

    #[test]
    fn a_program_that_runs_out_of_space_gives_the_one_error_for_it() {
        let error = shell("echo 'write: No space left on device' >&2; exit 1").run(&Silent).err().unwrap();
        assert!(matches!(error, Error::NoSpace { .. }), "{error}");
    }

    #[test]
    fn a_program_that_gets_no_answer_gives_the_one_error_for_it() {
        let said = "W: Failed to fetch http://m.example/InRelease  Temporary failure resolving 'm.example'";
        let error = shell(&format!("echo \"{said}\" >&2; exit 100")).run(&Silent).err().unwrap();
        assert!(matches!(&error, Error::NoNetwork { said, .. } if said.contains("m.example")), "{error}");
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = missing(&["mkfs.erofs", "newuidmap"], "making the root image").to_string();
        assert!(error.contains("apt-get install erofs-utils uidmap"), "{error}");
        let error = Tool::new("no-such-program", "testing", Path::new("/tmp")).run(&Silent).err().unwrap();
        assert!(matches!(error, Error::MissingTools { .. }), "{error}");
    }

    #[test]
    fn an_interrupted_program_is_stopped_long_before_its_end() {
        struct Impatient;
        impl Progress for Impatient {
            fn step(&self, _: &str) {}
            fn detail(&self, _: &str) {}
            fn fraction(&self, _: f64) {}
            fn interrupted(&self) -> bool {
                true
            }
        }
        let begun = Instant::now();
        let error = shell("exec sleep 60").run(&Impatient).err().unwrap();
        assert!(matches!(error, Error::Interrupted { .. }));
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn only_the_last_state_of_a_progress_bar_is_told() {
        let mut lines = Vec::new();
        let output = shell("printf '10%%\\r50%%\\r100%%\\n'").run_with(&Silent, |l| lines.push(l.to_owned())).unwrap();
        assert_eq!(lines, ["100%"]);
        assert_eq!(output.stdout, "100%\n");
    }
}
