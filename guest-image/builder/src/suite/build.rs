//! Making a suite's files: by `cargo install`, or by its own build steps in a copy of its source, on this machine or in a
//! Debian root file system made for it.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::cache::{Cache, Scratch};
use crate::debian_root::{DebianRoot, shell_quote};
use crate::error::{Error, IoContext, Result};
use crate::progress::Progress;
use crate::tool::{self, Tool};

use super::Manifest;
use super::manifest::Build;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where the source of a suite came from, for `vmm suite show` and the manifest of a run.
pub(super) struct Built {
    /// Registry and version, URL and commit, or folder and commit.
    pub(super) origin: String,
}

/// Fills the empty folder `tree` with what the suite needs at run time.
pub(super) fn build(
    cache: &Cache,
    manifest: &Manifest,
    source: Option<&Path>,
    tree: &Path,
    scratch: &Scratch,
    progress: &dyn Progress,
) -> Result<Built> {
    match &manifest.build {
        Build::CargoInstall { package, libraries } => {
            if source.is_some() {
                let reason = "it is built from the crates registry and takes no --source".to_owned();
                return Err(Error::SuiteSource { name: manifest.name.clone(), reason });
            }
            cargo_install(manifest, package, libraries, tree, scratch, progress)
        }
        Build::As { suite } => {
            let reason = format!("it runs the files of suite {suite}, which is what to add");
            Err(Error::SuiteSource { name: manifest.name.clone(), reason })
        }
        Build::Source { tools, packages, steps, keep } => {
            let tools: Vec<&str> = tools.iter().map(String::as_str).collect();
            tool::require(&tools, &format!("building suite {}", manifest.name))?;
            let copy = scratch.path().join("source");
            let origin = match source {
                Some(source) => copy_source(manifest, source, &copy, scratch, progress)?,
                None => clone(manifest, &copy, scratch, progress)?,
            };
            let log = BuildLog::new(cache, &manifest.name);
            let built = match packages.is_empty() {
                true => run_steps(manifest, steps, &copy, scratch, progress, &log).map(|()| copy),
                false => build_in_debian(cache, manifest, packages, steps, &copy, scratch, progress, &log),
            };
            let built = built.map_err(|error| log.mention_in(error))?;
            log.remove();
            if keep.is_empty() {
                return take_all(&built, tree).map(|()| Built { origin });
            }
            for name in keep {
                take(&built.join(name), &tree.join(name), &manifest.name)?;
            }
            Ok(Built { origin })
        }
    }
}

/// Runs the build steps on this machine, in the folder `copy`.
fn run_steps(
    manifest: &Manifest,
    steps: &[String],
    copy: &Path,
    scratch: &Scratch,
    progress: &dyn Progress,
    log: &BuildLog,
) -> Result<()> {
    for step in steps {
        progress.step(&format!("building {}: {step}", manifest.name));
        log.line(&format!("$ {step}"));
        Tool::new("sh", format!("building suite {} with `{step}`", manifest.name), scratch.path())
            .args(["-c", step])
            .dir(copy)
            .run_with(progress, |line| {
                progress.detail(line);
                log.line(line);
            })?;
    }
    Ok(())
}

/// Where the source lies in the root file system that it is built in.
const SOURCE: &str = "/source";

/// Runs the build steps in a Debian root file system with `packages`. Gives the folder with what they made.
#[expect(clippy::too_many_arguments, reason = "one call, of which each says what another knows")]
fn build_in_debian(
    cache: &Cache,
    manifest: &Manifest,
    packages: &[String],
    steps: &[String],
    source: &Path,
    scratch: &Scratch,
    progress: &dyn Progress,
    log: &BuildLog,
) -> Result<PathBuf> {
    let built = scratch.path().join("built");
    fs::create_dir(&built).at("create", &built)?;
    let mut script = format!("set -e\ncd {SOURCE}\n");
    for step in steps {
        // As mmdebstrap tells of its own phases.
        script.push_str(&format!("echo {}\n{step}\n", shell_quote(Path::new(&format!("I: {step}")))));
    }
    progress.step(&format!("building {} in a Debian root file system", manifest.name));
    DebianRoot::new(cache, &format!("building suite {}", manifest.name), scratch.path())?
        .packages(packages)
        // The user that owns the source here may be nobody there.
        .hook(&format!("mkdir \"$1\"{SOURCE}"))
        .hook(&format!("sync-in {} {SOURCE}", shell_quote(source)))
        .hook(&format!("chown -R 0:0 \"$1\"{SOURCE}"))
        .hook(&format!("chroot \"$1\" env -i {BUILD_ENVIRONMENT} sh -c \"$VMM_STEPS\" 2>&1"))
        .hook(&format!("rm -rf \"$1\"{SOURCE}/.git"))
        .hook(&format!("sync-out {SOURCE} {}", shell_quote(&built)))
        .env("VMM_STEPS", script)
        .make(progress, |line| {
            progress.detail(line);
            log.line(line);
        })?;
    Ok(built)
}

