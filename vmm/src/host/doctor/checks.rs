//! The checks: one function each, from facts to a judgement. What `vmm` needs is written here and nowhere else.

use crate::host::programs::{MKFS_EXT4, Program};

use super::{Check, HostFacts, Qemu, Status};

/// Every inode the guest knows is an open file of ours (see the file server), and suites make tens of thousands.
const MIN_OPEN_FILES: u64 = 4096;
const GOOD_OPEN_FILES: u64 = 65_536;
/// The default guest has 1 GiB.
const GUEST_MEMORY_MIB: u64 = 1536;
/// QEMU's own memory, the emulated host's, and the default guest's in it.
const EMULATED_HOST_MEMORY_MIB: u64 = 3072;
/// Kernel packages, root image and a suite, and the space that building them takes.
const MIN_CACHE_MIB: u64 = 2048;
const GOOD_CACHE_MIB: u64 = 6144;
/// What a user namespace needs to hold the ids of a Debian root file system.
const NEWUIDMAP: Program =
    Program { name: "newuidmap", purpose: "build images as an ordinary user", package: Some("uidmap") };

/// Every program that may be started, and the static libraries that the default suite is linked with; which of them are
/// needed depends on the host.
pub(super) const PROGRAMS: [Program; 9] = [
    Program { name: "apt-get", purpose: "get kernels and root images from Debian", package: Some("apt") },
    Program { name: "mmdebstrap", purpose: "build root images", package: Some("mmdebstrap") },
    Program { name: "mkfs.erofs", purpose: "build root images", package: Some("erofs-utils") },
    Program { name: "dpkg-deb", purpose: "unpack kernel packages", package: Some("dpkg") },
    Program { name: "cc", purpose: "link what cargo builds", package: Some("gcc") },
    Program { name: "cargo", purpose: "build suites from the crates registry", package: None },
    Program { name: "libacl.a", purpose: "link the default suite statically", package: Some("libacl1-dev") },
    NEWUIDMAP,
    MKFS_EXT4,
];

const RUSTUP: &str = "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y";

pub(super) fn all(facts: &HostFacts) -> Vec<Check> {
    let mut checks = vec![kvm(facts)];
    checks.extend(qemu(facts));
    checks.extend(PROGRAMS.iter().filter(|p| is_needed(p, facts)).map(|p| program(p, facts)));
    checks.extend([memory(facts), cache(facts)]);
    checks.extend(open_files(facts));
    checks.extend(user_namespaces(facts));
    checks.extend(scratch(facts));
    checks
}

fn is_needed(program: &Program, facts: &HostFacts) -> bool {
    match *program {
        MKFS_EXT4 => !facts.kvm.is_usable(),
        NEWUIDMAP => !facts.root,
        _ => true,
    }
}

fn kvm(facts: &HostFacts) -> Check {
    if facts.kvm.is_usable() {
        return ok("KVM", facts.kvm.to_string());
    }
    // Not a failure: runs are made in the emulated host, whose needs have checks of their own.
    Check {
        name: "KVM".to_owned(),
        status: Status::Warning,
        detail: format!("{}; runs go through the emulated host, slower", facts.kvm),
        mend: facts.kvm.mend(),
        packages: Vec::new(),
    }
}

/// Only the emulated host needs one, and it gets one by itself.
fn qemu(facts: &HostFacts) -> Option<Check> {
    let detail = match facts.qemu {
        Qemu::Own(major, minor) => format!("{major}.{minor} is installed, needed to start the emulated host"),
        Qemu::Cached => "in the cache, needed to start the emulated host".to_owned(),
        Qemu::None => "downloaded with the first emulated host (40 MB), not installed".to_owned(),
    };
    (!facts.kvm.is_usable()).then(|| ok("QEMU", detail))
}

fn program(program: &Program, facts: &HostFacts) -> Check {
    if !facts.missing_programs.contains(program.name) {
        return ok(program.name, format!("found, needed to {}", program.purpose));
    }
    Check {
        name: program.name.to_owned(),
        status: Status::Failure,
        detail: format!("not found, needed to {}", program.purpose),
        mend: Some(
            program.package.map_or_else(|| RUSTUP.to_owned(), |p| as_root(facts, &format!("apt-get install -y {p}"))),
        ),
        packages: program.package.map(str::to_owned).into_iter().collect(),
    }
}

/// The emulated host has limits of its own.
fn open_files(facts: &HostFacts) -> Option<Check> {
    if !facts.kvm.is_usable() {
        return None;
    }
    let Some(limit) = facts.open_files else { return Some(ok("open files", "no limit".to_owned())) };
    let status = at_least(limit, MIN_OPEN_FILES, GOOD_OPEN_FILES);
    Some(graded("open files", status, format!("up to {limit}; {GOOD_OPEN_FILES} are enough for every suite"), || {
        as_root(facts, &format!("prlimit --pid $$ --nofile={GOOD_OPEN_FILES}:{GOOD_OPEN_FILES}"))
    }))
}

