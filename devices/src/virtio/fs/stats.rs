//! What a share served and how long it took, by FUSE operation.
//!
//! Each queue's worker counts on its own, so that counting costs no worker a cache miss; whoever asks adds the counts up.
//! A number read while workers count is at most a few requests old.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::Serialize;

use super::Tag;
use super::operation::operation_name;

/// Opcodes that are counted one by one; any other is counted as number 0, which is none.
const OPCODES: usize = 64;
/// Histogram: everything faster than 2^8 ns is one bucket, then four to each power of two, up to 2^36 ns (69 s).
const FIRST_EXPONENT: u32 = 8;
const EXPONENTS: u32 = 28;
const BUCKETS: usize = 1 + 4 * EXPONENTS as usize;

/// One operation's numbers since the device was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OperationStats {
    /// Linux's name of it, without `FUSE_`.
    pub name: &'static str,
    /// FUSE opcode.
    pub opcode: u32,
    /// Requests that were answered, or taken in if they want no answer.
    pub count: u64,
    /// Those that were answered with an errno, LOOKUPs of missing names included.
    pub errors: u64,
    /// Those that a fault was injected into (`FsConfig::faults`), whether they were answered or not.
    pub injected: u64,
    /// Bytes of all requests, headers included.
    pub bytes_in: u64,
    /// Bytes of all replies, headers included.
    pub bytes_out: u64,
    /// From taking the request off the queue to giving it back: half of them were no slower than this, in ns. A quarter
    /// too much at most, as is `p99_ns`.
    pub p50_ns: u64,
    /// 99 of 100 were no slower than this, in ns.
    pub p99_ns: u64,
    /// The slowest, in ns.
    pub max_ns: u64,
    /// All together, in ns.
    pub total_ns: u64,
}

/// A share's numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FsStats {
    /// The share.
    pub tag: String,
    /// Operations that were asked for at least once, by opcode.
    pub operations: Vec<OperationStats>,
}

/// Where to read a device's numbers, also when the device itself was given away.
#[derive(Clone, Debug)]
pub struct FsStatsReader {
    tag: Tag,
    queues: Arc<[QueueStats]>,
}

/// What one queue's worker counts.
#[derive(Debug)]
pub(super) struct QueueStats {
    operations: [OnceLock<Box<Counters>>; OPCODES],
}

/// One request that was served.
#[derive(Clone, Copy, Debug)]
pub(super) struct Served {
    pub(super) opcode: u32,
    pub(super) took: Duration,
    pub(super) bytes_in: u32,
    pub(super) bytes_out: u32,
    pub(super) failed: bool,
}

#[derive(Debug)]
struct Counters {
    count: AtomicU64,
    errors: AtomicU64,
    injected: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    total_ns: AtomicU64,
    max_ns: AtomicU64,
    histogram: [AtomicU64; BUCKETS],
}

impl Counters {
    fn new() -> Box<Self> {
        let zero = || AtomicU64::new(0);
        Box::new(Counters {
            count: zero(),
            errors: zero(),
            injected: zero(),
            bytes_in: zero(),
            bytes_out: zero(),
            total_ns: zero(),
            max_ns: zero(),
            histogram: std::array::from_fn(|_| zero()),
        })
    }
}

impl QueueStats {
    fn new() -> Self {
        QueueStats { operations: std::array::from_fn(|_| OnceLock::new()) }
    }

    fn counters(&self, opcode: u32) -> Option<&Counters> {
        let index = usize::try_from(opcode).unwrap_or(0);
        let slot = self.operations.get(index).or_else(|| self.operations.first())?;
        Some(slot.get_or_init(Counters::new))
    }

