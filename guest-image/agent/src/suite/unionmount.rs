//! Reads what `run` of unionmount-testsuite prints.
//!
//! For each script of tests a line `*** ./run OPTIONS SCRIPT` between two of `***`, then for each of its tests, as it
//! begins, `TEST SCRIPT.py:LINE: what it does`. A test that comes to its end is followed by the next one; the first that
//! fails ends the whole. With several layers (`--ov=10`) each script runs twice, with many layers and with two, so the
//! first option is a part of a test's name.

use wire::{ProcessEnd, TestStatus};

use super::parser::{TestEvent, describe};

/// More of what a failing test said than this is not kept, bytes.
const MAX_EXPLANATION: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct Unionmount {
    /// The first option of the script that runs.
    layers: String,
    running: Option<String>,
    /// What was printed since the running test began.
    said: String,
    aborted: bool,
}

impl Unionmount {
    pub(super) fn line(&mut self, line: &str) -> Vec<TestEvent> {
        if let Some(layers) = script_header(line) {
            let events = self.passed();
            self.layers = layers.to_owned();
            return events;
        }
        if let Some(test) = test_line(line) {
            let mut events = self.passed();
            let name = format!("{} {test}", self.layers).trim_start().to_owned();
            self.running = Some(name.clone());
            events.push(TestEvent::Started { name });
            return events;
        }
        if self.running.is_some() && line != "***" && self.said.len() + line.len() < MAX_EXPLANATION {
            self.said.push_str(line);
            self.said.push('\n');
        }
        Vec::new()
    }

    pub(super) fn abort(&mut self, reason: &str) -> Vec<TestEvent> {
        if std::mem::replace(&mut self.aborted, true) {
            return Vec::new();
        }
        let name = self.running.take().unwrap_or_else(|| "before the first test".to_owned());
        vec![TestEvent::finished(name, TestStatus::Error, reason)]
    }

    pub(super) fn finish(&mut self, end: ProcessEnd) -> Vec<TestEvent> {
        let status = match end {
            ProcessEnd::Exited(0) => return self.passed(),
            ProcessEnd::Exited(_) => TestStatus::Fail,
            ProcessEnd::Signaled(_) => TestStatus::Error,
        };
        let Some(name) = self.running.take() else { return Vec::new() };
        let said = self.said.trim_end();
        let message = if said.is_empty() { describe(end) } else { format!("{said}\n{}", describe(end)) };
        vec![TestEvent::finished(name, status, message)]
    }

    fn passed(&mut self) -> Vec<TestEvent> {
        self.said.clear();
        self.running.take().map(|name| TestEvent::finished(name, TestStatus::Pass, "")).into_iter().collect()
    }
}

/// Of `*** ./run --ov=10 --meta SCRIPT` the first option.
fn script_header(line: &str) -> Option<&str> {
    let mut words = line.strip_prefix("*** ")?.split_whitespace();
    words.next()?;
    words.next().filter(|option| option.starts_with("--"))
}

/// Of `TEST SCRIPT.py:LINE: what it does` what names the test: `SCRIPT:LINE what it does`.
fn test_line(line: &str) -> Option<String> {
    let (script, rest) = line.strip_prefix("TEST ")?.split_once(".py:")?;
    let (number, what) = rest.split_once(": ")?;
    let is_number = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| format!("{script}:{number} {}", what.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(parser: &mut Unionmount, text: &str) -> Vec<String> {
        shown(text.lines().flat_map(|line| parser.line(line)).collect())
    }

    fn shown(events: Vec<TestEvent>) -> Vec<String> {
        let show = |event| match event {
            TestEvent::Started { name } => format!("start {name}"),
            TestEvent::Finished { name, status, message } => format!("{status:?} {name} [{message}]"),
        };
        events.into_iter().map(show).collect()
    }

    const TWO: &str = "***\n*** ./run --ov=10 --samefs --meta look\n***\nTEST look.py:12: Look at it\n ./run --look x\n\
                       TEST look.py:20: Look: again\n";

    #[test]
    fn a_test_passes_when_the_next_one_begins_or_the_suite_ends_well() {
        let mut parser = Unionmount::default();
        assert_eq!(
            feed(&mut parser, TWO),
            [
                "start --ov=10 look:12 Look at it",
                "Pass --ov=10 look:12 Look at it []",
                "start --ov=10 look:20 Look: again"
            ]
        );
        assert_eq!(
            feed(&mut parser, "***\n*** ./run --ov --meta next\n***\n"),
            ["Pass --ov=10 look:20 Look: again []"]
        );
        assert_eq!(feed(&mut parser, "TEST next.py:1: One\n"), ["start --ov next:1 One"]);
        assert_eq!(shown(parser.finish(ProcessEnd::Exited(0))), ["Pass --ov next:1 One []"]);
        assert!(parser.finish(ProcessEnd::Exited(0)).is_empty());
    }

    #[test]
    fn the_test_that_ran_when_the_suite_ended_badly_failed_and_says_what_was_printed() {
        let mut parser = Unionmount::default();
        feed(&mut parser, TWO);
        assert!(feed(&mut parser, "it is not there\n").is_empty());
        let end = shown(parser.finish(ProcessEnd::Exited(1)));
        assert_eq!(end, ["Fail --ov=10 look:20 Look: again [it is not there\nexit code 1]"]);
        let mut parser = Unionmount::default();
        feed(&mut parser, TWO);
        assert_eq!(
            shown(parser.finish(ProcessEnd::Signaled(9))),
            ["Error --ov=10 look:20 Look: again [killed by signal 9]"]
        );
    }

    #[test]
    fn a_killed_test_is_an_error_once() {
        let mut parser = Unionmount::default();
        feed(&mut parser, TWO);
        assert_eq!(shown(parser.abort("too long")), ["Error --ov=10 look:20 Look: again [too long]"]);
        assert!(parser.abort("again").is_empty() && parser.finish(ProcessEnd::Signaled(9)).is_empty());
    }

    #[test]
    fn lines_that_only_look_like_tests_are_none() {
        for line in ["TEST", "TEST x", "TEST a.py:: b", "TEST a.py:1", "TEST a.py:x: y", "*** ", "*** run", "*** run x"]
        {
            assert!(Unionmount::default().line(line).is_empty(), "{line}");
        }
    }
}
