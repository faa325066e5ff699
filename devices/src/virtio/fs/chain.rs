//! A descriptor chain as a FUSE request: checked before anything of it is used.

use fuse_backend_rs::abi::fuse_abi::{InHeader, OutHeader, WriteIn};
use fuse_backend_rs::transport::{Reader, VirtioFsWriter};
use std::io::Write;
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use super::constants::{MAX_CHAIN_DESCRIPTORS, opcode};

/// Bytes of the header of every reply.
pub(super) const OUT_HEADER_SIZE: usize = size_of::<OutHeader>();

/// More bytes than any reply has that is given later.
const SHORT_REPLY: usize = 256;

/// Bytes of a message that are copied out with its header: the largest structure that says what a request is about
/// (`struct fuse_setattr_in`), or a small one and a name or two.
const MESSAGE_START: usize = size_of::<InHeader>() + 112;

/// A popped chain.
pub(super) type Chain<'m> = DescriptorChain<&'m GuestMemoryMmap>;

/// Why a chain is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChainError {
    /// A `next` index or an indirect table leads nowhere, the chain runs in a circle or is longer than its table.
    #[error("descriptor chain is broken")]
    Broken,
    /// Longer than a queue.
    #[error("descriptor chain has more than {MAX_CHAIN_DESCRIPTORS} descriptors")]
    TooLong,
    /// Virtio 1.2 § 2.7.4.2: device-readable buffers come first.
    #[error("device-readable descriptor after a device-writable one")]
    Order,
    /// A buffer is not in guest memory.
    #[error("descriptor points outside of guest memory")]
    Address,
    /// Not even a FUSE header.
    #[error("request of {0} bytes is shorter than its header")]
    Short(usize),
}

/// A chain with a FUSE header.
pub(super) struct Request<'m> {
    /// The header, copied out: the guest cannot change it any more.
    pub(super) header: InHeader,
    /// Device-readable bytes, the header's included.
    pub(super) readable: usize,
    /// Device-writable bytes.
    pub(super) writable: usize,
    /// The start of the message, header included, copied out as far as it could be read.
    start: [u8; MESSAGE_START],
    start_len: usize,
    memory: &'m GuestMemoryMmap,
    /// With the DAX windows. Nothing but `preadv` and `pwritev` may touch those.
    buffers: &'m GuestMemoryMmap,
    chain: Chain<'m>,
}

impl<'m> Request<'m> {
    /// Checks a chain and reads the header. What READ and WRITE move may be in `buffers`, everything else is in `memory`.
    pub(super) fn parse(
        memory: &'m GuestMemoryMmap,
        buffers: &'m GuestMemoryMmap,
        chain: Chain<'m>,
    ) -> Result<Self, ChainError> {
        let mut request = Request {
            header: InHeader::default(),
            readable: 0,
            writable: 0,
            start: [0; MESSAGE_START],
            start_len: 0,
            memory,
            buffers,
            chain,
        };
        const HEADER: usize = size_of::<InHeader>();
        let mut more = true;
        for (count, descriptor) in request.chain.clone().enumerate() {
            if count >= MAX_CHAIN_DESCRIPTORS {
                return Err(ChainError::TooLong);
            }
            more = descriptor.has_next();
            let len = descriptor.len() as usize;
            if descriptor.is_write_only() {
                request.writable = request.writable.saturating_add(len);
                continue;
            }
            if request.writable > 0 {
                return Err(ChainError::Order);
            }
            if let Some(missing) = request.start.get_mut(request.readable..) {
                let here = missing.len().min(len);
                let missing = missing.get_mut(..here).unwrap_or_default();
                let read = memory.read(missing, descriptor.addr()).unwrap_or(0);
                if request.readable.saturating_add(read) < HEADER.min(request.readable.saturating_add(here)) {
                    return Err(ChainError::Address);
                }
                // Without gaps.
                if request.start_len == request.readable {
                    request.start_len = request.start_len.saturating_add(read);
                }
            }
            request.readable = request.readable.saturating_add(len);
        }
        // The iterator ends without a word at whatever it cannot follow.
        if more {
            return Err(ChainError::Broken);
        }
        let Some(header) = request.start.get(..HEADER).filter(|_| request.readable >= HEADER) else {
            return Err(ChainError::Short(request.readable));
        };
        request.header.as_mut_slice().copy_from_slice(header);
        Ok(request)
    }

