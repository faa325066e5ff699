//! A driver that speaks FUSE.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{
    AttrOut, CreateIn, Dirent, EntryOut, ForgetIn, GetattrIn, InHeader, InitIn, InitIn2, InitOut, Opcode, OpenIn,
    OpenOut, OutHeader, ReadIn, ReleaseIn, WriteIn, WriteOut,
};
use tempfile::TempDir;
use vm_memory::ByteValued;

use crate::virtio::VirtioDevice;
use crate::virtio::fs::constants::{FUSE_MINOR, QUEUE_SIZE, init_flag};
use crate::virtio::fs::passthrough::{self, DescriptorBudget};
use crate::virtio::fs::{FsConfig, FsDevice, Tag};
use crate::virtio::test_support::{Chain, FakeDriver, Reply, Segment, readable, writable};

/// The root's node id.
pub(super) const ROOT: u64 = 1;

/// Every flag a recent guest offers, ACLs and all.
pub(super) const ALL_FLAGS: u64 = !(1 << 31);

/// A share in a temporary directory and a guest that uses it.
pub(super) struct Guest {
    pub(super) device: FsDevice,
    pub(super) driver: FakeDriver,
    pub(super) dir: TempDir,
    /// Who asks.
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Extensions that the next requests carry at their end.
    pub(super) extensions: Vec<u8>,
    /// Whether the header says how long they are, as since Linux 6.3.
    pub(super) extensions_counted: bool,
    unique: u64,
}

/// A request without its reply.
pub(super) struct Sent {
    pub(super) unique: u64,
    chain: Chain,
}

/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a request came to: the reply's body, or the errno.
pub(super) type Answer = Result<Vec<u8>, i32>;

/// Reads a structure off the start of bytes.
pub(super) fn object<T: ByteValued + Default>(bytes: &[u8]) -> T {
    let mut object = T::default();
    object.as_mut_slice().copy_from_slice(&bytes[..size_of::<T>()]);
    object
}

