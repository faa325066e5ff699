//! Suites through the real engine: `prove`, and programs that behave as suites should not.

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use support::{Engine, command, is_alive, wait_until};
use wire::{ProcessEnd, ResultFormat, Stream, SuitePlan, TestStatus, ToGuest, ToHost};

/// What a suite's run came to.
#[derive(Debug, Default)]
struct Run {
    results: Vec<(String, TestStatus, String)>,
    started: Vec<String>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// `TEST.KIND` and content.
    artefacts: Vec<(String, Vec<u8>)>,
    timed_out: usize,
    end: Option<ProcessEnd>,
}

impl Run {
    fn names(&self, wanted: TestStatus) -> Vec<&str> {
        self.results.iter().filter(|(_, status, _)| *status == wanted).map(|(name, ..)| name.as_str()).collect()
    }
}

fn plan(argv: &[&str], format: ResultFormat, test_timeout_ms: u64) -> SuitePlan {
    SuitePlan { name: "suite".into(), command: command(argv), format, test_timeout_ms, artefacts: None }
}

fn run(plan: SuitePlan) -> Run {
    run_with(plan, |_, _| {})
}

fn run_with(plan: SuitePlan, mut on_frame: impl FnMut(&mut Engine, &ToHost)) -> Run {
    let mut engine = Engine::start();
    engine.send(&ToGuest::RunSuite(plan));
    assert_eq!(engine.next(), ToHost::SuiteStarted { suite: "suite".into() });
    let mut run = Run::default();
    while run.end.is_none() {
        let frame = engine.next();
        on_frame(&mut engine, &frame);
        match frame {
            ToHost::TestStarted { name } => run.started.push(name),
            ToHost::TestFinished { name, status, message, .. } => run.results.push((name, status, message)),
            ToHost::Output { stream: Stream::Stdout, data } => run.stdout.extend(data),
            ToHost::Output { stream: Stream::Stderr, data } => run.stderr.extend(data),
            ToHost::Artefact { test, kind, data } => run.artefacts.push((format!("{test}.{kind}"), data)),
            ToHost::TestTimedOut { .. } => run.timed_out += 1,
            ToHost::SuiteFinished { end } => run.end = Some(end),
            ToHost::Log { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    run
}

fn script(directory: &Path, name: &str, text: &str) {
    let path = directory.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn prove(directory: &Path, test_timeout_ms: u64) -> SuitePlan {
    let arguments = ["prove", "--formatter", "TAP::Formatter::Console", "--nocolor", "-v", "-r"];
    let directory = directory.to_str().unwrap();
    plan(&[&arguments[..], &[directory]].concat(), ResultFormat::ProveTap, test_timeout_ms)
}

#[test]
fn a_whole_prove_run_gives_each_result_and_all_output() {
    let directory = tempfile::tempdir().unwrap();
    script(
        directory.path(),
        "chmod/00.t",
        "echo 1..3; echo ok 1; echo 'not ok 2 - why'; echo '# more' ; echo err >&2; echo ok 3 '# skip no'",
    );
    script(directory.path(), "chmod/01.t", "echo 1..2; echo ok 1; kill -9 $$");
    script(directory.path(), "link/00.t", "echo 1..1; echo ok 1");
    let run = run(prove(directory.path(), 0));
    let expected = [
        ("chmod/00.t:1", TestStatus::Pass, ""),
        ("chmod/00.t:2", TestStatus::Fail, "why\nmore"),
        ("chmod/00.t:3", TestStatus::Skip, "no"),
        ("chmod/01.t:1", TestStatus::Pass, ""),
        ("chmod/01.t:2", TestStatus::Error, "the file ended here: 2 tests planned, 1 ran"),
        ("link/00.t:1", TestStatus::Pass, ""),
    ];
    let got: Vec<_> =
        run.results.iter().map(|(name, status, message)| (name.as_str(), *status, message.as_str())).collect();
    assert_eq!(got, expected);
    assert_eq!(run.end, Some(ProcessEnd::Exited(1)));
    assert_eq!(run.started.first().map(String::as_str), Some("chmod/00.t:1"));
    assert!(String::from_utf8_lossy(&run.stdout).contains("Result: FAIL"));
    assert_eq!(run.stderr, b"err\n");
}

#[test]
fn results_arrive_while_the_file_still_runs() {
    let directory = tempfile::tempdir().unwrap();
    let go_on = directory.path().join("go-on");
    script(
        directory.path(),
        "a/0.t",
        &format!("echo 1..2; echo ok 1; while ! [ -e {} ]; do sleep 0.02; done; echo ok 2", go_on.display()),
    );
    let run = run_with(prove(directory.path(), 0), |_, frame| {
        if matches!(frame, ToHost::TestFinished { name, .. } if name == "a/0.t:1") {
            fs::write(&go_on, "").unwrap();
        }
    });
    assert_eq!(run.names(TestStatus::Pass), ["a/0.t:1", "a/0.t:2"]);
}

#[test]
fn a_test_over_its_time_is_killed_with_what_it_started_and_prove_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let pids = directory.path().join("pids");
    script(
        directory.path(),
        "a/0.t",
        &format!("echo 1..3; echo ok 1; setsid sleep 65 & echo $! $$ > {}; sleep 66; echo ok 2", pids.display()),
    );
    script(directory.path(), "b/0.t", "echo 1..1; echo ok 1");
    let started = Instant::now();
    let run = run(prove(directory.path(), 1000));
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    assert_eq!(run.names(TestStatus::Pass), ["a/0.t:1", "b/0.t:1"]);
    assert_eq!(run.results[1], ("a/0.t:2".into(), TestStatus::Error, "killed: no result within 1 s".into()));
    assert_eq!((run.results.len(), run.timed_out), (3, 1));
    let pids = fs::read_to_string(pids).unwrap();
    wait_until("all die", || !pids.split_whitespace().any(is_alive));
}

#[test]
fn a_harness_that_cannot_go_on_is_killed_with_its_test() {
    let started = Instant::now();
    let script = "echo 'chmod::one    ok'; setsid sleep 67 & sleep 68";
    let run = run(plan(&["sh", "-c", script], ResultFormat::PjdfstestRs, 500));
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(run.names(TestStatus::Pass), ["chmod::one"]);
    assert_eq!(run.names(TestStatus::Error), ["after chmod::one"]);
    assert_eq!((run.end, run.timed_out), (Some(ProcessEnd::Signaled(9)), 1));
}

#[test]
fn a_test_killed_by_the_host_is_an_error_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    script(directory.path(), "a/0.t", "echo 1..2; echo ok 1; sleep 69");
    let run = run_with(prove(directory.path(), 0), |engine, frame| {
        if matches!(frame, ToHost::TestFinished { name, .. } if name == "a/0.t:1") {
            engine.send(&ToGuest::KillTest { reason: "the host says so".into() });
        }
    });
    assert_eq!(run.results[1], ("a/0.t:2".into(), TestStatus::Error, "the host says so".into()));
    assert_eq!((run.results.len(), run.timed_out), (2, 0));
}

/// A harness that prints as xfstests' `check` does: a test's name, then, once it has run, its result.
const CHECK: &str = r#"for test in a/001 a/002 a/003; do
    printf '%s        ' $test
    case $test in
        a/001) echo " 1s"; continue ;;
        a/002) echo seen > $R/$test.full ;;
        a/003) sleep 72 ;;
    esac
    echo "- output mismatch (see $R/$test.out.bad)"; echo bad > $R/$test.out.bad; echo "    +bad"
