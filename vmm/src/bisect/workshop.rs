//! From a commit to something that can be run: the kernel built in a work tree of our own, one of the user's list, or this
//! program built at a commit of its own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use guest_image::kernel::{self, BuildRequest, KernelSpec};
use guest_image::{Cache, Error, KeyBuilder, Progress, Workspace};

use super::git::{Checkout, Repository};
use super::journal::{Request, Subject};
use super::runner::tail;

/// First folder below the cache's root: our work trees of users' repositories, and what `vmm` is built into.
const KIND: &str = "bisect-tree";
/// Lines of a failed build that are kept as the reason.
const REASON_LINES: usize = 12;

/// Something to run.
#[derive(Clone, Debug)]
pub struct Made {
    /// For `--kernel`, if the kernel is what is searched.
    pub kernel: Option<String>,
    /// The `vmm` to run.
    pub binary: PathBuf,
    /// Of the kernel, or of the `vmm`.
    pub sha256: String,
    /// What it took.
    pub took: Duration,
    /// What is worth knowing of it.
    pub notes: Vec<String>,
}

/// What came of it.
#[derive(Debug)]
pub enum Making {
    /// It is there.
    Made(Made),
    /// It does not build.
    Failed(String),
    /// The user wants to stop.
    Interrupted,
}

/// Makes what commits come to.
#[derive(Debug)]
pub struct Workshop<'a> {
    cache: &'a Cache,
    subject: &'a Subject,
    binary: &'a Path,
    checkout: Option<(Checkout, Workspace)>,
    made: HashMap<String, Made>,
}

impl<'a> Workshop<'a> {
    /// `binary`: this program. A work tree is made now if one is needed, and belongs to this process until the end.
    ///
    /// # Errors
    /// The work tree cannot be made, or the user gives up waiting for another bisection of the same tree.
    pub fn new(
        cache: &'a Cache,
        request: &'a Request,
        repository: Option<&Repository>,
        binary: &'a Path,
        progress: &dyn Progress,
    ) -> anyhow::Result<Self> {
        let open = |repository: &Repository| -> anyhow::Result<_> {
            let key = KeyBuilder::default().with("tree", repository.tree().as_os_str().as_encoded_bytes()).finish();
            let workspace = cache.workspace(KIND, &key, progress)?;
            Ok((Checkout::open(repository, &workspace.path().join("tree"))?, workspace))
        };
        let checkout = repository.map(open).transpose()?;
        Ok(Self { cache, subject: &request.subject, binary, checkout, made: HashMap::new() })
    }

    /// Makes what `id` is; what it comes to is known from then on.
    ///
    /// # Errors
    /// What no other commit would mend: missing tools, a full disk, git.
    pub fn make(&mut self, id: &str, progress: &dyn Progress) -> anyhow::Result<Making> {
        if let Some(made) = self.made.get(id) {
            return Ok(Making::Made(Made { took: Duration::ZERO, ..made.clone() }));
        }
        let begun = Instant::now();
        let making = match self.subject {
            Subject::Kernels { .. } => self.ready(id, progress),
            Subject::Tree { config, .. } => self.kernel(id, config.clone(), progress),
            Subject::Server { .. } => self.server(id, progress),
        }?;
        Ok(match making {
            Making::Made(made) => {
                let made = Made { took: begun.elapsed(), ..made };
                self.made.insert(id.to_owned(), made.clone());
                Making::Made(made)
            }
            other => other,
        })
    }

    fn ready(&self, id: &str, progress: &dyn Progress) -> anyhow::Result<Making> {
        let spec: KernelSpec = id.parse()?;
        match kernel::resolve(self.cache, &spec, progress) {
            Ok(kernel) => Ok(Making::Made(self.made_kernel(id.to_owned(), kernel.sha256, Vec::new()))),
            Err(error) => sorted(error),
        }
    }

