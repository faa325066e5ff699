//! A guest that a test plays, and the driver that talks with it.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use crossbeam_channel::{Sender, bounded, unbounded};
use wire::{Command, ResultFormat, TestStatus, read_frame, write_frame};

use super::*;
pub(super) use crate::session::test_hello as hello;
use crate::session::{Deadlines, Fate, GuestEnd, RunOutcome};

/// The guest's side, played by a test's closure in a thread.
pub(super) struct FakeGuest {
    pub(super) agent: Option<mpsc::Sender<UnixStream>>,
    stopped: Sender<StopReason>,
    pub(super) interrupt: Sender<()>,
    console: PathBuf,
}

impl FakeGuest {
    pub(super) fn connect(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.agent.take().unwrap().send(theirs).unwrap();
        ours
    }

    /// Connects, says hello and takes the order to run a suite.
    pub(super) fn start_suite(&mut self) -> UnixStream {
        let mut stream = self.connect();
        write_frame(&mut stream, &hello()).unwrap();
        assert!(matches!(read_frame(&mut stream), Ok(Some(ToGuest::RunSuite(_)))));
        send(&mut stream, ToHost::SuiteStarted { suite: "suite".into() });
        stream
    }

    pub(super) fn stop(&self, reason: StopReason) {
        self.stopped.send(reason).unwrap();
    }

    pub(super) fn power_off(&self, stream: &mut UnixStream) {
        while !matches!(read_frame(stream), Ok(Some(ToGuest::Shutdown))) {}
        send(stream, ToHost::Goodbye);
        self.stop(StopReason::PowerOff);
    }

    pub(super) fn print(&self, text: &str) {
        std::fs::write(&self.console, text).unwrap();
    }
}

pub(super) fn send(stream: &mut UnixStream, frame: ToHost) {
    write_frame(stream, &frame).unwrap();
}

pub(super) fn suite(name: &str) -> SuitePlan {
    let command = Command { argv: vec!["true".into()], env: Vec::new(), cwd: "/".into() };
    SuitePlan { name: name.into(), command, format: ResultFormat::ExitCode, test_timeout_ms: 1000, artefacts: None }
}

pub(super) fn deadlines() -> Deadlines {
    Deadlines {
        boot: Duration::from_secs(20),
        test: Some(Duration::from_secs(20)),
        total: None,
        agent: Duration::from_secs(20),
        listing: Duration::from_secs(20),
        shutdown: Duration::from_secs(20),
    }
}

/// Tasks one after the other, and the lists that came.
pub(super) struct InOrder {
    pub(super) tasks: VecDeque<Task>,
    pub(super) lists: Vec<Result<Vec<String>, String>>,
}

impl WorkSource for InOrder {
    fn next_task(&mut self) -> Option<Task> {
        self.tasks.pop_front()
    }

    fn listed(&mut self, tests: Result<Vec<String>, String>) {
        self.lists.push(tests);
    }
}

/// What a guest came to.
pub(super) struct Run {
    pub(super) outcome: RunOutcome,
    pub(super) fate: Fate,
    pub(super) events: Vec<RunEvent>,
    pub(super) was_stopped_by_us: bool,
}

impl Run {
    pub(super) fn results(&self) -> Vec<(&str, TestStatus, &str)> {
        self.events
            .iter()
            .filter_map(|event| match event {
                RunEvent::TestFinished { test, status, message, .. } => {
                    Some((test.as_str(), *status, message.as_str()))
                }
                _ => None,
            })
            .collect()
    }

    pub(super) fn reason(&self) -> &str {
        match &self.outcome {
            RunOutcome::GuestDied { reason } | RunOutcome::TimedOut { reason } | RunOutcome::CannotTest { reason } => {
                reason
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn not_started(&self) -> Vec<&str> {
        self.events
            .iter()
            .filter_map(|event| match event {
                RunEvent::SuiteNotStarted { suite, .. } => Some(suite.as_str()),
                _ => None,
            })
            .collect()
    }

    pub(super) fn ends_with_the_machine(&self) {
        assert!(matches!(self.events.first(), Some(RunEvent::BootStarted)), "{:?}", self.events);
        assert!(matches!(self.events.last(), Some(RunEvent::MachineStopped { .. })), "{:?}", self.events);
    }
}

pub(super) fn run_with(deadlines: Deadlines, suites: &[&str], guest: impl FnOnce(FakeGuest) + Send + 'static) -> Run {
    let mut work = InOrder { tasks: suites.iter().map(|name| Task::Run(suite(name))).collect(), lists: Vec::new() };
    run_work(deadlines, &mut work, guest)
}

pub(super) fn run_work(
    deadlines: Deadlines,
    work: &mut InOrder,
    guest: impl FnOnce(FakeGuest) + Send + 'static,
) -> Run {
    let console = tempfile::NamedTempFile::new().unwrap();
    let (agent_sender, agent) = mpsc::channel();
    let (stopped_sender, stopped) = bounded(1);
    // A machine that runs on: nobody says that it stopped.
    let _runs_on = stopped_sender.clone();
    let (interrupt, interrupts) = unbounded();
    let fake =
        FakeGuest { agent: Some(agent_sender), stopped: stopped_sender, interrupt, console: console.path().to_owned() };
    let player = thread::spawn(move || guest(fake));
    let stop_called = Arc::new(AtomicBool::new(false));
    let called = Arc::clone(&stop_called);
    let handle = GuestHandle {
        agent,
        stopped,
        console_log: Some(console.path().to_owned()),
        autopsy: Box::new(|| "what was seen".to_owned()),
        last_requests: Box::new(|| b"{}".to_vec()),
        stop: Box::new(move || {
            called.store(true, Ordering::SeqCst);
            StopReason::Requested
        }),
    };
    let mut events = Vec::new();
    let plan = RunPlan::starting_now(deadlines);
    let GuestEnd { outcome, fate } = run_tasks(&plan, work, handle, &interrupts, &mut |event| events.push(event));
    player.join().unwrap();
    let run = Run { outcome, fate, events, was_stopped_by_us: stop_called.load(Ordering::SeqCst) };
    run.ends_with_the_machine();
    run
}

pub(super) fn run(guest: impl FnOnce(FakeGuest) + Send + 'static) -> Run {
    run_with(deadlines(), &["suite"], guest)
}

/// A guest that stays until the driver hangs up.
pub(super) fn linger(mut stream: UnixStream) {
    while let Ok(Some(_)) = read_frame::<ToGuest>(&mut stream) {}
}
