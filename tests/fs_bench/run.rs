//! What one run of one set-up came to, as it is passed from guest to host to table.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Name of the file in which the guest leaves its [`Measured`].
pub(crate) const RESULT: &str = "result.json";
/// Name of the file that says that the guest is gone, with or without a result.
pub(crate) const ENDED: &str = "ended";

/// The guest asks for a reading of the counters by making this file.
pub(crate) fn wanted(mark: usize) -> String {
    format!("want-{mark}")
}

/// The host has taken the reading when this file is there.
pub(crate) fn taken(mark: usize) -> String {
    format!("have-{mark}")
}

/// One operation as a guest timed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operation {
    pub(crate) name: String,
    /// How often it was done.
    pub(crate) count: u64,
    /// Nanoseconds for each, by rank.
    pub(crate) p50_ns: u64,
    pub(crate) p90_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) max_ns: u64,
    pub(crate) mean_ns: u64,
}

impl Operation {
    /// From what each repetition took; at least one.
    pub(crate) fn new(name: &str, mut ns: Vec<u64>) -> Self {
        ns.sort_unstable();
        let count = ns.len();
        let rank = |percent: usize| ns[(count * percent).div_ceil(100).clamp(1, count) - 1];
        Operation {
            name: name.to_owned(),
            count: count as u64,
            p50_ns: rank(50),
            p90_ns: rank(90),
            p99_ns: rank(99),
            max_ns: rank(100),
            mean_ns: ns.iter().sum::<u64>() / count as u64,
        }
    }
}

/// KVM's counters of all vCPUs, by KVM's names.
pub(crate) type Counters = BTreeMap<String, u64>;

/// One run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) candidate: String,
    pub(crate) cpus: usize,
    pub(crate) operations: Vec<Operation>,
    /// How far the counters went during each operation, in the same order.
    pub(crate) counters: Vec<Counters>,
}

/// The median; of an even number of values the mean of the middle two.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured_whatever_their_order() {
        let operation = Operation::new("x", (1..=200).rev().collect());
        let Operation { count, p50_ns, p90_ns, p99_ns, max_ns, mean_ns, .. } = operation;
        assert_eq!((count, p50_ns, p90_ns, p99_ns, max_ns, mean_ns), (200, 100, 180, 198, 200, 100));
        let one = Operation::new("x", vec![7]);
        assert_eq!((one.p50_ns, one.p99_ns, one.max_ns), (7, 7, 7));
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(vec![9.0, 1.0, 5.0, 6.0]), Some(5.5));
        assert_eq!(median(Vec::new()), None);
    }
}
