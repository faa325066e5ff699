//! The emulated host: a Linux under QEMU whose CPU is emulated with AMD-V, so that KVM works in it where this machine's
//! does not. This machine's root directory is its root, by 9p; it has a scratch disk of its own at
//! [`SCRATCH_MOUNT`], because a share under test must not lie on 9p. A command runs in it as it would here: same
//! arguments, working directory, environment and terminal, its output and exit code passed on.
//!
//! Nothing of it outlives us: QEMU dies with the thread that started it, its disk and its logs are files without names.

mod inside;
mod kept;
mod qemu_arguments;
mod qemu_process;
mod qemu_program;
mod scratch_disk;
mod start;
mod start_notice;
mod tsc;

use std::ffi::OsString;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

pub use inside::run_inside;
pub use kept::KeptHost;
pub(in crate::host) use qemu_program::sound_qemu;
pub use start::RunningHost;

use guest_image::initramfs::{self, InitramfsKind};
use guest_image::kernel::{self, KernelConfig, KernelSpec};
use guest_image::{Cache, Progress};

use crate::host::doctor::meminfo_mib;
use crate::host::programs::{self, Program};

/// Where the scratch disk is mounted inside.
pub const SCRATCH_MOUNT: &str = "/run/vmm-scratch";
/// Set for every command inside: shares under test are made here. The value is a directory of the scratch disk.
pub const SCRATCH_VARIABLE: &str = "VMM_SCRATCH_DIR";
/// Set, to `1`, for every command inside.
pub const INSIDE_VARIABLE: &str = "VMM_INSIDE_EMULATED_HOST";

/// Memory of the emulated host unless told otherwise, MiB; less where the machine has less.
const DEFAULT_MEMORY_MIB: u64 = 8 << 10;
/// With less, no guest of default size fits into it.
const MIN_MEMORY_MIB: u64 = 2 << 10;
/// TCG has one translation thread for each; more than this was not tried.
const MAX_CPUS: u32 = 16;
/// Size of the scratch disk unless told otherwise, GiB. It is sparse: only what is written takes space.
pub const DEFAULT_SCRATCH_GIB: u64 = 20;
/// It takes 5 s on an idle machine, several times that on a busy one.
const DEFAULT_BOOT_TIMEOUT: Duration = Duration::from_secs(120);

/// What an emulated host is made of.
#[derive(Clone, Debug)]
pub struct EmulatedHostConfig {
    /// The words that start `qemu-system-x86_64`, its own arguments to follow.
    pub qemu: Vec<OsString>,
    /// `mkfs.ext4`.
    pub mkfs: PathBuf,
    /// An uncompressed kernel with PVH entry, KVM for AMD, 9p, ext4 and virtio, as modules or built in.
    pub kernel: PathBuf,
    /// The agent and those modules.
    pub initramfs: PathBuf,
    /// The kernel's `CONFIG_HZ`, when known: it then needs no time to calibrate its delays.
    pub timer_hz: Option<NonZero<u32>>,
    /// CPUs that commands in the emulated host, and so its guests, may use. It has one more for itself.
    pub cpus: u32,
    /// Its memory, MiB.
    pub memory_mib: u64,
    /// Size of its scratch disk, GiB.
    pub scratch_gib: u64,
    /// Where its unnamed files are: the scratch disk, the console's log. Exists; not a tmpfs if memory is short.
    pub directory: PathBuf,
    /// How long it may take until its agent speaks.
    pub boot_timeout: Duration,
    /// Words for the end of its kernel's command line.
    pub append: String,
}

/// Why there is no emulated host, or no more.
#[derive(Debug, thiserror::Error)]
pub enum EmulatedHostError {
    /// A program is not there.
    #[error("{program} is not installed, and it is needed to {purpose}; install it: apt-get install {package}")]
    ProgramMissing {
        /// Its name.
        program: &'static str,
        /// What for.
        purpose: &'static str,
        /// Debian's package.
        package: &'static str,
    },
    /// This machine is too small.
    #[error("the emulated host needs {MIN_MEMORY_MIB} MiB of memory and {available_mib} MiB are available; free some")]
    NotEnoughMemory {
        /// What there is, MiB.
        available_mib: u64,
    },
    /// Its kernel or its initramfs could not be had.
    #[error("failed to get the emulated host's {what}")]
    Files {
        /// Which of them.
        what: &'static str,
        /// Why.
        #[source]
        source: guest_image::Error,
    },
    /// Something it needs could not be made.
    #[error("failed to prepare the emulated host: {0}")]
    Prepare(String),
    /// QEMU could not be executed.
    #[error("failed to start {}", program.display())]
    Start {
        /// QEMU.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It ended before its agent spoke, or while a command ran in it.
    #[error("the emulated host ended {when} ({status}){last_words}")]
    Died {
        /// In its life.
        when: &'static str,
        /// QEMU's exit status, in words.
        status: String,
        /// What its console and QEMU said last.
        last_words: String,
    },
    /// The agent stopped speaking.
    #[error("the emulated host stopped: nothing was heard from it for {}; start again{last_words}", humantime::format_duration(*.limit))]
    FellSilent {
        /// For how long.
        limit: Duration,
        /// What its console and QEMU said last.
        last_words: String,
    },
    /// The agent did not speak in time.
    #[error("the emulated host did not come up within {}{last_words}", humantime::format_duration(*.deadline))]
    NeverCameUp {
        /// How long it had.
        deadline: Duration,
        /// What its console and QEMU said last.
        last_words: String,
    },
    /// Its agent speaks something else.
    #[error(
        "the agent of the emulated host does not speak our protocol: {0}; remove the cached initramfs (vmm image rm)"
    )]
    Protocol(String),
    /// See the module documentation of the arguments: TSC tolerance.
    #[error("the emulated host's timers are broken: a sleep of 10 ms took {slept_ms} ms; start again")]
    BrokenTimers {
        /// How long it slept, ms.
        slept_ms: u64,
    },
    /// The command's end was not learned, though the emulated host still runs.
    #[error("{0}")]
    CommandLost(String),
    /// The user did not want to wait for the command's end.
    #[error("interrupted")]
    Interrupted,
    /// What the caller gave cannot be passed on.
    #[error("{0} is not UTF-8 and cannot be passed into the emulated host")]
    NotUtf8(String),
}

