//! What is the case on this host, without any judgement.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use guest_image::{Cache, qemu};
use rustix::process::{Resource, getrlimit};

use crate::host::kvm_probe::{self, Verdict};
use crate::host::{emulated, programs};

use super::checks::PROGRAMS;

/// Everything the checks look at.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// What the probe of KVM found.
    pub kvm: Verdict,
    /// Hard limit of open files; `None` for no limit. (The soft limit is raised to it when needed.)
    pub open_files: Option<u64>,
    /// Memory that can be had without swapping, MiB; `None` when unknown.
    pub available_memory_mib: Option<u64>,
    /// Where images and kernels are kept.
    pub cache: FileSystem,
    /// Where shares under test are made when none are given.
    pub scratch: FileSystem,
    /// Whether we are root.
    pub root: bool,
    /// Whether an ordinary user may make user namespaces here.
    pub user_namespaces: bool,
    /// Whether `/etc/subuid` and `/etc/subgid` give this user 65,536 ids of each.
    pub subordinate_ids: bool,
    /// The user's name.
    pub user: String,
    /// Which QEMU there is for an emulated host.
    pub qemu: Qemu,
    /// Programs and libraries of those we need that are not here.
    pub missing_programs: BTreeSet<&'static str>,
}

/// A QEMU that is sound enough for the emulated host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qemu {
    /// This machine's own, major and minor version.
    Own(u32, u32),
    /// In the cache.
    Cached,
    /// Not here yet.
    None,
}

impl Qemu {
    fn find(cache: &Path) -> Self {
        match emulated::sound_qemu() {
            Some((_, (major, minor))) => Self::Own(major, minor),
            // A cache that cannot be opened holds none.
            None if Cache::open(cache).is_ok_and(|cache| qemu::cached(&cache).is_some()) => Self::Cached,
            None => Self::None,
        }
    }
}

/// A file system, by a directory on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSystem {
    /// The directory asked for; need not exist yet.
    pub directory: PathBuf,
    /// Its type, as `mount` names it, or the magic number in hexadecimal; `None` when it cannot be asked.
    pub kind: Option<String>,
    /// What an ordinary user may still write there, MiB; `None` when it cannot be asked.
    pub free_mib: Option<u64>,
}

/// The directories a user may choose.
#[derive(Clone, Copy, Debug)]
pub struct Where<'a> {
    /// The cache directory.
    pub cache: &'a Path,
    /// The parent of scratch shares.
    pub scratch: &'a Path,
}

impl HostFacts {
    /// Looks at this host. Takes some ten milliseconds, most of them for the probe of KVM.
    #[must_use]
    pub fn gather(place: &Where<'_>) -> Self {
        let root = rustix::process::geteuid().is_root();
        let uid = rustix::process::getuid().as_raw();
        let user = user_name(uid);
        Self {
            kvm: kvm_probe::probe(),
            open_files: getrlimit(Resource::Nofile).maximum,
            available_memory_mib: read("/proc/meminfo").and_then(|text| meminfo_mib(&text, "MemAvailable")),
            cache: FileSystem::of(place.cache),
            scratch: FileSystem::of(place.scratch),
            root,
            user_namespaces: user_namespaces_allowed(),
            subordinate_ids: ["/etc/subuid", "/etc/subgid"]
                .iter()
                .all(|file| read(file).is_some_and(|text| has_subordinate_ids(&text, &user, uid))),
            user,
            qemu: Qemu::find(place.cache),
            missing_programs: PROGRAMS.iter().map(|p| p.name).filter(|name| !is_installed(name)).collect(),
        }
    }
}

fn is_installed(name: &str) -> bool {
    if name.ends_with(".a") { guest_image::suite::has_static_library(name) } else { programs::find(name).is_some() }
}

impl FileSystem {
    fn of(directory: &Path) -> Self {
        let absolute = std::path::absolute(directory).unwrap_or_else(|_| directory.to_path_buf());
        // The directory may still have to be made: its nearest parent is on the same file system.
        let status = absolute.ancestors().find_map(|dir| rustix::fs::statfs(dir).ok());
        #[expect(clippy::cast_sign_loss, reason = "magic numbers are bit patterns and sizes are positive")]
        let (kind, free) = match status {
            Some(s) => (Some(kind_name(s.f_type as u64)), Some(s.f_bavail.saturating_mul(s.f_bsize as u64) >> 20)),
            None => (None, None),
        };
        Self { directory: directory.to_path_buf(), kind, free_mib: free }
    }
}

