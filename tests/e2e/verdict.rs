//! What a run comes to when tests fail, hang, crash the guest or say nothing, on suites made for that.

use std::fs;
use std::path::PathBuf;

use tests::{Vmm, patience};

use crate::suite_run::{Run, has};

const GOOD: &str = "echo 1..2; echo ok 1; echo ok 2";

#[test]
fn a_suite_whose_tests_pass_is_a_success() {
    let run = Run::of(&[("a/00.t", GOOD), ("b/00.t", "echo 1..0 # SKIP not here")]);
    run.finish(&[]).expect_code(0).expect_in_out("\nPassed all 2 tests\n");
    assert!(has(&run.statuses(), "a/00.t:2", "pass"), "{:?}", run.statuses());
}

#[test]
fn a_test_that_fails_is_a_regression_and_its_output_is_kept() {
    let run = Run::of(&[
        ("a/00.t", "echo 1..2; echo ok 1; echo 'not ok 2 - wanted EPERM'; echo '# got 0'"),
        ("b/00.t", GOOD),
    ]);
    let finished = run.finish(&[]);
    finished.expect_code(1).expect_in_out("\nFailures: a/00.t:2\n").expect_in_out("\nFailed 1 of 4 tests\n");
    let kept = fs::read_to_string(run.dir().join("artefacts/pjdfstest/a_00.t_2.out.bad")).unwrap();
    assert!(kept.contains("not ok 2 - wanted EPERM"), "{kept}");
    assert!(run.junit().contains("<failure message=\"wanted EPERM"), "{}", run.junit());

    let expected = run.sandbox.file("expected", "a/00.t:2 # known\n");
    run.finish(&["--expect-failures", expected.to_str().unwrap()]).expect_code(0);
}

#[test]
fn a_run_in_which_every_test_was_skipped_is_told_from_success() {
    let run = Run::of(&[("a/00.t", "echo 1..0 # SKIP not here")]);
    run.finish(&[]).expect_code(4).expect_in_out("Nothing ran");
}

#[test]
fn a_test_that_never_ends_is_killed_at_its_deadline_and_the_others_run() {
    let run = Run::of(&[
        ("a/00.t", GOOD),
        (
            "b/00.t",
            "trap '' TERM INT HUP; echo 1..2; echo ok 1; (trap '' TERM; sleep 100000) & sleep 100000; echo ok 2",
        ),
        ("c/00.t", GOOD),
    ]);
    let finished = run.finish(&["--test-timeout", "8s"]);
    finished.expect_code(124).expect_in_out("8s").expect_within(patience(20));
    let statuses = run.statuses();
    assert!(has(&statuses, "a/00.t:2", "pass") && has(&statuses, "b/00.t:1", "pass"), "{finished}");
    assert!(has(&statuses, "b/00.t:2", "error"), "{statuses:?}");
    assert!(has(&statuses, "c/00.t:2", "pass"), "the suite did not go on: {statuses:?}");
    let stacks = fs::read_to_string(run.dir().join("artefacts/pjdfstest/b_00.t_2.stacks")).unwrap();
    assert!(stacks.contains("sleep 100000") && stacks.contains("nanosleep"), "{stacks}");
}

