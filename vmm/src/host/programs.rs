//! Programs of the host that `vmm` starts, where they are, and which Debian package brings them.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where `mkfs` and friends live; not in an ordinary user's `PATH` on Debian.
const ADMIN_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A program that is started by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// The file's name.
    pub name: &'static str,
    /// What it is needed for, to complete "needed to …".
    pub purpose: &'static str,
    /// The Debian package that has it; `None` when a package would be of no help.
    pub package: Option<&'static str>,
}

/// Emulates the CPU of the emulated host.
pub const QEMU: Program =
    Program { name: "qemu-system-x86_64", purpose: "start the emulated host", package: Some("qemu-system-x86") };
/// Makes the emulated host's scratch disk.
pub const MKFS_EXT4: Program =
    Program { name: "mkfs.ext4", purpose: "make the emulated host's scratch disk", package: Some("e2fsprogs") };

/// The first file called `name` in `PATH` or in a directory of administration programs that we may execute.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    find_in(name, env::var_os("PATH").as_deref())
}

fn find_in(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    let listed = path.map(env::split_paths).into_iter().flatten();
    listed.chain(ADMIN_DIRS.iter().map(PathBuf::from)).map(|dir| dir.join(name)).find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_in_path_and_only_if_executable() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("prog");
        std::fs::write(&file, "").expect("written");
        assert_eq!(find_in("prog", Some(dir.path().as_os_str())), None);
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("chmod");
        assert_eq!(find_in("prog", Some(dir.path().as_os_str())), Some(file));
    }

    #[test]
    fn administration_programs_are_found_without_being_in_path() {
        // Every Debian has it there, and nowhere else.
        let found = find_in("ldconfig", Some(OsStr::new("/nonexistent"))).expect("ldconfig is in /sbin");
        assert!(found.starts_with("/usr/sbin") || found.starts_with("/sbin"), "{}", found.display());
    }
}
