//! `vmm run --resume RESULTS`: the command line of a run that did not come to its end, and what of it is done.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::cli::{Cli, Command, RunArgs};
use crate::config::UsageError;
use crate::report::{EarlierPart, ManifestFile, SavedManifest};

/// A run to go on with.
#[derive(Debug)]
pub struct Resumed {
    /// How it was started.
    pub args: RunArgs,
    /// The same as it was typed.
    pub command: Vec<OsString>,
    /// Where.
    pub directory: PathBuf,
    /// The command line that asks to go on with it, from any directory.
    pub typed: Vec<OsString>,
    /// What it left.
    pub earlier: EarlierPart,
    manifest: SavedManifest,
}

impl Resumed {
    /// Reads the run in `dir`; `typed` is the command line that asks for it. Makes the run's directory the current one, so
    /// that its arguments mean what they meant.
    ///
    /// # Errors
    /// [`UsageError`] when there is no run to go on with or more is asked for; also when its files cannot be read.
    pub fn read(dir: &Path, typed: &[OsString]) -> anyhow::Result<Self> {
        if let Some(other) = other_options(typed) {
            let other = other.to_string_lossy();
            anyhow::bail!(UsageError(format!(
                "--resume goes on with a run as it was started, and takes nothing else: leave out {other}, or start a new run"
            )));
        }
        // Of a folder that is not there the reading tells.
        let dir = &dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
        let earlier = EarlierPart::read(dir).map_err(|error| UsageError(super::error_chain(&error)))?;
        if earlier.is_complete() {
            let dir = dir.display();
            anyhow::bail!(UsageError(format!(
                "--resume: the run in {dir} came to its end; there is nothing to go on with"
            )));
        }
        let manifest = SavedManifest::read(dir)?;
        std::env::set_current_dir(&manifest.directory)
            .with_context(|| format!("failed to go to {}, where the run was started", manifest.directory.display()))?;
        let command: Vec<OsString> = manifest.command.iter().map(OsString::from).collect();
        let cli = Cli::try_parse_with_suite_flags(command.clone())
            .with_context(|| format!("the command line of the run in {} is not one of this vmm's", dir.display()))?;
        let Command::Run(mut args) = cli.command else { anyhow::bail!("{} is not of a `vmm run`", dir.display()) };
        if args.suites.is_empty() {
            // More may have been added since.
            args.suites = manifest.suite_names();
        }
        let typed = with_folder(typed, dir);
        Ok(Self { typed, args, command, directory: manifest.directory.clone(), earlier, manifest })
    }

    /// Whether kernel, image and suites are those that the run began with.
    ///
    /// # Errors
    /// [`UsageError`] that names the first that is not: half a run's results would be of something else.
    pub fn check_files(&self, files: &[ManifestFile]) -> Result<(), UsageError> {
        match self.manifest.differs_in(files) {
            None => Ok(()),
            Some((role, path, was)) => Err(UsageError(format!(
                "--resume: {role} is not what the run began with ({} had SHA-256 {was}); start a new run",
                path.display()
            ))),
        }
    }
}

/// `typed` with the results folder as a path that means the same wherever it is typed.
fn with_folder(typed: &[OsString], dir: &Path) -> Vec<OsString> {
    let mut words = Vec::new();
    let mut typed = typed.iter();
    while let Some(word) = typed.next() {
        if word == "--resume" {
            typed.next();
            words.extend([word.clone(), dir.into()]);
        } else if word.to_string_lossy().starts_with("--resume=") {
            words.extend(["--resume".into(), dir.into()]);
        } else {
            words.push(word.clone());
        }
    }
    words
}

/// The first word of `vmm run …` that is neither `--resume` nor about where the cache is or how much to say.
fn other_options(typed: &[OsString]) -> Option<&OsString> {
    let mut words = typed.iter().skip(1);
    while let Some(word) = words.next() {
        let text = word.to_string_lossy();
        match &*text {
            "run" | "--verbose" | "--quiet" | "-q" => {}
            "--resume" | "--cache-dir" => drop(words.next()),
            _ if text.starts_with("--resume=") || text.starts_with("--cache-dir=") => {}
            _ if text.starts_with("-v") && text[1..].bytes().all(|b| b == b'v') => {}
            _ => return Some(word),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(words: &str) -> Vec<OsString> {
        words.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_folder_is_the_same_from_any_directory() {
        for words in ["vmm run --resume x -q", "vmm run --resume=x -q"] {
            assert_eq!(with_folder(&typed(words), Path::new("/r/x")), typed("vmm run --resume /r/x -q"));
        }
    }

    #[test]
    fn nothing_may_be_asked_for_besides() {
        for (words, other) in [
            ("vmm run --resume results/x", None),
            ("vmm --cache-dir c run -vv --resume=results/x --quiet", None),
            ("vmm run --resume results/x --cpus 2", Some("--cpus")),
            ("vmm run pjdfstest --resume results/x", Some("pjdfstest")),
        ] {
            assert_eq!(other_options(&typed(words)).and_then(|word| word.to_str()), other, "{words}");
        }
    }

    #[test]
    fn what_is_no_results_folder_is_the_users_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let error = Resumed::read(dir.path(), &typed("vmm run --resume x")).unwrap_err();
        assert!(error.downcast_ref::<UsageError>().is_some_and(|e| e.0.contains("no results folder")), "{error:?}");
    }
}
