//! What failing tests did when they ran again, each alone in a fresh guest.

use serde::Serialize;
use wire::TestStatus;

/// The attempts of one test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(into = "Told")]
pub struct Retried {
    /// Times that it ran again.
    pub attempts: u32,
    /// Times that it failed then.
    pub failed: u32,
}

/// What the attempts say of the failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// It failed each time: the failure is the test's own.
    Real,
    /// It failed now and then.
    Flaky,
    /// It passed each time: it failed because of what ran before it, or fails more rarely than it was tried.
    DependsOnOrder,
}

/// For JSON.
#[derive(Serialize)]
struct Told {
    attempts: u32,
    failed: u32,
    kind: FailureKind,
}

impl From<Retried> for Told {
    fn from(retried: Retried) -> Self {
        Self { attempts: retried.attempts, failed: retried.failed, kind: retried.kind() }
    }
}

impl Retried {
    pub(super) fn add(&mut self, status: TestStatus) {
        self.attempts += 1;
        self.failed += u32::from(matches!(status, TestStatus::Fail | TestStatus::Error));
    }

    /// What kind of failure it was.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self.failed {
            0 => FailureKind::DependsOnOrder,
            failed if failed == self.attempts => FailureKind::Real,
            _ => FailureKind::Flaky,
        }
    }

    /// The same in words.
    #[must_use]
    pub fn in_words(&self) -> String {
        let Self { attempts, failed } = self;
        let alone = format!("alone in a fresh guest it failed {failed} of {attempts} times");
        match self.kind() {
            FailureKind::Real => format!("real: {alone}"),
            FailureKind::Flaky => format!("flaky: {alone}"),
            FailureKind::DependsOnOrder => format!("depends on what ran before it, or rare: {alone}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_real_flaky_or_depends_on_order() {
        use TestStatus::{Error, Fail, Pass, Skip};
        for (statuses, kind) in [
            (&[Fail, Error][..], FailureKind::Real),
            (&[Fail, Pass, Fail], FailureKind::Flaky),
            (&[Pass, Skip], FailureKind::DependsOnOrder),
        ] {
            let mut retried = Retried::default();
            statuses.iter().for_each(|status| retried.add(*status));
            assert_eq!(retried.kind(), kind, "{statuses:?}");
            assert_eq!(retried.attempts as usize, statuses.len());
        }
        let json = serde_json::to_value(Retried { attempts: 3, failed: 1 }).unwrap();
        assert_eq!(json, serde_json::json!({ "attempts": 3, "failed": 1, "kind": "flaky" }));
    }
}
