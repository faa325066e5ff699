//! The requests that are decoded here, one function each.

use std::io;
use std::sync::atomic::Ordering;

use fuse_backend_rs::abi::fuse_abi::{
    AttrOut, CopyFileRangeIn, CreateIn, EntryOut, FallocateIn, FsyncIn, GetattrIn, InHeader, InitIn, InitIn2, IoctlIn,
    IoctlOut, LkIn, LkOut, MkdirIn, MknodIn, OpenOut, Rename2In, SetxattrIn, WriteOut,
};
use fuse_backend_rs::abi::virtio_fs::{RemovemappingIn, RemovemappingOne};
use fuse_backend_rs::api::filesystem::Entry;
use vm_memory::ByteValued;

use super::body::{Body, MALFORMED, split_name};
use super::chain::Request;
use super::constants::{EXT_UNIT, LARGE_RANGE, SETXATTR_ACL_KILL_SGID, init_flag, opcode};
use super::dispatch::FuseServer;
use super::extensions::Extensions;
use super::init::{Negotiation, negotiate};
use super::messages::{SetxattrInExt, StatxIn, StatxOut};
use super::passthrough::{AllocateRange, Caller, CopyRange, Created, Creator, LockRequest, errno};
use super::slow_pool::Job;

/// A request that may keep a thread for long.
pub(super) enum Slow {
    /// But this one will not.
    Now(Job),
    /// It waits for the disk.
    Later(Job),
    /// It waits for a lock.
    Lock(LockRequest),
}

impl Slow {
    /// Work on `length` bytes.
    fn sized(length: u64, job: Job) -> Self {
        if length < LARGE_RANGE { Slow::Now(job) } else { Slow::Later(job) }
    }
}

impl FuseServer {
    /// Serves a request that is decoded here; `None` for all others.
    pub(super) fn own(&self, request: &Request<'_>) -> Option<io::Result<Vec<u8>>> {
        let serve = match request.header.opcode {
            opcode::INIT => Self::init,
            opcode::DESTROY => Self::destroy,
            opcode::SYMLINK => Self::symlink,
            opcode::MKNOD => Self::mknod,
            opcode::MKDIR => Self::mkdir,
            opcode::CREATE => Self::create,
            opcode::TMPFILE => Self::tmpfile,
            opcode::SETXATTR => Self::setxattr,
            opcode::RENAME2 => Self::rename2,
            opcode::IOCTL => Self::ioctl,
            opcode::GETLK if self.fs.has(init_flag::POSIX_LOCKS) => Self::getlk,
            opcode::SETLK if self.fs.has(init_flag::POSIX_LOCKS) => Self::setlk,
            opcode::STATX => Self::statx,
            opcode::GETATTR => Self::getattr,
            opcode::SETUPMAPPING if self.fs.has(init_flag::MAP_ALIGNMENT) => Self::setup_mapping,
            opcode::REMOVEMAPPING if self.fs.has(init_flag::MAP_ALIGNMENT) => Self::remove_mapping,
            _ => return None,
        };
        Some(Body::new(request).and_then(|body| serve(self, &request.header, body)))
    }

    /// A request that may keep a thread for long, ready to be done by another one; `None` for all others. What is wrong
    /// with it is found here, as far as that shows before it is begun.
    pub(super) fn slow(&self, request: &Request<'_>) -> Option<io::Result<Slow>> {
        let decode: fn(&Self, &InHeader, Body<'_>) -> io::Result<Slow> = match request.header.opcode {
            opcode::FSYNC | opcode::FSYNCDIR => Self::fsync,
            opcode::SYNCFS => Self::syncfs,
            opcode::FALLOCATE => Self::fallocate,
            opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => Self::copy_file_range,
            opcode::SETLKW if self.fs.has(init_flag::POSIX_LOCKS) => Self::setlkw,
            _ => return None,
        };
        Some(Body::new(request).and_then(|body| decode(self, &request.header, body)))
    }

