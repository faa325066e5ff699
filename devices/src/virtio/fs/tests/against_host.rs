//! Random operations, on the share through the server and on a directory of the host directly: the same answers, the same
//! errnos, and the same trees afterwards.
//!
//! `VMM_FS_SEQUENCES` says how many sequences (20 if it is not set), `VMM_FS_SEED` with which number to begin: a failure
//! names the one to repeat.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

use fuse_backend_rs::abi::fuse_abi::{
    AttrOut, CopyFileRangeIn, EntryOut, FallocateIn, LinkIn, LseekIn, MkdirIn, MknodIn, Opcode, OpenIn, ReadIn,
    SetattrIn, WriteIn, WriteOut,
};
use tempfile::TempDir;
use vm_memory::ByteValued;

use super::harness::{Guest, ROOT, is_root, message, name, object};
use super::host_model::{self as host, Outcome, describe};
use super::random::Random;
use super::{names, xattrs};
use crate::virtio::fs::constants::opcode;

const OPERATIONS: usize = 80;

struct Node {
    id: u64,
    host: OwnedFd,
}

struct Open {
    node: u64,
    fh: u64,
    append: bool,
    host: File,
}

/// One sequence: what the guest knows and has open, each with its twin on the host.
struct Sequence<'g> {
    guest: &'g mut Guest,
    random: Random,
    nodes: Vec<Node>,
    files: Vec<Open>,
}

fn attributes(out: &fuse_backend_rs::abi::fuse_abi::Attr) -> String {
    describe(out.mode, out.nlink, out.size, (out.uid, out.gid))
}

fn empty(answer: Result<Vec<u8>, i32>) -> Outcome {
    answer.map(|body| {
        assert_eq!(body, b"");
        String::new()
    })
}

