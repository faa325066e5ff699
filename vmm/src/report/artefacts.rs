//! `artefacts/<suite>/<test>.out.bad`: what a failing test printed. Where a suite leaves files of its own about a failure
//! (xfstests: `.out.bad`, `.full`, `.dmesg`) they are here under their names, and what was printed is `<test>.output`.
//! `<test>.fuse.jsonl` has the last requests to the shares, for `vmm trace`; `<test>.autopsy` what was seen of its guest
//! that died or hung.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::reporter::{FinishedRun, Reporter};
use super::results_dir::file_name_from;
use crate::session::{AUTOPSY, LAST_REQUESTS, RunEvent, TimedEvent};
use crate::verdict::{Judgement, Tally};

/// The first and the last bytes of a test's output that are kept, each.
const KEPT_END: usize = 256 << 10;
/// All artefacts together, bytes and files.
const MAX_BYTES: usize = 128 << 20;
const MAX_FILES: usize = 5_000;
/// How the file ends that holds what a test printed.
const PRINTED: &str = "out.bad";
/// The same beside files that the suite left.
const PRINTED_TOO: &str = "output";
/// Longest kind of a file, bytes.
const MAX_KIND: usize = 40;
/// Longest file name before `.out.bad`, bytes (NAME_MAX is 255).
const MAX_NAME: usize = 200;
/// Stands in for a test's name when a suite fell over between tests.
const AFTER_RESULTS: &str = "after-the-last-result";

/// Keeps what was printed since the last result: suites print before they tell.
pub(super) struct Artefacts {
    dir: PathBuf,
    /// By guest.
    guests: HashMap<u32, SinceLastResult>,
    bytes_left: usize,
    files_left: usize,
}

/// What a guest told since its last result.
#[derive(Default)]
struct SinceLastResult {
    printed: HeadAndTail,
    /// Whether the suite left files of its own about the failure that is told next.
    has_files: bool,
}

impl Artefacts {
    /// Will write below `dir`, which is made when there is something to put there.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, guests: HashMap::new(), bytes_left: MAX_BYTES, files_left: MAX_FILES }
    }

    fn save(&mut self, guest: u32, suite: &str, test: &str, message: &str) -> io::Result<()> {
        let SinceLastResult { printed, has_files } = self.guests.remove(&guest).unwrap_or_default();
        let kind = if has_files { PRINTED_TOO } else { PRINTED };
        let Some(mut file) = self.file(suite, test, kind, message.len() + printed.len())? else { return Ok(()) };
        if !message.is_empty() {
            writeln!(file, "{}\n", message.trim_end())?;
        }
        printed.write_to(&mut file)
    }

    fn save_file(&mut self, suite: &str, test: &str, kind: &str, data: &[u8]) -> io::Result<()> {
        match self.file(suite, test, kind, data.len())? {
            Some(mut file) => file.write_all(data),
            None => Ok(()),
        }
    }

    /// A new file for `size` bytes, if there are any and they may still be kept.
    fn file(&mut self, suite: &str, test: &str, kind: &str, size: usize) -> io::Result<Option<File>> {
        if size == 0 || self.files_left == 0 || size > self.bytes_left {
            return Ok(None);
        }
        self.files_left -= 1;
        self.bytes_left -= size;
        let dir = self.dir.join(file_name_from(suite, MAX_NAME));
        fs::create_dir_all(&dir)?;
        create_unique(&dir, &file_name_from(test, MAX_NAME), &file_name_from(kind, MAX_KIND)).map(Some)
    }
}

