//! What is in the root image.

/// Packages besides Debian's essential ones. What they depend on comes with them; what they recommend does not.
pub(super) const PACKAGES: &[&str] = &[
    // Suites and their scripts.
    "acl",
    "attr",
    "bc",
    "file",
    "gawk",
    "kmod",
    "libcap2-bin",
    "openssl",
    "perl", // prove, TAP::Harness
    "procps",
    "psmisc",
    "python3",
    "util-linux-extra",
    "uuid-runtime",
    "xxd",
    // File systems: made on loop devices, looked at, exercised.
    "e2fsprogs",
    "fio",
    "mount",
    "quota",
    "xfsprogs",
    // For the person in `vmm shell`.
    "iproute2",
    "less",
    "socat",
    "strace",
    "vim-tiny",
    // Libraries that suites built on Debian link to.
    "libacl1",
    "libaio1",
    "libgdbm6",
    "liburing2",
];

/// [`PACKAGES`], and behind them those of `extra` that are not among them, sorted.
pub(super) fn all(extra: &[String]) -> Vec<&str> {
    let mut more: Vec<&str> = extra.iter().map(String::as_str).filter(|name| !PACKAGES.contains(name)).collect();
    more.sort_unstable();
    more.dedup();
    [PACKAGES, &more].concat()
}

/// Lines of passwd(5). `fsgqa`, `fsgqa2` and `123456-fsgqa` are xfstests' users (its README); `tests` is the second user
/// that the `pjdfstest` crate asks for, besides `nobody`.
pub(super) const USERS: &str = "\
fsgqa:x:1000:1000:xfstests:/home/fsgqa:/bin/bash
fsgqa2:x:1001:1001:xfstests:/home/fsgqa2:/bin/bash
123456-fsgqa:x:1002:1002:xfstests:/home/123456-fsgqa:/bin/bash
tests:x:1003:1003:pjdfstest:/home/tests:/bin/bash";

/// Lines of group(5).
pub(super) const GROUPS: &str = "\
fsgqa:x:1000:
fsgqa2:x:1001:
123456-fsgqa:x:1002:
tests:x:1003:";

/// Folders that later mounts need, as the image is read-only.
pub(super) const FOLDERS: &[&str] =
    &["mnt/virtiofs1", "mnt/virtiofs2", "opt/suites", "home/fsgqa", "home/fsgqa2", "home/123456-fsgqa", "home/tests"];
