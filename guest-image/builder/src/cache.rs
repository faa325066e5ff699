//! The cache: finished things under names made from what they were made of.
//!
//! Layout: `ROOT/KIND/KEY/` is a finished entry, a folder that is never changed again. `ROOT/tmp/NAME/` is one in the
//! making, with `ROOT/tmp/NAME.lock` held (`flock`) by the process that makes it; the kernel lets go of the lock
//! however that process ends, so whoever opens the cache next can tell what is dead and sweeps it. A lock only says
//! something to those who run under the same kernel, and an emulated host sees this very folder over 9p: so the lock
//! file names the boot that it belongs to. An entry appears by `rename`, so it is whole or not there. `ROOT/locks/KIND-KEY` makes a second process wait for the first instead of
//! doing the same work.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, IoContext, Result};
use crate::progress::Progress;

/// A cache folder. Cheap to open; any number of processes may have it open.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// The name of an entry: a hash over everything that decides its content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key(String);

/// Collects what decides an entry's content.
#[derive(Clone, Debug, Default)]
pub struct KeyBuilder(Sha256);

impl KeyBuilder {
    /// Adds one ingredient. The label keeps `("a", "bc")` and `("ab", "c")` apart.
    #[must_use]
    pub fn with(mut self, label: &str, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.0.update(format!("{}:{label}={}:", label.len(), value.len()));
        self.0.update(value);
        self
    }

    /// The key, 32 hexadecimal digits.
    #[must_use]
    pub fn finish(self) -> Key {
        let mut text = hex(&self.0.finalize());
        text.truncate(32);
        Key(text)
    }
}

impl Key {
    /// The key as it stands in a path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What [`Cache::list`] tells of an entry.
#[derive(Clone, Debug)]
pub struct EntryInfo {
    /// First folder below the root: `root`, `kernel`, `suite`…
    pub kind: String,
    /// The entry's name.
    pub key: String,
    /// Where it is.
    pub path: PathBuf,
    /// When it was finished.
    pub made: SystemTime,
}

impl EntryInfo {
    /// Space that it takes on disk, bytes. Looks at every file in it.
    #[must_use]
    pub fn disk_usage(&self) -> u64 {
        let files = walkdir::WalkDir::new(&self.path).into_iter().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|meta| meta.blocks()).sum::<u64>() * 512
    }
}

/// A folder in the making; gone when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes an empty folder called `name` in it.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir(&path).at("create", &path)?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "failed to remove a scratch folder; the next start tries again");
            return;
        }
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// See [`Cache::workspace`].
#[derive(Debug)]
pub struct Workspace {
    path: PathBuf,
    _lock: File,
}

impl Workspace {
    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Free space without which no work folder is made, MiB.
const MIN_FREE_MIB: u64 = 64;
const TMP: &str = "tmp";
const LOCKS: &str = "locks";
const STAMPS: &str = "sha256";
const WAIT_STEP: Duration = Duration::from_millis(100);
/// No build takes as long: what another boot left is dead after this.
const FOREIGN_LIFETIME: Duration = Duration::from_secs(24 * 3600);

impl Cache {
    /// `$XDG_CACHE_HOME/vmm`, or `$HOME/.cache/vmm`; `None` when neither variable is set.
    #[must_use]
    pub fn default_root() -> Option<PathBuf> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache"))).map(|p| p.join("vmm"))
    }

