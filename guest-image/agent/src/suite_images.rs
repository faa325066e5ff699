//! Suites come on block devices of their own, so that adding one leaves the root image as it is.
//!
//! A suite may write in its own folder, as xfstests does beside its tests: what it writes goes to memory and ends with the
//! machine.

use std::fs;
use std::time::Duration;

use rustix::mount::{MountFlags, mount_bind};

use crate::kernel_command_line::SuiteImage;
use crate::mounts::{MountError, mount_at, wait_for_device};

/// How long a block device may take to appear.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);
/// The folder that holds a folder for each suite.
const SUITES: &str = "/opt/suites";
/// Where the images themselves are, each with the folders that take what is written.
const IMAGES: &str = "/run/suites";

/// Mounts each suite's image. Returns what could not be: a suite that is not there says so when it is started.
#[must_use]
pub fn mount_all(suites: &[SuiteImage]) -> Vec<String> {
    suites.iter().filter_map(|suite| mount(suite).err()).collect()
}

fn mount(SuiteImage { name, device }: &SuiteImage) -> Result<(), String> {
    let device_name = device.display().to_string();
    wait_for_device(device, DEVICE_LIMIT)
        .map_err(|e| format!("the block device {device_name} of suite {name} did not appear: {e}"))?;
    let image = format!("{IMAGES}/{name}/image");
    mount_at(&device_name, &image, "erofs", MountFlags::RDONLY, "").map_err(|e| e.to_string())?;
    let target = format!("{SUITES}/{name}");
    mount_writable(name, &image, &target).or_else(|error| {
        mount_bind(&image, &target).map_err(|errno| format!("{error}; failed to bind {image} to {target}: {errno}"))?;
        Err(format!("{error}; {target} is read-only"))
    })
}

fn mount_writable(name: &str, image: &str, target: &str) -> Result<(), MountError> {
    for folder in ["upper", "work"] {
        // Cannot fail on a fresh tmpfs; if it did, the mount below says so.
        let _ = fs::create_dir(format!("{IMAGES}/{name}/{folder}"));
    }
    let layers = format!("lowerdir={image},upperdir={IMAGES}/{name}/upper,workdir={IMAGES}/{name}/work");
    mount_at("overlay", target, "overlay", MountFlags::empty(), &layers)
}
