//! Which commit to test next, and when enough is known. Pure: it is told what was seen and says what it wants to see.
//!
//! The same events in the same order always lead to the same place, so that a bisection which was killed goes on from its
//! journal, and so that a thousand simulated ones can be judged in a test.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::belief::{self, Counts, Evidence};
use super::history::{History, Node};
use super::signature::{End, Observation, Seen, Signature};

/// Failures after which the rate at the failing end is known well enough to begin.
const FAILURES_TO_BEGIN: u32 = 5;
/// Runs after which the failing end has had its chance: a failure in fewer than one run of twenty is not looked for.
const RUNS_OF_A_FAILING_END: u32 = 40;
/// Without a single failure it is given up earlier.
const RUNS_WITHOUT_A_FAILURE: u32 = 20;
/// More runs of one commit than this decide nothing that fewer could not.
const MAX_RUNS: u32 = 300;
/// Runs that end in another failure than the one looked for before the commit counts as untestable.
const OTHER_FAILURES: usize = 2;
/// Where among the candidates to look when commits before could not be tested: first beside the middle, then further
/// away, because what does not build seldom stands alone.
const DETOURS: [f64; 8] = [0.5, 0.5, 0.375, 0.625, 0.25, 0.75, 0.125, 0.875];

/// How a search is made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// How often a commit is run.
    pub repeat: Repeat,
    /// The chance of naming a wrong commit that the user accepts.
    pub error: f64,
    /// Look for the commit that mended it: the old end fails, the new one passes.
    pub fix: bool,
    /// Untestable commits among those that could still tell something before it is given up.
    pub max_untestable: usize,
}

/// How often a commit is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repeat {
    /// Until it fails, at most so often: one failure is bad, no failure is good.
    Times(u32),
    /// Until the chance of a wrong verdict is small enough.
    Auto,
}

/// Something that was learned of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Event {
    /// A run of it.
    Ran {
        /// What it showed.
        observation: Observation,
    },
    /// It cannot be tested: it does not build, does not boot, or the machine could not run it.
    Untestable {
        /// Why.
        why: String,
    },
    /// Its kernel is byte for byte that of another, which was tested.
    SameAs {
        /// The other's id.
        other: String,
    },
    /// Somebody else has tested it.
    Given {
        /// Whether it is on the new side.
        new: bool,
    },
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Run this one.
    Test(Node),
    /// It is over.
    Done(Conclusion),
}

/// What a search comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Conclusion {
    /// The first new commit.
    Found {
        /// Which.
        node: Node,
        /// The chance that it is; `None` when each commit was run once, which takes for granted that the failure always shows.
        chance: Option<f64>,
    },
    /// One of these, and those that would tell them apart cannot be tested.
    OneOf(Vec<Node>),
    /// The failing end does not fail.
    NeverFails {
        /// The end.
        node: Node,
        /// Its runs.
        runs: u32,
    },
    /// The passing end fails too.
    FailsAtBothEnds {
        /// The passing end.
        node: Node,
        /// Its runs.
        counts: Counts,
    },
    /// An end cannot be tested.
    EndUntestable {
        /// Which.
        node: Node,
        /// Why.
        why: String,
    },
    /// The user's limit of untestable commits.
    TooManyUntestable(Vec<Node>),
    /// One commit was run very often and is not decided.
    Undecided(Node),
    /// No commit goes with all that was seen or given.
    Contradiction,
}

#[derive(Clone, Debug)]
struct Tested {
    node: Node,
    contains: Vec<bool>,
    runs: Vec<Observation>,
    untestable: Option<String>,
    same_as: Option<Node>,
    given: Option<bool>,
}

/// A search under way.
#[derive(Clone, Debug)]
pub struct Search {
    history: History,
    rules: Rules,
    tested: Vec<Tested>,
    last: Option<Node>,
}

impl Search {
    /// Begins.
    #[must_use]
    pub fn new(history: History, rules: Rules) -> Self {
        Self { history, rules, tested: Vec::new(), last: None }
    }

