//! What failed, told so that one run's failure can be recognised in another's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::verdict::truncated;

/// Failing tests named in a description.
const NAMED: usize = 5;
/// Longest description, bytes.
const MAX_TEXT: usize = 400;

/// What one run showed of a kernel that came up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observation {
    /// How it ended.
    pub end: End,
    /// `suite: test` of what failed.
    pub failed: BTreeSet<String>,
    /// Those that passed, of the tests that failed at the failing end.
    pub passed: BTreeSet<String>,
    /// What the guest died of or how it hung, for the tests that took it with them: the run went on in a fresh one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub deaths: BTreeMap<String, String>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "text", rename_all = "kebab-case")]
pub enum End {
    /// The suites came to their ends; the tests tell.
    Completed,
    /// The guest's kernel panicked or oopsed, or the machine stopped; its last words.
    Died(String),
    /// A deadline passed; which.
    TimedOut(String),
    /// Every test was skipped.
    NothingRan,
    /// The kernel did not come as far as user space; its last words. Only with `--boot-failure bad`.
    BootFailed(String),
    /// A command ended with this exit code.
    Exited(i32),
}

/// What a run says about the failure that is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is there.
    Failure,
    /// It is not, and it could have been.
    Pass,
    /// Something else went wrong, so that nothing can be said.
    Other(String),
}

/// The failure at the failing end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    end: End,
    tests: BTreeSet<String>,
    deaths: BTreeMap<String, String>,
}

impl Observation {
    /// Of a run that ended so and told no results.
    #[must_use]
    pub fn of(end: End) -> Self {
        Self { end, failed: BTreeSet::new(), passed: BTreeSet::new(), deaths: BTreeMap::new() }
    }

    /// Of a run in which nothing went wrong.
    #[must_use]
    pub fn pass() -> Self {
        Self::of(End::Completed)
    }

    /// Whether nothing at all went wrong.
    #[must_use]
    pub fn is_pass(&self) -> bool {
        matches!(self.end, End::Completed | End::Exited(0)) && self.failed.is_empty()
    }

    /// In a few words.
    #[must_use]
    pub fn describe(&self) -> String {
        let tests = || listed(&self.failed);
        let text = match &self.end {
            End::Completed if self.failed.is_empty() => "passes".to_owned(),
            End::Completed => match self.deaths.iter().next() {
                Some((test, words)) if self.failed.len() == 1 => format!("fails: {test}: {words}"),
                _ => format!("fails: {}", tests()),
            },
            End::Died(words) => format!("the guest died: {words}"),
            End::TimedOut(words) if self.failed.is_empty() => format!("timed out: {words}"),
            End::TimedOut(words) => format!("timed out: {words} ({})", tests()),
            End::NothingRan => "no test ran".to_owned(),
            End::BootFailed(words) => format!("does not boot: {words}"),
            End::Exited(0) => "exit code 0".to_owned(),
            End::Exited(code) => format!("exit code {code}"),
        };
        truncated(&text, MAX_TEXT).to_owned()
    }
}

impl Signature {
    /// That of a failing run; `None` when the run shows no failure.
    #[must_use]
    pub fn of(run: &Observation) -> Option<Self> {
        let is_failure = match &run.end {
            End::Completed => !run.failed.is_empty(),
            End::Exited(code) => *code != 0,
            End::NothingRan => false,
            End::Died(_) | End::TimedOut(_) | End::BootFailed(_) => true,
        };
        is_failure.then(|| Self { end: run.end.clone(), tests: run.failed.clone(), deaths: run.deaths.clone() })
    }

    /// Leaves out the tests that fail at the passing end as well: they tell nothing. `None` when that was all.
    #[must_use]
    pub fn without(mut self, known: &BTreeSet<String>) -> Option<Self> {
        if self.end == End::Completed {
            self.tests.retain(|test| !known.contains(test));
            if self.tests.is_empty() {
                return None;
            }
        }
        Some(self)
    }

    /// The tests by which it is known; none when the guest's end alone tells.
    #[must_use]
    pub fn tests(&self) -> &BTreeSet<String> {
        &self.tests
    }

