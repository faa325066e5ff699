//! Exclude and expectation files: which tests do not count, and which are known to fail.
//!
//! One test per line; everything after `#` is a comment, blank lines are nothing, as xfstests' `-E` reads such files. In an
//! expectation file a comment that begins with `F:1/N` says that the test fails about once in N runs: then neither its
//! failure nor its success is news.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wire::TestStatus;

/// One line of a baseline file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expectation {
    /// The comment after the test's name without its `F:1/N`; may be empty.
    pub reason: String,
    /// N of `F:1/N`: fails about once in N runs. `None`: always.
    pub one_in: Option<NonZeroU32>,
}

/// What a result means once it is compared with what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    /// Passed, as it should.
    Pass,
    /// Failed and should not have.
    Fail,
    /// Could not be judged, and that was not expected.
    Error,
    /// The suite decided not to run it.
    Skip,
    /// Failed, as the baseline says that it does.
    ExpectedFail,
    /// Passed although the baseline says that it always fails.
    Fixed,
    /// Excluded by the user; whatever it did does not count.
    Expunged,
}

/// Why a baseline file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// The file cannot be read.
    #[error("failed to read the test list {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A line is not of the form `test  # comment`.
    #[error("{}, line {line}: {what}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it and what would be right.
        what: String,
    },
}

/// What a run is compared with. The default expects every test to pass.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    excluded: HashMap<String, Expectation>,
    expected: HashMap<String, Expectation>,
}

impl Baseline {
    /// Whether nothing is excluded or expected to fail.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.excluded.is_empty() && self.expected.is_empty()
    }

    /// Adds the tests of an exclude file.
    ///
    /// # Errors
    /// See [`BaselineError`].
    pub fn exclude_file(&mut self, path: &Path) -> Result<(), BaselineError> {
        read_list(path, &mut self.excluded)
    }

    /// Adds the tests of a file of expected failures.
    ///
    /// # Errors
    /// See [`BaselineError`].
    pub fn expect_failures_file(&mut self, path: &Path) -> Result<(), BaselineError> {
        read_list(path, &mut self.expected)
    }

    /// What `status` means for `test`, and the line of the baseline that made the difference.
    #[must_use]
    pub fn judge(&self, test: &str, status: TestStatus) -> (Judgement, Option<&Expectation>) {
        if let Some(line) = self.excluded.get(test) {
            return (Judgement::Expunged, Some(line));
        }
        let expected = self.expected.get(test);
        match (status, expected) {
            (TestStatus::Skip, _) => (Judgement::Skip, None),
            (TestStatus::Fail | TestStatus::Error, Some(line)) => (Judgement::ExpectedFail, Some(line)),
            (TestStatus::Fail, None) => (Judgement::Fail, None),
            (TestStatus::Error, None) => (Judgement::Error, None),
            (TestStatus::Pass, Some(line)) if line.one_in.is_none() => (Judgement::Fixed, Some(line)),
            (TestStatus::Pass, _) => (Judgement::Pass, None),
        }
    }
}

fn read_list(path: &Path, into: &mut HashMap<String, Expectation>) -> Result<(), BaselineError> {
    let text = fs::read_to_string(path).map_err(|source| BaselineError::Read { path: path.to_path_buf(), source })?;
    for (index, line) in text.lines().enumerate() {
        let syntax = |what: String| BaselineError::Syntax { path: path.to_path_buf(), line: index + 1, what };
        if let Some((test, expectation)) = parse_line(line).map_err(syntax)? {
            into.insert(test.to_owned(), expectation);
        }
    }
    Ok(())
}

