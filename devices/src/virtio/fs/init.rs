//! What guest and server agree on when a session starts.

use std::io;

use fuse_backend_rs::abi::fuse_abi::{InitIn, InitOut};

use super::constants::{FUSE_MAJOR, FUSE_MIN_MINOR, FUSE_MINOR, MAP_ALIGNMENT_LOG2, MAX_PAGES, MAX_WRITE, init_flag};
use super::passthrough::errno;
use super::{CachePolicy, FsConfig};

/// What every share can do and wants done; a share's settings add to it ([`wanted`]). Left out on purpose:
/// - ALLOW_IDMAP: with it the guest no longer says who asks for FALLOCATE and COPY_FILE_RANGE, which decides whether they
///   clear set-user-ID bits.
/// - ATOMIC_O_TRUNC: Linux would send OPEN with O_TRUNC before it looks whether the file is being executed. A program that
///   runs would lose its text to an `open(O_RDONLY | O_TRUNC)` that then says ETXTBSY, or, the program having died of it,
///   does not (pjdfstest's `open::etxtbsy` failed in 1 run of 4). Without it, truncation is a SETATTR after that check.
const ALWAYS: u64 = init_flag::ASYNC_READ
    | init_flag::BIG_WRITES
    | init_flag::HAS_IOCTL_DIR
    | init_flag::AUTO_INVAL_DATA
    | init_flag::DO_READDIRPLUS
    | init_flag::READDIRPLUS_AUTO
    | init_flag::ASYNC_DIO
    | init_flag::PARALLEL_DIROPS
    | init_flag::MAX_PAGES
    | init_flag::SUBMOUNTS
    | init_flag::HANDLE_KILLPRIV_V2
    | init_flag::SETXATTR_EXT
    | init_flag::INIT_EXT
    | init_flag::CREATE_SUPP_GROUP;

/// What makes POSIX ACLs work: the guest enforces them, leaves the umask to the host (which ignores it where a default
/// ACL says otherwise) and says when setting one has to clear the set-group-ID bit.
const ACLS: u64 = init_flag::POSIX_ACL | init_flag::DONT_MASK | init_flag::SETXATTR_EXT;

/// The flags that a share wants. `inode_handles`: whether forgotten inodes are found again, which is what the guest's own
/// file handles need. By default without:
/// - POSIX_LOCKS, FLOCK_LOCKS: locks are the guest's own business; nobody else locks a share under test.
/// - WRITEBACK_CACHE: the guest would keep its own idea of sizes and times.
/// - POSIX_ACL, DONT_MASK: an ACL costs every permission check of the guest a request.
/// - SECURITY_CTX: the guest's labels would be the host's.
/// - DIRECT_IO_ALLOW_MMAP: only files that are not cached need it, or mmap with MAP_SHARED is ENODEV, and with it SQLite's
///   write-ahead log, linkers and whatever else maps what it writes. Such a file is cached while it is mapped; Linux keeps the
///   guest's own reads and writes coherent with it.
pub(super) fn wanted(config: &FsConfig, inode_handles: bool) -> u64 {
    let mut flags = ALWAYS;
    for (set, more) in [
        (inode_handles, init_flag::EXPORT_SUPPORT),
        (config.posix_acl && config.xattr, ACLS),
        (config.security_context && config.xattr, init_flag::SECURITY_CTX),
        (config.writeback && !config.read_only, init_flag::WRITEBACK_CACHE),
        (config.posix_locks, init_flag::POSIX_LOCKS | init_flag::FLOCK_LOCKS),
        (config.dax_window > 0, init_flag::MAP_ALIGNMENT | init_flag::HAS_INODE_DAX),
        (config.cache == CachePolicy::Never, init_flag::DIRECT_IO_ALLOW_MMAP),
    ] {
        if set {
            flags |= more;
        }
    }
    flags
}

/// How an INIT is answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Negotiation {
    /// The session starts with these flags.
    Agreed(InitOut, u64),
    /// The guest is too new: it is told the version to ask for and sends another INIT.
    OtherVersion(InitOut),
}

