//! `results/<run>/`, the folder that a run leaves behind, and `results/latest`, which points to the newest.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::Access;

use super::error::ReportError;

/// Least room for results, KiB: a run of either pjdfstest fits several times.
const NEEDED_KIB: u64 = 16 << 10;
/// Longest label in a folder's name, bytes.
const MAX_LABEL: usize = 60;

/// A folder of its own for one run.
#[derive(Debug)]
pub(crate) struct ResultsDir {
    path: PathBuf,
    name: String,
    /// The parent, if it was made for this run.
    made_parent: Option<PathBuf>,
}

impl ResultsDir {
    /// Makes `<parent>/<time>-<label>`. The name sorts by time; a second run in the same second gets a number.
    ///
    /// # Errors
    /// [`ReportError`]; nothing is left behind then.
    pub(crate) fn create(parent: &Path, label: &str, now: Timestamp) -> Result<Self, ReportError> {
        let made_parent = (!parent.exists()).then(|| parent.to_path_buf());
        fs::create_dir_all(parent).map_err(|source| create_error("the results folder", parent, source))?;
        let result = check_room(parent).and_then(|()| create_unique(parent, &base_name(label, now)));
        match result {
            Ok((parent, name)) => Ok(Self { path: parent.join(&name), name, made_parent }),
            Err(error) => {
                if let Some(parent) = made_parent {
                    let _ = fs::remove_dir(parent);
                }
                Err(error)
            }
        }
    }

    /// One that an earlier part of the run made.
    ///
    /// # Errors
    /// [`ReportError`]: it is not there, or there is no room for more.
    pub(super) fn open(path: &Path) -> Result<Self, ReportError> {
        let path = path.canonicalize().map_err(|source| create_error("the results folder", path, source))?;
        check_room(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { path, name, made_parent: None })
    }

    /// Absolute.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its name in its parent.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Takes everything back: for a run that could not even begin.
    pub(crate) fn remove(self) {
        let _ = fs::remove_dir_all(&self.path);
        if let Some(parent) = self.made_parent {
            let _ = fs::remove_dir(parent);
        }
    }

    /// Makes `latest` beside the folder point to it. Fails when something that is no symlink has that name.
    pub(super) fn point_latest_here(&self) -> io::Result<()> {
        let latest = self.path.with_file_name("latest");
        let new = self.path.with_file_name(format!(".latest-{}", self.name));
        symlink(&self.name, &new)?;
        // rename(2) replaces a symlink but not a directory.
        fs::rename(&new, &latest).inspect_err(|_| {
            let _ = fs::remove_file(&new);
        })
    }
}

/// Looks whether a results folder could be made in `parent`, without making anything: a run gets and builds its images
/// first, and a user should not wait for that to be told of a wrong `--results`.
///
/// # Errors
/// [`ReportError`], as making the folder would give.
pub fn check(parent: &Path) -> Result<(), ReportError> {
    let there = parent.ancestors().map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    let Some((dir, found)) = there.filter_map(|dir| Some((dir, fs::metadata(dir).ok()?))).next() else {
        return Err(create_error("the results folder", parent, io::ErrorKind::NotFound.into()));
    };
    if !found.is_dir() {
        return Err(create_error("the results folder", parent, io::ErrorKind::NotADirectory.into()));
    }
    rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| create_error("the results folder", parent, error.into()))?;
    check_room(dir)
}

fn create_error(what: &'static str, path: &Path, source: io::Error) -> ReportError {
    ReportError::Create { what, path: path.to_path_buf(), source }
}

fn check_room(parent: &Path) -> Result<(), ReportError> {
    // A file system that does not say is taken at its word when it later refuses.
    let Ok(stat) = rustix::fs::statvfs(parent) else { return Ok(()) };
    let free_kib = stat.f_bavail.saturating_mul(stat.f_frsize) >> 10;
    if stat.f_blocks > 0 && free_kib < NEEDED_KIB {
        return Err(ReportError::NoSpace { path: parent.to_path_buf(), free_kib, needed_kib: NEEDED_KIB });
    }
    Ok(())
}

