//! The inodes that the guest knows: node id ↔ host inode, with lookup counts.
//!
//! An entry lives from the first LOOKUP (or creation) that returned it until FORGET has taken its lookup count to zero.
//! After that an inode with a file handle, or a time of birth to know it by, is [`Remembered`]: should the guest meet it again, it has the same node id.
//! An id is never given to two inodes.
//!
//! A node that holds a descriptor keeps the host from giving the inode's number to another file, so that (device, inode,
//! mount) is a safe key. For a node that does not, the file handle decides.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use fuse_backend_rs::abi::fuse_abi::ROOT_ID;
use rustix::fs::FileType;

use super::descriptor_budget::{DescriptorBudget, Permit};
use super::file_handle::FileHandle;
use super::node::{Handled, Held, Node, NodeKey, PathFd};
use super::remembered::Remembered;
use super::sharded_map::{SHARDS, ShardKey, ShardedMap};

/// The most inodes a guest may know at a time (about 1 GB, see [`Node`]). Linux with a cache of that many inodes needs
/// more memory itself.
const MAX_NODES: usize = 4 << 20;

/// All inodes that the guest knows.
pub(super) struct NodeTable {
    by_id: ShardedMap<u64, Arc<Node>>,
    by_key: ShardedMap<NodeKey, Arc<Node>>,
    remembered: Remembered,
    /// Ids given out; an id is this number and the shard of the inode's key.
    count: AtomicU64,
    known: AtomicUsize,
    /// The shard whose descriptors are closed next when some are needed.
    next_victim: AtomicU64,
    root: Arc<Node>,
    budget: Arc<DescriptorBudget>,
}

impl NodeTable {
    /// A table that knows the root only. Its nodes' descriptors count against `budget`.
    ///
    /// # Errors
    /// ENFILE: not even the root's is left.
    pub(super) fn new(
        key: NodeKey,
        path: OwnedFd,
        handled: Option<Handled>,
        budget: Arc<DescriptorBudget>,
    ) -> io::Result<Self> {
        let held = Held::new(path, budget.take()?);
        let root = Arc::new(Node::new(ROOT_ID, key, FileType::Directory, handled, Some(held)));
        let table = NodeTable {
            by_id: ShardedMap::new(),
            by_key: ShardedMap::new(),
            remembered: Remembered::new(),
            count: AtomicU64::new(1),
            known: AtomicUsize::new(1),
            next_victim: AtomicU64::new(0),
            root,
            budget,
        };
        table.by_id.insert(ROOT_ID, table.root.clone());
        table.by_key.insert(key, table.root.clone());
        Ok(table)
    }

    /// The share's root directory: always known, never forgotten.
    pub(super) fn root(&self) -> &Arc<Node> {
        &self.root
    }

