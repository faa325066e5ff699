//! One running command: its standard input as far as it was not taken yet, its outputs, and how it ended.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::termios::{SpecialCodeIndex, tcgetattr};
use wire::{ProcessEnd, STDIN_WINDOW, Stream, WindowSize};

use crate::process::{Process, set_window_size};
use crate::process_tree;

/// How long after the command's end its outputs may stay open and silent, and killed processes may stay, before they are
/// given up: a process that is stuck in the kernel cannot be killed, and it may hold them.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);

/// Standard input on its way to the command.
#[derive(Debug)]
struct Stdin {
    fd: OwnedFd,
    /// At most [`STDIN_WINDOW`] bytes, and an end-of-file character or two.
    pending: VecDeque<u8>,
    /// The last byte that ever came.
    last: Option<u8>,
    /// No more will come: close once `pending` is written.
    ending: bool,
}

/// One of the command's outputs, still open.
#[derive(Debug)]
pub struct Output {
    /// What to read.
    pub fd: OwnedFd,
    /// What it is.
    pub stream: Stream,
}

/// What writing to standard input came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fed {
    /// Bytes that the command took, or that were thrown away because it closed its end.
    pub consumed: usize,
    /// The command closed its end just now.
    pub closed: bool,
}

/// The host sent more standard input than [`STDIN_WINDOW`] allows.
#[derive(Debug, thiserror::Error)]
#[error("the host sent more standard input than the window of {STDIN_WINDOW} bytes allows")]
pub struct WindowExceeded;

/// A running command. Dropping it kills all of it.
#[derive(Debug)]
pub struct Job {
    pid: Pid,
    pidfd: OwnedFd,
    stdin: Option<Stdin>,
    /// The terminal's controlling side, to set its size.
    terminal: Option<OwnedFd>,
    outputs: Vec<Output>,
    end: Option<ProcessEnd>,
    /// When it ended or, after that, last gave output.
    last_sign: Instant,
}

impl Job {
    /// Takes over a started process.
    #[must_use]
    pub fn new(process: Process) -> Self {
        let Process { pid, pidfd, stdin, stdout, stderr, terminal } = process;
        let mut outputs = vec![Output { fd: stdout, stream: Stream::Stdout }];
        outputs.extend(stderr.map(|fd| Output { fd, stream: Stream::Stderr }));
        let stdin = stdin.map(|fd| Stdin { fd, pending: VecDeque::new(), last: None, ending: false });
        Self { pid, pidfd, stdin, terminal, outputs, end: None, last_sign: Instant::now() }
    }

    /// The process id, also the id of its group and session.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Readable once the process has ended; `None` when that was seen.
    #[must_use]
    pub fn pidfd(&self) -> Option<&OwnedFd> {
        self.end.is_none().then_some(&self.pidfd)
    }

    /// The outputs that are still open.
    #[must_use]
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// Standard input, and whether something waits to be written to it; `None` once closed.
    #[must_use]
    pub fn stdin(&self) -> Option<(&OwnedFd, bool)> {
        self.stdin.as_ref().map(|stdin| (&stdin.fd, !stdin.pending.is_empty()))
    }

    /// Whether the job runs on a terminal.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    /// Takes bytes for standard input; [`feed`](Self::feed) writes them. `Ok(false)` when it is closed: they are dropped.
    ///
    /// # Errors
    /// When the host exceeds the window.
    pub fn push_stdin(&mut self, data: &[u8]) -> Result<bool, WindowExceeded> {
        let Some(stdin) = self.stdin.as_mut().filter(|stdin| !stdin.ending) else { return Ok(false) };
        if stdin.pending.len() + data.len() > STDIN_WINDOW {
            return Err(WindowExceeded);
        }
        stdin.pending.extend(data);
        stdin.last = data.last().copied().or(stdin.last);
        Ok(true)
    }

    /// Ends standard input after what was pushed.
    pub fn end_stdin(&mut self) {
        let Some(stdin) = self.stdin.as_mut().filter(|stdin| !stdin.ending) else { return };
        stdin.ending = true;
        if let Some(terminal) = &self.terminal {
            let eof = tcgetattr(terminal).map_or(4, |settings| settings.special_codes[SpecialCodeIndex::VEOF]);
            // In a line that has begun, the first one only hands over what is there (termios(3), VEOF).
            if stdin.last.is_some_and(|last| last != b'\n') {
                stdin.pending.push_back(eof);
            }
            stdin.pending.push_back(eof);
        }
    }

