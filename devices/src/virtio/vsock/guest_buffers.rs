//! The buffers of one descriptor chain as one run of bytes in guest memory, whatever pieces the driver cut it into, and
//! system calls that move data between it and a socket without a copy in between.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, VolatileSlice};

/// More descriptors than this in a chain are an error. The specification's limit is the queue size (§ 2.7.5.3.1), which
/// an indirect table could go beyond.
const MAX_DESCRIPTORS: usize = 256;

/// Which way a chain's buffers must all be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Device-readable: what the driver sends.
    Readable,
    /// Device-writable: room for what it receives.
    Writable,
}

/// Why a chain cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChainError {
    /// A buffer has the other direction.
    #[error("a descriptor is not {0:?}")]
    Direction(Direction),
    /// The table ended, looped or could not be read before a descriptor without NEXT.
    #[error("the descriptor chain has no end")]
    Unterminated,
    /// See `MAX_DESCRIPTORS`.
    #[error("the descriptor chain has more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    /// A buffer does not lie in guest memory.
    #[error("no guest memory at {:#x} for {len} bytes", address.0)]
    Address { address: GuestAddress, len: usize, source: GuestMemoryError },
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct GuestBuffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> GuestBuffers<'m> {
    /// Checks every descriptor of `chain` and collects the buffers; those of zero length are left out.
    pub(super) fn gather(
        memory: &'m GuestMemoryMmap,
        chain: DescriptorChain<&GuestMemoryMmap>,
        direction: Direction,
    ) -> Result<Self, ChainError> {
        let mut slices = Vec::with_capacity(2);
        let mut len: usize = 0;
        let mut ended = false;
        for (count, descriptor) in chain.enumerate() {
            if count == MAX_DESCRIPTORS {
                return Err(ChainError::TooManyDescriptors);
            }
            if descriptor.is_write_only() != (direction == Direction::Writable) {
                return Err(ChainError::Direction(direction));
            }
            ended = !descriptor.has_next();
            let (address, size) = (descriptor.addr(), descriptor.len() as usize);
            if size > 0 {
                let slice = memory.get_slice(address, size);
                slices.push(slice.map_err(|source| ChainError::Address { address, len: size, source })?);
                // At most MAX_DESCRIPTORS times u32::MAX: fits.
                len += size;
            }
        }
        if ended { Ok(GuestBuffers { slices, len }) } else { Err(ChainError::Unterminated) }
    }

    /// Bytes in all buffers together.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The `len` bytes from `offset` on, or as much of that as there is.
    pub(super) fn range(&self, mut offset: usize, len: usize) -> GuestBuffers<'m> {
        let mut slices = Vec::with_capacity(self.slices.len());
        let mut left = len;
        for slice in &self.slices {
            let size = slice.len().saturating_sub(offset).min(left);
            if size > 0 {
                // In bounds by the line above.
                slices.extend(slice.subslice(offset, size));
            }
            offset = offset.saturating_sub(slice.len());
            left -= size;
        }
        GuestBuffers { slices, len: len - left }
    }

    /// Copies the first `N` bytes out; `None` if there are fewer.
    pub(super) fn read_array<const N: usize>(&self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.copy_to(&mut bytes) == N).then_some(bytes)
    }

    /// Copies as much as fits into `target`, from the start; returns how much.
    pub(super) fn copy_to(&self, target: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            let Some(rest) = target.get_mut(done..).filter(|rest| !rest.is_empty()) else { break };
            done += slice.read(rest, 0).unwrap_or(0);
        }
        done
    }

    /// Copies as much of `source` as there is room for to the start; returns how much.
    pub(super) fn copy_from(&self, source: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            let Some(rest) = source.get(done..).filter(|rest| !rest.is_empty()) else { break };
            done += slice.write(rest, 0).unwrap_or(0);
        }
        done
    }

    /// Sends the bytes into `socket` without blocking and without SIGPIPE; returns how many it took.
    ///
    /// # Errors
    /// As send(2): `WouldBlock` when the socket is full, `BrokenPipe` when nobody will read.
    pub(super) fn send_to(&self, socket: impl AsFd) -> io::Result<usize> {
        self.with_message(|message| {
            // SAFETY: the message's iovecs point into guest memory, which `self` keeps mapped; the kernel only reads.
            unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) }
        })
    }

    /// Receives from `socket` without blocking into the bytes; returns how many, 0 at the end of the stream (or if there
    /// is no room: ask only with room).
    ///
    /// # Errors
    /// As recv(2): `WouldBlock` when there is nothing to receive.
    pub(super) fn receive_from(&self, socket: impl AsFd) -> io::Result<usize> {
        self.with_message(|message| {
            // SAFETY: the message's iovecs point into guest memory, which `self` keeps mapped writable. The guest may
            // access it at the same time; nothing on this side holds a reference to it.
            unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), message, libc::MSG_DONTWAIT) }
        })
    }

    fn with_message(&self, call: impl FnOnce(*mut libc::msghdr) -> libc::ssize_t) -> io::Result<usize> {
        let guards: Vec<_> = self.slices.iter().map(VolatileSlice::ptr_guard_mut).collect();
        let mut iovecs: Vec<libc::iovec> =
            guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect();
        // SAFETY: msghdr is plain data for which all zeroes means "nothing".
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = iovecs.as_mut_ptr();
        message.msg_iovlen = iovecs.len();
        let moved = call(&raw mut message);
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::os::unix::net::UnixStream;

    use virtio_queue::QueueOwnedT;
    use vm_memory::GuestAddressSpace;

    use super::*;
    use crate::virtio::test_support::{
        DESC_F_NEXT, DESC_F_WRITE, FakeDriver, MEMORY_SIZE, RawDescriptor, Segment, readable, writable,
    };

    /// Adds `segments` as one chain and runs `check` on what `gather` makes of it.
    fn gathered<T>(
        segments: &[Segment],
        direction: Direction,
        check: impl FnOnce(Result<GuestBuffers, ChainError>) -> T,
    ) -> T {
        let mut driver = FakeDriver::new(&[256]);
        driver.queue(0).add(segments);
        first_chain(&mut driver, direction, check)
    }

    fn first_chain<T>(
        driver: &mut FakeDriver,
        direction: Direction,
        check: impl FnOnce(Result<GuestBuffers, ChainError>) -> T,
    ) -> T {
        let mut active = driver.activation(0).queues.remove(0);
        let memory = driver.memory().memory();
        let chain = active.queue.iter(&*memory).unwrap().next().unwrap();
        check(GuestBuffers::gather(&memory, chain, direction))
    }

    fn raw(address: u64, len: u32, flags: u16) -> Segment {
        Segment::Raw(RawDescriptor { address, len, flags, next: 0 })
    }

    #[test]
    fn a_packet_cut_into_many_descriptors_reads_as_one() {
        let pieces = [readable(b"he"), readable(b""), readable(b"ll"), readable(b"o wor"), readable(b"ld")];
        gathered(&pieces, Direction::Readable, |buffers| {
            let buffers = buffers.unwrap();
            assert_eq!(buffers.len(), 11);
            assert_eq!(&buffers.read_array::<5>().unwrap(), b"hello");
            let mut rest = [0; 16];
            assert_eq!(buffers.range(3, 7).copy_to(&mut rest), 7);
            assert_eq!(&rest[..7], b"lo worl");
            assert_eq!(buffers.range(9, 100).len(), 2);
            assert_eq!(buffers.range(100, 1).len(), 0);
            assert!(buffers.read_array::<12>().is_none());
        });
    }

    #[test]
    fn writing_fills_the_pieces_in_order() {
        gathered(&[writable(3), writable(4)], Direction::Writable, |buffers| {
            let buffers = buffers.unwrap();
            assert_eq!(buffers.copy_from(b"abcdefghij"), 7);
            assert_eq!(&buffers.read_array::<7>().unwrap(), b"abcdefg");
        });
    }

    #[test]
    fn data_moves_between_a_socket_and_the_pieces() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        gathered(&[readable(b"to the "), readable(b"host")], Direction::Readable, |buffers| {
            assert_eq!(buffers.unwrap().send_to(&theirs).unwrap(), 11);
        });
        let mut received = [0; 11];
        ours.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"to the host");
        ours.write_all(b"to the guest").unwrap();
        gathered(&[writable(5), writable(100)], Direction::Writable, |buffers| {
            let buffers = buffers.unwrap();
            assert_eq!(buffers.receive_from(&theirs).unwrap(), 12);
            assert_eq!(&buffers.read_array::<12>().unwrap(), b"to the guest");
            assert_eq!(buffers.receive_from(&theirs).unwrap_err().kind(), ErrorKind::WouldBlock);
            drop(ours);
            assert_eq!(buffers.receive_from(&theirs).unwrap(), 0);
        });
        gathered(&[readable(b"x")], Direction::Readable, |buffers| {
            assert_eq!(buffers.unwrap().send_to(&theirs).unwrap_err().kind(), ErrorKind::BrokenPipe);
        });
    }

    #[test]
    fn a_buffer_of_the_wrong_direction_is_refused_anywhere_in_the_chain() {
        gathered(&[readable(b"x"), writable(1)], Direction::Readable, |buffers| {
            assert!(matches!(buffers, Err(ChainError::Direction(Direction::Readable))));
        });
        gathered(&[writable(1), readable(b"x")], Direction::Writable, |buffers| {
            assert!(matches!(buffers, Err(ChainError::Direction(Direction::Writable))));
        });
    }

    #[test]
    fn buffers_outside_guest_memory_are_refused() {
        for (address, len) in
            [(MEMORY_SIZE, 1), (MEMORY_SIZE - 1, 2), (u64::MAX, 1), (u64::MAX - 1, u32::MAX), (4096, u32::MAX)]
        {
            gathered(&[raw(address, len, 0)], Direction::Readable, |buffers| {
                assert!(matches!(buffers, Err(ChainError::Address { .. })), "{address:#x}+{len:#x}: {buffers:?}");
            });
        }
    }

    #[test]
    fn an_empty_buffer_anywhere_is_no_buffer() {
        gathered(&[raw(u64::MAX, 0, DESC_F_WRITE)], Direction::Writable, |buffers| {
            assert_eq!(buffers.unwrap().len(), 0);
        });
    }

    #[test]
    fn a_loop_of_descriptors_is_refused() {
        let mut driver = FakeDriver::new(&[256]);
        driver.queue(0).write_descriptor(7, RawDescriptor { address: 4096, len: 1, flags: DESC_F_NEXT, next: 7 });
        driver.queue(0).make_available(7);
        first_chain(&mut driver, Direction::Readable, |buffers| {
            assert!(matches!(buffers, Err(ChainError::Unterminated)), "{buffers:?}");
        });
    }

    #[test]
    fn a_next_index_past_the_table_is_refused() {
        let mut driver = FakeDriver::new(&[256]);
        driver.queue(0).write_descriptor(7, RawDescriptor { address: 4096, len: 1, flags: DESC_F_NEXT, next: 256 });
        driver.queue(0).make_available(7);
        first_chain(&mut driver, Direction::Readable, |buffers| {
            assert!(matches!(buffers, Err(ChainError::Unterminated)), "{buffers:?}");
        });
    }

    #[test]
    fn an_indirect_table_longer_than_a_queue_is_refused() {
        let mut driver = FakeDriver::new(&[256]);
        driver.queue(0).add_indirect(&vec![readable(b"x"); MAX_DESCRIPTORS + 1]);
        first_chain(&mut driver, Direction::Readable, |buffers| {
            assert!(matches!(buffers, Err(ChainError::TooManyDescriptors)), "{buffers:?}");
        });
    }
}
