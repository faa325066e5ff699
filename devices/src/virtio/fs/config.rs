//! What a share is and how it is served.

use std::path::PathBuf;
use std::time::Duration;

use fuse_backend_rs::api::filesystem::OpenOptions;

use super::{FLIGHT_RECORDS, FaultRule, IdMap, Tag, XattrMap};

/// How long the guest may believe what it was told (the words are virtiofsd's).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CachePolicy {
    /// Names and attributes for a second; pages until a file's modification time changes or it is opened again.
    #[default]
    Auto,
    /// Everything for a day: only for directories that nobody else changes.
    Always,
    /// Nothing; reads and writes go to the host directly.
    Never,
}

impl CachePolicy {
    /// How long names and attributes are valid.
    pub(super) fn timeout(self) -> Duration {
        match self {
            CachePolicy::Auto => Duration::from_secs(1),
            CachePolicy::Always => Duration::from_secs(86400),
            CachePolicy::Never => Duration::ZERO,
        }
    }

    /// What the guest is told when it opens a file.
    pub(super) fn file_options(self) -> OpenOptions {
        match self {
            CachePolicy::Auto => OpenOptions::empty(),
            CachePolicy::Always => OpenOptions::KEEP_CACHE,
            CachePolicy::Never => OpenOptions::DIRECT_IO,
        }
    }

    /// What the guest is told when it opens a directory.
    pub(super) fn dir_options(self) -> OpenOptions {
        match self {
            CachePolicy::Always => OpenOptions::KEEP_CACHE | OpenOptions::CACHE_DIR,
            CachePolicy::Auto | CachePolicy::Never => OpenOptions::empty(),
        }
    }
}

/// Whether inodes are found by file handle (the words are virtiofsd's).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InodeHandles {
    /// Where the host can: the guest may know more inodes than the process may open files, and node ids stay the same
    /// when the guest forgets inodes and meets them again. Takes CAP_DAC_READ_SEARCH.
    #[default]
    Prefer,
    /// Every inode that the guest knows costs a descriptor, and one that it forgot is found again by name only. It has its
    /// old node id then, if the file system knows when files were born.
    Never,
}

/// One share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsConfig {
    /// The name the guest mounts it by.
    pub tag: Tag,
    /// The directory whose contents the guest sees.
    pub shared_dir: PathBuf,
    /// Request queues besides the high-priority one, each with a thread: one per vCPU is best.
    pub request_queues: u16,
    /// How much the guest caches.
    pub cache: CachePolicy,
    /// Whether every change is refused (EROFS).
    pub read_only: bool,
    /// Whether extended attributes are passed through.
    pub xattr: bool,
    /// Whether inodes are found by file handle.
    pub inode_handles: InodeHandles,
    /// Whether POSIX ACLs work, as far as the host's file system has them. Needs `xattr`.
    pub posix_acl: bool,
    /// Whether the guest's security module labels files as they are made. Needs `xattr`.
    pub security_context: bool,
    /// Whether the guest may keep written data back. Only for directories that nobody else changes.
    pub writeback: bool,
    /// Whether the guest's file locks (`fcntl`, `flock`) exclude other users of the directory too.
    pub posix_locks: bool,
    /// Under which names the host stores extended attributes.
    pub xattr_map: XattrMap,
    /// Which users of the guest are which of the host.
    pub uid_map: IdMap,
    /// Which groups.
    pub gid_map: IdMap,
    /// How long at most a queue's worker looks for the next request before it sleeps, when the one before came as soon;
    /// zero: not at all.
    pub poll: Duration,
    /// Bytes of the window through which the guest maps files (DAX), a multiple of 2 MiB; 0: none.
    pub dax_window: u64,
    /// How many requests of each queue are kept to be looked at later, 192 bytes each.
    pub flight_records: usize,
    /// Faults that are injected on purpose; those for other shares count for nothing.
    pub faults: Vec<FaultRule>,
    /// A fault that tests should notice.
    #[cfg(feature = "planted-bugs")]
    pub planted_bug: Option<super::PlantedBug>,
}

impl FsConfig {
    /// A writable share with one request queue, extended attributes and [`CachePolicy::Auto`].
    pub fn new(tag: Tag, shared_dir: impl Into<PathBuf>) -> Self {
        FsConfig {
            tag,
            shared_dir: shared_dir.into(),
            request_queues: 1,
            cache: CachePolicy::Auto,
            read_only: false,
            xattr: true,
            inode_handles: InodeHandles::Prefer,
            posix_acl: false,
            security_context: false,
            writeback: false,
            posix_locks: false,
            xattr_map: XattrMap::default(),
            uid_map: IdMap::default(),
            gid_map: IdMap::default(),
            poll: Duration::ZERO,
            dax_window: 0,
            flight_records: FLIGHT_RECORDS,
            faults: Vec::new(),
            #[cfg(feature = "planted-bugs")]
            planted_bug: None,
        }
    }
}
