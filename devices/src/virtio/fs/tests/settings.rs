//! What a share's configuration changes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use fuse_backend_rs::abi::fuse_abi::{
    GetxattrIn, LinkIn, MkdirIn, Opcode, OpenIn, OpenOut, RenameIn, SetattrIn, WriteIn,
};
use vm_memory::ByteValued;

use super::harness::{ALL_FLAGS, Guest, ROOT, has_handles, message, name, object};
use crate::virtio::fs::constants::{init_flag, opcode};
use crate::virtio::fs::{CachePolicy, InodeHandles};

#[test]
fn a_read_only_share_refuses_every_change() {
    let mut guest = Guest::with(|config| config.read_only = true);
    fs::write(guest.path("a"), "hello").unwrap();
    fs::create_dir(guest.path("dir")).unwrap();
    let node = guest.node("a");
    assert_eq!(guest.create(ROOT, "new", libc::O_RDWR, 0o644).map(drop), Err(libc::EROFS));
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(guest.open(node, flags).map(drop), Err(libc::EROFS));
    }
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(node, handle, 0, 10).unwrap(), b"hello");
    let mkdir = message(&[MkdirIn { mode: 0o755, umask: 0 }.as_slice(), &name("new")]);
    let rename = message(&[RenameIn { newdir: ROOT }.as_slice(), &name("a"), &name("b")]);
    let link = message(&[LinkIn { oldnodeid: node }.as_slice(), &name("b")]);
    let setattr = SetattrIn { valid: 1, mode: 0o600, ..SetattrIn::default() };
    for (code, target, body) in [
        (opcode::MKDIR, ROOT, mkdir.as_slice()),
        (opcode::SYMLINK, ROOT, b"new\0target\0"),
        (Opcode::Unlink as u32, ROOT, b"a\0"),
        (Opcode::Rmdir as u32, ROOT, b"dir\0"),
        (Opcode::Rename as u32, ROOT, &rename),
        (Opcode::Link as u32, ROOT, &link),
        (Opcode::Setattr as u32, node, setattr.as_slice()),
        (Opcode::Removexattr as u32, node, b"user.x\0"),
        (Opcode::Fallocate as u32, node, &[0; 32]),
        (Opcode::Write as u32, node, &[0; 40]),
        (opcode::SETXATTR, node, &[&[0; 16][..], b"user.x\0"].concat()),
        (opcode::COPY_FILE_RANGE, node, &[0; 56]),
        (opcode::TMPFILE, ROOT, &[0; 18]),
    ] {
        assert_eq!(guest.request(code, target, body), Err(libc::EROFS), "opcode {code}");
    }
    assert_eq!(fs::read(guest.path("a")).unwrap(), b"hello");
    assert_eq!(guest.list(ROOT, 4096).len(), 4);
}

#[test]
fn without_extended_attributes_the_guest_is_told_to_stop_asking() {
    let mut guest = Guest::with(|config| config.xattr = false);
    let get = message(&[GetxattrIn { size: 0, padding: 0 }.as_slice(), &name("user.x")]);
    assert_eq!(guest.request(Opcode::Getxattr as u32, ROOT, &get), Err(libc::ENOSYS));
    assert_eq!(guest.request(Opcode::Listxattr as u32, ROOT, &[0; 8]), Err(libc::ENOSYS));
    assert_eq!(guest.request(Opcode::Removexattr as u32, ROOT, b"user.x\0"), Err(libc::ENOSYS));
    let set = message(&[&[0; 16], b"user.x\0".as_slice()]);
    assert_eq!(guest.request(opcode::SETXATTR, ROOT, &set), Err(libc::ENOSYS));
}

#[test]
fn a_guest_that_keeps_writes_back_reads_what_it_opened_for_writing_and_places_appends_itself() {
    for writeback in [true, false] {
        let mut guest = Guest::with(|config| config.writeback = writeback);
        let (entry, open) = guest.create(ROOT, "a", libc::O_WRONLY | libc::O_APPEND, 0o644).unwrap();
        fs::write(guest.path("a"), "from the host").unwrap();
        let readable = if writeback { Ok(b"from".to_vec()) } else { Err(libc::EBADF) };
        assert_eq!(guest.read(entry.nodeid, open.fh, 0, 4), readable);
        let write = WriteIn { fh: open.fh, size: 4, flags: libc::O_APPEND as u32, ..WriteIn::default() };
        guest.write_with(entry.nodeid, write, b"FROM").unwrap();
        let expected = if writeback { "FROM the host" } else { "from the hostFROM" };
        assert_eq!(fs::read_to_string(guest.path("a")).unwrap(), expected);
        let handle = guest.open(entry.nodeid, libc::O_WRONLY).unwrap();
        assert_eq!(guest.read(entry.nodeid, handle, 0, 4).is_ok(), writeback);
        // Only what was asked for: a file to be read stays unwritable.
        let handle = guest.open(entry.nodeid, libc::O_RDONLY).unwrap();
        assert_eq!(guest.write(entry.nodeid, handle, 0, b"x"), Err(libc::EBADF));
        assert_eq!(u64::from(guest.init(ALL_FLAGS).unwrap().flags) & init_flag::WRITEBACK_CACHE != 0, writeback);
    }
}

