use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use crossbeam_channel::{Sender, bounded, unbounded};
use wire::{
    Command, MountReport, PROTOCOL_VERSION, ProcessEnd, ResultFormat, Stream, TestStatus, encode_frame, read_frame,
    write_frame,
};

use super::*;
use crate::session::{Deadlines, SuiteEnd};

/// The guest's side, played by a test's closure in a thread.
struct FakeGuest {
    agent: Option<mpsc::Sender<UnixStream>>,
    stopped: Sender<StopReason>,
    interrupt: Sender<()>,
    console: PathBuf,
}

impl FakeGuest {
    fn connect(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.agent.take().unwrap().send(theirs).unwrap();
        ours
    }

    /// Connects, says hello and takes the order to run a suite.
    fn start_suite(&mut self) -> UnixStream {
        let mut stream = self.connect();
        write_frame(&mut stream, &hello()).unwrap();
        assert!(matches!(read_frame(&mut stream), Ok(Some(ToGuest::RunSuite(_)))));
        send(&mut stream, ToHost::SuiteStarted { suite: "suite".into() });
        stream
    }

    fn stop(&self, reason: StopReason) {
        self.stopped.send(reason).unwrap();
    }

    fn power_off(&self, stream: &mut UnixStream) {
        while !matches!(read_frame(stream), Ok(Some(ToGuest::Shutdown))) {}
        send(stream, ToHost::Goodbye);
        self.stop(StopReason::PowerOff);
    }

    fn print(&self, text: &str) {
        std::fs::write(&self.console, text).unwrap();
    }
}

fn send(stream: &mut UnixStream, frame: ToHost) {
    write_frame(stream, &frame).unwrap();
}

fn hello() -> ToHost {
    ToHost::Hello {
        protocol: PROTOCOL_VERSION,
        kernel_release: "6.12.0".into(),
        uptime_ms: 900,
        sleep_10ms_took_ms: 10,
        mounts: vec![MountReport { tag: "myfs1".into(), mount_point: "/mnt/virtiofs1".into(), error: None }],
    }
}

fn suite(name: &str) -> SuitePlan {
    let command = Command { argv: vec!["true".into()], env: Vec::new(), cwd: "/".into() };
    SuitePlan { name: name.into(), command, format: ResultFormat::ExitCode, test_timeout_ms: 1000, artefacts: None }
}

fn deadlines() -> Deadlines {
    Deadlines {
        boot: Duration::from_secs(20),
        test: Some(Duration::from_secs(20)),
        total: None,
        agent: Duration::from_secs(20),
        shutdown: Duration::from_secs(20),
    }
}

struct Run {
    outcome: RunOutcome,
    events: Vec<RunEvent>,
    was_stopped_by_us: bool,
}

impl Run {
    fn results(&self) -> Vec<(&str, TestStatus, &str)> {
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

    fn reason(&self) -> &str {
        match &self.outcome {
            RunOutcome::GuestDied { reason } | RunOutcome::TimedOut { reason } | RunOutcome::CannotTest { reason } => {
                reason
            }
            other => panic!("{other:?}"),
        }
    }

    fn not_started(&self) -> Vec<&str> {
        self.events
            .iter()
            .filter_map(|event| match event {
                RunEvent::SuiteNotStarted { suite, .. } => Some(suite.as_str()),
                _ => None,
            })
            .collect()
    }

    fn ends_with_the_machine(&self) {
        assert!(matches!(self.events.first(), Some(RunEvent::BootStarted)), "{:?}", self.events);
        assert!(matches!(self.events.last(), Some(RunEvent::MachineStopped { .. })), "{:?}", self.events);
    }
}

fn run_with(deadlines: Deadlines, suites: &[&str], guest: impl FnOnce(FakeGuest) + Send + 'static) -> Run {
    let plan = RunPlan { suites: suites.iter().map(|name| suite(name)).collect(), deadlines };
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
        stop: Box::new(move || {
            called.store(true, Ordering::SeqCst);
            StopReason::Requested
        }),
    };
    let mut events = Vec::new();
    let outcome = run_suites(&plan, handle, &interrupts, &mut |event| events.push(event));
    player.join().unwrap();
    let run = Run { outcome, events, was_stopped_by_us: stop_called.load(Ordering::SeqCst) };
    run.ends_with_the_machine();
    run
}

