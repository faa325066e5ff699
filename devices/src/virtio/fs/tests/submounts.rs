//! Other file systems mounted below the share. These tests mount, so they need root; each does it in a mount namespace
//! of its own thread, which the device's threads inherit.

use std::fs;
use std::path::{Path, PathBuf};

use fuse_backend_rs::abi::fuse_abi::{ATTR_SUBMOUNT, Opcode, ReadIn};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::UnshareFlags;
use vm_memory::ByteValued;

use super::harness::{ALL_FLAGS, Guest, ROOT, entries, has_handles, is_root};
use crate::virtio::fs::constants::{init_flag, opcode};

/// Runs a test in a mount namespace of its own, if this process may.
fn in_a_namespace(test: impl FnOnce() + Send + 'static) {
    if !is_root() {
        return;
    }
    let thread = std::thread::spawn(|| {
        // SAFETY: only this thread's mounts become its own (and its root and working directory, which that takes).
        if unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.is_err() {
            return;
        }
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A mount, to be dropped before the share that it is in, which could not be removed otherwise.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        // A test may have done it itself.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A guest whose share has `sub/dir/file` in a tmpfs on `sub`.
fn guest() -> (Guest, Mounted) {
    let guest = Guest::new();
    fs::create_dir(guest.path("sub")).unwrap();
    fs::create_dir(guest.path("plain")).unwrap();
    let mounted = mount_tmpfs(&guest.path("sub"));
    fs::create_dir(guest.path("sub/dir")).unwrap();
    fs::write(guest.path("sub/dir/file"), "data").unwrap();
    (guest, mounted)
}

fn mount_tmpfs(path: &Path) -> Mounted {
    mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
    Mounted(path.to_owned())
}

#[test]
fn the_root_of_another_file_system_is_announced_as_that_and_nothing_else_is() {
    in_a_namespace(|| {
        let (mut guest, _mounted) = guest();
        let sub = guest.lookup(ROOT, "sub").unwrap();
        assert_eq!(sub.attr.flags & ATTR_SUBMOUNT, ATTR_SUBMOUNT);
        // Linux gives the root of a submount's superblock generation 0 by itself.
        assert_eq!(sub.generation, 0);
        let dir = guest.lookup(sub.nodeid, "dir").unwrap();
        assert_eq!(dir.attr.flags, 0);
        assert_eq!(guest.lookup(ROOT, "plain").unwrap().attr.flags, 0);
        assert_eq!(guest.lookup(ROOT, ".").unwrap().attr.flags, 0);
        assert_eq!(guest.lookup(sub.nodeid, "..").unwrap().nodeid, ROOT, "up through the mount");
        let handle = guest.opendir(ROOT).unwrap();
        let request = ReadIn { fh: handle, size: 4096, ..ReadIn::default() };
        let reply = guest.request_with_room(Opcode::Readdirplus as u32, ROOT, request.as_slice(), 4096).unwrap();
        for listed in entries(&reply, true) {
            let expected = if listed.name == "sub" { ATTR_SUBMOUNT } else { 0 };
            assert_eq!(listed.entry.unwrap().attr.flags, expected, "{}", listed.name);
        }
        guest.init(ALL_FLAGS & !init_flag::SUBMOUNTS).unwrap();
        assert_eq!(guest.lookup(ROOT, "sub").unwrap().attr.flags, 0, "a guest that does not know of them");
    });
}

#[test]
fn a_bind_mount_is_a_mount_too_and_one_inode_in_two_mounts_two_nodes() {
    in_a_namespace(|| {
        let mut guest = Guest::new();
        fs::create_dir_all(guest.path("a/dir")).unwrap();
        fs::create_dir(guest.path("b")).unwrap();
        rustix::mount::mount_bind(guest.path("a"), guest.path("b")).unwrap();
        let _mounted = Mounted(guest.path("b"));
        let (a, b) = (guest.lookup(ROOT, "a").unwrap(), guest.lookup(ROOT, "b").unwrap());
        assert_eq!((a.attr.ino, a.attr.flags, b.attr.flags), (b.attr.ino, 0, ATTR_SUBMOUNT));
        let in_a = guest.lookup(a.nodeid, "dir").unwrap().nodeid;
        let in_b = guest.lookup(b.nodeid, "dir").unwrap().nodeid;
        assert_ne!(in_a, in_b);
        assert_eq!(guest.lookup(in_a, "..").unwrap().nodeid, a.nodeid);
        assert_eq!(guest.lookup(in_b, "..").unwrap().nodeid, b.nodeid);
        // Also after both were forgotten.
        guest.forget(in_a, 1);
        guest.forget(in_b, 1);
        if has_handles() {
            assert_eq!(guest.lookup(in_b, "..").unwrap().nodeid, b.nodeid);
            assert_eq!(guest.lookup(in_a, ".").unwrap().nodeid, in_a);
        }
    });
}

#[test]
fn node_ids_are_stable_in_a_submount_and_do_not_keep_it_mounted() {
    in_a_namespace(|| {
        let (mut guest, _mounted) = guest();
        if !has_handles() {
            return;
        }
        let sub = guest.node("sub");
        let dir = guest.lookup(sub, "dir").unwrap().nodeid;
        let file = guest.lookup(dir, "file").unwrap().nodeid;
        guest.forget(file, 1);
        assert_eq!(guest.lookup(file, ".").unwrap().nodeid, file);
        guest.forget(file, 1);
        assert_eq!(guest.lookup(dir, "file").unwrap().nodeid, file);
        assert!(unmount(guest.path("sub"), UnmountFlags::empty()).is_err(), "busy while the guest knows files in it");
        guest.request(opcode::DESTROY, ROOT, &[]).unwrap();
        guest.init(ALL_FLAGS).unwrap();
        assert_eq!(guest.lookup(file, ".").map(drop), Err(libc::ESTALE), "not before the guest has come there again");
        assert_eq!(guest.node("sub"), sub);
        assert_eq!(guest.lookup(file, ".").unwrap().nodeid, file);
        guest.request(opcode::DESTROY, ROOT, &[]).unwrap();
        unmount(guest.path("sub"), UnmountFlags::empty()).unwrap();
        guest.init(ALL_FLAGS).unwrap();
        assert_ne!(guest.node("sub"), sub, "what was below the mount");
        // Another file system in its place is another.
        let _mounted = mount_tmpfs(&guest.path("sub"));
        fs::create_dir(guest.path("sub/dir")).unwrap();
        let other = guest.node("sub");
        assert_ne!(other, sub);
        assert_ne!(guest.lookup(other, "dir").unwrap().nodeid, dir);
        assert_eq!(guest.lookup(dir, ".").map(drop), Err(libc::ESTALE));
    });
}