    /// Opens the cache, making its folder if needed, and removes what builds that died left behind.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        for folder in [TMP, LOCKS] {
            let path = root.join(folder);
            fs::create_dir_all(&path).at("create the cache folder", path)?;
        }
        let cache = Self { root };
        cache.sweep();
        Ok(cache)
    }

    /// The folder it lives in.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the entry is, if it is there.
    #[must_use]
    pub fn get(&self, kind: &str, key: &Key) -> Option<PathBuf> {
        let path = self.path_of(kind, key);
        path.is_dir().then_some(path)
    }

    /// Gives the entry, making it with `build` when it is not there. `build` gets an empty folder to fill. When two
    /// processes want the same entry, one makes it and the other waits.
    ///
    /// # Errors
    /// What `build` says, [`Error::Interrupted`] when the owner gives up waiting, or trouble with the folder.
    pub fn ensure(
        &self,
        kind: &str,
        key: &Key,
        progress: &dyn Progress,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        if let Some(path) = self.get(kind, key) {
            return Ok(path);
        }
        let _lock = self.lock_entry(kind, key, progress)?;
        if let Some(path) = self.get(kind, key) {
            return Ok(path);
        }
        let (_scratch, content) = self.fill(build)?;
        self.publish(&content, &self.path_of(kind, key))
    }

    /// Like [`Cache::ensure`], but makes the entry anew even when it is there, and then replaces it.
    ///
    /// # Errors
    /// As [`Cache::ensure`].
    pub fn rebuild(
        &self,
        kind: &str,
        key: &Key,
        progress: &dyn Progress,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let _lock = self.lock_entry(kind, key, progress)?;
        let (scratch, content) = self.fill(build)?;
        let destination = self.path_of(kind, key);
        if destination.exists() {
            let old = scratch.path().join("old");
            fs::rename(&destination, &old).at("replace", &destination)?;
        }
        self.publish(&content, &destination)
    }

    /// A scratch folder in which `build` has filled the second, to be published.
    fn fill(&self, build: impl FnOnce(&Path) -> Result<()>) -> Result<(Scratch, PathBuf)> {
        let scratch = self.scratch()?;
        let content = scratch.folder("entry")?;
        build(&content)?;
        Ok((scratch, content))
    }

    /// An empty folder in the cache for work that is no entry. Gone when dropped; swept if the process dies.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn scratch(&self) -> Result<Scratch> {
        let tmp = self.root.join(TMP);
        // Better now than after a download: no entry that takes a scratch folder is smaller.
        if rustix::fs::statvfs(&tmp).is_ok_and(|s| s.f_bavail.saturating_mul(s.f_frsize) >> 20 < MIN_FREE_MIB) {
            return Err(Error::no_space(&tmp, format!("preparing to build ({MIN_FREE_MIB} MiB are the least)")));
        }
        loop {
            let name = unique_name();
            let lock_path = tmp.join(format!("{name}.lock"));
            let mut lock = match OpenOptions::new().write(true).create_new(true).open(&lock_path) {
                Ok(lock) => lock,
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io("create", lock_path, e)),
            };
            rustix::fs::flock(&lock, FlockOperation::LockExclusive).at("lock", &lock_path)?;
            // Written under the lock: a sweep leaves a file alone that does not name its own boot.
            lock.write_all(boot_id().as_bytes()).at("write", &lock_path)?;
            let path = tmp.join(name);
            fs::create_dir(&path).at("create", &path)?;
            return Ok(Scratch { path, lock_path, _lock: lock });
        }
    }

    /// A folder that is kept from one use to the next and changed in place, such as a build's objects. Only one process
    /// has it at a time. It may be half-made, so only what can go on from there may live in it.
    ///
    /// # Errors
    /// The folder cannot be made, or the owner gives up waiting for another process.
    pub fn workspace(&self, kind: &str, key: &Key, progress: &dyn Progress) -> Result<Workspace> {
        let lock = self.lock_entry(kind, key, progress)?;
        let path = self.path_of(kind, key);
        fs::create_dir_all(&path).at("create", &path)?;
        Ok(Workspace { path, _lock: lock })
    }

    /// All finished entries, by kind and then by age.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn list(&self) -> Result<Vec<EntryInfo>> {
        let mut entries = Vec::new();
        for kind in subfolders(&self.root)? {
            let name = file_name(&kind);
            if ![TMP, LOCKS, STAMPS].contains(&name.as_str()) {
                entries.extend(self.list_kind(&name)?);
            }
        }
        entries.sort_by(|a, b| (&a.kind, a.made).cmp(&(&b.kind, b.made)));
        Ok(entries)
    }

    /// The finished entries of one kind, by age; none if nothing of the kind was ever made.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn list_kind(&self, kind: &str) -> Result<Vec<EntryInfo>> {
        let folder = self.root.join(kind);
        let mut entries = Vec::new();
        for path in if folder.exists() { subfolders(&folder)? } else { Vec::new() } {
            let made = fs::metadata(&path).and_then(|m| m.modified()).at("look at", &path)?;
            entries.push(EntryInfo { kind: kind.to_owned(), key: file_name(&path), made, path });
        }
        entries.sort_by_key(|entry| entry.made);
        Ok(entries)
    }

    /// Removes a finished entry. One that is in use keeps working for those who have its files open.
    ///
    /// # Errors
    /// It cannot be moved away.
    pub fn remove(&self, kind: &str, key: &str) -> Result<()> {
        let path = self.root.join(kind).join(key);
        let scratch = self.scratch()?;
        fs::rename(&path, scratch.path().join("removed")).at("remove", path)
    }

    /// Removes all but the `count` newest entries of a kind. Only a tidying up: what cannot be removed stays.
    pub(crate) fn keep_newest(&self, kind: &str, count: usize) {
        let Ok(folders) = subfolders(&self.root.join(kind)) else { return };
        let made = |path: &PathBuf| fs::metadata(path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut folders: Vec<_> = folders.into_iter().map(|path| (made(&path), path)).collect();
        folders.sort();
        let excess = folders.len().saturating_sub(count);
        for (_, path) in folders.drain(..excess) {
            if let Err(error) = self.remove(kind, &file_name(&path)) {
                tracing::debug!(path = %path.display(), %error, "an old entry stays");
            }
        }
    }

    /// SHA-256 of a file, remembered by its path, size and time of change, so that asking twice costs nothing.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sha256_of(&self, path: &Path) -> Result<String> {
        let identity = fs::canonicalize(path).at("find", path)?;
        let meta = fs::metadata(&identity).at("look at", path)?;
        // No device or inode number: the emulated host sees the same file over 9p with others.
        let stamp =
            format!("{}:{}.{}:{}.{}", meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
        let key = KeyBuilder::default().with("path", identity.as_os_str().as_encoded_bytes()).finish();
        let remembered_at = self.root.join(STAMPS).join(&key.0);
        if let Ok(text) = fs::read(&remembered_at)
            && let Ok(known) = serde_json::from_slice::<Remembered>(&text)
            && known.stamp == stamp
        {
            return Ok(known.sha256);
        }
        let sha256 = sha256_file(path)?;
        // Only a saving of time: not being able to keep it is no error.
        let remembered = Remembered { stamp, sha256: sha256.clone() };
        if let Ok(scratch) = self.scratch()
            && let Ok(text) = serde_json::to_vec(&remembered)
        {
            let file = scratch.path().join("stamp");
            let _ = fs::create_dir_all(self.root.join(STAMPS));
            let _ = fs::write(&file, text).and_then(|()| fs::rename(&file, &remembered_at));
        }
        Ok(sha256)
    }

    fn path_of(&self, kind: &str, key: &Key) -> PathBuf {
        self.root.join(kind).join(&key.0)
    }

    fn publish(&self, content: &Path, destination: &Path) -> Result<PathBuf> {
        if let Some(parent) = destination.parent() {
            fs::create_dir_all(parent).at("create", parent)?;
        }
        // After a power cut an entry must not be there with empty files.
        let folder = File::open(content).at("open", content)?;
        rustix::fs::syncfs(&folder).at("sync", content)?;
        match fs::rename(content, destination) {
            // Somebody on another kernel, whom no lock keeps out, was faster and made the same.
            Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty => Ok(destination.to_owned()),
            renamed => renamed.map(|()| destination.to_owned()).at("publish", destination),
        }
    }

    fn lock_entry(&self, kind: &str, key: &Key, progress: &dyn Progress) -> Result<File> {
        let path = self.root.join(LOCKS).join(format!("{kind}-{}", key.0));
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&path).at("create", &path)?;
        let mut told = false;
        loop {
            match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(lock),
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(e) => return Err(Error::io("lock", path, e.into())),
            }
            if !told {
                progress.step(&format!("waiting for another process that makes the same {kind}"));
                told = true;
            }
            if progress.interrupted() {
                return Err(Error::Interrupted {
                    doing: format!("waiting for another process that makes the same {kind}"),
                });
            }
            std::thread::sleep(WAIT_STEP);
        }
    }

    fn sweep(&self) {
        if locks_are_private(&self.root) {
            return;
        }
        let Ok(entries) = fs::read_dir(self.root.join(TMP)) else { return };
        for lock_path in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|x| x == "lock")) {
            if !is_dead(&lock_path) {
                continue;
            }
            match remove_tree(&lock_path.with_extension("")) {
                Ok(()) => drop(fs::remove_file(&lock_path)),
                Err(error) => tracing::warn!(path = %lock_path.display(), %error, "failed to sweep a dead build"),
            }
        }
    }
}

