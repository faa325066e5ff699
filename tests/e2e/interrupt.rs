//! Ctrl-C at any moment, once and twice, SIGTERM, and `kill -9`: nothing left, the terminal as it was, results on disk.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tests::{Sandbox, Vmm, patience};

const CTRL_C: &str = "\x03";

fn only_run(sandbox: &Sandbox) -> PathBuf {
    let results = sandbox.work().join("results");
    let latest = fs::canonicalize(results.join("latest")).expect("a results folder is there");
    assert!(latest.starts_with(&results));
    latest
}

/// The events on disk; every complete line must parse.
fn events(sandbox: &Sandbox) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(only_run(sandbox).join("events.jsonl")).expect("events are there");
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
    let sandbox = Sandbox::new();
    let mut terminal = verbose_run(&sandbox).on_terminal();
    terminal.wait_for("PASS");
    terminal.type_in(CTRL_C);
    thread::sleep(Duration::from_millis(100));
    terminal.type_in(CTRL_C);
    let finished = terminal.finish();
    finished.expect_code(130);
    assert!(count(&events(&sandbox), "test-finished") > 0);
    sandbox.assert_only_results_left();
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