impl Reporter for Artefacts {
    fn name(&self) -> &'static str {
        "artefacts"
    }

    fn on_event(&mut self, event: &TimedEvent, judgement: Option<Judgement>, tally: &Tally) -> io::Result<()> {
        match &event.event {
            RunEvent::Output { text, .. } => self.guests.entry(event.guest).or_default().printed.push(text),
            RunEvent::TestStarted { .. } | RunEvent::SuiteStarted { .. } => {
                self.guests.remove(&event.guest);
            }
            RunEvent::Artefact { suite, test, kind, data, .. } => {
                // What we have to tell is no explanation by the suite.
                if ![AUTOPSY, LAST_REQUESTS, wire::STACKS].contains(&kind.as_str()) {
                    self.guests.entry(event.guest).or_default().has_files = true;
                }
                let test = if test.is_empty() { AFTER_RESULTS } else { test };
                return self.save_file(suite, test, kind, data);
            }
            RunEvent::TestFinished { suite, test, message, .. } => {
                if judgement.is_some_and(Judgement::is_failure) {
                    return self.save(event.guest, suite, test, message);
                }
                self.guests.remove(&event.guest);
            }
            RunEvent::SuiteFinished { suite, .. } => {
                if tally.suites().iter().any(|tallied| tallied.name == *suite && tallied.trouble.is_some()) {
                    return self.save(event.guest, suite, AFTER_RESULTS, "");
                }
                self.guests.remove(&event.guest);
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, run: &FinishedRun<'_>) -> io::Result<()> {
        // What was printed last before the machine went away.
        let last = run.tally.suites().last();
        let running = last.and_then(|suite| suite.running.as_deref()).unwrap_or(AFTER_RESULTS);
        let suite = last.map_or("vmm", |suite| &suite.name);
        let mut guests: Vec<u32> = self.guests.keys().copied().collect();
        guests.sort_unstable();
        guests.into_iter().try_for_each(|guest| self.save(guest, suite, running, ""))
    }
}

fn create_unique(dir: &Path, name: &str, kind: &str) -> io::Result<File> {
    let name = if name.is_empty() { "_" } else { name };
    let mut number = 1;
    loop {
        let suffix = if number == 1 { String::new() } else { format!("-{number}") };
        match File::create_new(dir.join(format!("{name}{suffix}.{kind}"))) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < MAX_FILES => number += 1,
            other => return other,
        }
    }
}

/// The start and the end of a text of any length.
#[derive(Default)]
struct HeadAndTail {
    head: String,
    tail: VecDeque<u8>,
    left_out: u64,
}

impl HeadAndTail {
    fn push(&mut self, text: &str) {
        let head = crate::verdict::truncated(text, KEPT_END.saturating_sub(self.head.len()));
        let head = if self.tail.is_empty() { head } else { "" };
        self.head.push_str(head);
        let rest = &text.as_bytes()[head.len()..];
        self.tail.extend(rest);
        let over = self.tail.len().saturating_sub(KEPT_END);
        self.tail.drain(..over);
        self.left_out += over as u64;
    }

    fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    fn write_to(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(self.head.as_bytes())?;
        if self.left_out > 0 {
            write!(to, "\n[{} bytes left out]\n", self.left_out)?;
        }
        let (first, second) = self.tail.as_slices();
        to.write_all(first)?;
        to.write_all(second)
    }
}

#[cfg(test)]
mod tests {
    use wire::TestStatus;

    use super::*;
    use crate::report::test_events::{GARBAGE, at, hostile_run, output, result};

    fn feed(artefacts: &mut Artefacts, events: &[TimedEvent]) {
        let mut tally = Tally::default();
        for event in events {
            let judgement = tally.on_event(&event.event);
            artefacts.on_event(event, judgement, &tally).unwrap();
        }
    }

    fn files(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = walk(dir).iter().map(|p| p.strip_prefix(dir).unwrap().display().to_string()).collect();
        names.sort();
        names
    }

    fn walk(dir: &Path) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn a_failing_test_leaves_its_message_and_its_output() {
        let dir = tempfile::tempdir().unwrap();
        let mut artefacts = Artefacts::new(dir.path().join("artefacts"));
        let fail = at(6, result("chmod/00.t:5", TestStatus::Fail, "expected EPERM, got 0"));
        feed(&mut artefacts, &[output("not "), output("ok 5\n"), fail]);
        let text = fs::read_to_string(dir.path().join("artefacts/s/chmod_00.t_5.out.bad")).unwrap();
        assert_eq!(text, "expected EPERM, got 0\n\nnot ok 5\n");
    }

