//! Suites: their manifests, and their images in the cache.
//!
//! There are those that are built in, and those that a user has added with a manifest of their own, which is kept with the
//! image. Each suite is an erofs image of its own, which a machine gets as a virtio-blk device behind the root image and the
//! agent mounts at `/opt/suites/NAME` (see [`kernel_arguments`]). So adding one takes as long as building it, and the
//! root image stays as it is.

mod build;
mod manifest;
mod suite_run;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, Key, KeyBuilder, sha256_file};
use crate::erofs;
use crate::error::{Error, IoContext, Result};
use crate::progress::Progress;

pub use build::has_static_library;
pub use manifest::{Build, Image, Manifest, Requires, Run, Tests, Upstream};
pub use suite_run::SuiteRun;

/// First folder below the cache's root.
pub const KIND: &str = "suite";
/// Changes when images are made in another way.
const RECIPE: &str = "2";
/// A user's manifest beside the image that was made with it.
const OWN_MANIFEST: &str = "manifest.toml";

/// A manifest's text, and files of ours that go into the suite's image: name, mode, content.
struct BuiltIn {
    manifest: &'static str,
    files: &'static [(&'static str, u32, &'static str)],
}

/// In the order in which a run takes them that names none.
const BUILT_IN: &[BuiltIn] = &[
    BuiltIn {
        manifest: include_str!("../../../suites/pjdfstest-rs.toml"),
        files: &[
            ("run", 0o755, include_str!("../../../suites/pjdfstest-rs/run")),
            ("list", 0o755, include_str!("../../../suites/pjdfstest-rs/list")),
            ("pjdfstest.toml", 0o644, include_str!("../../../suites/pjdfstest-rs/pjdfstest.toml")),
        ],
    },
    BuiltIn { manifest: include_str!("../../../suites/pjdfstest.toml"), files: &[] },
    BuiltIn {
        manifest: include_str!("../../../suites/fsx.toml"),
        files: &[
            ("run", 0o755, include_str!("../../../suites/fsx/run")),
            ("fsx.toml", 0o644, include_str!("../../../suites/fsx/fsx.toml")),
        ],
    },
    BuiltIn { manifest: include_str!("../../../suites/xfstests.toml"), files: &[] },
    BuiltIn { manifest: include_str!("../../../suites/unionmount.toml"), files: &[] },
    BuiltIn { manifest: include_str!("../../../suites/xfstests-overlay.toml"), files: &[] },
];

/// A suite that has been built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedSuite {
    /// What it is and how it is run.
    pub manifest: Manifest,
    /// Its erofs image.
    pub image: PathBuf,
    /// Of the image, hexadecimal.
    pub sha256: String,
    /// Where its source came from: crate and version, address and commit, or folder.
    pub origin: String,
}

#[derive(Serialize, Deserialize)]
struct Record {
    sha256: String,
    origin: String,
}

/// All manifests that there are: the built-in ones, the default suite's first, then those of suites that users added, by
/// name.
///
/// # Errors
/// The cache cannot be read.
pub fn manifests(cache: &Cache) -> Result<Vec<Manifest>> {
    // They are part of the program, and a test parses each of them.
    let mut all: Vec<Manifest> =
        BUILT_IN.iter().filter_map(|b| Manifest::parse("a built-in manifest", b.manifest).ok()).collect();
    let mut own = Vec::new();
    for entry in cache.list_kind(KIND)? {
        let path = entry.path.join(OWN_MANIFEST);
        if let Ok(text) = fs::read_to_string(&path) {
            own.push(Manifest::parse(&path.display().to_string(), &text)?);
        }
    }
    own.sort_by(|a, b| a.name.cmp(&b.name));
    all.extend(own);
    let others = all.clone();
    for manifest in &mut all {
        let other = others.iter().find(|other| other.name == manifest.files_of() && other.name != manifest.name);
        if let Some(other) = other {
            manifest.upstream.clone_from(&other.upstream);
            manifest.image.clone_from(&other.image);
        }
    }
    Ok(all)
}

