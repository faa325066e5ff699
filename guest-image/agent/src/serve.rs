//! Answers the host's frames: one thread, one poll loop, so that a stuck command never keeps a signal from it.
//!
//! Memory is bounded on every path: output is not read from a command while [`OUTPUT_LIMIT`] bytes wait for the host;
//! standard input has a window ([`wire::STDIN_WINDOW`]); frames are not read while [`REPLY_LIMIT`] bytes wait.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use wire::{FrameError, MAX_CHUNK, SuitePlan, ToGuest, ToHost, WindowSize};

use crate::child_signal::ChildSignal;
use crate::cpu_wakers::CpuWakers;
use crate::job::{Fed, Job, WindowExceeded};
use crate::kernel_command_line::Share;
use crate::kernel_messages::KernelMessages;
use crate::link::Link;
use crate::process::{SpawnError, spawn};
use crate::process_tree::{ended_child, owns_all_processes, reap};
use crate::shares;
use crate::suite::Suite;

/// With this many bytes waiting for the host a command's output stays in its pipe, and the command waits.
const OUTPUT_LIMIT: usize = 256 << 10;
/// With this many bytes waiting for the host its frames stay in the stream: it asks, but takes no answers.
const REPLY_LIMIT: usize = 4 << 20;

/// Why serving ended. What ran was killed.
#[derive(Debug)]
pub enum ServeEnd {
    /// The host asked for [`ToGuest::Shutdown`]: finish, [`Server::say_goodbye`], and power off.
    ShutdownAsked,
    /// The host closed the stream between two frames.
    HostClosed,
    /// The stream broke, or the host does not keep to the protocol.
    Broken(ServeError),
}