impl EmulatedHostConfig {
    /// One for this machine, its kernel and initramfs from `cache`; the first time they are downloaded and made, which
    /// takes a minute.
    ///
    /// # Errors
    /// A program is missing, memory, or the network.
    pub fn prepare(cache: &Cache, progress: &dyn Progress) -> Result<Self, EmulatedHostError> {
        // What can be said at once is said before anything is downloaded.
        let mut config = Self::new(Vec::new(), PathBuf::new(), PathBuf::new(), cache.root().join("emulated-host"))?;
        std::fs::create_dir_all(&config.directory)
            .map_err(|e| EmulatedHostError::Prepare(format!("failed to make {}: {e}", config.directory.display())))?;
        config.qemu = qemu_program::find(cache, progress)?;
        let files = |what| move |source| EmulatedHostError::Files { what, source };
        let kernel = kernel::resolve(cache, &KernelSpec::emulated_host(), progress).map_err(files("kernel"))?;
        config.initramfs = initramfs::ensure(cache, &kernel, InitramfsKind::EmulatedHost, &[], progress)
            .map_err(files("initramfs"))?;
        let options = kernel.config.as_deref().and_then(|file| KernelConfig::read(file).ok());
        config.timer_hz = options.and_then(|options| options.get("HZ")?.parse().ok());
        config.kernel = kernel.vmlinux;
        Ok(config)
    }

    /// The same for one of `count` that run side by side: their memory is what one would have, but each has the least it needs.
    ///
    /// # Errors
    /// This machine does not have as much.
    pub fn one_of(self, count: u32) -> Result<Self, EmulatedHostError> {
        let each = (self.memory_mib / u64::from(count.max(1))).max(MIN_MEMORY_MIB);
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let available_mib = meminfo_mib(&meminfo, "MemAvailable").unwrap_or(DEFAULT_MEMORY_MIB);
        if each * u64::from(count) > available_mib {
            return Err(EmulatedHostError::NotEnoughMemory { available_mib });
        }
        Ok(Self { memory_mib: each, ..self })
    }

    /// One with `qemu`, `kernel` and `initramfs`, its unnamed files in `directory`, sized for this machine.
    ///
    /// # Errors
    /// A program is missing, or memory.
    pub fn new(
        qemu: Vec<OsString>,
        kernel: PathBuf,
        initramfs: PathBuf,
        directory: PathBuf,
    ) -> Result<Self, EmulatedHostError> {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self {
            qemu,
            mkfs: find(&programs::MKFS_EXT4)?,
            kernel,
            initramfs,
            timer_hz: None,
            cpus: u32::try_from(cpus).unwrap_or(MAX_CPUS).min(MAX_CPUS),
            memory_mib: choose_memory(meminfo_mib(&meminfo, "MemAvailable").unwrap_or(DEFAULT_MEMORY_MIB))?,
            scratch_gib: DEFAULT_SCRATCH_GIB,
            directory,
            boot_timeout: DEFAULT_BOOT_TIMEOUT,
            append: String::new(),
        })
    }
}

fn find(program: &Program) -> Result<PathBuf, EmulatedHostError> {
    let Program { name, purpose, package } = *program;
    let missing = || EmulatedHostError::ProgramMissing { program: name, purpose, package: package.unwrap_or(name) };
    programs::find(name).ok_or_else(missing)
}

/// How much memory an emulated host gets on a machine with `available_mib` to spare: three quarters of it, at most
/// [`DEFAULT_MEMORY_MIB`]. QEMU's code cache takes a part of the rest.
fn choose_memory(available_mib: u64) -> Result<u64, EmulatedHostError> {
    let memory = (available_mib / 4 * 3).min(DEFAULT_MEMORY_MIB);
    if memory < MIN_MEMORY_MIB { Err(EmulatedHostError::NotEnoughMemory { available_mib }) } else { Ok(memory) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_three_quarters_of_what_is_there_up_to_the_default() {
        assert_eq!(choose_memory(4096).expect("enough"), 3072);
        assert_eq!(choose_memory(1 << 20).expect("enough"), DEFAULT_MEMORY_MIB);
        assert!(matches!(choose_memory(2000), Err(EmulatedHostError::NotEnoughMemory { available_mib: 2000 })));
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let program = Program { name: "no-such-qemu", purpose: "test", package: Some("the-package") };
        let error = find(&program).expect_err("not there").to_string();
        assert!(error.contains("no-such-qemu") && error.contains("apt-get install the-package"), "{error}");
    }
}
