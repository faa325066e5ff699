//! From the initramfs to the root image: mounted read-only, with writes going to memory.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::mount::{MountFlags, mount_bind, mount_move};
use rustix::process::{chdir, chroot};

use crate::mounts::{MountError, mount_at, wait_for_device};

/// How long the block device may take to appear.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);
const IMAGE: &str = "/root-image";
const WRITES: &str = "/root-writes";
const NEW_ROOT: &str = "/new-root";
/// Without overlayfs these are writable and empty, and everything else is read-only.
const WRITABLE_WITHOUT_OVERLAY: [&str; 6] = ["mnt", "root", "home", "var/tmp", "srv", "opt/suites"];

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The block device did not come.
    #[error("the root image's block device {device} did not appear: {source}; is virtio_blk there?")]
    NoDevice {
        /// The device.
        device: String,
        /// How waiting for it ended.
        source: std::io::Error,
    },
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The switch itself failed.
    #[error("failed to make the root image the root file system ({step}): {source}")]
    Switch {
        /// What was tried.
        step: &'static str,
        /// What came of it.
        source: rustix::io::Errno,
    },
}

/// Makes the image on `device` the root of this process and everything it starts. Returns complaints that are no
/// reason to stop.
///
/// # Errors
/// When the image cannot be mounted or switched to.
pub fn switch_to(device: &Path, fs_type: &str) -> Result<Vec<String>, RootError> {
    let device_name = device.display().to_string();
    wait_for_device(device, DEVICE_LIMIT)
        .map_err(|source| RootError::NoDevice { device: device_name.clone(), source })?;
    mount_at(&device_name, IMAGE, fs_type, MountFlags::RDONLY, "")?;
    let mut complaints = Vec::new();
    if let Err(error) = mount_overlay() {
        complaints.push(format!("{error}; only a few directories are writable"));
        mount_read_only()?;
    }
    for name in ["proc", "sys", "dev"] {
        mount_move(format!("/{name}"), format!("{NEW_ROOT}/{name}"))
            .map_err(|source| RootError::Switch { step: "moving /proc, /sys and /dev", source })?;
    }
    // Nothing reads the initramfs again; its pages would be lost to the guest.
    let _ = fs::remove_dir_all(crate::modules::DIRECTORY);
    let _ = fs::remove_file("/init");
    let step = |step| move |source| RootError::Switch { step, source };
    chdir(NEW_ROOT).map_err(step("entering it"))?;
    // The initramfs cannot be pivoted away from: the new root is moved over it (switch_root(8)).
    mount_move(".", "/").map_err(step("moving it to /"))?;
    chroot(".").map_err(step("chroot"))?;
    chdir("/").map_err(step("entering /"))?;
    Ok(complaints)
}

fn mount_overlay() -> Result<(), MountError> {
    mount_at("tmpfs", WRITES, "tmpfs", MountFlags::empty(), "mode=0755")?;
    for name in ["upper", "work"] {
        // Cannot fail on a fresh tmpfs; if it did, the mount below says so.
        let _ = fs::create_dir(format!("{WRITES}/{name}"));
    }
    let layers = format!("lowerdir={IMAGE},upperdir={WRITES}/upper,workdir={WRITES}/work");
    mount_at("overlay", NEW_ROOT, "overlay", MountFlags::empty(), &layers)
}

fn mount_read_only() -> Result<(), RootError> {
    let _ = fs::create_dir_all(NEW_ROOT);
    mount_bind(IMAGE, NEW_ROOT).map_err(|source| RootError::Switch { step: "binding it", source })?;
    for name in WRITABLE_WITHOUT_OVERLAY {
        let target = format!("{NEW_ROOT}/{name}");
        if Path::new(&target).is_dir() {
            mount_at("tmpfs", &target, "tmpfs", MountFlags::empty(), "mode=0755")?;
        }
    }
    Ok(())
}
