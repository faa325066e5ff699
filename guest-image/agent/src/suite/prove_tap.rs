//! Reads what `prove -v` prints: for each file a header line, the file's TAP as it is, and how the file came out.
//!
//! `prove` holds a file's output back until the file ends unless it writes to a terminal or is given
//! `--formatter TAP::Formatter::Console`; results as they happen need the latter.
//!
//! A TAP line gives the result `directory/file.t:number`. What concerns a file as a whole (skipped, broken plan, ended
//! badly) is a result under the file's own name.

use wire::{ProcessEnd, TestStatus};

use super::parser::{TestEvent, describe};

/// More diagnostics than this are not kept for one result.
const MAX_DIAGNOSTICS: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct ProveTap {
    file: Option<File>,
    /// A failure whose diagnostics may still follow.
    held: Option<Held>,
    any_file: bool,
    bailed_out: bool,
    aborted: bool,
    /// `prove`'s own last line was seen.
    complete: bool,
}

#[derive(Debug)]
struct Held {
    name: String,
    status: TestStatus,
    message: String,
}

/// The file whose output is being read.
#[derive(Debug, Default)]
struct File {
    name: String,
    /// `1..N`; may come first or last.
    plan: Option<u64>,
    /// Reason of a plan that skips the whole file.
    skip_reason: Option<String>,
    /// Highest number that has a result.
    last: u64,
    /// Results so far.
    count: u64,
    /// Results of this file carry numbers: then a bare `ok` is `prove`'s word on the file.
    numbered: bool,
    /// `Dubious, …`: the file's process ended badly.
    dubious: Option<String>,
    bad_end: bool,
    /// Its running test was killed and reported: what the file still says is a consequence.
    aborted: bool,
    closed: bool,
}

impl ProveTap {
    pub(super) fn line(&mut self, line: &str) -> Vec<TestEvent> {
        if let (Some(held), Some(diagnostic)) = (&mut self.held, line.strip_prefix('#')) {
            if held.message.len() + diagnostic.len() < MAX_DIAGNOSTICS {
                held.message.push('\n');
                held.message.push_str(diagnostic.trim());
            }
            return Vec::new();
        }
        let mut events = self.release();
        if let Some((name, verdict)) = header(line) {
            self.close_file(&mut events);
            self.any_file = true;
            self.file = Some(File { name: short_name(name), ..File::default() });
            if !verdict.is_empty() {
                self.file_verdict(verdict, &mut events);
            }
        } else if let Some(reason) = bail_out(line) {
            self.bail_out(reason, &mut events);
        } else if line.starts_with("Result: ")
            || line == "Test Summary Report"
            || line.starts_with("All tests successful")
        {
            self.close_file(&mut events);
            self.complete = true;
        } else if let Some((count, directive)) = plan(line) {
            if let Some(file) = &mut self.file {
                file.plan.get_or_insert(count);
                if count == 0 {
                    file.skip_reason = Some(directive.unwrap_or_default());
                }
                file.start_next(&mut events);
            }
        } else if !self.file_verdict(line, &mut events)
            && let Some(result) = TapResult::parse(line)
        {
            self.result(result, &mut events);
        }
        events
    }

    pub(super) fn is_holding_back(&self) -> bool {
        self.held.is_some()
    }

    pub(super) fn release(&mut self) -> Vec<TestEvent> {
        let Some(Held { name, status, message }) = self.held.take() else { return Vec::new() };
        let mut events = vec![TestEvent::finished(name, status, message.trim())];
        if let Some(file) = &self.file {
            file.start_next(&mut events);
        }
        events
    }

    pub(super) fn abort(&mut self, reason: &str) -> Vec<TestEvent> {
        let mut events = self.release();
        let (name, reported) = match self.file.as_mut().filter(|file| !file.closed) {
            Some(file) => (file.running(), std::mem::replace(&mut file.aborted, true)),
            None => ("prove".to_owned(), self.aborted),
        };
        if !reported {
            events.push(TestEvent::finished(name, TestStatus::Error, reason));
        }
        self.aborted = true;
        events
    }

