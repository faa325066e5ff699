//! Which machine runs are made on.

use clap::ValueEnum;

use super::kvm_probe::{Verdict, probe};

/// Which machine the guest runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HostChoice {
    /// KVM where it is usable, else the emulated host
    #[default]
    Auto,
    /// This machine's KVM, or fail
    Kvm,
    /// The emulated host, even where KVM is usable
    Emulated,
}

/// What a [`HostChoice`] comes to on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunsOn {
    /// This machine's KVM, which was found to be usable.
    ThisMachine(Verdict),
    /// An emulated host; why, to tell the user.
    EmulatedHost(String),
}

/// This machine's KVM was asked for and is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{verdict}; {}", hint(verdict))]
pub struct KvmNotUsable {
    /// What the probe found.
    pub verdict: Verdict,
}

fn hint(verdict: &Verdict) -> String {
    let emulated = "--host emulated runs it slower";
    verdict.mend().map_or_else(|| emulated.to_owned(), |mend| format!("mend it: {mend}; or {emulated}"))
}

impl HostChoice {
    /// Probes KVM where that matters, and decides.
    ///
    /// # Errors
    /// KVM was asked for and is not usable.
    pub fn decide(self) -> Result<RunsOn, KvmNotUsable> {
        self.decide_with(probe)
    }

    fn decide_with(self, probe: impl FnOnce() -> Verdict) -> Result<RunsOn, KvmNotUsable> {
        if self == Self::Emulated {
            return Ok(RunsOn::EmulatedHost("as asked".to_owned()));
        }
        let verdict = probe();
        match (verdict.is_usable(), self) {
            (true, _) => Ok(RunsOn::ThisMachine(verdict)),
            (false, Self::Kvm) => Err(KvmNotUsable { verdict }),
            (false, _) => Ok(RunsOn::EmulatedHost(verdict.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable() -> Verdict {
        Verdict::Usable { instructions_per_s: 3_000_000_000, exit_ns: 1_000 }
    }

    #[test]
    fn auto_takes_kvm_where_it_is_usable_and_says_why_where_not() {
        assert_eq!(HostChoice::Auto.decide_with(usable), Ok(RunsOn::ThisMachine(usable())));
        let elsewhere = HostChoice::Auto.decide_with(|| Verdict::Missing);
        assert_eq!(elsewhere, Ok(RunsOn::EmulatedHost("there is no /dev/kvm".to_owned())));
    }

    #[test]
    fn kvm_is_taken_or_refused_with_what_to_do() {
        assert!(HostChoice::Kvm.decide_with(usable).is_ok());
        let denied = || Verdict::NoPermission { mend: "sudo usermod -aG kvm me".to_owned() };
        let error = HostChoice::Kvm.decide_with(denied).expect_err("not usable").to_string();
        assert_eq!(
            error,
            "no permission to open /dev/kvm; mend it: sudo usermod -aG kvm me; or --host emulated runs it slower"
        );
    }

    #[test]
    fn an_emulated_host_that_was_asked_for_needs_no_probe() {
        let choice = HostChoice::Emulated.decide_with(|| panic!("probed"));
        assert_eq!(choice, Ok(RunsOn::EmulatedHost("as asked".to_owned())));
    }
}
