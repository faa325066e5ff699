//! How sure the runs make us of each candidate: Bayes' rule for a failure that may not show every time.
//!
//! If commit *h* was the first new one, every run of a commit that contains *h* was on one side and every other run on the
//! other. The failure shows in a share *p* of the runs on the failing side and in a share *q* on the passing one. Neither is
//! known, so both are integrated over: all *p* are equally likely beforehand, and *q* is most likely nothing. What remains
//! for each *h* is a product of Beta functions of four counts. Nothing is estimated first and then taken for true, so that
//! few runs at the failing end only mean that more are asked for later.

use std::collections::HashMap;

/// Runs that showed the failure and runs that did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counts {
    /// With the failure.
    pub fails: u32,
    /// Without.
    pub passes: u32,
}

impl Counts {
    /// All.
    #[must_use]
    pub fn runs(self) -> u32 {
        self.fails + self.passes
    }

    fn add(&mut self, other: Self) {
        self.fails += other.fails;
        self.passes += other.passes;
    }
}

/// Uniform: nothing is known of how often the failure shows.
const FAILING: (f64, f64) = (1.0, 1.0);
/// How likely it is that the failure never shows where the bug is not.
const NEVER_WHERE_IT_IS_NOT: f64 = 0.95;
/// Else it shows there rarely: in a twentieth of the runs on average.
const PASSING: (f64, f64) = (1.0, 19.0);

/// What the runs of one commit add, and which nodes that commit contains.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// The commit and its ancestors.
    pub contains: &'a [bool],
    /// Its runs.
    pub counts: Counts,
}

/// For each node the logarithm of how well the runs go with its being the first new one, up to a common term.
/// `failing_is_new`: whether what is looked for is the failure (else that it is gone).
#[must_use]
pub fn log_likelihoods(nodes: usize, evidence: &[Evidence<'_>], failing_is_new: bool) -> Vec<f64> {
    let mut all = Counts::default();
    evidence.iter().for_each(|e| all.add(e.counts));
    let mut known: HashMap<Counts, f64> = HashMap::new();
    let likelihood = |node: usize| {
        let mut new = Counts::default();
        evidence.iter().filter(|e| e.contains[node]).for_each(|e| new.add(e.counts));
        *known.entry(new).or_insert_with(|| {
            let old = Counts { fails: all.fails - new.fails, passes: all.passes - new.passes };
            let (failing, passing) = if failing_is_new { (new, old) } else { (old, new) };
            let never = if passing.fails == 0 { NEVER_WHERE_IT_IS_NOT } else { 0.0 };
            let rarely = (1.0 - NEVER_WHERE_IT_IS_NOT) * log_chance(passing, PASSING).exp();
            log_chance(failing, FAILING) + (never + rarely).ln()
        })
    };
    (0..nodes).map(likelihood).collect()
}

/// The chance that this many more runs all pass where the failure is, given the runs of the failing end.
#[must_use]
pub fn chance_of_passing(failing_end: Counts, more: u32) -> f64 {
    let with = Counts { passes: failing_end.passes + more, ..failing_end };
    (log_chance(with, FAILING) - log_chance(failing_end, FAILING)).exp()
}

/// Logarithm of the chance of such runs in one order, when the share of failures has a Beta distribution:
/// B(a + fails, b + passes) / B(a, b), as a product, because all steps are whole.
fn log_chance(counts: Counts, (a, b): (f64, f64)) -> f64 {
    let rising = |start: f64, steps: u32| (0..steps).map(|step| (start + f64::from(step)).ln()).sum::<f64>();
    rising(a, counts.fails) + rising(b, counts.passes) - rising(a + b, counts.runs())
}

/// Logarithms to shares of one. All of them nothing when no candidate is possible.
#[must_use]
pub fn normalized(logs: &[f64]) -> Vec<f64> {
    let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most == f64::NEG_INFINITY {
        return vec![0.0; logs.len()];
    }
    let weights: Vec<f64> = logs.iter().map(|log| (log - most).exp()).collect();
    let total: f64 = weights.iter().sum();
    // What is this unlikely only makes the sums slower.
    let negligible = 1e-9 / logs.len() as f64;
    weights.into_iter().map(|weight| weight / total).map(|w| if w < negligible { 0.0 } else { w }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(fails: u32, passes: u32) -> Counts {
        Counts { fails, passes }
    }

    #[test]
    fn a_failure_that_always_showed_is_expected_to_show_again_the_more_the_oftener_it_did() {
        assert!((chance_of_passing(counts(1, 0), 1) - 1.0 / 3.0).abs() < 1e-12);
        assert!((chance_of_passing(counts(9, 0), 1) - 1.0 / 11.0).abs() < 1e-12);
        assert!((chance_of_passing(counts(0, 0), 1) - 0.5).abs() < 1e-12);
        assert!(chance_of_passing(counts(9, 0), 3) < 0.005);
        assert!(chance_of_passing(counts(3, 7), 3) > 0.2);
    }

    #[test]
    fn a_failure_says_almost_surely_that_the_bug_is_there_and_a_pass_says_little() {
        // Nodes 0, 1, 2 in a row; the end contains all, the middle one 0 and 1.
        let (end, middle) = ([true; 3], [true, true, false]);
        let shares = |middle_counts, failing_is_new| {
            let evidence = [
                Evidence { contains: &end, counts: if failing_is_new { counts(3, 7) } else { counts(0, 10) } },
                Evidence { contains: &middle, counts: middle_counts },
                Evidence { contains: &[false; 3], counts: if failing_is_new { counts(0, 10) } else { counts(3, 7) } },
            ];
            normalized(&log_likelihoods(3, &evidence, failing_is_new))
        };
        let failed = shares(counts(1, 0), true);
        assert!(failed[0] + failed[1] > 0.98, "{failed:?}");
        let passed = shares(counts(0, 1), true);
        assert!(passed[2] > 1.0 / 3.0 && passed[2] < 0.5, "{passed:?}");
        let often = shares(counts(0, 30), true);
        assert!(often[2] > 0.99, "{often:?}");
        // The other way round: what is new is that it passes, and the failure in the middle says that it is not yet there.
        let fixed_later = shares(counts(1, 0), false);
        assert!(fixed_later[2] > 0.95, "{fixed_later:?}");
    }

    #[test]
    fn shares_add_up_and_the_impossible_has_none() {
        let shares = normalized(&[0.0, f64::NEG_INFINITY, 0.0, -1e6]);
        assert_eq!(shares, [0.5, 0.0, 0.5, 0.0]);
        assert_eq!(normalized(&[f64::NEG_INFINITY; 2]), [0.0; 2]);
    }
}
