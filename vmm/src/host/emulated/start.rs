//! From a configuration to an emulated host whose agent has spoken, and to its end.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use wire::{FrameError, PROTOCOL_VERSION, ToGuest, ToHost};

use crate::session::{AgentLink, LinkEvent};

use super::qemu_arguments::QemuArguments;
use super::qemu_process::QemuProcess;
use super::{EmulatedHostConfig, EmulatedHostError, scratch_disk, tsc};

/// How often the caller is told that we still wait, and the deadline is looked at.
const POLL: Duration = Duration::from_millis(50);
/// A sleep of 10 ms takes 64 s where timers are dead, and some hundred milliseconds where the machine is busy.
const TIMERS_ARE_BROKEN_MS: u64 = 1000;
/// How often the agent is asked whether it lives; that also starts CPUs that missed an interrupt (see the agent's
/// `cpu_wakers`).
const PULSE: Duration = Duration::from_secs(1);
/// It is given up when it said nothing for this long. A machine with everything swapped out may be silent for some seconds.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// How long the agent may take to write back what is cached and say goodbye.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(20);

/// An emulated host whose agent waits for commands. Dropping it kills it.
#[derive(Debug)]
pub struct RunningHost {
    qemu: QemuProcess,
    link: AgentLink,
}

impl RunningHost {
    /// Starts one and waits until its agent has spoken; `waiting` is called about 20 times a second meanwhile, with the
    /// time since the beginning, and says whether to go on.
    ///
    /// QEMU dies with the calling thread.
    ///
    /// # Errors
    /// Nothing is left behind then.
    pub fn start(
        config: &EmulatedHostConfig,
        waiting: &mut dyn FnMut(Duration) -> ControlFlow<()>,
    ) -> Result<Self, EmulatedHostError> {
        let begun = Instant::now();
        let mut host = launch(config)?;
        host.await_hello(begun, config.boot_timeout, waiting)?;
        host.link
            .watch(PULSE, SILENCE_LIMIT)
            .map_err(|e| EmulatedHostError::Prepare(format!("no thread to watch over it can be had: {e}")))?;
        Ok(host)
    }

    /// The link to the agent, which has said hello.
    #[must_use]
    pub fn link(&self) -> &AgentLink {
        &self.link
    }

    /// The error to report when the link was closed before a command had ended.
    #[must_use]
    pub fn died(mut self) -> EmulatedHostError {
        if self.link.fell_silent() {
            return EmulatedHostError::FellSilent { limit: SILENCE_LIMIT, last_words: self.qemu.last_words() };
        }
        self.death("while a command ran in it")
    }

    /// Has it write back what it still holds, then ends it.
    pub fn stop(self) {
        self.link.send(ToGuest::Shutdown);
        let deadline = Instant::now() + GOODBYE_DEADLINE;
        // After the goodbye there is nothing in it that anyone could want: its disk has no name. One that does not
        // answer any more is killed all the same.
        while let Ok(LinkEvent::Frame(frame)) = self.link.events().recv_deadline(deadline) {
            if frame == ToHost::Goodbye {
                break;
            }
        }
    }

    fn await_hello(
        &mut self,
        begun: Instant,
        deadline: Duration,
        waiting: &mut dyn FnMut(Duration) -> ControlFlow<()>,
    ) -> Result<(), EmulatedHostError> {
        loop {
            if waiting(begun.elapsed()).is_break() {
                return Err(EmulatedHostError::Interrupted);
            }
            match self.link.events().recv_timeout(POLL) {
                Ok(LinkEvent::Frame(ToHost::Hello { protocol, sleep_10ms_took_ms, .. })) => {
                    return check_hello(protocol, sleep_10ms_took_ms);
                }
                Ok(LinkEvent::Frame(_)) => {
                    return Err(EmulatedHostError::Protocol("it did not begin with Hello".to_owned()));
                }
                Ok(LinkEvent::Closed(Some(error))) if !matches!(error, FrameError::Io(_)) => {
                    return Err(EmulatedHostError::Protocol(error.to_string()));
                }
                Ok(LinkEvent::Closed(_)) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(self.death("before it was up"));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if begun.elapsed() > deadline {
                return Err(EmulatedHostError::NeverCameUp { deadline, last_words: self.qemu.last_words() });
            }
        }
    }

    fn death(&mut self, when: &'static str) -> EmulatedHostError {
        // QEMU closes its end of the stream shortly before it ends.
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut status = self.qemu.ended();
        while status.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            status = self.qemu.ended();
        }
        let status = status.map_or_else(|| "QEMU still runs".to_owned(), |status| status.to_string());
        EmulatedHostError::Died { when, status, last_words: self.qemu.last_words() }
    }
}

fn check_hello(protocol: u16, slept_ms: u64) -> Result<(), EmulatedHostError> {
    if protocol != PROTOCOL_VERSION {
        return Err(EmulatedHostError::Protocol(format!("it has version {protocol}, we have {PROTOCOL_VERSION}")));
    }
    if slept_ms > TIMERS_ARE_BROKEN_MS {
        return Err(EmulatedHostError::BrokenTimers { slept_ms });
    }
    Ok(())
}

