//! What is asked of git. The user's repository is only read: commits are checked out in a repository of our own that
//! borrows its objects.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, bail};

use crate::config::UsageError;

/// Variables that would lead git to another repository than the one that is meant.
const MISLEADING: [&str; 6] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_PREFIX",
];

/// A user's repository.
#[derive(Clone, Debug)]
pub struct Repository {
    tree: PathBuf,
    objects: PathBuf,
    format: String,
}

impl Repository {
    /// The repository whose work tree `tree` is.
    ///
    /// # Errors
    /// [`UsageError`]: there is none, it has no work tree there, or it is shallow.
    pub fn open(tree: &Path) -> anyhow::Result<Self> {
        let wrong = |why: &str| UsageError(format!("--tree {}: {why}", tree.display()));
        if !tree.is_dir() {
            bail!(wrong("is not a directory; give the folder that holds the source tree"));
        }
        let ask = |words: &[&str]| run(tree, words);
        let asked = ask(&["rev-parse", "--show-toplevel"])?;
        if !asked.status.success() {
            let said = last_line(&asked.stderr);
            bail!(wrong(&format!("git finds no work tree there ({said}); a history is needed to search in")));
        }
        let top = PathBuf::from(text(&asked.stdout));
        let given = fs::canonicalize(tree).with_context(|| format!("failed to find {}", tree.display()))?;
        if fs::canonicalize(&top).ok().as_deref() != Some(given.as_path()) {
            let top = top.display();
            bail!(wrong(&format!(
                "lies inside the work tree {top}; give that, with `-- PATHS` to look at a part of it"
            )));
        }
        if text(&ask(&["rev-parse", "--is-shallow-repository"])?.stdout) == "true" {
            bail!(wrong("is a shallow clone, whose history is cut off; get the rest with: git fetch --unshallow"));
        }
        let objects = text(&ask(&["rev-parse", "--path-format=absolute", "--git-path", "objects"])?.stdout);
        let format = text(&ask(&["rev-parse", "--show-object-format"])?.stdout);
        Ok(Self { tree: given, objects: objects.into(), format })
    }

    /// The work tree, absolute.
    #[must_use]
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    /// The commit that `revision` names. `flag` is what it was given with.
    ///
    /// # Errors
    /// [`UsageError`]: there is none.
    pub fn resolve(&self, flag: &str, revision: &str) -> anyhow::Result<String> {
        let commit = format!("{revision}^{{commit}}");
        let asked = run(&self.tree, &["rev-parse", "--verify", "--quiet", "--end-of-options", &commit])?;
        if !asked.status.success() {
            let tree = self.tree.display();
            bail!(UsageError(format!(
                "{flag} {revision}: there is no such commit in {tree}; fetch it, or look with: git log"
            )));
        }
        Ok(text(&asked.stdout))
    }

