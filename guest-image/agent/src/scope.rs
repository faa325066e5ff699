//! What xfstests wants of systemd: a scope, in which each test runs and in which nothing of it is left afterwards.
//!
//! `check` runs a test by `systemd-run --scope` and ends the scope by `systemctl stop` if that works (`_run_seq`), since a
//! process that a test left running keeps file systems busy for all tests behind it. There is no systemd in a guest; the agent
//! answers to these names instead. Its scope is a subreaper (`PR_SET_CHILD_SUBREAPER`, prctl(2)): whatever the command starts
//! stays its descendant, and is killed when the command has ended.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, wait};

use crate::process_tree;

/// Where the names are; a suite that wants them has it in its PATH.
pub const DIRECTORY: &str = "/run/vmm/bin";
/// The program of PID 1, though its file is gone by then.
const AGENT: &str = "/proc/1/exe";
/// What a killed process may take to end: one in the middle of a system call may never.
const PATIENCE: Duration = Duration::from_secs(10);

/// The programs that [`Program::run`] stands in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `systemd-run [--quiet] [--unit NAME] --scope COMMAND [ARGUMENT...]`
    Run,
    /// `systemctl stop|reset-failed UNIT`: a scope has ended with its command, so that there is nothing to do.
    Control,
    /// `systemd-escape TEXT...`: as names of units.
    Escape,
}

const PROGRAMS: [(&str, Program); 3] =
    [("systemd-run", Program::Run), ("systemctl", Program::Control), ("systemd-escape", Program::Escape)];

/// Makes the names. Returns a complaint if that fails: suites run without them.
#[must_use]
pub fn link_programs() -> Option<String> {
    let made = std::fs::create_dir_all(DIRECTORY)
        .and_then(|()| PROGRAMS.iter().try_for_each(|(name, _)| symlink(AGENT, Path::new(DIRECTORY).join(name))));
    made.err().map(|error| format!("failed to make links in {DIRECTORY}: {error}"))
}

impl Program {
    /// The program that a process was started as, by its first argument.
    #[must_use]
    pub fn of(argument_0: &OsStr) -> Option<Self> {
        let name = Path::new(argument_0).file_name()?;
        PROGRAMS.iter().find_map(|(known, program)| (name == *known).then_some(*program))
    }

    /// Does what the program does with `arguments`, the first argument left out. Returns its exit code.
    #[must_use]
    pub fn run(self, arguments: &[OsString]) -> i32 {
        match self {
            Program::Run => match command_of(arguments) {
                Some(command) => run_in_scope(command).unwrap_or_else(|error| {
                    eprintln!("systemd-run: {}: {error}", Path::new(&command[0]).display());
                    1
                }),
                None => refuse("systemd-run [--quiet] [--unit NAME] --scope COMMAND [ARGUMENT...]"),
            },
            Program::Control => match arguments.first().and_then(|word| word.to_str()) {
                Some("stop" | "reset-failed") => 0,
                _ => refuse("systemctl stop|reset-failed UNIT"),
            },
            Program::Escape => {
                let words: Vec<_> = arguments.iter().map(|word| escaped(&word.to_string_lossy())).collect();
                println!("{}", words.join(" "));
                0
            }
        }
    }
}

fn refuse(usage: &str) -> i32 {
    eprintln!("there is no systemd in this guest; its agent knows {usage}");
    1
}

/// What stands behind the options, if those are the known ones and `--scope` is among them.
fn command_of(arguments: &[OsString]) -> Option<&[OsString]> {
    let mut rest = arguments;
    let mut scope = false;
    loop {
        match rest.first()?.to_str() {
            Some("--quiet") => rest = rest.get(1..)?,
            Some("--unit") => rest = rest.get(2..)?,
            Some("--scope") => (rest, scope) = (rest.get(1..)?, true),
            Some(option) if option.starts_with('-') => return None,
            _ => return scope.then_some(rest),
        }
    }
}

/// Text as systemd.unit(5) has it in names: `/` is `-`, and what is not plain is `\xHH`.
fn escaped(text: &str) -> String {
    let plain = |(place, byte): (usize, u8)| match byte {
        b'/' => "-".to_owned(),
        b'.' if place > 0 => ".".to_owned(),
        b':' | b'_' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("\\x{byte:02x}"),
    };
    text.bytes().enumerate().map(plain).collect()
}

/// Runs a command, kills what it leaves, and returns its exit code, as a shell has it: 128 and the number of the signal that ended it.
fn run_in_scope(command: &[OsString]) -> io::Result<i32> {
    let [program, arguments @ ..] = command else { return Err(io::ErrorKind::InvalidInput.into()) };
    set_child_subreaper(Some(getpid()))?;
    let child = Command::new(program).args(arguments).spawn()?;
    let status = wait_for(&child)?;
    let deadline = Instant::now() + PATIENCE;
    while process_tree::has_children() && Instant::now() < deadline {
        process_tree::kill_descendants(getpid());
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        thread::sleep(Duration::from_millis(1));
    }
    if process_tree::has_children() {
        eprintln!("systemd-run: processes are left that have not ended {PATIENCE:?} after they were killed");
    }
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
}

/// Reaps children, those that came by losing their parents included, until the command has ended.
fn wait_for(child: &Child) -> io::Result<ExitStatus> {
    let command = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if Some(pid) == command => return Ok(ExitStatus::from_raw(status.as_raw())),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn a_command_stands_behind_known_options_one_of_which_asks_for_a_scope() {
        let line = words("--quiet --unit fs-generic-001.scope --scope bash -c --quiet");
        assert_eq!(command_of(&line), Some(&words("bash -c --quiet")[..]));
        for line in ["--quiet bash", "--scope", "--scope --user bash", "--unit", ""] {
            assert_eq!(command_of(&words(line)), None, "{line}");
        }
    }

    #[test]
    fn names_are_told_from_paths_and_from_others() {
        assert_eq!(Program::of(OsStr::new("/run/vmm/bin/systemd-run")), Some(Program::Run));
        assert_eq!(Program::of(OsStr::new("systemctl")), Some(Program::Control));
        assert_eq!(Program::of(OsStr::new("init")), None);
    }

    #[test]
    fn text_is_escaped_as_systemd_does_it() {
        // systemd-escape fsgeneric/001 'a b' .hidden x.y
        assert_eq!(escaped("fsgeneric/001"), "fsgeneric-001");
        assert_eq!(escaped("a b"), "a\\x20b");
        assert_eq!(escaped(".hidden"), "\\x2ehidden");
        assert_eq!(escaped("x.y"), "x.y");
    }
}
