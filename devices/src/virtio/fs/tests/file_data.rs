//! Data of open files: reading, writing, and what servers do between files.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use fuse_backend_rs::abi::fuse_abi::{
    CopyFileRangeIn, CreateIn, EntryOut, FallocateIn, IoctlIn, IoctlOut, LinkIn, LseekIn, Opcode, OpenIn, OpenOut,
    ReadIn, SetattrIn, WRITE_CACHE, WRITE_KILL_PRIV, WriteIn, WriteOut,
};
use vm_memory::ByteValued;

use super::harness::{Answer, Guest, ROOT, check, is_root, message, name, object};
use crate::virtio::fs::constants::opcode;
use crate::virtio::test_support::{readable, writable};

fn set_mode(guest: &Guest, file: &str, mode: u32) {
    fs::set_permissions(guest.path(file), fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_mebibyte_is_written_and_read_in_one_request_of_pages() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let data: Vec<u8> = (0..1u32 << 20).map(|index| (index % 251) as u8).collect();
    let write = WriteIn { fh: open.fh, size: 1 << 20, offset: 123, ..WriteIn::default() };
    let header = guest.header(Opcode::Write as u32, entry.nodeid, size_of::<WriteIn>() + data.len());
    let mut segments = vec![readable(header.as_slice()), readable(write.as_slice())];
    segments.extend(data.chunks(4096).map(readable));
    segments.push(writable(24));
    let reply = guest.driver.queue(1).request_indirect(&segments);
    assert_eq!(object::<WriteOut>(&check(&reply, header.unique).unwrap()).size, 1 << 20);
    let read = ReadIn { fh: open.fh, size: 1 << 20, offset: 123, ..ReadIn::default() };
    let header = guest.header(Opcode::Read as u32, entry.nodeid, size_of::<ReadIn>());
    let mut segments = vec![readable(header.as_slice()), readable(read.as_slice()), writable(16)];
    segments.extend((0..256).map(|_| writable(4096)));
    let reply = guest.driver.queue(1).request_indirect(&segments);
    assert!(check(&reply, header.unique).unwrap() == data);
    assert!(fs::read(guest.path("a")).unwrap()[123..] == data);
}

#[test]
fn an_appending_write_goes_to_the_end_wherever_the_guest_thinks_that_is() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR | libc::O_APPEND, 0o644).unwrap();
    fs::write(guest.path("a"), "from the host").unwrap();
    let write = WriteIn { fh: open.fh, size: 6, flags: libc::O_APPEND as u32, ..WriteIn::default() };
    assert_eq!(guest.write_with(entry.nodeid, write, b" guest"), Ok(6));
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"from the host guest");
    // A page written back late has its place, although its file appends.
    let write = WriteIn { size: 4, fuse_flags: WRITE_CACHE, ..write };
    assert_eq!(guest.write_with(entry.nodeid, write, b"FROM"), Ok(4));
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"FROM the host guest");
    // So does a write after the guest has cleared O_APPEND by fcntl.
    assert_eq!(guest.write(entry.nodeid, open.fh, 5, b"THE"), Ok(3));
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"FROM THE host guest");
}

#[test]
fn a_write_clears_set_id_bits_only_when_the_guest_asks() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let write = WriteIn { fh: open.fh, size: 1, ..WriteIn::default() };
    for round in 0..3 {
        if is_root() {
            set_mode(&guest, "a", 0o6777);
            guest.write_with(entry.nodeid, write, b"x").unwrap();
            assert_eq!(guest.mode("a"), 0o6777, "round {round}");
        }
        set_mode(&guest, "a", 0o6777);
        guest.write_with(entry.nodeid, WriteIn { fuse_flags: WRITE_KILL_PRIV, ..write }, b"x").unwrap();
        assert_eq!(guest.mode("a"), 0o777, "round {round}");
        // Set-group-ID without group-execute is a lock marker, not a privilege.
        set_mode(&guest, "a", 0o2666);
        guest.write_with(entry.nodeid, WriteIn { fuse_flags: WRITE_KILL_PRIV, ..write }, b"x").unwrap();
        assert_eq!(guest.mode("a"), 0o2666, "round {round}");
    }
}

