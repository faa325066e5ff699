//! `vmm kernel`: building guest kernels.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use guest_image::Cache;
use guest_image::kernel::{self, BuildRequest};

use super::progress::{TerminalProgress, or_exit_code};
use crate::exit_code::ExitCode;

/// `vmm kernel`.
#[derive(Args, Clone, Debug)]
pub struct KernelArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: KernelAction,
}

/// The actions of `vmm kernel`.
#[derive(Subcommand, Clone, Debug)]
pub enum KernelAction {
    /// Build the kernel of a source tree with all that a guest needs, and print its path
    ///
    /// The tree itself stays clean: objects are kept in the cache, so that building again after an edit is quick.
    Build {
        /// The kernel source tree
        #[arg(long, value_name = "DIR")]
        tree: PathBuf,
        /// Configuration to start from [default: make tinyconfig]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// How many compilers run at once [default: one for each processor]
        #[arg(long, short, value_name = "N")]
        jobs: Option<usize>,
    },
    /// Make a kernel ready to boot, download it if it is Debian's, and print the path of its vmlinux
    Fetch {
        /// As for --kernel: debian:6.12, debian:6.1, a bzImage, a vmlinux or a kernel tree
        kernel: String,
    },
}

/// Does what `args` say. The built kernel's path is the only thing on standard output.
///
/// # Errors
/// The kernel does not build, or the cache fails.
pub fn kernel(args: &KernelArgs, cache: &Cache, progress: &TerminalProgress) -> anyhow::Result<ExitCode> {
    match &args.action {
        KernelAction::Build { tree, config, jobs } => build(tree, config.as_ref(), *jobs, cache, progress),
        KernelAction::Fetch { kernel } => fetch(kernel, cache, progress),
    }
}

fn fetch(kernel: &str, cache: &Cache, progress: &TerminalProgress) -> anyhow::Result<ExitCode> {
    let fetched = kernel.parse().and_then(|spec| kernel::resolve(cache, &spec, progress));
    progress.finish();
    match or_exit_code(fetched)? {
        Ok(kernel) => println!("{}", kernel.vmlinux.display()),
        Err(code) => return Ok(code),
    }
    Ok(ExitCode::Success)
}

fn build(
    tree: &Path,
    config: Option<&PathBuf>,
    jobs: Option<usize>,
    cache: &Cache,
    progress: &TerminalProgress,
) -> anyhow::Result<ExitCode> {
    let all = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let request = BuildRequest {
        tree: tree.to_path_buf(),
        config: config.cloned(),
        jobs: jobs.unwrap_or_else(all),
        hide_commit: false,
    };
    let built = kernel::build(cache, &request, progress);
    progress.finish();
    let built = match or_exit_code(built)? {
        Ok(built) => built,
        Err(code) => return Ok(code),
    };
    if !built.vanished.is_empty() {
        eprintln!(
            "warning: the kernel did not take these options of ours, because this tree does not know them or the \
             configuration rules them out: {}",
            built.vanished.join(" ")
        );
    }
    if built.cached {
        eprintln!("nothing has changed since it was built");
    }
    println!("{}", built.image.display());
    Ok(ExitCode::Success)
}
