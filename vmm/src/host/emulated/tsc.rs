//! The rate of this machine's time stamp counter, which is also that of the emulated one.

use std::arch::x86_64::_rdtsc;
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for an error of some millionths, short enough not to be noticed.
const SPAN: Duration = Duration::from_millis(20);
/// Pairs of readings of which the closest counts.
const TRIES: u32 = 16;

/// kHz, or `None` when the counter is not to be trusted.
pub(super) fn khz() -> Option<u64> {
    let (begin, begin_ticks) = reading();
    thread::sleep(SPAN);
    let (end, end_ticks) = reading();
    rate_khz(end_ticks.checked_sub(begin_ticks)?, end.duration_since(begin))
}

fn rate_khz(ticks: u64, elapsed: Duration) -> Option<u64> {
    let khz = u128::from(ticks) * 1_000_000 / elapsed.as_nanos().max(1);
    // No processor of the last decades is outside; a counter that is emulated badly may be.
    u64::try_from(khz).ok().filter(|khz| (100_000..20_000_000).contains(khz))
}

/// A time and the counter at that time: of several tries the one in which least time passed between the two, as the
/// scheduler may take the CPU from us in the middle of one.
fn reading() -> (Instant, u64) {
    let one = || {
        let before = ticks();
        let now = Instant::now();
        let after = ticks();
        (after.wrapping_sub(before), now, before.wrapping_add(after.wrapping_sub(before) / 2))
    };
    let mut best = one();
    for _ in 1..TRIES {
        let next = one();
        if next.0 < best.0 {
            best = next;
        }
    }
    (best.1, best.2)
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets user space use it.
    unsafe { _rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree_closely() {
        let (Some(first), Some(second)) = (khz(), khz()) else { panic!("no usable counter on this machine") };
        // KVM's own tolerance is 250 ppm; ten times that leaves room for a busy machine.
        assert!(first.abs_diff(second) < first / 400, "{first} and {second} kHz");
    }

    #[test]
    fn the_rate_is_ticks_per_millisecond_and_nonsense_is_refused() {
        assert_eq!(rate_khz(51_920_000, Duration::from_millis(20)), Some(2_596_000));
        assert_eq!(rate_khz(0, Duration::from_millis(20)), None);
        assert_eq!(rate_khz(u64::MAX, Duration::from_millis(20)), None);
    }
}
