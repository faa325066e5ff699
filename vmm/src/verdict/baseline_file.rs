//! A baseline as a file: TOML, what it is for at its head and a `[[test]]` for each test that does not simply pass.

use std::collections::HashSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::failure_rate::FailureRate;
use super::judgement::{Expectation, Expected};
use super::kernel_range::KernelRange;
use super::test_list::{BaselineError, read_text};

/// What `--cache` knows.
const CACHE_MODES: [&str; 3] = ["auto", "always", "never"];
/// Longest name of a test that a run keeps, bytes.
pub(super) const MAX_NAME: usize = 1 << 10;

/// A baseline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaselineFile {
    /// The suite that it is for, as it is called on the command line.
    pub suite: String,
    /// The kernels that it is for; `None`: all.
    pub kernel: Option<KernelRange>,
    /// The values of `--cache` that it is for; empty: all.
    pub cache: Vec<String>,
    /// The vmm that wrote it. Only told.
    pub vmm: Option<String>,
    /// The version or commit of the suite that it was made with. Only told.
    pub suite_version: Option<String>,
    /// What else is to be said of it.
    pub note: Option<String>,
    /// The tests.
    pub tests: Vec<BaselineRow>,
}

/// One test of a baseline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaselineRow {
    /// The test, as the suite calls it.
    pub name: String,
    /// The section of the suite, such as `--ov --meta` of unionmount; `None`: all.
    pub section: Option<String>,
    /// What it does.
    pub known: Expectation,
}

/// The file as it is written. `Spanned` where a mistake is to be shown with its line.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Raw {
    suite: Spanned<String>,
    kernel: Option<Spanned<String>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cache: Vec<Spanned<String>>,
    vmm: Option<String>,
    suite_version: Option<String>,
    note: Option<String>,
    #[serde(default, rename = "test", skip_serializing_if = "Vec::is_empty")]
    tests: Vec<RawTest>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawTest {
    name: Spanned<String>,
    section: Option<String>,
    expect: Expected,
    failed: Option<u32>,
    runs: Option<u32>,
    reason: Option<String>,
    link: Option<String>,
}

impl BaselineFile {
    /// Reads the file `path`.
    ///
    /// # Errors
    /// See [`BaselineError`].
    pub fn read(path: &Path) -> Result<Self, BaselineError> {
        Self::parse(&path.display().to_string(), &read_text(path)?)
    }

    /// Reads the text of what is called `file` in errors.
    ///
    /// # Errors
    /// [`BaselineError::Syntax`].
    pub fn parse(file: &str, text: &str) -> Result<Self, BaselineError> {
        let wrong = |at: Option<usize>, what: String| BaselineError::Syntax {
            file: file.to_owned(),
            line: at.map(|at| 1 + text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count()),
            what,
        };
        let raw: Raw = toml::from_str(text)
            .map_err(|e| wrong(e.span().map(|span| span.start), e.message().trim_end().replace('\n', "; ")))?;
        let suite = raw.suite.get_ref();
        if suite.is_empty() || suite.contains(char::is_whitespace) {
            let what = format!("suite {suite:?}: give the suite's name as for `vmm run`, and a section with the tests");
            return Err(wrong(Some(raw.suite.span().start), what));
        }
        let kernel = raw.kernel.map(|kernel| {
            let at = kernel.span().start;
            kernel.into_inner().parse().map_err(|what| wrong(Some(at), what))
        });
        if let Some(mode) = raw.cache.iter().find(|mode| !CACHE_MODES.contains(&mode.get_ref().as_str())) {
            let what = format!("cache mode {:?}: there are {}", mode.get_ref(), CACHE_MODES.join(", "));
            return Err(wrong(Some(mode.span().start), what));
        }
        let mut seen = HashSet::new();
        for test in &raw.tests {
            let name = test.name.get_ref();
            let at = Some(test.name.span().start);
            if !seen.insert((name, &test.section)) {
                return Err(wrong(at, format!("the test {name:?} is in it twice; keep one of the two")));
            }
            if let Some(complaint) = test.complaint() {
                return Err(wrong(at, format!("the test {name:?}: {complaint}")));
            }
        }
        Ok(Self {
            suite: suite.clone(),
            kernel: kernel.transpose()?,
            cache: raw.cache.into_iter().map(Spanned::into_inner).collect(),
            vmm: raw.vmm,
            suite_version: raw.suite_version,
            note: raw.note,
            tests: raw.tests.into_iter().map(RawTest::row).collect(),
        })
    }