    /// What is searched.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// How.
    #[must_use]
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Takes in what was learned of `node`.
    pub fn record(&mut self, node: Node, event: Event) {
        let other = match &event {
            Event::SameAs { other } => self.history.find(other),
            _ => None,
        };
        let at = self.tested.iter().position(|tested| tested.node == node).unwrap_or_else(|| {
            let contains = self.history.contained_in(node);
            let nothing = Tested { node, contains, runs: Vec::new(), untestable: None, same_as: None, given: None };
            self.tested.push(nothing);
            self.tested.len() - 1
        });
        let tested = &mut self.tested[at];
        match event {
            Event::Ran { observation } => tested.runs.push(observation),
            Event::Untestable { why } => tested.untestable = Some(why),
            Event::SameAs { .. } => tested.same_as = other,
            Event::Given { new } => tested.given = Some(new),
        }
        self.last = Some(node);
    }

    /// The failure that is looked for, once a run of the failing end has shown it: what fails at a passing end as well is
    /// no part of it.
    #[must_use]
    pub fn signature(&self) -> Option<Signature> {
        let signature = self.failing_ends().into_iter().flat_map(|node| self.runs(node)).find_map(Signature::of)?;
        let known: BTreeSet<String> = self
            .passing_ends()
            .into_iter()
            .flat_map(|node| self.runs(node))
            .flat_map(|run| run.failed.iter().cloned())
            .collect();
        signature.without(&known)
    }

    /// The tests to tell the results of, when passed.
    #[must_use]
    pub fn interesting(&self) -> BTreeSet<String> {
        let runs = self.failing_ends().into_iter().flat_map(|node| self.runs(node));
        runs.flat_map(|run| run.failed.iter().cloned()).collect()
    }

    /// The runs of a node.
    #[must_use]
    pub fn runs(&self, node: Node) -> &[Observation] {
        self.find(node).map_or(&[], |tested| &tested.runs)
    }

    /// Why the node cannot be tested, if it cannot.
    #[must_use]
    pub fn untestable(&self, node: Node) -> Option<String> {
        let tested = self.find(node)?;
        if tested.untestable.is_some() {
            return tested.untestable.clone();
        }
        let (counts, others) = self.judged(node);
        let told = if self.rules.repeat == Repeat::Auto { counts.runs() as usize } else { 0 };
        (others.len() >= OTHER_FAILURES.max(told + 1)).then(|| others.last().cloned().unwrap_or_default())
    }

    /// How often the failure showed and did not.
    #[must_use]
    pub fn counts(&self, node: Node) -> Counts {
        self.judged(node).0
    }