/// Puts parts of a message together.
pub(super) fn message(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// A name with its NUL.
pub(super) fn name(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

/// Whether the tests run as root, who can give files to others.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether the host opens files of the temporary directory by file handle.
pub(super) fn has_handles() -> bool {
    passthrough::has_handles(TempDir::new().unwrap().path())
}

impl Guest {
    /// A guest with a session, one request queue and default settings.
    pub(super) fn new() -> Self {
        Guest::with(|_| {})
    }

    /// The same with other settings.
    pub(super) fn with(change: impl FnOnce(&mut FsConfig)) -> Self {
        let mut guest = Guest::without_session(change);
        guest.init(ALL_FLAGS).unwrap();
        guest
    }

    /// A guest that has not sent INIT.
    pub(super) fn without_session(change: impl FnOnce(&mut FsConfig)) -> Self {
        Guest::with_budget(change, DescriptorBudget::new(100_000))
    }

    /// The same with so many descriptors.
    pub(super) fn with_budget(change: impl FnOnce(&mut FsConfig), budget: Arc<DescriptorBudget>) -> Self {
        let dir = TempDir::with_prefix("vmm-fs-").unwrap();
        let mut config = FsConfig::new(Tag::new("myfs1").unwrap(), dir.path());
        change(&mut config);
        let queues = usize::from(config.request_queues) + 1;
        let mut device = FsDevice::with_budget(config, budget).unwrap();
        let mut driver = FakeDriver::new(&vec![QUEUE_SIZE; queues]);
        let features = device.device_features();
        device.activate(driver.activation(features)).unwrap();
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Guest { device, driver, dir, uid, gid, extensions: Vec::new(), extensions_counted: true, unique: 0 }
    }

    pub(super) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn init(&mut self, flags: u64) -> Result<InitOut, i32> {
        let request = InitIn { major: 7, minor: FUSE_MINOR, max_readahead: 131072, flags: flags as u32 };
        let more = InitIn2 { flags2: (flags >> 32) as u32, ..InitIn2::default() };
        let extended = flags & init_flag::INIT_EXT != 0;
        let more = if extended { more.as_slice() } else { &[] };
        let body = message(&[request.as_slice(), more]);
        self.request(Opcode::Init as u32, 0, &body).map(|reply| object(&reply))
    }

    /// The header of the next request.
    pub(super) fn header(&mut self, opcode: u32, node: u64, body: usize) -> InHeader {
        self.unique += 2;
        InHeader {
            len: (size_of::<InHeader>() + body + self.extensions.len()) as u32,
            opcode,
            unique: self.unique,
            nodeid: node,
            uid: self.uid,
            gid: self.gid,
            pid: 42,
            padding: if self.extensions_counted { (self.extensions.len() / 8) as u32 } else { 0 },
        }
    }

    /// Sends a request the way Linux does and takes its reply. Asserts what must hold for every reply.
    pub(super) fn request(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answer {
        self.request_with_room(opcode, node, body, 4096)
    }

    pub(super) fn request_with_room(&mut self, opcode: u32, node: u64, body: &[u8], room: u32) -> Answer {
        let header = self.header(opcode, node, body.len());
        let body = [body, &self.extensions].concat();
        let mut segments = vec![readable(header.as_slice())];
        if !body.is_empty() {
            segments.push(readable(body));
        }
        segments.push(writable(size_of::<OutHeader>() as u32));
        segments.push(writable(room));
        let reply = self.driver.queue(1).request_indirect(&segments);
        check(&reply, header.unique)
    }

    /// Sends a request without waiting for its reply.
    pub(super) fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> Sent {
        let header = self.header(opcode, node, body.len());
        let request = message(&[header.as_slice(), body]);
        let chain =
            self.driver.queue(1).add(&[readable(request), writable(size_of::<OutHeader>() as u32), writable(200)]);
        self.driver.queue(1).kick();
        Sent { unique: header.unique, chain }
    }

    /// The next reply on the request queue, whichever request it is to.
    pub(super) fn next_reply(&mut self, sent: &[&Sent]) -> (u64, Answer) {
        let used = self.driver.queue(1).wait_used(PATIENCE).expect("no reply");
        let sent = sent.iter().find(|sent| sent.chain.head == used.head).expect("a reply to another request");
        let data = self.driver.queue(1).written(&sent.chain);
        self.driver.queue(1).free_buffers(&sent.chain);
        (sent.unique, check(&Reply { len: used.len, data }, sent.unique))
    }

    /// Sends any segments on a queue.
    pub(super) fn raw(&mut self, queue: u16, segments: &[Segment]) -> Reply {
        self.driver.queue(queue).request(segments)
    }

    pub(super) fn lookup(&mut self, parent: u64, file: &str) -> Result<EntryOut, i32> {
        self.request(Opcode::Lookup as u32, parent, &name(file)).map(|reply| object(&reply))
    }

    /// The node of a name that is there.
    pub(super) fn node(&mut self, file: &str) -> u64 {
        self.lookup(ROOT, file).unwrap().nodeid
    }

    pub(super) fn getattr(&mut self, node: u64) -> Result<AttrOut, i32> {
        let request = GetattrIn::default();
        self.request(Opcode::Getattr as u32, node, request.as_slice()).map(|reply| object(&reply))
    }

    pub(super) fn create(
        &mut self,
        parent: u64,
        file: &str,
        flags: i32,
        mode: u32,
    ) -> Result<(EntryOut, OpenOut), i32> {
        let request = CreateIn { flags: flags as u32, mode: mode | libc::S_IFREG, umask: 0o22, fuse_flags: 0 };
        let reply = self.request(Opcode::Create as u32, parent, &message(&[request.as_slice(), &name(file)]))?;
        Ok((object(&reply), object(&reply[size_of::<EntryOut>()..])))
    }

    pub(super) fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let request = OpenIn { flags: flags as u32, fuse_flags: 0 };
        self.request(Opcode::Open as u32, node, request.as_slice()).map(|reply| object::<OpenOut>(&reply).fh)
    }

    pub(super) fn opendir(&mut self, node: u64) -> Result<u64, i32> {
        let request = OpenIn::default();
        self.request(Opcode::Opendir as u32, node, request.as_slice()).map(|reply| object::<OpenOut>(&reply).fh)
    }

    pub(super) fn release(&mut self, node: u64, handle: u64) -> Answer {
        let request = ReleaseIn { fh: handle, ..ReleaseIn::default() };
        self.request(Opcode::Release as u32, node, request.as_slice())
    }

    pub(super) fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Answer {
        let request = ReadIn { fh: handle, offset, size, ..ReadIn::default() };
        self.request_with_room(Opcode::Read as u32, node, request.as_slice(), size)
    }

    pub(super) fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        self.write_with(node, WriteIn { fh: handle, offset, size: data.len() as u32, ..WriteIn::default() }, data)
    }

    pub(super) fn write_with(&mut self, node: u64, request: WriteIn, data: &[u8]) -> Result<u32, i32> {
        let reply = self.request(Opcode::Write as u32, node, &message(&[request.as_slice(), data]))?;
        Ok(object::<WriteOut>(&reply).size)
    }

    /// A whole directory, read in replies of `size` bytes.
    pub(super) fn list(&mut self, node: u64, size: u32) -> Vec<Listed> {
        let handle = self.opendir(node).unwrap();
        let mut all = Vec::new();
        let mut offset = 0;
        loop {
            let request = ReadIn { fh: handle, offset, size, ..ReadIn::default() };
            let reply = self.request_with_room(Opcode::Readdir as u32, node, request.as_slice(), size).unwrap();
            let page = entries(&reply, false);
            let Some(last) = page.last() else { break };
            offset = last.dirent.off;
            all.extend(page);
        }
        let request = ReleaseIn { fh: handle, ..ReleaseIn::default() };
        self.request(Opcode::Releasedir as u32, node, request.as_slice()).unwrap();
        all
    }

    /// FORGET on the high-priority queue.
    pub(super) fn forget(&mut self, node: u64, count: u64) {
        let request = ForgetIn { nlookup: count };
        let header = self.header(Opcode::Forget as u32, node, size_of::<ForgetIn>());
        let reply = self.raw(0, &[readable(header.as_slice()), readable(request.as_slice())]);
        assert_eq!(reply.len, 0, "FORGET has no reply");
    }

    /// The device works as before: a sign of life after bad input.
    pub(super) fn assert_alive(&mut self) {
        self.getattr(ROOT).unwrap();
        assert_eq!(self.driver.interrupt().failures(), []);
    }

    /// Who owns a file on the host.
    pub(super) fn owner(&self, file: &str) -> (u32, u32) {
        let stat = fs::symlink_metadata(self.path(file)).unwrap();
        (stat.uid(), stat.gid())
    }

    /// A file's mode on the host, without its type.
    pub(super) fn mode(&self, file: &str) -> u32 {
        fs::symlink_metadata(self.path(file)).unwrap().mode() & 0o7777
    }
}

/// A directory entry from a reply.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) dirent: Dirent,
    /// With READDIRPLUS.
    pub(super) entry: Option<EntryOut>,
}

