//! An emulated host that is kept for one command after another.

use std::ffi::OsString;
use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{never, unbounded};
use wire::Command;

use super::inside::{command_inside, start_patiently};
use super::{EmulatedHostConfig, EmulatedHostError, RunningHost};
use crate::session::exec_client::{self, ExecEnd, ExecError, ExecRequest, ExecStreams};

/// How often the caller is asked whether to go on.
const POLL: Duration = Duration::from_millis(100);
/// A command that was asked to stop may keep its results first.
const GRACE: Duration = Duration::from_secs(60);
/// Around a command in a host that was used before. The host takes what it knows of this machine's files for true (see the
/// agent's `ROOT_OPTIONS`), and by now they may be others.
const FORGET_FILES: [&str; 4] = ["sh", "-c", "echo 3 > /proc/sys/vm/drop_caches; exec \"$@\"", "sh"];

/// An emulated host for commands without a terminal or input, one at a time. It is started when one is needed, and ends with
/// this or with the thread that started it.
#[derive(Debug)]
pub struct KeptHost {
    config: EmulatedHostConfig,
    running: Option<RunningHost>,
}

impl KeptHost {
    /// None runs yet.
    #[must_use]
    pub fn new(config: EmulatedHostConfig) -> Self {
        Self { config, running: None }
    }

    /// Whether one runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Runs `argv` in it as if it ran in `directory` here, with `environment` added to ours; its output goes to `log`.
    /// `waiting` is called about ten times a second and says whether to go on: if not, the command gets a SIGINT, and is
    /// given up when it has not ended within a minute.
    ///
    /// # Errors
    /// The host did not start or did not last, and the next command gets another. [`EmulatedHostError::Interrupted`]:
    /// `waiting` said so.
    pub fn run(
        &mut self,
        argv: &[OsString],
        environment: &[(&str, &str)],
        directory: &Path,
        log: &File,
        waiting: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<ExecEnd, EmulatedHostError> {
        let streams = || -> std::io::Result<_> { Ok((Box::new(log.try_clone()?), Box::new(log.try_clone()?))) };
        let (stdout, stderr) = streams()
            .map_err(|error| EmulatedHostError::Prepare(format!("failed to duplicate a file descriptor: {error}")))?;
        let mut command = command_inside(argv, directory)?;
        command.env.extend(environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let host = match self.running.take() {
            Some(host) => {
                command.argv.splice(0..0, FORGET_FILES.map(str::to_owned));
                host
            }
            None => start_patiently(&self.config, &mut |_| waiting())?,
        };
        let (asks_to_end, signals) = unbounded();
        let streams = ExecStreams { stdin: None, stdout, stderr, signals, window_sizes: never() };
        let ended = thread::scope(|scope| {
            let run = thread::Builder::new()
                .name("kept-host".into())
                .spawn_scoped(scope, || exec(&host, command, streams))
                .map_err(|error| EmulatedHostError::Prepare(format!("failed to start a thread: {error}")))?;
            let mut asked: Option<Instant> = None;
            while !run.is_finished() {
                let give_up = waiting().is_break();
                if give_up && asked.is_none_or(|since| since.elapsed() > GRACE) {
                    // Not there any more when the command has just ended.
                    let _ = asks_to_end.send(libc::SIGINT);
                    asked.get_or_insert_with(Instant::now);
                }
                thread::sleep(POLL);
            }
            let lost = || EmulatedHostError::CommandLost("the thread that waited for it panicked".to_owned());
            let ended = run.join().map_err(|_| lost())?;
            Ok(if asked.is_some() { Err(ExecError::Interrupted) } else { ended })
        })?;
        match ended {
            Ok(end) => {
                self.running = Some(host);
                Ok(end)
            }
            Err(ExecError::Closed(_)) => Err(host.died()),
            Err(ExecError::Interrupted) => Err(EmulatedHostError::Interrupted),
            Err(error) => Err(EmulatedHostError::CommandLost(error.to_string())),
        }
    }

    /// Ends it; the next command gets another. Nothing in it is worth writing back.
    pub fn end(&mut self) {
        self.running = None;
    }
}

fn exec(host: &RunningHost, command: Command, streams: ExecStreams) -> Result<ExecEnd, ExecError<String>> {
    exec_client::run(host.link(), &never(), &ExecRequest { command, terminal: None }, streams, None)
}