#[test]
fn truncating_on_open_clears_set_id_bits_only_when_the_guest_asks() {
    let mut guest = Guest::new();
    fs::write(guest.path("a"), "x").unwrap();
    let node = guest.node("a");
    for (fuse_flags, expected) in [(1, 0o777), (0, 0o6777), (1, 0o777)] {
        if fuse_flags == 0 && !is_root() {
            continue;
        }
        fs::write(guest.path("a"), "x").unwrap();
        set_mode(&guest, "a", 0o6777);
        let request = OpenIn { flags: (libc::O_RDWR | libc::O_TRUNC) as u32, fuse_flags };
        guest.request(Opcode::Open as u32, node, request.as_slice()).unwrap();
        assert_eq!(guest.mode("a"), expected);
        assert_eq!(fs::read(guest.path("a")).unwrap(), b"");
    }
}

type Change<'c> = &'c dyn Fn(&mut Guest);

#[test]
fn a_set_group_id_bit_that_nobody_executes_by_is_the_groups_to_keep() {
    if !is_root() {
        return;
    }
    let mut guest = Guest::new();
    (guest.uid, guest.gid) = (1000, 1000);
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let changes: [(&str, Change<'_>); 6] = [
        ("write", &|guest| {
            let write = WriteIn { fh: open.fh, size: 1, fuse_flags: WRITE_KILL_PRIV, ..WriteIn::default() };
            guest.write_with(entry.nodeid, write, b"x").unwrap();
        }),
        ("truncate on open", &|guest| {
            let request = OpenIn { flags: (libc::O_RDWR | libc::O_TRUNC) as u32, fuse_flags: 1 };
            guest.request(Opcode::Open as u32, entry.nodeid, request.as_slice()).unwrap();
        }),
        ("truncate", &|guest| {
            let request = SetattrIn { valid: FATTR_SIZE | FATTR_KILL_SUIDGID, size: 9, ..SetattrIn::default() };
            guest.request(Opcode::Setattr as u32, entry.nodeid, request.as_slice()).unwrap();
        }),
        ("allocate", &|guest| {
            fallocate(guest, entry.nodeid, FallocateIn { fh: open.fh, length: 99, ..FallocateIn::default() }).unwrap();
        }),
        ("punch a hole", &|guest| {
            let mode = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
            let request = FallocateIn { fh: open.fh, length: 99, mode, ..FallocateIn::default() };
            fallocate(guest, entry.nodeid, request).unwrap();
        }),
        ("change owner", &|guest| {
            let request = SetattrIn { valid: FATTR_UID | FATTR_KILL_SUIDGID, uid: 1000, ..SetattrIn::default() };
            guest.request(Opcode::Setattr as u32, entry.nodeid, request.as_slice()).unwrap();
        }),
    ];
    for (what, change) in changes {
        for gid in [1000, 1001, 0, 1000] {
            set_mode(&guest, "a", 0o6744);
            guest.gid = gid;
            change(&mut guest);
            assert_eq!(guest.mode("a"), if gid == 1000 { 0o2744 } else { 0o744 }, "{what} by somebody of group {gid}");
        }
    }
    // Whoever made requests before, what is new is its maker's.
    guest.gid = 1001;
    guest.create(ROOT, "b", libc::O_RDWR, 0o644).unwrap();
    (guest.uid, guest.gid) = (0, 0);
    guest.create(ROOT, "c", libc::O_RDWR, 0o644).unwrap();
    assert_eq!((guest.owner("b"), guest.owner("c")), ((1000, 1001), (0, 0)));
}

/// `valid` bits of SETATTR, see include/uapi/linux/fuse.h.
const FATTR_UID: u32 = 1 << 1;
const FATTR_SIZE: u32 = 1 << 3;
const FATTR_KILL_SUIDGID: u32 = 1 << 11;

fn fallocate(guest: &mut Guest, node: u64, request: FallocateIn) -> Answer {
    guest.request(Opcode::Fallocate as u32, node, request.as_slice())
}

#[test]
fn space_is_allocated_and_holes_are_punched_and_found() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let (node, fh) = (entry.nodeid, open.fh);
    let all = FallocateIn { fh, length: 1 << 20, ..FallocateIn::default() };
    fallocate(&mut guest, node, all).unwrap();
    assert_eq!(fs::metadata(guest.path("a")).unwrap().size(), 1 << 20);
    guest.write(node, fh, 0, &[7; 4096]).unwrap();
    guest.write(node, fh, 512 << 10, &[7; 4096]).unwrap();
    let mode = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
    fallocate(&mut guest, node, FallocateIn { offset: 4096, length: 128 << 10, mode, ..all }).unwrap();
    let seek = |guest: &mut Guest, offset, whence: i32| {
        let request = LseekIn { fh, offset, whence: whence as u32, padding: 0 };
        guest.request(Opcode::Lseek as u32, node, request.as_slice()).map(|reply| object::<u64>(&reply))
    };
    assert_eq!(seek(&mut guest, 0, libc::SEEK_DATA), Ok(0));
    assert_eq!(seek(&mut guest, 0, libc::SEEK_HOLE), Ok(4096));
    assert!(seek(&mut guest, 4096, libc::SEEK_DATA).unwrap() > 4096);
    assert_eq!(seek(&mut guest, 2 << 20, libc::SEEK_DATA), Err(libc::ENXIO));
    assert_eq!(seek(&mut guest, u64::MAX, libc::SEEK_DATA), Err(libc::ENXIO));
    for whence in [libc::SEEK_SET, libc::SEEK_CUR, libc::SEEK_END, 99, -1] {
        assert_eq!(seek(&mut guest, 0, whence), Err(libc::EINVAL), "the guest does these itself");
    }
    assert_eq!(fallocate(&mut guest, node, FallocateIn { length: 0, ..all }), Err(libc::EINVAL));
    assert_eq!(fallocate(&mut guest, node, FallocateIn { length: u64::MAX, ..all }), Err(libc::EINVAL));
    assert_eq!(fallocate(&mut guest, node, FallocateIn { mode: u32::MAX, ..all }), Err(libc::EOPNOTSUPP));
}

