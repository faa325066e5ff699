//! What a run is compared with: lists of tests and baselines, those that are for it.
//!
//! What a user's list says of a test goes before what a baseline says, a later baseline before an earlier one, and the user's
//! before the one that is built in.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::baseline_file::{BaselineFile, BaselineRow};
use super::judgement::{Expectation, Expected};
use super::test_list::{BaselineError, ListedTest, read_list};

/// What a run is compared with. The default expects every test to pass or to be skipped.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    excluded: HashMap<String, Arc<Expectation>>,
    expected: HashMap<String, Arc<Expectation>>,
    /// In the order in which they are asked.
    files: Vec<Loaded>,
    /// Whether the suites run only some of their tests, so that nobody need wonder where the others are.
    partial: bool,
}

/// What is compared with: suites, and the cache mode they run with.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The suites, as they are called on the command line.
    pub suites: &'a [String],
    /// `--cache`.
    pub cache: &'a str,
}

#[derive(Clone, Debug)]
struct Loaded {
    source: String,
    file: BaselineFile,
    /// Each row's expectation, shared with the results that it was used for.
    known: Vec<Arc<Expectation>>,
    /// Rows by the test's name.
    by_name: HashMap<String, Vec<usize>>,
    occurred: Vec<bool>,
    /// Why it does not count here.
    unfit: Option<String>,
    /// Whether the user asked for it.
    asked_for: bool,
}

/// What became of one baseline in a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BaselineUse {
    /// The file, or `built in: SUITE`.
    pub source: String,
    /// The suite it is for.
    pub suite: String,
    /// The kernels it is for, if not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// The cache modes it is for, if not all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cache: Vec<String>,
    /// Its rows.
    pub tests: usize,
    /// Why it was not applied; `None` when it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_applied: Option<String>,
    /// Rows whose tests did not occur, though their suites came to their ends.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub did_not_occur: Vec<MissingTest>,
}

/// A test of a baseline that did not occur.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingTest {
    /// The test.
    pub test: String,
    /// Its section, if the baseline names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section: Option<String>,
    /// What was expected of it.
    pub expect: Expected,
    /// Why; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl Baseline {
    /// Whether nothing is said of any test.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.excluded.is_empty() && self.expected.is_empty() && self.files.is_empty()
    }

    /// Adds the tests of an exclude file.
    ///
    /// # Errors
    /// See [`BaselineError`].
    pub fn exclude_file(&mut self, path: &Path) -> Result<(), BaselineError> {
        for ListedTest { name, comment, .. } in read_list(path)? {
            let known = Expectation { expect: Expected::Expunge, seen: None, reason: comment, link: None };
            self.excluded.insert(name, Arc::new(known));
        }
        Ok(())
    }

    /// Adds the tests of a file of expected failures. Failing is all that it tells of a test, in one way or another.
    ///
    /// # Errors
    /// See [`BaselineError`].
    pub fn expect_failures_file(&mut self, path: &Path) -> Result<(), BaselineError> {
        for ListedTest { name, rate, comment } in read_list(path)? {
            // Once in one run is always.
            let flaky = rate.is_some_and(|rate| rate.failed < rate.runs);
            let expect = if flaky { Expected::Flaky } else { Expected::Error };
            let known = Expectation { expect, seen: rate, reason: comment, link: None };
            self.expected.insert(name, Arc::new(known));
        }
        Ok(())
    }

    /// Adds a baseline that the user asked for; it goes before those that are there.
    pub fn add_file(&mut self, source: String, file: BaselineFile, situation: Situation<'_>) {
        self.files.insert(0, Loaded::new(source, file, situation, true));
    }

    /// Adds one that is built in, behind those that are there.
    pub fn add_built_in(&mut self, file: BaselineFile, situation: Situation<'_>) {
        self.files.push(Loaded::new(format!("built in: {}", file.suite), file, situation, false));
    }

    /// Says that the suites run only some of their tests.
    pub fn expect_only_some(&mut self) {
        self.partial = true;
    }

    /// Takes in which kernel the guest runs. Gives a line for each baseline that the user asked for and that is not for
    /// this run.
    pub fn on_kernel(&mut self, release: &str) -> Vec<String> {
        let mut lines = Vec::new();
        for loaded in &mut self.files {
            let other = loaded.file.kernel.as_ref().filter(|range| !range.contains(release));
            if let (None, Some(range)) = (&loaded.unfit, other) {
                loaded.unfit = Some(format!("it is for kernels {range}, the guest's is {release}"));
            }
            if let (true, Some(why)) = (loaded.asked_for, &loaded.unfit) {
                lines.push(format!("baseline {} is not applied: {why}", loaded.source));
            }
        }
        lines
    }

    /// What is known of a test in a suite as it is called in results: with its section behind its name.
    pub fn find(&mut self, suite: &str, test: &str) -> Option<Arc<Expectation>> {
        let mut found = self.excluded.get(test).or_else(|| self.expected.get(test)).cloned();
        let (suite, section) = split_section(suite);
        for loaded in self.files.iter_mut().filter(|loaded| loaded.unfit.is_none() && loaded.file.suite == suite) {
            // Every baseline is asked, so that each knows which of its tests occurred.
            let known = loaded.find(section, test);
            found = found.or(known);
        }
        found
    }

    /// What became of each baseline. `ended` says whether a suite, or its section, came to its end; `None` for one that did
    /// not run.
    #[must_use]
    pub fn uses(&self, run_completed: bool, ended: impl Fn(&str, Option<&str>) -> bool) -> Vec<BaselineUse> {
        let whole = run_completed && !self.partial;
        self.files.iter().map(|loaded| loaded.used(whole, &ended)).collect()
    }
}