    #[test]
    fn files_that_the_suite_left_are_kept_under_their_own_names_beside_what_was_printed() {
        let dir = tempfile::tempdir().unwrap();
        let mut artefacts = Artefacts::new(dir.path().to_path_buf());
        let left = |kind: &str, data: &[u8]| {
            let (suite, test, kind) = ("s".to_owned(), "generic/001".to_owned(), kind.to_owned());
            at(5, RunEvent::Artefact { suite, test, kind, bytes: data.len() as u64, data: data.to_vec() })
        };
        let fail = |test| at(6, result(test, TestStatus::Fail, "mismatch"));
        feed(
            &mut artefacts,
            &[output("said"), left("out.bad", b"bad\xff"), left("../full", b"f"), fail("generic/001")],
        );
        feed(&mut artefacts, &[output("said"), fail("generic/002")]);
        let names = files(dir.path());
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(fs::read(dir.path().join("s/generic_001.out.bad")).unwrap(), b"bad\xff");
        assert_eq!(fs::read(dir.path().join("s/generic_001.output")).unwrap(), b"mismatch\n\nsaid");
        assert!(dir.path().join("s/generic_002.out.bad").exists(), "{names:?}");
    }

    #[test]
    fn a_passing_test_leaves_nothing_and_takes_its_output_along() {
        let dir = tempfile::tempdir().unwrap();
        let mut artefacts = Artefacts::new(dir.path().join("artefacts"));
        let pass = at(6, result("a", TestStatus::Pass, ""));
        feed(&mut artefacts, &[output("of a"), pass]);
        assert!(!dir.path().join("artefacts").exists());
        feed(&mut artefacts, &[at(7, result("b", TestStatus::Fail, ""))]);
        assert!(!dir.path().join("artefacts").exists(), "b printed nothing and said nothing");
    }

    #[test]
    fn a_guest_cannot_choose_where_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut artefacts = Artefacts::new(dir.path().join("artefacts"));
        feed(&mut artefacts, &hostile_run());
        for name in ["../../escape", "/etc/passwd", ".", "..", "", GARBAGE, &"n".repeat(1000)] {
            feed(&mut artefacts, &[output("x"), at(9, result(name, TestStatus::Fail, ""))]);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(files(dir.path()).iter().filter(|name| name.starts_with("artefacts/s/")).count(), 9);
    }

    #[test]
    fn the_same_test_twice_gives_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut artefacts = Artefacts::new(dir.path().to_path_buf());
        for _ in 0..2 {
            feed(&mut artefacts, &[at(1, result("a", TestStatus::Fail, "no"))]);
        }
        assert_eq!(files(dir.path()), ["s/a-2.out.bad", "s/a.out.bad"]);
    }

    #[test]
    fn endless_output_keeps_its_start_and_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut artefacts = Artefacts::new(dir.path().to_path_buf());
        let mut events = vec![output("the start é")];
        events.extend((0..200).map(|_| output(&"é".repeat(10_000))));
        events.push(output("the end"));
        events.push(at(1, result("a", TestStatus::Error, "")));
        feed(&mut artefacts, &events);
        let bytes = fs::read(dir.path().join("s/a.out.bad")).unwrap();
        assert!(bytes.len() < 2 * KEPT_END + 100);
        assert!(bytes.starts_with(b"the start") && bytes.ends_with(b"the end"));
        assert!(String::from_utf8_lossy(&bytes).contains("bytes left out]"));
    }

    #[test]
    fn all_artefacts_together_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let mut artefacts = Artefacts::new(dir.path().to_path_buf());
        artefacts.files_left = 3;
        artefacts.bytes_left = 100;
        for i in 0..10 {
            feed(&mut artefacts, &[at(1, result(&format!("{i}"), TestStatus::Fail, "no"))]);
        }
        assert_eq!(files(dir.path()).len(), 3);
        artefacts.files_left = 3;
        feed(&mut artefacts, &[output(&"x".repeat(200)), at(1, result("big", TestStatus::Fail, "no"))]);
        assert_eq!(files(dir.path()).len(), 3);
    }
}