    /// Looks for it in a run.
    #[must_use]
    pub fn judge(&self, run: &Observation) -> Seen {
        let other = || Seen::Other(format!("another failure than the one looked for: {}", run.describe()));
        match (&self.end, &run.end) {
            // Where the tests tell, they decide as long as they ran, whatever else failed beside them.
            (End::Completed, _) if self.tests.iter().any(|test| self.fails_alike(test, run)) => match run.end {
                End::Completed => Seen::Failure,
                // Whoever ran when the guest died has failed with it.
                _ => other(),
            },
            (End::Completed, _) if self.tests.is_subset(&run.passed) => Seen::Pass,
            (End::Completed, End::Completed | End::NothingRan) if self.tests.is_disjoint(&run.failed) => {
                Seen::Other(format!("did not run: {}", listed(&(&self.tests - &run.passed))))
            }
            (End::Exited(_), End::Exited(0)) => Seen::Pass,
            (End::Exited(looked_for), End::Exited(code)) if looked_for == code => Seen::Failure,
            (End::BootFailed(_), End::BootFailed(_)) => Seen::Failure,
            // It came up, which is all that was asked.
            (End::BootFailed(_), End::Completed | End::Exited(_) | End::NothingRan) => Seen::Pass,
            (End::Died(was), End::Died(is)) if same_death(was, is) => Seen::Failure,
            (End::TimedOut(_), End::TimedOut(_)) if self.same_place(run) => Seen::Failure,
            (End::Died(_) | End::TimedOut(_), End::Completed | End::Exited(_)) if run.is_pass() => Seen::Pass,
            // The tests that ran into it then have passed now; others are none of its business.
            (End::Died(_) | End::TimedOut(_), End::Completed)
                if !self.tests.is_empty() && self.tests.is_subset(&run.passed) =>
            {
                Seen::Pass
            }
            _ => other(),
        }
    }

    /// Whether the test fails in the run as it did: if it took its guest with it then, so it does now, and by the same death.
    fn fails_alike(&self, test: &str, run: &Observation) -> bool {
        run.failed.contains(test)
            && match (self.deaths.get(test), run.deaths.get(test)) {
                (None, None) => true,
                (Some(was), Some(is)) => same_death(was, is),
                _ => false,
            }
    }

    /// Whether the same test hangs; without tests a deadline is like another.
    fn same_place(&self, run: &Observation) -> bool {
        (self.tests.is_empty() && run.failed.is_empty()) || self.tests.intersection(&run.failed).next().is_some()
    }

    /// In a few words.
    #[must_use]
    pub fn describe(&self) -> String {
        let (failed, deaths) = (self.tests.clone(), self.deaths.clone());
        Observation { failed, deaths, ..Observation::of(self.end.clone()) }.describe()
    }
}

/// Whether two kernels died of the same: in the same function if both say where, else with the same words, numbers aside.
fn same_death(one: &str, other: &str) -> bool {
    match (function(one), function(other)) {
        (Some(one), Some(other)) => one == other,
        _ => words(one) == words(other),
    }
}

/// `fuse_do_getattr` of `RIP: 0010:fuse_do_getattr+0x1a/0x2b0`, without what the compiler added.
fn function(death: &str) -> Option<&str> {
    let (_, place) = death.split_once("RIP: ")?;
    let place = place.split_once(':').map_or(place, |(_, place)| place);
    let name = place.split(['+', ' ', ';']).next()?;
    let name = name.split('.').next()?;
    (!name.is_empty() && !name.starts_with("0x")).then_some(name)
}

/// Numbers, decimal or not, differ from boot to boot.
fn words(text: &str) -> Vec<&str> {
    let is_number =
        |word: &&str| !word.is_empty() && word.chars().all(|c| c.is_ascii_hexdigit() || "x[].,#-".contains(c));
    text.split([' ', ':', ';']).filter(|word| !word.is_empty() && !is_number(word)).collect()
}