/// A suite's name in results: its own, and the section that ran.
#[must_use]
pub(super) fn split_section(suite: &str) -> (&str, Option<&str>) {
    suite.split_once(' ').map_or((suite, None), |(suite, section)| (suite, Some(section)))
}

impl Loaded {
    fn new(source: String, file: BaselineFile, situation: Situation<'_>, asked_for: bool) -> Self {
        let unfit = if !situation.suites.contains(&file.suite) {
            Some(format!("it is for the suite {}, which does not run", file.suite))
        } else if !file.cache.is_empty() && !file.cache.iter().any(|mode| mode == situation.cache) {
            Some(format!("it is for --cache {}, this run has {}", file.cache.join(" or "), situation.cache))
        } else {
            None
        };
        let known = file.tests.iter().map(|row| Arc::new(row.known.clone())).collect();
        let mut by_name: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, row) in file.tests.iter().enumerate() {
            by_name.entry(row.name.clone()).or_default().push(index);
        }
        Self { source, known, by_name, occurred: vec![false; file.tests.len()], file, unfit, asked_for }
    }

    /// A row for just this section goes before one for all.
    fn find(&mut self, section: Option<&str>, test: &str) -> Option<Arc<Expectation>> {
        let rows = self.by_name.get(test)?;
        let with = |wanted: Option<&str>| {
            rows.iter().copied().find(|&index| self.file.tests[index].section.as_deref() == wanted)
        };
        let index = section.and_then(|section| with(Some(section))).or_else(|| with(None))?;
        self.occurred[index] = true;
        Some(Arc::clone(&self.known[index]))
    }

    fn used(&self, whole: bool, ended: &impl Fn(&str, Option<&str>) -> bool) -> BaselineUse {
        let missing = |row: &BaselineRow| MissingTest {
            test: row.name.clone(),
            section: row.section.clone(),
            expect: row.known.expect,
            reason: row.known.reason.clone(),
        };
        let rows = self.file.tests.iter().zip(&self.occurred).filter(|(row, occurred)| {
            !*occurred && whole && self.unfit.is_none() && ended(&self.file.suite, row.section.as_deref())
        });
        BaselineUse {
            source: self.source.clone(),
            suite: self.file.suite.clone(),
            kernel: self.file.kernel.as_ref().map(ToString::to_string),
            cache: self.file.cache.clone(),
            tests: self.file.tests.len(),
            not_applied: self.unfit.clone(),
            did_not_occur: rows.map(|(row, _)| missing(row)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn situation(suites: &[String]) -> Situation<'_> {
        Situation { suites, cache: "auto" }
    }

    fn with(texts: &[&str]) -> Baseline {
        let suites = ["s".to_owned()];
        let mut baseline = Baseline::default();
        for (number, text) in texts.iter().enumerate() {
            let file = BaselineFile::parse("f", text).unwrap();
            baseline.add_file(format!("{number}.toml"), file, situation(&suites));
        }
        baseline
    }

    fn expected(baseline: &mut Baseline, suite: &str, test: &str) -> Option<Expected> {
        baseline.find(suite, test).map(|known| known.expect)
    }

    const FAILS: &str = "suite = 's'\n[[test]]\nname = 'a'\nexpect = 'fail'\n";

    #[test]
    fn a_baseline_is_for_the_suite_and_every_section_of_it() {
        let mut baseline = with(&[FAILS]);
        assert_eq!(expected(&mut baseline, "s", "a"), Some(Expected::Fail));
        assert_eq!(expected(&mut baseline, "s --ov --meta", "a"), Some(Expected::Fail));
        assert_eq!(expected(&mut baseline, "s2", "a"), None);
        assert_eq!(expected(&mut baseline, "s", "b"), None);
    }

    #[test]
    fn what_is_said_of_a_section_goes_before_what_is_said_of_all() {
        let text = format!("{FAILS}[[test]]\nname = 'a'\nsection = '--ov --meta'\nexpect = 'skip'\n");
        let mut baseline = with(&[&text]);
        assert_eq!(expected(&mut baseline, "s --ov --meta", "a"), Some(Expected::Skip));
        assert_eq!(expected(&mut baseline, "s --ov", "a"), Some(Expected::Fail));
        assert_eq!(expected(&mut baseline, "s", "a"), Some(Expected::Fail));
    }

    #[test]
    fn the_last_baseline_wins_and_lists_win_over_all() {
        let mut baseline = with(&[FAILS, &FAILS.replace("fail", "skip")]);
        let suites = ["s".to_owned()];
        baseline.add_built_in(BaselineFile::parse("f", &FAILS.replace("fail", "error")).unwrap(), situation(&suites));
        assert_eq!(expected(&mut baseline, "s", "a"), Some(Expected::Skip));
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("list");
        fs::write(&list, "a # F:1/18 slow\nb # F:1/1\nc # always\n").unwrap();
        baseline.expect_failures_file(&list).unwrap();
        assert_eq!(expected(&mut baseline, "s", "a"), Some(Expected::Flaky));
        // Once in one run is always.
        assert_eq!(expected(&mut baseline, "s", "b"), Some(Expected::Error));
        assert_eq!(expected(&mut baseline, "s", "c"), Some(Expected::Error));
        baseline.exclude_file(&list).unwrap();
        assert_eq!(expected(&mut baseline, "s", "a"), Some(Expected::Expunge));
        assert_eq!(baseline.find("s", "c").unwrap().reason, "always");
    }

    #[test]
    fn a_baseline_for_another_suite_cache_or_kernel_is_not_applied_and_says_why() {
        let mut baseline = with(&[
            "suite = 't'\n",
            "suite = 's'\ncache = ['never', 'always']\n[[test]]\nname = 'a'\nexpect = 'fail'\n",
            "suite = 's'\nkernel = '<6.12'\n[[test]]\nname = 'a'\nexpect = 'fail'\n",
        ]);
        let lines = baseline.on_kernel("6.12.117+deb13");
        assert_eq!(
            lines,
            [
                "baseline 2.toml is not applied: it is for kernels <6.12, the guest's is 6.12.117+deb13",
                "baseline 1.toml is not applied: it is for --cache never or always, this run has auto",
                "baseline 0.toml is not applied: it is for the suite t, which does not run",
            ]
        );
        assert_eq!(expected(&mut baseline, "s", "a"), None);
        let uses = baseline.uses(true, |_, _| true);
        assert!(uses.iter().all(|used| used.not_applied.is_some() && used.did_not_occur.is_empty()), "{uses:?}");
    }

    #[test]
    fn nobody_is_told_of_a_built_in_baseline_that_is_not_applied() {
        let suites = ["s".to_owned()];
        let mut baseline = Baseline::default();
        let text = FAILS.replace("[[", "kernel = '<6'\n[[");
        baseline.add_built_in(BaselineFile::parse("f", &text).unwrap(), situation(&suites));
        assert!(baseline.on_kernel("6.12.1").is_empty());
        assert_eq!(expected(&mut baseline, "s", "a"), None);
    }

    #[test]
    fn tests_that_did_not_occur_are_told_of_complete_runs_only() {
        let text = format!("{FAILS}[[test]]\nname = 'b'\nexpect = 'flaky'\nfailed = 1\nruns = 2\nreason = 'why'\n");
        let mut baseline = with(&[&text]);
        baseline.find("s", "a");
        let uses = baseline.uses(true, |_, _| true);
        let missing = MissingTest { test: "b".into(), section: None, expect: Expected::Flaky, reason: "why".into() };
        assert_eq!((uses[0].tests, &uses[0].did_not_occur), (2, &vec![missing]));
        assert!(baseline.uses(false, |_, _| true)[0].did_not_occur.is_empty());
        assert!(baseline.uses(true, |_, _| false)[0].did_not_occur.is_empty());
        baseline.expect_only_some();
        assert!(baseline.uses(true, |_, _| true)[0].did_not_occur.is_empty());
    }

    #[test]
    fn a_test_of_two_baselines_occurred_for_both() {
        let mut baseline = with(&[FAILS, FAILS]);
        baseline.find("s", "a");
        assert!(baseline.uses(true, |_, _| true).iter().all(|used| used.did_not_occur.is_empty()));
    }
}
