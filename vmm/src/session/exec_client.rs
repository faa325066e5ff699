//! Runs one command through an agent, as if it ran here: standard streams as bytes, signals, window size, exit code.
//!
//! Works on any [`AgentLink`]: a guest's over vsock, an emulated host's over its serial port.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use crossbeam_channel::{Receiver, Select, TryRecvError, TrySendError, after, never, select, unbounded};
use wire::{
    Command, FrameError, MAX_CHUNK, ProcessEnd, STDIN_WINDOW, Stream, ToGuest, ToHost, WindowSize, encode_frame,
};

use super::exec_streams::{OutputWriter, StdinReader};
use super::greeting::brief;
use super::{AgentLink, LinkEvent, TimeLimit};

/// That many signals asking to end, and this side stops waiting for the command.
const PATIENCE: u32 = 3;
/// Frames that were under way when the machine stopped arrive within this time of each other.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Ctrl-], typed this often in a row at a terminal, leaves a guest that no longer answers.
const ESCAPE: (u8, u32) = (0x1d, 3);

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program, arguments, environment, directory.
    pub command: Command,
    /// On a terminal of this size in the guest; without, on pipes.
    pub terminal: Option<WindowSize>,
}

/// What stands in for the command's own surroundings.
pub struct ExecStreams {
    /// Read as the command takes it; `None` is `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// Gets standard output.
    pub stdout: Box<dyn Write + Send>,
    /// Gets standard error.
    pub stderr: Box<dyn Write + Send>,
    /// Signal numbers to pass on.
    pub signals: Receiver<i32>,
    /// New sizes of the terminal.
    pub window_sizes: Receiver<WindowSize>,
}

impl ExecStreams {
    /// This process's own standard streams.
    ///
    /// # Errors
    /// When they cannot be duplicated, for example because one is closed.
    pub fn of_this_process(signals: Receiver<i32>, window_sizes: Receiver<WindowSize>) -> io::Result<Self> {
        let own = |fd: rustix::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
        Ok(Self {
            stdin: Some(own(rustix::stdio::stdin())?),
            // Not std's `Stdout`, which holds back what has no newline.
            stdout: Box::new(File::from(own(rustix::stdio::stdout())?)),
            stderr: Box::new(File::from(own(rustix::stdio::stderr())?)),
            signals,
            window_sizes,
        })
    }
}

impl std::fmt::Debug for ExecStreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecStreams").field("stdin", &self.stdin).finish_non_exhaustive()
    }
}

/// How the command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEnd {
    /// It ran.
    Ended(ProcessEnd),
    /// It could not be started.
    NotStarted {
        /// Of the failure, in the guest.
        errno: i32,
        /// What was tried.
        error: String,
    },
}

impl ExecEnd {
    /// The exit code a shell would give: 128 + n for signal n, 127 for a command that is not there, 126 for one that does
    /// not start.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let code = match self {
            Self::Ended(ProcessEnd::Exited(code)) => *code,
            Self::Ended(ProcessEnd::Signaled(signal)) => 128 + signal,
            Self::NotStarted { errno: libc::ENOENT, .. } => 127,
            Self::NotStarted { .. } => 126,
        };
        u8::try_from(code & 0xff).unwrap_or(u8::MAX)
    }
}

/// The command's end was not learned. `S` says why a machine stopped.
#[derive(Debug, thiserror::Error)]
pub enum ExecError<S: std::fmt::Debug + std::fmt::Display> {
    /// The machine stopped.
    #[error("the machine stopped while the command ran: {reason}{}", .stream.as_ref().map(|e| format!(" (its agent's stream had broken: {e})")).unwrap_or_default())]
    Stopped {
        /// Why.
        reason: S,
        /// What was wrong with the agent's stream before that.
        stream: Option<FrameError>,
    },
    /// No frame takes it.
    #[error("the command is too long with its arguments and environment; put it into a script: {0}")]
    TooLong(FrameError),
    /// The agent's stream ended.
    #[error("the stream of the guest's agent ended while the command ran{}", .0.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
    Closed(Option<FrameError>),
    /// The agent does not keep to the protocol.
    #[error("the guest's agent spoke out of turn: {0}")]
    OutOfTurn(String),
    /// The user did not want to wait any longer.
    #[error("interrupted; the command did not end")]
    Interrupted,
    /// The deadline passed.
    #[error("the command took longer than {} (--timeout)", humantime::format_duration(*.0))]
    TimedOut(Duration),
    /// A thread or descriptor of this process could not be had.
    #[error("failed to set up the standard streams")]
    Streams(#[source] io::Error),
}

/// Runs the command to its end; all its output has been written when this returns.
///
/// # Errors
/// When its end cannot be learned.
pub fn run<S: std::fmt::Debug + std::fmt::Display>(
    link: &AgentLink,
    stopped: &Receiver<S>,
    request: &ExecRequest,
    streams: ExecStreams,
    limit: Option<TimeLimit>,
) -> Result<ExecEnd, ExecError<S>> {
    let ExecStreams { stdin, stdout, stderr, signals, window_sizes } = streams;
    let exec = ToGuest::Exec { command: request.command.clone(), pty: request.terminal, stdin: stdin.is_some() };
    encode_frame(&exec).map_err(ExecError::TooLong)?;
    link.send(exec);
    let mut session = Session {
        link,
        stopped: stopped.clone(),
        signals,
        window_sizes,
        stdin: stdin.map(StdinReader::start).transpose().map_err(ExecError::Streams)?,
        output: OutputWriter::start(stdout, stderr).map_err(ExecError::Streams)?,
        on_terminal: request.terminal.is_some(),
        unacknowledged: 0,
        waiting_output: None,
        asked_to_end: 0,
        escapes: 0,
        limit,
    };
    let end = session.talk()?;
    session.finish_output()?;
    Ok(end)
}

struct Session<'a, S> {
    link: &'a AgentLink,
    stopped: Receiver<S>,
    signals: Receiver<i32>,
    window_sizes: Receiver<WindowSize>,
    stdin: Option<StdinReader>,
    output: OutputWriter,
    on_terminal: bool,
    /// Bytes of standard input that the command did not take yet.
    unacknowledged: usize,
    /// Output that the standard streams had no room for; no frame is read meanwhile, so that the command waits too.
    waiting_output: Option<(Stream, Vec<u8>)>,
    asked_to_end: u32,
    escapes: u32,
    limit: Option<TimeLimit>,
}

