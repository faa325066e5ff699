//! Directories of a test's own, and the proof that nothing was left behind.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// The environment variable by which a sandbox recognises its processes, and theirs.
pub(crate) const MARK: &str = "VMM_E2E_SANDBOX";

/// A working directory, a temporary directory and a scratch directory for one test.
#[derive(Debug)]
pub struct Sandbox {
    root: TempDir,
    mark: String,
}

impl Sandbox {
    /// Makes one where shares may live: in `VMM_SCRATCH_DIR` if that is set, else in the temporary directory.
    ///
    /// # Panics
    /// When the directories cannot be made.
    #[must_use]
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let parent = std::env::var_os("VMM_SCRATCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        fs::create_dir_all(&parent).expect("the scratch directory can be made");
        let root = tempfile::Builder::new().prefix("vmm-e2e-").tempdir_in(parent).expect("a sandbox can be made");
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).expect("a sandbox can be opened to all");
        let sandbox = Self { root, mark: format!("{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)) };
        for dir in [sandbox.work(), sandbox.tmp(), sandbox.scratch(), sandbox.other()] {
            fs::create_dir(dir).expect("a directory can be made in a sandbox");
        }
        sandbox
    }

    /// Where `vmm` is started.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.root.path().join("work")
    }

    /// `vmm`'s `TMPDIR`.
    #[must_use]
    pub fn tmp(&self) -> PathBuf {
        self.root.path().join("tmp")
    }

    /// Where `vmm` makes scratch shares.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.root.path().join("scratch")
    }

    /// For the test's own files.
    #[must_use]
    pub fn other(&self) -> PathBuf {
        self.root.path().join("other")
    }

    /// A file of the test's own.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.other().join(name);
        fs::write(&path, content).expect("a file can be written in a sandbox");
        path
    }

    /// A directory of the test's own.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.other().join(name);
        fs::create_dir_all(&path).expect("a directory can be made in a sandbox");
        path
    }

    pub(crate) fn mark(&self) -> &str {
        &self.mark
    }

    /// Fails unless `vmm` has left nothing: no file in its working, temporary and scratch directories, no process, no mount.
    pub fn assert_nothing_left(&self) {
        assert_eq!(entries(&self.work()), Vec::<OsString>::new(), "left in the working directory");
        self.assert_only_results_left();
    }

    /// The same, but for the working directory, where results are.
    pub fn assert_only_results_left(&self) {
        self.assert_no_process_left();
        assert_eq!(entries(&self.tmp()), Vec::<OsString>::new(), "left in TMPDIR");
        assert_eq!(entries(&self.scratch()), Vec::<OsString>::new(), "left in the scratch directory");
        let root = self.root.path().to_str().expect("a sandbox's path is UTF-8");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo can be read");
        let left: Vec<_> = mounts.lines().filter(|line| line.contains(root) && !line.contains("/other/")).collect();
        assert_eq!(left, Vec::<&str>::new(), "mounts left behind");
    }

    /// Fails unless every process that was started in the sandbox is gone: all that `kill -9` can promise.
    pub fn assert_no_process_left(&self) {
        // A process that was killed needs a moment to be gone.
        let give_up = Instant::now() + Duration::from_secs(5);
        while !self.processes().is_empty() && Instant::now() < give_up {
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.processes(), Vec::<String>::new(), "processes left behind");
    }

    /// Command lines of the processes started in this sandbox that are alive.
    fn processes(&self) -> Vec<String> {
        let mark = format!("{MARK}={}", self.mark);
        let marked = |pid: &Path| {
            let environment = fs::read(pid.join("environ")).unwrap_or_default();
            environment.split(|b| *b == 0).any(|word| word == mark.as_bytes())
        };
        let all = fs::read_dir("/proc").expect("/proc can be listed").filter_map(Result::ok).map(|entry| entry.path());
        all.filter(|pid| marked(pid))
            .map(|pid| String::from_utf8_lossy(&fs::read(pid.join("cmdline")).unwrap_or_default()).replace('\0', " "))
            .collect()
    }
}

impl Default for Sandbox {
    fn default() -> Self {
        Self::new()
    }
}

fn entries(dir: &Path) -> Vec<OsString> {
    let list = fs::read_dir(dir).expect("a sandbox can be listed");
    list.map(|entry| entry.expect("an entry can be read").file_name()).collect()
}

/// A tmpfs of a few pages, unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one at `at`; needs root.
    ///
    /// # Errors
    /// What mount(2) said.
    pub fn mount(at: &Path, kib: u32) -> io::Result<Self> {
        let options = std::ffi::CString::new(format!("size={kib}k"))?;
        mount("vmm-e2e", at, "tmpfs", MountFlags::empty(), options.as_c_str())?;
        Ok(Self(at.to_path_buf()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
