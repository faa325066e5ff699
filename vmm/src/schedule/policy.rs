//! How a run is divided.

use std::str::FromStr;

/// For how much work a guest is booted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum GuestPer {
    /// Each test has a guest of its own: nothing that one leaves behind can be seen by another
    Test,
    /// A few tests share one
    Batch,
    /// As many as the run goes on with, until one dies
    #[default]
    Run,
}

/// Tests of a [`GuestPer::Batch`].
pub(super) const BATCH: usize = 16;

/// One of `of` parts of the tests, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shard {
    /// Which one.
    pub index: u32,
    /// Of how many.
    pub of: u32,
}

impl Shard {
    /// Whether the test at `position` of the list is in it. Every test is in one of the shards; neighbours, which tend to take
    /// as long as each other, are in different ones.
    #[must_use]
    pub fn has(self, position: usize) -> bool {
        position % self.of.max(1) as usize + 1 == self.index as usize
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((index, of)) if index >= 1 && index <= of => Ok(Self { index, of }),
            _ => Err("write it as 2/3: the second of three parts".to_owned()),
        }
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

/// How a run is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Guests side by side; at least 1.
    pub jobs: usize,
    /// When a guest is replaced by a fresh one.
    pub guest_per: GuestPer,
    /// Which part of the tests runs here.
    pub shard: Option<Shard>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { jobs: 1, guest_per: GuestPer::Run, shard: None }
    }
}

impl Policy {
    /// Whether tests have to be known by name before the first one runs.
    pub(super) fn divides(&self) -> bool {
        self.jobs > 1 || self.guest_per != GuestPer::Run || self.shard.is_some()
    }

    /// Whether suites whose tests cannot be told apart run here.
    pub(super) fn has_whole_suites(&self) -> bool {
        self.shard.is_none_or(|shard| shard.index == 1)
    }

    /// How many of the tests that wait, each with the time that it takes, µs, a guest is given at a time, when each time takes
    /// `start` µs more. Less and less where several share the work, so that all end at about the same time; but not so little
    /// that starting costs more than is gained.
    pub(super) fn portion(&self, waiting: &[u64], start: u64) -> usize {
        let share = match self.jobs {
            0 | 1 => waiting.len(),
            jobs => {
                let share = fair_share(waiting.iter().map(|time| *time as f64).sum(), start as f64, jobs as f64);
                let ends = waiting.iter().scan(0.0, |sum, time| {
                    *sum += *time as f64;
                    Some(*sum)
                });
                ends.take_while(|sum| *sum <= share).count()
            }
        };
        match self.guest_per {
            GuestPer::Test => 1,
            GuestPer::Batch => share.clamp(1, BATCH),
            GuestPer::Run => share.max(1),
        }
    }
}

/// How much of the work that is `left` a guest is given, all in the same unit of time: half of its share, but where little is left
/// what costs least. In portions of length p each guest starts left / jobs / p times, and in the end waits for another for p / 2 on
/// average; the sum is least at the root of 2 · left · start / jobs. Never less than `start`.
fn fair_share(left: f64, start: f64, jobs: f64) -> f64 {
    let cheapest = (2.0 * left * start / jobs).sqrt().min(left / jobs);
    (left / (2.0 * jobs)).max(cheapest).max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_is_in_exactly_one_shard() {
        for of in 1..=7 {
            for position in 0..100 {
                let holders = (1..=of).filter(|&index| Shard { index, of }.has(position)).count();
                assert_eq!(holders, 1);
            }
        }
    }

    #[test]
    fn a_shard_is_written_as_a_fraction() {
        assert_eq!("2/3".parse(), Ok(Shard { index: 2, of: 3 }));
        for wrong in ["0/3", "4/3", "3", "a/b", "1/0", "-1/2", "1/2/3"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn portions_get_smaller_and_are_never_nothing() {
        let two = Policy { jobs: 2, ..Policy::default() };
        assert_eq!([100, 10, 1].map(|waiting| two.portion(&vec![1; waiting], 0)), [25, 2, 1]);
        assert_eq!(two.portion(&[50, 10, 10, 10, 10, 10], 0), 1, "the long one is a portion by itself");
        assert_eq!(Policy::default().portion(&[1; 100], 9), 100);
        assert_eq!(Policy { guest_per: GuestPer::Test, ..two }.portion(&[1; 100], 9), 1);
        assert_eq!(Policy { guest_per: GuestPer::Batch, ..Policy::default() }.portion(&[1; 100], 9), BATCH);
    }

    #[test]
    fn where_starting_costs_something_little_work_is_not_cut_into_small_portions() {
        let two = Policy { jobs: 2, ..Policy::default() };
        // Half a share of plenty is more than the cheapest.
        assert_eq!(two.portion(&[1; 1000], 1), 250);
        // The root of 2 · 64 · 4 / 2.
        assert_eq!(two.portion(&[1; 64], 4), 16);
        assert_eq!(two.portion(&[1; 16], 4), 8, "the other one gets as much");
        assert_eq!(two.portion(&[1; 6], 4), 4, "less would not be worth the start");
        assert_eq!(two.portion(&[9, 1, 1], 4), 1);
    }
}