#[test]
fn every_way_to_allocate_does_what_it_does_on_the_host() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let pages: Vec<u8> = (1..=8u8).flat_map(|page| [page; 4096]).collect();
    let modes = [
        ("keep size", libc::FALLOC_FL_KEEP_SIZE),
        ("punch", libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
        ("zero", libc::FALLOC_FL_ZERO_RANGE),
        ("zero and keep size", libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
        ("collapse", libc::FALLOC_FL_COLLAPSE_RANGE),
        ("insert", libc::FALLOC_FL_INSERT_RANGE),
        ("unshare", libc::FALLOC_FL_UNSHARE_RANGE),
        ("punch alone", libc::FALLOC_FL_PUNCH_HOLE),
        ("contradiction", libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE),
    ];
    for (what, mode) in modes {
        // Inside, over the end, and not of whole blocks.
        for (offset, length) in [(8192u64, 4096u64), (24 << 10, 16 << 10), (5000, 100), (0, 0)] {
            fs::write(guest.path("a"), &pages).unwrap();
            fs::write(guest.path("model"), &pages).unwrap();
            let model = fs::OpenOptions::new().write(true).open(guest.path("model")).unwrap();
            let flags = rustix::fs::FallocateFlags::from_bits_retain(mode as u32);
            let expected = rustix::fs::fallocate(&model, flags, offset, length).map_err(|error| error.raw_os_error());
            let request = FallocateIn { fh: open.fh, offset, length, mode: mode as u32, padding: 0 };
            let answer = fallocate(&mut guest, entry.nodeid, request).map(drop);
            assert_eq!(answer, expected, "{what} {offset} {length}");
            assert!(fs::read(guest.path("a")).unwrap() == fs::read(guest.path("model")).unwrap(), "{what} {offset}");
            let stat = |file| fs::metadata(guest.path(file)).map(|stat| (stat.size(), stat.blocks())).unwrap();
            assert_eq!(stat("a"), stat("model"), "{what} {offset} {length}");
        }
    }
}

#[test]
fn extended_inode_flags_are_passed_on_for_files_and_directories() {
    const GET: u32 = 0x801c_581f;
    const SET: u32 = 0x401c_5820;
    /// FS_XFLAG_NODUMP: means nothing to anybody but dump(8).
    const NODUMP: u32 = 0x80;
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let dir = guest.opendir(ROOT).unwrap();
    for (node, fh) in [(entry.nodeid, open.fh), (ROOT, dir)] {
        let get = IoctlIn { fh, cmd: GET, out_size: 28, ..IoctlIn::default() };
        let mut flags = match guest.request(opcode::IOCTL, node, get.as_slice()) {
            Ok(reply) => reply[size_of::<IoctlOut>()..].to_vec(),
            Err(error) => return assert_eq!(error, libc::ENOTTY, "a file system without"),
        };
        assert_eq!(flags.len(), 28);
        flags[0] |= NODUMP as u8;
        let set = IoctlIn { fh, cmd: SET, in_size: 28, ..IoctlIn::default() };
        guest.request(opcode::IOCTL, node, &message(&[set.as_slice(), &flags])).unwrap();
        let reply = guest.request(opcode::IOCTL, node, get.as_slice()).unwrap();
        assert_eq!(reply[size_of::<IoctlOut>()..], flags);
        // Less room than the command's result has: what fits.
        let small = IoctlIn { out_size: 4, ..get };
        let reply = guest.request(opcode::IOCTL, node, small.as_slice()).unwrap();
        assert_eq!(reply[size_of::<IoctlOut>()..], flags[..4]);
    }
}

#[test]
fn allocating_and_copying_clear_set_id_bits_for_users_and_not_for_root() {
    if !is_root() {
        return;
    }
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let (other, source) = guest.create(ROOT, "b", libc::O_RDWR, 0o644).unwrap();
    guest.write(other.nodeid, source.fh, 0, b"data").unwrap();
    for (uid, mode) in [(0, 0o6777), (1000, 0o777), (0, 0o6777)] {
        guest.uid = uid;
        set_mode(&guest, "a", 0o6777);
        let request = FallocateIn { fh: open.fh, length: 4096, ..FallocateIn::default() };
        fallocate(&mut guest, entry.nodeid, request).unwrap();
        assert_eq!(guest.mode("a"), mode, "fallocate as {uid}");
        set_mode(&guest, "a", 0o6777);
        let copy = CopyFileRangeIn {
            fh_in: source.fh,
            nodeid_out: entry.nodeid,
            fh_out: open.fh,
            len: 4,
            ..CopyFileRangeIn::default()
        };
        guest.request(opcode::COPY_FILE_RANGE, other.nodeid, copy.as_slice()).unwrap();
        assert_eq!(guest.mode("a"), mode, "copy_file_range as {uid}");
    }
}

#[test]
fn ranges_are_copied_between_files() {
    let mut guest = Guest::new();
    let (from, source) = guest.create(ROOT, "from", libc::O_RDWR, 0o644).unwrap();
    let (to, target) = guest.create(ROOT, "to", libc::O_RDWR, 0o644).unwrap();
    guest.write(from.nodeid, source.fh, 0, b"0123456789").unwrap();
    let copy = CopyFileRangeIn {
        fh_in: source.fh,
        offset_in: 2,
        nodeid_out: to.nodeid,
        fh_out: target.fh,
        offset_out: 1,
        len: 5,
        flags: 0,
    };
    let reply = guest.request(opcode::COPY_FILE_RANGE, from.nodeid, copy.as_slice()).unwrap();
    assert_eq!((reply.len(), object::<WriteOut>(&reply).size), (8, 5));
    assert_eq!(fs::read(guest.path("to")).unwrap(), b"\x0023456");
    let long = CopyFileRangeIn { len: u64::MAX, ..copy };
    let reply = guest.request(opcode::COPY_FILE_RANGE_64, from.nodeid, long.as_slice());
    // How much a host copies of "everything" is its own business, but it says so or refuses.
    match reply {
        Ok(reply) => assert_eq!(object::<u64>(&reply), 8),
        Err(error) => assert!([libc::EOVERFLOW, libc::EINVAL, libc::EFBIG].contains(&error), "{error}"),
    }
    let request = |copy: CopyFileRangeIn| message(&[copy.as_slice()]);
    for (bad, expected) in [
        (CopyFileRangeIn { flags: 1, ..copy }, libc::EINVAL),
        (CopyFileRangeIn { fh_in: 99, ..copy }, libc::EBADF),
        (CopyFileRangeIn { nodeid_out: from.nodeid, ..copy }, libc::EBADF),
    ] {
        assert_eq!(guest.request(opcode::COPY_FILE_RANGE, from.nodeid, &request(bad)), Err(expected));
    }
    let past_the_end = CopyFileRangeIn { offset_in: 100, ..copy };
    let reply = guest.request(opcode::COPY_FILE_RANGE, from.nodeid, &request(past_the_end)).unwrap();
    assert_eq!(object::<WriteOut>(&reply).size, 0);
}

#[test]
fn a_file_without_a_name_is_written_and_gets_one() {
    let mut guest = Guest::new();
    let request = CreateIn { flags: (libc::O_RDWR | libc::O_TMPFILE) as u32, mode: 0o640, ..CreateIn::default() };
    // Linux names it "/".
    let reply = guest.request(opcode::TMPFILE, ROOT, &message(&[request.as_slice(), &name("/")])).unwrap();
    let (entry, open): (EntryOut, OpenOut) = (object(&reply), object(&reply[size_of::<EntryOut>()..]));
    assert_eq!((entry.attr.mode, entry.attr.nlink), (0o100640, 0));
    // There is no name to look up again, which Linux would do.
    assert!(entry.entry_valid > 365 * 86400, "{} s", entry.entry_valid);
    assert_eq!(entry.attr_valid, 1);
    assert_eq!(fs::read_dir(guest.dir.path()).unwrap().count(), 0);
    assert_eq!(guest.write(entry.nodeid, open.fh, 0, b"hidden"), Ok(6));
    let link = message(&[LinkIn { oldnodeid: entry.nodeid }.as_slice(), &name("named")]);
    guest.request(Opcode::Link as u32, ROOT, &link).unwrap();
    assert_eq!(fs::read(guest.path("named")).unwrap(), b"hidden");
}

#[test]
fn syncing_takes_an_open_file() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    for (code, body) in [
        (Opcode::Fsync, message(&[&open.fh.to_le_bytes(), &[0; 8]])),
        (Opcode::Fsync, message(&[&open.fh.to_le_bytes(), &1u64.to_le_bytes()])),
    ] {
        assert_eq!(guest.request(code as u32, entry.nodeid, &body), Ok(vec![]), "{code:?}");
    }
    assert_eq!(guest.write(entry.nodeid, open.fh, 0, b"x"), Ok(1), "still open");
    assert_eq!(guest.request(opcode::SYNCFS, ROOT, &[0; 8]), Ok(vec![]));
}

