//! Acting as the guest's user, one thread at a time.
//!
//! Files belong to whoever made them because they are made with that user's ids. Everything else runs as the server's
//! own user: the guest kernel has checked permissions already (virtio-fs mounts with `default_permissions`), and it
//! knows the caller's groups and capabilities better than the server does.
//!
//! Credentials belong to a thread in Linux. glibc's `setuid` family changes every thread of the process, so the raw
//! system calls are used (rustix's `set_thread_*`).

use std::cell::Cell;
use std::ffi::CString;
use std::io;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Gid, Uid, getegid, geteuid};
use rustix::thread::{
    CapabilitySet, UnshareFlags, capabilities, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::host::PROC_FDS;

/// On whose behalf a request runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caller {
    /// User id.
    pub(crate) uid: u32,
    /// Group id.
    pub(crate) gid: u32,
    /// The supplementary groups that matter for the request, if the guest said so.
    pub(crate) groups: Vec<u32>,
}

/// A security label that a new file gets: an extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) name: CString,
    pub(crate) value: Vec<u8>,
}

/// How a request wants a new file made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Creator {
    /// Whose it is.
    pub(crate) caller: Caller,
    /// The caller's umask, if the guest has not applied it (DONT_MASK).
    pub(crate) umask: Option<u32>,
    /// Its labels.
    pub(crate) labels: Vec<Label>,
}

/// The calling thread's umask for a time. Dropping this makes it zero again.
struct Umask;

impl Umask {
    /// Where the directory has a default ACL, the host's file system uses that instead.
    fn set(mask: u32) -> Self {
        rustix::process::umask(Mode::from_raw_mode(mask & 0o777));
        Umask
    }
}

impl Drop for Umask {
    fn drop(&mut self) {
        rustix::process::umask(Mode::empty());
    }
}

/// What changing a file does to its set-user-ID and set-group-ID bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetIdBits {
    /// They stay, as for a caller with CAP_FSETID.
    Keep,
    /// They go as for a caller without, who is in this group of the host and in no other: set-group-ID stays on a file of this
    /// group that the group may not execute (`setattr_should_drop_suidgid`, Linux fs/attr.c).
    ClearFor(u32),
}

// Kept across requests: a guest's writes come in long runs by one user, so most of them need no system call here.
thread_local! {
    /// Whether CAP_FSETID is missing from this thread's effective set because this module took it out.
    static FSETID_DROPPED: Cell<bool> = const { Cell::new(false) };
    /// The group of this thread's accesses to file systems (fsgid), where that is not the server's own.
    static ACCESS_GROUP: Cell<Option<u32>> = const { Cell::new(None) };
    /// Whether this thread's working directory is its own and is [`PROC_FDS`].
    static WORKS_IN_PROC_FDS: Cell<bool> = const { Cell::new(false) };
}

/// Whether a relative path is one below `/proc/self/fd` for the calling thread.
pub(super) fn works_in_proc_fds() -> bool {
    WORKS_IN_PROC_FDS.get()
}

/// Makes the calling thread fit to serve requests: a umask of its own, which is zero because the guest has applied its
/// caller's, none of the server's own supplementary groups, and `/proc/self/fd` as its working directory, so that calls
/// which take nothing but a path find a descriptor in one step.
///
/// # Errors
/// The thread's file system context could not be separated from the process's.
pub(crate) fn prepare_thread() -> io::Result<()> {
    // SAFETY: only the working directory, root and umask become this thread's own (CLONE_FS); no descriptor is touched.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    rustix::process::umask(Mode::empty());
    WORKS_IN_PROC_FDS.set(rustix::process::chdir(PROC_FDS).is_ok());
    if geteuid().is_root() {
        // Not fatal: a user namespace may forbid it (/proc/self/setgroups), then the groups are nobody's anyway.
        if let Err(error) = set_thread_groups(&[]) {
            tracing::debug!("server's supplementary groups kept: {error}");
        }
    }
    Ok(())
}

/// What the server itself is allowed to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    uid: Uid,
    gid: Gid,
    /// Whether it can act as other users. Without, every file belongs to the server's user.
    privileged: bool,
}

