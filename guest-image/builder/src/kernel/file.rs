//! Kernels that the user has: a file, or a tree in which one was built.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{Cache, KeyBuilder};
use crate::error::{Error, IoContext, Result};
use crate::kernel_image::{self, KernelFormat};
use crate::progress::Progress;

use super::{Kernel, tree};

/// First folder below the cache's root: what was taken out of kernels of the user's.
const KIND: &str = "unpacked-kernel";

pub(super) fn resolve(cache: &Cache, path: &Path, progress: &dyn Progress) -> Result<Kernel> {
    let image = if path.is_dir() { newest_of_tree(cache, path)? } else { path.to_owned() };
    // Identified before it is read as a whole, so that a wrong file is refused at once.
    let kernel = kernel_image::identify(&image)?;
    let image = fs::canonicalize(&image).at("find", &image)?;
    let sha256 = cache.sha256_of(&image)?;
    let key = KeyBuilder::default().with("kernel", &sha256).finish();
    let entry = cache.ensure(KIND, &key, progress, |dir| {
        let vmlinux = match kernel.format {
            KernelFormat::BzImage => {
                progress.step("unpacking the kernel");
                let vmlinux = dir.join("vmlinux");
                kernel_image::unpack_to(&image, &vmlinux)?;
                vmlinux
            }
            KernelFormat::Vmlinux => image.clone(),
        };
        match kernel_image::embedded_config(&vmlinux)? {
            Some(config) => fs::write(dir.join("config"), config).at("write", dir.join("config")),
            None => Ok(()),
        }
    })?;
    let unpacked = entry.join("vmlinux");
    let release = kernel.release;
    Ok(Kernel {
        vmlinux: if unpacked.exists() { unpacked } else { image.clone() },
        config: config_candidates(&image, &entry, &release).into_iter().find(|p| p.is_file()),
        modules: module_candidates(&image, &release)
            .into_iter()
            .find(|p| p.join("modules.order").is_file() || p.join("modules.builtin").is_file()),
        image,
        release,
        sha256,
    })
}

/// The newest of the kernels that a tree may have: built in it, or by `vmm kernel build` from it.
fn newest_of_tree(cache: &Cache, tree: &Path) -> Result<PathBuf> {
    let in_tree = |name: &str| {
        let path = tree.join(name);
        let changed = fs::metadata(&path).ok().filter(fs::Metadata::is_file)?.modified().ok()?;
        Some((path, changed))
    };
    let built = fs::canonicalize(tree).ok().and_then(|tree| tree::last_built(cache, &tree));
    // Of two in the tree that are equally new the bzImage is taken: it is made of the other.
    let candidates = [built, in_tree("vmlinux"), in_tree("arch/x86/boot/bzImage")];
    let newest = candidates.into_iter().flatten().max_by_key(|(_, changed)| *changed);
    newest.map(|(path, _)| path).ok_or_else(|| Error::NoKernel {
        path: tree.to_owned(),
        reason: "the folder has neither arch/x86/boot/bzImage nor vmlinux; build it first, as with: vmm kernel build \
                 --tree DIR"
            .to_owned(),
    })
}

/// The tree in which `image` was built, if it lies where a build puts it.
fn tree_of(image: &Path) -> Option<PathBuf> {
    let tree = match image.file_name()?.to_str()? {
        "bzImage" => image.parent()?.ancestors().find(|a| a.join("arch/x86/boot/bzImage") == *image)?,
        "vmlinux" => image.parent()?,
        _ => return None,
    };
    tree.join(".config").is_file().then(|| tree.to_owned())
}

fn config_candidates(image: &Path, entry: &Path, release: &str) -> Vec<PathBuf> {
    // What the kernel itself carries cannot be another kernel's.
    let mut candidates = vec![entry.join("config")];
    candidates.extend(tree_of(image).map(|t| t.join(".config")));
    if let Some(folder) = image.parent() {
        candidates.push(folder.join(format!("config-{release}")));
        candidates.push(folder.join("config"));
    }
    candidates.push(PathBuf::from(format!("/lib/modules/{release}/config")));
    candidates
}

fn module_candidates(image: &Path, release: &str) -> Vec<PathBuf> {
    let mut candidates: Vec<PathBuf> = tree_of(image).into_iter().collect();
    if let Some(folder) = image.parent() {
        candidates.push(folder.join("modules"));
        for base in [Some(folder), folder.parent()].into_iter().flatten() {
            candidates.extend(["lib/modules", "usr/lib/modules"].map(|m| base.join(m).join(release)));
        }
    }
    candidates.push(Path::new("/lib/modules").join(release));
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(path: &Path, seconds: u64) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = fs::File::create(path).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn the_newest_kernel_of_a_tree_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("cache")).unwrap();
        let tree = dir.path().join("linux");
        let newest = || newest_of_tree(&cache, &tree);
        assert!(matches!(newest(), Err(Error::NoKernel { .. })));
        for (name, seconds) in [("vmlinux", 100), ("arch/x86/boot/bzImage", 100), ("vmlinux", 101)] {
            touch(&tree.join(name), seconds);
            assert_eq!(newest().unwrap(), tree.join(name));
        }
    }

    #[test]
    fn modules_and_config_are_looked_for_where_debian_and_a_tree_have_them() {
        let modules = module_candidates(Path::new("/pkg/boot/vmlinuz-6.12"), "6.12");
        assert!(modules.contains(&PathBuf::from("/pkg/lib/modules/6.12")));
        assert_eq!(modules.last().unwrap(), Path::new("/lib/modules/6.12"));
        let tree = tempfile::tempdir().unwrap();
        touch(&tree.path().join(".config"), 1);
        touch(&tree.path().join("arch/x86/boot/bzImage"), 1);
        let image = tree.path().join("arch/x86/boot/bzImage");
        assert_eq!(module_candidates(&image, "6.12")[0], tree.path());
        assert!(config_candidates(&image, Path::new("/entry"), "6.12").contains(&tree.path().join(".config")));
    }

    #[test]
    fn a_text_file_is_no_kernel_and_leaves_nothing_in_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("cache")).unwrap();
        let text = dir.path().join("text");
        fs::write(&text, "hello").unwrap();
        assert!(matches!(resolve(&cache, &text, &crate::Silent), Err(Error::KernelImage(_))));
        assert!(resolve(&cache, &dir.path().join("absent"), &crate::Silent).is_err());
        assert!(cache.list().unwrap().is_empty());
    }
}
