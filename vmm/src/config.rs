//! One validated, immutable configuration made from the command line. Nothing after this reads flags or the
//! environment, and every mistake a user can make in a flag is reported from here, with exit code 2.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use devices::virtio::fs::{
    DAX_RANGE, FaultError, FaultRule, IdMap, InodeHandles, MAX_DAX_WINDOW, MAX_DAX_WINDOWS, XattrMapError,
};
use guest_image::kernel::KernelSpec;

use crate::cli::{CacheChoice, DaxMode, InodeHandlesChoice, MachineArgs, ServeArgs};
use crate::host::HostChoice;
use crate::machine::{Polling, ShareConfig, ShareSettings};

/// Smallest guest memory that Debian's kernels boot in with some room, MiB.
pub const MIN_MEMORY_MIB: u64 = 128;
/// Largest number of vCPUs: with xAPIC ids, 255 is the broadcast address (Intel SDM vol. 3 § 11.6.1).
pub const MAX_CPUS: u32 = 254;
/// Longest virtio-fs tag, bytes (virtio 1.2 § 5.11.4).
pub const MAX_TAG: usize = 36;
/// Tags of the two shares a machine has when none is given: what the suites' configurations name.
pub const DEFAULT_TAGS: [&str; 2] = ["myfs1", "myfs2"];

/// A mistake on the command line or in a file it names: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// The directories a machine serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shares {
    /// Two empty directories made for this run below the given one, removed after it.
    Scratch(PathBuf),
    /// The user's own.
    Given(Vec<ShareConfig>),
}

/// A machine as the user wants it, checked as far as it can be without starting anything.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// Which kernel to boot.
    pub kernel: KernelSpec,
    /// vCPUs.
    pub cpus: u32,
    /// Guest RAM, MiB.
    pub memory_mib: u64,
    /// Added to the kernel's command line.
    pub append: String,
    /// What is served.
    pub shares: Shares,
    /// Cache policy of every share.
    pub cache: CacheChoice,
    /// How else every share is served.
    pub share_settings: ShareSettings,
    /// How long to look for work before sleeping.
    pub polling: Polling,
    /// Which files the guest accesses through the DAX window; `None` without one.
    pub dax_mode: Option<DaxMode>,
    /// Whether the machine's statistics are wanted.
    pub stats: bool,
    /// Where every request is written to.
    pub trace: Option<PathBuf>,
    /// Where to run.
    pub host: HostChoice,
    /// Outside programs' way to the guest's vsock.
    pub vsock_socket: Option<PathBuf>,
    /// The agent must have spoken after this long; `None` for the default.
    pub boot_timeout: Option<Duration>,
    /// Everything must have ended after this long.
    pub timeout: Option<Duration>,
    /// Where the console goes, if not to its usual place.
    pub console: Option<PathBuf>,
    /// The cache's root.
    pub cache_dir: PathBuf,
}

impl MachineOptions {
    /// Checks and completes what the user gave.
    ///
    /// # Errors
    /// [`UsageError`] naming the flag, what was given and what would be right.
    pub fn new(args: &MachineArgs, cache_dir: &Path, inside_emulated_host: bool) -> Result<Self, UsageError> {
        let cache_dir = cache_dir.to_path_buf();
        let kernel: KernelSpec =
            args.kernel.parse().map_err(|e| UsageError(format!("--kernel {}: {e}", args.kernel)))?;
        if args.cpus == 0 || args.cpus > MAX_CPUS {
            return Err(UsageError(format!("--cpus {}: a machine has 1 to {MAX_CPUS} vCPUs", args.cpus)));
        }
        let scratch = args.scratch_dir.clone().unwrap_or_else(|| cache_dir.join("scratch"));
        let shares = if args.shared_dir.is_empty() {
            Shares::Scratch(scratch)
        } else {
            Shares::Given(parse_shares(args.shared_dir.iter().map(std::ops::Deref::deref))?)
        };
        let tags: Vec<&str> = match &shares {
            Shares::Scratch(_) => DEFAULT_TAGS.to_vec(),
            Shares::Given(given) => given.iter().map(|share| share.tag.as_str()).collect(),
        };
        let share_settings = ShareSettings { trace: args.trace.is_some(), ..share_settings(&args.serve, &tags)? };
        Ok(Self {
            kernel,
            cpus: args.cpus,
            memory_mib: check_memory(&args.memory, host_memory_mib())?,
            append: args.append.join(" "),
            shares,
            cache: args.cache,
            share_settings,
            polling: args.poll,
            dax_mode: args.serve.dax.as_ref().map(|_| args.serve.dax_mode.unwrap_or_default()),
            stats: args.stats,
            trace: args.trace.as_deref().map(check_trace).transpose()?,
            // There is no second emulated host inside the first.
            host: if inside_emulated_host { HostChoice::Kvm } else { args.host },
            vsock_socket: args.vsock_socket.clone(),
            boot_timeout: args.boot_timeout,
            timeout: args.timeout,
            console: args.console.clone(),
            cache_dir,
        })
    }
}

