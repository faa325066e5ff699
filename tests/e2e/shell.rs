//! `vmm shell`: a terminal through to the guest and back.

use rustix::process::Signal;
use tests::{Sandbox, Vmm};

fn shell(sandbox: &Sandbox) -> Vmm<'_> {
    Vmm::new(sandbox, ["shell", "--host", "kvm"])
}

#[test]
fn a_shell_takes_commands_and_gives_its_exit_code() {
    let sandbox = Sandbox::new();
    let mut terminal = shell(&sandbox).on_terminal();
    terminal.wait_for_raw();
    terminal.type_in("echo sum=$((40 + 2))\r");
    terminal.wait_for("sum=42");
    terminal.type_in("exit 7\r");
    terminal.finish().expect_code(7);
    sandbox.assert_nothing_left();
}

#[test]
fn ctrl_c_goes_inside() {
    let sandbox = Sandbox::new();
    let mut terminal = shell(&sandbox).on_terminal();
    terminal.wait_for_raw();
    // The command itself says so: before it is there, Ctrl-C would be the shell's.
    terminal.type_in("sh -c 'echo re\\ady; exec sleep 1000'; echo ended=$?\r");
    terminal.wait_for("ready");
    terminal.type_in("\x03");
    terminal.wait_for("^C");
    terminal.type_in("echo alive=$((1 + 1))\r");
    terminal.wait_for("alive=2");
    terminal.type_in("exit\r");
    let finished = terminal.finish();
    assert!(finished.code().is_some_and(|code| code != 124 && code != 3), "{finished}");
    sandbox.assert_nothing_left();
}

#[test]
fn the_window_size_goes_inside_at_the_start_and_when_it_changes() {
    let sandbox = Sandbox::new();
    let mut terminal = shell(&sandbox).on_terminal();
    terminal.wait_for_raw();
    terminal.type_in("echo size=$(stty size)\r");
    terminal.wait_for("size=40 120");
    terminal.resize(33, 99);
    terminal.type_in("sleep 0.5; echo size=$(stty size)\r");
    terminal.wait_for("size=33 99");
    terminal.type_in("exit 0\r");
    terminal.finish().expect_code(0);
}

#[test]
fn a_guest_that_dies_under_a_shell_gives_the_terminal_back() {
    let sandbox = Sandbox::new();
    let mut terminal = shell(&sandbox).on_terminal();
    terminal.wait_for_raw();
    terminal.type_in("echo re''ady\r");
    terminal.wait_for("ready");
    terminal.type_in("echo c > /proc/sysrq-trigger\r");
    terminal.finish().expect_code(3);
    sandbox.assert_nothing_left();
}

#[test]
fn a_signal_ends_a_shell_and_gives_the_terminal_back() {
    for signal in [Signal::TERM, Signal::HUP, Signal::INT] {
        let sandbox = Sandbox::new();
        let mut terminal = shell(&sandbox).on_terminal();
        terminal.wait_for_raw();
        terminal.signal(signal);
        terminal.finish().expect_code(130);
        sandbox.assert_nothing_left();
    }
}

#[test]
fn a_shell_without_a_terminal_reads_its_commands_from_a_pipe() {
    let sandbox = Sandbox::new();
    let finished = shell(&sandbox).stdin("echo piped=$((6 * 7))\nexit 5\n").finish();
    // Either it serves a pipe as well, or it says at once that it needs a terminal.
    finished.expect_code_in(&[5, 2]);
    sandbox.assert_nothing_left();
}
