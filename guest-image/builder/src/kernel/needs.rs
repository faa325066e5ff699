//! What our kernels must be able to do, as modules or built in.

use crate::error::{Error, Result};
use crate::initramfs::InitramfsKind;
use crate::modules::{Module, ModuleIndex, module_name};

use super::{Kernel, KernelConfig};

/// One ability.
struct Need {
    module: &'static str,
    /// The option that gives it, without `CONFIG_`.
    option: &'static str,
    required: bool,
}

const fn required(module: &'static str, option: &'static str) -> Need {
    Need { module, option, required: true }
}

const fn wanted(module: &'static str, option: &'static str) -> Need {
    Need { module, option, required: false }
}

/// crc32c comes first: erofs and ext4 look it up by name when they start, which no dependency tells.
const GUEST: &[Need] = &[
    wanted("crc32c_generic", "CRYPTO_CRC32C"),
    required("virtio_pci", "VIRTIO_PCI"),
    required("virtio_blk", "VIRTIO_BLK"),
    required("erofs", "EROFS_FS"),
    required("vmw_vsock_virtio_transport", "VIRTIO_VSOCKETS"),
    required("fuse", "FUSE_FS"),
    required("virtiofs", "VIRTIO_FS"),
    wanted("overlay", "OVERLAY_FS"),
];

const EMULATED_HOST: &[Need] = &[
    wanted("crc32c_generic", "CRYPTO_CRC32C"),
    required("virtio_pci", "VIRTIO_PCI"),
    required("virtio_console", "VIRTIO_CONSOLE"),
    required("virtio_blk", "VIRTIO_BLK"),
    required("9pnet_virtio", "NET_9P_VIRTIO"),
    required("9p", "9P_FS"),
    required("ext4", "EXT4_FS"),
    required("kvm", "KVM"),
    required("kvm_amd", "KVM_AMD"),
    wanted("xfs", "XFS_FS"),
    wanted("loop", "BLK_DEV_LOOP"),
    wanted("fuse", "FUSE_FS"),
    wanted("overlay", "OVERLAY_FS"),
];

fn of(kind: InitramfsKind) -> &'static [Need] {
    match kind {
        InitramfsKind::Guest => GUEST,
        InitramfsKind::EmulatedHost => EMULATED_HOST,
    }
}

/// Every module that any kind of initramfs may want.
pub(crate) fn all_names() -> impl Iterator<Item = &'static str> {
    GUEST.iter().chain(EMULATED_HOST).map(|n| n.module)
}

/// The modules that `kernel` needs to be loaded, in order; none when it has everything built in. Of `extra`, what suites
/// ask for besides, there are those that the kernel has: without one, the suite's tests of it do not run.
pub(crate) fn modules(kernel: &Kernel, kind: InitramfsKind, extra: &[String]) -> Result<Vec<Module>> {
    let extra: Vec<String> = extra.iter().map(|name| module_name(name)).collect();
    let config = kernel.config.as_deref().map(KernelConfig::read).transpose()?;
    if let Some(config) = &config {
        check_config(kernel, kind, config)?;
        if extra.is_empty() && of(kind).iter().all(|n| config.get(n.option) != Some("m")) {
            return Ok(Vec::new());
        }
    }
    let Some(folder) = &kernel.modules else {
        let modular = of(kind).iter().filter(|n| n.required && is_modular(config.as_ref(), n));
        return match options(modular) {
            options if options.is_empty() => Ok(Vec::new()),
            options => Err(unfit(
                kernel,
                format!(
                    "{options} are modules, and there is no folder with its modules; run `make modules` in its tree, or give \
                     a kernel from a folder with lib/modules/{} beside it",
                    kernel.release
                ),
            )),
        };
    };
    let index = ModuleIndex::scan(folder);
    let absent = of(kind).iter().filter(|n| n.required && is_modular(config.as_ref(), n) && !index.has(n.module));
    let absent = options(absent);
    if !absent.is_empty() {
        let reason = format!("{absent} are modules, but {} lacks them; run `make modules`", folder.display());
        return Err(unfit(kernel, reason));
    }
    let wanted = of(kind).iter().map(|n| n.module).chain(extra.iter().map(String::as_str));
    index.closure(wanted.filter(|m| !index.is_builtin(m)))
}

fn is_modular(config: Option<&KernelConfig>, need: &Need) -> bool {
    config.is_some_and(|c| c.get(need.option) == Some("m"))
}

