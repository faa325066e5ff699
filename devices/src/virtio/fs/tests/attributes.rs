//! GETATTR, SETATTR, STATX and STATFS.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use fuse_backend_rs::abi::fuse_abi::{AttrOut, FATTR_FH, Kstatfs, Opcode, SetattrIn};
use vm_memory::ByteValued;

use super::harness::{Guest, ROOT, is_root, object};
use crate::virtio::fs::constants::opcode;
use crate::virtio::fs::messages::{StatxIn, StatxOut};

const MODE: u32 = 1;
const UID: u32 = 1 << 1;
const GID: u32 = 1 << 2;
const SIZE: u32 = 1 << 3;
const ATIME: u32 = 1 << 4;
const MTIME: u32 = 1 << 5;
const ATIME_NOW: u32 = 1 << 7;
const MTIME_NOW: u32 = 1 << 8;
const CTIME: u32 = 1 << 10;
const KILL_SUIDGID: u32 = 1 << 11;

fn setattr(guest: &mut Guest, node: u64, request: SetattrIn) -> Result<AttrOut, i32> {
    guest.request(Opcode::Setattr as u32, node, request.as_slice()).map(|reply| object(&reply))
}

fn chmod(guest: &mut Guest, node: u64, mode: u32) -> Result<AttrOut, i32> {
    setattr(guest, node, SetattrIn { valid: MODE, mode, ..SetattrIn::default() })
}

fn set_mode(guest: &Guest, file: &str, mode: u32) {
    fs::set_permissions(guest.path(file), fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn attributes_are_the_hosts() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), vec![1; 5000]).unwrap();
    let stat = fs::metadata(guest.path("a")).unwrap();
    let node = guest.node("a");
    let AttrOut { attr, attr_valid, .. } = guest.getattr(node).unwrap();
    assert_eq!((attr.ino, attr.size, attr.blocks), (stat.ino(), 5000, stat.blocks()));
    assert_eq!((attr.mode, attr.nlink, attr.uid, attr.gid), (stat.mode(), 1, stat.uid(), stat.gid()));
    assert_eq!((attr.mtime as i64, i64::from(attr.mtimensec)), (stat.mtime(), stat.mtime_nsec()));
    assert_eq!((attr.ctime as i64, i64::from(attr.ctimensec)), (stat.ctime(), stat.ctime_nsec()));
    assert_eq!(u64::from(attr.blksize), stat.blksize());
    assert_eq!(attr_valid, 1);
}

#[test]
fn modes_are_set_on_files_directories_and_special_files_but_not_on_symbolic_links() {
    let mut guest = Guest::new();
    fs::write(guest.path("file"), "").unwrap();
    fs::create_dir(guest.path("dir")).unwrap();
    symlink("file", guest.path("link")).unwrap();
    let fifo = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
    rustix::fs::mknodat(rustix::fs::CWD, guest.path("fifo"), fifo.0, fifo.1, 0).unwrap();
    for file in ["file", "dir", "fifo"] {
        let node = guest.node(file);
        // Set-group-ID is kept as asked: the guest's kernel has decided about it.
        for mode in [0o7777, 0o000, 0o640, 0o2755, 0o4755, 0o1777] {
            let attr = chmod(&mut guest, node, mode).unwrap().attr;
            assert_eq!((attr.mode & 0o7777, guest.mode(file)), (mode, mode), "{file} {mode:o}");
        }
        chmod(&mut guest, node, 0o755).unwrap();
    }
    let link = guest.node("link");
    assert_eq!(chmod(&mut guest, link, 0o600).map(drop), Err(libc::EOPNOTSUPP));
    assert_eq!(guest.mode("file"), 0o755, "the link was not followed");
}