/// The cache directory as given, or where the XDG base directory specification puts it.
///
/// # Errors
/// [`UsageError`] when none was given and neither `XDG_CACHE_HOME` nor `HOME` says where.
pub fn cache_dir_or_default(given: Option<&Path>) -> Result<PathBuf, UsageError> {
    let chosen = given.map(Path::to_path_buf).or_else(guest_image::Cache::default_root).ok_or_else(|| {
        UsageError("no cache directory: neither HOME nor XDG_CACHE_HOME is set; give --cache-dir DIR".to_owned())
    })?;
    std::path::absolute(&chosen).map_err(|e| UsageError(format!("--cache-dir {}: {e}", chosen.display())))
}

/// Sees that `--trace`'s file can be made, before a guest is.
fn check_trace(path: &Path) -> Result<PathBuf, UsageError> {
    let wrong = |e| UsageError(format!("--trace {}: cannot write the file: {e}; choose another", path.display()));
    std::fs::File::options().create(true).append(true).open(path).map_err(wrong)?;
    Ok(path.to_path_buf())
}

/// Reads `--memory`: MiB, or with a suffix M, G or T. `available_mib` is what the host has in all, when known.
fn check_memory(text: &str, available_mib: Option<u64>) -> Result<u64, UsageError> {
    let wrong = |why: String| UsageError(format!("--memory {text}: {why}"));
    let mib = parse_mib(text).map_err(wrong)?;
    if mib < MIN_MEMORY_MIB {
        return Err(wrong(format!("a guest needs at least {MIN_MEMORY_MIB} MiB to boot")));
    }
    match available_mib {
        Some(available) if mib > available => {
            Err(wrong(format!("this machine has {available} MiB in all; give the guest less")))
        }
        _ => Ok(mib),
    }
}

/// Reads a size of memory: MiB, or with a suffix M, G or T.
///
/// # Errors
/// In words, for the user.
pub fn parse_mib(text: &str) -> Result<u64, String> {
    let (digits, scale) = match text.char_indices().last() {
        Some((at, 'M' | 'm')) => (&text[..at], 1),
        Some((at, 'G' | 'g')) => (&text[..at], 1 << 10),
        Some((at, 'T' | 't')) => (&text[..at], 1 << 20),
        _ => (text, 1),
    };
    let mib = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(scale));
    mib.ok_or_else(|| "not a size; write it as 1024, 512M or 2G".to_owned())
}

/// Reads `--dax` for so many shares; bytes.
fn dax_window(text: &str, shares: usize) -> Result<u64, UsageError> {
    let wrong = |why: String| UsageError(format!("--dax {text}: {why}"));
    let bytes = parse_mib(text).map_err(wrong)?.saturating_mul(1 << 20);
    if bytes == 0 || !bytes.is_multiple_of(DAX_RANGE) || bytes > MAX_DAX_WINDOW {
        return Err(wrong(format!(
            "a window has {} MiB or a multiple of that, up to {} MiB",
            DAX_RANGE >> 20,
            MAX_DAX_WINDOW >> 20
        )));
    }
    if shares > MAX_DAX_WINDOWS {
        return Err(wrong(format!("{shares} shares; at most {MAX_DAX_WINDOWS} can have a window")));
    }
    Ok(bytes)
}

/// All memory of the machine we run on, MiB.
fn host_memory_mib() -> Option<u64> {
    let info = rustix::system::sysinfo();
    u64::from(info.mem_unit).checked_mul(info.totalram).map(|bytes| bytes >> 20)
}