fn check_config(kernel: &Kernel, kind: InitramfsKind, config: &KernelConfig) -> Result<()> {
    let missing = options(of(kind).iter().filter(|n| n.required && config.get(n.option).is_none()));
    if missing.is_empty() {
        return Ok(());
    }
    let reason =
        format!("it was built without {missing}; `vmm kernel build --tree DIR` builds one that has all it takes");
    Err(unfit(kernel, reason))
}

fn options<'a>(needs: impl Iterator<Item = &'a Need>) -> String {
    needs.map(|n| format!("CONFIG_{}", n.option)).collect::<Vec<_>>().join(", ")
}

fn unfit(kernel: &Kernel, reason: String) -> Error {
    Error::KernelUnfit { release: kernel.release.clone(), reason }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::modules::tests::folder;

    fn kernel(dir: &Path, config: Option<&str>, modules: Option<&Path>) -> Kernel {
        let config = config.map(|text| {
            fs::write(dir.join("config"), text).unwrap();
            dir.join("config")
        });
        let vmlinux = dir.join("vmlinux");
        let modules = modules.map(Path::to_owned);
        Kernel { image: vmlinux.clone(), vmlinux, release: "6.12.0".into(), modules, config, sha256: String::new() }
    }

    fn all(value: &str) -> String {
        GUEST.iter().map(|n| format!("CONFIG_{}={value}\n", n.option)).collect()
    }

    #[test]
    fn a_kernel_with_everything_built_in_needs_no_modules_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(modules(&kernel(dir.path(), Some(&all("y")), None), InitramfsKind::Guest, &[]).unwrap(), []);
    }

    #[test]
    fn a_kernel_of_which_nothing_is_known_is_given_a_chance() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(modules(&kernel(dir.path(), None, None), InitramfsKind::Guest, &[]).unwrap(), []);
    }

    #[test]
    fn a_kernel_without_an_ability_is_refused_by_the_options_name() {
        let dir = tempfile::tempdir().unwrap();
        let config = all("y").replace("CONFIG_VIRTIO_FS=y", "# CONFIG_VIRTIO_FS is not set");
        let error =
            modules(&kernel(dir.path(), Some(&config), None), InitramfsKind::Guest, &[]).unwrap_err().to_string();
        assert!(error.contains("CONFIG_VIRTIO_FS;") && error.contains("vmm kernel build"), "{error}");
    }

    #[test]
    fn a_modular_kernel_without_its_modules_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = all("y").replace("CONFIG_EROFS_FS=y", "CONFIG_EROFS_FS=m");
        let error =
            modules(&kernel(dir.path(), Some(&config), None), InitramfsKind::Guest, &[]).unwrap_err().to_string();
        assert!(error.contains("CONFIG_EROFS_FS are modules"), "{error}");
        let empty = folder(&[], "");
        let bare = kernel(dir.path(), Some(&config), Some(empty.path()));
        assert!(matches!(modules(&bare, InitramfsKind::Guest, &[]), Err(Error::KernelUnfit { .. })));
    }

    #[test]
    fn only_what_is_not_built_in_is_taken_along_with_what_it_needs() {
        let dir = tempfile::tempdir().unwrap();
        let config = all("y").replace("CONFIG_EROFS_FS=y", "CONFIG_EROFS_FS=m");
        let found = folder(
            &[("erofs.ko", &["depends=libcrc32c"]), ("libcrc32c.ko", &["depends="])],
            "kernel/fs/fuse/fuse.ko\n",
        );
        let kernel = kernel(dir.path(), Some(&config), Some(found.path()));
        let names: Vec<_> = modules(&kernel, InitramfsKind::Guest, &[]).unwrap().into_iter().map(|m| m.name).collect();
        assert_eq!(names, ["libcrc32c", "erofs"]);
    }

    #[test]
    fn what_a_suite_asks_for_comes_too_if_the_kernel_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let found = folder(&[("dm-mod.ko", &["depends="]), ("loop.ko", &["depends="])], "kernel/fs/ext4/ext4.ko\n");
        let kernel = kernel(dir.path(), Some(&all("y")), Some(found.path()));
        let extra = ["loop", "ext4", "dm-mod", "nowhere"].map(str::to_owned);
        let names: Vec<_> =
            modules(&kernel, InitramfsKind::Guest, &extra).unwrap().into_iter().map(|m| m.name).collect();
        assert_eq!(names, ["loop", "dm_mod"]);
    }
}
