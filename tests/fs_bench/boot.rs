//! The first program of a guest whose kernel has what the root image needs as modules: loads them, and goes on with the
//! root image. For the other monitors' guests; vmm's have an agent for this.

use std::convert::Infallible;
use std::env;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::chroot;
use rustix::system::finit_module;

/// In the initramfs: modules, loaded in the order of their names.
const MODULES: &str = "/modules";
const DISK: &str = "/dev/vda";
const ROOT: &str = "/root";
/// A disk that is not there by then does not come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Never comes back unless something fails; the shell of the root image gets our arguments.
pub(crate) fn boot() -> io::Result<Infallible> {
    let mut modules = fs::read_dir(MODULES)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    modules.sort();
    for module in &modules {
        finit_module(File::open(module)?, c"", 0).map_err(|error| named(module, error))?;
    }
    fs::create_dir_all("/dev")?;
    fs::create_dir_all(ROOT)?;
    mount("devtmpfs", "/dev", "devtmpfs", MountFlags::empty(), None)?;
    let deadline = Instant::now() + PATIENCE;
    while !Path::new(DISK).exists() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    mount(DISK, ROOT, "erofs", MountFlags::RDONLY, None).map_err(|error| named(Path::new(DISK), error))?;
    mount("devtmpfs", "/root/dev", "devtmpfs", MountFlags::empty(), None)?;
    // As switch_root(8) does it: the initramfs can be neither unmounted nor left by pivot_root(2).
    env::set_current_dir(ROOT)?;
    mount_move(".", "/")?;
    chroot(".")?;
    Err(Command::new("/bin/sh").args(env::args_os().skip(1)).exec())
}

fn named(path: &Path, error: rustix::io::Errno) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}
