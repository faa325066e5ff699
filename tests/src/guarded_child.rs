//! A child process with a deadline, killed with everything in its process group when it is no longer wanted.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::finished::Finished;

/// See the module's text. The command has to give it a process group of its own.
#[derive(Debug)]
pub(crate) struct GuardedChild {
    child: Child,
    command: String,
    started: Instant,
    until: Instant,
}

impl GuardedChild {
    pub(crate) fn start(mut command: Command, deadline: Duration) -> Self {
        let shown = format!("{command:?}");
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
        let started = Instant::now();
        Self { child, command: shown, started, until: started + deadline }
    }

    /// The child, for its ends of the pipes it was started with.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// When its deadline passes.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// Sends a signal to the process alone.
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Waits for its end; `None` when the deadline passed and it was killed.
    pub(crate) fn wait(&mut self) -> Option<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return Some(status);
            }
            if Instant::now() > self.until {
                self.kill();
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn kill(&mut self) -> ExitStatus {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        self.child.wait().expect("a child can be waited for")
    }

    /// What came of it; `output` gives what it printed: standard output and standard error.
    pub(crate) fn finished(&self, status: ExitStatus, output: impl FnOnce() -> (Vec<u8>, Vec<u8>)) -> Finished {
        let took = self.started.elapsed();
        let (stdout, stderr) = output();
        Finished { command: self.command.clone(), code: status.code(), signal: status.signal(), stdout, stderr, took }
    }
}

impl Drop for GuardedChild {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}