/// The entries in the body of a READDIR or READDIRPLUS.
pub(super) fn entries(mut body: &[u8], plus: bool) -> Vec<Listed> {
    let mut list = Vec::new();
    while !body.is_empty() {
        let entry = plus.then(|| object::<EntryOut>(body));
        let start = if plus { size_of::<EntryOut>() } else { 0 };
        let dirent: Dirent = object(&body[start..]);
        let name = &body[start + size_of::<Dirent>()..][..dirent.namelen as usize];
        list.push(Listed { name: String::from_utf8(name.to_vec()).unwrap(), dirent, entry });
        body = &body[start + (size_of::<Dirent>() + name.len()).next_multiple_of(8)..];
    }
    list
}

/// The body of a reply, or its errno.
pub(super) fn check(reply: &Reply, unique: u64) -> Answer {
    let header: OutHeader = object(&reply.data);
    assert_eq!(header.unique, unique, "the reply is to another request");
    assert_eq!(reply.len, header.len, "used length and reply length differ");
    assert!(header.error <= 0 && header.error > -4096, "no errno: {}", header.error);
    if header.error == 0 {
        Ok(reply.data[size_of::<OutHeader>()..header.len as usize].to_vec())
    } else {
        assert_eq!(header.len as usize, size_of::<OutHeader>(), "an error has no body");
        Err(-header.error)
    }
}
