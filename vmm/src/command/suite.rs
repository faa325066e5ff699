//! `vmm suite`: which suites there are, and bringing them in.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use guest_image::suite::{self, AddedSuite, Build, Image, Manifest};
use guest_image::{Cache, root_image};

use super::print;
use super::progress::{TerminalProgress, or_exit_code};
use crate::exit_code::ExitCode;

/// `vmm suite`.
#[derive(Args, Clone, Debug)]
pub struct SuiteArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: SuiteAction,
}

/// The actions of `vmm suite`.
#[derive(Subcommand, Clone, Debug)]
pub enum SuiteAction {
    /// List the suites that vmm knows, and which of them have been added
    List,
    /// Build a suite and add it
    Add {
        /// The suite
        name: String,
        /// Build it from this checkout instead of fetching it; the folder is copied and not changed
        #[arg(long, value_name = "DIR")]
        source: Option<PathBuf>,
        /// A suite of your own: how it is built and run, in a file as those in guest-image/suites
        #[arg(long, value_name = "FILE")]
        manifest: Option<PathBuf>,
    },
    /// Show where a suite comes from and how it is run
    Show {
        /// The suite
        name: String,
    },
    /// Remove a suite that has been added
    Rm {
        /// The suite
        name: String,
    },
}

/// Does what `args` say.
///
/// # Errors
/// The suite is unknown or does not build, or the cache fails.
pub fn suite(args: &SuiteArgs, cache: &Cache, progress: &TerminalProgress) -> anyhow::Result<ExitCode> {
    let name = match &args.action {
        SuiteAction::List => return list(cache),
        SuiteAction::Add { name, .. } | SuiteAction::Show { name } | SuiteAction::Rm { name } => name,
    };
    if let SuiteAction::Add { source, manifest: Some(manifest), .. } = &args.action {
        return added(suite::add_own(cache, name, manifest, source.as_deref(), progress), cache, progress);
    }
    // Before anything is looked for or built.
    let manifest = match or_exit_code(suite::manifest(cache, name))? {
        Ok(manifest) => manifest,
        Err(code) => return Ok(code),
    };
    match &args.action {
        SuiteAction::Add { source, .. } => {
            return added(suite::add(cache, name, source.as_deref(), progress), cache, progress);
        }
        SuiteAction::Rm { .. } => match suite::remove(cache, name)? {
            true => println!("removed {name}"),
            false => println!("{name} was not there"),
        },
        SuiteAction::Show { .. } | SuiteAction::List => {
            let text = show(&manifest, suite::find(cache, name)?.as_ref());
            print(&text)?;
        }
    }
    Ok(ExitCode::Success)
}

/// Also makes the root image that the suite needs, so that its runs need no network.
fn added(
    built: guest_image::Result<AddedSuite>,
    cache: &Cache,
    progress: &TerminalProgress,
) -> anyhow::Result<ExitCode> {
    let ready = built.and_then(|added| {
        let packages = &added.manifest.image.packages;
        if !packages.is_empty() {
            root_image::ensure(cache, packages, progress)?;
        }
        Ok(added)
    });
    progress.finish();
    match or_exit_code(ready)? {
        Ok(added) => println!("added {} from {}", added.manifest.name, added.origin),
        Err(code) => return Ok(code),
    }
    Ok(ExitCode::Success)
}

fn list(cache: &Cache) -> anyhow::Result<ExitCode> {
    let mut text = String::new();
    for manifest in suite::manifests(cache)? {
        let state = state(&manifest, suite::find(cache, &manifest.name)?.is_some());
        text += &format!("{:16} {state:12} {}\n", manifest.name, manifest.description);
    }
    print(&text)?;
    Ok(ExitCode::Success)
}

fn state(manifest: &Manifest, added: bool) -> &'static str {
    match (&manifest.build, added) {
        (_, true) => "added",
        (Build::CargoInstall { .. }, false) => "when needed",
        (Build::Source { .. } | Build::As { .. }, false) => "not added",
    }
}

fn show(manifest: &Manifest, added: Option<&AddedSuite>) -> String {
    let mut lines = vec![("suite", manifest.name.clone()), ("what", manifest.description.clone())];
    if let Some(upstream) = &manifest.upstream {
        lines.push(("from", upstream.url.clone()));
        lines.extend(upstream.version.iter().map(|v| ("version", v.clone())));
        lines.extend(upstream.commit.iter().map(|c| ("commit", c.clone())));
    }
    match &manifest.build {
        Build::CargoInstall { package, .. } => {
            lines.push(("build", format!("cargo install {package}, linked statically")))
        }
        Build::As { suite } => lines.push(("build", format!("none: it runs the files of {suite}"))),
        Build::Source { steps, packages, .. } => {
            lines.extend(steps.iter().map(|step| ("build", step.clone())));
            lines.extend((!packages.is_empty()).then(|| ("with", packages.join(" "))));
        }
    }
    let Image { packages, modules } = &manifest.image;
    for (what, names) in [("packages", packages), ("modules", modules)] {
        lines.extend((!names.is_empty()).then(|| (what, names.join(" "))));
    }
    lines.extend(manifest.runs(&[], 0).into_iter().map(|run| ("run", run.plan.command.argv.join(" "))));
    lines.extend(manifest.run.env.iter().map(|(name, value)| ("env", format!("{name}={value}"))));
    lines.push(("in", manifest.run.cwd.clone()));
    lines.push(("shares", manifest.requires.shares.to_string()));
    match added {
        Some(added) => {
            lines.push(("added", added.origin.clone()));
            lines.push(("image", added.image.display().to_string()));
            lines.push(("sha256", added.sha256.clone()));
        }
        None => lines.push(("added", "no".to_owned())),
    }
    lines.iter().map(|(name, value)| format!("{name:8} {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_suite_says_where_it_comes_from_and_how_it_runs() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let text = show(&suite::manifest(&cache, "pjdfstest").unwrap(), None);
        for part in [
            "https://github.com/pjd/pjdfstest",
            "autoreconf -ifs",
            "prove -rv",
            "/opt/suites/pjdfstest/tests",
            "added    no",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
