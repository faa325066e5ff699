//! Inodes that the guest has forgotten: their node ids, should it come across them again.
//!
//! A guest forgets inodes when it is short of memory, or is told to (`drop_caches`), or unmounts. An inode that it then
//! meets again has to have the same node id and generation, or file handles of the guest (NFS, overlayfs's `index` and
//! `nfs_export`) turn stale.
//!
//! Memory: a record is a handle and an id in two hash maps, 66 bytes per slot of a table that is at most 7/8 full.
//! [`Remembered`] keeps the 458,752 inodes forgotten last, up to 917,504, in at most 69 MB; whatever is older is
//! forgotten for good and gets a new id when it is looked up again.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::file_handle::FileHandle;
use super::sharded_map::SHARDS;

/// Records in each of a shard's two generations: 7/8 of 8192, where the standard library's map would grow.
const GENERATION_SIZE: usize = 7168;

/// Some records. The second map leads back from a handle's hash; the handle itself is only kept once.
#[derive(Debug, Default)]
struct Generation {
    by_id: HashMap<u64, FileHandle>,
    by_hash: HashMap<u64, u64>,
}

impl Generation {
    fn id_of(&self, hash: u64, handle: &FileHandle) -> Option<u64> {
        self.by_hash.get(&hash).copied().filter(|id| self.by_id.get(id) == Some(handle))
    }
}

/// The newer records and those from before.
#[derive(Debug, Default)]
struct Shard {
    young: Generation,
    old: Generation,
}

/// A bounded table of forgotten inodes. Sharded by node id: all ids of one inode have to be of one shard.
pub(super) struct Remembered {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

impl Remembered {
    pub(super) fn new() -> Self {
        Remembered { hasher: RandomState::new(), shards: std::array::from_fn(|_| Mutex::default()) }
    }

    #[expect(clippy::indexing_slicing, reason = "the remainder is below the array's length")]
    fn shard(&self, id: u64) -> MutexGuard<'_, Shard> {
        self.shards[id as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers that the inode with this handle was called `id`.
    pub(super) fn insert(&self, id: u64, handle: FileHandle) {
        let hash = self.hasher.hash_one(handle);
        let mut shard = self.shard(id);
        let full = shard.young.by_id.len() >= GENERATION_SIZE;
        let oldest = full.then(|| {
            let young = std::mem::take(&mut shard.young);
            std::mem::replace(&mut shard.old, young)
        });
        shard.young.by_id.insert(id, handle);
        shard.young.by_hash.insert(hash, id);
        // Freeing thousands of records is nothing to do under the lock.
        drop(shard);
        drop(oldest);
    }

    /// What the inode with this handle was called, looking in the shard of `any_id`; it is no longer remembered.
    pub(super) fn take(&self, any_id: u64, handle: &FileHandle) -> Option<u64> {
        let hash = self.hasher.hash_one(handle);
        let mut shard = self.shard(any_id);
        let Shard { young, old } = &mut *shard;
        let id = young.id_of(hash, handle).or_else(|| old.id_of(hash, handle))?;
        for generation in [young, old] {
            if generation.by_id.remove(&id).is_some() {
                generation.by_hash.remove(&hash);
            }
        }
        Some(id)
    }

    /// The handle of a forgotten inode.
    pub(super) fn handle(&self, id: u64) -> Option<FileHandle> {
        let shard = self.shard(id);
        shard.young.by_id.get(&id).or_else(|| shard.old.by_id.get(&id)).copied()
    }

    /// How many inodes are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        let len = |shard: &Mutex<Shard>| {
            let shard = shard.lock().unwrap();
            shard.young.by_id.len() + shard.old.by_id.len()
        };
        self.shards.iter().map(len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_remembered_until_it_is_taken_back() {
        let table = Remembered::new();
        let (one, two) = (FileHandle::made_up(1), FileHandle::made_up(2));
        table.insert(64, one);
        table.insert(128, two);
        assert_eq!(table.handle(64), Some(one));
        assert_eq!((table.take(0, &two), table.take(0, &two)), (Some(128), None));
        assert_eq!(table.take(0, &one), Some(64));
        assert_eq!((table.handle(64), table.len()), (None, 0));
    }

    #[test]
    fn however_many_are_forgotten_the_table_stays_bounded_and_knows_the_last() {
        let table = Remembered::new();
        let count = 3 * GENERATION_SIZE as u64;
        // One shard's share is what one of 64 shards gets of 64 times as many.
        for number in 0..count {
            table.insert(number * SHARDS as u64, FileHandle::made_up(number));
            assert!(table.len() <= 2 * GENERATION_SIZE);
        }
        for number in count - GENERATION_SIZE as u64..count {
            assert_eq!(table.take(0, &FileHandle::made_up(number)), Some(number * SHARDS as u64));
        }
        assert_eq!(table.take(0, &FileHandle::made_up(0)), None);
        let shard = table.shards[0].lock().unwrap();
        assert!(shard.old.by_id.capacity() <= GENERATION_SIZE, "no bigger than the doc comment says");
    }
}
