//! A run of a suite made for a test, and what it left.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tests::{Finished, Sandbox, Vmm, fake_suite};

/// A run of a suite of these scripts.
pub(crate) struct Run {
    /// Where it runs.
    pub(crate) sandbox: Sandbox,
    /// The cache that has the suite.
    pub(crate) cache: PathBuf,
}

impl Run {
    pub(crate) fn of(scripts: &[(&str, &str)]) -> Self {
        let sandbox = Sandbox::new();
        let cache = fake_suite::add(&sandbox, scripts);
        Self { sandbox, cache }
    }

    /// A run of a suite with this manifest, called `mine`, whose only file is `run`, this shell script.
    pub(crate) fn of_own(manifest: &str, script: &str) -> Self {
        let sandbox = Sandbox::new();
        let cache = fake_suite::add_own(&sandbox, "mine", manifest, script);
        Self { sandbox, cache }
    }

    /// Such a run.
    pub(crate) fn command_of_own(&self, flags: &[&str]) -> Vmm<'_> {
        Vmm::new(&self.sandbox, ["run", "--host", "kvm", "mine"]).args(flags).env("VMM_CACHE_DIR", &self.cache)
    }

    pub(crate) fn command(&self, flags: &[&str]) -> Vmm<'_> {
        let words = ["run", "--host", "kvm", fake_suite::NAME];
        Vmm::new(&self.sandbox, words).args(flags).env("VMM_CACHE_DIR", &self.cache)
    }

    pub(crate) fn finish(&self, flags: &[&str]) -> Finished {
        let finished = self.command(flags).finish();
        self.sandbox.assert_only_results_left();
        finished
    }

    pub(crate) fn dir(&self) -> PathBuf {
        fs::canonicalize(self.sandbox.work().join("results/latest")).expect("a results folder is there")
    }

    pub(crate) fn results(&self) -> Value {
        serde_json::from_slice(&fs::read(self.dir().join("results.json")).expect("results are there")).unwrap()
    }

    /// `(test, status)` of every result.
    pub(crate) fn statuses(&self) -> Vec<(String, String)> {
        let results = self.results();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let tests = results["suites"].as_array().unwrap().iter().flat_map(|suite| suite["tests"].as_array().unwrap());
        tests.map(|test| (text(&test["test"]), text(&test["status"]))).collect()
    }

    pub(crate) fn junit(&self) -> String {
        fs::read_to_string(self.dir().join("junit.xml")).expect("a JUnit report is there")
    }
}

/// Whether `test` has that result.
pub(crate) fn has(statuses: &[(String, String)], test: &str, status: &str) -> bool {
    statuses.iter().any(|(t, s)| t == test && s == status)
}