fn memory(facts: &HostFacts) -> Check {
    let needed = if facts.kvm.is_usable() { GUEST_MEMORY_MIB } else { EMULATED_HOST_MEMORY_MIB };
    let Some(available) = facts.available_memory_mib else {
        return Check {
            status: Status::Warning,
            ..ok("memory", "/proc/meminfo does not tell what is available".to_owned())
        };
    };
    let status = if available < needed { Status::Failure } else { Status::Ok };
    let detail = format!("{available} MiB available, {needed} MiB needed for a guest of default size");
    // No command gives memory.
    Check { status, ..ok("memory", detail) }
}

fn cache(facts: &HostFacts) -> Check {
    let directory = facts.cache.directory.display();
    let Some(free) = facts.cache.free_mib else {
        let detail = format!("the file system of {directory} cannot be asked for its space");
        return Check { status: Status::Warning, ..ok("cache space", detail) };
    };
    let status = at_least(free, MIN_CACHE_MIB, GOOD_CACHE_MIB);
    graded("cache space", status, format!("{free} MiB free at {directory}; {GOOD_CACHE_MIB} MiB are plenty"), || {
        "export VMM_CACHE_DIR=DIR_WITH_MORE_SPACE".to_owned()
    })
}

/// Root builds images without them.
fn user_namespaces(facts: &HostFacts) -> Option<Check> {
    if facts.root {
        return None;
    }
    let name = "user namespaces";
    Some(if !facts.user_namespaces {
        let mend = "sudo sysctl -w kernel.unprivileged_userns_clone=1 user.max_user_namespaces=65536";
        graded(name, Status::Failure, "forbidden to ordinary users, needed to build images".to_owned(), || {
            mend.to_owned()
        })
    } else if !facts.subordinate_ids {
        let detail = format!("/etc/subuid and /etc/subgid give {} no 65536 ids, needed to build images", facts.user);
        let mend = format!("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {}", facts.user);
        graded(name, Status::Failure, detail, || mend)
    } else {
        ok(name, "allowed, with subordinate ids".to_owned())
    })
}

/// The emulated host brings a scratch disk of its own.
fn scratch(facts: &HostFacts) -> Option<Check> {
    if !facts.kvm.is_usable() {
        return None;
    }
    let kind = facts.scratch.kind.as_deref().unwrap_or("unknown");
    let directory = facts.scratch.directory.display();
    Some(match kind {
        "ext4" | "xfs" | "btrfs" => ok("scratch", format!("{directory} is on {kind}")),
        _ => graded(
            "scratch",
            Status::Warning,
            format!("{directory} is on {kind}: suites were judged on ext4 and xfs, and may fail for its reasons"),
            || "export VMM_SCRATCH_DIR=DIR_ON_EXT4_OR_XFS".to_owned(),
        ),
    })
}

fn ok(name: &str, detail: String) -> Check {
    Check { name: name.to_owned(), status: Status::Ok, detail, mend: None, packages: Vec::new() }
}

fn graded(name: &str, status: Status, detail: String, mend: impl FnOnce() -> String) -> Check {
    Check { status, mend: (status != Status::Ok).then(mend), ..ok(name, detail) }
}

fn at_least(have: u64, minimum: u64, good: u64) -> Status {
    if have < minimum {
        Status::Failure
    } else if have < good {
        Status::Warning
    } else {
        Status::Ok
    }
}