impl Identity {
    /// The identity of the calling thread.
    pub(super) fn current() -> Self {
        let uid = geteuid();
        let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
        let capable = capabilities(None).is_ok_and(|sets| sets.effective.contains(needed));
        Identity { uid, gid: getegid(), privileged: uid.is_root() && capable }
    }

    /// Runs `make`, which makes a file, as `creator` wants it made. Labels are not its business.
    ///
    /// # Errors
    /// See [`Identity::make_as`].
    pub(super) fn make_for<T>(&self, creator: &Creator, make: impl Fn() -> Result<T, Errno>) -> io::Result<T> {
        let _umask = creator.umask.map(Umask::set);
        self.make_as(&creator.caller, make)
    }

    /// Runs `make`, which makes a file, with `caller`'s ids. The thread has its own ids back when this returns.
    ///
    /// # Errors
    /// What `make` returned, or why the ids could not be taken on (EINVAL for an id that is none).
    pub(super) fn make_as<T>(&self, caller: &Caller, make: impl Fn() -> Result<T, Errno>) -> io::Result<T> {
        if !self.privileged {
            return Ok(make()?);
        }
        // The bits of a mode are kept or cleared by the kernel as for the caller: root has CAP_FSETID.
        self.choose_set_id_bits(SetIdBits::Keep);
        let mut assumed = Assumed::new(*self);
        assumed.take_on(caller)?;
        match make() {
            // The guest's kernel has granted this already, for a reason this thread does not show: a supplementary
            // group it could not name (before Linux 6.3) or a capability of a user other than root.
            Err(Errno::ACCESS | Errno::PERM) if assumed.uid_changed => {
                assumed.override_access_checks()?;
                Ok(make()?)
            }
            result => Ok(result?),
        }
    }

    /// Chooses what this thread's changes of files do to their set-user-ID and set-group-ID bits until it is chosen again:
    /// writing, truncating, allocating space, changing owner or ACL.
    pub(super) fn choose_set_id_bits(&self, bits: SetIdBits) {
        self.keep_fsetid(bits == SetIdBits::Keep);
        let group = match bits {
            SetIdBits::Keep => None,
            SetIdBits::ClearFor(gid) => Some(gid).filter(|gid| *gid != self.gid.as_raw()),
        };
        if self.privileged && ACCESS_GROUP.get() != group {
            // SAFETY: a plain number, for this thread alone (setfsgid(2)); one that is no group changes nothing.
            unsafe { libc::setfsgid(group.unwrap_or(self.gid.as_raw())) };
            ACCESS_GROUP.set(group);
        }
    }

    fn keep_fsetid(&self, keep: bool) {
        if FSETID_DROPPED.get() != keep {
            return;
        }
        let result = capabilities(None).and_then(|mut sets| {
            sets.effective.set(CapabilitySet::FSETID, keep && sets.permitted.contains(CapabilitySet::FSETID));
            set_capabilities(None, sets)
        });
        match result {
            Ok(()) => FSETID_DROPPED.set(!keep),
            // A thread may always lower its set and raise it back to what it is permitted.
            Err(error) => tracing::warn!("CAP_FSETID not changed: {error}"),
        }
    }
}

/// Ids that a thread has taken on. Dropping this gives it its own back.
struct Assumed {
    own: Identity,
    uid_changed: bool,
    gid_changed: bool,
    groups_changed: bool,
}

impl Assumed {
    fn new(own: Identity) -> Self {
        Assumed { own, uid_changed: false, gid_changed: false, groups_changed: false }
    }

    fn take_on(&mut self, caller: &Caller) -> io::Result<()> {
        let (uid, gid) = (user(caller.uid)?, group(caller.gid)?);
        if !caller.groups.is_empty() {
            let groups = caller.groups.iter().map(|gid| group(*gid)).collect::<io::Result<Vec<Gid>>>()?;
            set_thread_groups(&groups)?;
            self.groups_changed = true;
        }
        // Groups first: with another user id the right to change them is gone.
        if gid != self.own.gid {
            set_thread_res_gid(None, gid, None)?;
            self.gid_changed = true;
        }
        if uid != self.own.uid {
            set_thread_res_uid(None, uid, None)?;
            self.uid_changed = true;
        }
        Ok(())
    }

