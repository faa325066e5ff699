//! Reads what `check` of xfstests prints.
//!
//! A test's line begins when it starts, `generic/001 3s ... ` with the time that it took last, and gets its end with its
//! result: ` 4s` when it passed; `[not run] reason`; `[expunged]`; anything else says what failed, and the lines that
//! follow up to the next test's explain it (a diff, hints). With `-T` there are times of day in it, and the reason for not running
//! is on the next line; with `-L` a summary of a failed test's runs follows the last of them. After the last test come lists:
//! `Ran:`, `Not run:`, `Failures:`.

use wire::{ProcessEnd, TestStatus};

use super::parser::{TestEvent, describe};

/// More explanation than this is not kept, bytes.
const MAX_EXPLANATION: usize = 64 << 10;
/// How a line begins that comes after the last test.
const AFTER_TESTS: &[&str] =
    &["Ran: ", "Not run: ", "Failures: ", "Failed ", "Passed all ", "Interrupted!", "SECTION "];

#[derive(Debug, Default)]
pub(super) struct Xfstests {
    /// Of the section of a configuration that runs, with a colon; empty without sections.
    section: String,
    running: Option<String>,
    /// A failure whose explanation may still follow.
    held: Option<Failure>,
    /// The test that was killed: what `check` says of it comes too late.
    killed: Option<String>,
}

#[derive(Debug)]
struct Failure {
    name: String,
    message: String,
}

impl Xfstests {
    pub(super) fn line(&mut self, line: &str) -> Vec<TestEvent> {
        if let Some((test, said)) = test_line(line) {
            if said.trim_start().starts_with("aggregate results across ") {
                return self.release();
            }
            let name = format!("{}{test}", self.section);
            if self.killed.take_if(|killed| *killed == name).is_some() {
                return Vec::new();
            }
            let mut events = self.begin(&name);
            self.running = None;
            match judge(said) {
                Some((status, message)) => events.push(TestEvent::finished(name, status, message)),
                None => self.held = Some(Failure { name, message: without_last_time(said).to_owned() }),
            }
            return events;
        }
        if AFTER_TESTS.iter().any(|start| line.starts_with(start)) {
            if let Some(section) = line.strip_prefix("SECTION ") {
                self.section = format!("{}:", section.trim_start_matches([' ', '-']).trim());
            }
            return self.release();
        }
        if let Some(failure) = &mut self.held
            && failure.message.len() + line.len() < MAX_EXPLANATION
        {
            failure.message.push('\n');
            failure.message.push_str(line);
        }
        Vec::new()
    }

    pub(super) fn unfinished_line(&mut self, start: &str) -> Vec<TestEvent> {
        match test_line(start) {
            Some((test, _)) => self.begin(&format!("{}{test}", self.section)),
            None => Vec::new(),
        }
    }

    pub(super) fn abort(&mut self, reason: &str) -> Vec<TestEvent> {
        let mut events = self.release();
        if let Some(name) = self.running.take() {
            self.killed = Some(name.clone());
            events.push(TestEvent::finished(name, TestStatus::Error, reason));
        } else {
            events.push(TestEvent::finished("check", TestStatus::Error, format!("between two tests: {reason}")));
        }
        events
    }

    pub(super) fn finish(&mut self, end: ProcessEnd) -> Vec<TestEvent> {
        let mut events = self.release();
        events.extend(self.running.take().map(|name| {
            TestEvent::finished(name, TestStatus::Error, format!("check ended before the test did: {}", describe(end)))
        }));
        events
    }

    /// The test `name` runs, if that is news.
    fn begin(&mut self, name: &str) -> Vec<TestEvent> {
        if self.running.as_deref() == Some(name) || self.killed.as_deref() == Some(name) {
            return Vec::new();
        }
        let mut events = self.release();
        self.running = Some(name.to_owned());
        events.push(TestEvent::Started { name: name.to_owned() });
        events
    }

    fn release(&mut self) -> Vec<TestEvent> {
        let told = |Failure { name, message }| TestEvent::finished(name, TestStatus::Fail, message.trim_end());
        self.held.take().map(told).into_iter().collect()
    }
}

