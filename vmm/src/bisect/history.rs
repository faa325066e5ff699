//! What is searched: commits with their parents, or a list of kernels, each after the one before it.
//!
//! The *new* end shows what is looked for, the *old* ends do not show it yet; every commit between them is a candidate for
//! the first that does. That is the whole of what the search knows of git.

use std::collections::HashMap;

/// One place in a [`History`].
pub type Node = usize;

/// A directed acyclic graph of commits, parents before children.
#[derive(Clone, Debug)]
pub struct History {
    ids: Vec<String>,
    /// Parents in the history; others are old or do not matter.
    parents: Vec<Vec<Node>>,
    /// Whether the commit may be the first new one. The ends need not be.
    candidate: Vec<bool>,
    old: Vec<Node>,
    new: Node,
}

impl History {
    /// From commits in topological order, parents first, as `git rev-list --reverse --topo-order --parents NEW --not OLD…`
    /// lists them: a commit and its parents. A new end that is not among them (paths were given, and it does not touch
    /// them) is put behind all of them.
    #[must_use]
    pub fn new(commits: &[(String, Vec<String>)], old: &[String], new: &str) -> Self {
        let mut history = Self { ids: Vec::new(), parents: Vec::new(), candidate: Vec::new(), old: Vec::new(), new: 0 };
        for id in old {
            let node = history.push(id, Vec::new(), false);
            history.old.push(node);
        }
        let mut by_id: HashMap<&str, Node> = HashMap::new();
        let mut heads = Vec::new();
        for (id, parents) in commits {
            let parents: Vec<Node> = parents.iter().filter_map(|id| by_id.get(id.as_str()).copied()).collect();
            heads.retain(|head| !parents.contains(head));
            let node = history.push(id, parents, true);
            heads.push(node);
            by_id.insert(id, node);
        }
        history.new = match by_id.get(new) {
            Some(node) => *node,
            None => history.push(new, heads, false),
        };
        history
    }

    /// A list in which each follows the one before it: the first is the old end, the last the new one.
    #[must_use]
    pub fn list(ids: &[String]) -> Self {
        let Some((old, rest)) = ids.split_first() else { return Self::new(&[], &[], "") };
        let parent = |at: usize| at.checked_sub(1).map(|before| rest[before].clone()).into_iter().collect();
        let commits: Vec<_> = rest.iter().enumerate().map(|(at, id)| (id.clone(), parent(at))).collect();
        Self::new(&commits, std::slice::from_ref(old), rest.last().unwrap_or(old))
    }

    fn push(&mut self, id: &str, parents: Vec<Node>, candidate: bool) -> Node {
        self.ids.push(id.to_owned());
        self.parents.push(parents);
        self.candidate.push(candidate);
        self.ids.len() - 1
    }

    /// Number of nodes, ends included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is nothing at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// How many commits may be the first new one.
    #[must_use]
    pub fn candidates(&self) -> usize {
        self.candidate.iter().filter(|candidate| **candidate).count()
    }

    /// Whether this one may be the first new one.
    #[must_use]
    pub fn is_candidate(&self, node: Node) -> bool {
        self.candidate[node]
    }

    /// The node's name: a commit, or a kernel of the list.
    #[must_use]
    pub fn id(&self, node: Node) -> &str {
        &self.ids[node]
    }

