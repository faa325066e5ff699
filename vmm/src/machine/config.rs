//! What a machine is built from, already validated.

use std::path::PathBuf;

use devices::virtio::fs::{CachePolicy, FaultRule, FsConfig, IdMap, InodeHandles, XattrMap};

use super::flight::TRACE_RECORDS;
use super::polling::Polling;

/// A directory served as a virtio-fs device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareConfig {
    /// The directory on the host; exists.
    pub path: PathBuf,
    /// 1 to 36 bytes, unique in the machine (virtio 1.2 § 5.11.4).
    pub tag: String,
}

/// How every share is served, apart from its cache policy. The default is what a plain run has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShareSettings {
    /// Every change is refused.
    pub read_only: bool,
    /// The guest may keep written data back.
    pub writeback: bool,
    /// POSIX ACLs work.
    pub posix_acl: bool,
    /// The guest's security module labels files as they are made.
    pub security_context: bool,
    /// The guest's file locks exclude other users of the directory too.
    pub posix_locks: bool,
    /// Whether inodes are found by file handle.
    pub inode_handles: InodeHandles,
    /// Names of extended attributes on the host.
    pub xattr_map: XattrMap,
    /// Users of the guest on the host.
    pub uid_map: IdMap,
    /// Groups of the guest on the host.
    pub gid_map: IdMap,
    /// Bytes of each share's DAX window; 0: none.
    pub dax_window: u64,
    /// So many requests are kept that somebody can write all of them to a file.
    pub trace: bool,
    /// Faults that are injected on purpose, each into its share.
    pub faults: Vec<FaultRule>,
    /// A fault that tests should notice.
    #[cfg(feature = "planted-bugs")]
    pub planted_bug: Option<devices::virtio::fs::PlantedBug>,
}

impl ShareSettings {
    /// Sets what the device has to know.
    pub(super) fn apply(&self, fs: &mut FsConfig) {
        #[cfg(feature = "planted-bugs")]
        {
            fs.planted_bug = self.planted_bug;
        }
        fs.faults.clone_from(&self.faults);
        if self.trace {
            fs.flight_records = TRACE_RECORDS;
        }
        fs.read_only = self.read_only;
        fs.writeback = self.writeback;
        fs.posix_acl = self.posix_acl;
        fs.security_context = self.security_context;
        fs.posix_locks = self.posix_locks;
        fs.inode_handles = self.inode_handles;
        fs.xattr_map = self.xattr_map.clone();
        fs.uid_map = self.uid_map.clone();
        fs.gid_map = self.gid_map.clone();
        fs.dax_window = self.dax_window;
    }
}

/// Everything the builder needs; nothing later reads flags or the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// An ELF vmlinux (a bzImage's payload has been unpacked before).
    pub kernel: PathBuf,
    /// cpio archive, or none.
    pub initramfs: Option<PathBuf>,
    /// Appended to the builder's own kernel command line.
    pub append: String,
    /// vCPUs, 1 to the host's KVM limit.
    pub cpus: u32,
    /// Guest RAM, MiB, at least 128.
    pub memory_mib: u64,
    /// Read-only root image served as virtio-blk `vda`, or none.
    pub root_image: Option<PathBuf>,
    /// Read-only images served as virtio-blk after the root image, in order (`vdb`, `vdc`, …): one for each suite that
    /// the run needs, so that adding a suite does not rebuild the root image.
    pub suite_images: Vec<PathBuf>,
    /// virtio-fs devices, in order.
    pub shares: Vec<ShareConfig>,
    /// How much the guest caches of every share.
    pub cache: CachePolicy,
    /// How else every share is served.
    pub share_settings: ShareSettings,
    /// How long to look for work before sleeping.
    pub polling: Polling,
    /// When given, Firecracker's convention on this Unix socket path: a guest's connection to host port P goes to the
    /// socket `PATH_P`; a host program that connects to `PATH` and writes `CONNECT P\n` reaches port P of the guest.
    pub vsock_socket: Option<PathBuf>,
    /// The serial console's output goes here, as it comes.
    pub console_log: PathBuf,
}