    /// Counts a fault that is injected into a request.
    pub(super) fn count_fault(&self, opcode: u32) {
        if let Some(counters) = self.counters(opcode) {
            counters.injected.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a request.
    pub(super) fn count(&self, served: &Served) {
        let Some(counters) = self.counters(served.opcode) else { return };
        let add = |counter: &AtomicU64, value: u64| {
            counter.fetch_add(value, Ordering::Relaxed);
        };
        let ns = u64::try_from(served.took.as_nanos()).unwrap_or(u64::MAX);
        add(&counters.count, 1);
        add(&counters.errors, served.failed.into());
        add(&counters.bytes_in, served.bytes_in.into());
        add(&counters.bytes_out, served.bytes_out.into());
        add(&counters.total_ns, ns);
        counters.max_ns.fetch_max(ns, Ordering::Relaxed);
        if let Some(bucket) = counters.histogram.get(bucket(ns)) {
            add(bucket, 1);
        }
    }
}

/// The histogram's bucket of a latency.
fn bucket(ns: u64) -> usize {
    let Some(exponent) = ns.checked_ilog2().and_then(|log| log.checked_sub(FIRST_EXPONENT)) else { return 0 };
    let quarter = (ns >> (exponent + FIRST_EXPONENT - 2)) & 3;
    (1 + 4 * exponent as usize + quarter as usize).min(BUCKETS - 1)
}

/// The longest latency of a bucket.
fn longest(bucket: usize) -> u64 {
    let Some(index) = bucket.checked_sub(1) else { return (1 << FIRST_EXPONENT) - 1 };
    let (exponent, quarter) = (index / 4, index % 4);
    ((5 + quarter as u64) << (exponent + FIRST_EXPONENT as usize - 2)) - 1
}

impl FsStatsReader {
    /// Nothing counted yet, for a device with so many queues.
    pub(super) fn new(tag: Tag, queues: usize) -> Self {
        FsStatsReader { tag, queues: (0..queues).map(|_| QueueStats::new()).collect() }
    }

    /// What a queue's worker counts with.
    pub(super) fn queue(&self, index: u16) -> Option<&QueueStats> {
        self.queues.get(usize::from(index))
    }

    /// The numbers as they are now.
    pub fn read(&self) -> FsStats {
        let operations = (0..OPCODES).filter_map(|opcode| self.operation(opcode)).collect();
        FsStats { tag: self.tag.to_string(), operations }
    }

    fn operation(&self, opcode: usize) -> Option<OperationStats> {
        let counters: Vec<&Counters> =
            self.queues.iter().filter_map(|queue| Some(&**queue.operations.get(opcode)?.get()?)).collect();
        let sum = |field: fn(&Counters) -> &AtomicU64| -> u64 {
            counters.iter().map(|counters| field(counters).load(Ordering::Relaxed)).sum()
        };
        let max_ns = counters.iter().map(|counters| counters.max_ns.load(Ordering::Relaxed)).max()?;
        let mut histogram = [0u64; BUCKETS];
        for counters in &counters {
            for (sum, bucket) in histogram.iter_mut().zip(&counters.histogram) {
                *sum += bucket.load(Ordering::Relaxed);
            }
        }
        let opcode = u32::try_from(opcode).ok()?;
        Some(OperationStats {
            name: operation_name(opcode),
            opcode,
            count: sum(|counters| &counters.count),
            errors: sum(|counters| &counters.errors),
            injected: sum(|counters| &counters.injected),
            bytes_in: sum(|counters| &counters.bytes_in),
            bytes_out: sum(|counters| &counters.bytes_out),
            p50_ns: percentile(&histogram, 50).min(max_ns),
            p99_ns: percentile(&histogram, 99).min(max_ns),
            max_ns,
            total_ns: sum(|counters| &counters.total_ns),
        })
    }
}

/// The latency that `percent` of all requests do not exceed.
fn percentile(histogram: &[u64], percent: u64) -> u64 {
    let all: u64 = histogram.iter().sum();
    let wanted = (all.saturating_mul(percent)).div_ceil(100);
    let mut seen = 0;
    for (bucket, count) in histogram.iter().enumerate() {
        seen += count;
        if seen >= wanted {
            // Beyond the last bucket's start nothing is known but the maximum.
            return if bucket == BUCKETS - 1 { u64::MAX } else { longest(bucket) };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_every_latency_without_gaps_and_within_a_quarter() {
        assert_eq!((bucket(0), bucket(255), bucket(256), bucket(u64::MAX)), (0, 0, 1, BUCKETS - 1));
        for index in 0..BUCKETS - 2 {
            assert_eq!((bucket(longest(index)), bucket(longest(index) + 1)), (index, index + 1));
        }
        for ns in [300u64, 1000, 12345, 999_999, 5_000_000_000] {
            let said = longest(bucket(ns));
            assert!(said >= ns && said - ns <= ns / 4, "{ns} {said}");
        }
    }

    #[test]
    fn counts_of_all_queues_are_added_up() {
        let reader = FsStatsReader::new(Tag::new("myfs1").unwrap(), 2);
        let served =
            Served { opcode: 3, took: Duration::from_nanos(1000), bytes_in: 56, bytes_out: 120, failed: false };
        for _ in 0..99 {
            reader.queue(0).unwrap().count(&served);
        }
        let slow = Served { took: Duration::from_millis(5), failed: true, bytes_out: 16, ..served };
        reader.queue(1).unwrap().count(&slow);
        reader.queue(1).unwrap().count(&Served { opcode: u32::MAX, ..served });
        assert!(reader.queue(2).is_none());
        let stats = reader.read();
        let [unknown, getattr] = stats.operations.as_slice() else { panic!("{stats:?}") };
        assert_eq!((unknown.name, unknown.count), ("UNKNOWN", 1));
        assert_eq!((getattr.name, getattr.count, getattr.errors), ("GETATTR", 100, 1));
        assert_eq!((getattr.bytes_in, getattr.bytes_out), (5600, 99 * 120 + 16));
        assert_eq!((getattr.max_ns, getattr.total_ns), (5_000_000, 99_000 + 5_000_000));
        assert!((1000..=1250).contains(&getattr.p50_ns) && getattr.p99_ns == getattr.p50_ns, "{getattr:?}");
        let one = FsStatsReader::new(Tag::new("t").unwrap(), 1);
        one.queue(0).unwrap().count(&Served { took: Duration::from_secs(1000), ..served });
        assert_eq!(one.read().operations[0].p50_ns, 1_000_000_000_000, "beyond the histogram");
    }
}
