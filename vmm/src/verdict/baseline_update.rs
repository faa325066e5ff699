//! Makes a baseline of what runs came to, or of a list of tests.

use std::collections::HashMap;

use wire::TestStatus;

use super::baseline::split_section;
use super::baseline_file::{BaselineFile, BaselineRow, is_link};
use super::failure_rate::FailureRate;
use super::judgement::{Expectation, Expected};
use super::kernel_range::KernelRange;
use super::tally::Row;
use super::test_list::ListedTest;
use crate::report::SavedRun;

/// A baseline as it should be now, and what is different from the old one.
#[derive(Debug, Default)]
pub struct BaselineUpdate {
    /// The baseline.
    pub file: BaselineFile,
    /// Tests that the old one did not name.
    pub added: Vec<String>,
    /// Tests of which it says something else now, if only other counts.
    pub changed: Vec<String>,
    /// Tests that pass now and are left out.
    pub dropped: Vec<String>,
    /// Tests of the old one that had no result in any of the runs, and stay as they were.
    pub not_seen: Vec<String>,
}

/// Why runs do not make a baseline.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// There is nothing in them.
    #[error("the runs have no results, so there is nothing to make a baseline of")]
    NoResults,
    /// It is not clear for which suite it is to be.
    #[error("the runs have results of {}; say with --suite which of them the baseline is for", .0.join(", "))]
    SeveralSuites(Vec<String>),
    /// The wanted suite is not among them.
    #[error("the runs have no results of the suite {wanted}, only of {}", there.join(", "))]
    SuiteNotThere {
        /// The suite of the old baseline, or what the user said.
        wanted: String,
        /// What there is.
        there: Vec<String>,
    },
    /// The old baseline is for another suite than the user said.
    #[error("the old baseline is for the suite {old}, not for {wanted}")]
    OtherSuite {
        /// Its suite.
        old: String,
        /// What the user said.
        wanted: String,
    },
    /// The old baseline is not for the kernel of a run.
    #[error(
        "the old baseline is for kernels {range}, and a run has {release}; change its `kernel`, or make a new one without --from"
    )]
    OtherKernel {
        /// Its range.
        range: String,
        /// The run's.
        release: String,
    },
}

/// A test by the row that it has or would have.
type Key = (Option<String>, String);

#[derive(Debug, Default)]
struct Seen {
    passed: u32,
    failed: u32,
    /// Whether one of the failures was an error.
    error: bool,
}

impl BaselineUpdate {
    /// Brings `old` up to date with `runs`, or makes a new one: of the suite `suite`, or of the only one there is.
    ///
    /// # Errors
    /// See [`UpdateError`].
    pub fn new(runs: &[SavedRun], suite: Option<&str>, old: Option<BaselineFile>) -> Result<Self, UpdateError> {
        let suite = choose_suite(runs, suite, old.as_ref())?;
        let releases = || runs.iter().filter_map(|run| run.kernel_release.as_deref());
        let mut file = match old {
            Some(old) => old,
            None => BaselineFile { suite, kernel: KernelRange::around(releases()), ..BaselineFile::default() },
        };
        if let Some(range) = &file.kernel
            && let Some(release) = releases().find(|release| !range.contains(release))
        {
            return Err(UpdateError::OtherKernel { range: range.to_string(), release: release.to_owned() });
        }
        file.vmm = Some(env!("CARGO_PKG_VERSION").to_owned());
        let old_rows = std::mem::take(&mut file.tests);
        let (order, seen) = seen_in(runs, &file.suite, &old_rows);
        let mut update = Self { file, ..Self::default() };
        update.take_over(old_rows, &seen);
        update.add(order, &seen);
        Ok(update)
    }

    fn take_over(&mut self, old_rows: Vec<BaselineRow>, seen: &HashMap<Key, Seen>) {
        for row in old_rows {
            let shown = shown_name(row.section.as_deref(), &row.name);
            let Some(seen) = seen.get(&(row.section.clone(), row.name.clone())) else {
                self.not_seen.push(shown);
                self.file.tests.push(row);
                continue;
            };
            match seen.brings_up_to_date(&row.known) {
                None => self.dropped.push(shown),
                Some(known) => {
                    if known != row.known {
                        self.changed.push(shown);
                    }
                    self.file.tests.push(BaselineRow { known, ..row });
                }
            }
        }
    }

    fn add(&mut self, order: Vec<Key>, seen: &HashMap<Key, Seen>) {
        for (section, name) in order {
            let there = self.file.tests.iter().any(|row| row.section == section && row.name == name);
            let known = seen.get(&(section.clone(), name.clone())).and_then(Seen::expectation);
            if let (false, Some(known)) = (there, known) {
                self.added.push(shown_name(section.as_deref(), &name));
                self.file.tests.push(BaselineRow { name, section, known });
            }
        }
    }
}

impl Seen {
    fn add(&mut self, status: TestStatus) {
        match status {
            TestStatus::Skip => {}
            TestStatus::Pass => self.passed = self.passed.saturating_add(1),
            TestStatus::Fail | TestStatus::Error => {
                self.failed = self.failed.saturating_add(1);
                self.error |= status == TestStatus::Error;
            }
        }
    }

    /// A result, and what the test did when it ran again.
    fn add_row(&mut self, row: &Row) {
        self.add(row.status);
        if let Some(retried) = row.retried {
            self.failed = self.failed.saturating_add(retried.failed);
            self.passed = self.passed.saturating_add(retried.attempts.saturating_sub(retried.failed));
        }
    }

    fn rate(&self) -> FailureRate {
        FailureRate { failed: self.failed, runs: self.failed.saturating_add(self.passed) }
    }

