//! An apt of our own beside the machine's: its own sources, lists and cache below one folder, so that it needs no root,
//! works on a machine whose lists are old or empty, and changes nothing there.

use std::fs;
use std::path::{Path, PathBuf};

use crate::apt_sources::{self, AptSource};
use crate::control_file::{self, Stanza};
use crate::error::{Error, IoContext, Result};
use crate::progress::Progress;
use crate::tool::{self, Tool};

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Sets it up in `folder`, an empty one, for Debian `release`.
    pub(crate) fn new(folder: &Path, release: &str) -> Result<Self> {
        tool::require(&["apt-get", "apt-cache", "dpkg-deb"], "getting packages from Debian")?;
        let sources = match apt_sources::debian_sources(Path::new("/etc/apt"), release) {
            sources if sources.is_empty() => apt_sources::default_sources(release),
            sources => sources,
        };
        apt_sources::check_keyrings(&sources)?;
        let make = |name: &str| fs::create_dir_all(folder.join(name)).at("create", folder.join(name));
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).at("write", folder.join(name));
        make("state/lists/partial")?;
        make("cache/archives/partial")?;
        write("status", "")?;
        let lines: Vec<_> = sources.iter().map(AptSource::to_line).collect();
        write("sources.list", &(lines.join("\n") + "\n"))?;
        let at = folder.display();
        write(
            "apt.conf",
            &format!(
                "Dir::State \"{at}/state\";\nDir::State::status \"{at}/status\";\nDir::Cache \"{at}/cache\";\n\
                 Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
                 Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"/dev/null\";\n\
                 APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
                 Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n\
                 // The user _apt could not write below a home folder.\nAPT::Sandbox::User \"root\";\n"
            ),
        )?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Gets the lists of what there is.
    pub(crate) fn update(&self, progress: &dyn Progress) -> Result<()> {
        progress.step("asking Debian's mirror what it has");
        // A mirror that cannot be reached is only a warning without Error-Mode.
        self.tool("apt-get", "asking Debian's mirror what it has")
            .args(["-o", "APT::Update::Error-Mode=any", "update"])
            .run(progress)
            .map(drop)
    }

    /// What apt knows of a package's newest version.
    pub(crate) fn show(&self, package: &str, progress: &dyn Progress) -> Result<Stanza> {
        let output = self
            .tool("apt-cache", format!("looking for the package {package}"))
            .args(["--no-all-versions", "show", package])
            .run_with(progress, |_| {})?;
        let stanza = control_file::stanzas(&output.stdout).into_iter().next();
        stanza.ok_or_else(|| Error::malformed("apt's description", format!("there is none of {package}")))
    }

    /// Downloads a package into the folder `into` and gives its path.
    pub(crate) fn download(&self, package: &str, into: &Path, progress: &dyn Progress) -> Result<PathBuf> {
        progress.step(&format!("downloading {package}"));
        self.tool("apt-get", format!("downloading {package}"))
            .args(["-o", "APT::Status-Fd=1", "download", package])
            .dir(into)
            .run_with(progress, |line| match download_fraction(line) {
                Some(done) => progress.fraction(done),
                None => progress.detail(line),
            })?;
        let mut files = fs::read_dir(into).at("list", into)?.flatten().map(|e| e.path());
        let deb = files.find(|p| p.extension().is_some_and(|x| x == "deb"));
        deb.ok_or_else(|| Error::malformed("apt's download", format!("it left no .deb file of {package}")))
    }

    /// Downloads a package and all that it depends on, as if nothing were installed, and gives their paths.
    pub(crate) fn download_with_dependencies(&self, package: &str, progress: &dyn Progress) -> Result<Vec<PathBuf>> {
        progress.step(&format!("downloading {package} and what it needs"));
        self.tool("apt-get", format!("downloading {package} and what it needs"))
            .args(["-o", "APT::Status-Fd=1", "--no-install-recommends", "--download-only", "--yes", "install", package])
            .run_with(progress, |line| match download_fraction(line) {
                Some(done) => progress.fraction(done),
                None => progress.detail(line),
            })?;
        let archives = self.folder.join("cache/archives");
        let files = fs::read_dir(&archives).at("list", &archives)?.flatten().map(|e| e.path());
        Ok(files.filter(|p| p.extension().is_some_and(|x| x == "deb")).collect())
    }

    fn tool(&self, program: &str, doing: impl Into<String>) -> Tool {
        Tool::new(program, doing, &self.folder).arg("-c").arg(self.folder.join("apt.conf"))
    }
}

/// `dlstatus:1:43.21:Retrieving file 1 of 1`, as APT::Status-Fd has it (README.progress-reporting of apt).
fn download_fraction(line: &str) -> Option<f64> {
    let percent: f64 = line.strip_prefix("dlstatus:")?.split(':').nth(1)?.parse().ok()?;
    Some((percent / 100.0).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apts_progress_lines_are_read() {
        assert_eq!(download_fraction("dlstatus:1:50.0000:Retrieving file 1 of 1 (3s remaining)"), Some(0.5));
        assert_eq!(download_fraction("dlstatus:1:250:x"), Some(1.0));
        assert_eq!(download_fraction("Get:1 http://mirror.example/debian"), None);
        assert_eq!(download_fraction("dlstatus:broken"), None);
    }
}