    pub(super) fn finish(&mut self, end: ProcessEnd) -> Vec<TestEvent> {
        let mut events = self.release();
        self.close_file(&mut events);
        let explained = self.aborted || self.bailed_out;
        if !explained
            && (!self.complete || !self.any_file)
            && !matches!((self.any_file, end), (true, ProcessEnd::Exited(0)))
        {
            events.push(TestEvent::finished(
                "prove",
                TestStatus::Error,
                format!("prove ended early ({})", describe(end)),
            ));
        }
        events
    }

    fn result(&mut self, result: TapResult, events: &mut Vec<TestEvent>) {
        let Some(file) = self.file.as_mut().filter(|file| !file.aborted) else { return };
        file.numbered |= result.number.is_some();
        // A number that was there before would make the name ambiguous.
        let number = result.number.filter(|&number| number > file.last).unwrap_or(file.last.saturating_add(1));
        file.last = number;
        file.count += 1;
        let name = format!("{}:{number}", file.name);
        let (status, message) = result.judge();
        if status == TestStatus::Fail {
            self.held = Some(Held { name, status, message });
        } else {
            events.push(TestEvent::finished(name, status, message));
            file.start_next(events);
        }
    }

    /// What `prove` says about a file behind its TAP; `true` when the line is such.
    fn file_verdict(&mut self, line: &str, events: &mut Vec<TestEvent>) -> bool {
        let Some(file) = self.file.as_mut().filter(|file| !file.closed) else { return false };
        if line.starts_with("Dubious, ") {
            file.dubious = Some(line.trim().to_owned());
        } else if line.starts_with("Failed ") && line.contains(" subtests") {
            self.close_file(events);
        } else if line.starts_with("All ") && line.contains(" subtests passed") {
            // `prove` says this instead of `ok` when the file is bad for another reason.
            file.bad_end = true;
            self.close_file(events);
        } else if line.starts_with("No subtests run") {
            self.close_file(events);
        } else if let Some(reason) = line.strip_prefix("skipped: ") {
            let reason = if reason == "(no reason given)" { "" } else { reason };
            file.skip_reason.get_or_insert_default();
            if file.skip_reason.as_deref() == Some("") {
                file.skip_reason = Some(reason.to_owned());
            }
            self.close_file(events);
        } else if line == "ok" && (file.numbered || file.plan == Some(file.count)) {
            self.close_file(events);
        } else {
            return false;
        }
        true
    }

    fn bail_out(&mut self, reason: &str, events: &mut Vec<TestEvent>) {
        if !std::mem::replace(&mut self.bailed_out, true) {
            let name = self.file.as_ref().map_or("prove", |file| &file.name);
            events.push(TestEvent::finished(name, TestStatus::Error, format!("Bail out! {reason}").trim()));
            if let Some(file) = &mut self.file {
                file.closed = true;
            }
        }
    }

    fn close_file(&mut self, events: &mut Vec<TestEvent>) {
        let Some(file) = self.file.as_mut().filter(|file| !file.closed) else { return };
        file.closed = true;
        if !file.aborted {
            events.extend(file.verdict());
        }
    }
}

impl File {
    /// The name of the test that runs now.
    fn running(&self) -> String {
        format!("{}:{}", self.name, self.last.saturating_add(1))
    }

    fn start_next(&self, events: &mut Vec<TestEvent>) {
        if !self.closed && !self.aborted && self.plan.is_some_and(|plan| self.last < plan) {
            events.push(TestEvent::Started { name: self.running() });
        }
    }