fn run(guest: impl FnOnce(FakeGuest) + Send + 'static) -> Run {
    run_with(deadlines(), &["suite"], guest)
}

/// A guest that stays until the driver hangs up.
fn linger(mut stream: UnixStream) {
    while let Ok(Some(_)) = read_frame::<ToGuest>(&mut stream) {}
}

#[test]
fn a_run_goes_from_boot_to_power_off_in_order() {
    let run = run_with(deadlines(), &["one", "two"], |mut guest| {
        let mut stream = guest.connect();
        send(&mut stream, hello());
        for name in ["one", "two"] {
            let Ok(Some(ToGuest::RunSuite(plan))) = read_frame(&mut stream) else { panic!("no suite") };
            assert_eq!(plan.name, name);
            send(&mut stream, ToHost::SuiteStarted { suite: plan.name });
            send(&mut stream, ToHost::TestStarted { name: "t".into() });
            send(&mut stream, ToHost::Output { stream: Stream::Stdout, data: b"a\xc3".to_vec() });
            send(&mut stream, ToHost::Output { stream: Stream::Stdout, data: b"\xa4\n".to_vec() });
            let (status, message) = (TestStatus::Pass, String::new());
            send(&mut stream, ToHost::TestFinished { name: "t".into(), status, duration_us: 5, message });
            send(&mut stream, ToHost::SuiteFinished { end: ProcessEnd::Exited(0) });
        }
        guest.power_off(&mut stream);
        linger(stream);
    });
    assert_eq!(run.outcome, RunOutcome::Completed);
    assert!(!run.was_stopped_by_us);
    let two: Vec<_> =
        run.events.iter().skip_while(|e| !matches!(e, RunEvent::SuiteStarted { suite } if suite == "two")).collect();
    let (suite, test) = ("two".to_owned(), Some("t".to_owned()));
    let output = |text: &str| RunEvent::Output {
        suite: suite.clone(),
        test: test.clone(),
        stream: Stream::Stdout.into(),
        text: text.into(),
    };
    assert_eq!(two[2..4], [&output("a"), &output("ä\n")]);
    assert!(matches!(two[5], RunEvent::SuiteFinished { end: Some(SuiteEnd::Exited(0)), .. }));
    assert_eq!(two.len(), 7);
}

#[test]
fn a_guest_that_hangs_before_its_agent_speaks_is_stopped_at_the_boot_deadline() {
    let limit = Deadlines { boot: Duration::from_millis(50), ..deadlines() };
    let run = run_with(limit, &["suite"], |mut guest| linger(guest.connect()));
    assert!(
        matches!(run.outcome, RunOutcome::TimedOut { .. }) && run.reason().contains("--boot-timeout"),
        "{:?}",
        run.outcome
    );
    assert!(run.was_stopped_by_us);
    assert_eq!(run.not_started(), ["suite"]);
}

#[test]
fn a_run_deadline_that_passes_while_booting_is_told_as_that() {
    let limit = Deadlines { total: Some(Duration::from_millis(50)), ..deadlines() };
    let run = run_with(limit, &["suite"], |mut guest| linger(guest.connect()));
    assert!(
        matches!(run.outcome, RunOutcome::TimedOut { .. }) && run.reason().contains("(--timeout)"),
        "{:?}",
        run.outcome
    );
}

#[test]
fn a_kernel_that_panics_while_booting_is_a_dead_guest_with_its_panic() {
    let run = run(|guest| {
        guest.print("[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs\n");
        guest.stop(StopReason::Reset);
    });
    assert_eq!(
        run.outcome,
        RunOutcome::GuestDied { reason: "Kernel panic - not syncing: VFS: Unable to mount root fs".into() }
    );
}

#[test]
fn an_agent_that_gives_up_before_it_speaks_is_quoted() {
    let run = run(|guest| {
        guest.print("[    1.0] vmm-agent: fatal: no root\n");
        guest.stop(StopReason::PowerOff);
    });
    assert!(
        matches!(run.outcome, RunOutcome::CannotTest { .. }) && run.reason().contains("no root"),
        "{:?}",
        run.outcome
    );
}

