//! Finding and killing the processes that a command left or may have left.
//!
//! A process that called `setsid` is in no group we know. When the agent is PID 1 everything in the machine is its to
//! kill, so nothing can hide. When it is an ordinary process (a test runs the engine in itself) it keeps to the
//! command's session and descendants.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use wire::ProcessEnd;

/// How often the process table is read again because something new was found in it: a fork bomb ends by being killed
/// with everything else, not here.
const PASSES: usize = 20;

/// Processes whose stacks are shown: a test may have started any number.
const MAX_STACKS: usize = 100;
/// Characters of a process's arguments that are shown.
const MAX_ARGUMENTS: usize = 200;

/// Whether this process is PID 1 of its PID namespace: every process is its own to reap and to kill.
#[must_use]
pub fn owns_all_processes() -> bool {
    std::process::id() == 1
}

/// Sends signal `number` to the process group `group`; a number that is no signal is ignored, as a group that is gone is.
pub fn signal_group(group: Pid, number: i32) {
    // SAFETY: kill takes plain numbers; a bad signal number is EINVAL, an empty group ESRCH: nothing to do for either.
    unsafe { libc::kill(-group.as_raw_nonzero().get(), number) };
}

/// Kills all that is left of a command whose leader has ended but is not reaped yet (so that its ids are still its own).
pub fn kill_rest_of(leader: Pid) {
    let _ = kill_process_group(leader, Signal::KILL);
    if owns_all_processes() {
        kill_everything();
    } else {
        kill_found(|process| process.session == leader.as_raw_nonzero().get() && process.pid != process.session);
    }
}

/// Kills every process but this one. Only PID 1 may.
pub fn kill_everything() {
    if owns_all_processes() {
        // SAFETY: kill takes plain numbers. -1 is every process except PID 1 and the caller (kill(2)).
        unsafe { libc::kill(-1, libc::SIGKILL) };
    }
}

/// Kills the command's whole tree, its leader too.
pub fn kill_all_of(leader: Pid) {
    // Stopped, or it would see its children die and do something about it.
    let _ = kill_process(leader, Signal::STOP);
    kill_descendants(leader);
    let _ = kill_process_group(leader, Signal::KILL);
}

/// Kills all that the command has started, but not its leader: a harness lives on when its running test is killed.
pub fn kill_below(leader: Pid) {
    // Stopped, or what it starts next would be killed with what ran.
    let _ = kill_process(leader, Signal::STOP);
    kill_descendants(leader);
    let _ = kill_process(leader, Signal::CONT);
}

/// Kills all that `leader` has started, but not itself.
pub fn kill_descendants(leader: Pid) {
    kill_found(is_below(leader));
}

/// Whether a process was started by the command, directly or not.
fn is_below(leader: Pid) -> impl FnMut(&ProcessEntry) -> bool {
    let leader = leader.as_raw_nonzero().get();
    let all = owns_all_processes();
    let mut family = HashSet::from([leader]);
    move |process| {
        if all {
            // Kernel threads are PID 2 and its children.
            return process.pid > 2 && process.parent != 2 && process.pid != leader;
        }
        // A parent has a lower number than its child unless numbers wrapped; repeated passes make up for it.
        (family.contains(&process.parent) || process.session == leader) && {
            family.insert(process.pid);
            process.pid != leader
        }
    }
}

