//! How long those who wait for the guest, and the guest's halted vCPUs, look for work before they sleep.

use std::io;
use std::num::NonZero;
use std::str::FromStr;
use std::thread::available_parallelism;
use std::time::Duration;

use kvm_bindings::{KVM_CAP_HALT_POLL, kvm_enable_cap};
use kvm_ioctls::{Kvm, VmFd};
use raw_cpuid::{CpuId, Hypervisor};

/// Longest time to look for work: whoever waits longer than this has slept by then, whatever it cost.
const MAX: Duration = Duration::from_millis(100);
/// In an emulated host, where a request and its answer take half a millisecond: half of it gains less where the host is slow
/// to answer (unlink), twice as long costs the whole machine more than it gains when that has other work.
const EMULATED: Duration = Duration::from_millis(1);

/// How long to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polling {
    /// As long as was measured to be of use on such a host, with so many guests side by side.
    Auto {
        /// This one and those that are busy beside it.
        guests: usize,
    },
    /// At most so long; zero: not at all.
    AtMost(Duration),
}

/// What is not a time to look for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PollingError {
    /// Not a word, not a time.
    #[error("{0}; write it as 50us or 2ms, or as auto or off")]
    NotATime(String),
    /// Longer than [`MAX`].
    #[error("that keeps a CPU busy for nothing; at most {} ms are of any use", MAX.as_millis())]
    TooLong,
}

impl Default for Polling {
    fn default() -> Self {
        Self::Auto { guests: 1 }
    }
}

impl FromStr for Polling {
    type Err = PollingError;

    fn from_str(text: &str) -> Result<Self, PollingError> {
        match text {
            "auto" => Ok(Self::default()),
            "off" => Ok(Self::AtMost(Duration::ZERO)),
            time => match humantime::parse_duration(time) {
                Err(error) => Err(PollingError::NotATime(error.to_string())),
                Ok(time) if time > MAX => Err(PollingError::TooLong),
                Ok(time) => Ok(Self::AtMost(time)),
            },
        }
    }
}

impl Polling {
    /// The same for one of so many guests.
    #[must_use]
    pub fn beside(self, guests: usize) -> Self {
        match self {
            Self::Auto { .. } => Self::Auto { guests },
            asked => asked,
        }
    }

    /// The longest time to look at once; zero: not at all.
    pub(super) fn longest(self) -> Duration {
        match self {
            Self::AtMost(time) => time,
            Self::Auto { guests } if is_emulated() && has_room(guests, available_parallelism()) => EMULATED,
            Self::Auto { .. } => Duration::ZERO,
        }
    }
}

/// Whether each guest has a CPU, and whoever looks for its requests another: else looking takes the CPU from what it is for.
fn has_room(guests: usize, cpus: io::Result<NonZero<usize>>) -> bool {
    cpus.is_ok_and(|cpus| cpus.get() >= guests.saturating_mul(2))
}

/// Has KVM wait for a halted vCPU of this VM up to so long before its thread sleeps; zero leaves it to the host
/// (`kvm.halt_poll_ns`), as does a KVM that has no such setting (Linux before 5.10). KVM adapts the time itself.
/// Linux, `Documentation/virt/kvm/api.rst`, KVM_CAP_HALT_POLL.
///
/// # Errors
/// KVM's own.
pub(super) fn set_halt_polling(kvm: &Kvm, vm: &VmFd, longest: Duration) -> io::Result<()> {
    if longest.is_zero() || kvm.check_extension_raw(KVM_CAP_HALT_POLL.into()) <= 0 {
        return Ok(());
    }
    let nanoseconds = u64::try_from(longest.as_nanos()).map_err(io::Error::other)?;
    vm.enable_cap(&kvm_enable_cap { cap: KVM_CAP_HALT_POLL, args: [nanoseconds, 0, 0, 0], ..Default::default() })?;
    Ok(())
}

/// Whether this machine's CPUs are QEMU's TCG: an emulated host, ours or another.
fn is_emulated() -> bool {
    CpuId::new().get_hypervisor_info().is_some_and(|hypervisor| hypervisor.identify() == Hypervisor::QEMU)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_word_or_a_short_time() {
        let at_most = |text: &str| text.parse::<Polling>();
        assert_eq!(at_most("auto"), Ok(Polling::Auto { guests: 1 }));
        assert_eq!(at_most("off"), Ok(Polling::AtMost(Duration::ZERO)));
        assert_eq!(at_most("50us"), Ok(Polling::AtMost(Duration::from_micros(50))));
        assert_eq!(at_most("100ms"), Ok(Polling::AtMost(MAX)));
        assert_eq!(at_most("101ms"), Err(PollingError::TooLong));
        for text in ["", "50", "-1ms", "on"] {
            let error = at_most(text).unwrap_err().to_string();
            assert!(error.contains("50us or 2ms"), "{text}: {error}");
        }
    }

    #[test]
    fn every_guest_wants_two_cpus() {
        for (guests, cpus, room) in [(1, 1, false), (1, 2, true), (2, 3, false), (2, 4, true), (usize::MAX, 64, false)]
        {
            assert_eq!(has_room(guests, Ok(NonZero::new(cpus).unwrap())), room, "{guests} guests, {cpus} CPUs");
        }
        assert!(!has_room(1, Err(io::ErrorKind::Unsupported.into())));
        assert_eq!(Polling::default().beside(3), Polling::Auto { guests: 3 });
    }

    #[test]
    fn what_was_asked_for_holds_whatever_the_host_is() {
        let time = Duration::from_micros(70);
        assert_eq!(Polling::AtMost(time).beside(9).longest(), time);
        assert_eq!(Polling::AtMost(Duration::ZERO).longest(), Duration::ZERO);
        assert!([Duration::ZERO, EMULATED].contains(&Polling::default().longest()));
    }
}