#[test]
fn an_agent_of_another_version_is_refused() {
    let run = run(|mut guest| {
        let mut stream = guest.connect();
        let ToHost::Hello { kernel_release, uptime_ms, sleep_10ms_took_ms, mounts, .. } = hello() else {
            unreachable!()
        };
        let protocol = PROTOCOL_VERSION + 1;
        send(&mut stream, ToHost::Hello { protocol, kernel_release, uptime_ms, sleep_10ms_took_ms, mounts });
        linger(stream);
    });
    assert!(
        matches!(run.outcome, RunOutcome::CannotTest { .. }) && run.reason().contains("protocol"),
        "{:?}",
        run.outcome
    );
    assert!(run.was_stopped_by_us);
}

#[test]
fn a_host_with_broken_timers_is_not_tested_on() {
    let run = run(|mut guest| {
        let mut stream = guest.connect();
        let ToHost::Hello { protocol, kernel_release, uptime_ms, mounts, .. } = hello() else { unreachable!() };
        send(&mut stream, ToHost::Hello { protocol, kernel_release, uptime_ms, sleep_10ms_took_ms: 1001, mounts });
        linger(stream);
    });
    assert!(
        matches!(run.outcome, RunOutcome::CannotTest { .. }) && run.reason().contains("1001 ms"),
        "{:?}",
        run.outcome
    );
}

#[test]
fn a_share_that_could_not_be_mounted_ends_the_run_before_any_suite() {
    let run = run(|mut guest| {
        let mut stream = guest.connect();
        let ToHost::Hello { protocol, kernel_release, uptime_ms, sleep_10ms_took_ms, mut mounts } = hello() else {
            unreachable!()
        };
        mounts[0].error = Some("no such device".into());
        send(&mut stream, ToHost::Hello { protocol, kernel_release, uptime_ms, sleep_10ms_took_ms, mounts });
        linger(stream);
    });
    assert!(
        matches!(run.outcome, RunOutcome::CannotTest { .. }) && run.reason().contains("myfs1"),
        "{:?}",
        run.outcome
    );
    assert!(run.events.iter().any(|e| matches!(e, RunEvent::GuestReady { .. })));
    assert_eq!(run.not_started(), ["suite"]);
}

#[test]
fn bytes_that_are_no_greeting_are_refused() {
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\x01\x00\x00\x00\xee", &encode_frame(&ToHost::Goodbye).unwrap()] {
        let bytes = bytes.to_vec();
        let run = run(move |mut guest| {
            let mut stream = guest.connect();
            stream.write_all(&bytes).unwrap();
            linger(stream);
        });
        assert!(matches!(run.outcome, RunOutcome::CannotTest { .. }), "{:?}", run.outcome);
    }
}

#[test]
fn a_panic_in_the_middle_of_a_test_leaves_the_results_before_it_and_an_error() {
    let run = run_with(deadlines(), &["suite", "later"], |mut guest| {
        let mut stream = guest.start_suite();
        let (status, message) = (TestStatus::Pass, String::new());
        send(&mut stream, ToHost::TestFinished { name: "a".into(), status, duration_us: 5, message });
        send(&mut stream, ToHost::TestStarted { name: "b".into() });
        guest.print(
            "[    9.0] BUG: kernel NULL pointer dereference\n[    9.0] Kernel panic - not syncing: Fatal exception\n",
        );
        guest.stop(StopReason::Reset);
        linger(stream);
    });
    assert_eq!(
        run.outcome,
        RunOutcome::GuestDied {
            reason: "Kernel panic - not syncing: Fatal exception; BUG: kernel NULL pointer dereference".into()
        }
    );
    let stopped = "the machine stopped: guest reset the machine";
    assert_eq!(run.results(), [("a", TestStatus::Pass, ""), ("b", TestStatus::Error, stopped)]);
    assert!(run.events.iter().any(|e| matches!(e, RunEvent::SuiteFinished { end: None, .. })));
    assert_eq!(run.not_started(), ["later"]);
}

#[test]
fn an_agent_that_dies_is_a_dead_guest_though_the_machine_runs_on() {
    let run = run(|mut guest| drop(guest.start_suite()));
    assert!(matches!(run.outcome, RunOutcome::GuestDied { .. }) && run.reason().contains("closed its stream"));
    assert!(run.was_stopped_by_us);
}

#[test]
fn a_frame_cut_in_the_middle_is_a_dead_guest() {
    let run = run(|mut guest| {
        let mut stream = guest.start_suite();
        let bytes = encode_frame(&ToHost::TestStarted { name: "never said".into() }).unwrap();
        stream.write_all(&bytes[..bytes.len() - 1]).unwrap();
    });
    assert!(matches!(run.outcome, RunOutcome::GuestDied { .. }) && run.reason().contains("middle of a frame"));
}

