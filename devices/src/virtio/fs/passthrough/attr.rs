//! Attributes: GETATTR, SETATTR, STATX, STATFS.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{stat64, statvfs64};
use fuse_backend_rs::api::filesystem::SetattrValid;
use rustix::fs::{AtFlags, FileType, Mode, Statx, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::process::{Gid, Uid};

use super::credentials::SetIdBits;
use super::dax::grown;
use super::host::{FdPath, statx_fd, to_stat64};
use super::{PassthroughFs, errno};

/// Attributes and how long they are valid.
pub(super) type Attributes = (stat64, Duration);

/// What a SETATTR sets. A guest that caches writes also says when the attributes changed, with nothing else in the case of a
/// `chown` to nobody; the host has its own clock for that.
const SETS: SetattrValid = SetattrValid::MODE
    .union(SetattrValid::UID)
    .union(SetattrValid::GID)
    .union(SetattrValid::SIZE)
    .union(SetattrValid::ATIME)
    .union(SetattrValid::MTIME);

impl PassthroughFs {
    pub(super) fn attributes(&self, node: u64) -> io::Result<Attributes> {
        let (stat, _, valid) = self.attributes_and_flags(node)?;
        Ok((stat, valid))
    }

    /// The same with the flags that belong to them (FUSE_ATTR_*).
    pub(super) fn attributes_and_flags(&self, node: u64) -> io::Result<(stat64, u32, Duration)> {
        let node = self.node(node)?;
        let stat = self.guest_stat(statx_fd(&self.path(&node)?)?);
        Ok((to_stat64(&stat), self.dax_flag(&stat), self.attributes_valid(&stat)))
    }

    /// STATX with these flags of the guest's (AT_STATX_*) and mask; also says how long the answer is valid.
    pub(in crate::virtio::fs) fn extended_attributes(
        &self,
        node: u64,
        flags: u32,
        mask: u32,
    ) -> io::Result<(Statx, Duration)> {
        let node = self.node(node)?;
        let sync = AtFlags::STATX_FORCE_SYNC | AtFlags::STATX_DONT_SYNC;
        let flags = AtFlags::EMPTY_PATH | (AtFlags::from_bits_retain(flags) & sync);
        let mask = (StatxFlags::BASIC_STATS | StatxFlags::BTIME) & StatxFlags::from_bits_retain(mask);
        let stat = rustix::fs::statx(self.path(&node)?, c"", flags, mask)?;
        Ok((self.guest_stat(stat), self.attributes_valid(&stat)))
    }

    /// How long the guest may believe attributes. Not at all where a file has set-user-ID or set-group-ID bits: who writes it
    /// or gives it space clears them on the host, and Linux asks for size and times after that, but not for the mode
    /// (fs/fuse/file.c: `file_modified`, FUSE_STATX_MODSIZE).
    pub(super) fn attributes_valid(&self, stat: &Statx) -> Duration {
        let mode = u32::from(stat.stx_mode);
        let bits = Mode::SUID | Mode::SGID;
        let may_change = FileType::from_raw_mode(mode).is_file() && Mode::from_raw_mode(mode).intersects(bits);
        if may_change { Duration::ZERO } else { self.cache.timeout() }
    }

    /// SETATTR by a caller with user id `uid` and group id `gid`.
    pub(super) fn set_attributes(
        &self,
        (uid, gid): (u32, u32),
        node_id: u64,
        attr: &stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<Attributes> {
        self.writable()?;
        let node = self.node(node_id)?;
        let path = self.path(&node)?;
        if valid.contains(SetattrValid::MODE) {
            // A mode is set as the guest's kernel worked it out, set-group-ID bit included.
            self.identity.choose_set_id_bits(SetIdBits::Keep);
            let mode = Mode::from_raw_mode(attr.st_mode & 0o7777);
            rustix::fs::chmodat(self.proc_fds.dir(), FdPath::new(&path).name(), mode, AtFlags::empty())?;
        }
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            // The guest asks for the bits to be cleared whoever the caller is, as the host does it, but for set-group-ID of a file
            // that its group may not execute: that is the caller's to keep.
            self.identity.choose_set_id_bits(self.set_id_bits(uid != 0, gid));
            let uid = valid.contains(SetattrValid::UID).then(|| self.host_uid(attr.st_uid)).transpose()?;
            let gid = valid.contains(SetattrValid::GID).then(|| self.host_gid(attr.st_gid)).transpose()?;
            change_owner(&path, uid, gid)?;
        }
        if valid.contains(SetattrValid::SIZE) {
            let size = attr.st_size.cast_unsigned();
            let bits = self.set_id_bits(valid.contains(SetattrValid::KILL_SUIDGID), gid);
            self.truncate(node_id, handle, size, bits)?;
            grown(self.dax.as_deref(), node_id);
        }
        if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
            let times = Timestamps {
                last_access: time(
                    valid,
                    SetattrValid::ATIME,
                    SetattrValid::ATIME_NOW,
                    attr.st_atime,
                    attr.st_atime_nsec,
                ),
                last_modification: time(
                    valid,
                    SetattrValid::MTIME,
                    SetattrValid::MTIME_NOW,
                    attr.st_mtime,
                    attr.st_mtime_nsec,
                ),
            };
            rustix::fs::utimensat(&path, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        if !valid.intersects(SETS) {
            self.identity.choose_set_id_bits(self.set_id_bits(uid != 0, gid));
            touch_as(uid, self.host_uid(uid)?, &path)?;
        }
        self.attributes(node_id)
    }

    pub(super) fn file_system_stats(&self, node: u64) -> io::Result<statvfs64> {
        let node = self.node(node)?;
        let path = self.path(&node)?;
        let mut stats = MaybeUninit::<statvfs64>::zeroed();
        // SAFETY: `stats` is a statvfs64, and zeroed, so it is valid whether or not the call fills it.
        let result = unsafe { libc::fstatvfs64(path.as_fd().as_raw_fd(), stats.as_mut_ptr()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above.
        Ok(unsafe { stats.assume_init() })
    }
}

/// A SETATTR that sets nothing is what `chown(path, -1, -1)` becomes in the guest. The host does the same, which updates
/// the change time and clears set-user-ID and set-group-ID bits, but only for the owner and root: on a local file system
/// others may not clear the bits either.
fn touch_as(caller: u32, host_uid: u32, path: &impl AsFd) -> io::Result<()> {
    if caller != 0 && host_uid != statx_fd(path)?.stx_uid {
        return Ok(());
    }
    change_owner(path, None, None)
}

fn change_owner(path: &impl AsFd, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    // -1 would mean "unchanged" to the host; the guest's kernel never sends it.
    if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
        return Err(errno(libc::EINVAL));
    }
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::chownat(path, c"", uid.map(Uid::from_raw), gid.map(Gid::from_raw), flags)?)
}

fn time(valid: SetattrValid, set: SetattrValid, now: SetattrValid, seconds: i64, nanoseconds: i64) -> Timespec {
    if valid.contains(now) {
        Timespec { tv_sec: 0, tv_nsec: UTIME_NOW }
    } else if valid.contains(set) {
        // UTIME_NOW and UTIME_OMIT, which a hostile guest could put here, mean no harm.
        Timespec { tv_sec: seconds, tv_nsec: nanoseconds }
    } else {
        Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT }
    }
}