/// What the processes that the command started are at, for a person: name, state, arguments and kernel stack of each.
pub fn stacks_below(leader: Pid) -> String {
    let mut wanted = is_below(leader);
    let mut text = String::new();
    for process in process_table().into_iter().filter(|process| wanted(process)).take(MAX_STACKS) {
        let file = |name: &str| fs::read(format!("/proc/{}/{name}", process.pid)).unwrap_or_default();
        let status = String::from_utf8_lossy(&file("status")).into_owned();
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?").trim().to_owned();
        let arguments = String::from_utf8_lossy(&file("cmdline")).replace('\0', " ");
        let arguments: String = arguments.trim().chars().take(MAX_ARGUMENTS).collect();
        let stack = String::from_utf8_lossy(&file("stack")).into_owned();
        let _ = writeln!(text, "{} {} {}: {arguments}", process.pid, field("Name:"), field("State:"));
        // Only root may read it.
        stack.lines().for_each(|line| text.push_str(&format!("    {line}\n")));
    }
    text
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ProcessEntry {
    pid: i32,
    parent: i32,
    session: i32,
    zombie: bool,
}

fn kill_found(mut wanted: impl FnMut(&ProcessEntry) -> bool) {
    let mut killed = HashSet::new();
    for _ in 0..PASSES {
        let mut found_new = false;
        for process in process_table() {
            if !process.zombie && wanted(&process) && killed.insert(process.pid) {
                found_new = true;
                if let Some(pid) = Pid::from_raw(process.pid) {
                    let _ = kill_process(pid, Signal::KILL);
                }
            }
        }
        if !found_new {
            return;
        }
    }
}

fn process_table() -> Vec<ProcessEntry> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut table: Vec<ProcessEntry> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        // A process may end between being listed and being read.
        .filter_map(|pid| parse_stat(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?))
        .collect();
    table.sort_unstable_by_key(|process| process.pid);
    table
}

/// `/proc/PID/stat`: `pid (name) state ppid pgrp session …`, where the name may hold anything, also `)` (proc(5)).
fn parse_stat(pid: i32, stat: &[u8]) -> Option<ProcessEntry> {
    let after_name = stat.iter().rposition(|&b| b == b')')? + 1;
    let fields = std::str::from_utf8(stat.get(after_name..)?).ok()?;
    let mut fields = fields.split_ascii_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(ProcessEntry { pid, parent, session, zombie })
}

/// A child that ended and waits to be reaped, any one; it stays unreaped.
#[must_use]
pub fn ended_child() -> Option<Pid> {
    // SAFETY: siginfo_t is plain data, for which all zeroes is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` outlives the call.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) };
    // SAFETY: waitid filled in the child variant, or left the zeroes, which read as pid 0: no child.
    (result == 0).then(|| Pid::from_raw(unsafe { info.si_pid() })).flatten()
}

/// Whether there is a child that lives or waits to be reaped.
#[must_use]
pub fn has_children() -> bool {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: siginfo_t is plain data, for which all zeroes is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` outlives the call. The only error is ECHILD.
    unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options) == 0 }
}

/// Reaps `child` if it has ended.
///
/// # Errors
/// `ECHILD` when it is no child of ours (any more).
pub fn reap(child: Pid) -> Result<Option<ProcessEnd>, Errno> {
    let Some((_, status)) = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::NOHANG)? else {
        return Ok(None);
    };
    Ok(match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(ProcessEnd::Exited(code)),
        (None, Some(signal)) => Some(ProcessEnd::Signaled(signal)),
        (None, None) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_brackets_and_spaces_does_not_confuse_the_parser() {
        let entry = parse_stat(7, b"7 (a) Z 1 (b) c) S 3 7 5 0 -1").unwrap();
        assert_eq!(entry, ProcessEntry { pid: 7, parent: 3, session: 5, zombie: false });
        assert!(parse_stat(7, b"7 (a) Z 3 7 5").unwrap().zombie);
    }

    #[test]
    fn a_cut_stat_line_is_no_process() {
        for text in
            [&b""[..], b"7", b"7 (a", b"7 (a)", b"7 (a) S", b"7 (a) S 1 2", b"7 (a) S x 2 3", b"7 (a) \xff 1 2 3"]
        {
            assert_eq!(parse_stat(7, text), None, "{text:?}");
        }
    }

    #[test]
    fn this_process_is_in_its_own_table() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(process_table().iter().any(|process| process.pid == own));
    }
}
