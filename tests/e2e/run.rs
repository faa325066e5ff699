//! `vmm run`: results as they come, files, verdict.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tests::{Sandbox, Vmm, patience};

use crate::suite_run::{Run, has};

fn latest(sandbox: &Sandbox) -> PathBuf {
    fs::canonicalize(sandbox.work().join("results/latest")).expect("a results folder is there")
}

fn json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).expect("it is JSON")
}

fn run(sandbox: &Sandbox) -> Vmm<'_> {
    Vmm::new(sandbox, ["run", "--host", "kvm", "pjdfstest-rs"]).deadline(patience(75))
}

#[test]
fn pjdfstest_rs_passes_and_leaves_its_results() {
    let sandbox = Sandbox::new();
    let finished = run(&sandbox).finish();
    finished.expect_code(0).expect_in_out("\nPassed all ").expect_in_out("\nRan: ").expect_in_out("\nResults: ");

    let dir = latest(&sandbox);
    let results = json(dir.join("results.json"));
    assert_eq!(results["exit_code"], 0);
    assert_eq!(results["outcome"]["kind"], "completed");
    assert_eq!(results["counts"]["fail"], 0);
    let passed = results["counts"]["pass"].as_u64().unwrap();
    assert!(passed >= 340, "only {passed} passed: {finished}");

    let manifest = json(dir.join("manifest.json"));
    for role in ["kernel", "image", "vmm"] {
        assert_eq!(manifest["files"][role]["sha256"].as_str().map(str::len), Some(64), "{role}: {manifest:#}");
    }
    assert_eq!(manifest["shares"].as_array().unwrap().len(), 2);

    let events = fs::read_to_string(dir.join("events.jsonl")).unwrap();
    let events: Vec<Value> = events.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["event"], "run-started");
    assert_eq!(events.last().unwrap()["event"], "run-finished");
    let told = events.iter().filter(|event| event["event"] == "test-finished").count() as u64;
    assert_eq!(told, passed + results["counts"]["skip"].as_u64().unwrap());

    let junit = fs::read_to_string(dir.join("junit.xml")).unwrap();
    assert!(junit.contains(r#"<testsuite name="pjdfstest-rs""#), "{junit}");
    // From the first line on, although the kernel is quiet on its console.
    let kernel_log = fs::read_to_string(dir.join("kernel.log")).unwrap();
    assert!(kernel_log.starts_with("[    0.000000] Linux version"), "{kernel_log}");
    assert!(kernel_log.contains("Run /init as init process"), "{kernel_log}");
    assert!(fs::read_to_string(dir.join("report.html")).unwrap().contains(r#""verdict":"Passed all "#));
    assert!(fs::read_to_string(dir.join("replay.sh")).unwrap().contains("run --host kvm pjdfstest-rs"));
    sandbox.assert_only_results_left();
}

#[test]
fn results_come_while_the_tests_run() {
    let sandbox = Sandbox::new();
    let mut running = run(&sandbox).spawn();
    running.wait_for_out("PASS");
    assert!(!running.out_so_far().contains("Ran: "), "the first result came with the last");
    running.finish().expect_code(0);
}

#[test]
fn a_share_that_is_written_to_is_left_as_the_suite_left_it() {
    let sandbox = Sandbox::new();
    let (dir, other) = (sandbox.dir("share"), sandbox.dir("other"));
    fs::write(dir.join("mine"), "kept").unwrap();
    let shares = [format!("{}:myfs1", dir.display()), format!("{}:myfs2", other.display())];
    let flags = ["--shared-dir", &shares[0], "--shared-dir", &shares[1], "--quiet"];
    run(&sandbox).args(flags).finish().expect_code(0);
    assert_eq!(fs::read_to_string(dir.join("mine")).unwrap(), "kept");
    sandbox.assert_only_results_left();
}

#[test]
fn an_expected_failure_that_passes_is_called_fixed_and_an_excluded_test_expunged() {
    let sandbox = Sandbox::new();
    run(&sandbox).finish().expect_code(0);
    let results = json(latest(&sandbox).join("results.json"));
    let passed: Vec<_> =
        results["suites"][0]["tests"].as_array().unwrap().iter().filter(|t| t["status"] == "pass").collect();
    let [fixed, expunged] = [0, 1].map(|i| passed[i]["test"].as_str().unwrap().to_owned());
    let expect = sandbox.file("expect", format!("{fixed} # was broken\n"));
    let exclude = sandbox.file("exclude", format!("{expunged} # not now\n"));
    let lists = ["--expect-failures", expect.to_str().unwrap(), "--exclude-file", exclude.to_str().unwrap()];
    let finished = run(&sandbox).args(lists).finish();
    finished.expect_code(0);
    finished.expect_in_out(&format!("Fixed: {fixed}\n")).expect_in_out(&format!("Expunged: {expunged}\n"));
}

#[test]
fn the_deadline_of_a_run_keeps_the_results_so_far() {
    let run = Run::of(&[("a/00.t", "echo 1..1; echo ok 1"), ("b/00.t", "echo 1..2; echo ok 1; sleep 100000")]);
    let limit = patience(10);
    let finished = run.finish(&["--timeout", &format!("{}s", limit.as_secs())]);
    finished.expect_code(124).expect_in_out("(--timeout)").expect_within(limit + patience(5));
    let results = run.results();
    assert_eq!((&results["exit_code"], &results["outcome"]["kind"]), (&124.into(), &"timed-out".into()));
    let statuses = run.statuses();
    for (test, status) in [("a/00.t:1", "pass"), ("b/00.t:1", "pass"), ("b/00.t:2", "error")] {
        assert!(has(&statuses, test, status), "{test} {status}: {statuses:?}");
    }
}

#[test]
fn a_guest_that_never_speaks_is_in_every_report() {
    let sandbox = Sandbox::new();
    let hang = ["--append", "ignore_loglevel rdinit=/nowhere root=/dev/nowhere rootwait", "--boot-timeout", "12s"];
    let finished = run(&sandbox).args(hang).finish();
    finished.expect_code(124).expect_within(patience(10));
    let dir = latest(&sandbox);
    assert_eq!(json(dir.join("results.json"))["outcome"]["kind"], "timed-out");
    assert!(fs::read_to_string(dir.join("junit.xml")).unwrap().contains("<error message=\"timed out"));
    assert!(fs::read_to_string(dir.join("console.log")).unwrap().contains("Linux version"));
    sandbox.assert_only_results_left();
}

#[test]
fn a_filter_that_matches_no_test_is_told_from_success() {
    let sandbox = Sandbox::new();
    run(&sandbox).args(["--", "no_such_test_anywhere"]).finish().expect_code(4).expect_in_out("Nothing ran");
}