/// Why the stream is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Bytes that are no frames, or a stream cut in the middle of one.
    #[error("the stream from the host is broken: {0}")]
    Frame(#[from] FrameError),
    /// Nothing can be written.
    #[error("the stream to the host is broken: {0}")]
    Write(io::Error),
    /// Too much standard input.
    #[error(transparent)]
    Window(#[from] WindowExceeded),
    /// The system refuses to wait for events.
    #[error("failed to wait for events: {0}")]
    Poll(Errno),
}

/// What the running job is for.
#[derive(Debug)]
enum Purpose {
    Exec,
    Suite(Box<Suite>),
}

/// Serves one host over one stream.
#[derive(Debug)]
pub struct Server {
    link: Link,
    running: Option<(Job, Purpose)>,
    /// Bytes of standard input that were consumed and not yet acknowledged.
    unacknowledged: usize,
    /// Tells PID 1 that a child ended, be it one it never started.
    child_signal: Option<ChildSignal>,
    /// Read from the first suite on, by PID 1 only.
    kernel_messages: Option<KernelMessages>,
    cpu_wakers: Option<CpuWakers>,
    /// What each suite is to find mounted.
    shares: Vec<Share>,
    buffer: Vec<u8>,
}

impl Server {
    /// Serves on `stream`, after the frames of `first`.
    ///
    /// When this process is PID 1 it also reaps every orphan, and kills everything else when a command ends; nothing
    /// else in this process may wait for children while [`run`](Self::run) runs.
    ///
    /// # Errors
    /// When the stream cannot be made non-blocking, or the signal descriptor cannot be made.
    pub fn new(stream: impl Into<OwnedFd>, first: &[ToHost]) -> io::Result<Self> {
        let child_signal = owns_all_processes().then(ChildSignal::catch).transpose()?;
        let mut link = Link::new(stream)?;
        for frame in first {
            link.send(frame);
        }
        Ok(Self {
            link,
            running: None,
            unacknowledged: 0,
            child_signal,
            kernel_messages: None,
            cpu_wakers: None,
            shares: Vec::new(),
            buffer: vec![0; MAX_CHUNK],
        })
    }

    /// Has every CPU woken whenever the host asks whether we are alive.
    #[must_use]
    pub fn with_cpu_wakers(self, wakers: CpuWakers) -> Self {
        Self { cpu_wakers: Some(wakers), ..self }
    }

    /// Has each suite find these mounted, whatever ran before.
    #[must_use]
    pub fn with_shares(self, shares: Vec<Share>) -> Self {
        Self { shares, ..self }
    }

    /// Serves until the host has had enough; kills what still runs.
    pub fn run(&mut self) -> ServeEnd {
        let end = loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(end)) => break end,
                Err(error) => break ServeEnd::Broken(error),
            }
        };
        self.running = None;
        end
    }

    /// Queues a line for the host's log.
    pub fn log(&mut self, line: impl Into<String>) {
        self.link.send(&ToHost::Log { line: line.into() });
    }

    /// Says the last word, waiting for the host at most `limit`.
    ///
    /// # Errors
    /// When the host does not take it.
    pub fn say_goodbye(&mut self, limit: Duration) -> io::Result<()> {
        self.pass_on_kernel_messages();
        self.link.send(&ToHost::Goodbye);
        self.link.flush_within(limit)
    }

    /// Waits for something to happen and handles it.
    fn turn(&mut self) -> Result<Option<ServeEnd>, ServeError> {
        self.link.flush().map_err(ServeError::Write)?;
        let ready = self.wait().map_err(ServeError::Poll)?;
        if ready.link
            && let Some(end) = self.handle_frames()?
        {
            return Ok(Some(end));
        }
        if ready.stdin_closed
            && let Some((job, _)) = &mut self.running
        {
            let fed = job.close_stdin(0);
            self.report_fed(fed);
        } else if ready.stdin {
            self.feed();
        }
        if ready.kernel_messages {
            self.pass_on_kernel_messages();
        }
        self.read_outputs(&ready.outputs);
        self.reap(ready.child_signal, ready.process);
        self.watch_suite();
        self.finish_job();
        Ok(None)
    }

    fn wait(&self) -> Result<Ready, Errno> {
        let mut fds = Vec::with_capacity(6);
        let mut tokens = Vec::with_capacity(6);
        let mut watch = |token, fd, flags| {
            tokens.push(token);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        let mut link_events = PollFlags::empty();
        link_events.set(PollFlags::IN, self.link.queued() < REPLY_LIMIT);
        link_events.set(PollFlags::OUT, self.link.queued() > 0);
        watch(Token::Link, self.link.as_fd(), link_events);
        if let Some(signal) = &self.child_signal {
            watch(Token::ChildSignal, signal.as_fd(), PollFlags::IN);
        }
        if let Some(messages) = self.kernel_messages.as_ref().filter(|_| self.takes_output()) {
            watch(Token::KernelMessages, messages.as_fd(), PollFlags::IN);
        }
        let mut deadline = None;
        if let Some((job, purpose)) = &self.running {
            if let Some(pidfd) = job.pidfd() {
                watch(Token::Process, pidfd.as_fd(), PollFlags::IN);
            }
            if let Some((stdin, waiting)) = job.stdin() {
                // Without a wish it still tells that the command closed its end of the pipe; a terminal has no such end.
                if waiting || !job.has_terminal() {
                    watch(Token::Stdin, stdin.as_fd(), if waiting { PollFlags::OUT } else { PollFlags::empty() });
                }
            }
            if self.takes_output() {
                for (index, output) in job.outputs().iter().enumerate() {
                    watch(Token::Output(index), output.fd.as_fd(), PollFlags::IN);
                }
            }
            deadline = job.drain_deadline();
            if let Purpose::Suite(suite) = purpose {
                deadline = [deadline, suite.next_deadline()].into_iter().flatten().min();
            }
        }
        let timeout = deadline.map(|at| {
            // Rounded up: waking a moment early would turn the wait into a spin.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec::try_from(left).unwrap_or_default()
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(errno) => return Err(errno),
        }
        let mut ready = Ready::default();
        for (token, fd) in tokens.iter().zip(&fds) {
            let events = fd.revents();
            if events.is_empty() {
                continue;
            }
            match token {
                Token::Link => ready.link = events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR),
                Token::ChildSignal => ready.child_signal = true,
                Token::KernelMessages => ready.kernel_messages = true,
                Token::Process => ready.process = true,
                Token::Stdin => {
                    ready.stdin = events.contains(PollFlags::OUT);
                    ready.stdin_closed = events.intersects(PollFlags::ERR | PollFlags::HUP);
                }
                Token::Output(index) => ready.outputs.push(*index),
            }
        }
        Ok(ready)
    }

    fn takes_output(&self) -> bool {
        self.link.queued() < OUTPUT_LIMIT
    }

    fn handle_frames(&mut self) -> Result<Option<ServeEnd>, ServeError> {
        if !self.link.receive()? {
            return Ok(Some(ServeEnd::HostClosed));
        }
        while let Some(frame) = self.link.next_frame()? {
            match frame {
                ToGuest::RunSuite(plan) => self.start_suite(plan),
                ToGuest::Exec { command, pty, stdin } => self.start_exec(&command, pty, stdin),
                ToGuest::Stdin { data } => self.take_stdin(&data)?,
                ToGuest::StdinEof => {
                    if let Some((job, _)) = &mut self.running {
                        job.end_stdin();
                        self.feed();
                    }
                }
                ToGuest::Resize(size) => {
                    if let Some((job, _)) = &self.running {
                        job.resize(size);
                    }
                }
                ToGuest::Signal(number) => {
                    if let Some((job, _)) = &self.running {
                        job.signal(number);
                    }
                }
                ToGuest::KillTest { reason } => self.kill_test(&reason),
                ToGuest::Ping => {
                    if let Some(wakers) = &self.cpu_wakers {
                        wakers.wake();
                    }
                    self.link.send(&ToHost::Pong);
                }
                ToGuest::Shutdown => return Ok(Some(ServeEnd::ShutdownAsked)),
            }
        }
        Ok(None)
    }

    fn start_exec(&mut self, command: &wire::Command, terminal: Option<WindowSize>, stdin: bool) {
        let started = if self.running.is_some() { Err(busy()) } else { spawn(command, terminal, stdin) };
        match started {
            Ok(process) => {
                self.unacknowledged = 0;
                self.running = Some((Job::new(process), Purpose::Exec));
            }
            Err(error) => self.link.send(&ToHost::ExecNotStarted { errno: error.errno(), error: error.to_string() }),
        }
    }

    fn start_suite(&mut self, plan: SuitePlan) {
        let started = if self.running.is_some() {
            Err(busy().to_string())
        } else {
            self.restore_shares().and_then(|()| spawn(&plan.command, None, false).map_err(|error| error.to_string()))
        };
        match started {
            Ok(process) => {
                self.link.send(&ToHost::SuiteStarted { suite: plan.name.clone() });
                if owns_all_processes() && self.kernel_messages.is_none() {
                    // A kernel without the device has no log to show.
                    self.kernel_messages = KernelMessages::open().ok();
                }
                let mut suite = Box::new(Suite::new(&plan));
                suite.begin(&mut self.link);
                self.running = Some((Job::new(process), Purpose::Suite(suite)));
            }
            Err(error) => self.link.send(&ToHost::SuiteNotStarted { error }),
        }
    }

    fn restore_shares(&mut self) -> Result<(), String> {
        for share in shares::restore(&self.shares)? {
            let line = format!("{} was not mounted at {} any more: mounted again", share.tag, share.mount_point);
            self.link.send(&ToHost::Log { line });
        }
        Ok(())
    }

    fn pass_on_kernel_messages(&mut self) {
        let Some(messages) = &mut self.kernel_messages else { return };
        let text = messages.read(MAX_CHUNK);
        if !text.is_empty() {
            self.link.send(&ToHost::KernelLog { text });
        }
    }

    fn take_stdin(&mut self, data: &[u8]) -> Result<(), WindowExceeded> {
        let Some((job, _)) = &mut self.running else { return Ok(()) };
        if job.push_stdin(data)? {
            self.feed();
        } else {
            // It is closed and the host was told; what crossed that message on the way counts as taken.
            self.report_fed(Fed { consumed: data.len(), closed: false });
        }
        Ok(())
    }

    fn feed(&mut self) {
        if let Some((job, _)) = &mut self.running {
            let fed = job.feed();
            self.report_fed(fed);
        }
    }

    /// Acknowledges in whole chunks, for each costs a packet: the host sends as long as one fits into its window.
    fn report_fed(&mut self, fed: Fed) {
        self.unacknowledged += fed.consumed;
        if self.unacknowledged >= MAX_CHUNK || fed.closed {
            let bytes = u32::try_from(std::mem::take(&mut self.unacknowledged)).unwrap_or(u32::MAX);
            self.link.send(&ToHost::StdinConsumed { bytes });
        }
        if fed.closed {
            self.link.send(&ToHost::StdinClosed);
        }
    }

    fn read_outputs(&mut self, ready: &[usize]) {
        let takes_output = self.takes_output();
        let Some((job, purpose)) = &mut self.running else { return };
        if !takes_output {
            job.note_backpressure();
            return;
        }
        // From the last, because one that is at its end is removed.
        for &index in ready.iter().rev() {
            if let Some((stream, data)) = job.read_output(index, &mut self.buffer) {
                match purpose {
                    Purpose::Exec => self.link.send(&ToHost::Output { stream, data: data.to_vec() }),
                    Purpose::Suite(suite) => suite.output(stream, data, &mut self.link),
                }
            }
        }
    }

    /// The only place that waits for children: of the job always, of anybody when this is PID 1.
    fn reap(&mut self, signalled: bool, job_ended: bool) {
        if signalled {
            // Before looking, so that a child that ends while we look is seen in the next turn.
            if let Some(signal) = &self.child_signal {
                signal.clear();
            }
            while let Some(child) = ended_child() {
                match &mut self.running {
                    Some((job, _)) if job.pid() == child && job.pidfd().is_some() => job.check_end(),
                    _ => {
                        if reap(child).is_err() {
                            break;
                        }
                    }
                }
            }
        }
        if job_ended && let Some((job, _)) = &mut self.running {
            job.check_end();
        }
    }

    fn kill_test(&mut self, reason: &str) {
        if let Some((job, Purpose::Suite(suite))) = &mut self.running {
            suite.kill_test(reason, job, &mut self.link);
        }
    }

    fn watch_suite(&mut self) {
        if let Some((job, Purpose::Suite(suite))) = &mut self.running {
            suite.watch(job, &mut self.link);
        }
    }

    fn finish_job(&mut self) {
        let Some(end) = self.running.as_ref().and_then(|(job, _)| job.finished()) else { return };
        let Some((_, purpose)) = self.running.take() else { return };
        match purpose {
            Purpose::Exec => self.link.send(&ToHost::ExecFinished { end }),
            Purpose::Suite(mut suite) => {
                suite.finish(end, &mut self.link);
                self.link.send(&ToHost::SuiteFinished { end });
            }
        }
    }
}

#[derive(Debug)]
enum Token {
    Link,
    ChildSignal,
    KernelMessages,
    Process,
    Stdin,
    Output(usize),
}

#[derive(Debug, Default)]
struct Ready {
    link: bool,
    child_signal: bool,
    kernel_messages: bool,
    process: bool,
    stdin: bool,
    stdin_closed: bool,
    outputs: Vec<usize>,
}

fn busy() -> SpawnError {
    SpawnError::new("start a second command: one is running", Errno::BUSY)
}