    /// Whether `old` is `new` or an ancestor of it.
    ///
    /// # Errors
    /// git fails.
    pub fn is_ancestor(&self, old: &str, new: &str) -> anyhow::Result<bool> {
        let asked = run(&self.tree, &["merge-base", "--is-ancestor", old, new])?;
        match asked.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => bail!("git merge-base failed: {}", last_line(&asked.stderr)),
        }
    }

    /// The newest commit that both have, if any.
    ///
    /// # Errors
    /// git cannot be run.
    pub fn merge_base(&self, one: &str, other: &str) -> anyhow::Result<Option<String>> {
        let asked = run(&self.tree, &["merge-base", one, other])?;
        Ok(asked.status.success().then(|| text(&asked.stdout)))
    }

    /// The commits between, parents first, each with its parents.
    ///
    /// # Errors
    /// git fails.
    pub fn range(
        &self,
        old: &[String],
        new: &str,
        paths: &[String],
        first_parent: bool,
    ) -> anyhow::Result<Vec<(String, Vec<String>)>> {
        let mut words = vec!["rev-list", "--reverse", "--topo-order", "--parents"];
        if first_parent {
            words.push("--first-parent");
        }
        words.extend([new, "--not"]);
        words.extend(old.iter().map(String::as_str));
        words.push("--");
        words.extend(paths.iter().map(String::as_str));
        let asked = succeeded(&words, run(&self.tree, &words)?)?;
        let line = |line: &str| {
            let mut ids = line.split_ascii_whitespace().map(str::to_owned);
            Some((ids.next()?, ids.collect()))
        };
        Ok(String::from_utf8_lossy(&asked.stdout).lines().filter_map(line).collect())
    }

    /// Whether the commit has a file.
    ///
    /// # Errors
    /// git cannot be run.
    pub fn has_file(&self, commit: &str, path: &str) -> anyhow::Result<bool> {
        Ok(run(&self.tree, &["cat-file", "-e", &format!("{commit}:{path}")])?.status.success())
    }

    /// The first line of the commit's message.
    ///
    /// # Errors
    /// git fails.
    pub fn subject(&self, commit: &str) -> anyhow::Result<String> {
        self.show(&["show", "--no-patch", "--format=%s", "--end-of-options", commit])
    }

    /// The commit's name, author, message and what it changes, for a report.
    ///
    /// # Errors
    /// git fails.
    pub fn summary(&self, commit: &str) -> anyhow::Result<String> {
        self.show(&["show", "--stat", "--no-color", "--format=medium", "--end-of-options", commit])
    }

    /// `v6.12-rc3-17-gabcdef`, or the short id where there is no tag.
    ///
    /// # Errors
    /// git fails.
    pub fn describe(&self, commit: &str) -> anyhow::Result<String> {
        self.show(&["describe", "--always", "--abbrev=12", commit])
    }

    /// Whether tracked files differ from the last commit: what is not committed is not tested.
    ///
    /// # Errors
    /// git cannot be run.
    pub fn is_dirty(&self) -> anyhow::Result<bool> {
        let asked = run(&self.tree, &["status", "--porcelain", "--untracked-files=no"])?;
        Ok(!asked.stdout.is_empty())
    }

    fn show(&self, words: &[&str]) -> anyhow::Result<String> {
        Ok(text(&succeeded(words, run(&self.tree, words)?)?.stdout))
    }
}

/// Our own work tree of a user's repository.
#[derive(Debug)]
pub struct Checkout {
    dir: PathBuf,
}

impl Checkout {
    /// Makes one in `dir`, or takes the one that is there.
    ///
    /// # Errors
    /// git fails, or the disk is full.
    pub fn open(repository: &Repository, dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("failed to make {}", dir.display()))?;
        if !dir.join(".git/objects").is_dir() {
            let format = format!("--object-format={}", repository.format);
            let words = ["init", "--quiet", &format];
            succeeded(&words, run(dir, &words)?)?;
        }
        let alternates = dir.join(".git/objects/info/alternates");
        fs::write(&alternates, format!("{}\n", repository.objects.display()))
            .with_context(|| format!("failed to write {}", alternates.display()))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// The work tree.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Brings the work tree to `commit`, whatever state a killed process left it in. Files that are the same keep their
    /// times, so that only what changed is built again.
    ///
    /// # Errors
    /// git fails, or the disk is full.
    pub fn check_out(&self, commit: &str) -> anyhow::Result<()> {
        let lock = self.dir.join(".git/index.lock");
        if lock.exists() {
            // Nobody else works here: whoever held it was killed.
            fs::remove_file(&lock).with_context(|| format!("failed to remove {}", lock.display()))?;
        }
        let words = ["-c", "advice.detachedHead=false", "checkout", "--quiet", "--force", "--detach", commit];
        succeeded(&words, run(&self.dir, &words)?)?;
        let words = ["clean", "-fdq"];
        succeeded(&words, run(&self.dir, &words)?).map(drop)
    }
}

fn run<S: AsRef<OsStr>>(dir: &Path, words: &[S]) -> anyhow::Result<Output> {
    let mut command = Command::new("git");
    command.arg("-C").arg(dir).args(words).env("LC_ALL", "C.UTF-8");
    // `git status` would else write what it found out into the user's index.
    command.env("GIT_OPTIONAL_LOCKS", "0");
    for name in MISLEADING {
        command.env_remove(name);
    }
    command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow::anyhow!("git is not installed; install it with: apt-get install git"),
        _ => anyhow::Error::new(error).context("failed to start git"),
    })
}

