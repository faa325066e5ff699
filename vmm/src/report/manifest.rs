//! `manifest.json`: what exactly was tested, on what.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::atomic_file::write_atomically;
use crate::schedule::Shard;

/// A file that the run depends on.
#[derive(Clone, Debug)]
pub struct ManifestFile {
    /// What it is to the run: `kernel`, `kernel-config`, `image`, `initramfs`, `suite pjdfstest`…
    pub role: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its SHA-256 in hexadecimal where that is known already; else it is computed while the run goes on.
    pub sha256: Option<String>,
}

/// A share of the guest.
#[derive(Clone, Debug)]
pub struct ManifestShare {
    /// The virtio-fs tag.
    pub tag: String,
    /// The directory served.
    pub path: PathBuf,
}

/// What only the caller knows.
#[derive(Clone, Debug, Default)]
pub struct ManifestInputs {
    /// The command line, program first, as it was typed.
    pub command: Vec<OsString>,
    /// Where it was typed.
    pub directory: PathBuf,
    /// The `vmm` binary.
    pub vmm_binary: PathBuf,
    /// Its version.
    pub vmm_version: String,
    /// vCPUs.
    pub cpus: u32,
    /// Guest RAM, MiB.
    pub memory_mib: u64,
    /// The guest kernel's command line, or the part of it that the user gave.
    pub append: String,
    /// Everything that the result depends on; the binary is added by itself.
    pub files: Vec<ManifestFile>,
    /// Suites and their versions.
    pub suites: BTreeMap<String, String>,
    /// Which part of the tests ran.
    pub shard: Option<Shard>,
    /// The shares.
    pub shares: Vec<ManifestShare>,
}

#[derive(Debug, Serialize)]
struct Manifest {
    run: String,
    started: String,
    command: Vec<String>,
    directory: PathBuf,
    vmm_version: String,
    host: Host,
    guest: Guest,
    suites: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<String>,
    shares: Vec<Share>,
    files: BTreeMap<String, HashedFile>,
}

#[derive(Debug, Serialize)]
struct Host {
    kind: String,
    kernel: String,
    cpu: Option<String>,
    cpus: usize,
}

#[derive(Debug, Serialize)]
struct Guest {
    cpus: u32,
    memory_mib: u64,
    append: String,
}

#[derive(Debug, Serialize)]
struct Share {
    tag: String,
    path: PathBuf,
    file_system: String,
}

#[derive(Debug, Serialize)]
struct HashedFile {
    path: PathBuf,
    bytes: Option<u64>,
    sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Writes the manifest at once without the hashes that are not known, so that it is there whatever happens; the returned
/// job computes those and writes it again. The job gives up soon after its flag is set.
pub(super) fn write_manifest(
    dir: &Path,
    run: &str,
    started: &str,
    host_kind: &str,
    inputs: ManifestInputs,
) -> io::Result<impl FnOnce(&AtomicBool) -> io::Result<()> + Send + use<>> {
    let mut manifest = assemble(run, started, host_kind, inputs);
    write(dir, &manifest)?;
    let dir = dir.to_path_buf();
    Ok(move |give_up: &AtomicBool| {
        for file in manifest.files.values_mut().filter(|file| file.sha256.is_none()) {
            match sha256_of(&file.path, give_up) {
                Ok(hash) => file.sha256 = Some(hash),
                Err(error) => file.error = Some(error.to_string()),
            }
        }
        write(&dir, &manifest)
    })
}

fn write(dir: &Path, manifest: &Manifest) -> io::Result<()> {
    let mut json = serde_json::to_vec_pretty(manifest)?;
    json.push(b'\n');
    write_atomically(dir, "manifest.json", 0o644, &json)
}

fn assemble(run: &str, started: &str, host_kind: &str, inputs: ManifestInputs) -> Manifest {
    let binary = ManifestFile { role: "vmm".into(), path: inputs.vmm_binary, sha256: None };
    let files = inputs.files.into_iter().chain([binary]).map(|file| {
        let bytes = fs::metadata(&file.path).ok().map(|meta| meta.len());
        (file.role, HashedFile { path: file.path, bytes, sha256: file.sha256, error: None })
    });
    let shares = inputs.shares.into_iter().map(|share| {
        let file_system = file_system_of(&share.path);
        Share { tag: share.tag, path: share.path, file_system }
    });
    Manifest {
        run: run.to_owned(),
        started: started.to_owned(),
        command: inputs.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        directory: inputs.directory,
        vmm_version: inputs.vmm_version,
        host: host(host_kind),
        guest: Guest { cpus: inputs.cpus, memory_mib: inputs.memory_mib, append: inputs.append },
        suites: inputs.suites,
        shard: inputs.shard.map(|shard| shard.to_string()),
        shares: shares.collect(),
        files: files.collect(),
    }
}

fn host(kind: &str) -> Host {
    let uname = rustix::system::uname();
    let kernel = format!(
        "{} {} {}",
        uname.sysname().to_string_lossy(),
        uname.release().to_string_lossy(),
        uname.version().to_string_lossy()
    );
    let cpu = fs::read_to_string("/proc/cpuinfo").ok().as_deref().and_then(cpu_model).map(str::to_owned);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Host { kind: kind.to_owned(), kernel, cpu, cpus }
}

fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim())
}

