//! From what the user asked for to what a machine is built from: kernel, initramfs, root image, suite images, shares and
//! the words on the kernel's command line that tell the agent about them.

use std::path::{Path, PathBuf};

use anyhow::Context;
use devices::virtio::fs::CachePolicy;
use guest_image::initramfs::{self, InitramfsKind};
use guest_image::kernel::{self, Kernel, KernelSpec};
use guest_image::root_image::{self, RootImage};
use guest_image::suite::{self, AddedSuite};
use guest_image::{Cache, Progress};

use crate::cli::CacheChoice;
use crate::config::{DEFAULT_TAGS, MachineOptions, Shares, UsageError};
use crate::machine::{MachineConfig, ShareConfig};
use crate::scratch::ScratchShares;

/// Everything a guest boots from, in the cache.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    /// The kernel.
    pub kernel: Kernel,
    /// The agent and the kernel's modules.
    pub initramfs: PathBuf,
    /// Debian.
    pub root: RootImage,
    /// Suites that come as images of their own, in the order of their block devices.
    pub suites: Vec<AddedSuite>,
}

impl GuestFiles {
    /// Digests of the kernel, the root image and the suites.
    #[must_use]
    pub fn digests(&self) -> Vec<String> {
        let suites = self.suites.iter().map(|suite| &suite.sha256);
        [&self.kernel.sha256, &self.root.sha256].into_iter().chain(suites).cloned().collect()
    }

    /// Finds or builds everything `options` and `suites` need. The first time that takes minutes and a network.
    ///
    /// # Errors
    /// A kernel that is none and a suite that is not there are [`UsageError`]s; everything else is trouble of this
    /// machine. Each says what to do.
    pub fn ensure(options: &MachineOptions, suites: &[String], progress: &dyn Progress) -> anyhow::Result<Self> {
        let cache = open_cache(&options.cache_dir)?;
        // What the user got wrong is said before anything takes minutes.
        let kernel = kernel::resolve(&cache, &options.kernel, progress).map_err(|error| match options.kernel {
            KernelSpec::Path(_) => usage("--kernel", &error),
            KernelSpec::Debian(_) => anyhow::Error::new(error),
        })?;
        let suites: Vec<AddedSuite> =
            suites.iter().map(|name| suite::ensure(&cache, name, progress)).collect::<Result<_, _>>()?;
        let images = || suites.iter().map(|suite| &suite.manifest.image);
        let modules: Vec<String> = images().flat_map(|image| image.modules.clone()).collect();
        let packages: Vec<String> = images().flat_map(|image| image.packages.clone()).collect();
        let initramfs = initramfs::ensure(&cache, &kernel, InitramfsKind::Guest, &modules, progress)?;
        let root = root_image::ensure(&cache, &packages, progress)?;
        Ok(Self { kernel, initramfs, root, suites })
    }

    /// The machine's configuration, its console going to `console_log`.
    #[must_use]
    pub fn machine(&self, options: &MachineOptions, shares: &[ShareConfig], console_log: &Path) -> MachineConfig {
        MachineConfig {
            kernel: self.kernel.vmlinux.clone(),
            initramfs: Some(self.initramfs.clone()),
            append: self.kernel_words(options, shares),
            cpus: options.cpus,
            memory_mib: options.memory_mib,
            root_image: Some(self.root.image.clone()),
            suite_images: self.suites.iter().map(|suite| suite.image.clone()).collect(),
            shares: shares.to_vec(),
            cache: options.cache.into(),
            share_settings: options.share_settings.clone(),
            polling: options.polling,
            vsock_socket: options.vsock_socket.clone(),
            console_log: console_log.to_path_buf(),
        }
    }

    /// What the agent is told. The user's own words come last, so that they win.
    fn kernel_words(&self, options: &MachineOptions, shares: &[ShareConfig]) -> String {
        let append = &options.append;
        let mut words = vec!["vmm.root=/dev/vda".to_owned()];
        words.push(suite::kernel_arguments(&self.suites));
        let options = options_word(options);
        words
            .extend(shares.iter().map(|share| format!("vmm.share={}:{}{options}", share.tag, mount_point(&share.tag))));
        words.push(append.clone());
        words.join(" ")
    }
}

/// What follows a share's mount point: its mount options.
fn options_word(options: &MachineOptions) -> String {
    options.dax_mode.map_or_else(String::new, |mode| format!(":{}", mode.mount_option()))
}

/// Opens the cache, sweeping what interrupted builds left.
///
/// # Errors
/// The directory cannot be made or written.
pub fn open_cache(dir: &Path) -> anyhow::Result<Cache> {
    Cache::open(dir).with_context(|| format!("failed to open the cache {}", dir.display()))
}

/// Where the guest mounts a share: the places the suites' configurations name for the default tags, else `/mnt/TAG`.
#[must_use]
pub fn mount_point(tag: &str) -> String {
    match DEFAULT_TAGS.iter().position(|default| *default == tag) {
        Some(index) => format!("/mnt/virtiofs{}", index + 1),
        None => format!("/mnt/{tag}"),
    }
}

/// The directories a machine serves, made if they are scratch. Keep it as long as the machine runs.
#[derive(Debug)]
pub enum PreparedShares {
    /// Removed when dropped.
    Scratch(ScratchShares),
    /// The user's.
    Given(Vec<ShareConfig>),
}

impl PreparedShares {
    /// Makes what has to be made.
    ///
    /// # Errors
    /// The scratch directories cannot be made.
    pub fn new(shares: &Shares) -> anyhow::Result<Self> {
        match shares {
            Shares::Given(given) => Ok(Self::Given(given.clone())),
            Shares::Scratch(parent) => ScratchShares::create(parent).map(Self::Scratch).with_context(|| {
                format!(
                    "failed to make scratch shares in {}; choose another place with --scratch-dir",
                    parent.display()
                )
            }),
        }
    }

    /// What to serve, in order.
    #[must_use]
    pub fn list(&self) -> Vec<ShareConfig> {
        match self {
            Self::Scratch(scratch) => scratch.shares(),
            Self::Given(given) => given.clone(),
        }
    }
}

fn usage(flag: &str, error: &guest_image::Error) -> anyhow::Error {
    anyhow::Error::new(UsageError(format!("{flag}: {}", crate::command::error_chain(error))))
}

impl From<CacheChoice> for CachePolicy {
    fn from(choice: CacheChoice) -> Self {
        match choice {
            CacheChoice::Auto => Self::Auto,
            CacheChoice::Always => Self::Always,
            CacheChoice::Never => Self::Never,
        }
    }
}