impl<S: std::fmt::Debug + std::fmt::Display> Session<'_, S> {
    fn talk(&mut self) -> Result<ExecEnd, ExecError<S>> {
        loop {
            self.wait()?;
            if let Some(piece) = self.waiting_output.take() {
                self.write_output(piece);
            }
            if self.waiting_output.is_none()
                && let Ok(event) = self.link.events().try_recv()
                && let Some(end) = self.on_event(event)?
            {
                return Ok(end);
            }
            self.pass_on_signals()?;
            self.pass_on_stdin()?;
            match self.stopped.try_recv() {
                Ok(reason) => return self.last_words(reason),
                Err(TryRecvError::Disconnected) => self.stopped = never(),
                Err(TryRecvError::Empty) => {}
            }
        }
    }

    /// Waits until one of the channels that can be served now has something.
    fn wait(&self) -> Result<(), ExecError<S>> {
        let mut select = Select::new();
        match (&self.waiting_output, self.output.pieces()) {
            (Some(_), Some(pieces)) => select.send(pieces),
            _ => select.recv(self.link.events()),
        };
        if let Some(stdin) = self.stdin.as_ref().filter(|_| self.has_stdin_room()) {
            select.recv(stdin.chunks());
        }
        select.recv(&self.stopped);
        select.recv(&self.signals);
        select.recv(&self.window_sizes);
        select.recv(self.output.failures());
        match self.limit {
            None => {
                select.ready();
                Ok(())
            }
            Some(limit) => select.ready_deadline(limit.until).map(drop).map_err(|_| ExecError::TimedOut(limit.length)),
        }
    }

    fn on_event(&mut self, event: LinkEvent) -> Result<Option<ExecEnd>, ExecError<S>> {
        let frame = match event {
            LinkEvent::Frame(frame) => frame,
            LinkEvent::Closed(error) => {
                // If the machine stopped, that is the better explanation; its word may be under way.
                return match self.stopped.recv_timeout(Duration::from_secs(1)) {
                    Ok(reason) => Err(ExecError::Stopped { reason, stream: error }),
                    Err(_) => Err(ExecError::Closed(error)),
                };
            }
        };
        match frame {
            ToHost::Output { stream, data } => self.write_output((stream, data)),
            ToHost::StdinConsumed { bytes } => {
                self.unacknowledged = self.unacknowledged.saturating_sub(bytes as usize);
            }
            ToHost::StdinClosed => self.stdin = None,
            ToHost::ExecFinished { end } => return Ok(Some(ExecEnd::Ended(end))),
            ToHost::ExecNotStarted { errno, error } => return Ok(Some(ExecEnd::NotStarted { errno, error })),
            ToHost::Log { line } => tracing::info!("agent: {line}"),
            other => return Err(ExecError::OutOfTurn(brief(&other))),
        }
        Ok(None)
    }

    fn write_output(&mut self, piece: (Stream, Vec<u8>)) {
        let Some(pieces) = self.output.pieces() else { return };
        if let Err(TrySendError::Full(piece)) = pieces.try_send(piece) {
            self.waiting_output = Some(piece);
        }
    }

    fn pass_on_signals(&mut self) -> Result<(), ExecError<S>> {
        match self.signals.try_recv() {
            Ok(signal) => {
                self.asked_to_end += 1;
                // At a terminal Ctrl-C comes as a key. A signal is meant for this process, and a shell would ignore it.
                if self.on_terminal || self.asked_to_end >= PATIENCE {
                    return Err(ExecError::Interrupted);
                }
                self.link.send(ToGuest::Signal(signal));
            }
            Err(TryRecvError::Disconnected) => self.signals = never(),
            Err(TryRecvError::Empty) => {}
        }
        match self.window_sizes.try_recv() {
            Ok(size) => self.link.send(ToGuest::Resize(size)),
            Err(TryRecvError::Disconnected) => self.window_sizes = never(),
            Err(TryRecvError::Empty) => {}
        }
        // Nobody reads this any more: the command learns it as it would here.
        if self.output.failures().try_recv().is_ok() {
            self.link.send(ToGuest::Signal(libc::SIGPIPE));
        }
        Ok(())
    }

    fn pass_on_stdin(&mut self) -> Result<(), ExecError<S>> {
        let Some(stdin) = self.stdin.as_ref().filter(|_| self.has_stdin_room()) else { return Ok(()) };
        match stdin.chunks().try_recv() {
            Ok(data) => {
                if self.on_terminal && self.is_escape(&data) {
                    return Err(ExecError::Interrupted);
                }
                self.unacknowledged += data.len();
                self.link.send(ToGuest::Stdin { data });
            }
            Err(TryRecvError::Disconnected) => {
                self.stdin = None;
                self.link.send(ToGuest::StdinEof);
            }
            Err(TryRecvError::Empty) => {}
        }
        Ok(())
    }

    /// Whether a whole chunk fits into the window.
    fn has_stdin_room(&self) -> bool {
        self.unacknowledged + MAX_CHUNK <= STDIN_WINDOW
    }

    fn is_escape(&mut self, typed: &[u8]) -> bool {
        for &key in typed {
            self.escapes = if key == ESCAPE.0 { self.escapes + 1 } else { 0 };
        }
        self.escapes >= ESCAPE.1
    }

    /// The machine has stopped: what its agent had sent may still hold the command's end.
    fn last_words(&mut self, reason: S) -> Result<ExecEnd, ExecError<S>> {
        while let Ok(LinkEvent::Frame(frame)) = self.link.events().recv_timeout(LAST_WORDS) {
            match frame {
                ToHost::Output { stream, data } => {
                    let pieces = [self.waiting_output.take(), Some((stream, data))];
                    for piece in pieces.into_iter().flatten() {
                        if let Some(sender) = self.output.pieces() {
                            // A stream that takes nothing for this long is not waited for.
                            let _ = sender.send_timeout(piece, Duration::from_secs(1));
                        }
                    }
                }
                ToHost::ExecFinished { end } => return Ok(ExecEnd::Ended(end)),
                _ => {}
            }
        }
        self.finish_output()?;
        Err(ExecError::Stopped { reason, stream: None })
    }

    /// Waits until everything is written. Only the user can end that: who paused a pager wants the rest of it.
    fn finish_output(&mut self) -> Result<(), ExecError<S>> {
        if let Some((piece, sender)) = self.waiting_output.take().zip(self.output.pieces().cloned()) {
            select! {
                send(sender, piece) -> _ => {}
                recv(self.signals) -> _ => return Err(ExecError::Interrupted),
            }
        }
        let timeout = self.limit.map_or_else(never, |limit| after(limit.left()));
        let done = self.output.finish();
        loop {
            select! {
                recv(done) -> _ => return Ok(()),
                recv(self.signals) -> signal => match signal {
                    Ok(_) => return Err(ExecError::Interrupted),
                    Err(_) => self.signals = never(),
                },
                recv(timeout) -> _ => return Err(ExecError::TimedOut(self.limit.map_or(Duration::ZERO, |limit| limit.length))),
            }
        }
    }
}