fn listed(tests: &BTreeSet<String>) -> String {
    let mut text = tests.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if let more @ 1.. = tests.len().saturating_sub(NAMED) {
        let _ = write!(text, " and {more} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn run(end: End, failed: &[&str], passed: &[&str]) -> Observation {
        Observation { failed: set(failed), passed: set(passed), ..Observation::of(end) }
    }

    fn died(text: &str) -> Observation {
        run(End::Died(text.into()), &["s: a"], &[])
    }

    fn is_other(seen: &Seen) -> bool {
        matches!(seen, Seen::Other(_))
    }

    #[test]
    fn the_tests_that_failed_decide_as_long_as_they_ran() {
        let signature = Signature::of(&run(End::Completed, &["s: a", "s: b"], &[])).unwrap();
        assert_eq!(signature.judge(&run(End::Completed, &["s: a", "s: z"], &["s: b"])), Seen::Failure);
        assert_eq!(signature.judge(&run(End::Completed, &["s: z"], &["s: a", "s: b"])), Seen::Pass);
        for other in [
            run(End::Completed, &["s: z"], &["s: a"]),
            run(End::NothingRan, &[], &[]),
            run(End::Died("Kernel panic".into()), &["s: a"], &[]),
            run(End::TimedOut("1m".into()), &["s: z"], &["s: a"]),
        ] {
            assert!(is_other(&signature.judge(&other)), "{other:?}");
        }
    }

    #[test]
    fn what_fails_at_the_passing_end_too_is_no_part_of_it() {
        let signature = Signature::of(&run(End::Completed, &["s: a", "s: old"], &[])).unwrap();
        let signature = signature.without(&set(&["s: old"])).unwrap();
        assert_eq!(signature.judge(&run(End::Completed, &["s: old"], &["s: a"])), Seen::Pass);
        assert_eq!(signature.without(&set(&["s: a"])), None);
    }

    #[test]
    fn a_panic_is_the_same_in_the_same_function_whatever_the_numbers_are() {
        let first = "Kernel panic - not syncing: Fatal exception; BUG: kernel NULL pointer dereference, address: \
                     0000000000000008; RIP: 0010:fuse_do_getattr+0x1a/0x2b0";
        let signature = Signature::of(&died(first)).unwrap();
        let moved = first.replace("+0x1a/0x2b0", ".isra.0+0x2c/0x300").replace("008", "010");
        assert_eq!(signature.judge(&died(&moved)), Seen::Failure);
        assert!(is_other(&signature.judge(&died(&first.replace("getattr", "open")))));
        assert!(is_other(&signature.judge(&died("Kernel panic - not syncing: Out of memory"))));
        assert_eq!(signature.judge(&run(End::Completed, &[], &["s: a"])), Seen::Pass);
        assert_eq!(signature.judge(&run(End::Completed, &["s: z"], &["s: a"])), Seen::Pass);
        assert!(is_other(&signature.judge(&run(End::Completed, &["s: a"], &[]))));
        assert!(is_other(&signature.judge(&run(End::TimedOut("1m".into()), &["s: a"], &[]))));
    }

    #[test]
    fn a_test_that_took_its_guest_with_it_fails_alike_only_by_the_same_death() {
        let death = |words: &str| Observation {
            deaths: BTreeMap::from([("s: a".to_owned(), words.to_owned())]),
            ..run(End::Completed, &["s: a"], &[])
        };
        let panic = |function: &str| death(&format!("Kernel panic - not syncing: x; RIP: 0010:{function}+0x1/0x2"));
        let signature = Signature::of(&panic("fuse_symlink")).unwrap();
        assert_eq!(signature.judge(&panic("fuse_symlink")), Seen::Failure);
        for other in [panic("fuse_mkdir"), death("the guest hangs: 1m"), run(End::Completed, &["s: a"], &[])] {
            assert!(is_other(&signature.judge(&other)), "{other:?}");
        }
        assert_eq!(signature.judge(&run(End::Completed, &[], &["s: a"])), Seen::Pass);
        assert!(signature.describe().contains("s: a: Kernel panic"), "{}", signature.describe());
    }

    #[test]
    fn without_a_place_the_words_of_a_panic_are_compared() {
        let signature = Signature::of(&died("Kernel panic - not syncing: stack 0xffff88 pid 17")).unwrap();
        assert_eq!(signature.judge(&died("Kernel panic - not syncing: stack 0xffff90 pid 3")), Seen::Failure);
        assert!(is_other(&signature.judge(&died("Kernel panic - not syncing: heap 0xffff90 pid 3"))));
    }

    #[test]
    fn a_hang_is_the_same_when_the_same_test_hangs() {
        let hang = |tests: &[&str]| run(End::TimedOut("test deadline of 5m".into()), tests, &[]);
        let signature = Signature::of(&hang(&["s: a"])).unwrap();
        assert_eq!(signature.judge(&hang(&["s: a"])), Seen::Failure);
        assert!(is_other(&signature.judge(&hang(&["s: b"]))));
        assert_eq!(Signature::of(&hang(&[])).unwrap().judge(&hang(&[])), Seen::Failure);
    }

    #[test]
    fn a_commands_exit_code_must_be_the_same() {
        let exited = |code| run(End::Exited(code), &[], &[]);
        let signature = Signature::of(&exited(7)).unwrap();
        assert_eq!([7, 0].map(|code| signature.judge(&exited(code))), [Seen::Failure, Seen::Pass]);
        assert!(is_other(&signature.judge(&exited(8))));
        assert_eq!(Signature::of(&exited(0)), None);
    }

    #[test]
    fn a_kernel_that_comes_up_has_no_boot_failure_however_its_tests_end() {
        let signature = Signature::of(&run(End::BootFailed("panic".into()), &[], &[])).unwrap();
        assert_eq!(signature.judge(&run(End::BootFailed("silence".into()), &[], &[])), Seen::Failure);
        assert_eq!(signature.judge(&run(End::Completed, &["s: a"], &[])), Seen::Pass);
    }

    #[test]
    fn many_failures_are_told_in_a_few_words() {
        let tests: Vec<String> = (0..40).map(|n| format!("s: test{n:02}")).collect();
        let names: Vec<&str> = tests.iter().map(String::as_str).collect();
        let told = run(End::Completed, &names, &[]).describe();
        assert!(told.starts_with("fails: s: test00, ") && told.ends_with("and 35 more"), "{told}");
        assert!(died(&"é".repeat(1000)).describe().len() <= MAX_TEXT);
    }
}
