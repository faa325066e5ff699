use std::fs;
use std::sync::Mutex;

use wire::TestStatus;

use super::*;
use crate::report::Verbosity;
use crate::report::test_events::{hostile_run, result};
use crate::session::SuiteEnd;
use crate::verdict::{BaselineFile, Judgement, Situation};

pub(super) fn config(parent: &Path) -> ReportConfig {
    ReportConfig {
        results_parent: parent.to_path_buf(),
        suites: vec!["s".into()],
        host: "kvm".into(),
        baseline: Baseline::default(),
        format: OutputFormat::Text,
        terminal: TerminalConfig { bar: false, colour: false, verbosity: Verbosity::Quiet },
        manifest: ManifestInputs {
            command: vec!["vmm".into(), "run".into(), "s".into()],
            directory: "/".into(),
            vmm_binary: concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml").into(),
            ..ManifestInputs::default()
        },
    }
}

fn create(parent: &Path) -> Result<Reporters, ReportError> {
    let config = config(parent);
    let terminal = Terminal::writing_to(config.terminal, Box::new(io::sink()));
    Reporters::create_with(config, terminal)
}

pub(super) fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

pub(super) fn events(dir: &Path) -> Vec<TimedEvent> {
    let text = fs::read_to_string(dir.join("events.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn good_run() -> Vec<RunEvent> {
    vec![
        RunEvent::SuiteStarted { suite: "s".into() },
        result("a", TestStatus::Pass, ""),
        RunEvent::SuiteFinished { suite: "s".into(), end: Some(SuiteEnd::Exited(0)), duration_ms: 3 },
    ]
}

type Told = Arc<Mutex<Vec<String>>>;

/// Fails from its `fail_at`th call on, and remembers what it was told before.
struct Fragile {
    calls: usize,
    fail_at: usize,
    told: Told,
}

impl Reporter for Fragile {
    fn name(&self) -> &'static str {
        "fragile"
    }
    fn on_event(&mut self, event: &TimedEvent, _: Option<Judgement>, _: &Tally) -> io::Result<()> {
        self.calls += 1;
        if self.calls >= self.fail_at {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.told.lock().unwrap().push(format!("{:?}", event.event));
        Ok(())
    }
    fn finish(&mut self, run: &FinishedRun<'_>) -> io::Result<()> {
        self.told.lock().unwrap().push(format!("finish {:?} {:?}", run.exit_code, run.failed_reporters));
        if self.fail_at == usize::MAX { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }
}

/// A run with a reporter that fails at its `fail_at`th event, or only at the end, and one after it that does not.
fn run_with_failure(fail_at: usize, events: Vec<RunEvent>) -> (ExitCode, Vec<String>, Vec<String>) {
    let parent = tempfile::tempdir().unwrap();
    let config = config(parent.path());
    let dir = ResultsDir::create(parent.path(), "s", Timestamp::now()).unwrap();
    let (bad, good) = (Told::default(), Told::default());
    let reporters: Vec<Box<dyn Reporter>> = vec![
        Box::new(Fragile { calls: 0, fail_at, told: Arc::clone(&bad) }),
        Box::new(Fragile { calls: 0, fail_at: usize::MAX, told: Arc::clone(&good) }),
    ];
    let mut all = Reporters::assemble(dir, Timestamp::now(), &config, reporters, Box::new(|_| Ok(())));
    let (run, suites, host) = (all.run_name().to_owned(), config.suites, config.host);
    all.deliver(0, RunEvent::RunStarted { run, suites, host });
    all.greet();
    events.into_iter().for_each(|event| all.on_event(event));
    let code = all.finish(&RunOutcome::Completed);
    (code, bad.lock().unwrap().clone(), good.lock().unwrap().clone())
}

#[test]
fn a_reporter_that_fails_is_named_once_and_the_run_goes_on() {
    let (code, bad, good) = run_with_failure(3, good_run());
    assert_eq!(bad.len(), 2, "not called again: {bad:?}");
    assert_eq!(good.iter().filter(|line| line.contains("fragile failed")).count(), 2, "a note and the end: {good:?}");
    assert!(good.iter().any(|line| line.contains("SuiteFinished")));
    assert_eq!(code, ExitCode::CannotTest);
}

#[test]
fn a_reporter_that_fails_at_the_end_counts_too() {
    let (code, _, good) = run_with_failure(1000, good_run());
    assert_eq!(code, ExitCode::CannotTest);
    assert!(good.last().unwrap().starts_with("finish CannotTest [\"fragile failed"), "{good:?}");
}

#[test]
fn a_regression_stays_one_when_a_reporter_fails() {
    let mut events = good_run();
    events.insert(1, result("b", TestStatus::Fail, ""));
    assert_eq!(run_with_failure(2, events).0, ExitCode::Regression);
}

#[test]
fn a_run_leaves_its_folder_with_everything_in_it() {
    let parent = tempfile::tempdir().unwrap();
    let mut all = create(parent.path()).unwrap();
    let dir = all.dir().to_path_buf();
    let told = hostile_run();
    told.iter().for_each(|event| all.on_event(event.event.clone()));
    let code = all.finish(&RunOutcome::GuestDied { reason: "panic".into() });
    assert_eq!(code, ExitCode::GuestDied);

    let mut names: Vec<_> =
        fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let wanted = [
        "artefacts",
        "events.jsonl",
        "junit.xml",
        "kernel.log",
        "manifest.json",
        "replay.sh",
        "report.html",
        "results.json",
    ];
    assert_eq!(names, wanted);
    let seen = events(&dir);
    assert_eq!(seen.len(), told.len(), "one RunStarted and one RunFinished");
    assert!(matches!(&seen[0].event, RunEvent::RunStarted { run, .. } if dir.ends_with(run)));
    assert!(seen.is_sorted_by_key(|event| event.at_ms));

    let results = json(&dir.join("results.json"));
    assert_eq!(results["exit_code"], 3);
    assert_eq!(results["outcome"]["kind"], "guest-died");
    assert_eq!(results["counts"]["fail"], 1);
    assert_eq!(results["kernel_release"], "6.12.1");
    assert_eq!(results["command"], "vmm run s");
    assert_eq!(results["suites"][0]["tests"][0]["test"], "good");
    assert_eq!(results["suites"][0]["tests"][0]["status"], "pass");
    assert_eq!(results["suites"][0]["tests"][0]["duration_us"], 1_234_567);
    let hash = json(&dir.join("manifest.json"))["files"]["vmm"]["sha256"].as_str().unwrap().len();
    assert_eq!(hash, 64);
    assert_eq!(fs::read_link(parent.path().join("latest")).unwrap().as_os_str(), dir.file_name().unwrap());
}

#[test]
fn a_baseline_that_is_not_for_this_run_is_told_in_one_line_and_in_the_results() {
    let parent = tempfile::tempdir().unwrap();
    let mut config = config(parent.path());
    let file = BaselineFile::parse("f", "suite = 's'\nkernel = '<6'\n[[test]]\nname = 'a'\nexpect = 'fail'\n").unwrap();
    config.baseline.add_file("my.toml".into(), file, Situation { suites: &config.suites, cache: "auto" });
    let terminal = Terminal::writing_to(config.terminal, Box::new(io::sink()));
    let mut all = Reporters::create_with(config, terminal).unwrap();
    let dir = all.dir().to_path_buf();
    for _ in 0..2 {
        let (kernel_release, mounts) = ("6.12.1".into(), vec![]);
        all.on_event(RunEvent::GuestReady { kernel_release, uptime_ms: 1, mounts });
    }
    good_run().into_iter().for_each(|event| all.on_event(event));
    assert_eq!(all.finish(&RunOutcome::Completed), ExitCode::Success);
    let told = events(&dir)
        .into_iter()
        .filter(|event| matches!(&event.event, RunEvent::Note { line } if line.contains("my.toml")));
    assert_eq!(told.count(), 1);
    let used = &json(&dir.join("results.json"))["baselines"][0];
    assert_eq!(
        (used["source"].as_str(), used["kernel"].as_str(), used["tests"].as_u64()),
        (Some("my.toml"), Some("<6"), Some(1))
    );
    assert!(used["not_applied"].as_str().unwrap().contains("6.12.1"), "{used}");
}

#[test]
fn a_good_run_is_a_success() {
    let parent = tempfile::tempdir().unwrap();
    let mut all = create(parent.path()).unwrap();
    good_run().into_iter().for_each(|event| all.on_event(event));
    assert_eq!(all.finish(&RunOutcome::Completed), ExitCode::Success);
}

#[test]
fn an_event_is_on_disk_before_the_next_one() {
    let parent = tempfile::tempdir().unwrap();
    let mut all = create(parent.path()).unwrap();
    for (count, event) in (2..).zip(good_run()) {
        all.on_event(event);
        assert_eq!(events(all.dir()).len(), count);
    }
    all.finish(&RunOutcome::Completed);
}

#[test]
fn a_run_that_is_dropped_is_written_all_the_same() {
    let parent = tempfile::tempdir().unwrap();
    let mut all = create(parent.path()).unwrap();
    let dir = all.dir().to_path_buf();
    good_run().into_iter().for_each(|event| all.on_event(event));
    drop(all);
    assert_eq!(json(&dir.join("results.json"))["outcome"]["kind"], "cannot-test");
    assert!(fs::read_to_string(dir.join("junit.xml")).unwrap().contains("gave up"));
    assert!(matches!(events(&dir).last().unwrap().event, RunEvent::RunFinished { .. }));
}

#[test]
fn the_end_is_told_once_whoever_tells_it() {
    let parent = tempfile::tempdir().unwrap();
    let mut all = create(parent.path()).unwrap();
    let dir = all.dir().to_path_buf();
    all.on_event(RunEvent::RunFinished { outcome: RunOutcome::Interrupted });
    assert_eq!(all.finish(&RunOutcome::Interrupted), ExitCode::Interrupted);
    assert_eq!(events(&dir).len(), 2);
}

#[test]
fn a_run_that_cannot_begin_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    fs::write(parent.path().join("file"), "").unwrap();
    let error = create(&parent.path().join("file")).err().unwrap();
    assert!(error.to_string().contains("--results"));
    assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
}

#[test]
fn statistics_are_in_the_results_only_when_there_are_some() {
    let parent = tempfile::tempdir().unwrap();
    for statistics in [None, Some(serde_json::json!({ "exits_per_request": 4.5 }))] {
        let mut reporters = create(parent.path()).unwrap();
        let results = reporters.dir().join("results.json");
        if let Some(statistics) = statistics.clone() {
            reporters.add_statistics(statistics);
        }
        reporters.finish(&RunOutcome::Completed);
        assert_eq!(json(&results).get("statistics"), statistics.as_ref());
    }
}

#[test]
fn a_run_that_was_cut_off_goes_on_in_its_own_folder() {
    let parent = tempfile::tempdir().unwrap();
    let mut all = create(parent.path()).unwrap();
    let dir = all.dir().to_path_buf();
    for event in [RunEvent::SuiteStarted { suite: "s".into() }, result("g/001", TestStatus::Fail, "why")] {
        all.on_event(event);
    }
    let busy = EarlierPart::read(&dir).unwrap();
    let Err(error) = Reporters::resume(config(parent.path()), &busy) else { panic!("two write the same run") };
    assert!(crate::command::error_chain(&error).contains("still goes on"), "{error:?}");
    // As after SIGKILL: nothing is said any more, and the lock is gone with the process.
    all.reporters.clear();
    all.finished = true;
    drop(all);

    let earlier = EarlierPart::read(&dir).unwrap();
    let mut all = Reporters::resume(config(parent.path()), &earlier).unwrap();
    all.on_event(result("g/002", TestStatus::Pass, ""));
    all.on_event(RunEvent::SuiteFinished { suite: "s".into(), end: Some(SuiteEnd::Exited(1)), duration_ms: 5 });
    assert_eq!(all.finish(&RunOutcome::Completed), ExitCode::Regression);
    let run = crate::report::SavedRun::read(&dir).unwrap();
    let tests: Vec<_> = run.tally.suites()[0].tests.iter().map(|row| (row.test.as_str(), row.status)).collect();
    assert_eq!(tests, [("g/001", TestStatus::Fail), ("g/002", TestStatus::Pass)]);
    assert!(run.is_complete());
    let page = fs::read_to_string(dir.join("report.html")).unwrap();
    assert!(page.contains("g/001") && page.contains("g/002"));
}