    /// The node of that name.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<Node> {
        self.ids.iter().position(|known| known == id)
    }

    /// The ends that do not show it.
    #[must_use]
    pub fn old(&self) -> &[Node] {
        &self.old
    }

    /// The end that shows it.
    #[must_use]
    pub fn new_end(&self) -> Node {
        self.new
    }

    /// Whether it is the new end or one of the old ones.
    #[must_use]
    pub fn is_end(&self, node: Node) -> bool {
        node == self.new_end() || self.old().contains(&node)
    }

    /// Which nodes `node` contains: itself and all its ancestors.
    #[must_use]
    pub fn contained_in(&self, node: Node) -> Vec<bool> {
        let mut contained = vec![false; self.len()];
        let mut left = vec![node];
        while let Some(node) = left.pop() {
            if !std::mem::replace(&mut contained[node], true) {
                left.extend(self.parents[node].iter().filter(|parent| !contained[**parent]));
            }
        }
        contained
    }

    /// For each node the sum of the weights of all that it contains. As git does it: a commit with one parent has its
    /// parent's sum and its own weight, and only merges are walked.
    #[must_use]
    pub fn sums(&self, weights: &[f64]) -> Vec<f64> {
        let mut sums = vec![0.0; self.len()];
        // The merge that saw a node last.
        let mut seen_by = vec![usize::MAX; self.len()];
        let mut left = Vec::new();
        for node in 0..self.len() {
            sums[node] = match self.parents[node].as_slice() {
                [] => weights[node],
                [parent] => sums[*parent] + weights[node],
                _ => {
                    let mut sum = 0.0;
                    left.push(node);
                    while let Some(at) = left.pop() {
                        // Below a node whose sum is nothing there is nothing to find.
                        if seen_by[at] == node || (at != node && sums[at] == 0.0) {
                            continue;
                        }
                        seen_by[at] = node;
                        sum += weights[at];
                        left.extend(&self.parents[at]);
                    }
                    sum
                }
            };
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commits(list: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
        list.iter().map(|(id, parents)| ((*id).to_owned(), parents.iter().map(|p| (*p).to_owned()).collect())).collect()
    }

    /// a, then b and c beside each other, then the merge d, then e.
    fn diamond() -> History {
        let list = commits(&[("a", &["good"]), ("b", &["a"]), ("c", &["a"]), ("d", &["b", "c"]), ("e", &["d"])]);
        History::new(&list, &["good".into()], "e")
    }

    #[test]
    fn a_merge_counts_what_both_sides_share_once() {
        let history = diamond();
        let weights: Vec<f64> = (0..history.len()).map(|n| if history.is_candidate(n) { 1.0 } else { 0.0 }).collect();
        let sums = history.sums(&weights);
        let of = |id: &str| sums[history.find(id).unwrap()];
        assert_eq!(["good", "a", "b", "c", "d", "e"].map(of), [0.0, 1.0, 2.0, 2.0, 4.0, 5.0]);
    }

    #[test]
    fn sums_are_those_of_what_each_node_contains_in_any_graph() {
        // Every third commit merges with one further back, so that merges share much of what they contain.
        let list: Vec<_> = (0..60usize)
            .map(|n| {
                let far = (n % 3 == 2).then(|| format!("c{}", n * 7 % n)).filter(|far| *far != format!("c{}", n - 1));
                let near = n.checked_sub(1).map(|before| format!("c{before}"));
                (format!("c{n}"), near.into_iter().chain(far).collect::<Vec<_>>())
            })
            .collect();
        let history = History::new(&list, &["good".into()], "c59");
        let weights: Vec<f64> = (0..history.len()).map(|n| if n % 4 == 1 { 0.0 } else { n as f64 }).collect();
        for (node, sum) in history.sums(&weights).into_iter().enumerate() {
            let contained = history.contained_in(node);
            let expected: f64 = (0..history.len()).filter(|n| contained[*n]).map(|n| weights[n]).sum();
            assert!((sum - expected).abs() < 1e-9, "{node}: {sum} {expected}");
        }
    }

    #[test]
    fn a_list_is_a_history_whose_first_is_known_to_be_old() {
        let history = History::list(&["one", "two", "three"].map(str::to_owned));
        assert_eq!((history.candidates(), history.old(), history.new_end()), (2, &[0][..], 2));
        assert_eq!(history.contained_in(2), [false, true, true]);
    }

    #[test]
    fn a_new_end_that_touches_none_of_the_paths_contains_all_candidates_and_is_none() {
        let history = History::new(&commits(&[("a", &["x"]), ("b", &["x"])]), &["x".into()], "tip");
        let tip = history.new_end();
        assert!(!history.is_candidate(tip));
        assert_eq!(history.contained_in(tip), [false, true, true, true]);
    }
}