/// The manifest of one suite.
///
/// # Errors
/// [`Error::UnknownSuite`].
pub fn manifest(cache: &Cache, name: &str) -> Result<Manifest> {
    let all = manifests(cache)?;
    let known = all.iter().map(|m| m.name.clone()).collect();
    all.into_iter().find(|m| m.name == name).ok_or_else(|| Error::UnknownSuite { name: name.to_owned(), known })
}

/// The suites that a run takes when none is named: those of the built-in ones that have been added, and the first in any case.
///
/// # Errors
/// The cache cannot be read.
pub fn default_suites(cache: &Cache) -> Result<Vec<Manifest>> {
    let all = manifests(cache)?.into_iter().filter(|manifest| built_in(&manifest.name).is_some());
    let is_there = |manifest: &Manifest| cache.get(KIND, &key(manifest.files_of())).is_some();
    Ok(all.enumerate().filter(|(place, manifest)| *place == 0 || is_there(manifest)).map(|(_, m)| m).collect())
}

/// The suite, if it has been added.
///
/// # Errors
/// There is no such suite, or its cache entry cannot be read.
pub fn find(cache: &Cache, name: &str) -> Result<Option<AddedSuite>> {
    let manifest = manifest(cache, name)?;
    cache.get(KIND, &key(manifest.files_of())).map(|dir| load(&dir, manifest)).transpose()
}

/// The suite, for a run: one that needs nothing but the crates registry is built when it is not there, any other must
/// have been added.
///
/// # Errors
/// There is no such suite, it has not been added ([`Error::SuiteNotAdded`], which says how), or its build fails.
pub fn ensure(cache: &Cache, name: &str, progress: &dyn Progress) -> Result<AddedSuite> {
    let manifest = manifest(cache, name)?;
    if let Some(dir) = cache.get(KIND, &key(manifest.files_of())) {
        return load(&dir, manifest);
    }
    match manifest.build {
        Build::CargoInstall { .. } => {
            let dir = cache.ensure(KIND, &key(name), progress, |dir| make(cache, &manifest, None, dir, progress))?;
            load(&dir, manifest)
        }
        Build::Source { .. } | Build::As { .. } => {
            let files = manifest.files_of().to_owned();
            let url = manifest.upstream.map(|u| u.url).unwrap_or_default();
            Err(Error::SuiteNotAdded {
                how: vec![
                    format!("vmm suite add {files}"),
                    format!("vmm suite add {files} --source DIR   (DIR: a checkout of {url})"),
                ],
                name: manifest.name,
            })
        }
    }
}

/// Builds the suite from the folder `source`, replacing it if it is there, or, without one, from where its manifest says
/// unless it is there: what a manifest names does not change.
///
/// # Errors
/// There is no such suite, its source cannot be had, its build fails, tools are missing.
pub fn add(cache: &Cache, name: &str, source: Option<&Path>, progress: &dyn Progress) -> Result<AddedSuite> {
    let own = cache.get(KIND, &key(name)).map(|dir| dir.join(OWN_MANIFEST)).filter(|path| path.is_file());
    if let Some(own) = own.filter(|_| built_in(name).is_none()) {
        // Once more, with the manifest that it was added with.
        return add_own(cache, name, &own, source, progress);
    }
    let manifest = manifest(cache, name)?;
    if manifest.files_of() != name {
        let added = add(cache, manifest.files_of(), source, progress)?;
        return Ok(AddedSuite { manifest, ..added });
    }
    let make = |dir: &Path| make(cache, &manifest, source, dir, progress);
    let dir = match source {
        Some(_) => cache.rebuild(KIND, &key(name), progress, make)?,
        None => cache.ensure(KIND, &key(name), progress, make)?,
    };
    load(&dir, manifest)
}