    /// The nodes of which something was learned, in order.
    pub fn tested(&self) -> impl Iterator<Item = Node> + '_ {
        self.tested.iter().map(|tested| tested.node)
    }

    /// The node whose kernel this one's is.
    #[must_use]
    pub fn same_as(&self, node: Node) -> Option<Node> {
        self.find(node)?.same_as
    }

    /// On which side the node is, once that is decided: whether it is new.
    #[must_use]
    pub fn side(&self, node: Node) -> Option<bool> {
        if self.history.is_end(node) {
            return self.signature().map(|_| node == self.history.new_end());
        }
        if let Some(new) = self.hard_side(node) {
            return Some(new);
        }
        let new: f64 = self.history.sums(&self.shares())[node];
        (new.min(1.0 - new) <= self.rules.error).then_some(new > 0.5)
    }

    /// How many commits are in question, and about how many more have to be decided.
    #[must_use]
    pub fn left(&self) -> (usize, u32) {
        let group = self.likely(&self.shares());
        let count = group.len().max(1);
        (count, usize::BITS - (count - 1).leading_zeros())
    }

    /// What to do now.
    #[must_use]
    pub fn next(&self) -> Next {
        if let Some(next) = self.check_ends() {
            return next;
        }
        let shares = self.shares();
        let Some(top) = most(&shares) else { return Next::Done(Conclusion::Contradiction) };
        let likely = self.likely(&shares);
        if likely.len() == 1 {
            return Next::Done(match self.history.is_candidate(top) {
                true => Conclusion::Found { node: top, chance: self.chance(top) },
                false => Conclusion::Contradiction,
            });
        }
        let sums = self.history.sums(&shares);
        let doubt = |node: Node| sums[node].min(1.0 - sums[node]);
        let worth = self.worth_testing();
        if let Some(last) = self.last
            && self.rules.repeat == Repeat::Auto
            && self.is_testable(last)
            && doubt(last) > worth
        {
            let undecided = self.counts(last).runs() >= MAX_RUNS;
            return if undecided { Next::Done(Conclusion::Undecided(last)) } else { Next::Test(last) };
        }
        let untestable = self.tested().filter(|node| self.untestable(*node).is_some() && doubt(*node) > worth).count();
        if untestable > self.rules.max_untestable {
            return Next::Done(Conclusion::TooManyUntestable(likely));
        }
        let aim = DETOURS[untestable % DETOURS.len()];
        let off = |node: Node| (sums[node] - aim).abs();
        let candidates = (0..self.history.len()).filter(|node| {
            self.history.is_candidate(*node) && shares[*node] > 0.0 && doubt(*node) > worth && self.is_testable(*node)
        });
        match candidates.min_by(|a, b| off(*a).total_cmp(&off(*b))) {
            Some(node) => Next::Test(node),
            None => Next::Done(Conclusion::OneOf(likely)),
        }
    }

    /// Bad must fail and good must pass before anything else is built.
    fn check_ends(&self) -> Option<Next> {
        let done = |conclusion| Some(Next::Done(conclusion));
        for (at, node) in self.failing_ends().into_iter().enumerate() {
            // What it looks like is only learned from a run: of the first end in any case.
            if at > 0 && self.hard_given(node) {
                continue;
            }
            if let Some(why) = self.end_trouble(node) {
                return done(Conclusion::EndUntestable { node, why });
            }
            let runs = self.runs(node);
            let total = u32::try_from(runs.len()).unwrap_or(u32::MAX);
            let fails = match self.signature() {
                Some(_) => self.counts(node).fails,
                // Either it was not seen yet, or the passing end shows it too, which is said there.
                None => {
                    u32::try_from(runs.iter().filter(|run| Signature::of(run).is_some()).count()).unwrap_or(u32::MAX)
                }
            };
            let (enough, limit, none) = match self.rules.repeat {
                Repeat::Times(times) => (1, times, times),
                Repeat::Auto => (FAILURES_TO_BEGIN, RUNS_OF_A_FAILING_END, RUNS_WITHOUT_A_FAILURE),
            };
            match fails {
                0 if total >= none => return done(Conclusion::NeverFails { node, runs: total }),
                seen if seen >= enough || total >= limit => {}
                _ => return Some(Next::Test(node)),
            }
        }
        for (at, node) in self.passing_ends().into_iter().enumerate() {
            // What fails there as well is only learned from a run.
            if at > 0 && self.hard_given(node) {
                continue;
            }
            if let Some(why) = self.end_trouble(node) {
                return done(Conclusion::EndUntestable { node, why });
            }
            let counts = self.counts(node);
            if self.signature().is_none() || counts.fails > 0 {
                let fails = counts.fails.max(1);
                return done(Conclusion::FailsAtBothEnds { node, counts: Counts { fails, ..counts } });
            }
            let enough = match self.rules.repeat {
                Repeat::Times(times) => counts.passes >= times,
                Repeat::Auto => belief::chance_of_passing(self.failing_counts(), counts.passes) <= self.worth_testing(),
            };
            if !enough {
                return Some(Next::Test(node));
            }
        }
        None
    }

    fn end_trouble(&self, node: Node) -> Option<String> {
        if let Some(other) = self.same_as(node) {
            let of = self.history.id(other);
            return Some(format!(
                "its kernel is byte for byte that of {of}: what lies between them is not part of this kernel; give --config \
                 a configuration that has it"
            ));
        }
        let ran_nothing = self.runs(node).iter().any(|run| run.end == End::NothingRan);
        if ran_nothing { Some("no test ran".to_owned()) } else { self.untestable(node) }
    }

    fn failing_counts(&self) -> Counts {
        let counts = self.failing_ends().into_iter().map(|node| self.counts(node));
        counts.fold(Counts::default(), |a, b| Counts { fails: a.fails + b.fails, passes: a.passes + b.passes })
    }

    fn failing_ends(&self) -> Vec<Node> {
        if self.rules.fix { self.history.old().to_vec() } else { vec![self.history.new_end()] }
    }

    fn passing_ends(&self) -> Vec<Node> {
        if self.rules.fix { vec![self.history.new_end()] } else { self.history.old().to_vec() }
    }

    fn find(&self, node: Node) -> Option<&Tested> {
        self.tested.iter().find(|tested| tested.node == node)
    }

    fn hard_given(&self, node: Node) -> bool {
        self.find(node).is_some_and(|tested| tested.given.is_some())
    }

    fn is_testable(&self, node: Node) -> bool {
        self.find(node).is_none_or(|t| t.same_as.is_none() && t.given.is_none()) && self.untestable(node).is_none()
    }

    /// Counts, and what else went wrong.
    fn judged(&self, node: Node) -> (Counts, Vec<String>) {
        let mut counts = Counts::default();
        let mut others = Vec::new();
        let Some(signature) = self.signature() else { return (counts, others) };
        for run in self.runs(node) {
            match signature.judge(run) {
                Seen::Failure => counts.fails += 1,
                Seen::Pass => counts.passes += 1,
                Seen::Other(why) => others.push(why),
            }
        }
        (counts, others)
    }

    /// What a person has said, or so many runs as were asked for: whether the node is new.
    fn hard_side(&self, node: Node) -> Option<bool> {
        if let Some(given) = self.find(node).and_then(|tested| tested.given) {
            return Some(given);
        }
        let Repeat::Times(times) = self.rules.repeat else { return None };
        let counts = self.counts(node);
        let fails = if counts.fails > 0 {
            true
        } else if counts.passes >= times {
            false
        } else {
            return None;
        };
        Some(fails != self.rules.fix)
    }

    /// Each node's share of the belief that it is the first new one.
    fn shares(&self) -> Vec<f64> {
        self.shares_with(self.rules.repeat == Repeat::Auto)
    }

    fn shares_with(&self, from_counts: bool) -> Vec<f64> {
        let nodes = self.history.len();
        let mut logs = vec![0.0; nodes];
        if from_counts {
            let evidence: Vec<_> =
                self.tested.iter().map(|t| Evidence { contains: &t.contains, counts: self.counts(t.node) }).collect();
            logs = belief::log_likelihoods(nodes, &evidence, !self.rules.fix);
        }
        let mut exclude = |is_out: &dyn Fn(Node) -> bool| {
            (0..nodes).filter(|node| is_out(*node)).for_each(|node| logs[node] = f64::NEG_INFINITY);
        };
        // A new end that touches none of the paths stands for all that lies outside of them: the change may be there.
        exclude(&|node| !self.history.is_candidate(node) && node != self.history.new_end());
        for tested in &self.tested {
            let side = if from_counts { tested.given } else { self.hard_side(tested.node) };
            if let Some(new) = side {
                exclude(&|node| tested.contains[node] != new);
            }
            // Two equal kernels are on the same side, so that the change is not between them.
            if let Some(other) = tested.same_as.and_then(|other| self.find(other)) {
                exclude(&|node| tested.contains[node] != other.contains[node]);
            }
        }
        belief::normalized(&logs)
    }

    fn chance(&self, node: Node) -> Option<f64> {
        match self.rules.repeat {
            Repeat::Times(0 | 1) => None,
            _ => Some(self.shares_with(true)[node]),
        }
    }

    /// A commit with less doubt than this about its side is decided: of two such beside each other the doubts together
    /// stay below what the user accepts.
    fn worth_testing(&self) -> f64 {
        match self.rules.repeat {
            Repeat::Times(_) => 1e-9,
            Repeat::Auto => self.rules.error / 4.0,
        }
    }

    /// The fewest nodes that hold all but the accepted error of the belief, in order.
    fn likely(&self, shares: &[f64]) -> Vec<Node> {
        let mut nodes: Vec<Node> = (0..shares.len()).filter(|node| shares[*node] > 0.0).collect();
        if self.rules.repeat == Repeat::Auto {
            nodes.sort_by(|a, b| shares[*b].total_cmp(&shares[*a]));
            let mut held = 0.0;
            let enough = nodes.iter().position(|node| {
                held += shares[*node];
                held >= 1.0 - self.rules.error
            });
            nodes.truncate(enough.map_or(nodes.len(), |at| at + 1));
            nodes.sort_unstable();
        }
        nodes
    }
}

fn most(shares: &[f64]) -> Option<Node> {
    let best = (0..shares.len()).max_by(|a, b| shares[*a].total_cmp(&shares[*b]))?;
    (shares[best] > 0.0).then_some(best)
}

#[cfg(test)]
mod tests;
