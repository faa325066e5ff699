//! The QEMU process: it dies with us, whatever becomes of us, and leaves nothing.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Resource, Signal, getpid, getppid, getrlimit, set_parent_process_death_signal, setrlimit};

use crate::session::console_log::begins_report;

use super::scratch_disk::keep_across_exec;

/// How much of the end of a log is shown.
const TAIL_BYTES: u64 = 256 << 10;
const TAIL_LINES: usize = 20;
/// How much is shown of a report that a kernel gave of its own end: it has its cause in its first lines.
const REPORT_LINES: usize = 60;

/// A running QEMU. Dropping it kills it.
#[derive(Debug)]
pub(super) struct QemuProcess {
    child: Child,
    console: File,
    messages: File,
}

impl QemuProcess {
    /// Starts `program`; `inherited` descriptors keep their numbers in it. `console` is what was passed to it as its
    /// console, for [`Self::last_words`]; `directory` takes an unnamed file with its messages.
    pub(super) fn start(
        program: &Path,
        args: Vec<OsString>,
        inherited: Vec<RawFd>,
        console: File,
        directory: &Path,
    ) -> io::Result<Self> {
        let messages = tempfile::tempfile_in(directory)?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(messages.try_clone()?).stderr(messages.try_clone()?);
        // Not in the terminal's foreground group: Ctrl-C is for the command inside, or for us.
        command.process_group(0);
        let parent = getpid();
        // SAFETY: the closure makes system calls only, all async-signal-safe, and allocates nothing. The descriptors in
        // `inherited` are open: our caller holds them until this function has returned.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                if getppid() != Some(parent) {
                    // We were orphaned before the line above took effect.
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                // Each file that the emulated host has open is one of QEMU's.
                let mut files = getrlimit(Resource::Nofile);
                files.current = files.maximum;
                setrlimit(Resource::Nofile, files)?;
                inherited.iter().try_for_each(|&fd| keep_across_exec(fd))
            });
        }
        Ok(Self { child: command.spawn()?, console, messages })
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// What was printed last: by the emulated host on its console, from where its kernel began to tell of its end if it
    /// did, and by QEMU itself.
    pub(super) fn last_words(&self) -> String {
        let lines = end_of(&self.console);
        let console = match lines.iter().position(|line| begins_report(line)) {
            Some(start) => abridge(&lines[start..]),
            None => tail(lines),
        };
        let messages = end_of(&self.messages).into_iter().filter(|line| is_worth_showing(line)).collect();
        let messages = tail(messages);
        let section = |title: &str, lines: &[String]| match lines {
            [] => String::new(),
            lines => format!("\n{title}:\n  {}", lines.join("\n  ")),
        };
        let text = section("last lines of its console", &console) + &section("QEMU said", &messages);
        if text.is_empty() { "\nneither its console nor QEMU said anything".to_owned() } else { text }
    }
}

impl Drop for QemuProcess {
    fn drop(&mut self) {
        // It can fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// TCG tells of every feature of the CPU model that it lacks, once for each CPU.
fn is_worth_showing(message: &str) -> bool {
    !message.contains("TCG doesn't support requested feature")
}

/// The last lines.
fn tail(mut lines: Vec<String>) -> Vec<String> {
    lines.split_off(lines.len().saturating_sub(TAIL_LINES))
}

/// The first lines of a report and its last ones.
fn abridge(report: &[String]) -> Vec<String> {
    let Some(left_out) = report.len().checked_sub(REPORT_LINES + TAIL_LINES).filter(|&n| n > 0) else {
        return report.to_vec();
    };
    let gap = format!("[{left_out} lines left out]");
    let (first, last) = (&report[..REPORT_LINES], &report[report.len() - TAIL_LINES..]);
    first.iter().cloned().chain([gap]).chain(last.iter().cloned()).collect()
}

/// The end of `file` as lines: control characters are left out, so that they cannot play with the terminal.
fn end_of(file: &File) -> Vec<String> {
    let length = file.metadata().map_or(0, |m| m.len());
    let start = length.saturating_sub(TAIL_BYTES);
    let mut bytes = vec![0; usize::try_from(length - start).unwrap_or(0)];
    // A file that grows or cannot be read shows less: it is only an illustration.
    if file.read_exact_at(&mut bytes, start).is_err() {
        return Vec::new();
    }
    let text: String = String::from_utf8_lossy(&bytes).chars().filter(|c| !c.is_control() || *c == '\n').collect();
    text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    fn file_with(text: &str) -> File {
        let mut file = tempfile::tempfile().expect("tempfile");
        file.write_all(text.as_bytes()).expect("written");
        file
    }

    fn shell(script: &str) -> QemuProcess {
        let args = vec!["-c".into(), script.into()];
        let console = file_with("booting\n\u{1b}[31mpanic\r\n\n");
        QemuProcess::start(Path::new("/bin/sh"), args, Vec::new(), console, &std::env::temp_dir()).expect("started")
    }

    fn wait(process: &mut QemuProcess) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = process.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "the shell did not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn last_words_are_those_of_the_console_and_of_qemu_without_its_chatter() {
        let mut process = shell("echo \"qemu: TCG doesn't support requested feature: x\" >&2; echo real trouble >&2");
        wait(&mut process);
        assert_eq!(
            process.last_words(),
            "\nlast lines of its console:\n  booting\n  [31mpanic\nQEMU said:\n  real trouble"
        );
    }

    #[test]
    fn the_tail_of_a_long_log_is_its_last_lines() {
        let text: String = (0..10_000).map(|i| format!("line {i}\n")).collect();
        let lines = tail(end_of(&file_with(&text)));
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines.last().map(String::as_str), Some("line 9999"));
    }

    #[test]
    fn a_report_of_a_crash_is_shown_from_its_first_line() {
        let before = "[    1.0] all is well\n".repeat(50);
        let stack: String = (0..200).map(|i| format!("[    2.0]  frame {i}\n")).collect();
        let console =
            file_with(&format!("{before}[    2.0] BUG: stack guard page was hit\n{stack}[    2.1] the end\n"));
        let report = end_of(&console);
        let start = report.iter().position(|line| begins_report(line)).expect("there is a report");
        let shown = abridge(&report[start..]);
        assert_eq!(shown.len(), REPORT_LINES + 1 + TAIL_LINES);
        assert!(shown[0].ends_with("BUG: stack guard page was hit") && shown[REPORT_LINES - 1].ends_with("frame 58"));
        assert_eq!(shown[REPORT_LINES], "[122 lines left out]");
        assert!(shown.last().expect("lines").ends_with("the end"));
    }

    #[test]
    fn a_process_that_would_not_end_is_gone_when_dropped() {
        let process = shell("trap '' TERM INT HUP; while :; do sleep 0.1; done");
        let pid = process.child.id();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn it_is_not_in_our_process_group_and_has_all_the_open_files_it_may_have() {
        let mut process =
            shell("test \"$(ulimit -Sn)\" = \"$(ulimit -Hn)\" && test \"$(cut -d' ' -f5 /proc/$$/stat)\" = $$");
        assert_eq!(wait(&mut process).code(), Some(0));
    }
}
