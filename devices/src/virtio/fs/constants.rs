//! Numbers of the virtio-fs device (virtio 1.2 § 5.11) and of the FUSE protocol (Linux, include/uapi/linux/fuse.h) that
//! fuse-backend-rs does not have.

/// Index of the high-priority queue, for requests that must not wait behind others: FORGET (§ 5.11.2).
pub(crate) const HIPRIO_QUEUE: u16 = 0;
/// Index of the first request queue (§ 5.11.2).
pub(crate) const FIRST_REQUEST_QUEUE: u16 = 1;
/// Entries of each queue. A 1 MiB request takes 256 data descriptors and a few for headers.
pub(crate) const QUEUE_SIZE: u16 = 1024;
/// The most request queues a device may have: far more than a machine has vCPUs, and a bound on its threads.
pub(crate) const MAX_REQUEST_QUEUES: u16 = 64;
/// Bytes of the tag in configuration space (§ 5.11.4).
pub(crate) const TAG_SIZE: usize = 36;
/// Bytes of configuration space: the tag, then le32 num_request_queues (§ 5.11.4).
pub(crate) const CONFIG_SIZE: usize = TAG_SIZE + 4;

/// The most descriptors in one chain: the queue's size is the specification's bound (§ 2.7.5.3.1), and `preadv` takes
/// no more than 1024 (IOV_MAX).
pub(crate) const MAX_CHAIN_DESCRIPTORS: usize = QUEUE_SIZE as usize;

/// FUSE protocol version this server speaks, major.
pub(crate) const FUSE_MAJOR: u32 = 7;
/// FUSE protocol version this server speaks, minor: 7.45 brought COPY_FILE_RANGE_64.
pub(crate) const FUSE_MINOR: u32 = 45;
/// The oldest minor version served. Linux 4.16 and newer; virtio-fs itself came with 5.4 (7.31).
pub(crate) const FUSE_MIN_MINOR: u32 = 27;

/// The most bytes one WRITE or READ carries.
pub(crate) const MAX_WRITE: u32 = 1 << 20;
/// The same in pages of 4 KiB, as INIT wants it.
pub(crate) const MAX_PAGES: u16 = 256;
/// Copying or allocating fewer bytes than this does not keep a thread for long.
pub(crate) const LARGE_RANGE: u64 = 1 << 20;
/// The longest message body that this crate's own handlers take: a SETXATTR with the largest value Linux allows
/// (64 KiB), its name, its header and extensions.
pub(crate) const MAX_OWN_BODY: usize = 72 << 10;

/// Opcodes, as Linux numbers them (enum fuse_opcode).
pub(crate) mod opcode {
    /// Lowers a lookup count; has no reply.
    pub(crate) const FORGET: u32 = 2;
    /// Attributes of an inode.
    pub(crate) const GETATTR: u32 = 3;
    /// Reads a file.
    pub(crate) const READ: u32 = 15;
    /// Writes a file.
    pub(crate) const WRITE: u32 = 16;
    /// Makes a symbolic link.
    pub(crate) const SYMLINK: u32 = 6;
    /// Makes a file of any type.
    pub(crate) const MKNOD: u32 = 8;
    /// Makes a directory.
    pub(crate) const MKDIR: u32 = 9;
    /// Makes a file's data durable.
    pub(crate) const FSYNC: u32 = 20;
    /// Closes a file.
    pub(crate) const RELEASE: u32 = 18;
    /// Sets an extended attribute.
    pub(crate) const SETXATTR: u32 = 21;
    /// A descriptor of an open file was closed.
    pub(crate) const FLUSH: u32 = 25;
    /// Starts a session.
    pub(crate) const INIT: u32 = 26;
    /// Closes a directory.
    pub(crate) const RELEASEDIR: u32 = 29;
    /// Makes a directory durable.
    pub(crate) const FSYNCDIR: u32 = 30;
    /// Asks whether a lock could be had.
    pub(crate) const GETLK: u32 = 31;
    /// Sets a lock, or not if somebody else has it.
    pub(crate) const SETLK: u32 = 32;
    /// Sets a lock as soon as it can be had.
    pub(crate) const SETLKW: u32 = 33;
    /// Makes and opens a file.
    pub(crate) const CREATE: u32 = 35;
    /// Interrupts a request; has no reply.
    pub(crate) const INTERRUPT: u32 = 36;
    /// Ends a session.
    pub(crate) const DESTROY: u32 = 38;
    /// Device control.
    pub(crate) const IOCTL: u32 = 39;
    /// Answers a notification; has no reply.
    pub(crate) const NOTIFY_REPLY: u32 = 41;
    /// Lowers many lookup counts; has no reply.
    pub(crate) const BATCH_FORGET: u32 = 42;
    /// Allocates or frees file space.
    pub(crate) const FALLOCATE: u32 = 43;
    /// Renames with flags.
    pub(crate) const RENAME2: u32 = 45;
    /// Copies between files on the server.
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    /// Makes a whole file system durable.
    pub(crate) const SYNCFS: u32 = 50;
    /// Makes and opens a file without a name.
    pub(crate) const TMPFILE: u32 = 51;
    /// Maps a part of a file into the DAX window.
    pub(crate) const SETUPMAPPING: u32 = 48;
    /// Takes parts of the DAX window back.
    pub(crate) const REMOVEMAPPING: u32 = 49;
    /// Extended attributes of an inode.
    pub(crate) const STATX: u32 = 52;
    /// COPY_FILE_RANGE with a 64-bit result.
    pub(crate) const COPY_FILE_RANGE_64: u32 = 53;
}