/// The parent, absolute, and the name that was free in it.
fn create_unique(parent: &Path, base: &str) -> Result<(PathBuf, String), ReportError> {
    let failed = |path: &Path, source| create_error("the results folder", path, source);
    let parent = fs::canonicalize(parent).map_err(|source| failed(parent, source))?;
    for number in 1..=1000 {
        let name = if number == 1 { base.to_owned() } else { format!("{base}-{number}") };
        let path = parent.join(&name);
        match fs::create_dir(&path) {
            Ok(()) => return Ok((parent, name)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(failed(&path, source)),
        }
    }
    Err(failed(&parent.join(base), io::ErrorKind::AlreadyExists.into()))
}

/// `2026-11-23T150102Z-pjdfstest-rs`: no colons, which Windows, rsync and `PATH:TAG` do not take.
fn base_name(label: &str, now: Timestamp) -> String {
    let time = now.strftime("%Y-%m-%dT%H%M%SZ");
    let safe = file_name_from(label, MAX_LABEL);
    if safe.is_empty() { time.to_string() } else { format!("{time}-{safe}") }
}

/// `text` as one component of a path: letters, digits, `.`, `_` and `-`, no leading dot, at most `limit` bytes.
pub(super) fn file_name_from(text: &str, limit: usize) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = text.chars().take(limit).map(safe).collect();
    match name.strip_prefix('.') {
        Some(rest) => format!("_{rest}"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn now() -> Timestamp {
        "2026-11-23T15:01:02.9Z".parse().unwrap()
    }

    #[test]
    fn a_folder_is_named_for_time_and_suites() {
        let parent = tempfile::tempdir().unwrap();
        let dir = ResultsDir::create(&parent.path().join("results"), "pjdfstest-rs", now()).unwrap();
        assert_eq!(dir.name(), "2026-11-23T150102Z-pjdfstest-rs");
        assert!(dir.path().is_absolute() && dir.path().is_dir());
    }

    #[test]
    fn runs_of_the_same_second_get_folders_of_their_own() {
        let parent = tempfile::tempdir().unwrap();
        let names: Vec<_> =
            (0..3).map(|_| ResultsDir::create(parent.path(), "s", now()).unwrap().name().to_owned()).collect();
        assert_eq!(names, ["2026-11-23T150102Z-s", "2026-11-23T150102Z-s-2", "2026-11-23T150102Z-s-3"]);
    }

    #[test]
    fn latest_points_to_the_newest_and_moves() {
        let parent = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let dir = ResultsDir::create(parent.path(), "s", now()).unwrap();
            dir.point_latest_here().unwrap();
            assert_eq!(fs::read_link(parent.path().join("latest")).unwrap(), Path::new(dir.name()));
        }
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_folder_called_latest_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        fs::create_dir_all(parent.path().join("latest/mine")).unwrap();
        let dir = ResultsDir::create(parent.path(), "s", now()).unwrap();
        assert!(dir.point_latest_here().is_err());
        assert!(parent.path().join("latest/mine").is_dir());
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_was_made_is_taken_back_and_no_more() {
        let parent = tempfile::tempdir().unwrap();
        let results = parent.path().join("results");
        ResultsDir::create(&results, "s", now()).unwrap().remove();
        assert!(!results.exists());
        fs::create_dir(&results).unwrap();
        ResultsDir::create(&results, "s", now()).unwrap().remove();
        assert!(results.exists());
    }

    #[test]
    fn a_check_makes_nothing() {
        let parent = tempfile::tempdir().unwrap();
        check(&parent.path().join("not/yet/there")).unwrap();
        check(Path::new("not-yet-there")).unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_parent_that_is_a_file_is_an_error_that_names_it() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [file.clone(), file.join("below")] {
            let error = ResultsDir::create(&path, "s", now()).unwrap_err().to_string();
            assert!(error.contains(path.to_str().unwrap()) && error.contains("--results"), "{error}");
            let foretold = check(&path).unwrap_err().to_string();
            assert!(foretold.contains(path.to_str().unwrap()) && foretold.contains("--results"), "{foretold}");
        }
    }

    #[test]
    fn a_parent_that_cannot_be_written_is_an_error() {
        let parent = tempfile::tempdir().unwrap();
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o500)).unwrap();
        let path = if rustix::process::geteuid().is_root() { Path::new("/proc/1") } else { parent.path() };
        assert!(matches!(ResultsDir::create(path, "s", now()), Err(ReportError::Create { .. })));
    }

    #[test]
    fn no_name_leaves_its_folder() {
        for (text, name) in
            [("../../etc/passwd", "_._.._etc_passwd"), (".", "_"), ("..", "_."), ("a\0b\nc", "a_b_c"), ("", "")]
        {
            assert_eq!(file_name_from(text, 60), name);
        }
        assert_eq!(file_name_from(&"é".repeat(500), 60).len(), 60);
    }
}
