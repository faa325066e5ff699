//! What every agent mounts: the kernel's own file systems and the temporary ones.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

const SAFE: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// A mount that failed.
#[derive(Debug, thiserror::Error)]
#[error("failed to mount {fs_type} {source_name} at {target}: {source}")]
pub struct MountError {
    fs_type: String,
    source_name: String,
    target: String,
    source: io::Error,
}

impl MountError {
    /// The `errno` of what failed, 0 when it has none.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }
}

/// Mounts and, if need be, makes the directory for it.
///
/// # Errors
/// When either fails.
pub fn mount_at(source: &str, target: &str, fs_type: &str, flags: MountFlags, data: &str) -> Result<(), MountError> {
    let failed = |error: io::Error| MountError {
        fs_type: fs_type.into(),
        source_name: source.into(),
        target: target.into(),
        source: error,
    };
    if !Path::new(target).is_dir() {
        fs::create_dir_all(target).map_err(failed)?;
    }
    let data = std::ffi::CString::new(data).map_err(|e| failed(e.into()))?;
    mount(source, target, fs_type, flags, Some(data.as_c_str())).map_err(|errno| failed(errno.into()))
}

/// Like [`mount_at`], but something that is mounted there already (by the kernel: devtmpfs) is left as it is.
fn mount_unless_there(
    source: &str,
    target: &str,
    fs_type: &str,
    flags: MountFlags,
    data: &str,
) -> Result<(), MountError> {
    match mount_at(source, target, fs_type, flags, data) {
        Err(error) if error.errno() == Errno::BUSY.raw_os_error() => Ok(()),
        result => result,
    }
}

/// `/proc`, `/sys` and `/dev`: what the agent needs itself before anything else.
///
/// # Errors
/// The first that fails; without any of them there is no going on.
pub fn mount_kernel_file_systems() -> Result<(), MountError> {
    mount_unless_there("proc", "/proc", "proc", SAFE, "")?;
    mount_unless_there("sysfs", "/sys", "sysfs", SAFE, "")?;
    mount_unless_there("dev", "/dev", "devtmpfs", MountFlags::NOSUID, "mode=0755")?;
    Ok(())
}

/// Terminals, shared memory, `/run`, `/tmp`, and the links of `/dev` that devtmpfs does not make. Returns what failed.
#[must_use]
pub fn mount_temporary_file_systems() -> Vec<String> {
    let no_device = MountFlags::NOSUID | MountFlags::NODEV;
    let mut complaints: Vec<String> = [
        mount_at(
            "devpts",
            "/dev/pts",
            "devpts",
            MountFlags::NOSUID | MountFlags::NOEXEC,
            "gid=5,mode=620,ptmxmode=666",
        ),
        mount_at("tmpfs", "/dev/shm", "tmpfs", no_device, "mode=1777"),
        mount_at("tmpfs", "/run", "tmpfs", no_device, "mode=0755"),
        mount_at("tmpfs", "/tmp", "tmpfs", no_device, "mode=1777"),
    ]
    .into_iter()
    .filter_map(|result| Some(result.err()?.to_string()))
    .collect();
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        match symlink(target, link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                complaints.push(format!("failed to make the link {link}: {error}"));
            }
            _ => {}
        }
    }
    complaints
}

/// Waits until `path`, a direct entry of `/dev`, is there. Probing a device may end after its driver was loaded.
///
/// # Errors
/// `TimedOut`, or when `/dev` cannot be watched.
pub fn wait_for_device(path: &Path, limit: std::time::Duration) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&watch, "/dev", inotify::WatchFlags::CREATE)?;
    let deadline = std::time::Instant::now() + limit;
    // Looked at again after the watch stands, or its appearance in between would be missed.
    while !path.exists() {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = rustix::event::Timespec::try_from(left).unwrap_or_default();
        let mut fds = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut events = [0u8; 4096];
        while matches!(rustix::io::read(&watch, &mut events), Ok(n) if n > 0) {}
    }
    Ok(())
}