#[test]
fn cache_policies_say_how_long_to_believe_what() {
    const DIRECT_IO: u32 = 1;
    const KEEP_CACHE: u32 = 2;
    const CACHE_DIR: u32 = 8;
    for (cache, timeout, file, dir) in [
        (CachePolicy::Auto, 1, 0, 0),
        (CachePolicy::Always, 86400, KEEP_CACHE, KEEP_CACHE | CACHE_DIR),
        (CachePolicy::Never, 0, DIRECT_IO, 0),
    ] {
        let mut guest = Guest::with(|config| config.cache = cache);
        let (entry, open) = guest.create(ROOT, "a", libc::O_RDWR, 0o644).unwrap();
        assert_eq!((entry.entry_valid, entry.attr_valid, open.open_flags), (timeout, timeout, file), "{cache:?}");
        assert_eq!(guest.getattr(entry.nodeid).unwrap().attr_valid, timeout);
        let body = OpenIn::default();
        let reply = guest.request(Opcode::Open as u32, entry.nodeid, body.as_slice()).unwrap();
        assert_eq!(object::<OpenOut>(&reply).open_flags, file);
        let reply = guest.request(Opcode::Opendir as u32, ROOT, body.as_slice()).unwrap();
        assert_eq!(object::<OpenOut>(&reply).open_flags, dir);
    }
}

#[test]
fn set_id_bits_of_a_file_are_never_believed_as_whoever_changes_it_clears_them() {
    let mut guest = Guest::with(|config| config.cache = CachePolicy::Always);
    for (mode, file, timeout) in [(0o755, true, 86400), (0o4755, true, 0), (0o2755, true, 0), (0o2755, false, 86400)] {
        let path = guest.path("a");
        if file {
            fs::write(&path, "data").unwrap()
        } else {
            fs::create_dir(&path).unwrap()
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let entry = guest.lookup(ROOT, "a").unwrap();
        assert_eq!((entry.entry_valid, entry.attr_valid), (86400, timeout), "{mode:o}");
        assert_eq!(guest.getattr(entry.nodeid).unwrap().attr_valid, timeout, "{mode:o}");
        if file { fs::remove_file(&path).unwrap() } else { fs::remove_dir(&path).unwrap() }
    }
}

#[test]
fn without_file_handles_the_guest_is_not_promised_any_either() {
    let mut guest = Guest::without_session(|config| config.inode_handles = InodeHandles::Never);
    let out = guest.init(ALL_FLAGS).unwrap();
    assert_eq!(u64::from(out.flags) & init_flag::EXPORT_SUPPORT, 0);
}

#[test]
fn init_agrees_on_what_virtiofsd_does_and_more() {
    let mut guest = Guest::without_session(|_| {});
    let out = guest.init(ALL_FLAGS).unwrap();
    let flags = u64::from(out.flags) | (u64::from(out.flags2) << 32);
    for wanted in [
        init_flag::ASYNC_READ,
        init_flag::PARALLEL_DIROPS,
        init_flag::AUTO_INVAL_DATA,
        init_flag::DO_READDIRPLUS,
        init_flag::HANDLE_KILLPRIV_V2,
        init_flag::SETXATTR_EXT,
        init_flag::CREATE_SUPP_GROUP,
        init_flag::SUBMOUNTS,
    ] {
        assert_eq!(flags & wanted, wanted, "{wanted:#x}");
    }
    use init_flag::{DONT_MASK, FLOCK_LOCKS, POSIX_ACL, POSIX_LOCKS, SECURITY_CTX, WRITEBACK_CACHE};
    let opt_in = POSIX_LOCKS | FLOCK_LOCKS | POSIX_ACL | DONT_MASK | SECURITY_CTX | WRITEBACK_CACHE;
    assert_eq!(flags & opt_in, 0);
    assert_eq!(flags & init_flag::ATOMIC_O_TRUNC, 0, "a running program would be truncated");
    assert_eq!(flags & init_flag::EXPORT_SUPPORT != 0, has_handles());
    assert_eq!((out.max_write, out.max_pages, out.time_gran), (1 << 20, 256, 1));
}