impl Sequence<'_> {
    fn name(&mut self) -> String {
        let long = ["n".repeat(255), "n".repeat(256)];
        self.random.pick(&["a", "b", "c", "d", "e", "a", "b", &long[0], &long[1]]).to_owned()
    }

    fn node(&mut self) -> usize {
        self.random.below(self.nodes.len() as u64) as usize
    }

    fn offset(&mut self) -> u64 {
        self.random.pick(&[0, 1, 100, 4096, 5000, 8192, 65536, 1 << 20])
    }

    /// Compares what both sides say of a file that was found or made, and keeps it.
    fn admit(&mut self, guest: Result<EntryOut, i32>, host: Result<OwnedFd, i32>) -> (Outcome, Outcome) {
        let said = guest.as_ref().map(|entry| attributes(&entry.attr)).map_err(|error| *error);
        let expected = host.as_ref().map(host::attributes).map_err(|error| *error);
        if let (Ok(entry), Ok(host)) = (guest, host) {
            let ino = host::stat(&host).stx_ino;
            for other in &self.nodes {
                let same = host::stat(&other.host).stx_ino == ino;
                assert_eq!(same, other.id == entry.nodeid, "one inode, one node id");
            }
            self.nodes.push(Node { id: entry.nodeid, host });
        }
        (said, expected)
    }

    /// One random operation; what it was, what the server said and what the host says.
    fn step(&mut self) -> (String, (Outcome, Outcome)) {
        let (at, other) = (self.node(), self.node());
        let (id, other_id) = (self.nodes[at].id, self.nodes[other].id);
        let (file, other_file) = (self.name(), self.name());
        let mode = self.random.pick(&[0o755, 0o700, 0o644, 0o600, 0o444, 0]);
        match self.random.below(24) {
            0..3 => {
                let what = format!("lookup {at} {file:?}");
                let found = host::lookup(&self.nodes[at].host, &file);
                let answer = self.guest.lookup(id, &file);
                (what, self.admit(answer, found))
            }
            3 | 4 => {
                let body = message(&[MkdirIn { mode, umask: 0 }.as_slice(), &name(&file)]);
                let answer = self.guest.request(opcode::MKDIR, id, &body).map(|reply| object(&reply));
                let made = host::mkdir(&self.nodes[at].host, &file, mode);
                (format!("mkdir {at} {file:?} {mode:o}"), self.admit(answer, made))
            }
            5 => {
                let mknod = MknodIn { mode: libc::S_IFIFO | mode, ..MknodIn::default() };
                let answer = self.guest.request(opcode::MKNOD, id, &message(&[mknod.as_slice(), &name(&file)]));
                let made = host::mkfifo(&self.nodes[at].host, &file, mode);
                (format!("mkfifo {at} {file:?} {mode:o}"), self.admit(answer.map(|reply| object(&reply)), made))
            }
            6 => {
                let answer = self.guest.request(opcode::SYMLINK, id, &message(&[&name(&file), &name(&other_file)]));
                let made = host::symlink(&self.nodes[at].host, &file, &other_file);
                (format!("symlink {at} {file:?}"), self.admit(answer.map(|reply| object(&reply)), made))
            }
            7 => {
                let body = message(&[LinkIn { oldnodeid: other_id }.as_slice(), &name(&file)]);
                let answer = self.guest.request(Opcode::Link as u32, id, &body).map(|reply| object(&reply));
                let made = host::link(&self.nodes[other].host, &self.nodes[at].host, &file);
                (format!("link {other} to {at} {file:?}"), self.admit(answer, made))
            }
            8 | 9 => self.create(at, &file, mode),
            10 => self.open(at),
            11 => {
                let directory = self.random.below(2) == 0;
                let code = if directory { Opcode::Rmdir } else { Opcode::Unlink };
                let answer = empty(self.guest.request(code as u32, id, &name(&file)));
                let expected = host::unlink(&self.nodes[at].host, &file, directory);
                (format!("{code:?} {at} {file:?}"), (answer, expected))
            }
            12 => {
                let flags = self.random.pick(&[0, 0, 1, 2, 4, 3, 5, 8]);
                let answer = names::rename(self.guest, (id, &file), (other_id, &other_file), Some(flags));
                let (from, to) = (&self.nodes[at].host, &self.nodes[other].host);
                let expected = host::rename((from, &file), (to, &other_file), flags);
                (format!("rename {at} {file:?} to {other} {other_file:?} {flags}"), (empty(answer), expected))
            }
            13 | 14 => self.set_attributes(at, mode),
            15 | 16 => self.xattr(at),
            17 => (format!("read link {at}"), self.read_link(at)),
            18 => (format!("list {at}"), self.list(at)),
            19 => {
                let said = self.guest.getattr(id).map(|out| attributes(&out.attr));
                (format!("getattr {at}"), (said, Ok(host::attributes(&self.nodes[at].host))))
            }
            20 if at > 0 => {
                self.guest.forget(id, 1);
                self.nodes.swap_remove(at);
                (format!("forget {at}"), (Ok(String::new()), Ok(String::new())))
            }
            _ => self.data(),
        }
    }

    fn create(&mut self, at: usize, file: &str, mode: u32) -> (String, (Outcome, Outcome)) {
        let flags = libc::O_RDWR | self.random.pick(&[0, libc::O_EXCL, libc::O_TRUNC, libc::O_APPEND]);
        let made = host::create(&self.nodes[at].host, file, flags, mode);
        let answer = self.guest.create(self.nodes[at].id, file, flags, mode);
        if let (Ok((entry, open)), Ok((_, host))) = (&answer, &made) {
            let (append, host) = (flags & libc::O_APPEND != 0, host.try_clone().unwrap());
            self.files.push(Open { node: entry.nodeid, fh: open.fh, append, host });
        }
        let outcomes = self.admit(answer.map(|(entry, _)| entry), made.map(|(node, _)| node));
        (format!("create {at} {file:?} {flags:x} {mode:o}"), outcomes)
    }

    fn open(&mut self, at: usize) -> (String, (Outcome, Outcome)) {
        let flags = self.random.pick(&[libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR])
            | self.random.pick(&[0, 0, libc::O_TRUNC, libc::O_APPEND]);
        let id = self.nodes[at].id;
        let host = host::open(&self.nodes[at].host, flags);
        let answer = self.guest.open(id, flags);
        let outcomes = (answer.map(|_| String::new()), host.as_ref().map(|_| String::new()).map_err(|error| *error));
        if let (Ok(fh), Ok(host)) = (answer, host) {
            self.files.push(Open { node: id, fh, append: flags & libc::O_APPEND != 0, host });
        }
        (format!("open {at} {flags:x}"), outcomes)
    }

    fn set_attributes(&mut self, at: usize, mode: u32) -> (String, (Outcome, Outcome)) {
        let mode = mode | self.random.pick(&[0, 0o4000, 0o2000, 0o1000]);
        let size = self.offset();
        let (request, host) = match self.random.below(3) {
            0 => (SetattrIn { valid: 1, mode, ..SetattrIn::default() }, host::chmod(&self.nodes[at].host, mode)),
            1 => {
                (SetattrIn { valid: 1 << 3, size, ..SetattrIn::default() }, host::truncate(&self.nodes[at].host, size))
            }
            _ => {
                let times = SetattrIn { atime: size, mtime: size, atimensec: 7, mtimensec: 7, ..SetattrIn::default() };
                (SetattrIn { valid: 1 << 4 | 1 << 5, ..times }, host::set_times(&self.nodes[at].host, size))
            }
        };
        let answer = self.guest.request(Opcode::Setattr as u32, self.nodes[at].id, request.as_slice());
        let said = answer.map(|reply| attributes(&object::<AttrOut>(&reply).attr));
        (format!("setattr {at} {:x} {mode:o} {size}", request.valid), (said, host))
    }

    fn xattr(&mut self, at: usize) -> (String, (Outcome, Outcome)) {
        let attribute = self.random.pick(&["user.x", "user.y", "trusted.z", "bad", "security.capability"]);
        let (node, flags) = (self.nodes[at].id, self.random.pick(&[0, 1, 2, 3, 8]));
        let twin = &self.nodes[at].host;
        let outcomes = match self.random.below(4) {
            0 | 1 => {
                let value = [at as u8; 20];
                let answer = xattrs::set(self.guest, node, attribute, &value, flags);
                (empty(answer), host::set_xattr(twin, attribute, &value, flags))
            }
            2 => {
                let answer = xattrs::get(self.guest, node, attribute, 1000).map(|value| format!("{value:?}"));
                (answer, host::get_xattr(twin, attribute))
            }
            _ => (empty(xattrs::remove(self.guest, node, attribute)), host::remove_xattr(twin, attribute)),
        };
        (format!("xattr {at} {attribute} {flags}"), outcomes)
    }

    fn read_link(&mut self, at: usize) -> (Outcome, Outcome) {
        let answer = self.guest.request(Opcode::Readlink as u32, self.nodes[at].id, &[]);
        (answer.map(|target| String::from_utf8(target).unwrap()), host::read_link(&self.nodes[at].host))
    }

    fn list(&mut self, at: usize) -> (Outcome, Outcome) {
        let (id, expected) = (self.nodes[at].id, host::list(&self.nodes[at].host));
        if expected.is_err() {
            let open = OpenIn::default();
            let answer = self.guest.request(Opcode::Opendir as u32, id, open.as_slice());
            return (answer.map(|_| "opened".to_owned()), expected);
        }
        if host::stat(&self.nodes[at].host).stx_nlink == 0 {
            // getdents of a removed directory, which the C library makes an end of.
            let fh = self.guest.opendir(id).unwrap();
            let request = ReadIn { fh, size: 4096, ..ReadIn::default() };
            let answer = self.guest.request(Opcode::Readdir as u32, id, request.as_slice());
            self.guest.request(opcode::RELEASEDIR, id, &[fh.to_le_bytes(), [0; 8], [0; 8]].concat()).unwrap();
            return (empty(answer), Err(libc::ENOENT));
        }
        let size = self.random.pick(&[400, 1000, 4096]);
        let list = self.guest.list(id, size);
        let mut names: Vec<_> = list.iter().map(|listed| (listed.name.clone(), listed.dirent.type_)).collect();
        names.sort();
        (Ok(format!("{names:?}")), expected)
    }

    /// An operation on an open file.
    fn data(&mut self) -> (String, (Outcome, Outcome)) {
        if self.files.is_empty() {
            return ("nothing is open".into(), (Ok(String::new()), Ok(String::new())));
        }
        let at = self.random.below(self.files.len() as u64) as usize;
        let other = self.random.below(self.files.len() as u64) as usize;
        let (offset, other_offset) = (self.offset(), self.offset());
        let length = self.random.pick(&[0, 1, 100, 3000, 4096, 8192]);
        let choice = self.random.below(8);
        let fallocate_mode = self.random.pick(&[0, 1, 3, 2, 8, 16, 17, 32, 64, 0x1000]);
        let whence = self.random.pick(&[libc::SEEK_DATA, libc::SEEK_HOLE]);
        let Open { node, fh, append, ref host } = self.files[at];
        // The guest's kernel answers reads and writes of nothing itself.
        let length = if choice < 4 { length.max(1) } else { length };
        let outcomes = match choice {
            0 | 1 => {
                let data: Vec<u8> = (0..length).map(|index| (index + offset) as u8).collect();
                let flags = if append { libc::O_APPEND as u32 } else { 0 };
                let request = WriteIn { fh, offset, size: length as u32, flags, ..WriteIn::default() };
                let answer = self.guest.write_with(node, request, &data).map(|size| size.to_string());
                (answer, host::write(host, offset, &data))
            }
            2 | 3 => {
                let answer = self.guest.read(node, fh, offset, length as u32).map(|data| format!("{data:?}"));
                (answer, host::read(host, offset, length as usize))
            }
            4 => {
                let request = FallocateIn { fh, offset, length, mode: fallocate_mode, padding: 0 };
                let answer = self.guest.request(opcode::FALLOCATE, node, request.as_slice());
                (empty(answer), host::allocate(host, fallocate_mode, offset, length))
            }
            5 => {
                let request = LseekIn { fh, offset, whence: whence as u32, padding: 0 };
                let answer = self.guest.request(Opcode::Lseek as u32, node, request.as_slice());
                (answer.map(|reply| object::<u64>(&reply).to_string()), host::seek(host, offset, whence))
            }
            6 => {
                let to = &self.files[other];
                // The server's files never append by themselves; copy_file_range refuses those that do.
                if append || to.append {
                    return ("no copy".into(), (Ok(String::new()), Ok(String::new())));
                }
                let request = CopyFileRangeIn {
                    fh_in: fh,
                    offset_in: offset,
                    nodeid_out: to.node,
                    fh_out: to.fh,
                    offset_out: other_offset,
                    len: length,
                    flags: 0,
                };
                let answer = self.guest.request(opcode::COPY_FILE_RANGE, node, request.as_slice());
                let expected = host::copy((host, offset), (&to.host, other_offset), length);
                (answer.map(|reply| object::<WriteOut>(&reply).size.to_string()), expected)
            }
            _ => {
                let answer = empty(self.guest.release(node, fh));
                self.files.swap_remove(at);
                (answer, Ok(String::new()))
            }
        };
        (format!("data {choice} of {at} and {other} at {offset} {other_offset} {length} {fallocate_mode}"), outcomes)
    }

    /// Closes and forgets everything.
    fn end(&mut self) {
        for open in self.files.drain(..) {
            self.guest.release(open.node, open.fh).unwrap();
        }
        for node in self.nodes.drain(..) {
            self.guest.forget(node.id, 1);
        }
    }
}

