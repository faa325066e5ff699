//! Kernels from Debian's packages, downloaded and unpacked without installing them.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::apt::Apt;
use crate::cache::{Cache, Key, KeyBuilder, sha256_file};
use crate::error::{Error, IoContext, Result};
use crate::kernel_image;
use crate::modules::ModuleIndex;
use crate::progress::Progress;
use crate::tool::Tool;

use super::{DebianKernel, KIND, Kernel, needs};

const RELEASE: &str = "bookworm";
/// Changes when what is kept of a package does.
const RECIPE: &str = "2";

/// What a cache entry says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Origin {
    release: String,
    package: String,
    version: String,
    /// Of the package's file.
    deb_sha256: String,
    /// Of the kernel's file in it.
    sha256: String,
}

pub(super) fn resolve(cache: &Cache, kernel: DebianKernel, progress: &dyn Progress) -> Result<Kernel> {
    load(&cache.ensure(KIND, &key(kernel), progress, |dir| build(cache, kernel, dir, progress))?)
}

pub(super) fn refresh(cache: &Cache, kernel: DebianKernel, progress: &dyn Progress) -> Result<Kernel> {
    load(&cache.rebuild(KIND, &key(kernel), progress, |dir| build(cache, kernel, dir, progress))?)
}

fn key(kernel: DebianKernel) -> Key {
    let modules = needs::all_names().collect::<Vec<_>>().join(" ");
    KeyBuilder::default().with("debian", kernel.metapackage()).with("recipe", RECIPE).with("modules", modules).finish()
}

fn load(dir: &Path) -> Result<Kernel> {
    let recorded = dir.join("origin.json");
    let text = fs::read(&recorded).at("read", &recorded)?;
    let origin: Origin =
        serde_json::from_slice(&text).map_err(|e| Error::malformed(recorded.display().to_string(), e))?;
    Ok(Kernel {
        vmlinux: dir.join("vmlinux"),
        image: dir.join("vmlinuz"),
        release: origin.release,
        modules: Some(dir.join("modules")),
        config: Some(dir.join("config")),
        sha256: origin.sha256,
    })
}

fn build(cache: &Cache, kernel: DebianKernel, dir: &Path, progress: &dyn Progress) -> Result<()> {
    let scratch = cache.scratch()?;
    let apt = Apt::new(&scratch.folder("apt")?, RELEASE)?;
    apt.update(progress)?;
    let meta = apt.show(kernel.metapackage(), progress)?;
    let package = image_package(meta.get("Depends").unwrap_or_default())
        .ok_or_else(|| Error::malformed(format!("package {}", kernel.metapackage()), "it depends on no linux-image"))?;
    let described = apt.show(&package, progress)?;
    let deb = apt.download(&package, &scratch.folder("deb")?, progress)?;

    progress.step(&format!("unpacking {package}"));
    let tree = scratch.folder("tree")?;
    Tool::new("dpkg-deb", format!("unpacking {package}"), scratch.path())
        .arg("-x")
        .args([&deb, &tree])
        .run(progress)?;
    let vmlinuz = find_vmlinuz(&tree.join("boot"))?;
    let unpacked = kernel_image::unpack_to(&vmlinuz, &dir.join("vmlinux"))?;
    let release = unpacked.release;
    copy(&vmlinuz, &dir.join("vmlinuz"))?;
    copy(&tree.join("boot").join(format!("config-{release}")), &dir.join("config"))?;
    let modules = ["lib/modules", "usr/lib/modules"].map(|m| tree.join(m).join(&release));
    let modules = modules.into_iter().find(|m| m.is_dir());
    let modules = modules.ok_or_else(|| Error::malformed(&package, "it has no folder of modules"))?;
    keep_modules(kernel, &modules, &dir.join("modules"))?;

    let origin = Origin {
        release,
        version: described.get("Version").unwrap_or_default().to_owned(),
        package,
        deb_sha256: sha256_file(&deb)?,
        sha256: sha256_file(&vmlinuz)?,
    };
    if described.get("SHA256") != Some(&origin.deb_sha256) {
        return Err(Error::malformed(deb.display().to_string(), "its SHA-256 is not the one that the mirror signed"));
    }
    let text = serde_json::to_vec_pretty(&origin).map_err(|e| Error::malformed("the kernel's origin", e))?;
    fs::write(dir.join("origin.json"), text).at("write", dir.join("origin.json"))
}

/// From a metapackage's `Depends`: the first `linux-image-…`, without its version.
fn image_package(depends: &str) -> Option<String> {
    let name = |d: &str| d.split_whitespace().next().map(str::to_owned);
    depends.split([',', '|']).filter_map(name).find(|n| n.starts_with("linux-image-"))
}

fn find_vmlinuz(boot: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(boot).at("list", boot)?;
    let mut files = entries.flatten().map(|e| e.path());
    let is_vmlinuz = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz-"));
    files.find(is_vmlinuz).ok_or_else(|| Error::malformed("the kernel's package", "it has no boot/vmlinuz-*"))
}

/// Keeps the modules that may be needed, unpacked, and the list of what is built in. Of a kernel for guests that is all of
/// them, as suites may name any; Debian's full kernel, with its thousands, only runs emulated hosts.
fn keep_modules(kernel: DebianKernel, from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to).at("create", to)?;
    copy(&from.join("modules.builtin"), &to.join("modules.builtin"))?;
    let index = ModuleIndex::scan(from);
    let wanted = match kernel {
        DebianKernel::Full6_12 => needs::all_names().collect(),
        DebianKernel::Cloud6_1 | DebianKernel::Cloud6_12 => index.names(),
    };
    for module in index.closure(wanted)? {
        let path = to.join(format!("{}.ko", module.name));
        fs::write(&path, &module.bytes).at("write", path)?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).at("copy", from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_package_is_found_behind_the_metapackage() {
        let depends = "linux-image-6.12.117+deb12-cloud-amd64 (= 6.12.117-1~deb12u1)";
        assert_eq!(image_package(depends).unwrap(), "linux-image-6.12.117+deb12-cloud-amd64");
        assert_eq!(image_package("kmod, linux-image-a | linux-image-b").unwrap(), "linux-image-a");
        assert_eq!(image_package("initramfs-tools"), None);
    }

    #[test]
    fn each_kernel_has_a_cache_entry_of_its_own() {
        assert_ne!(key(DebianKernel::Cloud6_1), key(DebianKernel::Cloud6_12));
        assert_ne!(key(DebianKernel::Full6_12), key(DebianKernel::Cloud6_12));
    }
}
