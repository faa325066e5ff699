//! Ctrl-C at any moment, once and twice, SIGTERM, and `kill -9`: nothing left, the terminal as it was, results on disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::{Sandbox, Terminal, Vmm, patience};

use crate::suite_run::{Run, has};

const CTRL_C: &str = "\x03";

fn only_run(sandbox: &Sandbox) -> PathBuf {
    let results = sandbox.work().join("results");
    let latest = fs::canonicalize(results.join("latest")).expect("a results folder is there");
    assert!(latest.starts_with(&results));
    latest
}

/// The events on disk; every complete line must parse.
fn events(sandbox: &Sandbox) -> Vec<serde_json::Value> {
    events_in(&only_run(sandbox))
}

fn events_in(run: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(run.join("events.jsonl")).expect("events are there");
    let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    whole.lines().map(|line| serde_json::from_str(line).expect("every whole line parses")).collect()
}

fn count(events: &[serde_json::Value], kind: &str) -> usize {
    events.iter().filter(|event| event["event"] == kind).count()
}

fn run(sandbox: &Sandbox) -> Vmm<'_> {
    Vmm::new(sandbox, ["run", "--host", "kvm", "pjdfstest-rs"])
}

/// The same with every result on the screen. What follows a suite's name is the suite's: `-v` comes first.
fn verbose_run(sandbox: &Sandbox) -> Vmm<'_> {
    Vmm::new(sandbox, ["run", "--host", "kvm", "-v", "pjdfstest-rs"])
}

#[test]
fn ctrl_c_during_a_run_keeps_the_results_and_restores_the_terminal() {
    let sandbox = Sandbox::new();
    let mut terminal = verbose_run(&sandbox).on_terminal();
    terminal.wait_for("PASS");
    terminal.type_in(CTRL_C);
    let finished = terminal.finish();
    finished.expect_code(130).expect_in_out("interrupted");
    let events = events(&sandbox);
    assert!(count(&events, "test-finished") > 0);
    assert_eq!(events.last().unwrap()["outcome"]["kind"], "interrupted");
    let results: serde_json::Value =
        serde_json::from_slice(&fs::read(only_run(&sandbox).join("results.json")).unwrap()).unwrap();
    assert_eq!(results["exit_code"], 130);
    assert!(only_run(&sandbox).join("junit.xml").exists());
    sandbox.assert_only_results_left();
}

#[test]
fn ctrl_c_twice_ends_a_run_at_once() {
    let run = Run::of(&[("a/00.t", "echo 1..1; echo ok 1"), ("b/00.t", "echo 1..1; sleep 100000")]);
    // A guest that never gets to the end of taking off its share: after one Ctrl-C it is waited for, 20 s at least.
    let mut terminal = run.command(&["--verbose", "--fault", "op=DESTROY,stall"]).on_terminal();
    // The name alone is on the screen as soon as the test runs.
    terminal.wait_for("PASS");
    terminal.type_in(CTRL_C);
    // Two signals that nobody has seen yet are one.
    thread::sleep(Duration::from_secs(1));
    assert!(!terminal.has_ended(), "one Ctrl-C was enough");
    let second = Instant::now();
    terminal.type_in(CTRL_C);
    let finished = terminal.finish();
    finished.expect_code(130).expect_in_out("interrupted");
    assert!(second.elapsed() < Duration::from_secs(12), "{:?}: {finished}", second.elapsed());
    assert_eq!(run.results()["exit_code"], 130);
    assert!(has(&run.statuses(), "a/00.t:1", "pass"), "{:?}", run.statuses());
    run.sandbox.assert_only_results_left();
}

#[test]
fn ctrl_c_twice_at_any_moment_of_a_run_leaves_results_that_parse_or_none() {
    let run = Run::of(&[("a/00.t", "echo 1..1; echo ok 1; sleep 100000")]);
    for wait_ms in [0, 50, 200, 500, 1500, 4000, 8000] {
        let results = run.sandbox.dir(&format!("results-{wait_ms}"));
        let flags = ["--results", results.to_str().unwrap()];
        let mut terminal = run.command(&flags).deadline(patience(15)).on_terminal();
        thread::sleep(Duration::from_millis(wait_ms));
        terminal.type_in(CTRL_C);
        thread::sleep(Duration::from_millis(20));
        terminal.type_in(CTRL_C);
        let finished = terminal.finish();
        assert!(finished.code().is_none() || finished.code() == Some(130), "after {wait_ms} ms: {finished}");
        run.sandbox.assert_nothing_left();
        if let Ok(folder) = fs::canonicalize(results.join("latest")) {
            assert_eq!(events_in(&folder).last().unwrap()["outcome"]["kind"], "interrupted", "after {wait_ms} ms");
        }
    }
}

#[test]
fn a_command_that_ignores_ctrl_c_is_left_at_the_third() {
    let sandbox = Sandbox::new();
    let script = "n=0; trap 'n=$((n + 1)); echo got=$n' INT; echo rea''dy; while :; do sleep 0.1; done";
    let mut terminal = Vmm::sh(&sandbox, &[], script).on_terminal();
    terminal.wait_for("ready");
    for got in ["got=1", "got=2"] {
        terminal.type_in(CTRL_C);
        terminal.wait_for(got);
    }
    terminal.type_in(CTRL_C);
    terminal.finish().expect_code(130).expect_in_out("vmm: interrupted");
    sandbox.assert_nothing_left();
}