/// Everything about a tree that both sides have to agree on.
fn tree(dir: &Path, into: &mut Vec<String>, prefix: &str) {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for file in names {
        let (path, shown) = (dir.join(&file), format!("{prefix}/{}", file.to_str().unwrap()));
        let node = host::lookup(&OwnedFd::from(File::open(dir).unwrap()), file.to_str().unwrap()).unwrap();
        let mut line = format!("{shown}: {}", host::attributes(&node));
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_file() {
            line += &format!(" {:?} {:?}", fs::read(&path), host::get_xattr(&node, "user.x"));
        } else if kind.is_symlink() {
            line += &format!(" to {:?}", fs::read_link(&path));
        }
        into.push(line);
        if kind.is_dir() {
            tree(&path, into, &shown);
        }
    }
}

fn from_environment(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn random_operations_are_answered_as_the_host_answers_them() {
    if !is_root() {
        // The host would check permissions, which the server leaves to the guest's kernel.
        return;
    }
    let (first, count) = (from_environment("VMM_FS_SEED", 1), from_environment("VMM_FS_SEQUENCES", 20));
    let mut guest = Guest::new();
    // Beside the share, on the same file system.
    let model = TempDir::with_prefix("vmm-fs-model-").unwrap();
    for seed in first..first + count {
        let dir = format!("s{seed}");
        fs::create_dir(guest.path(&dir)).unwrap();
        fs::create_dir(model.path().join(&dir)).unwrap();
        let root = Node { id: guest.node(&dir), host: File::open(model.path().join(&dir)).unwrap().into() };
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut sequence = Sequence { guest: &mut guest, random, nodes: vec![root], files: Vec::new() };
        let mut log = Vec::new();
        for _ in 0..OPERATIONS {
            let (what, (answer, expected)) = sequence.step();
            log.push(format!(
                "{what}: {}",
                expected.as_deref().map_or_else(|code| format!("errno {code}"), str::to_owned)
            ));
            assert_eq!(answer, expected, "VMM_FS_SEED={seed} VMM_FS_SEQUENCES=1\n{}", log.join("\n"));
        }
        sequence.end();
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        tree(&guest.path(&dir), &mut ours, "");
        tree(&model.path().join(&dir), &mut theirs, "");
        assert_eq!(ours, theirs, "VMM_FS_SEED={seed} VMM_FS_SEQUENCES=1\n{}", log.join("\n"));
        fs::remove_dir_all(guest.path(&dir)).unwrap();
        fs::remove_dir_all(model.path().join(&dir)).unwrap();
    }
    assert_eq!(guest.getattr(ROOT).map(|out| out.attr.nlink), Ok(2), "all directories are gone");
    guest.assert_alive();
}
