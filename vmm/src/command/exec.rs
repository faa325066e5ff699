//! `vmm exec -- CMD`: one command in a fresh guest, as if it ran here.

use std::process::ExitCode as ProcessExitCode;
use std::time::Duration;

use crossbeam_channel::Receiver;
use wire::{Command, ToGuest, ToHost, WindowSize};

use crate::exit_code::ExitCode;
use crate::machine::StopReason;
use crate::session::exec_client::{self, ExecEnd, ExecError, ExecRequest, ExecStreams, ForwardedSignals};
use crate::session::{
    AgentLink, Deadlines, GuestHandle, LinkEvent, NotReady, RawTerminal, TimeLimit, await_greeting, console_log,
};

/// Where commands in a guest are looked for.
pub const GUEST_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to run, as the command line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOptions {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Added to the environment that every command gets.
    pub env: Vec<(String, String)>,
    /// Working directory in the guest.
    pub cwd: String,
    /// Run it on a terminal if our own standard input and output are one (`-t`).
    pub tty: bool,
    /// How long it may take.
    pub timeout: Option<Duration>,
}

impl ExecOptions {
    /// `argv` in root's home directory.
    #[must_use]
    pub fn new(argv: Vec<String>) -> Self {
        Self { argv, env: Vec::new(), cwd: "/root".into(), tty: false, timeout: None }
    }

    /// The request for an agent: on a terminal of this size if given.
    #[must_use]
    pub fn request(&self, terminal: Option<WindowSize>) -> ExecRequest {
        let mut env =
            vec![("PATH".into(), GUEST_PATH.into()), ("HOME".into(), "/root".into()), ("USER".into(), "root".into())];
        if terminal.is_some() {
            env.push(("TERM".into(), std::env::var("TERM").unwrap_or_else(|_| "linux".into())));
        }
        env.extend(self.env.iter().cloned());
        ExecRequest { command: Command { argv: self.argv.clone(), env, cwd: self.cwd.clone() }, terminal }
    }
}

/// Runs the command in a machine that was just started, with this process's standard streams, and gives its exit code. The
/// machine has stopped, or was told to, when this returns; what went wrong was said on standard error.
///
/// `signals` is made before the machine is started, so that Ctrl-C is never lost.
#[must_use]
pub fn run(
    options: &ExecOptions,
    guest: GuestHandle<'_>,
    signals: &ForwardedSignals,
    deadlines: &Deadlines,
) -> ProcessExitCode {
    let streams = ExecStreams::of_this_process(signals.signals.clone(), signals.window_sizes.clone());
    let terminal =
        (options.tty && exec_client::has_terminal()).then(|| exec_client::terminal_size().unwrap_or(DEFAULT_SIZE));
    let limit = options.timeout.and_then(TimeLimit::start);
    let result = streams
        .map_err(|error| Failure::new(ExitCode::CannotTest, format!("failed to use the standard streams: {error}")))
        .and_then(|streams| run_with(&options.request(terminal), guest, streams, &signals.signals, deadlines, limit));
    match result {
        Ok(code) => ProcessExitCode::from(code),
        Err(failure) => {
            eprintln!("vmm: {}", failure.message);
            failure.code.into()
        }
    }
}

/// For a terminal that does not tell its size.
const DEFAULT_SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };

/// Why there is no exit code of the command.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Failure {
    code: ExitCode,
    message: String,
}