/// The same wherever it is built.
const BUILD_ENVIRONMENT: &str =
    "PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 SOURCE_DATE_EPOCH=\"$SOURCE_DATE_EPOCH\"";

/// All that a build prints, in `logs/NAME.log` in the cache. It stays there when the build fails.
struct BuildLog {
    path: PathBuf,
    file: RefCell<Option<BufWriter<File>>>,
}

impl BuildLog {
    /// A log that cannot be written is no reason not to build.
    fn new(cache: &Cache, suite: &str) -> Self {
        let folder = cache.root().join("logs");
        let path = folder.join(format!("{suite}.log"));
        let file = fs::create_dir_all(&folder).and_then(|()| File::create(&path));
        Self { path, file: RefCell::new(file.ok().map(BufWriter::new)) }
    }

    fn line(&self, line: &str) {
        if let Some(file) = self.file.borrow_mut().as_mut() {
            let _ = writeln!(file, "{line}");
        }
    }

    fn mention_in(&self, error: Error) -> Error {
        let written = self.file.borrow_mut().take().is_some_and(|mut file| file.flush().is_ok());
        match error {
            Error::ToolFailed { program, status, doing, output } if written => {
                let output = format!("{output}\nall that it said is in {}", self.path.display());
                Error::ToolFailed { program, status, doing, output }
            }
            error => error,
        }
    }

    fn remove(&self) {
        self.file.borrow_mut().take();
        let _ = fs::remove_file(&self.path);
    }
}

fn cargo_install(
    manifest: &Manifest,
    package: &str,
    libraries: &[String],
    tree: &Path,
    scratch: &Scratch,
    progress: &dyn Progress,
) -> Result<Built> {
    let version = manifest.upstream.as_ref().and_then(|u| u.version.as_deref()).unwrap_or("*");
    let doing = format!("building suite {} with cargo install {package}", manifest.name);
    let cargo = find_cargo().ok_or_else(|| tool::missing(&["cargo"], &doing))?;
    tool::require(&["cc"], &doing)?;
    let absent: Vec<&str> = libraries.iter().map(String::as_str).filter(|l| !has_static_library(l)).collect();
    if !absent.is_empty() {
        return Err(tool::missing(&absent, &doing));
    }
    progress.step(&doing);
    let out = scratch.path().join("out");
    let install = |offline: bool| {
        let command = Tool::new(&cargo.to_string_lossy(), &doing, scratch.path())
            .args(["install", "--locked", "--version", &format!("={version}"), package, "--target", TARGET, "--root"])
            .arg(&out)
            .arg("--target-dir")
            .arg(scratch.path().join("target"))
            .args(offline.then_some("--offline"))
            .dir(scratch.path())
            // Only the programs that run in the guest are for TARGET, so build scripts are not linked statically.
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_TARGET_DIR");
        command.run(progress)
    };
    // Without a network the crates may still be in cargo's own cache.
    match install(false) {
        Err(online @ (Error::ToolFailed { .. } | Error::NoNetwork { .. })) => install(true).map_err(|_| online)?,
        other => other?,
    };
    let program = out.join("bin").join(package);
    fs::copy(&program, tree.join(package)).at("copy", program)?;
    Ok(Built { origin: format!("crate {package} {version}") })
}