#[test]
fn flush_is_only_asked_for_where_closing_can_tell_something() {
    let mut guest = Guest::new();
    let local = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994];
    let silent = local.contains(&rustix::fs::statfs(guest.dir.path()).unwrap().f_type);
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let flush = message(&[&open.fh.to_le_bytes(), &[0; 16]]);
    let expected = if silent { Err(libc::ENOSYS) } else { Ok(vec![]) };
    assert_eq!(guest.request(Opcode::Flush as u32, entry.nodeid, &flush), expected);
    assert_eq!(guest.write(entry.nodeid, open.fh, 0, b"x"), Ok(1), "still open");
}

#[test]
fn an_unknown_ioctl_is_enotty_and_inode_flags_are_passed_on() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    let unknown = IoctlIn { fh: open.fh, cmd: 0x5401, out_size: 64, ..IoctlIn::default() };
    assert_eq!(guest.request(opcode::IOCTL, entry.nodeid, unknown.as_slice()), Err(libc::ENOTTY));
    let get = IoctlIn { fh: open.fh, cmd: 0x8008_6601, out_size: 4, ..IoctlIn::default() };
    match guest.request(opcode::IOCTL, entry.nodeid, get.as_slice()) {
        Ok(reply) => {
            let out: IoctlOut = object(&reply);
            assert_eq!((reply.len(), out.result), (size_of::<IoctlOut>() + 4, 0));
            // FS_NODUMP_FL on and off again: it means nothing to anybody but dump(8).
            let flags = u32::from_le_bytes(reply[size_of::<IoctlOut>()..].try_into().unwrap());
            set_inode_flags(&mut guest, entry.nodeid, open.fh, flags | 0x40).unwrap();
            let reply = guest.request(opcode::IOCTL, entry.nodeid, get.as_slice()).unwrap();
            assert_eq!(reply[size_of::<IoctlOut>()..], (flags | 0x40).to_le_bytes());
            let set = IoctlIn { fh: open.fh, cmd: FS_IOC_SETFLAGS, in_size: 4, ..IoctlIn::default() };
            let short = message(&[set.as_slice(), &[0; 2]]);
            assert_eq!(guest.request(opcode::IOCTL, entry.nodeid, &short), Err(libc::EIO), "lies about its size");
        }
        Err(error) => assert_eq!(error, libc::ENOTTY, "a file system without flags"),
    }
    let bad = IoctlIn { fh: 99, ..get };
    assert_eq!(guest.request(opcode::IOCTL, entry.nodeid, bad.as_slice()), Err(libc::EBADF));
}