    /// Writes what standard input takes now; closes it when it is at its end, or when the command closed it.
    pub fn feed(&mut self) -> Fed {
        let mut fed = Fed::default();
        let Some(stdin) = &mut self.stdin else { return fed };
        while !stdin.pending.is_empty() {
            match rustix::io::write(&stdin.fd, stdin.pending.as_slices().0) {
                Ok(n) => {
                    stdin.pending.drain(..n);
                    fed.consumed += n;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return fed,
                Err(_) => return self.close_stdin(fed.consumed),
            }
        }
        // A terminal stays open, or the command would be hung up.
        if stdin.ending && self.terminal.is_none() {
            self.stdin = None;
        }
        fed
    }

    /// The command closed its end: drops what waits.
    pub fn close_stdin(&mut self, consumed: usize) -> Fed {
        let dropped = self.stdin.take().map_or(0, |stdin| stdin.pending.len());
        Fed { consumed: consumed + dropped, closed: true }
    }

    /// Reads once from the `index`th output into `buffer`; `None` when nothing came. Forgets an output at its end.
    pub fn read_output<'b>(&mut self, index: usize, buffer: &'b mut [u8]) -> Option<(Stream, &'b [u8])> {
        let output = self.outputs.get(index)?;
        match rustix::io::read(&output.fd, &mut buffer[..]) {
            // EIO: nobody holds the terminal's other side any more (tty_ioctl(4)).
            Ok(0) | Err(Errno::IO) => {
                self.outputs.remove(index);
                None
            }
            Ok(n) => {
                self.last_sign = Instant::now();
                Some((output.stream, &buffer[..n]))
            }
            Err(Errno::INTR | Errno::AGAIN) => None,
            Err(_) => {
                self.outputs.remove(index);
                None
            }
        }
    }

    /// Output could not be read because the host takes nothing: the silence is not the command's.
    pub fn note_backpressure(&mut self) {
        self.last_sign = Instant::now();
    }

    /// Looks whether the process has ended; then kills what it left behind, and reaps it.
    pub fn check_end(&mut self) {
        if self.end.is_some() || !self.is_zombie() {
            return;
        }
        // Before reaping: until then its id cannot become that of another process or group.
        process_tree::kill_rest_of(self.pid);
        self.end = match process_tree::reap(self.pid) {
            Ok(end) => end,
            // Somebody else reaped it, which only a mistake of ours can do; it did end.
            Err(_) => Some(ProcessEnd::Signaled(libc::SIGKILL)),
        };
        self.last_sign = Instant::now();
    }

    fn is_zombie(&self) -> bool {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        use std::os::fd::AsFd;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // An error is ECHILD: reaped behind our back, so it is over as well.
        !matches!(waitid(WaitId::PidFd(self.pidfd.as_fd()), options), Ok(None))
    }

    /// When the job must be looked at again though nothing happens.
    #[must_use]
    pub fn drain_deadline(&self) -> Option<Instant> {
        self.end.map(|_| self.last_sign + DRAIN_LIMIT)
    }

    /// How the process ended, once all its output was read and, as far as we can know, everything that it started is gone.
    #[must_use]
    pub fn finished(&self) -> Option<ProcessEnd> {
        let is_alone = || !process_tree::owns_all_processes() || !process_tree::has_children();
        self.end.filter(|_| (self.outputs.is_empty() && is_alone()) || self.last_sign.elapsed() >= DRAIN_LIMIT)
    }

    /// Sends a signal to the process group.
    pub fn signal(&self, number: i32) {
        if self.end.is_none() {
            process_tree::signal_group(self.pid, number);
        }
    }

    /// Kills the command with everything it started.
    pub fn kill(&self) {
        if self.end.is_none() {
            process_tree::kill_all_of(self.pid);
        }
    }

    /// What the processes that it started are at, for a person.
    pub fn stacks(&self) -> String {
        if self.end.is_none() { process_tree::stacks_below(self.pid) } else { String::new() }
    }

    /// Kills what the command started, but not itself.
    pub fn kill_children(&self) {
        if self.end.is_none() {
            process_tree::kill_below(self.pid);
        }
    }

    /// Sets the size of its terminal, if it has one.
    pub fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            // It is a terminal, for we made it; and a size that it does not take is no reason to stop.
            let _ = set_window_size(terminal, size);
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.end.is_none() {
            process_tree::kill_all_of(self.pid);
            // It was sent SIGKILL, but may be stuck in the kernel: wait a little, so that no zombie is left.
            let deadline = Instant::now() + Duration::from_secs(1);
            while Instant::now() < deadline && matches!(process_tree::reap(self.pid), Ok(None)) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
