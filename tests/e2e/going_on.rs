//! Runs that go on: in a fresh guest behind a test that took its guest along, in parts, side by side, and after they were cut
//! off.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tests::{Sandbox, Vmm, guest_probe, patience};

use crate::guest_trouble::KILL_AGENT;
use crate::suite_run::{Run, has};

const GOOD: &str = "echo 1..2; echo ok 1; echo ok 2";
/// A kernel that panics runs nobody any more, and with one CPU the agent has to run to pass the output on.
const PANIC: &str = "echo 1..2; echo ok 1; sleep 1; echo c > /proc/sysrq-trigger; sleep 1000";
/// The only CPU belongs to a task of the highest priority from then on; since 6.12 others get a share unless told otherwise.
const HANG: &str = "echo 1..2; echo ok 1; sleep 2; echo -1 > /proc/sys/kernel/sched_rt_runtime_us; \
    mount -t debugfs none /sys/kernel/debug; echo 0 > /sys/kernel/debug/sched/fair_server/cpu0/runtime; \
    chrt -f 99 sh -c 'while :; do :; done'";

#[test]
fn behind_a_panic_and_a_hang_the_other_tests_run_and_each_has_its_autopsy() {
    let run = Run::of(&[("a/00.t", GOOD), ("b/00.t", PANIC), ("c/00.t", GOOD), ("d/00.t", HANG), ("e/00.t", GOOD)]);
    let finished = run.command(&["--cpus", "1", "--hang-timeout", "12s"]).deadline(patience(90)).finish();
    finished.expect_code(1).expect_in_out("Failed 2 of 10 tests");
    let statuses = run.statuses();
    for test in ["a/00.t:2", "b/00.t:1", "c/00.t:2", "d/00.t:1", "e/00.t:2"] {
        assert!(has(&statuses, test, "pass"), "{test}: {statuses:?}");
    }
    assert!(has(&statuses, "b/00.t:2", "error") && has(&statuses, "d/00.t:2", "error"), "{statuses:?}");
    let artefact = |name: &str| fs::read_to_string(run.dir().join("artefacts/pjdfstest").join(name)).unwrap();
    let panic = artefact("b_00.t_2.autopsy");
    assert!(panic.contains("vCPU 0: rip 0x") && panic.contains("sysrq triggered crash"), "{panic}");
    let hang = artefact("d_00.t_2.autopsy");
    assert!(hang.starts_with("the guest hangs") && hang.contains("vCPU 0: rip 0x"), "{hang}");
    assert!(hang.contains("NMI") && hang.contains("Comm: sh"), "the kernel says where it was: {hang}");
    assert!(artefact("b_00.t_2.fuse.jsonl").lines().count() > 1);
    assert!(run.dir().join("console-3.log").exists());
    run.sandbox.assert_only_results_left();
}

#[test]
fn a_guest_that_panics_behind_a_tests_last_result_is_no_pass() {
    let panic = PANIC.replace("sleep 1;", "echo ok 2; sleep 1;");
    let run = Run::of(&[("a/00.t", &panic), ("b/00.t", GOOD)]);
    run.finish(&[]).expect_code(1).expect_in_out("Failed 1 of 5 tests");
    let statuses = run.statuses();
    for (test, status) in [("a/00.t:2", "pass"), ("a/00.t", "error"), ("b/00.t:2", "pass")] {
        assert!(has(&statuses, test, status), "{test} {status}: {statuses:?}");
    }
    assert!(run.dir().join("artefacts/pjdfstest/a_00.t.autopsy").exists());
}

#[test]
fn behind_an_agent_that_dies_and_a_stream_that_breaks_the_other_tests_run() {
    let share = Sandbox::new();
    let probe =
        guest_probe::install(Path::new(env!("CARGO_BIN_EXE_guest-probe")), &share.dir("share"), "/mnt/virtiofs2");
    let dies = format!("echo 1..2; echo ok 1; {KILL_AGENT}");
    let breaks = format!("echo 1..2; echo ok 1; sleep 1; {probe} cut-agent-stream; sleep 1000");
    let run = Run::of(&[("a/00.t", GOOD), ("b/00.t", &dies), ("c/00.t", &breaks), ("d/00.t", GOOD)]);
    let flags = [("myfs1", run.sandbox.dir("share")), ("myfs2", share.dir("share"))];
    let flags = flags.map(|(tag, dir)| format!("--shared-dir={}:{tag}", dir.display()));
    let finished = run.command(&[&flags[0], &flags[1]]).deadline(patience(90)).finish();
    finished.expect_code(1).expect_in_out("Failed 2 of 8 tests");
    let statuses = run.statuses();
    for (test, status) in [
        ("a/00.t:2", "pass"),
        ("b/00.t:1", "pass"),
        ("b/00.t:2", "error"),
        ("c/00.t:1", "pass"),
        ("c/00.t:2", "error"),
        ("d/00.t:2", "pass"),
    ] {
        assert!(has(&statuses, test, status), "{test} {status}: {statuses:?}");
    }
    let events = fs::read_to_string(run.dir().join("events.jsonl")).unwrap();
    assert!(events.contains("broke: stream closed in the middle of a frame"), "{events}");
    run.sandbox.assert_only_results_left();
}