    /// The message, header included.
    pub(super) fn reader(&self) -> Result<Reader<'m>, ChainError> {
        let data_at = size_of::<InHeader>() + size_of::<WriteIn>();
        let memory = self.memory_for(opcode::WRITE, data_at, self.chain.clone().readable());
        Reader::from_descriptor_chain(memory, self.chain.clone()).map_err(|_| ChainError::Address)
    }

    /// Room for the reply.
    pub(super) fn writer(&self) -> Result<VirtioFsWriter<'m>, ChainError> {
        let memory = self.memory_for(opcode::READ, OUT_HEADER_SIZE, self.chain.clone().writable());
        VirtioFsWriter::new(memory, self.chain.clone()).map_err(|_| ChainError::Address)
    }

    /// The memory that `descriptors` are looked for in: with the DAX windows only if the request has this opcode and none
    /// of the descriptors that make up its first `headers` bytes is in one. Those bytes are read and written by loads
    /// and stores, which a file that was cut short would turn into a SIGBUS; what comes behind them goes through system
    /// calls, which fail with EFAULT.
    fn memory_for(
        &self,
        opcode: u32,
        headers: usize,
        descriptors: impl Iterator<Item = Descriptor>,
    ) -> &'m GuestMemoryMmap {
        if self.header.opcode != opcode {
            return self.memory;
        }
        let mut left = headers;
        for descriptor in descriptors {
            if left == 0 {
                break;
            }
            let len = descriptor.len() as usize;
            if !self.memory.check_range(descriptor.addr(), len) {
                return self.memory;
            }
            left = left.saturating_sub(len);
        }
        self.buffers
    }

    /// The start of the message behind its header, for the record only: handlers read what they need themselves.
    pub(super) fn body_start(&self) -> &[u8] {
        let end = self.start_len.min(self.header.len as usize);
        self.start.get(size_of::<InHeader>()..end).unwrap_or_default()
    }

    /// The errno of the reply that was just written, for the record only: the guest may have changed it since.
    pub(super) fn reply_error(&self) -> Option<i32> {
        let first = self.chain.clone().writable().next();
        // fuse_out_header.error; a header cut in pieces is nothing that Linux sends.
        let address = first.filter(|first| first.len() >= 8).and_then(|first| first.addr().checked_add(4));
        let error = address.and_then(|address| self.memory.read_obj::<i32>(address).ok())?;
        (error != 0).then(|| error.saturating_neg())
    }

    /// The first eight bytes behind the header of the reply that was just written, for the record only.
    pub(super) fn reply_start(&self) -> Option<u64> {
        let mut skip = OUT_HEADER_SIZE;
        for descriptor in self.chain.clone().writable() {
            let len = descriptor.len() as usize;
            if skip < len {
                let address = descriptor.addr().checked_add(u64::try_from(skip).ok()?)?;
                return self.memory.read_obj(address).ok();
            }
            skip -= len;
        }
        None
    }

    /// The body of the reply that was just written, of `used` bytes in all.
    #[cfg(feature = "planted-bugs")]
    pub(super) fn reply_body(&self, used: usize) -> Option<Vec<u8>> {
        let mut reply = Vec::new();
        for descriptor in self.chain.clone().writable() {
            let here = used.checked_sub(reply.len())?.min(descriptor.len() as usize);
            let at = reply.len();
            reply.resize(at.checked_add(here)?, 0);
            self.memory.read_slice(reply.get_mut(at..)?, descriptor.addr()).ok()?;
        }
        reply.get(OUT_HEADER_SIZE..).map(<[u8]>::to_vec)
    }

    /// Cuts the body of the reply that was just written, of `used` bytes in all, in half; returns what is left, `None` if
    /// there is no body.
    pub(super) fn shorten(&self, used: u32) -> Option<u32> {
        let header = u32::try_from(OUT_HEADER_SIZE).ok()?;
        let body = used.checked_sub(header).filter(|body| *body > 0)?;
        let first = self.chain.clone().writable().next().filter(|first| first.len() >= 4)?;
        let used = header.checked_add(body / 2)?;
        // fuse_out_header.len.
        self.memory.write_obj(used, first.addr()).ok()?;
        Some(used)
    }

    /// Room for a short reply that is written when the chain is out of sight.
    pub(super) fn reply_room(&self) -> ReplyRoom {
        let mut room = ReplyRoom { unique: self.header.unique, buffers: Vec::new() };
        let mut size = 0usize;
        for descriptor in self.chain.clone().writable() {
            if size >= SHORT_REPLY {
                break;
            }
            size = size.saturating_add(descriptor.len() as usize);
            room.buffers.push((descriptor.addr(), descriptor.len() as usize));
        }
        room
    }

    /// Writes a reply of `parts`; returns its length, `None` when it does not fit or the buffers are not in guest
    /// memory.
    pub(super) fn reply(&self, error: i32, parts: &[&[u8]]) -> Option<u32> {
        write_reply(self.writer().ok()?, self.header.unique, error, parts)
    }
}

