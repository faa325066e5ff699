use std::io::Write;
use std::thread;

use wire::{PROTOCOL_VERSION, ProcessEnd, Stream, TestStatus, encode_frame, read_frame, write_frame};

use super::fake_guest::*;
use super::*;
use crate::session::{Deadlines, Fate, RunOutcome, SuiteEnd};

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
    assert_eq!(run.fate, Fate::NeverReady);
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
    assert_eq!(run.fate, Fate::Over);
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
    assert_eq!(run.fate, Fate::Lost, "another guest can do the rest");
    let autopsy = run.events.iter().find_map(|event| match event {
        RunEvent::Artefact { test, kind, data, .. } if kind == "autopsy" => Some((test.as_str(), data)),
        _ => None,
    });
    let (test, data) = autopsy.unwrap();
    assert_eq!(test, "b");
    assert!(String::from_utf8_lossy(data).contains("what was seen"));
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

#[test]
fn a_suite_lists_its_tests_before_some_of_them_run() {
    let list = Command { argv: vec!["list".into()], env: Vec::new(), cwd: "/".into() };
    let tasks = [Task::List(list.clone()), Task::Run(suite("suite"))];
    let mut work = InOrder { tasks: tasks.into(), lists: Vec::new() };
    let run = run_work(deadlines(), &mut work, move |mut guest| {
        let mut stream = guest.connect();
        send(&mut stream, hello());
        let asked = read_frame::<ToGuest>(&mut stream).unwrap();
        assert!(matches!(asked, Some(ToGuest::Exec { command, .. }) if command == list));
        send(&mut stream, ToHost::Output { stream: Stream::Stdout, data: b"a\nb".to_vec() });
        send(&mut stream, ToHost::Output { stream: Stream::Stdout, data: b"c\n".to_vec() });
        send(&mut stream, ToHost::ExecFinished { end: ProcessEnd::Exited(0) });
        assert!(matches!(read_frame(&mut stream), Ok(Some(ToGuest::RunSuite(_)))));
        send(&mut stream, ToHost::SuiteStarted { suite: "suite".into() });
        send(&mut stream, ToHost::SuiteFinished { end: ProcessEnd::Exited(0) });
        guest.power_off(&mut stream);
        linger(stream);
    });
    assert_eq!((run.outcome, run.fate), (RunOutcome::Completed, Fate::Done));
    assert_eq!(work.lists, [Ok(vec!["a".to_owned(), "bc".to_owned()])]);
}