done
echo "Ran: a/001 a/002 a/003"
exit 1"#;

#[test]
fn a_failing_test_of_check_brings_its_files_and_one_over_its_time_does_not_end_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let results = directory.path().to_str().unwrap();
    fs::create_dir(directory.path().join("a")).unwrap();
    fs::write(directory.path().join("a/001.full"), "of a test that passes").unwrap();
    let mut plan = plan(&["sh", "-c", CHECK], ResultFormat::Xfstests, 1500);
    plan.command.env.push(("R".into(), results.into()));
    plan.artefacts = Some(format!("{results}/{{test}}"));
    let run = run(plan);
    assert_eq!(run.started, ["a/001", "a/002", "a/003"]);
    let mismatch = format!("- output mismatch (see {results}/a/002.out.bad)\n    +bad");
    assert_eq!(
        run.results,
        [
            ("a/001".into(), TestStatus::Pass, String::new()),
            ("a/002".into(), TestStatus::Fail, mismatch),
            ("a/003".into(), TestStatus::Error, "killed: no result within 1.5 s".into()),
        ]
    );
    assert_eq!((run.timed_out, run.end), (1, Some(ProcessEnd::Exited(1))));
    let (stacks, files) = run.artefacts.split_last().unwrap();
    assert_eq!(files, [("a/002.full".to_owned(), b"seen\n".to_vec()), ("a/002.out.bad".to_owned(), b"bad\n".to_vec())]);
    assert_eq!(stacks.0, "a/003.stacks");
    let stacks = String::from_utf8_lossy(&stacks.1);
    assert!(stacks.contains(" sleep S (sleeping): sleep "), "where the killed test was: {stacks}");
}