/// Whether locks taken here are invisible to other machines that use the same folder: over 9p, as in an emulated host, a
/// build that lives outside would look dead.
fn locks_are_private(root: &Path) -> bool {
    /// `V9FS_MAGIC` in the kernel's `include/uapi/linux/magic.h`.
    const V9FS_MAGIC: i64 = 0x0102_1997;
    rustix::fs::statfs(root).is_ok_and(|fs| fs.f_type == V9FS_MAGIC)
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    stamp: String,
    sha256: String,
}

/// SHA-256 of a file, hexadecimal.
pub(crate) fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).at("open", path)?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).at("read", path)?;
    Ok(hex(&hash.finalize()))
}

/// SHA-256 of bytes, hexadecimal.
pub(crate) fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unique_name() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    format!("{}-{}-{nanos:09}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Tells one run of one kernel from all others; empty when the kernel does not say.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Whether the build that `lock_path` belongs to is over.
fn is_dead(lock_path: &Path) -> bool {
    let Ok(mut lock) = File::open(lock_path) else { return false };
    let mut owner = String::new();
    if lock.read_to_string(&mut owner).is_ok() && !owner.is_empty() && owner == boot_id() {
        return rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok();
    }
    let made = lock.metadata().and_then(|m| m.modified());
    made.is_ok_and(|made| made.elapsed().is_ok_and(|age| age > FOREIGN_LIFETIME))
}

/// Removes a tree that may have folders without write permission, and files of subordinate user ids, which a build in
/// a user namespace leaves when it is killed. What is mounted in it belongs to the machine (a build binds `/dev/shm`, and
/// a killed one may leave it so): it is taken off first, and if that fails nothing is removed.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    let mount_table = fs::read_to_string("/proc/self/mountinfo")?;
    for mount_point in mounts_below(&mount_table, path) {
        rustix::mount::unmount(&mount_point, rustix::mount::UnmountFlags::DETACH)?;
    }
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            let removed = Command::new("mmdebstrap")
                .args(["--unshare-helper", "rm", "-rf", "--one-file-system"])
                .arg(path)
                .output();
            if removed.is_ok_and(|o| o.status.success()) && !path.exists() { Ok(()) } else { Err(e) }
        }
        other => other,
    }
}

/// What is mounted below `path`, the last mounted first. The fifth field of each line of the table is the mount point,
/// with blanks and backslashes in octal (proc_pid_mountinfo(5)).
fn mounts_below(mount_table: &str, path: &Path) -> Vec<PathBuf> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let unescape = |field: &str| field.replace(r"\040", " ").replace(r"\011", "\t").replace(r"\134", r"\");
    let mount_points =
        mount_table.lines().filter_map(|line| line.split(' ').nth(4)).map(|f| PathBuf::from(unescape(f)));
    let mut below: Vec<_> = mount_points.filter(|p| p.starts_with(&path)).collect();
    below.reverse();
    below
}

fn subfolders(path: &Path) -> Result<Vec<PathBuf>> {
    let mut folders: Vec<_> =
        fs::read_dir(path).at("list", path)?.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests;
