//! The emulated host's own disk: a sparse file without a name, so that nothing is left of it however we end.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};

/// Makes an ext4 file system of `size` bytes in an unnamed file in `directory`.
///
/// # Errors
/// In words: what failed, where.
pub(super) fn create(directory: &Path, size: u64, mkfs: &Path) -> Result<File, String> {
    let file = tempfile::tempfile_in(directory)
        .map_err(|e| format!("failed to make a file in {}: {e}", directory.display()))?;
    file.set_len(size).map_err(|e| format!("failed to give it {size} bytes in {}: {e}", directory.display()))?;
    make_file_system(&file, mkfs)?;
    Ok(file)
}

fn make_file_system(file: &File, mkfs: &Path) -> Result<(), String> {
    let fd = file.as_raw_fd();
    let mut command = Command::new(mkfs);
    // All of it is zero already: writing the inode tables and the journal would only fill the file.
    command.args(["-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard,assume_storage_prezeroed=1"]);
    command.arg(format!("/proc/self/fd/{fd}")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: the closure makes one fcntl(2) call, which is async-signal-safe, on a descriptor that `file` keeps open
    // until the child has ended.
    unsafe {
        command.pre_exec(move || keep_across_exec(fd));
    }
    let output = command.output().map_err(|e| format!("failed to start {}: {e}", mkfs.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} ended with {}: {}", mkfs.display(), output.status, said.trim()))
}

/// For use between fork and exec.
pub(super) fn keep_across_exec(fd: std::os::fd::RawFd) -> io::Result<()> {
    // SAFETY: the caller keeps the descriptor open for the life of the parent; the child's copy is not closed here.
    let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    fcntl_setfd(fd, FdFlags::empty()).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;
    use crate::host::programs;

    #[test]
    fn the_disk_is_sparse_nameless_ext4() {
        let dir = tempfile::tempdir().expect("tempdir");
        let Some(mkfs) = programs::find(programs::MKFS_EXT4.name) else {
            panic!("mkfs.ext4 is missing; the tests need it: apt-get install e2fsprogs")
        };
        let disk = create(dir.path(), 1 << 30, &mkfs).expect("made");
        let mut magic = [0; 2];
        disk.read_exact_at(&mut magic, 1024 + 56).expect("superblock");
        assert_eq!(u16::from_le_bytes(magic), 0xef53);
        let metadata = disk.metadata().expect("metadata");
        assert_eq!(metadata.len(), 1 << 30);
        assert!(metadata.blocks() * 512 < 64 << 20, "{} blocks", metadata.blocks());
        assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0, "it has a name");
    }

    #[test]
    fn what_mkfs_says_is_in_the_error() {
        let dir = tempfile::tempdir().expect("tempdir");
        let error = create(dir.path(), 0, Path::new("/bin/false")).expect_err("false fails");
        assert!(error.contains("/bin/false ended with exit status: 1"), "{error}");
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = create(Path::new("/no/such/dir"), 1 << 20, Path::new("/bin/true")).expect_err("no directory");
        assert!(error.contains("/no/such/dir"), "{error}");
    }
}
