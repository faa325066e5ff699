//! Guests that panic, hang, or lose their agent: the right exit code within the deadline, results so far on disk, no
//! process left.

use std::path::Path;
use std::time::Duration;

use tests::{Sandbox, Vmm, guest_probe, patience};

/// Kills PID 1 although the kernel protects it from signals: its code is overwritten through /proc/1/mem, so that it faults
/// at its next step; a line of output makes it take one.
pub(crate) const KILL_AGENT: &str = "while read -r range mode _; do case $mode in *x*) \
     s=$((0x${range%-*} / 4096)); e=$((0x${range#*-} / 4096)); \
     dd if=/dev/zero of=/proc/1/mem bs=4096 seek=$s count=$((e - s)) conv=notrunc 2>/dev/null;; \
     esac; done < /proc/1/maps; echo; sleep 1000";

#[test]
fn a_guest_that_panics_is_told_from_one_that_fails() {
    let sandbox = Sandbox::new();
    // A kernel that panics runs nobody any more, and with one CPU the agent has to run to pass the output on.
    let script = "echo before; sleep 1; echo c > /proc/sysrq-trigger; sleep 1000";
    let finished = Vmm::sh(&sandbox, &[], script).finish();
    finished.expect_code(3).expect_error(&["panic", "sysrq"]).expect_out("before").expect_within(patience(20));
    sandbox.assert_nothing_left();
}

#[test]
fn a_guest_that_oopses_in_a_test_is_told_too() {
    let sandbox = Sandbox::new();
    let finished = Vmm::sh(&sandbox, &["--append", "oops=panic"], "echo c > /proc/sysrq-trigger").finish();
    finished.expect_code(3);
    sandbox.assert_nothing_left();
}

#[test]
fn a_guest_that_resets_itself_died_unasked() {
    let sandbox = Sandbox::new();
    Vmm::sh(&sandbox, &[], "echo b > /proc/sysrq-trigger; sleep 1000").finish().expect_code(3).expect_error(&["reset"]);
    sandbox.assert_nothing_left();
}

#[test]
fn a_guest_that_powers_off_under_a_command_died_unasked() {
    let sandbox = Sandbox::new();
    Vmm::sh(&sandbox, &[], "echo o > /proc/sysrq-trigger; sleep 1000").finish().expect_code(3).expect_error(&["power"]);
    sandbox.assert_nothing_left();
}

#[test]
fn an_agent_that_dies_is_noticed() {
    let sandbox = Sandbox::new();
    let finished = Vmm::sh(&sandbox, &[], KILL_AGENT).finish();
    finished.expect_code(3).expect_error(&["attempted to kill init"]).expect_within(patience(20));
    sandbox.assert_nothing_left();
}

#[test]
fn a_stream_that_is_closed_in_the_middle_of_a_frame_is_a_guest_that_was_lost() {
    let sandbox = Sandbox::new();
    let share = sandbox.dir("share");
    let probe = guest_probe::install(Path::new(env!("CARGO_BIN_EXE_guest-probe")), &share, "/mnt/virtiofs1");
    let flag = format!("{}:myfs1", share.display());
    let script = format!("echo before; sleep 1; {probe} cut-agent-stream; sleep 1000");
    let finished = Vmm::sh(&sandbox, &["--shared-dir", &flag], &script).finish();
    finished
        .expect_code(3)
        .expect_error(&["stream", "in the middle of a frame"])
        .expect_out("before")
        .expect_within(patience(20));
    sandbox.assert_nothing_left();
}

#[test]
fn a_guest_that_hangs_before_the_agent_speaks_meets_the_boot_deadline() {
    let sandbox = Sandbox::new();
    // No init in the initramfs, and a root device that never comes: the kernel waits for it.
    let hang = ["--append", "rdinit=/nowhere root=/dev/nowhere rootwait", "--boot-timeout", "12s"];
    let finished = Vmm::sh(&sandbox, &hang, "true").finish();
    finished.expect_code(124).expect_error(&["12s"]).expect_within(patience(10));
    sandbox.assert_nothing_left();
}

#[test]
fn a_guest_without_an_init_panics_before_the_agent_speaks() {
    let sandbox = Sandbox::new();
    let finished = Vmm::sh(&sandbox, &["--append", "rdinit=/nowhere root=/dev/nowhere"], "true").finish();
    finished.expect_code_in(&[3, 125]).expect_error(&["panic"]);
    sandbox.assert_nothing_left();
}

#[test]
fn a_command_that_never_ends_meets_the_deadline() {
    let sandbox = Sandbox::new();
    let finished = Vmm::sh(&sandbox, &["--timeout", "30s"], "echo before; trap '' TERM; sleep 1000").finish();
    finished
        .expect_code(124)
        .expect_error(&["took longer", "--timeout"])
        .expect_out("before")
        .expect_within(patience(10));
    sandbox.assert_nothing_left();
}

#[test]
fn a_command_that_prints_without_end_is_cut_off_at_the_deadline() {
    let sandbox = Sandbox::new();
    let finished = Vmm::sh(&sandbox, &["--timeout", "15s"], "yes").finish();
    finished.expect_code(124);
    assert!(finished.stdout.starts_with(b"y\ny\n"));
    sandbox.assert_nothing_left();
}

#[test]
fn a_guest_that_eats_all_its_memory_does_not_hang_us() {
    let sandbox = Sandbox::new();
    let finished = Vmm::sh(&sandbox, &["--memory", "256M", "--timeout", "40s"], "tail /dev/zero; true").finish();
    // Linux may take long to call the command out of memory, reading its code from the root disk over and over.
    finished.expect_code_in(&[0, 3, 124]).expect_within(Duration::from_secs(40) + patience(10));
    sandbox.assert_nothing_left();
}
