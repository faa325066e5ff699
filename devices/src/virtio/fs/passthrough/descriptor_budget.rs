//! How many descriptors guests may hold.
//!
//! Every file that a guest has open costs the process one, and so does every inode it knows, unless that can be found
//! again by its file handle. A guest that never forgets must not
//! leave the rest of the process (results, console, vsock) without any, so all shares together draw on one budget, which
//! is smaller than the process's limit.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::errno;

/// Descriptors kept for the rest of the process.
const RESERVED: u64 = 512;

/// A number of descriptors to hand out.
#[derive(Debug)]
pub(in crate::virtio::fs) struct DescriptorBudget {
    left: AtomicUsize,
    total: usize,
}

/// One descriptor of a budget; dropping it gives it back.
#[derive(Debug)]
pub(in crate::virtio::fs) struct Permit {
    budget: Arc<DescriptorBudget>,
}

impl DescriptorBudget {
    /// A budget of `count`.
    pub(in crate::virtio::fs) fn new(count: usize) -> Arc<Self> {
        Arc::new(DescriptorBudget { left: AtomicUsize::new(count), total: count })
    }

    /// The budget of this process. The first call raises the soft limit of open files to the hard one.
    pub(in crate::virtio::fs) fn of_process() -> Arc<Self> {
        static BUDGET: OnceLock<Arc<DescriptorBudget>> = OnceLock::new();
        BUDGET.get_or_init(|| DescriptorBudget::new(share_of(raise_limit()))).clone()
    }

    /// Takes one.
    ///
    /// # Errors
    /// ENFILE: guests hold as many as they may.
    pub(super) fn take(self: &Arc<Self>) -> io::Result<Permit> {
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        match taken {
            Ok(_) => Ok(Permit { budget: self.clone() }),
            Err(_) => Err(errno(libc::ENFILE)),
        }
    }

    /// Takes one for something that could be done without; `None` when half of all are in use. Open files cannot be
    /// done without, and one share must not leave another nothing.
    pub(super) fn take_spare(self: &Arc<Self>) -> Option<Permit> {
        let spare = |left: usize| left.checked_sub(1).filter(|rest| *rest >= self.total / 2);
        let taken = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, spare);
        taken.ok().map(|_| Permit { budget: self.clone() })
    }

    /// How many are left.
    #[cfg(test)]
    pub(in crate::virtio::fs) fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.left.fetch_add(1, Ordering::Relaxed);
    }
}

/// Guests' share of a limit (`None`: unlimited).
fn share_of(limit: Option<u64>) -> usize {
    let limit = limit.unwrap_or(u64::MAX);
    // At least half, where the limit is tiny.
    usize::try_from(limit.saturating_sub(RESERVED).max(limit / 2)).unwrap_or(usize::MAX)
}

fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!("limit of open files stays at {current:?}: {error}");
            current
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_and_given_back() {
        let budget = DescriptorBudget::new(2);
        let permits = [budget.take().unwrap(), budget.take().unwrap()];
        assert_eq!(budget.take().unwrap_err().raw_os_error(), Some(libc::ENFILE));
        drop(permits);
        assert_eq!(budget.left(), 2);
    }

    #[test]
    fn what_could_be_done_without_gets_half() {
        let budget = DescriptorBudget::new(4);
        let spare = [budget.take_spare().unwrap(), budget.take_spare().unwrap()];
        assert!(budget.take_spare().is_none());
        let needed = [budget.take().unwrap(), budget.take().unwrap()];
        drop(spare);
        assert!(budget.take_spare().is_none() || budget.left() >= 2, "never more than half");
        drop(needed);
        assert_eq!(budget.left(), 4);
    }

    #[test]
    fn the_rest_of_the_process_keeps_some() {
        assert_eq!(share_of(Some(1_048_576)), 1_048_064);
        assert_eq!(share_of(Some(1024)), 512);
        assert_eq!(share_of(Some(64)), 32);
        assert!(share_of(None) > 1 << 40);
    }
}
