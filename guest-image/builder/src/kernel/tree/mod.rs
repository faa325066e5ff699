//! Building a kernel from the user's tree, with our fragment merged into its configuration.
//!
//! The objects stay in a folder of the cache that belongs to the tree, so that the next build after an edit takes
//! seconds and the tree itself stays clean. The finished kernel is a cache entry named by what it was made of: an
//! unchanged tree with the same configuration is not built again.

mod fragment;
mod identity;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::cache::{Cache, Key, KeyBuilder, sha256_bytes};
use crate::debian_root::EPOCH;
use crate::error::{Error, IoContext, Result};
use crate::progress::Progress;
use crate::tool::{self, Tool};

use super::KernelConfig;

/// First folder below the cache's root: finished kernels.
pub(super) const KIND: &str = "built-kernel";
/// First folder below the cache's root: objects, kept from build to build.
pub(super) const OBJECTS: &str = "kernel-objects";
/// First folder below the cache's root: which finished kernel was last asked for from a tree.
const OF_TREE: &str = "kernel-of-tree";

/// What to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildRequest {
    /// The kernel tree.
    pub tree: PathBuf,
    /// The configuration to start from; without it `make tinyconfig`, so that what is built is what a guest needs.
    pub config: Option<PathBuf>,
    /// How many compilers run at once.
    pub jobs: usize,
    /// Leave out of the kernel's version which commit it is built from, so that two commits between which nothing of it
    /// changed give the same bytes.
    pub hide_commit: bool,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltKernel {
    /// The bzImage; its configuration is the file `config` beside it.
    pub image: PathBuf,
    /// Options of our fragment that the kernel did not take, as `CONFIG_X=y`: the tree is too old or too new for them, or
    /// the given configuration rules them out.
    pub vanished: Vec<String>,
    /// Whether it was in the cache.
    pub cached: bool,
}

/// Builds the kernel, or finds it built.
///
/// # Errors
/// Not a kernel tree, a tree with a build in it, missing tools, a compiler's error, no space.
pub fn build(cache: &Cache, request: &BuildRequest, progress: &dyn Progress) -> Result<BuiltKernel> {
    let tree = fs::canonicalize(&request.tree).at("find", &request.tree)?;
    check_tree(&tree)?;
    require_tools()?;
    let base = match &request.config {
        Some(path) => Some(fs::read_to_string(path).at("read", path)?),
        None => None,
    };
    progress.step(&format!("looking for changes in {}", tree.display()));
    let mut key = KeyBuilder::default()
        .with("tree", identity::of_tree(&tree, request.hide_commit)?)
        .with("base", base.as_deref().map_or_else(|| "tinyconfig".to_owned(), |b| sha256_bytes(b.as_bytes())))
        .with("fragment", fragment::text())
        .with("compiler", compiler_version());
    if request.hide_commit {
        key = key.with("version", "without commit");
    }
    let key = key.finish();
    let cached = cache.get(KIND, &key).is_some();
    let dir = cache.ensure(KIND, &key, progress, |dir| {
        let owner = KeyBuilder::default()
            .with("tree", tree.as_os_str().as_encoded_bytes())
            .with("base", if base.is_some() { "given" } else { "tinyconfig" })
            .finish();
        let objects = cache.workspace(OBJECTS, &owner, progress)?;
        compile(&tree, base.as_deref(), objects.path(), request, progress)?;
        let keep = |from: &str, to: &str| {
            let from = objects.path().join(from);
            fs::copy(&from, dir.join(to)).map(drop).at("copy", from)
        };
        keep("arch/x86/boot/bzImage", "bzImage")?;
        keep(".config", "config")
    })?;
    remember(cache, &tree, &dir, progress)?;
    let vanished = fragment::vanished(&KernelConfig::read(&dir.join("config"))?);
    Ok(BuiltKernel { image: dir.join("bzImage"), vanished, cached })
}

