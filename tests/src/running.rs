//! An invocation in the background.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::finished::Finished;
use crate::guarded_child::GuardedChild;

/// Bytes that a thread collects while others wait for something among them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Collected(Arc<(Mutex<Content>, Condvar)>);

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    ended: bool,
}

impl Collected {
    /// Starts the thread, which ends with the stream.
    pub(crate) fn from(mut stream: impl Read + Send + 'static) -> Self {
        let all = Self::default();
        let shared = all.clone();
        thread::spawn(move || {
            let mut buffer = [0; 64 << 10];
            loop {
                let got = stream.read(&mut buffer).unwrap_or(0);
                let mut content = shared.lock();
                content.bytes.extend_from_slice(&buffer[..got]);
                content.ended = got == 0;
                shared.0.1.notify_all();
                if got == 0 {
                    return;
                }
            }
        });
        all
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has come so far.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.lock().bytes.clone()
    }

    /// Waits for `text`, counting only what came after the first `from` bytes. `None` when the stream ends or the time is
    /// over before it comes; else the position behind it.
    pub(crate) fn wait_for(&self, text: &str, from: usize, until: Instant) -> Option<usize> {
        let mut content = self.lock();
        let mut searched = from;
        loop {
            let at = content.bytes.get(searched..).and_then(|new| find(new, text.as_bytes()));
            if let Some(at) = at {
                return Some(searched + at + text.len());
            }
            searched = content.bytes.len().saturating_sub(text.len()).max(from);
            let left = until.saturating_duration_since(Instant::now());
            if content.ended || left.is_zero() {
                return None;
            }
            content = self.0.1.wait_timeout(content, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the end of the stream, at most until then.
    pub(crate) fn wait_for_end(&self, until: Instant) {
        let mut content = self.lock();
        while !content.ended && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            content = self.0.1.wait_timeout(content, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// A started `vmm`. Killed with everything in its process group when dropped.
#[derive(Debug)]
pub struct Running {
    child: GuardedChild,
    stdout: Collected,
    stderr: Collected,
}

impl Running {
    pub(crate) fn start(mut command: Command, stdin: Vec<u8>, deadline: Duration) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = GuardedChild::start(command, deadline);
        let pipes = child.child();
        let stdout = Collected::from(pipes.stdout.take().expect("stdout is piped"));
        let stderr = Collected::from(pipes.stderr.take().expect("stderr is piped"));
        if let Some(mut pipe) = pipes.stdin.take() {
            // A vmm that does not read it all is not this thread's business.
            thread::spawn(move || drop(pipe.write_all(&stdin)));
        }
        Self { child, stdout, stderr }
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until standard output contains `text`.
    ///
    /// # Panics
    /// When that does not happen before it ends or the deadline passes.
    #[track_caller]
    pub fn wait_for_out(&mut self, text: &str) {
        if self.stdout.wait_for(text, 0, self.child.until()).is_none() {
            let finished = self.kill_and_collect();
            panic!("{text:?} did not come on standard output:\n{finished}");
        }
    }

    /// Waits until standard error contains `text`.
    ///
    /// # Panics
    /// When that does not happen before it ends or the deadline passes.
    #[track_caller]
    pub fn wait_for_err(&mut self, text: &str) {
        if self.stderr.wait_for(text, 0, self.child.until()).is_none() {
            let finished = self.kill_and_collect();
            panic!("{text:?} did not come on standard error:\n{finished}");
        }
    }

    /// Standard output so far.
    #[must_use]
    pub fn out_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stdout.bytes()).into_owned()
    }

    /// Standard error so far.
    #[must_use]
    pub fn err_so_far(&self) -> String {
        String::from_utf8_lossy(&self.stderr.bytes()).into_owned()
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When the deadline passes.
    #[must_use]
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        match self.child.wait() {
            Some(status) => self.collect(status),
            None => panic!("it did not end within its deadline and was killed:\n{}", self.kill_and_collect()),
        }
    }

    fn kill_and_collect(&mut self) -> Finished {
        let status = self.child.kill();
        self.collect(status)
    }

    fn collect(&self, status: ExitStatus) -> Finished {
        self.child.finished(status, || {
            // A process left behind may hold the pipes open; the sandbox will tell.
            let until = Instant::now() + Duration::from_secs(10);
            self.stdout.wait_for_end(until);
            self.stderr.wait_for_end(until);
            (self.stdout.bytes(), self.stderr.bytes())
        })
    }
}