#[test]
fn a_suite_that_is_killed_with_a_test_of_its_own_process_goes_on_behind_it() {
    let manifest = r#"
        name = "mine"
        description = "one process for all tests"
        format = "pjdfstest-rs"
        [build]
        method = "source"
        [run]
        argv = ["./run"]
        cwd = "/opt/suites/mine"
        [tests]
        list = ["printf", '%s\n', "x::a", "x::b", "x::c", "x::d"]
    "#;
    let script = r#"
        [ $# -gt 0 ] || set -- x::a x::b x::c x::d
        for test; do
            printf '%-40s' "$test"
            [ "$test" != x::b ] || sleep 100000
            echo ok
        done
        printf '\nSummary: 0 failed, 0 skipped, %s passed, 0 expected failures, %s total\n' $# $#"#;
    let run = Run::of_own(manifest, script);
    let finished = run.command_of_own(&["--test-timeout", "8s"]).deadline(patience(120)).finish();
    finished.expect_code(124).expect_in_out("8s");
    // It does not say what it runs: what hangs is known from the list.
    let expected = [("x::a", "pass"), ("x::b", "error"), ("x::c", "pass"), ("x::d", "pass")];
    assert_eq!(run.statuses(), expected.map(|(test, status)| (test.to_owned(), status.to_owned())), "{finished}");
}

#[test]
fn a_suite_finds_the_shares_mounted_whatever_the_one_before_did_to_them() {
    let manifest = r#"
        name = "mine"
        description = "unmounts, then looks"
        format = "exit-code"
        [build]
        method = "source"
        [run]
        argv = ["/opt/suites/mine/run"]
        sections = [["unmount"], ["look"], ["cover"], ["look"]]
        cwd = "/"
    "#;
    let script = r#"
        case $1 in
            unmount) umount /mnt/virtiofs1 && ! grep /mnt/virtiofs1 /proc/mounts ;;
            cover) mount -t tmpfs none /mnt/virtiofs1 ;;
            look) [ "$(stat -f -c %t /mnt/virtiofs1)" = 65735546 ] ;; # FUSE_SUPER_MAGIC
        esac"#;
    let run = Run::of_own(manifest, script);
    let finished = run.command_of_own(&[]).finish();
    finished.expect_code(0).expect_in_out("Passed all 4 tests");
    finished.expect_in_out("myfs1 was not mounted at /mnt/virtiofs1 any more: mounted again");
}

#[test]
fn a_test_that_prints_without_end_does_not_stop_the_others_results() {
    let noise = "echo 1..1; yes '# noise aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' | head -n 20000; echo ok 1";
    let run = Run::of(&[("a/00.t", noise), ("b/00.t", GOOD)]);
    run.finish(&[]).expect_code(0);
    assert_eq!(run.statuses().len(), 3);
}

#[test]
fn output_that_is_no_text_is_kept_out_of_the_terminal_and_in_the_files() {
    let run =
        Run::of(&[("a/00.t", "echo 1..1; printf '\\033[2J\\007\\377\\000\\n'; printf 'not ok 1 - \\033[31mred\\n'")]);
    let finished = run.finish(&["--verbose"]);
    finished.expect_code(1);
    assert!(!finished.stdout.iter().any(|byte| matches!(byte, 0 | 7 | 0x1b)), "{finished}");
    assert!(finished.out().contains("\\u{1b}[31mred"), "{finished}");
}

#[test]
fn the_replay_script_runs_the_same_again() {
    let run = Run::of(&[("a/00.t", GOOD)]);
    run.finish(&["--cpus", "2"]).expect_code(0);
    let (first, replay) = (run.dir(), run.dir().join("replay.sh"));
    let script = fs::read_to_string(&replay).unwrap();
    assert!(script.contains("run --host kvm pjdfstest --cpus 2"), "{script}");
    // The script starts vmm itself; what the harness puts behind it is dropped.
    let words = ["sh", "-c", "exec sh \"$0\" --quiet", replay.to_str().unwrap()];
    let again = Vmm::new(&run.sandbox, [""; 0]).wrapped_in(words).env("VMM_CACHE_DIR", &run.cache).finish();
    again.expect_code(0).expect_in_out("Passed all 2 tests");
    assert_ne!(run.dir(), first);
}

#[test]
fn two_runs_are_compared_test_by_test() {
    let run = Run::of(&[("a/00.t", "echo 1..2; echo ok 1; [ $(nproc) -eq 1 ] && echo ok 2 || echo not ok 2")]);
    run.finish(&[]).expect_code(0);
    let good = run.dir();
    run.finish(&["--cpus", "2"]).expect_code(1);
    let bad = run.dir();
    let compare = |old: &PathBuf, new: &PathBuf| {
        Vmm::new(&run.sandbox, ["compare", old.to_str().unwrap(), new.to_str().unwrap()]).finish()
    };
    compare(&good, &bad).expect_code(1).expect_in_out("Worse (1):\n   pass -> fail").expect_in_out("Same (1)");
    compare(&bad, &good).expect_code(0).expect_in_out("Better (1):");
}