    /// The node of an id.
    ///
    /// # Errors
    /// ESTALE: the guest was never told of this id, or has forgotten it.
    pub(super) fn get(&self, id: u64) -> io::Result<Arc<Node>> {
        self.by_id.get(&id).ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))
    }

    /// A descriptor to reach a node's inode with.
    ///
    /// # Errors
    /// See [`Node::path`].
    pub(super) fn path(&self, node: &Node) -> io::Result<PathFd> {
        node.path(&self.budget)
    }

    /// The handle of an inode that the guest has forgotten.
    pub(super) fn remembered(&self, id: u64) -> Option<FileHandle> {
        self.remembered.handle(id)
    }

    /// The node of a host inode, if the guest knows it; its lookup count grows by one. `handle` asks the host for the
    /// file handle of what has this key now, in the mount it is given.
    pub(super) fn find(&self, key: &NodeKey, handle: impl FnOnce(u32) -> Option<FileHandle>) -> Option<Arc<Node>> {
        let doubtful = {
            let shard = self.by_key.read(key);
            let node = shard.get(key)?;
            if node.is_held() {
                return Some(looked_up(node));
            }
            node.clone()
        };
        let known = doubtful.handle()?;
        if handle(known.mount).as_ref() != Some(known) {
            return None;
        }
        // It may have been forgotten meanwhile.
        self.by_key.read(key).get(key).filter(|node| node.id == doubtful.id).map(looked_up)
    }

    /// Adds a host inode, or finds it if another thread was faster; its lookup count grows by one. `path` must be an
    /// `O_PATH` descriptor of the inode that `key` describes.
    ///
    /// # Errors
    /// ENFILE: guests know as many inodes as they may.
    pub(super) fn insert(
        &self,
        key: NodeKey,
        file_type: FileType,
        path: OwnedFd,
        handled: Option<Handled>,
    ) -> io::Result<Arc<Node>> {
        let opens = handled.as_ref().is_some_and(Handled::opens);
        let permit = if opens { self.spare_permit() } else { Some(self.permit()?) };
        let mut shard = self.by_key.write(&key);
        if let Some(node) = shard.get(&key) {
            // Another handle: the inode that had this number is gone, though the guest has not forgotten it.
            let same = node.handle().zip(handled.as_ref()).is_none_or(|(known, new)| *known == new.handle);
            if same {
                return Ok(looked_up(node));
            }
        }
        if self.known.load(Ordering::Relaxed) >= MAX_NODES {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        let shard_of_id = key.spread() % SHARDS as u64;
        let remembered = handled.as_ref().and_then(|handled| self.remembered.take(shard_of_id, &handled.handle));
        let id = remembered.unwrap_or_else(|| self.count.fetch_add(1, Ordering::Relaxed) * SHARDS as u64 + shard_of_id);
        let held = permit.map(|permit| Held::new(path, permit));
        let node = Arc::new(Node::new(id, key, file_type, handled, held));
        self.by_id.insert(id, node.clone());
        self.known.fetch_add(1, Ordering::Relaxed);
        shard.insert(key, node.clone());
        Ok(node)
    }

    /// Lowers a lookup count; at zero the node is gone. Unknown ids and counts that are too large do no harm.
    pub(super) fn forget(&self, id: u64, count: u64) {
        let Some(node) = self.by_id.get(&id) else { return };
        if node.id == ROOT_ID {
            return;
        }
        // `Some` always, so the update cannot fail; either value is the count before.
        let before = node
            .lookups
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |lookups| Some(lookups.saturating_sub(count)))
            .unwrap_or_else(|lookups| lookups);
        if before > count {
            return;
        }
        let mut shard = self.by_key.write(&node.key);
        // A LOOKUP may have found it in the meantime, or another FORGET been faster; then the id may be a newer node's.
        let is_it = |other: &Arc<Node>| Arc::ptr_eq(other, &node);
        if node.lookups.load(Ordering::Relaxed) == 0 && self.by_id.remove_if(&id, is_it).is_some() {
            self.known.fetch_sub(1, Ordering::Relaxed);
            if shard.get(&node.key).is_some_and(is_it) {
                shard.remove(&node.key);
            }
            // Under the shard's lock, so that a LOOKUP finds either the node or its record.
            self.remember(&node);
        }
    }

    /// Forgets everything but the root.
    pub(super) fn forget_all(&self) {
        drop(self.by_key.take(|key| *key == self.root.key));
        for node in self.by_id.take(|id| *id == ROOT_ID) {
            self.known.fetch_sub(1, Ordering::Relaxed);
            self.remember(&node);
        }
    }

    fn remember(&self, node: &Node) {
        if let Some(handle) = node.handle() {
            self.remembered.insert(node.id, *handle);
        }
    }

    /// One of the budget's descriptors, for something that needs one.
    ///
    /// # Errors
    /// ENFILE: guests hold as many as they may.
    pub(super) fn permit(&self) -> io::Result<Permit> {
        self.budget.take().or_else(|error| {
            (0..2 * SHARDS).find_map(|_| self.close_some().then(|| self.budget.take().ok()).flatten()).ok_or(error)
        })
    }

    /// One of the budget's descriptors for a node that can do without.
    fn spare_permit(&self) -> Option<Permit> {
        self.budget.take_spare().or_else(|| self.close_some().then(|| self.budget.take_spare()).flatten())
    }

    /// Closes descriptors of nodes that have file handles, of one shard's those that were not used since the last time.
    fn close_some(&self) -> bool {
        let victim = self.next_victim.fetch_add(1, Ordering::Relaxed);
        let mut closed = Vec::new();
        self.by_id.visit_shard(&victim, |node| {
            if node.id != ROOT_ID {
                closed.extend(node.release());
            }
        });
        !closed.is_empty()
    }

    /// How many nodes the guest knows, the root included.
    pub(super) fn len(&self) -> usize {
        self.known.load(Ordering::Relaxed)
    }
}