/// Cargo where rustup puts it, which is not in the `PATH` of every shell.
fn find_cargo() -> Option<PathBuf> {
    let by_home =
        || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo/bin/cargo")).filter(|p| p.is_file());
    tool::find("cargo").or_else(by_home)
}

/// Whether the C compiler finds a library such as `libacl.a` to link with.
#[must_use]
pub fn has_static_library(name: &str) -> bool {
    let asked = std::process::Command::new("cc").arg(format!("-print-file-name={name}")).output();
    asked.is_ok_and(|o| Path::new(String::from_utf8_lossy(&o.stdout).trim()).is_absolute())
}

fn copy_source(
    manifest: &Manifest,
    source: &Path,
    copy: &Path,
    scratch: &Scratch,
    progress: &dyn Progress,
) -> Result<String> {
    let wrong = |reason: String| Error::SuiteSource { name: manifest.name.clone(), reason };
    if !source.is_dir() {
        let of =
            manifest.upstream.as_ref().map_or_else(|| "its files".to_owned(), |u| format!("a checkout of {}", u.url));
        return Err(wrong(format!("{} is no folder; --source takes {of}", source.display())));
    }
    progress.step(&format!("copying {}", source.display()));
    fs::create_dir(copy).at("create", copy)?;
    Tool::new("cp", format!("copying {}", source.display()), scratch.path())
        .args(["-a", "--reflink=auto", "--no-preserve=ownership"])
        .arg(source.join("."))
        .arg(copy)
        .run(progress)?;
    let asked = std::process::Command::new("git").arg("-C").arg(source).args(["rev-parse", "HEAD"]).output();
    let commit =
        asked.ok().filter(|o| o.status.success()).map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
    Ok(commit.map_or_else(|| source.display().to_string(), |c| format!("{} at {c}", source.display())))
}

fn clone(manifest: &Manifest, copy: &Path, scratch: &Scratch, progress: &dyn Progress) -> Result<String> {
    let Some(upstream) = &manifest.upstream else {
        let reason = "its manifest names no upstream; give its folder with --source DIR".to_owned();
        return Err(Error::SuiteSource { name: manifest.name.clone(), reason });
    };
    let url = &upstream.url;
    let commit = upstream.commit.as_deref().unwrap_or("HEAD");
    let doing = format!("fetching {url} at {commit}");
    tool::require(&["git"], &doing)?;
    progress.step(&doing);
    fs::create_dir(copy).at("create", copy)?;
    let git = |args: &[&str]| {
        // No questions for a password: they would wait for ever.
        let tool = Tool::new("git", &doing, scratch.path()).args(args).dir(copy).env("GIT_TERMINAL_PROMPT", "0");
        tool.run(progress)
    };
    let fetched = git(&["init", "--quiet"])
        .and_then(|_| git(&["fetch", "--quiet", "--depth=1", url, commit]))
        .and_then(|_| git(&["checkout", "--quiet", "FETCH_HEAD"]));
    match fetched {
        Ok(_) => Ok(format!("{url} at {commit}")),
        Err(Error::ToolFailed { output: said, .. } | Error::NoNetwork { said, .. }) => {
            let said = said.lines().next_back().unwrap_or_default();
            let reason = format!(
                "{doing} failed ({said}); where that address cannot be reached, bring a checkout and run: vmm suite add {} \
                 --source DIR",
                manifest.name
            );
            Err(Error::SuiteSource { name: manifest.name.clone(), reason })
        }
        Err(other) => Err(other),
    }
}

fn take(from: &Path, to: &Path, suite: &str) -> Result<()> {
    if !from.exists() {
        let what = from.file_name().unwrap_or_default().to_string_lossy();
        let reason = format!("its build left no {what}: is that folder a checkout of the suite?");
        return Err(Error::SuiteSource { name: suite.to_owned(), reason });
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).at("create", parent)?;
    }
    fs::rename(from, to).at("take", from)
}

/// Takes everything but what git keeps.
fn take_all(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).at("list", from)? {
        let entry = entry.at("list", from)?;
        if entry.file_name() != ".git" {
            fs::rename(entry.path(), to.join(entry.file_name())).at("take", entry.path())?;
        }
    }
    Ok(())
}