#[test]
fn a_run_that_was_killed_is_resumed_and_has_the_results_of_one_that_was_not() {
    let slow = "echo 1..1; sleep 3; echo ok 1";
    let bad = "echo 1..2; echo ok 1; echo not ok 2";
    let run = Run::of(&[("a/00.t", GOOD), ("b/00.t", bad), ("c/00.t", slow), ("d/00.t", GOOD)]);
    run.finish(&[]).expect_code(1);
    let whole = run.statuses();

    let mut running = run.command(&[]).spawn();
    running.wait_for_out("b/00.t:2");
    std::thread::sleep(Duration::from_millis(500));
    running.signal(rustix::process::Signal::KILL);
    running.finish().expect_signal(9);
    let dir = run.dir();
    let resume = || {
        let words = ["run", "--resume", dir.to_str().unwrap()];
        Vmm::new(&run.sandbox, words).env("VMM_CACHE_DIR", &run.cache).finish()
    };
    let finished = resume();
    finished.expect_code(1).expect_in_out("resumed with 4 results");
    assert_eq!(run.dir(), dir, "it goes on in its own folder");
    assert_eq!(run.statuses(), whole, "{finished}");
    assert!(!finished.out().contains("PASS") || !finished.out().contains("a/00.t:1"), "{finished}");
    resume().expect_code(2).expect_error(&["came to its end", "nothing to go on with"]);
}

#[test]
fn two_guests_side_by_side_and_a_guest_for_each_test_come_to_the_same_results() {
    let count =
        "echo 1..1; dmesg | grep -c 'vmm-was-here' | sed 's/^0$/ok 1/;t;s/.*/not ok 1/'; echo vmm-was-here > /dev/kmsg";
    let tests = ["a/00.t", "b/00.t", "c/00.t", "d/00.t", "e/00.t"];
    let run = Run::of(&tests.map(|test| (test, count)));
    run.finish(&[]).expect_code(1).expect_in_out("Failed 4 of 5 tests");
    run.finish(&["--vm-per", "test"]).expect_code(0).expect_in_out("Passed all 5 tests");
    assert!(run.dir().join("console-5.log").exists());

    let good = Run::of(&tests.map(|test| (test, GOOD)));
    good.finish(&["--jobs", "2"]).expect_code(0).expect_in_out("Passed all 10 tests");
    assert!(good.dir().join("console-2.log").exists());
    let share = good.sandbox.dir("share");
    let flag = format!("{}:myfs1", share.display());
    good.finish(&["--jobs", "2", "--shared-dir", &flag])
        .expect_code(2)
        .expect_error(&["--jobs", "shares of their own"]);
}

#[test]
fn shards_that_are_merged_are_the_whole_and_one_that_is_missing_is_refused() {
    let tests = ["a/00.t", "b/00.t", "c/00.t", "d/00.t"];
    let run = Run::of(&tests.map(|test| (test, if test == "c/00.t" { "echo 1..1; echo not ok 1" } else { GOOD })));
    run.finish(&[]).expect_code(1);
    let mut whole = run.statuses();
    whole.sort();
    let shards: Vec<String> = ["1/3", "2/3", "3/3"]
        .map(|shard| {
            run.command(&["--shard", shard]).finish().expect_code_in(&[0, 1]);
            run.dir().display().to_string()
        })
        .into();
    let merge = |dirs: &[&String]| {
        let words = ["merge".to_owned()].into_iter().chain(dirs.iter().map(|dir| (*dir).clone()));
        Vmm::new(&run.sandbox, words).env("VMM_CACHE_DIR", &run.cache).finish()
    };
    merge(&[&shards[0], &shards[2]]).expect_code(2).expect_error(&["shard 2/3 is missing"]);
    merge(&[&shards[0], &shards[1], &shards[1], &shards[2]]).expect_code(2).expect_error(&["2/3", "twice"]);
    merge(&[&shards[2], &shards[0], &shards[1]]).expect_code(1).expect_in_out("Failed 1 of 7 tests");
    let mut merged = run.statuses();
    merged.sort();
    assert_eq!(merged, whole);
}

#[test]
fn a_failure_is_tried_again_alone_and_told_as_real_or_as_one_of_order() {
    let real = "echo 1..1; echo not ok 1";
    let order = "echo 1..1; dmesg | grep -q vmm-was-here && echo not ok 1 || echo ok 1";
    let mark = "echo vmm-was-here > /dev/kmsg; echo 1..1; echo ok 1";
    let run = Run::of(&[("a/00.t", mark), ("b/00.t", order), ("c/00.t", real)]);
    let finished = run.finish(&["--retries", "2"]);
    finished.expect_code(1).expect_in_out("\nFailed again alone, each time: c/00.t:1\n");
    finished.expect_in_out("\nPassed alone each time: depends on what ran before, or rare: b/00.t:1\n");
    let results = run.results();
    let retried = |index: usize| results["suites"][0]["tests"][index]["retried"].clone();
    assert_eq!(retried(1), serde_json::json!({ "attempts": 2, "failed": 0, "kind": "depends-on-order" }), "{results}");
    assert_eq!(retried(2), serde_json::json!({ "attempts": 2, "failed": 2, "kind": "real" }), "{results}");
}

#[test]
fn what_cannot_be_divided_or_resumed_is_said_before_a_guest_is_booted() {
    let run = Run::of(&[("a/00.t", GOOD)]);
    for (flags, says) in [
        (&["--shard", "4/3"][..], "2/3"),
        (&["--jobs", "0"], "1..=64"),
        (&["--resume", "nowhere"], "no results folder"),
        (&["--resume", "nowhere", "--cpus", "2"], "leave out"),
    ] {
        let words = [&["run", "--host", "kvm"][..], flags].concat();
        let words = if flags[0] == "--resume" { [&["run"][..], flags].concat() } else { words };
        let finished = Vmm::new(&run.sandbox, words).env("VMM_CACHE_DIR", &run.cache).finish();
        finished.expect_code(2);
        assert!(finished.err().contains(says), "{finished}");
    }
}
