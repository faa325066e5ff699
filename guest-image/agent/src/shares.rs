//! Mounting the virtio-fs shares, and taking them off again.

use std::fs;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, unmount};
use wire::MountReport;

use crate::kernel_command_line::Share;
use crate::mounts::{MountError, mount_at};

/// How long a killed process may keep a share busy.
const BUSY_LIMIT: Duration = Duration::from_secs(2);

/// Mounts each share and tells what came of it.
#[must_use]
pub fn mount_all(shares: &[Share]) -> Vec<MountReport> {
    shares
        .iter()
        .map(|share| MountReport {
            tag: share.tag.clone(),
            mount_point: share.mount_point.clone(),
            error: mount_share(share).err(),
        })
        .collect()
}

fn mount_share(Share { tag, mount_point, options }: &Share) -> Result<(), String> {
    mount_at(tag, mount_point, "virtiofs", MountFlags::empty(), options).map_err(|e| explain(&e))
}

/// Mounts those of `shares` again that are not what is seen at their places any more: xfstests leaves both unmounted behind it, and
/// what runs next would run on the root file system. Tells which.
///
/// # Errors
/// What the first says that cannot be mounted.
pub fn restore(shares: &[Share]) -> Result<Vec<&Share>, String> {
    let mount_table = fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("no mount table: {e}"))?;
    let gone = shares.iter().filter(|share| !is_seen(&mount_table, share));
    gone.map(|share| mount_share(share).map(|()| share)).collect()
}

/// Whether the mount that was made last at the share's place is the share.
fn is_seen(mount_table: &str, share: &Share) -> bool {
    let last = mounts(mount_table).filter(|(target, _)| *target == share.mount_point).last();
    // Behind the optional fields, which end with a dash: type, source, options.
    let mut what = last.and_then(|(_, line)| line.split_once(" - ")).map_or("", |(_, what)| what).split(' ');
    what.next() == Some("virtiofs") && what.next().is_some_and(|source| unescaped(source) == share.tag)
}

/// The kernel gives two quite different mistakes errors that say little.
fn explain(error: &MountError) -> String {
    let hint = match error.errno() {
        libc::ENODEV => " (the kernel has no virtiofs: CONFIG_VIRTIO_FS)",
        libc::EINVAL => " (no virtio-fs device has this tag, or an option is unknown)",
        _ => "",
    };
    format!("{error}{hint}")
}

/// Unmounts the shares with all that was mounted below them. Returns what could not be.
#[must_use]
pub fn unmount_all(mounted: &[MountReport]) -> Vec<String> {
    let shares: Vec<_> = mounted.iter().filter(|share| share.error.is_none()).map(|share| &share.mount_point).collect();
    let mount_table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below_a_share = |path: &String| {
        shares
            .iter()
            .any(|share| path.strip_prefix(share.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    };
    // The last mounted first.
    let mounted = mounts(&mount_table).map(|(target, _)| target);
    let targets = mounted.filter(below_a_share).collect::<Vec<_>>().into_iter().rev();
    targets
        .filter_map(|target| unmount_patiently(&target).err().map(|e| format!("failed to unmount {target}: {e}")))
        .collect()
}

fn unmount_patiently(target: &str) -> Result<(), Errno> {
    let deadline = Instant::now() + BUSY_LIMIT;
    loop {
        match unmount(target, UnmountFlags::empty()) {
            Err(Errno::BUSY) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            // What stays busy is synced already; detached it goes with the machine.
            Err(Errno::BUSY) => return unmount(target, UnmountFlags::DETACH).and(Err(Errno::BUSY)),
            result => return result,
        }
    }
}

/// Each line with its fifth field: where it is mounted (proc_pid_mountinfo(5)).
fn mounts(mount_table: &str) -> impl Iterator<Item = (String, &str)> {
    mount_table.lines().filter_map(|line| Some((unescaped(line.split(' ').nth(4)?), line)))
}

/// A field of the mount table, octal escapes undone.
fn unescaped(field: &str) -> String {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = (first == b'\\')
            .then(|| after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok()))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                plain.push(code);
                rest = &after[3..];
            }
            None => {
                plain.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes_undone() {
        let table = "22 1 0:21 / /proc rw shared:5 - proc proc rw\n30 22 0:30 / /mnt/a\\040b\\134c rw - virtiofs tag rw\nbroken\n";
        assert_eq!(mounts(table).map(|(target, _)| target).collect::<Vec<_>>(), ["/proc", "/mnt/a b\\c"]);
    }

    #[test]
    fn a_share_is_seen_where_nothing_else_was_mounted_over_it() {
        let share = Share { tag: "my fs".into(), mount_point: "/mnt/a".into(), options: String::new() };
        let line = |what: &str| format!("30 22 0:30 / /mnt/a rw shared:7 - {what} rw\n");
        let its_own = line("virtiofs my\\040fs");
        assert!(is_seen(&its_own, &share) && is_seen(&(line("tmpfs none") + &its_own), &share));
        for other in ["tmpfs none", "virtiofs other", "tmpfs my\\040fs"] {
            assert!(!is_seen(&(its_own.clone() + &line(other)), &share), "{other}");
        }
        assert!(!is_seen("30 22 0:30 / /mnt/ab rw - virtiofs my\\040fs rw\n", &share), "at another place");
    }

    #[test]
    fn a_share_that_cannot_be_mounted_is_reported_with_the_reason() {
        let directory = tempfile::tempdir().unwrap();
        let mount_point = directory.path().to_str().unwrap().to_owned();
        let share = Share { tag: "nosuchtag".into(), mount_point: mount_point.clone(), options: String::new() };
        let reports = mount_all(&[share]);
        assert_eq!((reports[0].tag.as_str(), &reports[0].mount_point), ("nosuchtag", &mount_point));
        let error = reports[0].error.as_ref().unwrap();
        assert!(error.contains("virtiofs nosuchtag") && error.contains(&mount_point), "{error}");
        assert_eq!(unmount_all(&reports), Vec::<String>::new());
    }
}