/// Builds a suite that is not built in, by the manifest in the file `path`, from the folder `source` or from where the
/// manifest says. It replaces one that the user added before under this name.
///
/// # Errors
/// The file is no manifest, or is one of another suite or of one that is built in ([`Error::UnfitManifest`]); else as
/// [`add`].
pub fn add_own(
    cache: &Cache,
    name: &str,
    path: &Path,
    source: Option<&Path>,
    progress: &dyn Progress,
) -> Result<AddedSuite> {
    let unfit = |reason: String| Error::UnfitManifest { path: path.to_path_buf(), reason };
    let mismatch = |reason: String| Err(unfit(reason));
    let text = fs::read_to_string(path).map_err(|e| unfit(format!("failed to read it: {e}")))?;
    let manifest = Manifest::parse("the manifest", &text).map_err(|error| match error {
        Error::Malformed { reason, .. } => unfit(reason),
        error => error,
    })?;
    if built_in(name).is_some() {
        return mismatch(format!("{name} is built in and has a manifest of its own; choose another name"));
    }
    if manifest.name != name {
        return mismatch(format!("it is the manifest of suite {}, not of {name}", manifest.name));
    }
    let dir = cache.rebuild(KIND, &key(name), progress, |dir| {
        make(cache, &manifest, source, dir, progress)?;
        fs::write(dir.join(OWN_MANIFEST), &text).at("write", dir.join(OWN_MANIFEST))
    })?;
    load(&dir, manifest)
}

/// Removes the suite's image; says whether there was one.
///
/// # Errors
/// There is no such suite, or it cannot be removed.
pub fn remove(cache: &Cache, name: &str) -> Result<bool> {
    let key = key(manifest(cache, name)?.files_of());
    if cache.get(KIND, &key).is_none() {
        return Ok(false);
    }
    cache.remove(KIND, key.as_str()).map(|()| true)
}

/// What the agent needs on the kernel command line to mount the images of `suites`, which must be the machine's block
/// devices behind the root image, in this order: `vmm.suite=NAME:/dev/vdb …`.
#[must_use]
pub fn kernel_arguments(suites: &[AddedSuite]) -> String {
    let devices = ('b'..='z').map(|letter| format!("/dev/vd{letter}"));
    let words = suites.iter().zip(devices).map(|(s, device)| format!("vmm.suite={}:{device}", s.manifest.name));
    words.collect::<Vec<_>>().join(" ")
}

fn built_in(name: &str) -> Option<&'static BuiltIn> {
    BUILT_IN.iter().find(|b| Manifest::parse("a built-in manifest", b.manifest).is_ok_and(|m| m.name == name))
}

fn key(name: &str) -> Key {
    let mut key = KeyBuilder::default().with("recipe", RECIPE).with("name", name);
    if let Some(suite) = built_in(name) {
        if let Ok(manifest) = Manifest::parse("a built-in manifest", suite.manifest) {
            key = with_build(key, &manifest);
        }
        for (file, mode, content) in suite.files {
            key = key.with("file", file).with("mode", mode.to_string()).with("content", content);
        }
    }
    key.finish()
}

/// What a suite is made of, and nothing of how it is run: another version of this program, which runs it otherwise, has no use
/// for building it again.
fn with_build(key: KeyBuilder, manifest: &Manifest) -> KeyBuilder {
    key.with("upstream", format!("{:?}", manifest.upstream)).with("build", format!("{:?}", manifest.build))
}

fn load(dir: &Path, manifest: Manifest) -> Result<AddedSuite> {
    let recorded = dir.join("suite.json");
    let text = fs::read(&recorded).at("read", &recorded)?;
    let record: Record =
        serde_json::from_slice(&text).map_err(|e| Error::malformed(recorded.display().to_string(), e))?;
    Ok(AddedSuite { manifest, image: dir.join("suite.erofs"), sha256: record.sha256, origin: record.origin })
}

fn make(cache: &Cache, manifest: &Manifest, source: Option<&Path>, dir: &Path, progress: &dyn Progress) -> Result<()> {
    let scratch = cache.scratch()?;
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).at("create", &tree)?;
    let built = build::build(cache, manifest, source, &tree, &scratch, progress)?;
    for (name, mode, content) in built_in(&manifest.name).map_or(&[][..], |b| b.files) {
        let path = tree.join(name);
        fs::write(&path, content).at("write", &path)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(*mode);
        fs::set_permissions(&path, mode).at("set the mode of", &path)?;
    }
    progress.step(&format!("packing {}", manifest.name));
    let image = dir.join("suite.erofs");
    erofs::make(&tree, &image, progress)?;
    let record = Record { sha256: sha256_file(&image)?, origin: built.origin };
    let text = serde_json::to_vec_pretty(&record).map_err(|e| Error::malformed("the suite's record", e))?;
    fs::write(dir.join("suite.json"), text).at("write", dir.join("suite.json"))
}