#[test]
fn a_deadline_runs_for_each_test_not_for_the_suite() {
    let directory = tempfile::tempdir().unwrap();
    script(directory.path(), "a/0.t", "echo 1..6; for n in 1 2 3 4 5 6; do sleep 0.4; echo ok $n; done");
    let run = run(prove(directory.path(), 1500));
    assert_eq!((run.names(TestStatus::Pass).len(), run.timed_out), (6, 0));
}

#[test]
fn a_suite_that_prints_garbage_without_end_is_read_in_bounded_memory() {
    let before = memory_kib();
    let script = "head -c 20000000 /dev/zero; printf '\\nchmod::a  ok\\n\\377\\376\\nSummary: 0 failed, 0 skipped, 1 passed, \
                  0 expected failures, 1 total\\n'";
    let mut engine = Engine::start();
    engine.send(&ToGuest::RunSuite(plan(&["sh", "-c", script], ResultFormat::PjdfstestRs, 0)));
    let (mut bytes, mut passed) = (0, 0);
    loop {
        match engine.next() {
            ToHost::Output { data, .. } => bytes += data.len(),
            ToHost::TestFinished { status: TestStatus::Pass, .. } => passed += 1,
            ToHost::SuiteFinished { end } => {
                assert_eq!(end, ProcessEnd::Exited(0));
                break;
            }
            _ => {}
        }
    }
    assert!(bytes > 20_000_000);
    assert_eq!(passed, 1);
    assert!(memory_kib() < before + 8_000, "{before} KiB before, {} after", memory_kib());
}

/// The most memory this process ever held.
fn memory_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_suite_without_a_format_is_one_test() {
    let pass = run(plan(&["true"], ResultFormat::ExitCode, 0));
    assert_eq!(
        (pass.started, pass.results),
        (vec!["suite".into()], vec![("suite".into(), TestStatus::Pass, String::new())])
    );
    let fail = run(plan(&["sh", "-c", "exit 3"], ResultFormat::ExitCode, 0));
    assert_eq!(fail.results, [("suite".into(), TestStatus::Fail, "exit code 3".into())]);
    let endless = run(plan(&["sleep", "70"], ResultFormat::ExitCode, 300));
    assert_eq!(endless.names(TestStatus::Error), ["suite"]);
    assert_eq!(endless.results.len(), 1);
}

#[test]
fn a_suite_that_is_not_there_says_so() {
    let mut engine = Engine::start();
    engine.send(&ToGuest::RunSuite(plan(&["/no/such/suite"], ResultFormat::ExitCode, 0)));
    assert!(matches!(engine.next(), ToHost::SuiteNotStarted { error } if error.contains("/no/such/suite")));
}

#[test]
fn a_failure_is_told_soon_though_the_suite_falls_silent_behind_it() {
    let started = Instant::now();
    let mut told = None;
    run_with(plan(&["sh", "-c", "echo 'a::b   FAILED'; sleep 3"], ResultFormat::PjdfstestRs, 0), |_, frame| {
        if matches!(frame, ToHost::TestFinished { status: TestStatus::Fail, .. }) {
            told = Some(started.elapsed());
        }
    });
    assert!(told.unwrap() < Duration::from_secs(2), "{told:?}");
}