    /// The text of the file.
    ///
    /// # Errors
    /// TOML cannot say it; nothing that [`parse`](Self::parse) gave.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        let spanned = |text: String| Spanned::new(0..0, text);
        toml::to_string(&Raw {
            suite: spanned(self.suite.clone()),
            kernel: self.kernel.as_ref().map(|range| spanned(range.to_string())),
            cache: self.cache.iter().cloned().map(spanned).collect(),
            vmm: self.vmm.clone(),
            suite_version: self.suite_version.clone(),
            note: self.note.clone(),
            tests: self.tests.iter().map(RawTest::of).collect(),
        })
    }
}

impl RawTest {
    /// What TOML cannot tell is wrong.
    fn complaint(&self) -> Option<&'static str> {
        use Expected as E;
        let name = self.name.get_ref();
        if name.trim().is_empty() || name.len() > MAX_NAME {
            return Some("a test's name has 1 to 1024 bytes");
        }
        if self.link.as_ref().is_some_and(|link| !is_link(link)) {
            return Some("its link is none: it begins with http:// or https:// and has no blanks");
        }
        match (self.expect, self.failed, self.runs) {
            (_, Some(_), None) | (_, None, Some(_)) => Some("failed and runs go together: failed of so many runs"),
            (E::Pass | E::Skip | E::Expunge, Some(_), _) => Some("failed and runs are for fail, error and flaky only"),
            (_, Some(_), Some(0)) => Some("runs = 0: leave failed and runs out where nothing was counted"),
            (_, Some(failed), Some(runs)) if failed > runs => {
                Some("failed is more than runs; it fails at most once in each")
            }
            (E::Fail | E::Error, Some(failed), Some(runs)) if failed < runs => {
                Some("it fails in some of its runs only: then expect = \"flaky\"")
            }
            (E::Flaky, None, _) => Some("a flaky test has a rate: give failed and runs"),
            (E::Flaky, Some(0), _) => Some("a flaky test failed at least once: failed = 1 or more"),
            (E::Flaky, Some(failed), Some(runs)) if failed == runs => {
                Some("it fails in all of its runs: then expect = \"fail\"")
            }
            _ => None,
        }
    }

    fn row(self) -> BaselineRow {
        let seen = self.failed.zip(self.runs).map(|(failed, runs)| FailureRate { failed, runs });
        let reason = self.reason.unwrap_or_default();
        let known = Expectation { expect: self.expect, seen, reason, link: self.link };
        BaselineRow { name: self.name.into_inner(), section: self.section, known }
    }

    fn of(row: &BaselineRow) -> Self {
        let known = &row.known;
        Self {
            name: Spanned::new(0..0, row.name.clone()),
            section: row.section.clone(),
            expect: known.expect,
            failed: known.seen.map(|rate| rate.failed),
            runs: known.seen.map(|rate| rate.runs),
            reason: Some(known.reason.clone()).filter(|reason| !reason.is_empty()),
            link: known.link.clone(),
        }
    }
}