    /// What is wrong with the file beyond its single results.
    fn verdict(&self) -> Option<TestEvent> {
        let error = |message: String| {
            let message = match &self.dubious {
                Some(dubious) => format!("{message}; {dubious}"),
                None => message,
            };
            message.trim_start_matches("; ").to_owned()
        };
        let whole = |message| Some(TestEvent::finished(&self.name, TestStatus::Error, error(message)));
        match self.plan {
            _ if self.skip_reason.is_some() && self.count == 0 => {
                let reason = self.skip_reason.clone().unwrap_or_default();
                Some(TestEvent::finished(&self.name, TestStatus::Skip, reason))
            }
            None if self.count == 0 => whole("no test ran".to_owned()),
            None => whole(format!("{} tests ran, but no plan says whether these are all", self.count)),
            Some(plan) if self.count < plan => Some(TestEvent::finished(
                self.running(),
                TestStatus::Error,
                error(format!("the file ended here: {plan} tests planned, {} ran", self.count)),
            )),
            Some(plan) if self.count > plan => whole(format!("{plan} tests planned, {} ran", self.count)),
            Some(_) if self.dubious.is_some() => whole(String::new()),
            Some(_) if self.bad_end => whole("all tests passed, but the file did not end well".to_owned()),
            Some(_) => None,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct TapResult {
    ok: bool,
    number: Option<u64>,
    description: String,
    directive: Option<(Directive, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Directive {
    Skip,
    Todo,
}

impl TapResult {
    /// `ok`, `ok 12 - description # SKIP reason` (TAP 12).
    fn parse(line: &str) -> Option<Self> {
        let (ok, rest) = match line.strip_prefix("not ok") {
            Some(rest) => (false, rest),
            None => (true, line.strip_prefix("ok")?),
        };
        if !rest.is_empty() && !rest.starts_with(char::is_whitespace) {
            return None;
        }
        let rest = rest.trim();
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = rest.split_at(digits);
        let (description, directive) = match split_directive(rest) {
            Some((description, directive)) => (description, Some(directive)),
            None => (rest, None),
        };
        let description = description.trim().trim_start_matches("- ").to_owned();
        Some(Self { ok, number: number.parse().ok(), description, directive })
    }

    fn judge(self) -> (TestStatus, String) {
        match (self.ok, self.directive) {
            (_, Some((Directive::Skip, reason))) => (TestStatus::Skip, reason),
            // A known failure counts as passed, as `prove` has it; the message keeps it from being taken for one.
            (false, Some((Directive::Todo, reason))) => (TestStatus::Pass, format!("expected failure: {reason}")),
            (true, _) => (TestStatus::Pass, String::new()),
            (false, None) => (TestStatus::Fail, self.description),
        }
    }
}

fn split_directive(text: &str) -> Option<(&str, (Directive, String))> {
    text.match_indices('#').find_map(|(at, _)| {
        let (description, directive) = text.split_at(at);
        let directive = directive.trim_start_matches('#').trim();
        let (kind, length) = match directive.get(..4)?.to_ascii_lowercase().as_str() {
            "skip" => (Directive::Skip, 4),
            "todo" => (Directive::Todo, 4),
            _ => return None,
        };
        Some((
            description,
            (kind, directive[length..].trim_start_matches(|c: char| !c.is_whitespace()).trim().to_owned()),
        ))
    })
}

/// `path/file.t .. `, the dots as many as align the column, `[12:00:00] ` before it with `--timer`, and behind it nothing or
/// `prove`'s word on a file that said nothing.
fn header(line: &str) -> Option<(&str, &str)> {
    let line = match line.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
        Some((time, rest)) if time.bytes().all(|b| b.is_ascii_digit() || b == b':') => rest,
        _ => line,
    };
    let (name, rest) = line.split_once(' ')?;
    let verdict = rest.trim_start_matches('.');
    let is_header = name.ends_with(".t") && rest.starts_with("..") && (verdict.is_empty() || verdict.starts_with(' '));
    is_header.then(|| (name, verdict.trim()))
}

/// Directory and file: unique in a suite, and the same wherever the suite is installed.
fn short_name(path: &str) -> String {
    let mut parts = path.rsplit('/').filter(|part| !part.is_empty());
    let file = parts.next().unwrap_or(path);
    match parts.next() {
        Some(directory) if directory != "." => format!("{directory}/{file}"),
        _ => file.to_owned(),
    }
}

/// `1..N`, with the reason where it says `# SKIP`.
fn plan(line: &str) -> Option<(u64, Option<String>)> {
    let rest = line.strip_prefix("1..")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (count, rest) = rest.split_at(digits);
    Some((count.parse().ok()?, split_directive(rest).map(|(_, (_, reason))| reason)))
}

fn bail_out(line: &str) -> Option<&str> {
    let reason =
        line.strip_prefix("Bail out!").or_else(|| line.strip_prefix("Bailout called.  Further testing stopped:"))?;
    Some(reason.trim())
}

#[cfg(test)]
mod tests;
