//! The two empty directories a run serves when the user names none. They live below one parent, one folder per run,
//! and go away with the run; what a killed run left behind is removed by the next one.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::config::DEFAULT_TAGS;
use crate::machine::ShareConfig;

const PREFIX: &str = "run-";
const LOCK: &str = "lock";

/// Scratch shares of one run. Dropping it removes them.
#[derive(Debug)]
pub struct ScratchShares {
    dir: TempDir,
    // Held as long as the run lives: a folder whose lock can be had belongs to nobody.
    _lock: File,
}

impl ScratchShares {
    /// Makes the directories below `parent`, which is created if need be, after removing what dead runs left there.
    ///
    /// # Errors
    /// The parent or the directories could not be made: no permission, no space.
    pub fn create(parent: &Path) -> io::Result<Self> {
        fs::create_dir_all(parent)?;
        sweep(parent);
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        // Under its name only when it is locked, or another run would take the folder for an abandoned one.
        let unlocked = dir.path().join("lock.new");
        let lock = File::create_new(&unlocked)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        fs::rename(&unlocked, dir.path().join(LOCK))?;
        for tag in DEFAULT_TAGS {
            fs::create_dir(dir.path().join(tag))?;
        }
        Ok(Self { dir, _lock: lock })
    }

    /// The shares to serve, in order.
    #[must_use]
    pub fn shares(&self) -> Vec<ShareConfig> {
        let share = |tag: &str| ShareConfig { path: self.path().join(tag), tag: tag.to_owned() };
        DEFAULT_TAGS.iter().map(|tag| share(tag)).collect()
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Removes run folders nobody holds the lock of. Best effort: what cannot be removed stays for the next time.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let runs = entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(PREFIX));
    for path in runs.map(|e| e.path()).filter(is_abandoned) {
        if let Err(error) = fs::remove_dir_all(&path) {
            tracing::warn!("failed to remove {} of an earlier run: {error}", path.display());
        }
    }
}

/// A folder is abandoned when its lock is free. One without a lock file is being made right now, unless it is old.
fn is_abandoned(run: &PathBuf) -> bool {
    match File::open(run.join(LOCK)) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(_) => fs::metadata(run)
            .and_then(|m| m.modified())
            .is_ok_and(|made| made.elapsed().is_ok_and(|age| age.as_secs() > 60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_empty_shares_are_made_and_removed_with_the_run() {
        let parent = tempfile::tempdir().expect("tempdir");
        let scratch = ScratchShares::create(parent.path()).expect("created");
        let shares = scratch.shares();
        assert_eq!(shares.iter().map(|s| s.tag.as_str()).collect::<Vec<_>>(), DEFAULT_TAGS);
        assert!(shares.iter().all(|s| s.path.is_dir()));
        drop(scratch);
        assert_eq!(fs::read_dir(parent.path()).expect("readable").count(), 0);
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_a_living_one_is_not() {
        let parent = tempfile::tempdir().expect("tempdir");
        let dead = parent.path().join("run-dead");
        fs::create_dir_all(dead.join("myfs1/deep")).expect("made");
        File::create(dead.join(LOCK)).expect("made");
        let living = ScratchShares::create(parent.path()).expect("created");
        assert!(!dead.exists());
        let _second = ScratchShares::create(parent.path()).expect("created");
        assert!(living.path().is_dir());
    }

    #[test]
    fn runs_that_begin_at_once_leave_each_other_alone() {
        let parent = tempfile::tempdir().expect("tempdir");
        let create =
            || (0..50).all(|_| ScratchShares::create(parent.path()).is_ok_and(|run| run.path().join(LOCK).exists()));
        std::thread::scope(|scope| {
            let runs: Vec<_> = (0..8).map(|_| scope.spawn(create)).collect();
            assert!(runs.into_iter().all(|run| run.join().expect("no panic")));
        });
    }
}