    fn kernel(&self, id: &str, config: Option<PathBuf>, progress: &dyn Progress) -> anyhow::Result<Making> {
        let Some((checkout, _)) = &self.checkout else { anyhow::bail!("there is no work tree to build in") };
        progress.step("checking the commit out");
        checkout.check_out(id)?;
        let jobs = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let tree = checkout.dir().to_owned();
        let built = match kernel::build(self.cache, &BuildRequest { tree, config, jobs, hide_commit: true }, progress) {
            Ok(built) => built,
            Err(error) => return sorted(error),
        };
        let sha256 = self.cache.sha256_of(&built.image)?;
        let notes = match built.vanished.as_slice() {
            [] => Vec::new(),
            vanished => vec![format!("the kernel did not take these options of ours: {}", vanished.join(" "))],
        };
        Ok(Making::Made(self.made_kernel(built.image.display().to_string(), sha256, notes)))
    }

    fn made_kernel(&self, kernel: String, sha256: String, notes: Vec<String>) -> Made {
        Made { kernel: Some(kernel), binary: self.binary.to_owned(), sha256, took: Duration::ZERO, notes }
    }

    /// Builds `vmm` at a commit, in its own documented way.
    fn server(&self, id: &str, progress: &dyn Progress) -> anyhow::Result<Making> {
        let Some((checkout, workspace)) = &self.checkout else { anyhow::bail!("there is no work tree to build in") };
        progress.step("checking the commit out");
        checkout.check_out(id)?;
        progress.step("building vmm (cargo build --release)");
        let target = workspace.path().join("target");
        let log_path = workspace.path().join("build.log");
        let log = std::fs::File::create(&log_path).with_context(|| format!("failed to make {}", log_path.display()))?;
        let mut command = Command::new("cargo");
        command.args(["build", "--release", "--locked", "--bin", "vmm"]).current_dir(checkout.dir());
        command.env("CARGO_TARGET_DIR", &target).stdin(Stdio::null());
        command.stdout(log.try_clone().context("failed to duplicate a file descriptor")?).stderr(log);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                anyhow::anyhow!("cargo is needed to build vmm; install with: apt-get install cargo")
            }
            _ => anyhow::Error::new(error).context("failed to start cargo"),
        })?;
        let status = loop {
            if let Some(status) = child.try_wait().context("failed to wait for cargo")? {
                break status;
            }
            if progress.interrupted() {
                let _ = child.kill();
                let _ = child.wait();
                return Ok(Making::Interrupted);
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        if !status.success() {
            let said = tail(&log_path);
            anyhow::ensure!(!said.contains("No space left on device"), "no space left while building vmm; free some");
            return Ok(Making::Failed(last_lines(&said)));
        }
        // A copy of its own: the next build replaces it.
        let built = target.join("release/vmm");
        let sha256 = self.cache.sha256_of(&built)?;
        let binary = workspace.path().join(format!("vmm-{}", &sha256[..16]));
        std::fs::copy(&built, &binary).with_context(|| format!("failed to copy {}", built.display()))?;
        Ok(Making::Made(Made { kernel: None, binary, sha256, took: Duration::ZERO, notes: Vec::new() }))
    }
}

/// A commit that does not build is one thing, a machine that cannot build is another.
fn sorted(error: Error) -> anyhow::Result<Making> {
    match error {
        Error::Interrupted { .. } => Ok(Making::Interrupted),
        Error::ToolFailed { output, doing, .. } => {
            Ok(Making::Failed(format!("it failed while {doing}:\n{}", last_lines(&output))))
        }
        Error::NoKernel { .. } | Error::KernelImage(_) | Error::KernelUnfit { .. } => {
            Ok(Making::Failed(crate::command::error_chain(&error)))
        }
        other => Err(other.into()),
    }
}

/// The lines of a compiler's output that say what is wrong, else its last.
fn last_lines(said: &str) -> String {
    let errors: Vec<&str> = said.lines().filter(|line| line.contains("error") || line.contains("undefined")).collect();
    let lines = if errors.is_empty() { said.lines().collect() } else { errors };
    lines[lines.len().saturating_sub(REASON_LINES)..].join("\n")
}