/// `statfs(2)`'s magic numbers, from the kernel's `include/uapi/linux/magic.h`.
fn kind_name(magic: u64) -> String {
    let name = match magic & 0xffff_ffff {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x794c_7630 => "overlay",
        0x0102_1994 => "tmpfs",
        0x6969 => "nfs",
        0x0102_1997 => "9p",
        0x6573_5546 => "fuse",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        0xff53_4d42 => "cifs",
        other => return format!("{other:#x}"),
    };
    name.to_owned()
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn user_name(uid: u32) -> String {
    let from_passwd = read("/etc/passwd").and_then(|text| name_of_uid(&text, uid));
    from_passwd.unwrap_or_else(|| uid.to_string())
}

fn name_of_uid(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse::<u32>().ok()? == uid).then(|| name.to_owned())
    })
}

/// A field of `/proc/meminfo`, which counts in KiB.
pub(in crate::host) fn meminfo_mib(meminfo: &str, field: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib >> 10)
}

/// Whether `/etc/subuid` or `/etc/subgid` gives `user` ids enough for a Debian root file system.
fn has_subordinate_ids(text: &str, user: &str, uid: u32) -> bool {
    let uid = uid.to_string();
    text.lines().any(|line| {
        let mut fields = line.trim().split(':');
        // The file may name a user by name or by number: subuid(5).
        fields.next().is_some_and(|owner| owner == user || owner == uid)
            && fields.nth(1).is_some_and(|count| count.parse::<u64>().is_ok_and(|n| n >= 65_536))
    })
}

/// Debian's switch, Ubuntu's, and the kernel's own limit: any of them may forbid it.
fn user_namespaces_allowed() -> bool {
    let value = |path: &str| read(path).and_then(|text| text.trim().parse::<u64>().ok());
    value("/proc/sys/kernel/unprivileged_userns_clone") != Some(0)
        && value("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") != Some(1)
        && value("/proc/sys/user/max_user_namespaces").is_some_and(|limit| limit > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_in_mib() {
        let text = "MemTotal:       24684096 kB\nMemFree:         100 kB\nMemAvailable:    2097152 kB\n";
        assert_eq!(meminfo_mib(text, "MemAvailable"), Some(2048));
        assert_eq!(meminfo_mib(text, "MemA"), None);
        assert_eq!(meminfo_mib("MemAvailable: none\n", "MemAvailable"), None);
    }

    #[test]
    fn subordinate_ids_are_the_users_own_and_enough() {
        let text = "alice:100000:65536\nbob:165536:1000\n\nbroken\n1003:300000:65536\n";
        assert!(has_subordinate_ids(text, "alice", 1000));
        assert!(!has_subordinate_ids(text, "bob", 1001));
        assert!(!has_subordinate_ids(text, "carol", 1002));
        assert!(has_subordinate_ids(text, "dave", 1003));
    }

    #[test]
    fn a_user_is_named_by_its_id() {
        let text = "root:x:0:0:root:/root:/bin/bash\nalice:x:1000:1000::/home/alice:/bin/sh\n";
        assert_eq!(name_of_uid(text, 1000), Some("alice".to_owned()));
        assert_eq!(name_of_uid(text, 7), None);
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_on_the_file_system_of_its_parent() {
        let dir = tempfile::tempdir().expect("tempdir");
        let deep = FileSystem::of(&dir.path().join("not/yet/there"));
        assert_eq!(deep.kind, FileSystem::of(dir.path()).kind);
        assert!(deep.free_mib.is_some());
    }

    #[test]
    fn file_systems_have_the_names_that_mount_uses() {
        assert_eq!(kind_name(0xef53), "ext4");
        assert_eq!(kind_name(0xffff_ffff_9123_683e), "btrfs", "the magic number is sign-extended");
        assert_eq!(kind_name(0x1234), "0x1234");
    }

    #[test]
    fn gathering_on_this_host_tells_about_both_directories() {
        let facts = HostFacts::gather(&Where { cache: Path::new("/"), scratch: Path::new("/proc") });
        assert!(facts.cache.kind.is_some());
        assert_eq!(facts.scratch.kind.as_deref(), Some("0x9fa0"));
        assert!(facts.available_memory_mib.is_some_and(|mib| mib > 0));
    }
}