#[cfg(test)]
fn built_in_manifest(name: &str) -> Manifest {
    let parsed = BUILT_IN.iter().map(|b| Manifest::parse("a built-in manifest", b.manifest).unwrap());
    parsed.into_iter().find(|m| m.name == name).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn a_suite_is_built_again_for_another_commit_or_step_but_not_for_another_way_to_run_it() {
        let key = |change: fn(&mut Manifest)| {
            let mut manifest = built_in_manifest("xfstests");
            change(&mut manifest);
            with_build(KeyBuilder::default(), &manifest).finish()
        };
        let built = key(|_| ());
        assert_eq!(key(|m| m.run.argv.push("-d".into())), built);
        assert_eq!(key(|m| m.image.packages.clear()), built);
        assert_ne!(key(|m| m.upstream.as_mut().unwrap().commit = Some("another".into())), built);
        assert_ne!(key(|m| m.build = Build::As { suite: "pjdfstest".into() }), built);
    }

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("cache")).unwrap();
        (dir, cache)
    }

    #[test]
    fn without_a_name_the_built_in_suites_that_are_there_run() {
        let (_dir, cache) = cache();
        let names = |cache: &Cache| default_suites(cache).unwrap().into_iter().map(|m| m.name).collect::<Vec<_>>();
        assert_eq!(names(&cache), ["pjdfstest-rs"]);
        for name in ["xfstests", "mine"] {
            let _ = cache.ensure(KIND, &key(name), &Silent, |_| Ok(())).unwrap();
        }
        assert_eq!(names(&cache), ["pjdfstest-rs", "xfstests", "xfstests-overlay"]);
    }

    #[test]
    fn a_suite_that_is_not_there_says_how_to_add_it() {
        let (_dir, cache) = cache();
        let error = ensure(&cache, "pjdfstest", &Silent).unwrap_err().to_string();
        assert!(error.contains("vmm suite add pjdfstest\n") && error.contains("--source DIR"), "{error}");
        assert_eq!(find(&cache, "pjdfstest").unwrap(), None);
        assert!(!remove(&cache, "pjdfstest").unwrap());
    }

    #[test]
    fn an_unknown_suite_is_refused_with_those_there_are() {
        let (_dir, cache) = cache();
        let error = ensure(&cache, "xyz", &Silent).unwrap_err().to_string();
        assert!(error.contains("pjdfstest-rs, pjdfstest"), "{error}");
    }

    #[test]
    fn a_source_that_is_no_folder_or_no_checkout_of_the_suite_is_refused_and_leaves_nothing() {
        let (dir, cache) = cache();
        for source in ["absent", "cache"] {
            let error = add(&cache, "pjdfstest", Some(&dir.path().join(source)), &Silent).unwrap_err();
            // With the tools missing that is said first.
            let expected =
                matches!(error, Error::SuiteSource { .. } | Error::ToolFailed { .. } | Error::MissingTools { .. });
            assert!(expected, "{error}");
        }
        assert!(cache.list().unwrap().is_empty());
        assert_eq!(fs::read_dir(cache.root().join("tmp")).unwrap().count(), 0);
    }

    #[test]
    fn a_suite_that_runs_anothers_files_is_there_with_it_and_has_its_upstream_and_image() {
        let (_dir, cache) = cache();
        let of = |name: &str| manifest(&cache, name).unwrap();
        assert_eq!(of("xfstests-overlay").upstream, of("xfstests").upstream);
        assert_eq!(of("xfstests-overlay").image, of("xfstests").image);
        let error = ensure(&cache, "xfstests-overlay", &Silent).unwrap_err().to_string();
        assert!(error.contains("vmm suite add xfstests\n"), "{error}");
        let dir = cache.root().join(KIND).join(key("xfstests").as_str());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("suite.json"), r#"{"sha256":"s","origin":"o"}"#).unwrap();
        let added = ensure(&cache, "xfstests-overlay", &Silent).unwrap();
        assert_eq!((added.manifest.name.as_str(), added.image), ("xfstests-overlay", dir.join("suite.erofs")));
        assert!(find(&cache, "xfstests-overlay").unwrap().is_some());
    }

    /// A manifest of a suite that is one file, and the folder with it.
    fn own_suite(dir: &Path) -> (PathBuf, PathBuf) {
        let manifest = dir.join("mine.toml");
        let text = "name = 'mine'\ndescription = 'd'\nformat = 'exit-code'\n[build]\nmethod = 'source'\n\
                    steps = ['echo built > made']\n[run]\nargv = ['/opt/suites/mine/run']\ncwd = '/'\n";
        fs::write(&manifest, text).unwrap();
        let source = dir.join("mine");
        fs::create_dir_all(source.join(".git")).unwrap();
        fs::write(source.join("run"), "#!/bin/sh\n").unwrap();
        (manifest, source)
    }

    #[test]
    fn a_suite_of_the_users_own_is_known_and_found_once_it_is_added_and_forgotten_when_removed() {
        let (dir, cache) = cache();
        let (path, source) = own_suite(dir.path());
        assert!(matches!(manifest(&cache, "mine"), Err(Error::UnknownSuite { .. })));
        if crate::tool::find("mkfs.erofs").is_none() {
            eprintln!("mkfs.erofs is not installed: adding it was not tested");
            return;
        }
        let added = add_own(&cache, "mine", &path, Some(&source), &Silent).unwrap();
        assert!(added.image.is_file());
        assert_eq!(find(&cache, "mine").unwrap(), Some(added.clone()));
        assert_eq!(manifests(&cache).unwrap().last().unwrap().name, "mine");
        // Again by its name alone, from a source that changed.
        fs::write(source.join("more"), "x").unwrap();
        assert_ne!(add(&cache, "mine", Some(&source), &Silent).unwrap().sha256, added.sha256);
        assert!(remove(&cache, "mine").unwrap());
        assert!(matches!(find(&cache, "mine"), Err(Error::UnknownSuite { .. })));
    }

    #[test]
    fn a_manifest_under_another_name_or_under_a_built_in_one_is_refused() {
        let (dir, cache) = cache();
        let (path, source) = own_suite(dir.path());
        let error = add_own(&cache, "other", &path, Some(&source), &Silent).unwrap_err().to_string();
        assert!(error.contains("mine.toml") && error.contains("not of other"), "{error}");
        let error = add_own(&cache, "pjdfstest", &path, Some(&source), &Silent).unwrap_err().to_string();
        assert!(error.contains("built in"), "{error}");
    }

    #[test]
    fn a_build_that_fails_shows_the_end_of_what_it_said_and_where_all_of_it_is() {
        let (dir, cache) = cache();
        let (path, source) = own_suite(dir.path());
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("echo built > made", "seq 1 99; echo broken >&2; exit 3")).unwrap();
        let error = add_own(&cache, "mine", &path, Some(&source), &Silent).unwrap_err().to_string();
        let log = cache.root().join("logs/mine.log");
        assert!(error.contains("exit code 3") && error.contains("broken"), "{error}");
        assert!(error.contains(&log.display().to_string()) && !error.contains("\n1\n"), "{error}");
        assert!(fs::read_to_string(log).unwrap().contains("\n1\n"));
    }

    #[test]
    fn suites_are_mounted_from_the_devices_behind_the_root_image() {
        let suite = |name: &str| AddedSuite {
            manifest: manifest(&cache().1, name).unwrap(),
            image: PathBuf::new(),
            sha256: String::new(),
            origin: String::new(),
        };
        let text = kernel_arguments(&[suite("pjdfstest"), suite("pjdfstest-rs")]);
        assert_eq!(text, "vmm.suite=pjdfstest:/dev/vdb vmm.suite=pjdfstest-rs:/dev/vdc");
        assert_eq!(kernel_arguments(&[]), "");
    }
}
