//! What can go wrong while an image, kernel or suite is made.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::kernel_image::KernelImageError;

/// Everything this crate fails with. The texts are for the user and say what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("failed to {action} {}", path.display())]
    Io {
        /// What was tried, as an infinitive: `read`, `create`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file system is full.
    #[error(
        "no space left on the file system of {} ({free_mib} MiB free) while {doing}; free some space, or use a cache \
         elsewhere by setting XDG_CACHE_HOME",
        path.display()
    )]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Free space for an ordinary user, MiB.
        free_mib: u64,
        /// What was being done.
        doing: String,
    },
    /// Programs are not there.
    #[error("{} needed for {purpose}; install with: apt-get install {}", list(programs), packages.join(" "))]
    MissingTools {
        /// The programs or files that were looked for.
        programs: Vec<String>,
        /// What for, as a noun.
        purpose: String,
        /// Debian packages that have them.
        packages: Vec<String>,
    },
    /// A program failed.
    #[error("{program} failed ({status}) while {doing}{}", tail(output))]
    ToolFailed {
        /// Its name.
        program: String,
        /// Exit code or signal, in words.
        status: String,
        /// What was being done.
        doing: String,
        /// The last lines that it printed.
        output: String,
    },
    /// Nothing answers at the other end of a network.
    #[error(
        "no network while {doing} ({said}); what is needed is kept once it was fetched, so one run with a network is \
         enough. Behind a proxy, set Acquire::http::Proxy for apt, and http_proxy and https_proxy in the environment for the rest"
    )]
    NoNetwork {
        /// What was being done.
        doing: String,
        /// The line in which a program told so.
        said: String,
    },
    /// The owner asked to stop.
    #[error("interrupted while {doing}; nothing half-made was kept")]
    Interrupted {
        /// What was being done.
        doing: String,
    },
    /// A kernel specification that cannot be read.
    #[error("{text:?} names no kernel: expected a path, or debian:SERIES with SERIES one of {}", known.join(", "))]
    UnknownKernelSeries {
        /// What was given.
        text: String,
        /// What there is.
        known: Vec<&'static str>,
    },
    /// A kernel's path leads nowhere useful.
    #[error("no kernel at {}: {reason}", path.display())]
    NoKernel {
        /// What was given.
        path: PathBuf,
        /// What was looked for.
        reason: String,
    },
    /// A file is no usable kernel.
    #[error(transparent)]
    KernelImage(#[from] KernelImageError),
    /// The kernel lacks something that the guest cannot do without.
    #[error("kernel {release} cannot be used: {reason}")]
    KernelUnfit {
        /// `uname -r`.
        release: String,
        /// What is missing and how to mend it.
        reason: String,
    },
    /// Data that another program or the user wrote does not parse.
    #[error("{what} does not parse: {reason}")]
    Malformed {
        /// What was read.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No suite of that name.
    #[error("there is no suite {name:?}; known suites: {}", known.join(", "))]
    UnknownSuite {
        /// What was given.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A suite that is known but not there.
    #[error("suite {name} has not been added; add it with: {}", how.join("\n  or: "))]
    SuiteNotAdded {
        /// Its name.
        name: String,
        /// Commands that add it.
        how: Vec<String>,
    },
    /// A manifest that does not parse, or does not go with the name that it is given under.
    #[error("{} cannot be used: {reason}", path.display())]
    UnfitManifest {
        /// The manifest's file.
        path: PathBuf,
        /// What is wrong, what to do.
        reason: String,
    },
    /// A suite's source cannot be had.
    #[error("failed to get the source of suite {name}: {reason}")]
    SuiteSource {
        /// Its name.
        name: String,
        /// What was tried, what failed, what to do.
        reason: String,
    },
    /// The user has no user namespaces and is not root.
    #[error("cannot build a root image as this user: {reason}")]
    NoNamespaces {
        /// What is missing and how to mend it.
        reason: String,
    },
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`], or [`Error::NoSpace`] when that is what it is.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => {
                Self::no_space(&path, format!("trying to {action} {}", path.display()))
            }
            _ => Self::Io { action, path, source },
        }
    }

    /// The file system that holds `path` is full.
    pub(crate) fn no_space(path: &Path, doing: String) -> Self {
        let existing = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
        let free_mib = rustix::fs::statvfs(existing).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize) >> 20);
        Self::NoSpace { path: path.to_owned(), free_mib, doing }
    }

    pub(crate) fn malformed(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Malformed { what: what.into(), reason: reason.to_string() }
    }
}

/// Adds the path to an `io::Result`.
pub(crate) trait IoContext<T> {
    /// `action` is an infinitive: `read`, `create`.
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|e| Error::io(action, path, e))
    }
}

impl<T> IoContext<T> for rustix::io::Result<T> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|e| Error::io(action, path, e.into()))
    }
}

fn list(programs: &[String]) -> String {
    match programs {
        [one] => format!("{one} is missing, which is"),
        many => format!("{} are missing, which are", many.join(", ")),
    }
}

fn tail(output: &str) -> String {
    if output.is_empty() { String::new() } else { format!("; it said last:\n{output}") }
}