fn share_settings(args: &ServeArgs, tags: &[&str]) -> Result<ShareSettings, UsageError> {
    let xattr_map = args.xattrmap.as_deref().map(str::parse).transpose();
    Ok(ShareSettings {
        read_only: args.readonly,
        writeback: args.writeback,
        posix_acl: args.posix_acl,
        security_context: args.security_label,
        posix_locks: args.posix_locks,
        inode_handles: match args.inode_file_handles {
            InodeHandlesChoice::Prefer => InodeHandles::Prefer,
            InodeHandlesChoice::Never => InodeHandles::Never,
        },
        xattr_map: xattr_map.map_err(|e: XattrMapError| UsageError(format!("--xattrmap: {e}")))?.unwrap_or_default(),
        uid_map: id_map("--translate-uid", &args.translate_uid)?,
        gid_map: id_map("--translate-gid", &args.translate_gid)?,
        dax_window: args.dax.as_deref().map_or(Ok(0), |size| dax_window(size, tags.len()))?,
        trace: false,
        faults: args.fault.iter().map(|rule| fault(rule, tags)).collect::<Result<_, _>>()?,
        #[cfg(feature = "planted-bugs")]
        planted_bug: args.planted_bug,
    })
}

/// Reads `--fault` for shares with these tags.
fn fault(text: &str, tags: &[&str]) -> Result<FaultRule, UsageError> {
    let wrong = |why: String| UsageError(format!("--fault {text}: {why}"));
    let rule: FaultRule = text.parse().map_err(|e: FaultError| wrong(crate::command::error_chain(&e)))?;
    if !tags.iter().any(|tag| rule.is_for(tag)) {
        return Err(wrong(format!("there is no such share; there are {}", tags.join(", "))));
    }
    Ok(rule)
}

fn id_map(flag: &str, rules: &[String]) -> Result<IdMap, UsageError> {
    let mut map = IdMap::default();
    for rule in rules {
        map.add(rule).map_err(|e| UsageError(format!("{flag}: {e}")))?;
    }
    Ok(map)
}

fn parse_shares<'a>(given: impl Iterator<Item = &'a OsStr>) -> Result<Vec<ShareConfig>, UsageError> {
    let mut shares: Vec<ShareConfig> = Vec::new();
    for value in given {
        let share = parse_share(value)?;
        if shares.iter().any(|s| s.tag == share.tag) {
            return Err(UsageError(format!(
                "--shared-dir {}: the tag `{}` is used twice; each share needs one of its own",
                value.display(),
                share.tag
            )));
        }
        shares.push(share);
    }
    Ok(shares)
}

