//! A map that many threads use at once: split into shards, each with a lock of its own.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Shards per map. A power of two, well above the number of workers, so that two rarely meet.
pub(super) const SHARDS: usize = 64;

/// A key that knows which shard it belongs to.
pub(super) trait ShardKey: Eq + Hash {
    /// Any number that differs between keys used at the same time.
    fn spread(&self) -> u64;
}

impl ShardKey for u64 {
    fn spread(&self) -> u64 {
        *self
    }
}

type Shard<K, V> = RwLock<HashMap<K, V>>;

/// A hash map in [`SHARDS`] parts.
pub(super) struct ShardedMap<K, V> {
    shards: [Shard<K, V>; SHARDS],
}

impl<K: ShardKey, V: Clone> ShardedMap<K, V> {
    pub(super) fn new() -> Self {
        ShardedMap { shards: std::array::from_fn(|_| RwLock::new(HashMap::new())) }
    }

    #[expect(clippy::indexing_slicing, reason = "the remainder is below the array's length")]
    fn shard(&self, key: &K) -> &Shard<K, V> {
        &self.shards[key.spread() as usize % SHARDS]
    }

    /// The shard of `key`, to read.
    pub(super) fn read(&self, key: &K) -> RwLockReadGuard<'_, HashMap<K, V>> {
        self.shard(key).read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shard of `key`, to change.
    pub(super) fn write(&self, key: &K) -> RwLockWriteGuard<'_, HashMap<K, V>> {
        self.shard(key).write().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the value of `key`.
    pub(super) fn get(&self, key: &K) -> Option<V> {
        self.read(key).get(key).cloned()
    }

    /// Sets the value of `key`.
    pub(super) fn insert(&self, key: K, value: V) {
        let previous = self.write(&key).insert(key, value);
        // Dropped after the lock: dropping a value may close a file.
        drop(previous);
    }

    /// Takes the value of `key` out if `condition` holds for it.
    pub(super) fn remove_if(&self, key: &K, condition: impl FnOnce(&V) -> bool) -> Option<V> {
        let mut shard = self.write(key);
        if shard.get(key).is_some_and(condition) { shard.remove(key) } else { None }
    }

    /// Takes out everything whose key `keep` does not hold for.
    pub(super) fn retain(&self, keep: impl Fn(&K) -> bool) {
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.retain(|key, _| keep(key));
        }
    }

    /// Calls `visit` for every value of the shard of `key`.
    pub(super) fn visit_shard(&self, key: &K, visit: impl FnMut(&V)) {
        self.read(key).values().for_each(visit);
    }

    /// Takes everything out whose key `keep` does not hold for.
    pub(super) fn take(&self, keep: impl Fn(&K) -> bool) -> Vec<V> {
        let take_shard = |shard: &Shard<K, V>| {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.extract_if(|key, _| !keep(key)).map(|(_, value)| value).collect::<Vec<V>>()
        };
        self.shards.iter().flat_map(take_shard).collect()
    }

    /// How many entries there are.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }
}
