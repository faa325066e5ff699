//! The lock file of a root image: every package in it, with version and hash.

use serde::{Deserialize, Serialize};

use crate::control_file;
use crate::error::{Error, Result};

/// One package of an image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LockedPackage {
    /// Name, as `libc6`.
    pub name: String,
    /// Version, with epoch.
    pub version: String,
    /// `amd64` or `all`.
    pub architecture: String,
    /// Of the `.deb` file, hexadecimal.
    pub sha256: String,
}

/// All packages of an image, sorted by name. TOML on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// The Debian release.
    pub release: String,
    /// Sorted by name.
    #[serde(rename = "package")]
    pub packages: Vec<LockedPackage>,
}

impl Lock {
    /// Joins dpkg's list of what is installed (`name version architecture` a line) with the stanzas that apt has for it.
    ///
    /// # Errors
    /// [`Error::Malformed`] when apt does not know a package that is installed: it could not be told which bytes it was
    /// made of.
    pub(super) fn new(release: &str, installed: &str, stanzas: &str) -> Result<Self> {
        let known = control_file::stanzas(stanzas);
        let mut packages = Vec::new();
        for line in installed.lines() {
            let mut words = line.split(' ');
            let (Some(name), Some(version), Some(architecture)) = (words.next(), words.next(), words.next()) else {
                return Err(Error::malformed("dpkg's list of packages", format!("line {line:?}")));
            };
            let name = name.split(':').next().unwrap_or(name);
            let sha256 = known
                .iter()
                .find(|s| {
                    (s.get("Package"), s.get("Version"), s.get("Architecture"))
                        == (Some(name), Some(version), Some(architecture))
                })
                .and_then(|s| s.get("SHA256"))
                .ok_or_else(|| Error::malformed("apt's list of packages", format!("{name} {version} has no SHA256")))?;
            packages.push(LockedPackage {
                name: name.to_owned(),
                version: version.to_owned(),
                architecture: architecture.to_owned(),
                sha256: sha256.to_owned(),
            });
        }
        packages.sort();
        Ok(Self { release: release.to_owned(), packages })
    }

    /// Reads the file's text.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|e| Error::malformed("the lock file", e))
    }

    /// The file's text.
    ///
    /// # Errors
    /// [`Error::Malformed`], which its content cannot cause.
    pub fn to_text(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::malformed("the lock file", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "Package: libb\nVersion: 1:2-3\nArchitecture: amd64\nSHA256: bb\n\n\
                           Package: a\nVersion: 2\nArchitecture: all\nSHA256: a2\n\n\
                           Package: a\nVersion: 1\nArchitecture: all\nSHA256: a1\n";

    #[test]
    fn each_installed_package_gets_the_hash_of_its_own_version() {
        let lock = Lock::new("bookworm", "libb:amd64 1:2-3 amd64\na 1 all\n", STANZAS).unwrap();
        let told: Vec<_> = lock.packages.iter().map(|p| (p.name.as_str(), p.sha256.as_str())).collect();
        assert_eq!(told, [("a", "a1"), ("libb", "bb")]);
        assert_eq!(Lock::parse(&lock.to_text().unwrap()).unwrap(), lock);
    }

    #[test]
    fn a_package_that_apt_does_not_know_is_an_error() {
        let error = Lock::new("bookworm", "a 3 all\n", STANZAS).unwrap_err().to_string();
        assert!(error.contains("a 3"), "{error}");
    }

    #[test]
    fn a_lock_file_that_is_none_is_refused() {
        assert!(matches!(Lock::parse("package = 3"), Err(Error::Malformed { .. })));
    }
}