/// Where a request that is answered later wants its reply.
#[derive(Debug)]
pub(super) struct ReplyRoom {
    unique: u64,
    buffers: Vec<(GuestAddress, usize)>,
}

impl ReplyRoom {
    /// Writes a reply with this body or errno; returns its length, `None` when it does not fit or the buffers are not
    /// in guest memory.
    pub(super) fn write(&self, memory: &GuestMemoryMmap, error: i32, body: &[u8]) -> Option<u32> {
        let size = OUT_HEADER_SIZE + body.len();
        let len = u32::try_from(size).ok()?;
        let header = OutHeader { len, error: -error, unique: self.unique };
        let reply = [header.as_slice(), body].concat();
        if self.buffers.iter().map(|(_, room)| room).sum::<usize>() < size {
            return None;
        }
        let mut rest = reply.as_slice();
        for (address, room) in &self.buffers {
            let (here, later) = rest.split_at(rest.len().min(*room));
            memory.write_slice(here, *address).ok()?;
            rest = later;
        }
        Some(len)
    }
}

/// Answers a chain that [`Request::parse`] refused with `error`, if there is room for that: the guest then sees a failed
/// request instead of a stale one.
pub(super) fn refuse(memory: &GuestMemoryMmap, chain: Chain<'_>, error: i32) -> Option<u32> {
    // fuse_in_header.unique, or zero, which no request has, when it cannot be read.
    let first = chain.clone().next().filter(|first| !first.is_write_only() && first.len() >= 16);
    let address = first.and_then(|first| first.addr().checked_add(8));
    let unique = address.and_then(|address| memory.read_obj::<u64>(address).ok()).unwrap_or(0);
    let writer = VirtioFsWriter::new(memory, chain).ok()?;
    write_reply(writer, unique, error, &[])
}

fn write_reply(mut writer: VirtioFsWriter<'_>, unique: u64, error: i32, parts: &[&[u8]]) -> Option<u32> {
    let size = parts.iter().map(|part| part.len()).sum::<usize>().checked_add(OUT_HEADER_SIZE)?;
    if size > writer.available_bytes() {
        return None;
    }
    let len = u32::try_from(size).ok()?;
    let header = OutHeader { len, error: -error, unique };
    writer.write_all(header.as_slice()).ok()?;
    for part in parts {
        writer.write_all(part).ok()?;
    }
    Some(len)
}