/// `GROUP/NUMBER` or `GROUP/NUMBER-NAME` at the start of a line, and what follows behind a blank.
fn test_line(line: &str) -> Option<(&str, &str)> {
    let (test, rest) = line.split_at(line.find(char::is_whitespace)?);
    let (group, id) = test.split_once('/')?;
    let is_group =
        !group.is_empty() && group.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let digits = id.bytes().take_while(u8::is_ascii_digit).count();
    let name = &id[digits..];
    let is_id = digits >= 3 && (name.is_empty() || name.starts_with('-')) && !name.contains('/');
    (is_group && is_id).then_some((test, rest))
}

/// What the end of a test's line says, `None` for a failure.
fn judge(said: &str) -> Option<(TestStatus, String)> {
    let said = &without_times_of_day(without_last_time(said));
    if let Some(reason) = said.strip_prefix("[not run]") {
        return Some((TestStatus::Skip, reason.trim().to_owned()));
    }
    match said.as_str() {
        "[expunged]" => Some((TestStatus::Skip, "expunged by check's own list".to_owned())),
        // `check -n` only lists.
        "" => Some((TestStatus::Skip, "only listed".to_owned())),
        "- no such test?" => Some((TestStatus::Error, "no such test".to_owned())),
        _ => is_seconds(said).then(|| (TestStatus::Pass, String::new())),
    }
}

/// Without the time that the test took in an earlier run: `3s ... `.
fn without_last_time(said: &str) -> &str {
    let said = said.trim();
    match said.split_once("...") {
        Some((time, rest)) if is_seconds(time.trim()) => rest.trim(),
        _ => said,
    }
}

/// Without the `[12:00:00]` of `check -T`.
fn without_times_of_day(said: &str) -> String {
    let is_time = |word: &&str| {
        let digits = word.strip_prefix('[').and_then(|word| word.strip_suffix(']'));
        digits.is_some_and(|digits| digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit() || b == b':'))
    };
    said.split(' ').filter(|word| !is_time(word)).collect::<Vec<_>>().join(" ").trim().to_owned()
}

