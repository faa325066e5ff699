//! The virtio-fs device: a directory of the host for the guest to mount, served by threads of this process.
//!
//! A request's way: `queue_worker` pops a chain, `chain` checks it, `dispatch` has `requests` decode what fuse-backend-rs's
//! server does not and leaves the rest to that, `passthrough` does it on the host's file system. What may take long goes
//! to `slow_pool` or `lock_waits` and is answered when it is done, in any order (`deferred`). Data moves between files and guest
//! memory without a copy in between. Nothing here keeps a lock that two queues share for longer than a table look-up.

mod body;
mod chain;
mod config;
mod constants;
mod dax_window;
mod deferred;
mod device;
mod dispatch;
mod errno_name;
mod extensions;
mod fault;
mod flight;
mod id_map;
mod init;
mod lock_waits;
mod messages;
mod operation;
mod passthrough;
#[cfg(feature = "planted-bugs")]
mod planted_bugs;
mod polling;
mod queue_worker;
mod requests;
mod slow_pool;
mod stats;
mod tag;
mod xattr_map;

pub use config::{CachePolicy, FsConfig, InodeHandles};
pub use constants::{DAX_RANGE, MAX_DAX_WINDOW, MAX_DAX_WINDOWS};
pub use device::{FsDevice, FsError};
pub use fault::{FaultError, FaultRule};
pub use flight::{FLIGHT_RECORDS, FlightNews, FlightPosition, FlightReader, Record};
pub use id_map::{IdMap, IdMapError};
#[cfg(feature = "planted-bugs")]
pub use planted_bugs::PlantedBug;
pub use stats::{FsStats, FsStatsReader, OperationStats};
pub use tag::{Tag, TagError};
pub use xattr_map::{XattrMap, XattrMapError};

#[cfg(test)]
mod tests;