/// A suite's build under way on a terminal: `first`, and then a child that stays.
fn build_under_way(sandbox: &Sandbox, first: &str) -> Terminal {
    let begun = sandbox.other().join("begun");
    let step = format!("{first} : > {}; sleep 1000; :", begun.display());
    let manifest = format!(
        "name = 'slow'\ndescription = 'd'\nformat = 'exit-code'\n[build]\nmethod = 'source'\nsteps = [\"{step}\"]\n\
         [run]\nargv = ['./run']\ncwd = '/'\n"
    );
    let manifest = sandbox.file("slow.toml", manifest);
    let words = ["suite", "add", "slow", "--manifest", manifest.to_str().unwrap(), "--source"];
    let command = Vmm::new(sandbox, words).args([sandbox.dir("source")]);
    let terminal = command.env("VMM_CACHE_DIR", sandbox.dir("cache")).on_terminal();
    let give_up = Instant::now() + patience(15);
    while !begun.exists() {
        assert!(Instant::now() < give_up, "the build did not begin");
        thread::sleep(Duration::from_millis(10));
    }
    terminal
}

#[test]
fn ctrl_c_while_an_image_is_made_leaves_nothing() {
    let sandbox = Sandbox::new();
    let mut terminal = build_under_way(&sandbox, "");
    terminal.type_in(CTRL_C);
    terminal.finish().expect_code(130).expect_in_out("nothing half-made was kept");
    sandbox.assert_nothing_left();
    let left = fs::read_dir(sandbox.other().join("cache/tmp")).unwrap().count();
    assert_eq!(left, 0, "left in the cache");
}

#[test]
fn ctrl_c_twice_while_an_image_is_made_ends_it_at_once_and_leaves_no_process() {
    let sandbox = Sandbox::new();
    let mut terminal = build_under_way(&sandbox, "trap '' TERM;");
    terminal.type_in(CTRL_C);
    thread::sleep(Duration::from_millis(300));
    assert!(!terminal.has_ended(), "one Ctrl-C was enough");
    let second = Instant::now();
    terminal.type_in(CTRL_C);
    let finished = terminal.finish();
    finished.expect_code(130);
    assert!(second.elapsed() < Duration::from_secs(3), "{:?}: {finished}", second.elapsed());
    sandbox.assert_nothing_left();
}

#[test]
fn ctrl_c_at_any_moment_leaves_nothing() {
    // From before the command line is read until the guest is up.
    for wait_ms in [0, 30, 100, 300, 1000, 2000, 4000, 7000] {
        let sandbox = Sandbox::new();
        let mut terminal =
            Vmm::new(&sandbox, ["exec", "--host", "kvm", "--", "sleep", "1000"]).deadline(patience(15)).on_terminal();
        thread::sleep(Duration::from_millis(wait_ms));
        terminal.type_in(CTRL_C);
        let finished = terminal.finish();
        // Before our handler is there, the signal itself ends the process.
        assert!(finished.code().is_none() || finished.code() == Some(130), "after {wait_ms} ms: {finished}");
        sandbox.assert_nothing_left();
    }
}

#[test]
fn sigterm_ends_a_run_as_ctrl_c_does() {
    let sandbox = Sandbox::new();
    let mut running = run(&sandbox).spawn();
    running.wait_for_out("PASS");
    running.signal(Signal::TERM);
    running.finish().expect_code(130);
    assert_eq!(events(&sandbox).last().unwrap()["outcome"]["kind"], "interrupted");
    sandbox.assert_only_results_left();
}

#[test]
fn after_kill_9_everything_that_was_shown_is_on_disk_and_parses() {
    let sandbox = Sandbox::new();
    let mut running = run(&sandbox).spawn();
    running.wait_for_out("PASS");
    thread::sleep(Duration::from_secs(1));
    running.signal(Signal::KILL);
    let finished = running.finish();
    finished.expect_signal(9);
    let shown = finished.out().lines().filter(|line| line.contains("PASS [")).count();
    let kept = events(&sandbox).iter().filter(|e| e["event"] == "test-finished" && e["status"] == "pass").count();
    assert!(shown > 0 && kept >= shown, "{kept} kept of {shown} shown: {finished}");
    sandbox.assert_no_process_left();
}

#[test]
fn a_pipe_that_closes_early_does_not_stop_the_run() {
    let sandbox = Sandbox::new();
    let script = "\"$@\" | head -n 1; exit ${PIPESTATUS[0]}";
    let finished = run(&sandbox).wrapped_in(["bash", "-c", script, "bash"]).finish();
    finished.expect_code(125);
    let events = events(&sandbox);
    assert_eq!(events.last().unwrap()["event"], "run-finished");
    assert!(count(&events, "test-finished") > 100, "{finished}");
}