#[test]
fn an_agent_that_speaks_out_of_turn_is_not_trusted_any_further() {
    let run = run(|mut guest| {
        let mut stream = guest.start_suite();
        send(&mut stream, ToHost::ExecFinished { end: ProcessEnd::Exited(0) });
        linger(stream);
    });
    assert!(matches!(run.outcome, RunOutcome::GuestDied { .. }) && run.reason().contains("out of turn"));
}

#[test]
fn trouble_of_this_side_says_nothing_about_the_guest() {
    let run = run(|mut guest| {
        let stream = guest.start_suite();
        guest.stop(StopReason::KvmFailed { vcpu: 0, detail: "internal error".into() });
        linger(stream);
    });
    assert!(matches!(run.outcome, RunOutcome::CannotTest { .. }), "{:?}", run.outcome);
}

#[test]
fn a_test_that_the_agent_killed_at_its_deadline_makes_the_run_timed_out() {
    let run = run(|mut guest| {
        let mut stream = guest.start_suite();
        send(&mut stream, ToHost::TestStarted { name: "endless".into() });
        send(&mut stream, ToHost::TestTimedOut { limit_ms: 1000 });
        let (status, message) = (TestStatus::Error, "killed".into());
        send(&mut stream, ToHost::TestFinished { name: "endless".into(), status, duration_us: 1, message });
        send(&mut stream, ToHost::SuiteFinished { end: ProcessEnd::Exited(1) });
        guest.power_off(&mut stream);
        linger(stream);
    });
    assert_eq!(
        run.outcome,
        RunOutcome::TimedOut {
            reason: "test endless of suite suite was killed: no result within 1s (--test-timeout)".into()
        }
    );
}

#[test]
fn an_endless_test_with_endless_output_ends_at_the_runs_deadline() {
    let limit = Deadlines { total: Some(Duration::from_millis(300)), ..deadlines() };
    let run = run_with(limit, &["suite"], |mut guest| {
        let mut stream = guest.start_suite();
        send(&mut stream, ToHost::TestStarted { name: "endless".into() });
        let frame = ToHost::Output { stream: Stream::Stdout, data: vec![b'x'; 1000] };
        while write_frame(&mut stream, &frame).is_ok() {}
    });
    assert!(
        matches!(run.outcome, RunOutcome::TimedOut { .. }) && run.reason().contains("--timeout"),
        "{:?}",
        run.outcome
    );
    assert!(matches!(run.results()[..], [("endless", TestStatus::Error, _)]));
    assert!(run.was_stopped_by_us);
}

#[test]
fn a_guest_that_falls_silent_hangs_and_one_that_answers_does_not() {
    let limit = Deadlines { agent: Duration::from_millis(600), ..deadlines() };
    let run = run_with(limit, &["suite"], |mut guest| {
        let mut stream = guest.start_suite();
        send(&mut stream, ToHost::TestStarted { name: "last".into() });
        // Twice as long as it may be silent.
        for _ in 0..24 {
            assert_eq!(read_frame(&mut stream).unwrap(), Some(ToGuest::Ping));
            send(&mut stream, ToHost::Pong);
        }
        while !matches!(read_frame::<ToGuest>(&mut stream), Ok(None) | Err(_)) {}
    });
    assert!(matches!(run.outcome, RunOutcome::TimedOut { .. }), "{:?}", run.outcome);
    assert_eq!(run.reason(), "the guest hangs: nothing was heard from its agent for 600ms (--hang-timeout)");
    assert!(matches!(run.results()[..], [("last", TestStatus::Error, _)]), "{:?}", run.results());
    assert!(run.was_stopped_by_us);
}

#[test]
fn this_side_waits_longer_for_a_silent_test_than_the_agent_does() {
    let state = Deadlines { test: Some(Duration::from_millis(10)), ..deadlines() };
    assert_eq!(state.silence(), Some(Duration::from_millis(15_015)));
    assert_eq!(Deadlines { test: None, ..state }.silence(), None);
}

