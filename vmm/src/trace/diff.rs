//! Where two traces part.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use serde::Serialize;
use similar::{Algorithm, DiffOp, capture_diff_slices_deadline};

use super::request::{Naming, describe};
use super::saved::SavedTrace;

/// How long the alignment of one share may take before it becomes coarser.
const PATIENCE: Duration = Duration::from_secs(20);

/// Operations that come when the guest's caches want it and do nothing that a test sees. They are counted, not aligned.
const UNORDERED: [&str; 3] = ["FORGET", "BATCH_FORGET", "INTERRUPT"];

/// How traces are compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiffOptions {
    /// Without names and paths: for tests that choose names at random.
    pub nameless: bool,
    /// With what a guest asks for again because its cache is too old: see [`Naming::is_refresh`].
    pub refreshes: bool,
    /// How many requests around each difference come with it.
    pub context: usize,
}

/// Two traces, share by share.
#[derive(Clone, Debug, Serialize)]
pub struct Diff {
    /// Every share of either, by machine and tag.
    pub shares: Vec<ShareDiff>,
}

/// One share of two traces.
#[derive(Clone, Debug, Serialize)]
pub struct ShareDiff {
    /// Its tag, and the number of its machine from the second one on.
    pub share: String,
    /// Requests that are the same in both.
    pub same: usize,
    /// Where they differ, in order.
    pub divergences: Vec<Divergence>,
    /// How often each operation was asked for, in the first and in the second trace.
    pub operations: BTreeMap<String, (usize, usize)>,
}

/// A place where they differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Divergence {
    /// How many requests of the first and of the second trace precede it.
    pub at: (usize, usize),
    /// The last requests before it, the same in both.
    pub before: Vec<String>,
    /// Requests of the first trace alone.
    pub only_first: Vec<String>,
    /// Requests of the second trace alone.
    pub only_second: Vec<String>,
    /// The first requests behind it.
    pub after: Vec<String>,
}

/// A share's requests as text, oldest first.
#[derive(Debug, Default)]
struct Side {
    requests: Vec<String>,
    counts: BTreeMap<String, usize>,
}

type Sides = BTreeMap<(u32, String), Side>;

fn sides(trace: &SavedTrace, options: DiffOptions) -> Sides {
    let mut order: Vec<_> = trace.requests.iter().collect();
    // Requests of several queues lie side by side; the order in which they were taken is what the guest did.
    order.sort_by_key(|(machine, record)| (*machine, record.at_ns));
    let (mut sides, mut namings) = (Sides::new(), HashMap::new());
    for (machine, record) in order {
        let key = (*machine, record.share.clone());
        let naming: &mut Naming = namings.entry(key.clone()).or_default();
        let side = sides.entry(key).or_default();
        *side.counts.entry(record.operation.to_string()).or_default() += 1;
        let is_left_out =
            UNORDERED.contains(&record.operation.as_ref()) || (!options.refreshes && naming.is_refresh(record));
        if !is_left_out {
            side.requests.push(describe(record, naming, options.nameless));
        }
        naming.learn(record);
    }
    sides
}

impl Diff {
    /// Aligns two traces.
    #[must_use]
    pub fn new(first: &SavedTrace, second: &SavedTrace, options: DiffOptions) -> Self {
        let (mut first, mut second) = (sides(first, options), sides(second, options));
        let mut keys: Vec<_> = first.keys().chain(second.keys()).cloned().collect();
        keys.sort();
        keys.dedup();
        let shares = keys.into_iter().map(|key| {
            let (first, second) = (first.remove(&key).unwrap_or_default(), second.remove(&key).unwrap_or_default());
            let share = if key.0 > 1 { format!("{} of machine {}", key.1, key.0) } else { key.1 };
            ShareDiff::new(share, first, second, options.context)
        });
        Self { shares: shares.collect() }
    }

    /// Whether every share did the same in both.
    #[must_use]
    pub fn is_same(&self) -> bool {
        self.shares.iter().all(|share| share.divergences.is_empty())
    }
}

impl ShareDiff {
    fn new(share: String, first: Side, second: Side, context: usize) -> Self {
        // Numbers are compared faster than texts.
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut number = |text| {
            let next = numbers.len();
            *numbers.entry(text).or_insert(next)
        };
        let left: Vec<usize> = first.requests.iter().map(|text| number(text)).collect();
        let right: Vec<usize> = second.requests.iter().map(|text| number(text)).collect();
        let operations =
            capture_diff_slices_deadline(Algorithm::Myers, &left, &right, Instant::now().checked_add(PATIENCE));
        let mut same = 0;
        let mut divergences: Vec<Divergence> = Vec::new();
        for operation in operations {
            let (old, new) = (operation.old_range(), operation.new_range());
            if let DiffOp::Equal { len, .. } = operation {
                same += len;
                if let Some(last) = divergences.last_mut() {
                    last.after = first.requests[old.start..old.end.min(old.start + context)].to_vec();
                }
                continue;
            }
            let before =
                first.requests[old.start.saturating_sub(context).max(last_end(&divergences))..old.start].to_vec();
            let (only_first, only_second) =
                (first.requests[old.clone()].to_vec(), second.requests[new.clone()].to_vec());
            divergences.push(Divergence {
                at: (old.start, new.start),
                before,
                only_first,
                only_second,
                after: Vec::new(),
            });
        }
        let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        first.counts.into_iter().for_each(|(name, count)| counts.entry(name).or_default().0 = count);
        second.counts.into_iter().for_each(|(name, count)| counts.entry(name).or_default().1 = count);
        Self { share, same, divergences, operations: counts }
    }
}

/// Where the last divergence ends in the first trace.
fn last_end(divergences: &[Divergence]) -> usize {
    divergences.last().map_or(0, |last| last.at.0 + last.only_first.len())
}
