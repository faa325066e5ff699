//! Exclude and expectation files: lists of tests, one a line.
//!
//! Everything after `#` is a comment, blank lines are nothing, as xfstests' `-E` reads such files. A comment that begins with
//! `F:1/N` says that the test fails about once in N runs (kdevops).

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::failure_rate::FailureRate;

/// Longest file that is read as a list or as a baseline, bytes.
const MAX_FILE: u64 = 16 << 20;

/// Why a list or a baseline could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// The file cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// What is in it is not what it should be.
    #[error("{file}{}: {what}", line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Syntax {
        /// The file, or what a built-in one is called.
        file: String,
        /// Counted from 1, if the mistake is in one line.
        line: Option<usize>,
        /// What is wrong with it and what would be right.
        what: String,
    },
}

/// One line of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedTest {
    /// The test.
    pub name: String,
    /// How often it fails, where the comment says.
    pub rate: Option<FailureRate>,
    /// The rest of the comment; may be empty.
    pub comment: String,
}

/// The text of a file that a user named.
///
/// # Errors
/// It cannot be read, is no text, or has over 16 MiB.
pub(super) fn read_text(path: &Path) -> Result<String, BaselineError> {
    let failed = |source| BaselineError::Read { path: path.to_path_buf(), source };
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text)).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(failed(io::Error::other(format!("it has over {} MiB; that is no list of tests", MAX_FILE >> 20))));
    }
    Ok(text)
}

/// Reads a list.
///
/// # Errors
/// See [`BaselineError`].
pub fn read_list(path: &Path) -> Result<Vec<ListedTest>, BaselineError> {
    let text = read_text(path)?;
    let lines = text.lines().enumerate().map(|(index, line)| {
        let file = path.display().to_string();
        parse_line(line).map_err(|what| BaselineError::Syntax { file, line: Some(index + 1), what })
    });
    lines.filter_map(Result::transpose).collect()
}

/// The test and what is said of it; `None` for a line that names no test.
fn parse_line(line: &str) -> Result<Option<ListedTest>, String> {
    let (names, comment) = line.split_once('#').unwrap_or((line, ""));
    let mut words = names.split_whitespace();
    let Some(name) = words.next().map(str::to_owned) else { return Ok(None) };
    if let Some(extra) = words.next() {
        return Err(format!("{extra:?} after the test {name:?}: put one test on a line, and the reason behind a #"));
    }
    let comment = comment.trim();
    let Some(rest) = comment.strip_prefix("F:") else {
        return Ok(Some(ListedTest { name, rate: None, comment: comment.to_owned() }));
    };
    let (rate, comment) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let counts = rate.split_once('/').and_then(|(failed, runs)| Some((failed.parse().ok()?, runs.parse().ok()?)));
    match counts {
        Some((failed @ 1.., runs)) if failed <= runs => {
            let rate = Some(FailureRate { failed, runs });
            Ok(Some(ListedTest { name, rate, comment: comment.trim().to_owned() }))
        }
        _ => Err(format!("\"F:{rate}\" is no rate of failure: write F:1/N with N from 1")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(text: &str) -> Result<Vec<ListedTest>, BaselineError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        fs::write(&path, text).unwrap();
        read_list(&path)
    }

    #[test]
    fn comments_and_blank_lines_name_no_test() {
        assert_eq!(read("# a title\n\n   \t\n  # indented\n").unwrap(), []);
    }

    #[test]
    fn a_line_gives_test_rate_and_reason() {
        let line = parse_line("generic/476  # F:1/18 slow disk").unwrap().unwrap();
        let rate = Some(FailureRate { failed: 1, runs: 18 });
        assert_eq!(line, ListedTest { name: "generic/476".into(), rate, comment: "slow disk".into() });
    }

    #[test]
    fn a_bad_line_is_reported_with_file_and_number() {
        for (text, needle) in [
            ("a\nb c\n", "list, line 2: \"c\" after the test \"b\""),
            ("\n\na # F:4/3\n", "list, line 3: \"F:4/3\" is no rate"),
            ("a # F:1/0 never\n", "list, line 1: \"F:1/0\" is no rate"),
            ("a # F:0/7\n", "list, line 1: \"F:0/7\" is no rate"),
            ("a # F:1/x\n", "list, line 1: \"F:1/x\" is no rate"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_or_has_no_end_is_named() {
        for path in ["/nonexistent/list", "/dev/zero"] {
            let error = read_list(Path::new(path)).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
    }
}
