//! What the machine's own apt configuration says about where Debian comes from, so that an image is fetched from the
//! mirror that is near, or allowed. Both formats of sources.list(5): one line per source, and deb822.

use std::fs;
use std::path::{Path, PathBuf};

use crate::control_file;
use crate::error::Result;
use crate::tool;

/// One archive with some of its suites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AptSource {
    /// Base of the archive, with scheme.
    pub(crate) uri: String,
    /// `bookworm`, `bookworm-security`…
    pub(crate) suite: String,
    /// `main`…
    pub(crate) components: Vec<String>,
    /// `Signed-By`: a keyring's path, or none for apt's own trusted keys.
    pub(crate) signed_by: Option<String>,
}

impl AptSource {
    /// The source as one line of sources.list(5).
    pub(crate) fn to_line(&self) -> String {
        let options = self.signed_by.as_ref().map_or_else(String::new, |k| format!(" [signed-by={k}]"));
        format!("deb{options} {} {} {}", self.uri, self.suite, self.components.join(" "))
    }
}

/// The archives that hold Debian `codename` (itself, its updates and its security fixes), as the machine's own apt
/// reads them from below `etc_apt` (`/etc/apt`). A machine that runs another release has its mirrors asked for
/// `codename` instead. Empty when the machine has none, as on another distribution.
pub(crate) fn debian_sources(etc_apt: &Path, codename: &str) -> Vec<AptSource> {
    let mut sources: Vec<AptSource> = Vec::new();
    for source in files(etc_apt).iter().flat_map(|path| parse_file(path)) {
        let Some(suite) = translate_suite(&source.suite, codename) else { continue };
        if !source.components.iter().any(|c| c == "main") {
            continue;
        }
        let source = AptSource { suite, components: vec!["main".to_owned()], ..source };
        if !sources.contains(&source) {
            sources.push(source);
        }
    }
    // Without the release itself its updates are of no use.
    if sources.iter().any(|s| s.suite == codename) { sources } else { Vec::new() }
}

/// Debian's own archive, for machines that have no sources of their own for it.
pub(crate) fn default_sources(codename: &str) -> Vec<AptSource> {
    let source = |uri: &str, suffix: &str| AptSource {
        uri: uri.to_owned(),
        suite: format!("{codename}{suffix}"),
        components: vec!["main".to_owned()],
        signed_by: Some("/usr/share/keyrings/debian-archive-keyring.gpg".to_owned()),
    };
    vec![
        source("http://deb.debian.org/debian", ""),
        source("http://deb.debian.org/debian", "-updates"),
        source("http://security.debian.org/debian-security", "-security"),
    ]
}

/// Fails with the package to install when a keyring is not there, as Debian's is not on other distributions.
pub(crate) fn check_keyrings(sources: &[AptSource]) -> Result<()> {
    let keyrings = sources.iter().filter_map(|s| s.signed_by.as_deref());
    match keyrings.into_iter().find(|k| !Path::new(k.split(',').next().unwrap_or(k)).exists()) {
        Some(_) => Err(tool::missing(&["debian-archive-keyring.gpg"], "checking Debian's signatures")),
        None => Ok(()),
    }
}

const RELEASES: &[&str] = &["bookworm", "trixie", "forky", "sid", "unstable", "testing", "stable", "oldstable"];

fn translate_suite(suite: &str, codename: &str) -> Option<String> {
    let release =
        RELEASES.iter().find(|r| suite.strip_prefix(**r).is_some_and(|s| s.is_empty() || s.starts_with('-')))?;
    match &suite[release.len()..] {
        suffix @ ("" | "-updates" | "-security") => Some(format!("{codename}{suffix}")),
        _ => None,
    }
}

fn files(etc_apt: &Path) -> Vec<PathBuf> {
    let mut parts: Vec<_> = fs::read_dir(etc_apt.join("sources.list.d"))
        .map(|dir| dir.flatten().map(|e| e.path()).collect())
        .unwrap_or_default();
    parts.retain(|p: &PathBuf| p.extension().is_some_and(|x| x == "list" || x == "sources"));
    parts.sort();
    parts.insert(0, etc_apt.join("sources.list"));
    parts
}

fn parse_file(path: &Path) -> Vec<AptSource> {
    let Ok(text) = fs::read_to_string(path) else { return Vec::new() };
    if path.extension().is_some_and(|x| x == "sources") { parse_deb822(&text) } else { parse_one_line(&text) }
}

