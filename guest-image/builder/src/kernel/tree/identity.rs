//! What a tree's content is, in one short text: its commit and what differs from it, or a hash of all files.

use std::fs;
use std::path::Path;
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::cache::{sha256_bytes, sha256_file};
use crate::error::{IoContext, Result};

/// Changes whenever a file that a build could read does, and with the commit unless that does not matter: `hide_commit`.
pub(super) fn of_tree(tree: &Path, hide_commit: bool) -> Result<String> {
    match of_git(tree, if hide_commit { "HEAD^{tree}" } else { "HEAD" })? {
        Some(identity) => Ok(identity),
        None => of_files(tree),
    }
}

/// Commit, difference of the work tree, and files that git does not know; `None` when the tree is no work tree of its own.
fn of_git(tree: &Path, head: &str) -> Result<Option<String>> {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(tree).args(args).output();
        output.ok().filter(|o| o.status.success()).map(|o| o.stdout)
    };
    // A tree that was unpacked inside another repository is not described by that one.
    let top = git(&["rev-parse", "--show-toplevel"]).map(|o| String::from_utf8_lossy(&o).trim().to_owned());
    if top.is_none_or(|top| Path::new(&top) != tree) {
        return Ok(None);
    }
    let (Some(commit), Some(difference), Some(others)) = (
        git(&["rev-parse", head]),
        git(&["diff", "--binary", "--no-ext-diff", "HEAD"]),
        git(&["ls-files", "--others", "--exclude-standard", "-z"]),
    ) else {
        return Ok(None);
    };
    let mut unknown = Sha256::new();
    for name in others.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let path = tree.join(String::from_utf8_lossy(name).as_ref());
        unknown.update(name);
        if path.is_file() {
            unknown.update(sha256_file(&path)?);
        }
    }
    let commit = String::from_utf8_lossy(&commit).trim().to_owned();
    Ok(Some(format!("{commit} {} {}", sha256_bytes(&difference), sha256_bytes(&unknown.finalize()))))
}

fn of_files(tree: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    for entry in walkdir::WalkDir::new(tree).sort_by_file_name().into_iter().flatten() {
        hash.update(entry.path().strip_prefix(tree).unwrap_or(entry.path()).as_os_str().as_encoded_bytes());
        hash.update([0]);
        if entry.file_type().is_file() {
            hash.update(fs::read(entry.path()).at("read", entry.path())?);
        } else if entry.file_type().is_symlink() {
            hash.update(fs::read_link(entry.path()).at("read", entry.path())?.as_os_str().as_encoded_bytes());
        }
        hash.update([0]);
    }
    Ok(sha256_bytes(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(dir: &Path, args: &[&str]) {
        let identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"];
        let status = Command::new("git").arg("-C").arg(dir).args(identity).args(args).output().unwrap();
        assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    }

    #[test]
    fn any_change_of_a_work_tree_changes_its_identity_and_its_undoing_restores_it() {
        let dir = tempfile::tempdir().unwrap();
        let tree = fs::canonicalize(dir.path()).unwrap();
        git(&tree, &["init", "-q"]);
        fs::write(tree.join("a.c"), "one").unwrap();
        fs::write(tree.join(".gitignore"), "*.o\n").unwrap();
        git(&tree, &["add", "."]);
        git(&tree, &["commit", "-qm", "first"]);
        let clean = of_tree(&tree, false).unwrap();
        fs::write(tree.join("a.c"), "two").unwrap();
        let edited = of_tree(&tree, false).unwrap();
        fs::write(tree.join("a.c"), "one").unwrap();
        fs::write(tree.join("new.c"), "x").unwrap();
        let added = of_tree(&tree, false).unwrap();
        fs::remove_file(tree.join("new.c")).unwrap();
        fs::write(tree.join("a.o"), "ignored").unwrap();
        assert_eq!(of_tree(&tree, false).unwrap(), clean);
        assert!(clean != edited && edited != added && clean != added);
        let content = of_tree(&tree, true).unwrap();
        git(&tree, &["commit", "-q", "--allow-empty", "-m", "nothing"]);
        assert_ne!(of_tree(&tree, false).unwrap(), clean);
        assert_eq!(of_tree(&tree, true).unwrap(), content, "another commit of the same files");
    }

    #[test]
    fn a_tree_that_is_no_work_tree_is_known_by_all_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path();
        fs::write(tree.join("a.c"), "one").unwrap();
        let first = of_tree(tree, false).unwrap();
        assert_eq!(of_tree(tree, false).unwrap(), first);
        fs::write(tree.join("a.c"), "two").unwrap();
        assert_ne!(of_tree(tree, false).unwrap(), first);
        fs::rename(tree.join("a.c"), tree.join("b.c")).unwrap();
        fs::write(tree.join("b.c"), "one").unwrap();
        assert_ne!(of_tree(tree, false).unwrap(), first);
    }
}