fn launch(config: &EmulatedHostConfig) -> Result<RunningHost, EmulatedHostError> {
    let prepare = |what: &str, error: io::Error| EmulatedHostError::Prepare(format!("{what}: {error}"));
    let directory = &config.directory;
    let size = config.scratch_gib.saturating_mul(1 << 30);
    let scratch = scratch_disk::create(directory, size, &config.mkfs).map_err(EmulatedHostError::Prepare)?;
    let (console, console_writer) = console_log(directory)
        .map_err(|e| prepare(&format!("failed to make a console log in {}", directory.display()), e))?;
    let (link, far_end) = UnixStream::pair().map_err(|e| prepare("failed to make a socket pair", e))?;
    let inherited = vec![scratch.as_raw_fd(), far_end.as_raw_fd(), console_writer.as_raw_fd()];
    let args = QemuArguments {
        kernel: &config.kernel,
        initramfs: &config.initramfs,
        cpus: config.cpus,
        memory_mib: config.memory_mib,
        root: Path::new("/"),
        scratch: scratch.as_raw_fd(),
        agent: far_end.as_raw_fd(),
        console: console_writer.as_raw_fd(),
        tsc_khz: tsc::khz(),
        timer_hz: config.timer_hz,
        append: &config.append,
    };
    let (program, first) = config
        .qemu
        .split_first()
        .ok_or_else(|| EmulatedHostError::Prepare("it was not said which QEMU to start".to_owned()))?;
    let words = first.iter().cloned().chain(args.build()).collect();
    tracing::debug!("starting {} {words:?}", program.display());
    let qemu = QemuProcess::start(Path::new(program), words, inherited, console, directory)
        .map_err(|source| EmulatedHostError::Start { program: program.into(), source })?;
    let link = AgentLink::over(link).map_err(|e| prepare("failed to start the threads of its link", e))?;
    Ok(RunningHost { qemu, link })
}

/// An unnamed file, open for reading, and again for writing only: QEMU takes no other descriptor for a console.
fn console_log(directory: &Path) -> io::Result<(File, File)> {
    let reader = tempfile::tempfile_in(directory)?;
    let writer = OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", reader.as_raw_fd()))?;
    Ok((reader, writer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_of_another_version_and_dead_timers_are_refused() {
        assert!(check_hello(PROTOCOL_VERSION, 12).is_ok());
        assert!(matches!(check_hello(PROTOCOL_VERSION + 1, 12), Err(EmulatedHostError::Protocol(_))));
        assert!(matches!(
            check_hello(PROTOCOL_VERSION, 64_000),
            Err(EmulatedHostError::BrokenTimers { slept_ms: 64_000 })
        ));
    }

    fn config(directory: &Path, qemu: &str) -> EmulatedHostConfig {
        EmulatedHostConfig {
            qemu: vec![qemu.into()],
            mkfs: "/bin/true".into(),
            kernel: "/no/kernel".into(),
            initramfs: "/no/initramfs".into(),
            timer_hz: None,
            cpus: 1,
            memory_mib: 256,
            scratch_gib: 1,
            directory: directory.to_owned(),
            boot_timeout: Duration::from_millis(300),
            append: String::new(),
        }
    }

    fn script(directory: &Path, text: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = directory.join("qemu");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        path.to_string_lossy().into_owned()
    }

    #[test]
    fn a_qemu_that_ends_at_once_is_reported_with_its_last_words() {
        let dir = tempfile::tempdir().expect("tempdir");
        let qemu = script(dir.path(), "echo 'qemu: no such machine' >&2; exit 1");
        let error = RunningHost::start(&config(dir.path(), &qemu), &mut |_| ControlFlow::Continue(()))
            .expect_err("ended")
            .to_string();
        assert!(error.contains("ended before it was up (exit status: 1)"), "{error}");
        assert!(error.contains("qemu: no such machine"), "{error}");
    }

    #[test]
    fn a_host_that_never_comes_up_is_given_up_at_its_deadline() {
        let dir = tempfile::tempdir().expect("tempdir");
        let qemu = script(dir.path(), "exec sleep 60");
        let begun = Instant::now();
        let mut calls = 0;
        let mut waiting = |_| {
            calls += 1;
            ControlFlow::Continue(())
        };
        let error = RunningHost::start(&config(dir.path(), &qemu), &mut waiting).expect_err("never up");
        assert!(matches!(error, EmulatedHostError::NeverCameUp { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(20) && calls > 1);
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1, "only the script is left");
    }

    #[test]
    fn whoever_waits_may_give_up() {
        let dir = tempfile::tempdir().expect("tempdir");
        let qemu = script(dir.path(), "exec sleep 60");
        let config = EmulatedHostConfig { boot_timeout: Duration::from_secs(60), ..config(dir.path(), &qemu) };
        let begun = Instant::now();
        let error = RunningHost::start(&config, &mut |_| ControlFlow::Break(())).expect_err("given up");
        assert!(matches!(error, EmulatedHostError::Interrupted) && begun.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_qemu_that_cannot_be_executed_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let error = RunningHost::start(&config(dir.path(), "/no/such/qemu"), &mut |_| ControlFlow::Continue(()))
            .expect_err("not there");
        assert!(matches!(&error, EmulatedHostError::Start { .. }) && error.to_string().contains("/no/such/qemu"));
    }
}