#[test]
fn a_file_that_is_append_only_is_opened_to_append_and_to_nothing_else() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    guest.write(entry.nodeid, open.fh, 0, b"one").unwrap();
    if set_inode_flags(&mut guest, entry.nodeid, open.fh, FS_APPEND_FL).is_err() {
        eprintln!("not tested: the attribute takes a file system that has it, and CAP_LINUX_IMMUTABLE");
        return;
    }
    assert_eq!(guest.open(entry.nodeid, libc::O_RDWR).unwrap_err(), libc::EPERM);
    assert_eq!(guest.open(entry.nodeid, libc::O_WRONLY | libc::O_APPEND | libc::O_TRUNC).unwrap_err(), libc::EPERM);
    for (mode, text) in [(libc::O_WRONLY, b"two"), (libc::O_RDWR | libc::O_NOATIME, b"six")] {
        let fh = guest.open(entry.nodeid, mode | libc::O_APPEND).unwrap();
        let write = WriteIn { fh, size: 3, flags: libc::O_APPEND as u32, ..WriteIn::default() };
        let body = message(&[write.as_slice(), text]);
        guest.request(Opcode::Write as u32, entry.nodeid, &body).unwrap();
    }
    // A file that cannot be unlinked is in the way of everything after this.
    set_inode_flags(&mut guest, entry.nodeid, open.fh, 0).unwrap();
    assert_eq!(guest.read(entry.nodeid, open.fh, 0, 20).unwrap(), b"onetwosix");
}