/// Whether a browser may be sent there from a report.
pub(super) fn is_link(text: &str) -> bool {
    let plain = |c: char| !c.is_whitespace() && !c.is_control();
    (text.starts_with("https://") || text.starts_with("http://")) && text.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "suite = \"xfstests\"\nkernel = \">=6.1, <6.13\"\ncache = [\"auto\", \"always\"]\n";

    fn error_of(text: &str) -> String {
        BaselineFile::parse("my.toml", text).unwrap_err().to_string()
    }

    fn with_test(lines: &str) -> String {
        format!("{HEAD}[[test]]\n{lines}\n")
    }

    #[test]
    fn a_whole_file_is_read_and_written_back() {
        let text = format!(
            "{HEAD}vmm = \"0.1.0\"\nsuite-version = \"63a2972\"\nnote = \"made by hand\"\n\n\
             [[test]]\nname = \"generic/003\"\nexpect = \"skip\"\nreason = \"atime \\\"options\\\"\"\n\n\
             [[test]]\nname = \"generic/475\"\nexpect = \"flaky\"\nfailed = 1\nruns = 11\nlink = \"https://example.org/1\"\n\n\
             [[test]]\nname = \"a b\"\nsection = \"--ov --meta\"\nexpect = \"expunge\"\n"
        );
        let file = BaselineFile::parse("f", &text).unwrap();
        assert_eq!((file.suite.as_str(), file.tests.len()), ("xfstests", 3));
        assert!(file.kernel.as_ref().unwrap().contains("6.12.1"));
        let flaky = &file.tests[1].known;
        assert_eq!(flaky.seen, Some(FailureRate { failed: 1, runs: 11 }));
        assert_eq!(flaky.link.as_deref(), Some("https://example.org/1"));
        assert_eq!(file.tests[2].section.as_deref(), Some("--ov --meta"));
        let written = file.to_toml().unwrap();
        assert_eq!(BaselineFile::parse("f", &written).unwrap(), file, "{written}");
    }

    #[test]
    fn a_suite_may_have_nothing_to_say() {
        assert_eq!(BaselineFile::parse("f", "suite = 'pjdfstest'\n").unwrap().tests, []);
    }

    #[test]
    fn whatever_is_wrong_is_one_line_with_file_line_and_what_is_right() {
        for (text, line, says) in [
            ("suite = 'x'\nkernels = '>=6'\n".to_owned(), 2, "unknown field `kernels`"),
            (with_test("name = 'a'\nexpect = 'fail'\nwhy = 'x'"), 7, "unknown field `why`"),
            (with_test("name = 'a'\nexpect = 'broken'"), 6, "unknown variant `broken`"),
            (
                with_test("name = 'a'\nexpect = 'fail'\n[[test]]\nname = 'a'\nexpect = 'skip'"),
                8,
                "\"a\" is in it twice",
            ),
            (with_test("name = 'a'\nexpect = 'flaky'\nfailed = 5\nruns = 3"), 5, "failed is more than runs"),
            (with_test("name = 'a'\nexpect = 'flaky'\nfailed = 5"), 5, "go together"),
            (with_test("name = 'a'\nexpect = 'flaky'"), 5, "give failed and runs"),
            (with_test("name = 'a'\nexpect = 'flaky'\nfailed = 0\nruns = 3"), 5, "at least once"),
            (with_test("name = 'a'\nexpect = 'flaky'\nfailed = 3\nruns = 3"), 5, "expect = \"fail\""),
            (with_test("name = 'a'\nexpect = 'fail'\nfailed = 1\nruns = 3"), 5, "expect = \"flaky\""),
            (with_test("name = 'a'\nexpect = 'fail'\nfailed = 0\nruns = 0"), 5, "runs = 0"),
            (with_test("name = 'a'\nexpect = 'skip'\nfailed = 1\nruns = 3"), 5, "fail, error and flaky only"),
            (with_test("name = 'a'\nexpect = 'flaky'\nfailed = -1\nruns = 3"), 7, "invalid value"),
            (with_test("name = ' '\nexpect = 'fail'"), 5, "1 to 1024 bytes"),
            (with_test("name = 'a'\nexpect = 'fail'\nlink = 'javascript:alert(1)'"), 5, "http://"),
            ("suite = 'unionmount --ov'\n".to_owned(), 1, "a section with the tests"),
            ("suite = ''\n".to_owned(), 1, "suite's name"),
            ("suite = 'x'\nkernel = '6.12'\n".to_owned(), 2, ">=6.1, <6.13"),
            ("suite = 'x'\ncache = ['auto',\n'warm']\n".to_owned(), 3, "auto, always, never"),
            ("suite = 'x'\n\nsuite = 'y'\n".to_owned(), 3, "duplicate key"),
            ("suite = 'x'\nbroken\n".to_owned(), 2, ""),
        ] {
            let error = error_of(&text);
            assert!(error.starts_with(&format!("my.toml, line {line}: ")), "{text}: {error}");
            assert!(error.contains(says) && !error.contains('\n'), "{text}: {error}");
        }
        assert!(error_of("").contains("missing field `suite`"));
        assert!(error_of(&with_test("expect = 'fail'")).contains("missing field `name`"));
    }

    #[test]
    fn one_test_may_be_in_several_sections() {
        let rows = "name = 'a'\nexpect = 'fail'\n[[test]]\nname = 'a'\nsection = '--ov'\nexpect = 'skip'";
        assert_eq!(BaselineFile::parse("f", &with_test(rows)).unwrap().tests.len(), 2);
    }
}