#[test]
fn times_are_set_to_the_nanosecond_also_of_symbolic_links_and_before_1970() {
    let mut guest = Guest::new();
    fs::write(guest.path("file"), "").unwrap();
    symlink("file", guest.path("link")).unwrap();
    let file_before = fs::metadata(guest.path("file")).unwrap().mtime();
    let node = guest.node("link");
    let request = SetattrIn {
        valid: ATIME | MTIME,
        atime: 1_000_000_000,
        atimensec: 123_456_789,
        mtime: (-5i64).cast_unsigned(),
        mtimensec: 5,
        ..SetattrIn::default()
    };
    let attr = setattr(&mut guest, node, request).unwrap().attr;
    assert_eq!((attr.atime, attr.atimensec), (1_000_000_000, 123_456_789));
    assert_eq!((attr.mtime.cast_signed(), attr.mtimensec), (-5, 5));
    let link = fs::symlink_metadata(guest.path("link")).unwrap();
    assert_eq!((link.mtime(), link.mtime_nsec()), (-5, 5));
    assert_eq!(fs::metadata(guest.path("file")).unwrap().mtime(), file_before);
}

#[test]
fn one_time_is_set_and_the_other_left_and_now_is_the_hosts_now() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), "").unwrap();
    let node = guest.node("a");
    setattr(&mut guest, node, SetattrIn { valid: ATIME | MTIME, atime: 100, mtime: 200, ..SetattrIn::default() })
        .unwrap();
    let attr = setattr(&mut guest, node, SetattrIn { valid: MTIME, mtime: 300, ..SetattrIn::default() }).unwrap().attr;
    assert_eq!((attr.atime, attr.mtime), (100, 300));
    let valid = ATIME | ATIME_NOW | MTIME | MTIME_NOW;
    let attr = setattr(&mut guest, node, SetattrIn { valid, ..SetattrIn::default() }).unwrap().attr;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    for time in [attr.atime, attr.mtime] {
        assert!(now.abs_diff(Duration::from_secs(time)) < Duration::from_secs(10));
    }
}

#[test]
fn a_file_is_truncated_by_node_and_by_handle() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), "hello world").unwrap();
    let node = guest.node("a");
    let attr = setattr(&mut guest, node, SetattrIn { valid: SIZE, size: 5, ..SetattrIn::default() }).unwrap().attr;
    assert_eq!((attr.size, fs::read(guest.path("a")).unwrap()), (5, b"hello".to_vec()));
    let handle = guest.open(node, libc::O_RDWR).unwrap();
    let grow = SetattrIn { valid: SIZE | FATTR_FH, fh: handle, size: 7, ..SetattrIn::default() };
    assert_eq!(setattr(&mut guest, node, grow).unwrap().attr.size, 7);
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"hello\0\0");
    let read_only = guest.open(node, libc::O_RDONLY).unwrap();
    let request = SetattrIn { valid: SIZE | FATTR_FH, fh: read_only, size: 0, ..SetattrIn::default() };
    assert_eq!(setattr(&mut guest, node, request).map(drop), Err(libc::EINVAL));
    let request = SetattrIn { valid: SIZE | FATTR_FH, fh: 999, size: 0, ..SetattrIn::default() };
    assert_eq!(setattr(&mut guest, node, request).map(drop), Err(libc::EBADF));
    let request = SetattrIn { valid: SIZE, size: u64::MAX, ..SetattrIn::default() };
    assert_eq!(setattr(&mut guest, node, request).map(drop), Err(libc::EINVAL));
    let request = SetattrIn { valid: SIZE, ..SetattrIn::default() };
    assert_eq!(setattr(&mut guest, ROOT, request).map(drop), Err(libc::EISDIR));
}

#[test]
fn truncating_clears_set_id_bits_only_when_the_guest_asks() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), "hello").unwrap();
    let node = guest.node("a");
    if is_root() {
        set_mode(&guest, "a", 0o6777);
        setattr(&mut guest, node, SetattrIn { valid: SIZE, size: 3, ..SetattrIn::default() }).unwrap();
        assert_eq!(guest.mode("a"), 0o6777, "root may");
    }
    set_mode(&guest, "a", 0o6777);
    setattr(&mut guest, node, SetattrIn { valid: SIZE | KILL_SUIDGID, size: 2, ..SetattrIn::default() }).unwrap();
    assert_eq!(guest.mode("a"), 0o777);
    // And the capability is back for the next one.
    if is_root() {
        set_mode(&guest, "a", 0o6777);
        setattr(&mut guest, node, SetattrIn { valid: SIZE, size: 1, ..SetattrIn::default() }).unwrap();
        assert_eq!(guest.mode("a"), 0o6777);
    }
}