/// The bzImage that [`build`] last gave for the tree at this (canonical) path and when that was, if the cache still has it.
pub(super) fn last_built(cache: &Cache, tree: &Path) -> Option<(PathBuf, SystemTime)> {
    let entry = cache.get(OF_TREE, &key_of_tree(tree))?;
    let image = fs::canonicalize(entry.join("kernel")).ok()?.join("bzImage");
    let asked = fs::metadata(entry).and_then(|m| m.modified()).ok()?;
    image.is_file().then_some((image, asked))
}

/// Notes that `built` is what `tree` now comes to, also when it was built before: an edit may have been undone.
fn remember(cache: &Cache, tree: &Path, built: &Path, progress: &dyn Progress) -> Result<()> {
    let Ok(below_cache) = built.strip_prefix(cache.root()) else { return Ok(()) };
    let target = Path::new("../..").join(below_cache);
    cache.rebuild(OF_TREE, &key_of_tree(tree), progress, |dir| {
        let link = dir.join("kernel");
        std::os::unix::fs::symlink(&target, &link).at("link", link)
    })?;
    Ok(())
}

fn key_of_tree(tree: &Path) -> Key {
    KeyBuilder::default().with("tree", tree.as_os_str().as_encoded_bytes()).finish()
}

fn check_tree(tree: &Path) -> Result<()> {
    let wrong = |reason: &str| Err(Error::NoKernel { path: tree.to_owned(), reason: reason.to_owned() });
    if !tree.join("Kbuild").is_file() || !tree.join("scripts/kconfig/merge_config.sh").is_file() {
        return wrong("the folder is no kernel source tree");
    }
    // Kbuild refuses to build elsewhere from a tree that has been built in (its rule `outputmakefile`).
    if tree.join(".config").exists() || tree.join("include/config").exists() {
        return wrong(
            "the tree has a build of its own in it, so it cannot be built from; run `make mrproper` there (keep its \
             .config elsewhere and give it as --config), or boot what is in it with --kernel TREE",
        );
    }
    Ok(())
}

fn compile(
    tree: &Path,
    base: Option<&str>,
    objects: &Path,
    request: &BuildRequest,
    progress: &dyn Progress,
) -> Result<()> {
    let make = |doing: &str, targets: &[&str]| {
        let mut tool =
            Tool::new("make", doing, objects).dir(tree).arg(format!("O={}", objects.display())).args(targets);
        if tool::find("ccache").is_some() {
            tool = tool.arg("CC=ccache gcc");
        }
        // The same source gives the same bytes: without the last, however often it was linked before.
        for (name, value) in [("KBUILD_BUILD_USER", "vmm"), ("KBUILD_BUILD_HOST", "vmm"), ("KBUILD_BUILD_VERSION", "1")]
        {
            tool = tool.env(name, value);
        }
        if request.hide_commit {
            // scripts/setlocalversion then finds no repository, and adds nothing.
            tool = tool.env("GIT_DIR", objects.join("no-repository"));
        }
        tool.env("KBUILD_BUILD_TIMESTAMP", format!("@{EPOCH}")).run(progress)
    };
    progress.step("configuring the kernel");
    let start = objects.join("base.config");
    match base {
        Some(text) => fs::write(&start, text).at("write", &start)?,
        None => {
            make("configuring the kernel (make tinyconfig)", &["tinyconfig"])?;
            fs::copy(objects.join(".config"), &start).at("copy", objects.join(".config"))?;
        }
    }
    let fragment = objects.join("vmm.config");
    fs::write(&fragment, fragment::text()).at("write", &fragment)?;
    Tool::new("sh", "merging our options into the kernel's configuration", objects)
        .args(["scripts/kconfig/merge_config.sh", "-m", "-O"])
        .args([objects, &start, &fragment])
        .dir(tree)
        .run(progress)?;
    make("configuring the kernel (make olddefconfig)", &["olddefconfig"])?;
    check_tools_for(&KernelConfig::read(&objects.join(".config"))?)?;
    progress.step("building the kernel");
    make("building the kernel", &[&format!("-j{}", request.jobs.max(1)), "bzImage"]).map(drop)
}