impl Failure {
    fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

fn run_with(
    request: &ExecRequest,
    guest: GuestHandle<'_>,
    streams: ExecStreams,
    interrupts: &Receiver<i32>,
    deadlines: &Deadlines,
    limit: Option<TimeLimit>,
) -> Result<u8, Failure> {
    let GuestHandle { agent, stopped, console_log, stop, .. } = guest;
    let link = AgentLink::accept(agent)
        .map_err(|error| Failure::new(ExitCode::CannotTest, format!("failed to start a thread: {error}")))?;
    let result = talk(&link, &stopped, request, streams, interrupts, deadlines, limit);
    if let Ok(_) | Err(TalkError::Exec(ExecError::Interrupted | ExecError::TimedOut(_))) = &result {
        shut_down(&link, &stopped, interrupts, deadlines.shutdown);
    }
    // If it stopped by itself this says so again; nothing is left running either way.
    let stop_reason = stop();
    tracing::debug!(%stop_reason, "the machine is down");
    result.map_err(|error| explain(error, console_log.as_deref()))
}

#[derive(Debug)]
enum TalkError {
    Greeting(NotReady<StopReason>),
    Terminal(std::io::Error),
    Exec(ExecError<StopReason>),
}

fn talk(
    link: &AgentLink,
    stopped: &Receiver<StopReason>,
    request: &ExecRequest,
    streams: ExecStreams,
    interrupts: &Receiver<i32>,
    deadlines: &Deadlines,
    limit: Option<TimeLimit>,
) -> Result<u8, TalkError> {
    let greeting = await_greeting(link, stopped, interrupts, deadlines.boot).map_err(TalkError::Greeting)?;
    if let Some(failed) = greeting.failed_mounts() {
        eprintln!("vmm: warning: {failed}");
    }
    let end = {
        let on_terminal = request.terminal.is_some() && exec_client::has_terminal();
        let _raw =
            on_terminal.then(|| RawTerminal::enter(rustix::stdio::stdin())).transpose().map_err(TalkError::Terminal)?;
        exec_client::run(link, stopped, request, streams, limit).map_err(TalkError::Exec)?
    };
    if let ExecEnd::NotStarted { error, .. } = &end {
        eprintln!("vmm: {error}");
    }
    Ok(end.exit_code())
}

/// Lets the guest write back and unmount its shares; it need not power off by itself after that. Where the agent does not even
/// answer for a quarter of that time, the guest hangs, and is not waited for.
fn shut_down(link: &AgentLink, stopped: &Receiver<StopReason>, interrupts: &Receiver<i32>, limit: Duration) {
    let heard = link.frames_read();
    link.send(ToGuest::Ping);
    link.send(ToGuest::Shutdown);
    let sign_of_life = crossbeam_channel::after(limit / 4);
    let timeout = crossbeam_channel::after(limit);
    let given_up = |after: Duration| {
        let after = humantime::format_duration(after);
        eprintln!("vmm: warning: the guest did not shut down within {after}; what it had not written is lost");
    };
    loop {
        crossbeam_channel::select! {
            recv(link.events()) -> event => match event {
                Ok(LinkEvent::Frame(ToHost::Goodbye) | LinkEvent::Closed(_)) | Err(_) => return,
                Ok(LinkEvent::Frame(ToHost::Log { line })) => tracing::info!("agent: {line}"),
                Ok(LinkEvent::Frame(_)) => {}
            },
            recv(stopped) -> _ => return,
            recv(interrupts) -> _ => return,
            recv(sign_of_life) -> _ => if link.frames_read() == heard {
                return given_up(limit / 4);
            },
            recv(timeout) -> _ => return given_up(limit),
        }
    }
}

fn explain(error: TalkError, console: Option<&std::path::Path>) -> Failure {
    let findings = console.and_then(|path| console_log::read(path).ok()).unwrap_or_default();
    if let (Some(death), TalkError::Greeting(_) | TalkError::Exec(ExecError::Stopped { .. } | ExecError::Closed(_))) =
        (findings.kernel_death(), &error)
    {
        return Failure::new(ExitCode::GuestDied, format!("the guest died: {death}"));
    }
    let fatal = findings.agent_fatal.map(|fatal| format!("; the guest's agent gave up: {fatal}")).unwrap_or_default();
    match error {
        TalkError::Greeting(error) => {
            let code = match &error {
                NotReady::TimedOut(_) => ExitCode::Timeout,
                NotReady::Interrupted => ExitCode::Interrupted,
                _ => ExitCode::CannotTest,
            };
            Failure::new(code, format!("{error}{fatal}"))
        }
        TalkError::Terminal(error) => {
            Failure::new(ExitCode::CannotTest, format!("failed to set the terminal up: {error}"))
        }
        TalkError::Exec(error) => {
            let code = match &error {
                ExecError::Stopped {
                    reason: StopReason::KvmFailed { .. } | StopReason::ThreadPanicked { .. }, ..
                }
                | ExecError::Streams(_) => ExitCode::CannotTest,
                ExecError::TooLong(_) => ExitCode::Usage,
                ExecError::Stopped { .. } | ExecError::Closed(_) | ExecError::OutOfTurn(_) => ExitCode::GuestDied,
                ExecError::Interrupted => ExitCode::Interrupted,
                ExecError::TimedOut(_) => ExitCode::Timeout,
            };
            Failure::new(code, format!("{error}{fatal}"))
        }
    }
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