/// Counts a lookup. Under the lock of the node's shard in `by_key`: FORGET removes nodes of count zero under it.
fn looked_up(node: &Arc<Node>) -> Arc<Node> {
    node.lookups.fetch_add(1, Ordering::Relaxed);
    node.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fs::passthrough::mounts::Mount;

    /// Any descriptor does: the table never looks at it.
    fn fd() -> OwnedFd {
        OwnedFd::from(std::fs::File::open("/dev/null").unwrap())
    }

    fn key(ino: u64) -> NodeKey {
        NodeKey { dev: (8, 1), ino, mount: 1 }
    }

    fn table() -> NodeTable {
        NodeTable::new(key(1), fd(), None, DescriptorBudget::new(1000)).unwrap()
    }

    fn insert(table: &NodeTable, key: NodeKey) -> Arc<Node> {
        table.insert(key, FileType::RegularFile, fd(), None).unwrap()
    }

    /// Adds an inode that has a file handle.
    fn insert_handled(table: &NodeTable, key: NodeKey, handle: FileHandle) -> Arc<Node> {
        let handled = Handled { handle, mount: Some(Mount::made_up()), generation: handle.generation() };
        table.insert(key, FileType::RegularFile, fd(), Some(handled)).unwrap()
    }

    fn find(table: &NodeTable, key: &NodeKey) -> Option<Arc<Node>> {
        table.find(key, |_| None)
    }

    fn is_known(table: &NodeTable, id: u64) -> bool {
        table.get(id).is_ok()
    }

    #[test]
    fn a_node_lives_until_every_lookup_is_forgotten() {
        let table = table();
        assert!(find(&table, &key(2)).is_none());
        let node = insert(&table, key(2));
        assert_eq!(insert(&table, key(2)).id, node.id, "another thread was faster");
        assert_eq!(find(&table, &key(2)).unwrap().id, node.id);
        table.forget(node.id, 2);
        assert!(is_known(&table, node.id));
        table.forget(node.id, 1);
        assert!(!is_known(&table, node.id));
        assert!(find(&table, &key(2)).is_none());
        assert_eq!(table.len(), 1);
        assert_ne!(insert(&table, key(2)).id, node.id, "without a handle nobody knows whether it is the same");
    }

    #[test]
    fn an_inode_with_a_handle_has_its_id_back_after_it_was_forgotten() {
        let table = table();
        let handle = FileHandle::made_up(7);
        let first = insert_handled(&table, key(2), handle);
        for forget_all in [false, true] {
            if forget_all {
                table.forget_all();
            } else {
                table.forget(first.id, 1);
            }
            assert!(!is_known(&table, first.id));
            assert_eq!(table.remembered(first.id), Some(handle));
            let again = insert_handled(&table, key(2), handle);
            assert_eq!((again.id, again.generation), (first.id, first.generation));
            assert_eq!(table.remembered(first.id), None);
        }
    }

    #[test]
    fn an_inode_number_that_is_used_again_is_another_node() {
        let table = table();
        let old = insert_handled(&table, key(2), FileHandle::made_up(7));
        let new = insert_handled(&table, key(2), FileHandle::made_up(8));
        assert_ne!((old.id, old.generation), (new.id, new.generation));
        assert_eq!(table.len(), 3, "the guest has not forgotten the old one");
        table.forget(old.id, 1);
        assert_eq!(find(&table, &key(2)).unwrap().id, new.id);
        table.forget(new.id, 2);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_node_without_descriptor_is_only_found_by_its_handle() {
        let budget = DescriptorBudget::new(2);
        let table = NodeTable::new(key(1), fd(), None, budget.clone()).unwrap();
        let handle = FileHandle::made_up(7);
        let node = insert_handled(&table, key(2), handle);
        assert!(!node.is_held(), "half of the budget is the root's already");
        assert!(table.find(&key(2), |_| Some(FileHandle::made_up(8))).is_none());
        assert_eq!(table.find(&key(2), |_| Some(handle)).unwrap().id, node.id);
    }

    #[test]
    fn descriptors_of_nodes_that_can_do_without_are_closed_for_those_that_cannot() {
        let budget = DescriptorBudget::new(40);
        let table = NodeTable::new(key(1), fd(), None, budget.clone()).unwrap();
        for ino in 2..100 {
            insert_handled(&table, key(ino), FileHandle::made_up(ino));
        }
        assert_eq!((table.len(), budget.left()), (99, 20));
        let permits: Vec<Permit> = (0..39).map(|_| table.permit().unwrap()).collect();
        assert_eq!(table.permit().unwrap_err().raw_os_error(), Some(libc::ENFILE));
        drop(permits);
        assert_eq!(budget.left(), 39);
    }

    #[test]
    fn one_inode_under_two_mounts_is_two_nodes() {
        let table = table();
        let one = insert(&table, key(2));
        let other = NodeKey { mount: 2, ..key(2) };
        assert_ne!(insert(&table, other).id, one.id);
        assert!(!other.same_mount(&one.key));
    }

    #[test]
    fn forgetting_everything_keeps_the_root() {
        let table = table();
        let nodes: Vec<u64> = (2..500).map(|ino| insert(&table, key(ino)).id).collect();
        table.forget_all();
        assert!(nodes.iter().all(|id| !is_known(&table, *id)));
        assert_eq!(table.get(ROOT_ID).unwrap().key, key(1));
        assert_eq!(find(&table, &key(1)).unwrap().id, ROOT_ID);
    }

    #[test]
    fn lookups_and_forgets_of_many_threads_leave_nothing_and_never_lose_a_node_in_use() {
        let table = table();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..3000 {
                        let key = key(2 + round % 3);
                        let node = find(&table, &key).unwrap_or_else(|| insert(&table, key));
                        assert_eq!(table.get(node.id).unwrap().key, key, "told and not forgotten: it must be known");
                        table.forget(node.id, 1);
                    }
                });
            }
        });
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn however_threads_look_up_and_forget_an_inode_with_a_handle_has_one_id() {
        let budget = DescriptorBudget::new(4);
        let table = NodeTable::new(key(1), fd(), None, budget.clone()).unwrap();
        let (key, handle) = (key(2), FileHandle::made_up(2));
        let id = insert_handled(&table, key, handle).id;
        table.forget(id, 1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5000 {
                        let found = table.find(&key, |_| Some(handle));
                        let node = found.unwrap_or_else(|| insert_handled(&table, key, handle));
                        assert_eq!(node.id, id);
                        assert!(is_known(&table, id), "told and not forgotten: it must be known");
                        table.forget(id, 1);
                    }
                });
            }
        });
        assert_eq!((table.len(), budget.left()), (1, 3));
        assert_eq!(table.remembered(id), Some(handle));
    }

    #[test]
    fn nodes_give_their_descriptors_back_to_the_budget() {
        let budget = DescriptorBudget::new(3);
        let table = NodeTable::new(key(1), fd(), None, budget.clone()).unwrap();
        let ids = [2, 3].map(|ino| insert(&table, key(ino)).id);
        let error = table.insert(key(4), FileType::RegularFile, fd(), None).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENFILE));
        assert_eq!(table.len(), 3);
        table.forget(ids[0], 1);
        insert(&table, key(4));
        drop(table);
        assert_eq!(budget.left(), 3);
    }
}
