//! Starting one command, on pipes or on a new pseudo-terminal, as leader of its own session.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use wire::WindowSize;

/// A command could not be started.
#[derive(Debug, thiserror::Error)]
#[error("failed to {doing}: {source}")]
pub struct SpawnError {
    doing: String,
    source: io::Error,
}

impl SpawnError {
    pub(crate) fn new(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { doing: doing.into(), source: source.into() }
    }

    /// The `errno` of what failed.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(libc::EIO)
    }
}

/// A started command: leader of its own session and process group, its descriptors non-blocking on our side.
#[derive(Debug)]
pub struct Process {
    /// Also the id of its process group and its session.
    pub pid: Pid,
    /// Readable once the process has ended.
    pub pidfd: OwnedFd,
    /// Where its standard input is written; `None` when that is `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// Where its standard output is read, or all its output from a terminal.
    pub stdout: OwnedFd,
    /// Where its standard error is read; `None` with a terminal.
    pub stderr: Option<OwnedFd>,
    /// The controlling side of its terminal, to set the size of.
    pub terminal: Option<OwnedFd>,
}

/// Starts `command`, on a new pseudo-terminal of size `terminal` when that is given, else on pipes.
///
/// # Errors
/// When the program cannot be executed, or something it needs cannot be made; nothing is left running then.
pub fn spawn(command: &wire::Command, terminal: Option<WindowSize>, stdin: bool) -> Result<Process, SpawnError> {
    let Some((program, arguments)) = command.argv.split_first() else {
        return Err(SpawnError::new("start a command without a name", Errno::INVAL));
    };
    let cwd = Path::new(&command.cwd);
    // Looked at apart from the start: a working directory that is not there must not read as a program that is not.
    if !cwd.is_dir() {
        fs::create_dir_all(cwd)
            .map_err(|e| SpawnError::new(format!("make the working directory {}", command.cwd), e))?;
    }
    let mut child = Command::new(program);
    child.args(arguments).env_clear().envs(command.env.iter().map(|(k, v)| (k, v))).current_dir(cwd);
    let started = |e: io::Error| SpawnError::new(format!("start {program}"), e);
    let has_terminal = terminal.is_some();
    // SAFETY: signal, setsid and ioctl are async-signal-safe, nothing is allocated between fork and exec.
    unsafe {
        child.pre_exec(move || {
            // What whoever started us ignores, nohup or a shell's `&`, is no choice of the command's.
            for signal in 1..=libc::SIGSYS {
                libc::signal(signal, libc::SIG_DFL);
            }
            rustix::process::setsid()?;
            if has_terminal {
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            Ok(())
        });
    }
    let (mut running, stdin, stdout, stderr, terminal) = if let Some(size) = terminal {
        let (controller, user) = open_terminal(size).map_err(|e| SpawnError::new("open a pseudo-terminal", e))?;
        let again = |fd: &OwnedFd| fd.try_clone().map_err(|e| SpawnError::new("open a pseudo-terminal", e));
        let input = if stdin { Some(again(&controller)?) } else { None };
        let terminal = again(&controller)?;
        child.stdin(again(&user)?).stdout(again(&user)?).stderr(user);
        (child.spawn().map_err(started)?, input, controller, None, Some(terminal))
    } else {
        child.stdin(if stdin { Stdio::piped() } else { Stdio::null() }).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = child.spawn().map_err(started)?;
        let input = running.stdin.take().map(OwnedFd::from);
        let (Some(output), Some(error)) = (running.stdout.take(), running.stderr.take()) else {
            return Err(kill_half_started(running, "connect its pipes", Errno::BADF));
        };
        (running, input, output.into(), Some(error.into()), None)
    };
    // The command holds copies of the terminal's user side; it must be the only holder, or its end is never seen.
    drop(child);
    let pid = Pid::from_child(&running);
    let prepared = pidfd_open(pid, PidfdFlags::empty()).and_then(|pidfd| {
        for fd in [stdin.as_ref(), Some(&stdout), stderr.as_ref()].into_iter().flatten() {
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        Ok(pidfd)
    });
    match prepared {
        Ok(pidfd) => Ok(Process { pid, pidfd, stdin, stdout, stderr, terminal }),
        Err(errno) => {
            running.stdin = None;
            Err(kill_half_started(running, "watch the command", errno))
        }
    }
}

fn kill_half_started(mut running: std::process::Child, doing: &str, errno: Errno) -> SpawnError {
    // Nothing more can be done about a process that cannot be killed or waited for; the first error is what counts.
    let _ = running.kill();
    let _ = running.wait();
    SpawnError::new(doing, errno)
}

fn open_terminal(size: WindowSize) -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    unlockpt(&controller)?;
    // By descriptor, not by name: works whether or not the devpts of this mount namespace is at /dev/pts.
    let user = ioctl_tiocgptpeer(&controller, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    set_window_size(&controller, size)?;
    Ok((controller, user))
}

/// Tells a terminal its size; its foreground process group gets SIGWINCH.
///
/// # Errors
/// When the descriptor is no terminal.
pub fn set_window_size(terminal: &OwnedFd, size: WindowSize) -> rustix::io::Result<()> {
    tcsetwinsize(terminal, Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 })
}
