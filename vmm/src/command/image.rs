//! `vmm image`: the root image, and what else the cache holds.

use std::time::SystemTime;

use clap::{Args, Subcommand};
use guest_image::kernel::{self, DebianKernel, KernelSpec};
use guest_image::{Cache, EntryInfo, root_image};

use super::print;
use super::progress::{TerminalProgress, or_exit_code, size};
use crate::exit_code::ExitCode;

/// `vmm image`.
#[derive(Args, Clone, Debug)]
pub struct ImageArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: ImageAction,
}

/// The actions of `vmm image`.
#[derive(Subcommand, Clone, Debug)]
pub enum ImageAction {
    /// Build the Debian root image and fetch the default kernel, so that later commands need no network
    Build {
        /// Do it again with what Debian's mirror has now
        #[arg(long)]
        update: bool,
    },
    /// List everything in the cache
    List,
    /// Remove entries from the cache
    Rm {
        /// Keys as `vmm image list` prints them, or the start of one; or kinds, as `root`
        #[arg(required_unless_present = "all", value_name = "ENTRY")]
        entries: Vec<String>,
        /// Remove everything
        #[arg(long, conflicts_with = "entries")]
        all: bool,
    },
}

/// Does what `args` say with the cache.
///
/// # Errors
/// A build fails, the cache cannot be read or written.
pub fn image(args: &ImageArgs, cache: &Cache, progress: &TerminalProgress) -> anyhow::Result<ExitCode> {
    match &args.action {
        ImageAction::Build { update } => build(cache, *update, progress),
        ImageAction::List => list(cache),
        ImageAction::Rm { entries, all } => remove(cache, entries, *all),
    }
}

fn build(cache: &Cache, update: bool, progress: &TerminalProgress) -> anyhow::Result<ExitCode> {
    let built = match update {
        false => root_image::ensure(cache, &[], progress)
            .and_then(|image| Ok((image, kernel::resolve(cache, &KernelSpec::default(), progress)?))),
        true => root_image::rebuild(cache, &[], progress)
            .and_then(|image| Ok((image, kernel::refresh(cache, DebianKernel::Cloud6_12, progress)?))),
    };
    progress.finish();
    let (image, kernel) = match or_exit_code(built)? {
        Ok(built) => built,
        Err(code) => return Ok(code),
    };
    print(&format!(
        "image    {}\n         sha256 {}\npackages {}\nkernel   {} ({})\n",
        image.image.display(),
        image.sha256,
        image.lock.display(),
        kernel.vmlinux.display(),
        kernel.release
    ))?;
    Ok(ExitCode::Success)
}

fn list(cache: &Cache) -> anyhow::Result<ExitCode> {
    let mut text = String::new();
    let mut total = 0;
    for entry in cache.list()? {
        let bytes = entry.disk_usage();
        total += bytes;
        text += &format!("{:16} {}  {:>10}  {}\n", entry.kind, entry.key, size(bytes), age(entry.made));
    }
    text += &format!("{} in {}\n", size(total), cache.root().display());
    print(&text)?;
    Ok(ExitCode::Success)
}

fn remove(cache: &Cache, wanted: &[String], all: bool) -> anyhow::Result<ExitCode> {
    let entries = cache.list()?;
    let chosen = if all { entries.iter().collect() } else { choose(&entries, wanted)? };
    for entry in chosen {
        cache.remove(&entry.kind, &entry.key)?;
        println!("removed {} {}", entry.kind, entry.key);
    }
    Ok(ExitCode::Success)
}

/// The entries that `wanted` names by kind, key or start of a key. All of `wanted` must name something, or nothing is
/// chosen.
fn choose<'a>(entries: &'a [EntryInfo], wanted: &[String]) -> anyhow::Result<Vec<&'a EntryInfo>> {
    let names = |entry: &EntryInfo, word: &str| entry.kind == word || (!word.is_empty() && entry.key.starts_with(word));
    if let Some(unknown) = wanted.iter().find(|w| !entries.iter().any(|e| names(e, w))) {
        anyhow::bail!("nothing in the cache is called {unknown:?}; `vmm image list` shows what there is");
    }
    Ok(entries.iter().filter(|e| wanted.iter().any(|w| names(e, w))).collect())
}

fn age(made: SystemTime) -> String {
    let Ok(age) = SystemTime::now().duration_since(made) else { return "just now".to_owned() };
    let minutes = age.as_secs() / 60;
    match minutes {
        0 => "just now".to_owned(),
        1..60 => format!("{minutes} min ago"),
        60..2880 => format!("{} h ago", minutes / 60),
        _ => format!("{} days ago", minutes / 1440),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;

    fn entry(kind: &str, key: &str) -> EntryInfo {
        EntryInfo { kind: kind.into(), key: key.into(), path: PathBuf::new(), made: SystemTime::now() }
    }

    fn chosen(wanted: &[&str]) -> anyhow::Result<Vec<String>> {
        let entries = [entry("root", "abc1"), entry("kernel", "abd2"), entry("kernel", "fff3")];
        let wanted: Vec<_> = wanted.iter().map(|&w| w.to_owned()).collect();
        Ok(choose(&entries, &wanted)?.into_iter().map(|e| e.key.clone()).collect())
    }

    #[test]
    fn entries_are_named_by_kind_or_by_the_start_of_their_key() {
        assert_eq!(chosen(&["kernel"]).unwrap(), ["abd2", "fff3"]);
        assert_eq!(chosen(&["abc", "root"]).unwrap(), ["abc1"]);
        assert_eq!(chosen(&["ab"]).unwrap(), ["abc1", "abd2"]);
    }

    #[test]
    fn a_name_that_fits_nothing_removes_nothing() {
        assert!(chosen(&["kernel", "zzz"]).unwrap_err().to_string().contains("\"zzz\""));
        assert!(chosen(&[""]).is_err());
    }

    #[test]
    fn ages_are_told_in_the_unit_that_fits() {
        let before = |seconds| SystemTime::now() - Duration::from_secs(seconds);
        assert_eq!(age(before(5)), "just now");
        assert_eq!(age(before(600)), "10 min ago");
        assert_eq!(age(before(7300)), "2 h ago");
        assert_eq!(age(before(86400 * 3)), "3 days ago");
        assert_eq!(age(SystemTime::now() + Duration::from_secs(9)), "just now");
    }
}