#[test]
fn a_baseline_made_of_a_run_explains_the_next_and_names_what_is_gone() {
    let run = Run::of(&[("a/00.t", "echo 1..2; echo ok 1; echo not ok 2"), ("b/00.t", GOOD)]);
    run.finish(&[]).expect_code(1);
    let file = run.sandbox.dir("baselines").join("my.toml");
    let (file, results) = (file.to_str().unwrap(), run.dir());
    let update = ["baseline", "update", results.to_str().unwrap(), "--output", file];
    Vmm::new(&run.sandbox, update).finish().expect_code(0);
    let text = fs::read_to_string(file).unwrap();
    assert!(text.contains("name = \"a/00.t:2\"\nexpect = \"fail\"\nfailed = 1\nruns = 1\n"), "{text}");
    fs::write(file, format!("{text}\n[[test]]\nname = \"gone\"\nexpect = \"fail\"\n")).unwrap();
    let finished = run.finish(&["--baseline", file]);
    finished.expect_code(0).expect_in_out("\nStill failing: a/00.t:2\n").expect_in_out("not in this run: gone\n");
    assert_eq!(run.results()["baselines"][0]["did_not_occur"][0]["test"], "gone");
    // For another kernel it is not applied.
    fs::write(file, text.replace("kernel = \"", "kernel = \"<4, ")).unwrap();
    run.finish(&["--baseline", file]).expect_code(1).expect_in_out("is not applied: it is for kernels <4, ");
}

#[test]
fn results_are_told_as_tap_on_standard_output_and_to_people_on_standard_error() {
    let run = Run::of(&[("a/00.t", "echo 1..2; echo ok 1; echo 'not ok 2 - wanted EPERM'"), ("b/00.t", GOOD)]);
    let finished = run.finish(&["--format", "tap"]);
    finished.expect_code(1);
    let out = finished.out();
    assert!(out.starts_with("TAP version 13\n") && out.ends_with("\n1..4\n"), "{finished}");
    assert!(out.contains("\nok 1 - pjdfstest: a/00.t:1\nnot ok 2 - pjdfstest: a/00.t:2\n  ---\n"), "{finished}");
    assert!(finished.err().contains("\nFailures: a/00.t:2\n"), "{finished}");
}

#[test]
fn arguments_after_two_dashes_choose_tests() {
    let run = Run::of(&[("a/00.t", GOOD), ("b/00.t", GOOD)]);
    run.finish(&["--", "b/00.t"]).expect_code(0).expect_in_out("\nPassed all 2 tests\n");
    assert!(run.statuses().iter().all(|(test, _)| test.starts_with("b/")), "{:?}", run.statuses());
}

#[test]
fn a_suite_of_ones_own_runs_with_a_manifest_and_a_folder_and_leaves_its_files() {
    let manifest = r#"
        name = "mine"
        description = "a suite of one's own"
        format = "xfstests"
        [build]
        method = "source"
        [image]
        modules = ["loop", "no-such-module"]
        [run]
        argv = ["./run"]
        default_args = ["-g", "quick"]
        cwd = "/opt/suites/mine"
        artefacts = "/run/mine/{test}"
        [run.env]
        MINE = "set"
    "#;
    let script = r#"
        mkdir -p /run/mine/own
        test -e /dev/loop-control && echo "own/001 1s ...  2s"
        echo "own/002       [not run] it needs $MINE $*"
        echo "what was wrong" > /run/mine/own/003.full
        echo "own/003 1s ... - output mismatch (see /run/mine/own/003.full)"
        echo "Ran: own/001 own/002 own/003"
        exit 1"#;
    let run = Run::of_own(manifest, script);
    let finished = run.command_of_own(&[]).deadline(patience(120)).finish();
    finished.expect_code(1).expect_in_out("it needs set -g quick");
    let statuses = run.statuses();
    let expected = [("own/001", "pass"), ("own/002", "skip"), ("own/003", "fail")];
    assert_eq!(statuses, expected.map(|(test, status)| (test.to_owned(), status.to_owned())), "{finished}");
    let full = run.dir().join("artefacts/mine/own_003.full");
    assert_eq!(fs::read_to_string(full).expect("it was kept"), "what was wrong\n");
    run.sandbox.assert_only_results_left();
}
