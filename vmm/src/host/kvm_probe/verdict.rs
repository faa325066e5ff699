//! What a probe can find, in words, and what to do about it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Below this rate of a register-only loop in kernel mode, KVM is interpreting, and a stock kernel takes minutes to
/// boot. Interpreters were measured at 1.5 million, KVM in an emulated host at 100 to 250 million and, with busy
/// neighbours, at 19 million; hardware at billions.
pub const MIN_INSTRUCTIONS_PER_S: u64 = 6_000_000;

/// At this rate or above, a machine counts as full speed.
const FULL_SPEED_INSTRUCTIONS_PER_S: f64 = 2.4e9;
/// An exit to user space this cheap, ns, counts as full speed: hardware takes 1,000 to 2,000, a virtual machine with
/// nested virtualization up to some ten thousand, an emulated host about 90,000.
const FULL_SPEED_EXIT_NS: f64 = 10_000.0;
const MAX_SPEED_FACTOR: f64 = 30.0;

/// What the probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Stock kernels boot here.
    Usable {
        /// Guest instructions per second in a register-only loop.
        instructions_per_s: u64,
        /// What one exit to user space costs, ns.
        exit_ns: u64,
    },
    /// It works, but interprets.
    TooSlow {
        /// Guest instructions per second in a register-only loop.
        instructions_per_s: u64,
    },
    /// It cannot execute an instruction that stock kernels use.
    EmulationFailure {
        /// Which one, and what KVM said.
        detail: String,
        /// Guest instructions per second before that.
        instructions_per_s: u64,
    },
    /// The probe guest did not come to its end.
    Hung {
        /// How long it had.
        deadline: Duration,
    },
    /// There is no `/dev/kvm`.
    Missing,
    /// There is one, not for us.
    NoPermission {
        /// The command that gives us permission.
        mend: String,
    },
    /// The probe itself failed.
    Error {
        /// What was tried and what failed.
        detail: String,
    },
}

impl Verdict {
    /// The verdict on a KVM that ran everything it was given.
    pub(super) fn from_speed(instructions_per_s: u64, exit_ns: u64) -> Self {
        if instructions_per_s < MIN_INSTRUCTIONS_PER_S {
            Self::TooSlow { instructions_per_s }
        } else {
            Self::Usable { instructions_per_s, exit_ns }
        }
    }

    /// Whether guests can be run on this KVM.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        matches!(self, Self::Usable { .. })
    }

    /// By how much deadlines are to be stretched: 1 on hardware, about 10 in an emulated host, never under 1. Also 1
    /// when KVM is not usable, because nothing is run on it.
    #[must_use]
    pub fn speed_factor(&self) -> f64 {
        let Self::Usable { instructions_per_s, exit_ns } = self else { return 1.0 };
        #[expect(clippy::cast_precision_loss, reason = "a rate and nanoseconds, of which two digits matter")]
        let (rate, exit) = (*instructions_per_s as f64, *exit_ns as f64);
        (FULL_SPEED_INSTRUCTIONS_PER_S / rate).max(exit / FULL_SPEED_EXIT_NS).clamp(1.0, MAX_SPEED_FACTOR)
    }

    /// The command that would make KVM usable, where there is one.
    #[must_use]
    pub fn mend(&self) -> Option<String> {
        match self {
            Self::NoPermission { mend } => Some(mend.clone()),
            Self::Missing => missing_mend(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            _ => None,
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Usable { instructions_per_s, exit_ns } => write!(
                f,
                "KVM is usable: {} instructions/s, {} for an exit",
                rate(*instructions_per_s),
                humantime::format_duration(round(Duration::from_nanos(*exit_ns)))
            ),
            Self::TooSlow { instructions_per_s } => write!(
                f,
                "KVM interprets guests: {} instructions/s, {} are needed",
                rate(*instructions_per_s),
                rate(MIN_INSTRUCTIONS_PER_S)
            ),
            Self::EmulationFailure { detail, instructions_per_s } => {
                write!(f, "KVM cannot run stock kernels: {detail}, at {} instructions/s", rate(*instructions_per_s))
            }
            Self::Hung { deadline } => {
                write!(f, "KVM did not finish a tiny guest within {}", humantime::format_duration(*deadline))
            }
            Self::Missing => f.write_str("there is no /dev/kvm"),
            Self::NoPermission { .. } => f.write_str("no permission to open /dev/kvm"),
            Self::Error { detail } => write!(f, "KVM could not be probed: {detail}"),
        }
    }
}