/// Some options need more than a compiler; without it the build would end after minutes with a missing header.
fn check_tools_for(config: &KernelConfig) -> Result<()> {
    let header =
        |name: &str| ["/usr/include", "/usr/include/x86_64-linux-gnu"].iter().any(|d| Path::new(d).join(name).exists());
    let on = |option: &str| config.get(option) == Some("y");
    let mut missing = Vec::new();
    if on("OBJTOOL") && !header("libelf.h") {
        missing.push("libelf.h");
    }
    if (on("MODULE_SIG") || on("SYSTEM_TRUSTED_KEYRING")) && !header("openssl/evp.h") {
        missing.push("openssl/evp.h");
    }
    let packers = [
        ("KERNEL_ZSTD", "zstd"),
        ("KERNEL_LZ4", "lz4"),
        ("KERNEL_XZ", "xz"),
        ("KERNEL_LZO", "lzop"),
        ("DEBUG_INFO_BTF", "pahole"),
    ];
    missing.extend(
        packers.iter().filter(|(option, tool)| on(option) && tool::find(tool).is_none()).map(|&(_, tool)| tool),
    );
    if missing.is_empty() { Ok(()) } else { Err(tool::missing(&missing, "building a kernel with this configuration")) }
}

/// Looks whether everything is installed that building any kernel takes.
///
/// # Errors
/// [`Error::MissingTools`], with the packages that have what is missing.
pub fn require_tools() -> Result<()> {
    tool::require(&["make", "gcc", "ld", "flex", "bison", "bc", "perl"], "building a kernel")
}

fn compiler_version() -> String {
    let asked = std::process::Command::new("gcc").arg("--version").output();
    asked.map(|o| String::from_utf8_lossy(&o.stdout).lines().next().unwrap_or_default().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    fn request(tree: &Path) -> BuildRequest {
        BuildRequest { tree: tree.to_owned(), config: None, jobs: 1, hide_commit: false }
    }

    #[test]
    fn the_kernel_last_asked_for_is_remembered_for_its_tree_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("cache")).unwrap();
        let tree = dir.path().join("linux");
        assert_eq!(last_built(&cache, &tree), None);
        let built = ["old", "new"].map(|name| {
            let key = KeyBuilder::default().with("tree", name).finish();
            let write = |dir: &Path| fs::write(dir.join("bzImage"), name).at("write", dir);
            (cache.ensure(KIND, &key, &Silent, write).unwrap(), key)
        });
        for (entry, _) in [&built[0], &built[1], &built[0]] {
            remember(&cache, &tree, entry, &Silent).unwrap();
            let (image, _) = last_built(&cache, &tree).unwrap();
            assert_eq!(image, fs::canonicalize(entry).unwrap().join("bzImage"));
        }
        assert_eq!(last_built(&cache, &dir.path().join("other")), None);
        cache.remove(KIND, built[0].1.as_str()).unwrap();
        assert_eq!(last_built(&cache, &tree), None);
    }

    #[test]
    fn a_folder_that_is_no_tree_and_a_tree_with_a_build_in_it_are_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("cache")).unwrap();
        let tree = dir.path().join("linux");
        fs::create_dir_all(tree.join("scripts/kconfig")).unwrap();
        let error = build(&cache, &request(&tree), &Silent).unwrap_err().to_string();
        assert!(error.contains("no kernel source tree"), "{error}");
        for file in ["Kbuild", "scripts/kconfig/merge_config.sh", ".config"] {
            fs::write(tree.join(file), "").unwrap();
        }
        let error = build(&cache, &request(&tree), &Silent).unwrap_err().to_string();
        assert!(error.contains("make mrproper"), "{error}");
        let absent = build(&cache, &request(&dir.path().join("absent")), &Silent).unwrap_err().to_string();
        assert!(absent.contains("absent"), "{absent}");
    }
}