fn succeeded(words: &[&str], output: Output) -> anyhow::Result<Output> {
    if output.status.success() {
        return Ok(output);
    }
    let doing = words.iter().find(|word| !word.starts_with('-') && !word.contains('=')).copied().unwrap_or_default();
    bail!("git {doing} failed: {}", last_line(&output.stderr))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

fn last_line(bytes: &[u8]) -> String {
    let text = text(bytes);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it did not say why").to_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A repository with a line of commits, each changing `file`; gives their ids.
    pub(in crate::bisect) fn repository(dir: &Path, commits: usize) -> Vec<String> {
        git(dir, &["init", "-q", "-b", "main"]);
        (0..commits).map(|n| commit(dir, "file", &n.to_string(), &format!("change {n}"))).collect()
    }

    pub(in crate::bisect) fn commit(dir: &Path, file: &str, content: &str, subject: &str) -> String {
        fs::write(dir.join(file), content).unwrap();
        git(dir, &["add", "-A"]);
        git(dir, &["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", subject]);
        git(dir, &["rev-parse", "HEAD"])
    }

    pub(in crate::bisect) fn git(dir: &Path, words: &[&str]) -> String {
        let output = run(dir, words).unwrap();
        assert!(output.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        text(&output.stdout)
    }

    #[test]
    fn the_range_has_parents_first_and_paths_leave_out_what_does_not_touch_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut ids = repository(dir.path(), 3);
        ids.push(commit(dir.path(), "other", "x", "elsewhere"));
        ids.push(commit(dir.path(), "file", "9", "again"));
        let repository = Repository::open(dir.path()).unwrap();
        let range = |paths: &[String]| repository.range(&ids[..1], &ids[4], paths, false).unwrap();
        let names = |range: &[(String, Vec<String>)]| range.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
        assert_eq!(names(&range(&[])), ids[1..]);
        let touched = range(&["file".to_owned()]);
        assert_eq!(names(&touched), [&ids[1], &ids[2], &ids[4]].map(Clone::clone));
        assert_eq!(touched[2].1, [ids[2].clone()], "what is left out is no parent either");
        assert_eq!(repository.subject(&ids[4]).unwrap(), "again");
        assert!(repository.summary(&ids[4]).unwrap().contains("1 file changed"));
    }

    #[test]
    fn a_commit_is_checked_out_elsewhere_and_the_users_tree_stays_as_it_was() {
        let (dir, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let ids = repository(dir.path(), 2);
        fs::write(dir.path().join("file"), "edited").unwrap();
        let before = git(dir.path(), &["status", "--porcelain"]);
        let repository = Repository::open(dir.path()).unwrap();
        assert!(repository.is_dirty().unwrap());
        let checkout = Checkout::open(&repository, &ours.path().join("tree")).unwrap();
        for (id, content) in [(&ids[0], "0"), (&ids[1], "1"), (&ids[0], "0")] {
            // What a killed process may leave.
            fs::write(checkout.dir().join(".git/index.lock"), "").unwrap();
            fs::write(checkout.dir().join("left"), "").unwrap();
            checkout.check_out(id).unwrap();
            assert_eq!(fs::read_to_string(checkout.dir().join("file")).unwrap(), content);
            assert!(!checkout.dir().join("left").exists());
        }
        assert_eq!(git(dir.path(), &["status", "--porcelain"]), before);
        assert_eq!(fs::read_to_string(dir.path().join("file")).unwrap(), "edited");
        assert_eq!(git(dir.path(), &["worktree", "list"]).lines().count(), 1);
    }

    #[test]
    fn what_is_no_whole_work_tree_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let error = |tree: &Path| Repository::open(tree).unwrap_err().to_string();
        assert!(error(&dir.path().join("absent")).contains("is not a directory"));
        assert!(error(dir.path()).contains("no work tree"), "{}", error(dir.path()));
        let full = dir.path().join("full");
        fs::create_dir_all(full.join("sub")).unwrap();
        repository(&full, 3);
        assert!(error(&full.join("sub")).contains("lies inside"));
        let source = format!("file://{}", full.display());
        git(dir.path(), &["clone", "-q", "--depth", "1", &source, "shallow"]);
        assert!(error(&dir.path().join("shallow")).contains("git fetch --unshallow"));
        let unknown = Repository::open(&full).unwrap().resolve("--good", "v9").unwrap_err();
        assert!(unknown.is::<UsageError>() && unknown.to_string().contains("--good v9"), "{unknown}");
    }
}