/// `1.5 million`, `233 million`, `3.7 billion`.
fn rate(per_s: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let value = per_s as f64;
    let (value, unit) = if value < 1e9 { (value / 1e6, "million") } else { (value / 1e9, "billion") };
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// To 100 ns: more digits would be noise.
fn round(exit: Duration) -> Duration {
    Duration::from_nanos(u64::try_from(exit.as_nanos()).unwrap_or(u64::MAX).div_ceil(100).saturating_mul(100))
}

/// What gives the caller access to `device`.
pub(super) fn permission_mend(device: &Path) -> String {
    if rustix::process::geteuid().is_root() {
        // Root is refused by a device cgroup only.
        return format!("start this container with --device {}", device.display());
    }
    let user = std::env::var("USER").unwrap_or_else(|_| "$(id -un)".to_owned());
    let group = fs::metadata(device).ok().filter(|m| m.mode() & 0o060 == 0o060).and_then(|m| group_name(m.gid()));
    match group {
        Some(group) if group != "root" => format!("sudo usermod -aG {group} {user} && exec newgrp {group}"),
        _ => format!("sudo setfacl -m u:{user}:rw {}", device.display()),
    }
}

fn group_name(gid: u32) -> Option<String> {
    let groups = fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>().ok()? == gid).then(|| name.to_owned())
    })
}

/// `/dev/kvm` is absent: a module to load, or nothing to be done.
fn missing_mend(cpuinfo: &str) -> Option<String> {
    let has = |flag: &str| {
        cpuinfo.lines().any(|l| l.starts_with("flags") && l.split_ascii_whitespace().any(|word| word == flag))
    };
    match (has("svm"), has("vmx")) {
        (true, _) => Some("sudo modprobe kvm_amd".to_owned()),
        (_, true) => Some("sudo modprobe kvm_intel".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threshold_parts_interpreters_from_emulated_hosts() {
        assert_eq!(Verdict::from_speed(1_500_000, 90_000), Verdict::TooSlow { instructions_per_s: 1_500_000 });
        assert!(Verdict::from_speed(19_000_000, 90_000).is_usable());
        assert!(Verdict::from_speed(100_000_000, 90_000).is_usable());
        assert!(Verdict::from_speed(MIN_INSTRUCTIONS_PER_S, 1).is_usable());
    }

    #[test]
    fn hardware_keeps_its_deadlines_and_an_emulated_host_gets_about_ten_times_as_long() {
        let factor = |rate, exit| Verdict::from_speed(rate, exit).speed_factor();
        assert!((factor(3_700_000_000, 1_500) - 1.0).abs() < f64::EPSILON);
        assert!((8.0..13.0).contains(&factor(233_000_000, 92_000)));
        assert!((factor(60_000_000, 9_000_000) - MAX_SPEED_FACTOR).abs() < f64::EPSILON);
        assert!((Verdict::Missing.speed_factor() - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn expensive_exits_alone_stretch_deadlines() {
        let nested = Verdict::from_speed(3_700_000_000, 20_000);
        assert!((nested.speed_factor() - 2.0).abs() < 0.01, "{}", nested.speed_factor());
    }

    #[test]
    fn a_verdict_reads_as_a_sentence() {
        assert_eq!(
            Verdict::from_speed(3_712_345_678, 1_420).to_string(),
            "KVM is usable: 3.7 billion instructions/s, 1us 500ns for an exit"
        );
        assert_eq!(
            Verdict::from_speed(1_512_345, 0).to_string(),
            "KVM interprets guests: 1.5 million instructions/s, 6.0 million are needed"
        );
    }

    #[test]
    fn an_absent_device_is_mended_by_the_module_of_the_cpu() {
        assert_eq!(missing_mend("flags\t\t: fpu vmx sse\n"), Some("sudo modprobe kvm_intel".to_owned()));
        assert_eq!(missing_mend("flags\t\t: fpu svm sse\n"), Some("sudo modprobe kvm_amd".to_owned()));
        assert_eq!(missing_mend("flags\t\t: fpu svm_lock sse\nvmx flags : x\n"), None);
    }

    #[test]
    fn only_a_kvm_that_can_be_mended_has_a_mend() {
        assert_eq!(Verdict::NoPermission { mend: "do it".to_owned() }.mend(), Some("do it".to_owned()));
        assert_eq!(Verdict::from_speed(1, 1).mend(), None);
    }
}