#[test]
fn owners_are_changed_one_by_one_also_of_symbolic_links_and_lose_set_id_bits() {
    if !is_root() {
        return;
    }
    let mut guest = Guest::new();
    fs::write(guest.path("file"), "").unwrap();
    symlink("file", guest.path("link")).unwrap();
    for file in ["file", "link"] {
        let node = guest.node(file);
        if file == "file" {
            set_mode(&guest, file, 0o6755);
        }
        setattr(&mut guest, node, SetattrIn { valid: UID, uid: 11, gid: 99, ..SetattrIn::default() }).unwrap();
        assert_eq!(guest.owner(file), (11, 0));
        let attr = setattr(&mut guest, node, SetattrIn { valid: GID, uid: 99, gid: 12, ..SetattrIn::default() });
        assert_eq!(attr.map(|out| (out.attr.uid, out.attr.gid)), Ok((11, 12)));
        if file == "file" {
            assert_eq!(guest.mode(file), 0o755);
        }
    }
    let node = guest.node("file");
    for valid in [UID, GID] {
        let request = SetattrIn { valid, uid: u32::MAX, gid: u32::MAX, ..SetattrIn::default() };
        assert_eq!(setattr(&mut guest, node, request).map(drop), Err(libc::EINVAL));
    }
    assert_eq!(guest.owner("file"), (11, 12));
}

#[test]
fn a_setattr_that_sets_nothing_is_a_chown_to_nobody_which_only_the_owner_and_root_may() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), "").unwrap();
    let node = guest.node("a");
    let owner = guest.owner("a");
    // With writeback caching the guest says when.
    for (uid, mode, valid) in
        [(owner.0 + 1, 0o6755, 0), (owner.0, 0o755, 0), (owner.0 + 1, 0o6755, CTIME), (owner.0, 0o755, CTIME)]
    {
        set_mode(&guest, "a", 0o6755);
        guest.uid = uid;
        let out = setattr(&mut guest, node, SetattrIn { valid, ..SetattrIn::default() }).unwrap();
        assert_eq!(guest.mode("a"), mode, "uid {uid}");
        assert_eq!(out.attr_valid, u64::from(mode & 0o6000 == 0), "what comes next may clear the bits");
    }
    assert_eq!(guest.owner("a"), owner);
}

#[test]
fn statx_reports_the_birth_time() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), "12345").unwrap();
    let stat = fs::metadata(guest.path("a")).unwrap();
    let node = guest.node("a");
    let request = StatxIn { sx_mask: 0xfff, ..StatxIn::default() };
    let reply = guest.request(opcode::STATX, node, request.as_slice()).unwrap();
    assert_eq!(reply.len(), 288);
    let out: StatxOut = object(&reply);
    assert_eq!((out.ino, out.size, u32::from(out.mode)), (stat.ino(), 5, stat.mode()));
    assert_eq!((out.attr_valid, out.nlink, out.uid), (1, 1, stat.uid()));
    assert_eq!(out.mask & 0x7ff, 0x7ff, "all basic statistics");
    if let Ok(born) = stat.created() {
        let born = born.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(out.mask & 0x800, 0x800);
        assert_eq!((out.btime.tv_sec.cast_unsigned(), out.btime.tv_nsec), (born.as_secs(), born.subsec_nanos()));
    }
    assert_eq!(guest.request(opcode::STATX, 999, request.as_slice()), Err(libc::ESTALE));
    let odd = StatxIn { sx_mask: u32::MAX, sx_flags: u32::MAX, ..StatxIn::default() };
    // Asking to synchronise and not to at once is the host's EINVAL.
    assert_eq!(guest.request(opcode::STATX, node, odd.as_slice()), Err(libc::EINVAL));
}

#[test]
fn statfs_reports_the_hosts_file_system() {
    let mut guest = Guest::new();
    let reply = guest.request(Opcode::Statfs as u32, ROOT, &[]).unwrap();
    let out: Kstatfs = object(&reply);
    let host = rustix::fs::statvfs(guest.dir.path()).unwrap();
    assert_eq!((out.blocks, out.files), (host.f_blocks, host.f_files));
    assert_eq!((u64::from(out.bsize), u64::from(out.namelen)), (host.f_bsize, host.f_namemax));
}
