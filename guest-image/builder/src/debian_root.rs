//! A Debian root file system for as long as hooks look at it: what root images are made from, and where suites are built
//! that need Debian's libraries. mmdebstrap makes it, as root or in a user namespace.

use std::fs;
use std::path::{Path, PathBuf};

use crate::apt_sources::{self, AptSource};
use crate::cache::{Cache, Scratch};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::tool::{self, Tool};

/// The release that everything is made of. Part of the identity of all that is.
pub(crate) const RELEASE: &str = "bookworm";
/// All times in what is built: 2024-01-01, any fixed one does.
pub(crate) const EPOCH: &str = "1704067200";

/// One root file system in the making.
pub(crate) struct DebianRoot {
    doing: String,
    dir: PathBuf,
    scratch: Scratch,
    packages: Vec<String>,
    hooks: Vec<String>,
    env: Vec<(String, String)>,
}

impl DebianRoot {
    /// `doing` says what it is for, as it stands after "while". `dir` is named when space runs out.
    ///
    /// # Errors
    /// Missing tools, no user namespaces.
    pub(crate) fn new(cache: &Cache, doing: &str, dir: &Path) -> Result<Self> {
        tool::require(&["mmdebstrap", "apt-get", "dpkg-deb"], doing)?;
        if !is_root() {
            check_namespaces()?;
        }
        let scratch = cache.scratch()?;
        let (doing, dir) = (doing.to_owned(), dir.to_path_buf());
        Ok(Self { doing, dir, scratch, packages: Vec::new(), hooks: Vec::new(), env: Vec::new() })
    }

    /// Adds packages to Debian's essential ones. What they depend on comes with them; what they recommend does not.
    pub(crate) fn packages<S: Into<String>>(mut self, packages: impl IntoIterator<Item = S>) -> Self {
        self.packages.extend(packages.into_iter().map(Into::into));
        self
    }

    /// Adds a customize hook of mmdebstrap: a line for a shell, in which `$1` is the new root, or one of its own words
    /// (`download`, `sync-in`, …).
    pub(crate) fn hook(mut self, line: &str) -> Self {
        self.hooks.push(line.to_owned());
        self
    }

    /// Sets a variable for the hooks.
    pub(crate) fn env(mut self, name: &str, value: String) -> Self {
        self.env.push((name.to_owned(), value));
        self
    }

    /// Makes it, runs the hooks and throws it away. `on_line` is told each line that is printed.
    ///
    /// # Errors
    /// A hook failed, no network, no space.
    pub(crate) fn make(self, progress: &dyn Progress, mut on_line: impl FnMut(&str)) -> Result<()> {
        let root = is_root();
        let sources = match apt_sources::debian_sources(Path::new("/etc/apt"), RELEASE) {
            sources if sources.is_empty() => apt_sources::default_sources(RELEASE),
            sources => sources,
        };
        apt_sources::check_keyrings(&sources)?;
        let mut tool = in_mount_namespace(root, &self.doing, &self.dir)
            .arg(if root { "--mode=root" } else { "--mode=unshare" })
            .args(["--variant=essential", "--format=null", "--architectures=amd64"])
            // Mounted, their owner and mode would be those of the building machine's, and no package needs them.
            .arg("--skip=chroot/mount/proc,chroot/mount/sys")
            .arg(format!("--include={}", self.packages.join(",")))
            .args(
                ["doc", "man", "info", "locale", "lintian", "bash-completion"]
                    .map(|f| format!("--dpkgopt=path-exclude=/usr/share/{f}/*")),
            )
            .args(["--aptopt=Acquire::Languages \"none\"", "--aptopt=Acquire::Retries \"3\""])
            .args(proxies().iter().map(|line| format!("--aptopt={line}")))
            .args(self.hooks.iter().map(|hook| format!("--customize-hook={hook}")))
            .args([RELEASE, "-"])
            .args(sources.iter().map(AptSource::to_line))
            .env("SOURCE_DATE_EPOCH", EPOCH)
            .env_remove("TMPDIR");
        for (name, value) in &self.env {
            tool = tool.env(name, value);
        }
        if root {
            // As an ordinary user the tree must lie where subordinate user ids may go, which a home folder is not.
            tool = tool.env("TMPDIR", self.scratch.path());
        }
        tool.run_with(progress, |line| {
            // mmdebstrap's own phases: "I: installing remaining packages inside the chroot..."
            if let Some(phase) = line.strip_prefix("I: ") {
                progress.detail(phase.trim_end_matches('.'));
            }
            on_line(line);
        })
        .map(drop)
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// mmdebstrap, as root in a mount namespace of its own, so that what it mounts in the tree is gone with it even if it is
/// killed. Root without the right to mount gets none and mounts nothing; an ordinary user gets one from mmdebstrap.
fn in_mount_namespace(root: bool, doing: &str, dir: &Path) -> Tool {
    let unshare = ["--mount", "--propagation", "private", "--"];
    let possible = root
        && std::process::Command::new("unshare").args(unshare).arg("true").output().is_ok_and(|o| o.status.success());
    match possible {
        true => Tool::new("unshare", doing, dir).shown_as("mmdebstrap").args(unshare).arg("mmdebstrap"),
        false => Tool::new("mmdebstrap", doing, dir),
    }
}

/// `text` as one word for a shell.
pub(crate) fn shell_quote(text: &Path) -> String {
    format!("'{}'", text.to_string_lossy().replace('\'', r"'\''"))
}

/// The proxies of the machine's own apt, which mmdebstrap does not look at.
fn proxies() -> Vec<String> {
    let dump = std::process::Command::new("apt-config").args(["dump", "--format", "%f \"%v\";%n"]).output();
    let dump = dump.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let is_proxy = |line: &&str| line.starts_with("Acquire::") && line.contains("::Proxy ") && !line.ends_with("\"\";");
    dump.lines().filter(is_proxy).map(str::to_owned).collect()
}

/// An ordinary user needs user namespaces, newuidmap, and subordinate ids.
fn check_namespaces() -> Result<()> {
    tool::require(&["newuidmap"], "making a Debian root file system without being root")?;
    let uid = rustix::process::geteuid().as_raw();
    let user = user_name(uid).unwrap_or_else(|| uid.to_string());
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = fs::read_to_string(file).unwrap_or_default();
        if !text.lines().any(|line| line.split(':').next().is_some_and(|name| name == user || name == uid.to_string()))
        {
            let reason = format!(
                "{file} gives {user} no subordinate ids; as root run: \
                 usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
            );
            return Err(Error::NoNamespaces { reason });
        }
    }
    let unshare = std::process::Command::new("unshare").args(["--user", "true"]).output();
    if unshare.is_ok_and(|o| !o.status.success()) {
        let reason = "user namespaces are switched off; as root run: sysctl kernel.unprivileged_userns_clone=1 \
                      user.max_user_namespaces=10000, or run this as root";
        return Err(Error::NoNamespaces { reason: reason.to_owned() });
    }
    Ok(())
}

fn user_name(uid: u32) -> Option<String> {
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_to_a_shell_survives_quotes() {
        assert_eq!(shell_quote(Path::new("/a b/it's")), r"'/a b/it'\''s'");
        let script = format!("x={}; printf %s \"$x\"", shell_quote(Path::new("a'b\"c$d")));
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(output.stdout, b"a'b\"c$d");
    }
}