/// FS_IOC_SETFLAGS, see include/uapi/linux/fs.h.
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_APPEND_FL: u32 = 0x20;

fn set_inode_flags(guest: &mut Guest, node: u64, fh: u64, flags: u32) -> Result<Vec<u8>, i32> {
    let set = IoctlIn { fh, cmd: FS_IOC_SETFLAGS, in_size: 4, ..IoctlIn::default() };
    guest.request(opcode::IOCTL, node, &message(&[set.as_slice(), &flags.to_le_bytes()]))
}

#[test]
fn reading_and_writing_at_impossible_offsets_are_errors() {
    let mut guest = Guest::new();
    let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
    for offset in [u64::MAX, 1 << 63] {
        assert_eq!(guest.read(entry.nodeid, open.fh, offset, 10), Err(libc::EINVAL));
        assert_eq!(guest.write(entry.nodeid, open.fh, offset, b"x"), Err(libc::EINVAL));
    }
    let error = guest.write(entry.nodeid, open.fh, i64::MAX as u64, b"xx").unwrap_err();
    assert!([libc::EFBIG, libc::EINVAL].contains(&error), "{error}");
    assert_eq!(guest.write(entry.nodeid, open.fh, 0, b""), Ok(0));
    assert_eq!(guest.read(entry.nodeid, open.fh, 0, 0).unwrap(), b"");
}