    /// What a baseline that says nothing of it should say; `None`: nothing.
    fn expectation(&self) -> Option<Expectation> {
        let expect = match (self.failed, self.passed) {
            (0, _) => return None,
            (_, 1..) => Expected::Flaky,
            (_, 0) if self.error => Expected::Error,
            (_, 0) => Expected::Fail,
        };
        Some(Expectation { expect, seen: Some(self.rate()), reason: String::new(), link: None })
    }

    /// What is to be said of a test of which `old` was said; `None`: nothing any more.
    fn brings_up_to_date(&self, old: &Expectation) -> Option<Expectation> {
        let only_skipped = self.failed == 0 && self.passed == 0;
        if only_skipped || old.expect == Expected::Expunge || (old.expect == Expected::Pass && self.failed == 0) {
            return Some(old.clone());
        }
        if let (Expected::Flaky, Some(rate)) = (old.expect, old.seen) {
            // That it does not fail any more is to be believed when that is improbable at its rate: what fails in one run of
            // ten passes three times in a row most of the time.
            let passing = FailureRate { failed: rate.runs.saturating_sub(rate.failed), runs: rate.runs };
            let chance = super::within_rate(self.passed, self.passed, passing.failed, passing.runs);
            return (self.failed > 0 || chance)
                .then(|| Expectation { seen: Some(rate.plus(self.rate())), ..old.clone() });
        }
        let new = self.expectation()?;
        let same = new.expect != Expected::Flaky && matches!(old.expect, Expected::Fail | Expected::Error);
        let before = old.seen.filter(|_| same);
        let seen = before.zip(new.seen).map(|(before, now)| before.plus(now)).or(new.seen);
        // One that could not be judged before may well be so again.
        let expect = if same && old.expect == Expected::Error { Expected::Error } else { new.expect };
        Some(Expectation { expect, seen, ..old.clone() })
    }
}

fn choose_suite(runs: &[SavedRun], wanted: Option<&str>, old: Option<&BaselineFile>) -> Result<String, UpdateError> {
    let mut there: Vec<String> = Vec::new();
    for suite in runs.iter().flat_map(|run| run.tally.suites()).filter(|suite| suite.counts.total() > 0) {
        let name = split_section(&suite.name).0;
        if !there.iter().any(|known| known == name) {
            there.push(name.to_owned());
        }
    }
    if let (Some(wanted), Some(old)) = (wanted, old)
        && wanted != old.suite
    {
        return Err(UpdateError::OtherSuite { old: old.suite.clone(), wanted: wanted.to_owned() });
    }
    match (wanted.or(old.map(|old| old.suite.as_str())), there.len()) {
        (_, 0) => Err(UpdateError::NoResults),
        (Some(wanted), _) if there.iter().any(|name| name == wanted) => Ok(wanted.to_owned()),
        (Some(wanted), _) => Err(UpdateError::SuiteNotThere { wanted: wanted.to_owned(), there }),
        (None, 1) => Ok(there.remove(0)),
        (None, _) => Err(UpdateError::SeveralSuites(there)),
    }
}

/// What became of each test, and the order in which they came. A test counts for the row that the old baseline has for it.
fn seen_in(runs: &[SavedRun], suite: &str, old: &[BaselineRow]) -> (Vec<Key>, HashMap<Key, Seen>) {
    let known: std::collections::HashSet<Key> = old.iter().map(|row| (row.section.clone(), row.name.clone())).collect();
    let (mut order, mut seen) = (Vec::new(), HashMap::<Key, Seen>::new());
    for tally in runs.iter().flat_map(|run| run.tally.suites()) {
        let (name, section) = split_section(&tally.name);
        if name != suite {
            continue;
        }
        for row in &tally.tests {
            let mut key = (section.map(str::to_owned), row.test.clone());
            let for_all = (None, row.test.clone());
            if !known.contains(&key) && known.contains(&for_all) {
                key = for_all;
            }
            if !seen.contains_key(&key) {
                order.push(key.clone());
            }
            seen.entry(key).or_default().add_row(row);
        }
    }
    (order, seen)
}

fn shown_name(section: Option<&str>, name: &str) -> String {
    section.map_or_else(|| name.to_owned(), |section| format!("{section}: {name}"))
}

/// A baseline of a list: what has a rate of failure below one is flaky, and of all other tests `plain` is expected. Of a test
/// that is listed twice the last line counts. The first address in a comment becomes the link.
#[must_use]
pub fn import(suite: &str, listed: Vec<ListedTest>, plain: Expected) -> BaselineFile {
    let mut tests: Vec<BaselineRow> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for ListedTest { name, rate, comment } in listed {
        let (link, words): (Vec<&str>, Vec<&str>) = comment.split_whitespace().partition(|word| is_link(word));
        let expect = match rate {
            Some(rate) if rate.failed < rate.runs => Expected::Flaky,
            Some(_) => Expected::Fail,
            None => plain,
        };
        let (link, reason) = match link.as_slice() {
            [] => (None, comment.clone()),
            // The others stay where they are.
            [first, more @ ..] => (Some((*first).to_owned()), [words.as_slice(), more].concat().join(" ")),
        };
        let known = Expectation { expect, seen: rate, reason, link };
        let row = BaselineRow { name: name.clone(), section: None, known };
        match places.get(&name) {
            Some(&at) => tests[at] = row,
            None => {
                places.insert(name, tests.len());
                tests.push(row);
            }
        }
    }
    BaselineFile { suite: suite.to_owned(), tests, ..BaselineFile::default() }
}

#[cfg(test)]
mod tests;