#[test]
fn the_first_ctrl_c_lets_the_guest_power_off_and_keeps_the_results() {
    let run = run(|mut guest| {
        let mut stream = guest.start_suite();
        let (status, message) = (TestStatus::Pass, String::new());
        send(&mut stream, ToHost::TestFinished { name: "a".into(), status, duration_us: 5, message });
        // Told apart from an interrupt that comes before the result was read.
        thread::sleep(Duration::from_millis(100));
        guest.interrupt.send(()).unwrap();
        guest.power_off(&mut stream);
        linger(stream);
    });
    assert_eq!(run.outcome, RunOutcome::Interrupted);
    assert_eq!(run.results(), [("a", TestStatus::Pass, "")]);
    assert!(!run.was_stopped_by_us);
}

#[test]
fn the_second_ctrl_c_stops_a_guest_that_does_not_answer() {
    let started = Instant::now();
    let run = run(|mut guest| {
        let mut stream = guest.start_suite();
        guest.interrupt.send(()).unwrap();
        while !matches!(read_frame(&mut stream), Ok(Some(ToGuest::Shutdown))) {}
        guest.interrupt.send(()).unwrap();
        linger(stream);
    });
    assert_eq!(run.outcome, RunOutcome::Interrupted);
    assert!(run.was_stopped_by_us && started.elapsed() < Duration::from_secs(10));
}

#[test]
fn ctrl_c_while_booting_is_no_verdict_on_the_guest() {
    let run = run_with(Deadlines { shutdown: Duration::from_millis(10), ..deadlines() }, &["suite"], |guest| {
        guest.interrupt.send(()).unwrap()
    });
    assert_eq!(run.outcome, RunOutcome::Interrupted);
}

#[test]
fn a_guest_that_does_not_shut_down_is_stopped_and_said_so() {
    let limit = Deadlines { shutdown: Duration::from_millis(50), ..deadlines() };
    let run = run_with(limit, &["suite"], |mut guest| {
        let mut stream = guest.start_suite();
        send(&mut stream, ToHost::SuiteFinished { end: ProcessEnd::Exited(0) });
        linger(stream);
    });
    assert!(matches!(run.outcome, RunOutcome::TimedOut { .. }) && run.reason().contains("shut down"));
    assert!(run.was_stopped_by_us);
}

#[test]
fn an_oops_that_the_kernel_survived_still_counts() {
    let run = run(|mut guest| {
        let mut stream = guest.start_suite();
        send(&mut stream, ToHost::SuiteFinished { end: ProcessEnd::Exited(0) });
        guest.print("[    9.0] BUG: KASAN: slab-use-after-free in fuse_x\n");
        guest.power_off(&mut stream);
        linger(stream);
    });
    assert_eq!(run.outcome, RunOutcome::GuestDied { reason: "BUG: KASAN: slab-use-after-free in fuse_x".into() });
}

#[test]
fn a_suite_that_cannot_be_started_does_not_keep_the_next_from_running() {
    let run = run_with(deadlines(), &["missing", "suite"], |mut guest| {
        let mut stream = guest.connect();
        send(&mut stream, hello());
        let _: Option<ToGuest> = read_frame(&mut stream).unwrap();
        send(&mut stream, ToHost::SuiteNotStarted { error: "failed to start prove".into() });
        let _: Option<ToGuest> = read_frame(&mut stream).unwrap();
        send(&mut stream, ToHost::SuiteStarted { suite: "suite".into() });
        send(&mut stream, ToHost::SuiteFinished { end: ProcessEnd::Exited(0) });
        guest.power_off(&mut stream);
        linger(stream);
    });
    assert_eq!(run.not_started(), ["missing"]);
    assert!(run.events.iter().any(|e| matches!(e, RunEvent::SuiteFinished { suite, .. } if suite == "suite")));
    assert!(matches!(run.outcome, RunOutcome::CannotTest { .. }) && run.reason().contains("failed to start prove"));
}

#[test]
fn frames_sent_just_before_the_machine_stopped_are_not_lost() {
    let run = run(|mut guest| {
        let mut stream = guest.start_suite();
        guest.stop(StopReason::TripleFault { vcpu: 0 });
        for n in 0..500 {
            let (status, message) = (TestStatus::Pass, String::new());
            send(&mut stream, ToHost::TestFinished { name: n.to_string(), status, duration_us: 5, message });
        }
        linger(stream);
    });
    assert!(matches!(run.outcome, RunOutcome::GuestDied { .. }));
    assert_eq!(run.results().len(), 500);
}
