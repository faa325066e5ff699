//! Faults on purpose: what a guest makes of a server that fails, is slow, says too little or says nothing.
//!
//! A share without rules has none of this: its workers look at one `None` for each request. Rules see a request before it is
//! served; each counts the requests of one share that it is about, over all queues.

mod rule;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rule::{Effect, When};
pub use rule::{FaultError, FaultRule};

use super::FsConfig;
use super::chain::Request;
use super::flight::is_named;

/// A share's rules.
#[derive(Debug)]
pub(super) struct Faults {
    rules: Vec<(FaultRule, AtomicU64)>,
}

/// What is to happen to one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Fault {
    /// How long its queue waits first.
    pub(super) delay: Duration,
    /// The errno it is answered with instead of being done.
    pub(super) errno: Option<i32>,
    /// Half of its reply is left out.
    pub(super) short: bool,
    /// Its queue answers nothing any more.
    pub(super) stall: bool,
}

impl Fault {
    /// Whether its queue does nothing for a time.
    pub(super) fn waits(&self) -> bool {
        self.stall || !self.delay.is_zero()
    }
}

impl Faults {
    /// The rules for a share, if there are any.
    pub(super) fn new(config: &FsConfig) -> Option<Self> {
        let rules = config.faults.iter().filter(|rule| rule.is_for(config.tag.as_str()));
        let rules: Vec<_> = rules.map(|rule| (rule.clone(), AtomicU64::new(0))).collect();
        (!rules.is_empty()).then_some(Faults { rules })
    }

    /// What is to happen to this request: the first rule whose turn it is says. All rules count it.
    pub(super) fn strike(&self, request: &Request<'_>) -> Option<Fault> {
        let mut struck = None;
        for (rule, count) in self.rules.iter().filter(|(rule, _)| rule.opcode == request.header.opcode) {
            if rule.name.as_ref().is_some_and(|name| !is_named(request, name.as_bytes())) {
                continue;
            }
            let number = count.fetch_add(1, Ordering::Relaxed) + 1;
            let is_its_turn = match rule.when {
                When::Always => true,
                When::Nth(nth) => number == nth,
                When::Every(every) => number.is_multiple_of(every),
            };
            if is_its_turn && struck.is_none() {
                struck = Some(Fault::from(rule));
            }
        }
        struck
    }
}

impl From<&FaultRule> for Fault {
    fn from(rule: &FaultRule) -> Self {
        let fault = Fault { delay: rule.delay, ..Fault::default() };
        match rule.effect {
            Effect::Served => fault,
            Effect::Errno(errno) => Fault { errno: Some(errno), ..fault },
            Effect::Short => Fault { short: true, ..fault },
            Effect::Stall => Fault { stall: true, ..fault },
        }
    }
}