/// `PATH:TAG`; the tag is what follows the last colon.
fn parse_share(value: &OsStr) -> Result<ShareConfig, UsageError> {
    let wrong = |why: String| UsageError(format!("--shared-dir {}: {why}", value.display()));
    let bytes = value.as_bytes();
    let colon = bytes.iter().rposition(|&b| b == b':').ok_or_else(|| wrong("expected PATH:TAG".to_owned()))?;
    let (path, tag) = (&bytes[..colon], &bytes[colon + 1..]);
    let tag = std::str::from_utf8(tag).map_err(|_| wrong("the tag is not UTF-8".to_owned()))?;
    if tag.is_empty() || tag.len() > MAX_TAG {
        return Err(wrong(format!("a tag has 1 to {MAX_TAG} bytes, this one has {}", tag.len())));
    }
    if tag.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control() || matches!(b, b':' | b',' | b'/')) {
        return Err(wrong(format!("the tag `{tag}` may hold no blanks, colons, commas or slashes")));
    }
    let path = Path::new(OsStr::from_bytes(path));
    let absolute = path.canonicalize().map_err(|e| wrong(format!("cannot open the directory: {e}")))?;
    if !absolute.is_dir() {
        return Err(wrong("is not a directory; a share serves a directory".to_owned()));
    }
    Ok(ShareConfig { path: absolute, tag: tag.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_mib_or_has_a_suffix() {
        for (text, mib) in [("1024", 1024), ("512M", 512), ("2G", 2048), ("2g", 2048), ("1T", 1 << 20)] {
            assert_eq!(check_memory(text, None).expect(text), mib);
        }
    }

    #[test]
    fn memory_that_cannot_be_had_is_refused_with_what_would_do() {
        for (text, says) in [
            ("1M", "at least 128 MiB"),
            ("1T", "4096 MiB in all"),
            ("lots", "not a size"),
            ("", "not a size"),
            ("-1", "not a size"),
            ("99999999999999999999T", "not a size"),
        ] {
            let error = check_memory(text, Some(4096)).expect_err(text).to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn shares_are_served_plainly_unless_flags_say_otherwise() {
        assert_eq!(share_settings(&ServeArgs::default(), &[]).unwrap(), ShareSettings::default());
        let all = ServeArgs {
            readonly: true,
            writeback: true,
            posix_acl: true,
            security_label: true,
            posix_locks: true,
            inode_file_handles: InodeHandlesChoice::Never,
            xattrmap: Some(":map::user.virtiofs.:".into()),
            translate_uid: vec!["map:0:1000:1".into(), "forbid-guest:7:1".into()],
            translate_gid: vec!["map:0:1001:1".into()],
            fault: vec!["op=READ,short".into(), "t:op=LOOKUP,nth=2,errno=EIO".into()],
            dax: Some("256M".into()),
            ..ServeArgs::default()
        };
        let settings = share_settings(&all, &["t"]).unwrap();
        assert!(settings.read_only && settings.writeback && settings.posix_acl);
        assert!(settings.security_context && settings.posix_locks);
        assert_eq!((settings.inode_handles, settings.dax_window), (InodeHandles::Never, 256 << 20));
        assert_eq!(settings.xattr_map, ":map::user.virtiofs.:".parse().unwrap());
        assert_eq!(settings.uid_map, "map:0:1000:1,forbid-guest:7:1".parse().unwrap());
        assert_eq!((settings.faults.len(), settings.trace), (2, false));
        assert_eq!(settings.gid_map, "map:0:1001:1".parse().unwrap());
    }

    #[test]
    fn wrong_rules_are_refused_with_the_flag_and_the_rule() {
        let wrong = [
            (ServeArgs { xattrmap: Some(":ok:".into()), ..ServeArgs::default() }, "--xattrmap", ":ok:"),
            (ServeArgs { translate_uid: vec!["0:1000".into()], ..ServeArgs::default() }, "--translate-uid", "0:1000"),
            (
                ServeArgs { translate_gid: vec!["map:0:0:0".into()], ..ServeArgs::default() },
                "--translate-gid",
                "map:0:0:0",
            ),
        ];
        let wrong_fault = |rule: &str| ServeArgs { fault: vec![rule.into()], ..ServeArgs::default() };
        let wrong_faults = [
            (wrong_fault("op=WRIET,stall"), "--fault op=WRIET,stall: op=WRIET: FUSE has", "WRITE"),
            (
                wrong_fault("other:op=WRITE,stall"),
                "--fault other:op=WRITE,stall: there is no such share",
                "myfs1, myfs2",
            ),
            (wrong_fault(":op=WRITE,stall"), "--fault", "tag may not be empty"),
        ];
        for (args, flag, rule) in wrong.into_iter().chain(wrong_faults) {
            let UsageError(text) = share_settings(&args, &["myfs1", "myfs2"]).unwrap_err();
            assert!(text.starts_with(flag) && text.contains(rule), "{text}");
        }
    }

    #[test]
    fn dax_windows_are_multiples_of_what_the_guest_maps_at_once() {
        for (text, bytes) in [("2M", 2 << 20), ("512", 512 << 20), ("8G", 8 << 30)] {
            assert_eq!(dax_window(text, MAX_DAX_WINDOWS).expect(text), bytes);
        }
        for (text, shares, says) in [
            ("0", 1, "2 MiB or a multiple"),
            ("3M", 1, "2 MiB or a multiple"),
            ("9G", 1, "up to 8192 MiB"),
            ("99999T", 1, "a multiple"),
            ("99999999T", 1, "up to 8192 MiB"),
            ("x", 1, "not a size"),
            ("2M", 5, "at most 4"),
        ] {
            let error = dax_window(text, shares).expect_err(text).to_string();
            assert!(error.starts_with("--dax") && error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_share_is_a_directory_and_a_tag() {
        let dir = tempfile::tempdir().expect("tempdir");
        let value = format!("{}:data", dir.path().display());
        let share = parse_share(OsStr::new(&value)).expect("valid");
        assert_eq!(share.tag, "data");
    }

    #[test]
    fn wrong_shares_are_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("file");
        std::fs::write(&file, b"").expect("write");
        let long = "t".repeat(37);
        for (value, says) in [
            ("nocolon".to_owned(), "expected PATH:TAG"),
            (format!("{}:", dir.path().display()), "1 to 36 bytes"),
            (format!("{}:{long}", dir.path().display()), "this one has 37"),
            (format!("{}:a b", dir.path().display()), "blanks"),
            (format!("{}:x", file.display()), "not a directory"),
            ("/does/not/exist:x".to_owned(), "cannot open"),
        ] {
            let error = parse_share(OsStr::new(&value)).expect_err(&value).to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn one_tag_cannot_name_two_shares() {
        let dir = tempfile::tempdir().expect("tempdir");
        let value = format!("{}:same", dir.path().display());
        let error = parse_shares([OsStr::new(&value), OsStr::new(&value)].into_iter()).expect_err("twice").to_string();
        assert!(error.contains("used twice"), "{error}");
    }
}