fn is_seconds(text: &str) -> bool {
    text.strip_suffix('s').is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(parser: &mut Xfstests, text: &str) -> Vec<String> {
        shown(text.lines().flat_map(|line| parser.line(line)).collect())
    }

    fn shown(events: Vec<TestEvent>) -> Vec<String> {
        let show = |event| match event {
            TestEvent::Started { name } => format!("start {name}"),
            TestEvent::Finished { name, status, message } => format!("{status:?} {name} [{message}]"),
        };
        events.into_iter().map(show).collect()
    }

    #[test]
    fn a_time_a_reason_or_a_mark_at_the_end_of_its_line_is_a_tests_result() {
        let mut parser = Xfstests::default();
        let text = "FSTYP         -- x\n\ngeneric/001 3s ...  4s\ngeneric/002        0s\n\
                    generic/003 2s ... [not run] it needs atime\ngeneric/004       [expunged]\nxfs/999 - no such test?\n";
        assert_eq!(
            feed(&mut parser, text),
            [
                "start generic/001",
                "Pass generic/001 []",
                "start generic/002",
                "Pass generic/002 []",
                "start generic/003",
                "Skip generic/003 [it needs atime]",
                "start generic/004",
                "Skip generic/004 [expunged by check's own list]",
                "start xfs/999",
                "Error xfs/999 [no such test]",
            ]
        );
    }

    #[test]
    fn times_of_day_and_a_summary_of_several_runs_are_no_results() {
        let mut parser = Xfstests::default();
        let text = "generic/001 3s ... [12:00:00] [12:00:04] 4s\ngeneric/002 [12:00:04] [12:00:05] [not run]\n\
                    \x20   generic/002 -- it needs atime\ngeneric/003 - output mismatch\n    --- a\n\
                    generic/003 aggregate results across 2 runs: fail=1 (50.0%), pass=1 (50.0%)\n";
        assert_eq!(
            feed(&mut parser, text),
            [
                "start generic/001",
                "Pass generic/001 []",
                "start generic/002",
                "Skip generic/002 []",
                "start generic/003",
                "Fail generic/003 [- output mismatch\n    --- a]",
            ]
        );
    }

    #[test]
    fn a_failure_is_told_with_the_lines_that_explain_it() {
        let mut parser = Xfstests::default();
        let first = "generic/007 1s ... [failed, exit status 1]- output mismatch (see /r/generic/007.out.bad)\n\
                     \x20   --- a\n    +++ b\n    +generic/008 is in here\n";
        assert_eq!(feed(&mut parser, first), ["start generic/007"]);
        let expected = "Fail generic/007 [[failed, exit status 1]- output mismatch (see /r/generic/007.out.bad)\n\
                        \x20   --- a\n    +++ b\n    +generic/008 is in here]";
        assert_eq!(feed(&mut parser, "Ran: generic/007\n"), [expected]);
        assert!(parser.finish(ProcessEnd::Exited(1)).is_empty());
    }

    #[test]
    fn a_failure_is_told_before_the_next_test_begins_and_at_the_end() {
        let mut parser = Xfstests::default();
        assert_eq!(feed(&mut parser, "generic/001  - output mismatch\n"), ["start generic/001"]);
        assert_eq!(
            shown(parser.unfinished_line("generic/002 ")),
            ["Fail generic/001 [- output mismatch]", "start generic/002"]
        );
        assert_eq!(feed(&mut parser, "generic/002 _check_dmesg: something found\n"), [""; 0]);
        assert_eq!(shown(parser.finish(ProcessEnd::Exited(1))), ["Fail generic/002 [_check_dmesg: something found]"]);
    }

    #[test]
    fn a_test_begins_with_the_start_of_its_line_once_its_name_is_whole() {
        let mut parser = Xfstests::default();
        for start in ["gen", "generic/0", "generic/001"] {
            assert!(parser.unfinished_line(start).is_empty(), "{start}");
        }
        assert_eq!(shown(parser.unfinished_line("generic/001 ")), ["start generic/001"]);
        assert!(parser.unfinished_line("generic/001 3s ... ").is_empty());
        assert_eq!(feed(&mut parser, "generic/001 3s ...  2s\n"), ["Pass generic/001 []"]);
        // Again, as `check -i 2` does it.
        assert_eq!(feed(&mut parser, "generic/001 2s ...  2s\n"), ["start generic/001", "Pass generic/001 []"]);
    }

    #[test]
    fn a_killed_test_is_an_error_and_what_check_says_of_it_later_is_not_a_second_result() {
        let mut parser = Xfstests::default();
        parser.unfinished_line("generic/001 ");
        assert_eq!(shown(parser.abort("too long")), ["Error generic/001 [too long]"]);
        assert!(parser.unfinished_line("generic/001 [failed, exit status 137]").is_empty());
        assert!(feed(&mut parser, "generic/001 [failed, exit status 137]- output mismatch\n    diff\n").is_empty());
        assert_eq!(feed(&mut parser, "generic/002  1s\n"), ["start generic/002", "Pass generic/002 []"]);
    }

    #[test]
    fn a_test_that_check_did_not_live_to_see_the_end_of_is_an_error() {
        let mut parser = Xfstests::default();
        parser.unfinished_line("generic/001 ");
        assert_eq!(
            shown(parser.finish(ProcessEnd::Signaled(9))),
            ["Error generic/001 [check ended before the test did: killed by signal 9]"]
        );
    }

    #[test]
    fn sections_of_a_configuration_keep_equal_names_apart() {
        let mut parser = Xfstests::default();
        let told =
            feed(&mut parser, "SECTION       -- fast\ngeneric/001  1s\nSECTION       -- slow\ngeneric/001  2s\n");
        assert_eq!(
            told,
            [
                "start fast:generic/001",
                "Pass fast:generic/001 []",
                "start slow:generic/001",
                "Pass slow:generic/001 []"
            ]
        );
    }

    #[test]
    fn other_lines_are_no_tests() {
        for line in ["a/b c", "generic/01 x", "GENERIC/001 x", "/001 x", "generic/001x y", "    generic/001 1s", "x"] {
            assert_eq!(test_line(line), None, "{line}");
        }
        assert_eq!(test_line("overlay/012-some-name  1s"), Some(("overlay/012-some-name", "  1s")));
    }
}