/// Answers an INIT whose flags beyond bit 31 are `flags2` for a share that wants the flags `wanted`.
///
/// # Errors
/// EPROTO for a guest that is too old.
pub(super) fn negotiate(request: &InitIn, flags2: u32, wanted: u64) -> io::Result<Negotiation> {
    let version = InitOut { major: FUSE_MAJOR, minor: FUSE_MINOR, ..InitOut::default() };
    if request.major > FUSE_MAJOR {
        return Ok(Negotiation::OtherVersion(version));
    }
    if request.major < FUSE_MAJOR || request.minor < FUSE_MIN_MINOR {
        tracing::debug!("guest speaks FUSE {}.{}, which is too old", request.major, request.minor);
        return Err(errno(libc::EPROTO));
    }
    let capable = u64::from(request.flags) | (u64::from(flags2) << 32);
    let mut agreed = capable & wanted;
    if agreed & ACLS != ACLS {
        // Half of it would be an ACL that is stored but not enforced, or a umask that nobody applies.
        agreed &= !(init_flag::POSIX_ACL | init_flag::DONT_MASK);
    }
    let reply = InitOut {
        max_readahead: request.max_readahead,
        flags: agreed as u32,
        flags2: (agreed >> 32) as u32,
        // Requests in flight are bounded by the queues.
        max_background: u16::MAX,
        congestion_threshold: u16::MAX / 4 * 3,
        max_write: MAX_WRITE,
        // Times are kept to the nanosecond.
        time_gran: 1,
        max_pages: MAX_PAGES,
        map_alignment: if agreed & init_flag::MAP_ALIGNMENT != 0 { MAP_ALIGNMENT_LOG2 } else { 0 },
        ..version
    };
    Ok(Negotiation::Agreed(reply, agreed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(major: u32, minor: u32, flags: u64) -> InitIn {
        InitIn { major, minor, max_readahead: 131072, flags: flags as u32 }
    }

    #[test]
    fn only_what_both_sides_can_do_is_agreed_on() {
        let offered = init_flag::ASYNC_READ | init_flag::INIT_EXT | init_flag::CREATE_SUPP_GROUP | (1 << 16);
        let reply = negotiate(&request(7, 38, offered), (offered >> 32) as u32, ALWAYS).unwrap();
        let Negotiation::Agreed(out, agreed) = reply else { panic!("{reply:?}") };
        assert_eq!(agreed, init_flag::ASYNC_READ | init_flag::INIT_EXT | init_flag::CREATE_SUPP_GROUP);
        assert_eq!((out.flags, out.flags2), (agreed as u32, (agreed >> 32) as u32));
        assert_eq!((out.major, out.minor, out.max_write, out.max_pages), (7, FUSE_MINOR, 1 << 20, 256));
        assert_eq!(out.max_readahead, 131072);
    }

    #[test]
    fn settings_add_flags() {
        let plain = FsConfig::new(crate::virtio::fs::Tag::new("t").unwrap(), "/");
        assert_eq!(wanted(&plain, false), ALWAYS);
        assert_eq!(wanted(&plain, true), ALWAYS | init_flag::EXPORT_SUPPORT);
        let locks = FsConfig { posix_locks: true, ..plain.clone() };
        assert_eq!(wanted(&locks, false) & !ALWAYS, init_flag::POSIX_LOCKS | init_flag::FLOCK_LOCKS);
        let writeback = FsConfig { writeback: true, ..plain.clone() };
        assert_eq!(wanted(&writeback, false) & !ALWAYS, init_flag::WRITEBACK_CACHE);
        let dax = FsConfig { dax_window: 2 << 20, ..plain.clone() };
        assert_eq!(wanted(&dax, false) & !ALWAYS, init_flag::MAP_ALIGNMENT | init_flag::HAS_INODE_DAX);
        assert_eq!(wanted(&FsConfig { read_only: true, ..writeback }, false), ALWAYS);
        let uncached = FsConfig { cache: CachePolicy::Never, ..plain.clone() };
        assert_eq!(wanted(&uncached, false) & !ALWAYS, init_flag::DIRECT_IO_ALLOW_MMAP);
        let labels = FsConfig { security_context: true, posix_acl: true, ..plain };
        assert_eq!(wanted(&labels, false), ALWAYS | ACLS | init_flag::SECURITY_CTX);
        assert_eq!(wanted(&FsConfig { xattr: false, ..labels }, false), ALWAYS);
    }

    #[test]
    fn acls_are_agreed_on_as_a_whole_or_not_at_all() {
        for missing in [init_flag::POSIX_ACL, init_flag::DONT_MASK, init_flag::SETXATTR_EXT, 0] {
            let reply = negotiate(&request(7, 38, ACLS & !missing), 0, ALWAYS | ACLS).unwrap();
            let Negotiation::Agreed(_, agreed) = reply else { panic!("{reply:?}") };
            let expected = if missing == 0 { init_flag::POSIX_ACL | init_flag::DONT_MASK } else { 0 };
            assert_eq!(agreed & (init_flag::POSIX_ACL | init_flag::DONT_MASK), expected, "without {missing:#x}");
        }
    }

    #[test]
    fn the_alignment_of_mappings_is_told_to_a_guest_that_asks_for_it() {
        for (offered, alignment) in [(0, 0), (init_flag::MAP_ALIGNMENT, 12)] {
            let reply = negotiate(&request(7, 38, offered), 0, ALWAYS | init_flag::MAP_ALIGNMENT).unwrap();
            let Negotiation::Agreed(out, agreed) = reply else { panic!("{reply:?}") };
            assert_eq!((out.map_alignment, agreed), (alignment, offered));
        }
    }

    #[test]
    fn a_newer_major_version_is_told_ours() {
        let reply = negotiate(&request(8, 0, u64::MAX), u32::MAX, ALWAYS).unwrap();
        assert!(matches!(reply, Negotiation::OtherVersion(out) if (out.major, out.flags) == (7, 0)), "{reply:?}");
    }

    #[test]
    fn a_guest_that_is_too_old_is_refused() {
        for (major, minor) in [(6, 38), (7, 26), (0, 0)] {
            let error = negotiate(&request(major, minor, 0), 0, ALWAYS).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPROTO));
        }
    }
}