    fn fsync(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Slow> {
        let FsyncIn { fh, fsync_flags, .. } = body.object()?;
        // FUSE_FSYNC_FDATASYNC.
        Ok(Slow::Later(self.fs.sync_file(header.nodeid, fh, fsync_flags & 1 != 0)?))
    }

    fn syncfs(&self, header: &InHeader, _body: Body<'_>) -> io::Result<Slow> {
        Ok(Slow::Later(self.fs.sync_file_system(header.nodeid)?))
    }

    fn fallocate(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Slow> {
        let FallocateIn { fh, offset, length, mode, .. } = body.object()?;
        let range = AllocateRange { file: (header.nodeid, fh), offset, length, mode };
        Ok(Slow::sized(length, self.fs.allocate((header.uid, header.gid), range)?))
    }

    fn setlkw(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Slow> {
        Ok(Slow::Lock(self.fs.lock_request(header.nodeid, &body.object::<LkIn>()?)?))
    }

    fn setlk(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        self.fs.lock_request(header.nodeid, &body.object::<LkIn>()?)?.attempt()?;
        Ok(Vec::new())
    }

    fn getlk(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let lk = self.fs.test_lock(header.nodeid, &body.object::<LkIn>()?)?;
        Ok(LkOut { lk }.as_slice().to_vec())
    }

    fn init(&self, _header: &InHeader, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let request: InitIn = body.object()?;
        let extended = u64::from(request.flags) & init_flag::INIT_EXT != 0;
        let flags2 = if extended { body.object::<InitIn2>()?.flags2 } else { 0 };
        match negotiate(&request, flags2, self.fs.wanted_flags())? {
            Negotiation::Agreed(reply, flags) => {
                // A guest that was reset has not said goodbye; what it had open is closed.
                self.fs.start_session(flags);
                self.in_session.store(true, Ordering::Release);
                tracing::debug!("FUSE {}.{}, flags {flags:#x}", request.major, request.minor);
                Ok(reply.as_slice().to_vec())
            }
            Negotiation::OtherVersion(reply) => Ok(reply.as_slice().to_vec()),
        }
    }

    fn destroy(&self, _header: &InHeader, _body: Body<'_>) -> io::Result<Vec<u8>> {
        self.end_session();
        Ok(Vec::new())
    }

    fn mkdir(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let MkdirIn { mode, umask } = body.object()?;
        let (tail, creator) = self.tail_and_creator(header, body, 1, umask)?;
        let (name, _) = split_name(&tail)?;
        Ok(entry_bytes(self.fs.make_dir(&creator, header.nodeid, name, mode)?))
    }

    fn mknod(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let MknodIn { mode, rdev, umask, .. } = body.object()?;
        let (tail, creator) = self.tail_and_creator(header, body, 1, umask)?;
        let (name, _) = split_name(&tail)?;
        Ok(entry_bytes(self.fs.make_node(&creator, header.nodeid, name, mode, rdev)?))
    }

    /// Decoded here because flags that nobody knows have to be refused, not left out.
    fn rename2(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let Rename2In { newdir, flags, .. } = body.object()?;
        let tail = body.rest()?;
        let (old, rest) = split_name(&tail)?;
        let (new, _) = split_name(rest)?;
        self.fs.rename_name((header.uid, header.gid), header.nodeid, old, newdir, new, flags)?;
        Ok(Vec::new())
    }

    fn symlink(&self, header: &InHeader, body: Body<'_>) -> io::Result<Vec<u8>> {
        let (tail, creator) = self.tail_and_creator(header, body, 2, 0)?;
        let (name, rest) = split_name(&tail)?;
        let (target, _) = split_name(rest)?;
        Ok(entry_bytes(self.fs.make_symlink(&creator, header.nodeid, name, target)?))
    }

    fn create(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let args: CreateIn = body.object()?;
        let (tail, creator) = self.tail_and_creator(header, body, 1, args.umask)?;
        let (name, _) = split_name(&tail)?;
        Ok(created_bytes(self.fs.create_file(&creator, header.nodeid, name, args)?))
    }

    fn tmpfile(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let args: CreateIn = body.object()?;
        // A name follows (Linux sends "/"), which means nothing.
        let (_, creator) = self.tail_and_creator(header, body, 1, args.umask)?;
        Ok(created_bytes(self.fs.create_unnamed(&creator, header.nodeid, args)?))
    }

    fn setxattr(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let (size, flags, more) = if self.fs.has(init_flag::SETXATTR_EXT) {
            let SetxattrInExt { size, flags, setxattr_flags, .. } = body.object()?;
            (size, flags, setxattr_flags)
        } else {
            let SetxattrIn { size, flags } = body.object()?;
            (size, flags, 0)
        };
        let kill_set_gid = (more & SETXATTR_ACL_KILL_SGID != 0).then_some(header.gid);
        let tail = body.rest()?;
        let (name, value) = split_name(&tail)?;
        if value.len() != size as usize {
            return Err(errno(MALFORMED));
        }
        self.fs.set_xattr(header.nodeid, name, value, flags, kill_set_gid)?;
        Ok(Vec::new())
    }

    fn ioctl(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let args: IoctlIn = body.object()?;
        let input = body.rest()?;
        if input.len() != args.in_size as usize {
            return Err(errno(MALFORMED));
        }
        let reply = self.fs.control(header.nodeid, args.fh, args.cmd, &input, args.out_size)?;
        let out = IoctlOut { result: reply.result, ..IoctlOut::default() };
        Ok([out.as_slice(), &reply.data].concat())
    }

    fn copy_file_range(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Slow> {
        let args: CopyFileRangeIn = body.object()?;
        if args.flags != 0 {
            return Err(errno(libc::EINVAL));
        }
        let wide = header.opcode == opcode::COPY_FILE_RANGE_64;
        // The older reply counts in 32 bits; a copy may be shorter than asked for. Whole pages keep later ones fast.
        let longest = if wide { u64::MAX } else { 0xffff_f000 };
        let range = CopyRange {
            from: (header.nodeid, args.fh_in),
            offset_in: args.offset_in,
            to: (args.nodeid_out, args.fh_out),
            offset_out: args.offset_out,
            length: args.len.min(longest),
        };
        let copy = self.fs.copy_range((header.uid, header.gid), range)?;
        let reply = move || {
            let copied = copy()?;
            if wide {
                // struct fuse_copy_file_range_out.
                return Ok(copied.to_le_bytes().to_vec());
            }
            let size = u32::try_from(copied).map_err(|_| errno(libc::EOVERFLOW))?;
            Ok(WriteOut { size, padding: 0 }.as_slice().to_vec())
        };
        Ok(Slow::sized(range.length, Box::new(reply)))
    }

    fn statx(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let args: StatxIn = body.object()?;
        let (stat, valid) = self.fs.extended_attributes(header.nodeid, args.sx_flags, args.sx_mask)?;
        let out =
            StatxOut { attr_valid: valid.as_secs(), attr_valid_nsec: valid.subsec_nanos(), ..StatxOut::from(stat) };
        Ok(out.as_slice().to_vec())
    }

    /// Decoded here for the flags of the attributes.
    fn getattr(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        // Flags and a handle, which say nothing that the node does not.
        let _: GetattrIn = body.object()?;
        let (attr, valid) = self.fs.flagged_attributes(header.nodeid)?;
        let out =
            AttrOut { attr_valid: valid.as_secs(), attr_valid_nsec: valid.subsec_nanos(), attr, ..AttrOut::default() };
        Ok(out.as_slice().to_vec())
    }

    fn setup_mapping(&self, header: &InHeader, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        self.fs.setup_mapping(header.nodeid, &body.object()?)?;
        Ok(Vec::new())
    }

    fn remove_mapping(&self, _header: &InHeader, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let RemovemappingIn { count } = body.object()?;
        let ranges = body.rest()?;
        // Whole requests only: a guest that is refused has to know that nothing was done.
        if ranges.len() != (count as usize).saturating_mul(size_of::<RemovemappingOne>()) {
            return Err(errno(MALFORMED));
        }
        let ranges = ranges.chunks_exact(size_of::<RemovemappingOne>()).map(|bytes| {
            let mut range = RemovemappingOne::default();
            range.as_mut_slice().copy_from_slice(bytes);
            (range.moffset, range.len)
        });
        self.fs.remove_mappings(&ranges.collect::<Vec<_>>())?;
        Ok(Vec::new())
    }

    /// The rest of a request that makes a file, which is so many `names`, without its extensions, and how the file is to be
    /// made.
    fn tail_and_creator(
        &self,
        header: &InHeader,
        body: Body<'_>,
        names: usize,
        umask: u32,
    ) -> io::Result<(Vec<u8>, Creator)> {
        let mut tail = body.rest()?;
        let mut extensions = Extensions::default();
        if self.fs.has(init_flag::CREATE_SUPP_GROUP) || self.fs.has(init_flag::SECURITY_CTX) {
            // fuse_in_header.total_extlen: the lower half of what used to be padding.
            let size = (header.padding & 0xffff) as usize * EXT_UNIT;
            // Linux 5.17 to 6.2, which know of no groups, do not say how long the label behind the names is.
            let names = if size == 0 && !self.fs.has(init_flag::CREATE_SUPP_GROUP) {
                end_of_names(&tail, names)
            } else {
                tail.len().checked_sub(size).ok_or_else(|| errno(MALFORMED))?
            };
            extensions = Extensions::parse(tail.get(names..).unwrap_or_default())?;
            tail.truncate(names);
        }
        let mut creator = Creator {
            caller: self.fs.host_caller(Caller { uid: header.uid, gid: header.gid, groups: extensions.groups })?,
            umask: self.fs.has(init_flag::DONT_MASK).then_some(umask),
            labels: extensions.labels,
        };
        // Nobody has asked for labels, and they would be the host's own business.
        if !self.fs.has(init_flag::SECURITY_CTX) {
            creator.labels.clear();
        }
        Ok((tail, creator))
    }
}

/// Where so many names and their NULs end: at the end of everything if there are fewer.
fn end_of_names(tail: &[u8], names: usize) -> usize {
    tail.split_inclusive(|byte| *byte == 0).take(names).map(<[u8]>::len).sum()
}

fn entry_bytes(entry: Entry) -> Vec<u8> {
    EntryOut::from(entry).as_slice().to_vec()
}

fn created_bytes(created: Created) -> Vec<u8> {
    let open = OpenOut { fh: created.handle, open_flags: created.options.bits(), passthrough: 0 };
    [EntryOut::from(created.entry).as_slice(), open.as_slice()].concat()
}
