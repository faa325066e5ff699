//! One invocation of `vmm`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use crate::finished::Finished;
use crate::running::Running;
use crate::sandbox::{MARK, Sandbox};
use crate::terminal::Terminal;

/// The binary under test: `VMM_BIN`, or `vmm` beside this test binary or one directory above, where cargo puts it.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn vmm_binary() -> &'static PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        if let Some(path) = env::var_os("VMM_BIN") {
            return path.into();
        }
        let own = env::current_exe().expect("the test binary's path is known");
        let found = own.ancestors().skip(1).take(2).map(|dir| dir.join("vmm")).find(|path| path.is_file());
        found.unwrap_or_else(|| panic!("no vmm near {}: run `cargo build` first, or set VMM_BIN", own.display()))
    })
}

/// `seconds` on a machine with hardware virtualization; `VMM_TEST_PATIENCE` is what to multiply that with, 4 unless set.
///
/// # Panics
/// When `VMM_TEST_PATIENCE` is no number.
#[must_use]
pub fn patience(seconds: u64) -> Duration {
    let factor = env::var("VMM_TEST_PATIENCE").map_or(4, |text| text.parse().expect("VMM_TEST_PATIENCE is a number"));
    Duration::from_secs(seconds * factor)
}

/// Builds a command line and its surroundings.
#[derive(Debug)]
pub struct Vmm<'a> {
    sandbox: &'a Sandbox,
    args: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    wrapper: Vec<OsString>,
    stdin: Vec<u8>,
    deadline: Duration,
}

impl<'a> Vmm<'a> {
    /// `vmm ARGS…`, in the sandbox.
    pub fn new<S: Into<OsString>>(sandbox: &'a Sandbox, args: impl IntoIterator<Item = S>) -> Self {
        Self {
            sandbox,
            args: args.into_iter().map(Into::into).collect(),
            variables: Vec::new(),
            wrapper: Vec::new(),
            stdin: Vec::new(),
            deadline: patience(60),
        }
    }

    /// `vmm exec --host kvm FLAGS… -- sh -c SCRIPT`.
    #[must_use]
    pub fn sh(sandbox: &'a Sandbox, flags: &[&str], script: &str) -> Self {
        Self::new(sandbox, ["exec", "--host", "kvm"]).args(flags).args(["--", "sh", "-c", script])
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// One more environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// Puts `words` in front of the command, as `env` or `setpriv` are used.
    #[must_use]
    pub fn wrapped_in<S: Into<OsString>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.wrapper = words.into_iter().map(Into::into).collect();
        self
    }

    /// What standard input holds; nothing unless given.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// How long it may take before the test fails.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When the deadline passes; everything it started is killed then.
    #[must_use]
    pub fn finish(self) -> Finished {
        self.spawn().finish()
    }

    /// Starts it in the background, in a process group of its own.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn spawn(mut self) -> Running {
        let stdin = std::mem::take(&mut self.stdin);
        let deadline = self.deadline;
        let mut command = self.command();
        command.stdin(if stdin.is_empty() { Stdio::null() } else { Stdio::piped() });
        Running::start(command, stdin, deadline)
    }

    /// Starts it on a terminal of its own.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn on_terminal(self) -> Terminal {
        let deadline = self.deadline;
        Terminal::start(self.env("TERM", "xterm").command(), deadline)
    }

    fn command(self) -> Command {
        let binary = vmm_binary().clone().into_os_string();
        let mut words = self.wrapper.into_iter().chain([binary]).chain(self.args);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).current_dir(self.sandbox.work());
        for name in ["NO_COLOR", "CLICOLOR_FORCE", "TERM", "RUST_LOG"] {
            command.env_remove(name);
        }
        command.env("TMPDIR", self.sandbox.tmp()).env("VMM_SCRATCH_DIR", self.sandbox.scratch());
        command.env(MARK, OsStr::new(self.sandbox.mark()));
        command.envs(self.variables);
        command
    }
}