/// The test and what is said of it; `None` for a line that names no test.
fn parse_line(line: &str) -> Result<Option<(&str, Expectation)>, String> {
    let (names, comment) = line.split_once('#').unwrap_or((line, ""));
    let mut words = names.split_whitespace();
    let Some(test) = words.next() else { return Ok(None) };
    if let Some(extra) = words.next() {
        return Err(format!("{extra:?} after the test {test:?}: put one test on a line, and the reason behind a #"));
    }
    let comment = comment.trim();
    let Some(rest) = comment.strip_prefix("F:") else {
        return Ok(Some((test, Expectation { reason: comment.to_owned(), one_in: None })));
    };
    let (rate, reason) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let one_in = rate
        .strip_prefix("1/")
        .and_then(|n| n.parse::<NonZeroU32>().ok())
        .ok_or_else(|| format!("\"F:{rate}\" is no rate of failure: write F:1/N with N from 1"))?;
    // Once in one run is always.
    let one_in = Some(one_in).filter(|n| n.get() > 1);
    Ok(Some((test, Expectation { reason: reason.trim().to_owned(), one_in })))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    fn expecting(text: &str) -> Baseline {
        let (_dir, path) = list(text);
        let mut baseline = Baseline::default();
        baseline.expect_failures_file(&path).unwrap();
        baseline
    }

    #[test]
    fn comments_and_blank_lines_name_no_test() {
        let baseline = expecting("# a title\n\n   \t\n  # indented\n");
        assert!(baseline.is_empty());
    }

    #[test]
    fn a_line_gives_test_rate_and_reason() {
        let (test, line) = parse_line("generic/476  # F:1/18 slow disk").unwrap().unwrap();
        assert_eq!(test, "generic/476");
        assert_eq!(line.one_in.map(NonZeroU32::get), Some(18));
        assert_eq!(line.reason, "slow disk");
    }

    #[test]
    fn a_rate_of_one_in_one_means_always() {
        let (_, line) = parse_line("a # F:1/1").unwrap().unwrap();
        assert_eq!(line.one_in, None);
    }

    #[test]
    fn a_bad_line_is_reported_with_file_and_number() {
        for (text, needle) in [
            ("a\nb c\n", "line 2: \"c\" after the test \"b\""),
            ("\n\na # F:2/3\n", "line 3: \"F:2/3\" is no rate"),
            ("a # F:1/0 never\n", "line 1: \"F:1/0\" is no rate"),
            ("a # F:1/x\n", "line 1: \"F:1/x\" is no rate"),
        ] {
            let (_dir, path) = list(text);
            let error = Baseline::default().expect_failures_file(&path).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
            assert!(error.starts_with(path.to_str().unwrap()), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Baseline::default().exclude_file(Path::new("/nonexistent/list")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/list"));
    }

    #[test]
    fn without_a_baseline_a_status_means_itself() {
        let baseline = Baseline::default();
        for (status, judgement) in [
            (TestStatus::Pass, Judgement::Pass),
            (TestStatus::Fail, Judgement::Fail),
            (TestStatus::Skip, Judgement::Skip),
            (TestStatus::Error, Judgement::Error),
        ] {
            assert_eq!(baseline.judge("x", status).0, judgement);
        }
    }

    #[test]
    fn an_expected_failure_is_expected_and_its_success_is_a_fix() {
        let baseline = expecting("x # known\n");
        assert_eq!(baseline.judge("x", TestStatus::Fail).0, Judgement::ExpectedFail);
        assert_eq!(baseline.judge("x", TestStatus::Error).0, Judgement::ExpectedFail);
        assert_eq!(baseline.judge("x", TestStatus::Pass).0, Judgement::Fixed);
        assert_eq!(baseline.judge("x", TestStatus::Skip).0, Judgement::Skip);
        assert_eq!(baseline.judge("y", TestStatus::Fail).0, Judgement::Fail);
    }

    #[test]
    fn a_test_that_fails_now_and_then_is_not_fixed_by_passing_once() {
        let baseline = expecting("x # F:1/18\n");
        assert_eq!(baseline.judge("x", TestStatus::Pass).0, Judgement::Pass);
        assert_eq!(baseline.judge("x", TestStatus::Fail).0, Judgement::ExpectedFail);
    }

    #[test]
    fn an_excluded_test_is_expunged_whatever_it_did() {
        let (_dir, path) = list("x # breaks the machine\n");
        let mut baseline = Baseline::default();
        baseline.exclude_file(&path).unwrap();
        for status in [TestStatus::Pass, TestStatus::Fail, TestStatus::Skip, TestStatus::Error] {
            let (judgement, line) = baseline.judge("x", status);
            assert_eq!(judgement, Judgement::Expunged);
            assert_eq!(line.unwrap().reason, "breaks the machine");
        }
    }
}