/// The type of the file system that `path` is on. Magic numbers: statfs(2) and the kernel's linux/magic.h.
fn file_system_of(path: &Path) -> String {
    let Ok(stat) = rustix::fs::statfs(path) else { return "unknown".into() };
    // The magic numbers have 32 bits, f_type has a sign and more on some machines.
    let name = match stat.f_type & 0xffff_ffff {
        0xef53 => "ext2/ext3/ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x794c_7630 => "overlay",
        0x0102_1997 => "9p",
        0x6573_5546 => "fuse",
        0x6969 => "nfs",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        0xca45_1a4e => "bcachefs",
        0xe0f5_e1e2 => "erofs",
        0x7371_7368 => "squashfs",
        0xfe53_4d42 => "smb2",
        magic => return format!("unknown (f_type {magic:#x})"),
    };
    name.to_owned()
}

fn sha256_of(path: &Path, give_up: &AtomicBool) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        if give_up.load(Ordering::Relaxed) {
            return Err(io::Error::other("not computed: the run was interrupted"));
        }
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dir: &Path) -> serde_json::Value {
        serde_json::from_slice(&fs::read(dir.join("manifest.json")).unwrap()).unwrap()
    }

    #[test]
    fn hashes_that_are_known_are_there_at_once_and_the_others_follow() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("vmlinux");
        fs::write(&kernel, "abc").unwrap();
        let file = |role: &str, path: PathBuf, sha256: Option<&str>| ManifestFile {
            role: role.into(),
            path,
            sha256: sha256.map(str::to_owned),
        };
        let inputs = ManifestInputs {
            command: vec!["vmm".into(), "run".into()],
            vmm_binary: kernel.clone(),
            files: vec![
                file("kernel", kernel, None),
                file("image", dir.path().join("image"), Some("00ff")),
                file("gone", dir.path().join("gone"), None),
            ],
            shares: vec![ManifestShare { tag: "myfs1".into(), path: "/proc".into() }],
            ..ManifestInputs::default()
        };
        let job = write_manifest(dir.path(), "r", "now", "kvm", inputs).unwrap();
        let early = read(dir.path());
        assert_eq!(early["files"]["image"]["sha256"], "00ff");
        assert_eq!(early["files"]["kernel"]["bytes"], 3);
        assert!(early["files"]["kernel"]["sha256"].is_null());
        job(&AtomicBool::new(false)).unwrap();
        let whole = read(dir.path());
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(whole["files"]["kernel"]["sha256"], abc);
        assert_eq!(whole["files"]["vmm"]["sha256"], abc);
        assert_eq!(whole["files"]["image"]["sha256"], "00ff");
        assert!(whole["files"]["gone"]["error"].as_str().unwrap().contains("No such file"));
        assert_eq!(whole["command"], serde_json::json!(["vmm", "run"]));
        assert_eq!(whole["host"]["kind"], "kvm");
        assert!(whole["host"]["kernel"].as_str().unwrap().starts_with("Linux "));
        assert_eq!(whole["shares"][0]["tag"], "myfs1");
    }

    #[test]
    fn hashing_ends_when_it_is_told_to() {
        let dir = tempfile::tempdir().unwrap();
        let inputs = ManifestInputs { vmm_binary: "/dev/zero".into(), ..ManifestInputs::default() };
        let job = write_manifest(dir.path(), "r", "now", "kvm", inputs).unwrap();
        let give_up = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let running = scope.spawn(|| job(&give_up));
            give_up.store(true, Ordering::Relaxed);
            running.join().unwrap().unwrap();
        });
        assert!(read(dir.path())["files"]["vmm"]["error"].as_str().unwrap().contains("interrupted"));
    }

    #[test]
    fn a_file_system_is_known_by_name_or_by_number() {
        assert!(file_system_of(Path::new("/proc")).starts_with("unknown (f_type 0x9fa0)"));
        assert_eq!(file_system_of(Path::new("/nonexistent")), "unknown");
        let shm = Path::new("/dev/shm");
        if shm.is_dir() {
            assert_eq!(file_system_of(shm), "tmpfs");
        }
    }

    #[test]
    fn the_cpu_model_is_read_from_cpuinfo() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: AMD EPYC\nflags: x\n"), Some("AMD EPYC"));
        assert_eq!(cpu_model("processor: 0\n"), None);
    }
}
