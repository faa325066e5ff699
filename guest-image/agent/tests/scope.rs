//! The agent under the names of systemd's programs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

fn systemd(program: &str, arguments: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(program);
    symlink(env!("CARGO_BIN_EXE_agent"), &path).unwrap();
    Command::new(path).args(arguments).output().unwrap()
}

fn runs(pid: &str) -> bool {
    // A zombie is nobody's any more.
    fs::read_to_string(Path::new("/proc").join(pid).join("stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn what_a_command_leaves_running_is_killed_and_its_exit_code_is_passed_on() {
    // One in a session of its own, one below a shell that is gone, one that ignores what can be ignored.
    let script = r#"
        setsid sleep 1000 >/dev/null 2>&1 & echo $!
        sh -c 'sleep 1001 >/dev/null 2>&1 & echo $!'
        sh -c 'trap "" TERM INT HUP PIPE; exec sleep 1002' >/dev/null 2>&1 & echo $!
        exit 77
    "#;
    let output = systemd("systemd-run", &["--quiet", "--unit", "test", "--scope", "sh", "-c", script]);
    assert_eq!(output.status.code(), Some(77), "{output:?}");
    let left = String::from_utf8(output.stdout).unwrap();
    let left: Vec<_> = left.lines().collect();
    assert_eq!(left.len(), 3);
    assert!(!left.iter().any(|pid| runs(pid)), "{left:?}");
}

#[test]
fn a_signal_that_ends_the_command_is_told_as_a_shell_tells_it() {
    let output = systemd("systemd-run", &["--scope", "sh", "-c", "kill -KILL $$"]);
    assert_eq!(output.status.code(), Some(128 + 9), "{output:?}");
}

#[test]
fn what_is_not_there_and_what_is_not_known_is_an_error() {
    let output = systemd("systemd-run", &["--scope", "/nowhere/at-all"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere/at-all"), "{output:?}");
    for (program, word) in [("systemd-run", "--user"), ("systemctl", "start")] {
        let output = systemd(program, &[word, "x"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("there is no systemd"), "{output:?}");
    }
    assert_eq!(systemd("systemctl", &["stop", "x"]).status.code(), Some(0));
}