/// The signals that ask this process to end, and the sizes of its terminal, as channels. They stay caught, without effect, after
/// it was dropped.
#[derive(Debug)]
pub struct ForwardedSignals {
    /// SIGINT, SIGTERM and SIGHUP.
    pub signals: Receiver<i32>,
    /// The size of the terminal that is standard output, whenever it changes.
    pub window_sizes: Receiver<WindowSize>,
    handle: signal_hook::iterator::Handle,
}

impl ForwardedSignals {
    /// Catches the signals from here on.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn catch() -> io::Result<Self> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
        let mut caught = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP, SIGWINCH])?;
        let handle = caught.handle();
        let (signal_sender, signals) = unbounded();
        let (size_sender, window_sizes) = unbounded();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in caught.forever() {
                let delivered = match signal {
                    SIGWINCH => terminal_size().is_none_or(|size| size_sender.send(size).is_ok()),
                    signal => signal_sender.send(signal).is_ok(),
                };
                if !delivered {
                    return;
                }
            }
        })?;
        Ok(Self { signals, window_sizes, handle })
    }
}

impl Drop for ForwardedSignals {
    fn drop(&mut self) {
        self.handle.close();
    }
}

/// The size of the terminal that is this process's standard output.
#[must_use]
pub fn terminal_size() -> Option<WindowSize> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok()?;
    Some(WindowSize { rows: size.ws_row, columns: size.ws_col })
}

/// Whether standard input and standard output are terminals.
#[must_use]
pub fn has_terminal() -> bool {
    rustix::termios::isatty(rustix::stdio::stdin()) && rustix::termios::isatty(rustix::stdio::stdout())
}

#[cfg(test)]
mod tests;