fn as_root(facts: &HostFacts, command: &str) -> String {
    if facts.root { command.to_owned() } else { format!("sudo {command}") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::*;
    use crate::host::doctor::{FileSystem, Report, examine};
    use crate::host::kvm_probe::Verdict;

    fn good() -> HostFacts {
        let ext4 = |dir: &str| FileSystem {
            directory: PathBuf::from(dir),
            kind: Some("ext4".to_owned()),
            free_mib: Some(100_000),
        };
        HostFacts {
            kvm: Verdict::Usable { instructions_per_s: 3_000_000_000, exit_ns: 1_500 },
            open_files: Some(1 << 20),
            available_memory_mib: Some(16_000),
            cache: ext4("/cache"),
            scratch: ext4("/scratch"),
            root: true,
            user_namespaces: true,
            subordinate_ids: true,
            user: "alice".to_owned(),
            qemu: Qemu::None,
            missing_programs: BTreeSet::new(),
        }
    }

    fn interpreting() -> Verdict {
        Verdict::TooSlow { instructions_per_s: 1_500_000 }
    }

    fn find<'a>(report: &'a Report, name: &str) -> &'a Check {
        report.checks.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("no check {name} in {report:?}"))
    }

    #[test]
    fn a_good_host_is_ready_and_needs_nothing() {
        let report = examine(&good());
        assert!(report.ready && report.missing_packages().is_empty());
        assert_eq!(report.host, "kvm");
        assert!(report.checks.iter().all(|c| c.status == Status::Ok && c.mend.is_none()), "{report:?}");
    }

    #[test]
    fn with_usable_kvm_what_the_emulated_host_needs_is_not_asked_for() {
        let facts = HostFacts { missing_programs: BTreeSet::from([MKFS_EXT4.name, NEWUIDMAP.name]), ..good() };
        let report = examine(&facts);
        assert!(report.ready && report.missing_packages().is_empty(), "{report:?}");
        assert!(report.checks.iter().all(|check| check.name != "QEMU"), "{report:?}");
    }

    #[test]
    fn without_usable_kvm_a_host_is_ready_but_warned_about_wherever_its_qemu_comes_from() {
        for (qemu, told) in [(Qemu::Own(10, 0), "10.0"), (Qemu::Cached, "cache"), (Qemu::None, "downloaded")] {
            let report = examine(&HostFacts { kvm: interpreting(), qemu, ..good() });
            assert!(report.ready && report.missing_packages().is_empty(), "{report:?}");
            assert_eq!(report.host, "emulated");
            assert_eq!(find(&report, "KVM").status, Status::Warning);
            assert!(find(&report, "QEMU").detail.contains(told), "{report:?}");
        }
    }

    #[test]
    fn without_usable_kvm_and_mkfs_no_run_can_be_made_and_its_package_is_named() {
        let missing = BTreeSet::from([MKFS_EXT4.name]);
        let report = examine(&HostFacts { kvm: interpreting(), missing_programs: missing, ..good() });
        assert!(!report.ready);
        assert_eq!(report.missing_packages(), ["e2fsprogs"]);
        assert_eq!(find(&report, MKFS_EXT4.name).mend.as_deref(), Some("apt-get install -y e2fsprogs"));
    }

    #[test]
    fn a_missing_cargo_is_mended_by_rustup_and_not_by_a_package() {
        let report = examine(&HostFacts { missing_programs: BTreeSet::from(["cargo"]), ..good() });
        assert!(!report.ready && report.missing_packages().is_empty());
        assert!(find(&report, "cargo").mend.as_deref().is_some_and(|m| m.contains("rustup")));
    }

    #[test]
    fn an_ordinary_user_needs_user_namespaces_and_subordinate_ids() {
        let user = || HostFacts { root: false, ..good() };
        assert!(examine(&user()).ready);
        let forbidden = examine(&HostFacts { user_namespaces: false, ..user() });
        assert!(find(&forbidden, "user namespaces").mend.as_deref().is_some_and(|m| m.contains("sysctl")));
        let no_ids = examine(&HostFacts { subordinate_ids: false, ..user() });
        assert!(find(&no_ids, "user namespaces").mend.as_deref().is_some_and(|m| m.ends_with(" alice")));
        let no_tool = examine(&HostFacts { missing_programs: BTreeSet::from([NEWUIDMAP.name]), ..user() });
        assert_eq!(no_tool.missing_packages(), ["uidmap"]);
        assert_eq!(find(&no_tool, "newuidmap").mend.as_deref(), Some("sudo apt-get install -y uidmap"));
        assert!(!forbidden.ready && !no_ids.ready && !no_tool.ready);
    }

    #[test]
    fn limits_are_graded() {
        let status = |limit| find(&examine(&HostFacts { open_files: limit, ..good() }), "open files").status;
        assert_eq!(
            [Some(1024), Some(8192), Some(65_536), None].map(status),
            [Status::Failure, Status::Warning, Status::Ok, Status::Ok]
        );
        let emulated = examine(&HostFacts { kvm: interpreting(), open_files: Some(1024), ..good() });
        assert!(emulated.checks.iter().all(|c| c.name != "open files"), "the emulated host has limits of its own");
    }

    #[test]
    fn memory_must_hold_the_emulated_host_as_well_where_there_is_one() {
        let facts = HostFacts { available_memory_mib: Some(2000), ..good() };
        assert!(examine(&facts).ready);
        assert!(!examine(&HostFacts { kvm: interpreting(), ..facts }).ready);
    }

    #[test]
    fn a_full_cache_disk_fails_and_an_unknown_one_only_warns() {
        let status = |free_mib| {
            let cache = FileSystem { free_mib, ..good().cache };
            find(&examine(&HostFacts { cache, ..good() }), "cache space").status
        };
        assert_eq!(
            [Some(100), Some(3000), Some(10_000), None].map(status),
            [Status::Failure, Status::Warning, Status::Ok, Status::Warning]
        );
    }

    #[test]
    fn scratch_on_an_overlay_is_warned_about_unless_the_emulated_host_brings_its_own() {
        let scratch = FileSystem { kind: Some("overlay".to_owned()), ..good().scratch };
        let facts = HostFacts { scratch, ..good() };
        assert_eq!(find(&examine(&facts), "scratch").status, Status::Warning);
        let emulated = examine(&HostFacts { kvm: interpreting(), ..facts });
        assert!(emulated.checks.iter().all(|c| c.name != "scratch"));
    }
}