/// The one-line format: `deb [option=value …] URI SUITE COMPONENT…`.
fn parse_one_line(text: &str) -> Vec<AptSource> {
    text.lines().filter_map(|line| parse_line(line.split('#').next().unwrap_or_default())).collect()
}

fn parse_line(line: &str) -> Option<AptSource> {
    let rest = line.trim().strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_owned);
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(AptSource { uri: words.next()?, suite: words.next()?, components: words.collect(), signed_by })
}

/// The deb822 format: stanzas of fields, each of URIs and Suites possibly many.
fn parse_deb822(text: &str) -> Vec<AptSource> {
    let mut sources = Vec::new();
    for stanza in control_file::stanzas(text) {
        let words = |name: &str| stanza.get(name).unwrap_or_default().split_whitespace().map(str::to_owned);
        let disabled = stanza.get("Enabled").is_some_and(|v| ["no", "false", "off", "0"].contains(&v.trim()));
        if disabled || !words("Types").any(|t| t == "deb") {
            continue;
        }
        // A key that stands in the file itself cannot be named on one line; apt's trusted keys have Debian's too.
        let signed_by = stanza.get("Signed-By").map(str::trim).filter(|v| v.starts_with('/')).map(str::to_owned);
        for uri in words("URIs") {
            for suite in words("Suites") {
                let components = words("Components").collect();
                sources.push(AptSource { uri: uri.clone(), suite, components, signed_by: signed_by.clone() });
            }
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc_apt(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn lines(dir: &tempfile::TempDir, codename: &str) -> Vec<String> {
        debian_sources(dir.path(), codename).iter().map(AptSource::to_line).collect()
    }

    #[test]
    fn one_line_sources_are_read_with_their_options_and_without_comments() {
        let dir = etc_apt(&[(
            "sources.list",
            "# deb http://commented.example/debian bookworm main\n\
             deb [arch=amd64 signed-by=/keys/debian.gpg] http://mirror.example/debian bookworm main contrib # near\n\
             deb-src http://mirror.example/debian bookworm main\n\
             deb http://mirror.example/debian-security bookworm-security main\n",
        )]);
        assert_eq!(
            lines(&dir, "bookworm"),
            [
                "deb [signed-by=/keys/debian.gpg] http://mirror.example/debian bookworm main",
                "deb http://mirror.example/debian-security bookworm-security main"
            ]
        );
    }

    #[test]
    fn deb822_sources_are_read_with_comments_many_suites_and_disabled_stanzas() {
        let dir = etc_apt(&[(
            "sources.list.d/debian.sources",
            "Types: deb deb-src\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
             Components: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
             Types: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\nEnabled: no\n",
        )]);
        let key = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]";
        assert_eq!(
            lines(&dir, "bookworm"),
            [
                format!("deb {key} http://mirror.example/debian bookworm main"),
                format!("deb {key} http://mirror.example/debian bookworm-updates main")
            ]
        );
    }

    #[test]
    fn other_peoples_archives_are_left_out() {
        let dir = etc_apt(&[
            ("sources.list", "deb http://mirror.example/debian bookworm main\n"),
            ("sources.list.d/a.list", "deb https://download.example/linux/debian bookworm stable\n"),
            ("sources.list.d/b.list", "deb https://packages.example/apt cloud-sdk-bookworm main\n"),
            (
                "sources.list.d/c.sources",
                "Types: deb\nURIs: https://node.example\nSuites: nodistro\nComponents: main\n",
            ),
        ]);
        assert_eq!(lines(&dir, "bookworm"), ["deb http://mirror.example/debian bookworm main"]);
    }

    #[test]
    fn a_machine_with_another_release_has_its_mirror_asked_for_ours() {
        let dir = etc_apt(&[("sources.list", "deb http://mirror.example/debian trixie main\n")]);
        assert_eq!(lines(&dir, "bookworm"), ["deb http://mirror.example/debian bookworm main"]);
    }

    #[test]
    fn a_machine_without_debian_sources_has_none() {
        let dir = etc_apt(&[("sources.list", "deb http://archive.example/ubuntu noble main universe\n")]);
        assert!(lines(&dir, "bookworm").is_empty());
        assert!(debian_sources(Path::new("/nonexistent"), "bookworm").is_empty());
    }

    #[test]
    fn lines_that_are_no_source_are_passed_over() {
        assert!(parse_one_line("deb\ndeb \ndeb [broken http://x y z\ndebug http://x y z\n").is_empty());
    }
}