    /// Lets the caller reach what file modes would keep from it, the sticky bit of a directory among them. The permitted set is
    /// still root's, since only the effective user id has changed.
    fn override_access_checks(&self) -> io::Result<()> {
        let mut sets = capabilities(None)?;
        sets.effective = (CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER) & sets.permitted;
        Ok(set_capabilities(None, sets)?)
    }
}

impl Drop for Assumed {
    fn drop(&mut self) {
        let mut result = Ok(());
        if self.uid_changed {
            // Also refills the effective capabilities from the permitted ones (capabilities(7)).
            result = result.and(set_thread_res_uid(None, self.own.uid, None));
            FSETID_DROPPED.set(false);
        }
        if self.gid_changed {
            result = result.and(set_thread_res_gid(None, self.own.gid, None));
        }
        if self.groups_changed {
            result = result.and(set_thread_groups(&[]));
        }
        if let Err(error) = result {
            // Serving on with a guest's ids would be wrong in both directions. It cannot happen (the saved ids are the
            // server's own), so the worker ends loudly.
            panic!("failed to get the server's own ids back: {error}");
        }
    }
}

/// `-1` means "unchanged" to the kernel, and is no id.
fn user(uid: u32) -> io::Result<Uid> {
    if uid == u32::MAX { Err(Errno::INVAL.into()) } else { Ok(Uid::from_raw(uid)) }
}

fn group(gid: u32) -> io::Result<Gid> {
    if gid == u32::MAX { Err(Errno::INVAL.into()) } else { Ok(Gid::from_raw(gid)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> (u32, u32) {
        (geteuid().as_raw(), getegid().as_raw())
    }

    #[test]
    fn ids_are_taken_on_and_given_back_also_after_an_error() {
        // A thread of its own, since it changes its file system context.
        std::thread::spawn(|| {
            prepare_thread().unwrap();
            let own = ids();
            let identity = Identity::current();
            let caller = Caller { uid: 1234, gid: 5678, groups: vec![4321] };
            let expected = if identity.privileged { (1234, 5678) } else { own };
            assert_eq!(identity.make_as(&caller, || Ok(ids())).unwrap(), expected);
            assert_eq!(ids(), own);
            let error = identity.make_as(&caller, || Err::<(), _>(Errno::EXIST)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
            assert_eq!(ids(), own);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn an_id_of_minus_one_is_refused_and_changes_nothing() {
        std::thread::spawn(|| {
            let own = ids();
            let identity = Identity { privileged: true, ..Identity::current() };
            for caller in [Caller { uid: u32::MAX, ..Caller::default() }, Caller { gid: u32::MAX, ..Caller::default() }]
            {
                let error = identity.make_as(&caller, || Ok(())).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
            }
            assert_eq!(ids(), own);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn an_access_denied_is_tried_again_with_the_right_to_override_it() {
        std::thread::spawn(|| {
            let identity = Identity::current();
            let attempts = Cell::new(0);
            let caller = Caller { uid: 1234, gid: 5678, groups: vec![] };
            let result = identity.make_as(&caller, || {
                attempts.set(attempts.get() + 1);
                if attempts.get() == 1 { Err(Errno::ACCESS) } else { Ok(capabilities(None).unwrap().effective) }
            });
            if identity.privileged {
                assert_eq!(result.unwrap(), CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER);
                assert!(capabilities(None).unwrap().effective.contains(CapabilitySet::SETUID));
            } else {
                assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EACCES));
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn fsetid_and_the_group_are_changed_and_come_back() {
        std::thread::spawn(|| {
            let identity = Identity::current();
            let has = || capabilities(None).unwrap().effective.contains(CapabilitySet::FSETID);
            let before = has();
            // SAFETY: a plain number; -1 is no group and changes nothing, so this only reads.
            let group = || unsafe { libc::setfsgid(u32::MAX) }.cast_unsigned();
            let own = group();
            for gid in [1234, 1234, own, 5678] {
                identity.choose_set_id_bits(SetIdBits::ClearFor(gid));
                assert!(!has());
                assert_eq!(group(), if identity.privileged { gid } else { own });
            }
            identity.choose_set_id_bits(SetIdBits::Keep);
            assert_eq!((has(), group()), (before, own));
        })
        .join()
        .unwrap();
    }
}