/// INIT flags (FUSE_* in fuse.h). Flags from bit 32 on travel in `flags2`.
pub(crate) mod init_flag {
    /// Reads of one file may run in parallel.
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    /// POSIX locks are the server's business.
    pub(crate) const POSIX_LOCKS: u64 = 1 << 1;
    /// OPEN handles O_TRUNC. Never agreed to: see [`super::init`].
    #[cfg(test)]
    pub(crate) const ATOMIC_O_TRUNC: u64 = 1 << 3;
    /// LOOKUP handles "." and "..".
    pub(crate) const EXPORT_SUPPORT: u64 = 1 << 4;
    /// Writes may be larger than a page.
    pub(crate) const BIG_WRITES: u64 = 1 << 5;
    /// The caller's umask is left to the server.
    pub(crate) const DONT_MASK: u64 = 1 << 6;
    /// BSD locks are the server's business.
    pub(crate) const FLOCK_LOCKS: u64 = 1 << 10;
    /// IOCTL works on directories.
    pub(crate) const HAS_IOCTL_DIR: u64 = 1 << 11;
    /// The guest drops cached pages when the modification time changed.
    pub(crate) const AUTO_INVAL_DATA: u64 = 1 << 12;
    /// READDIRPLUS works.
    pub(crate) const DO_READDIRPLUS: u64 = 1 << 13;
    /// The guest may choose between READDIR and READDIRPLUS.
    pub(crate) const READDIRPLUS_AUTO: u64 = 1 << 14;
    /// Direct I/O may be in flight in parallel.
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    /// The guest keeps what is written in its page cache, and the times and sizes that come of it.
    pub(crate) const WRITEBACK_CACHE: u64 = 1 << 16;
    /// LOOKUP and READDIR of one directory may run in parallel.
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    /// The guest enforces POSIX ACLs, which it reads as extended attributes.
    pub(crate) const POSIX_ACL: u64 = 1 << 20;
    /// INIT's reply says how many pages a request may have.
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    /// INIT's reply says how mappings into the DAX window have to be aligned; without it there are none.
    pub(crate) const MAP_ALIGNMENT: u64 = 1 << 26;
    /// Attributes may say that a directory is another file system's root.
    pub(crate) const SUBMOUNTS: u64 = 1 << 27;
    /// The server clears set-user-ID, set-group-ID and file capabilities when asked to.
    pub(crate) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// SETXATTR carries flags of its own.
    pub(crate) const SETXATTR_EXT: u64 = 1 << 29;
    /// INIT has `flags2`.
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    /// Requests that create a file carry its security label.
    pub(crate) const SECURITY_CTX: u64 = 1 << 32;
    /// Attributes say which files are to be accessed through the DAX window.
    pub(crate) const HAS_INODE_DAX: u64 = 1 << 33;
    /// Requests that create a file name the caller's supplementary group, if it matters.
    pub(crate) const CREATE_SUPP_GROUP: u64 = 1 << 34;
    /// Files that are not cached may be mapped shared all the same.
    pub(crate) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
}

/// `fuse_ext_header.type` of a list of supplementary groups (enum fuse_ext_type).
pub(crate) const EXT_GROUPS: u32 = 32;
/// The most security labels a request may have, and the largest `fuse_ext_header.type` that is their number
/// (FUSE_MAX_NR_SECCTX).
pub(crate) const EXT_MAX_LABELS: u32 = 31;
/// SETXATTR's own flag: setting this ACL has to clear the set-group-ID bit (FUSE_SETXATTR_ACL_KILL_SGID).
pub(crate) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// Extensions are counted and padded in units of this many bytes (`fuse_in_header.total_extlen`).
pub(crate) const EXT_UNIT: usize = 8;
/// The most supplementary groups a Linux process can have (NGROUPS_MAX).
pub(crate) const MAX_GROUPS: usize = 65536;

/// Binary logarithm of the page size: what offsets and lengths of mappings into the DAX window are multiples of
/// (`fuse_init_out.map_alignment`). Linux asks for 2 MiB at a time (FUSE_DAX_SHIFT).
pub(crate) const MAP_ALIGNMENT_LOG2: u16 = 12;
/// The unit of a DAX window's size, in bytes: Linux hands it out in ranges of this size, and adds struct pages for no less.
pub const DAX_RANGE: u64 = 2 << 20;
/// The largest DAX window, in bytes. In ranges of 2 MiB that is as many mappings as [`MAX_DAX_MAPPINGS`].
pub const MAX_DAX_WINDOW: u64 = 8 << 30;
/// The most mappings in a DAX window. Each may cost the process three of the 65,530 that it may have (vm.max_map_count):
/// the file, zeros behind its end, a gap.
pub(crate) const MAX_DAX_MAPPINGS: usize = 4096;
/// The most DAX windows that one process should have, therefore.
pub const MAX_DAX_WINDOWS: usize = 4;
/// SETUPMAPPING's flags (FUSE_SETUPMAPPING_FLAG_*).
pub(crate) const MAPPING_WRITE: u64 = 1 << 0;
/// See above.
pub(crate) const MAPPING_READ: u64 = 1 << 1;
/// With `dax=inode` a file of at least so many bytes is accessed through the DAX window: more than one READ can carry.
pub(crate) const DAX_FILE_SIZE: u64 = MAX_WRITE as u64;

/// How much of a directory's entries is read from the host at once, in bytes.
pub(crate) const DIR_BUFFER_SIZE: usize = 32 << 10;
/// The largest value of an extended attribute and the longest list of names in Linux, in bytes (XATTR_SIZE_MAX,
/// XATTR_LIST_MAX). A guest may ask for more; the host never has more.
pub(crate) const XATTR_MAX: usize = 64 << 10;
