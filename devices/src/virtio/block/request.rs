//! One request: `struct virtio_blk_req` (virtio 1.2 § 5.2.6) spread over a chain in whatever pieces the driver likes
//! (§ 2.7.4).

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemoryMmap, VolatileSlice};

use crate::virtio::chain_buffers::{BrokenChain, ChainBuffers, slices};

/// Unit of `sector` and of the capacity (§ 5.2.4), and the block size told to the driver.
pub(super) const SECTOR_SIZE: u64 = 512;

/// type, reserved, sector.
const HEADER_LEN: usize = 16;
/// Bytes of the string that GET_ID returns.
const ID_LEN: usize = 20;

/// Request types.
const TYPE_IN: u32 = 0;
const TYPE_OUT: u32 = 1;
const TYPE_GET_ID: u32 = 8;
const TYPE_DISCARD: u32 = 11;
const TYPE_WRITE_ZEROES: u32 = 13;
const TYPE_SECURE_ERASE: u32 = 14;

/// Status byte.
const STATUS_OK: u8 = 0;
const STATUS_IOERR: u8 = 1;
const STATUS_UNSUPP: u8 = 2;

/// A request that cannot even be answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unanswerable {
    #[error("the driver sent a request that cannot be answered: {0}")]
    Broken(#[from] BrokenChain),
    #[error("the driver sent a request (chain {0}) without a place for its status byte in guest memory")]
    NoStatus(u16),
}

/// Serves the request in `chain`; returns the used length, that is how many bytes from the start of the writable
/// buffers were written.
pub(super) fn serve<M>(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<M>,
    file: &File,
    id: &str,
    sectors: u64,
) -> Result<u32, Unanswerable>
where
    M: Deref<Target = GuestMemoryMmap>,
{
    let head = chain.head_index();
    let mut buffers = ChainBuffers::collect(chain)?;
    let data_len = buffers.writable_len().checked_sub(1).ok_or(Unanswerable::NoStatus(head))?;
    // Only the last byte: a bad data buffer before it is an error that can be reported in it.
    while buffers.writable.last().is_some_and(|last| last.len() == 0) {
        buffers.writable.pop();
    }
    let last = buffers.writable.pop().ok_or(Unanswerable::NoStatus(head))?;
    let in_last = last.len() - 1;
    let status_at = last.addr().0.checked_add(in_last.into()).ok_or(Unanswerable::NoStatus(head))?;
    let status_at = vm_memory::GuestAddress(status_at);
    if in_last > 0 {
        buffers.writable.push(virtio_queue::desc::split::Descriptor::new(last.addr().0, in_last, last.flags(), 0));
    }

    let status = match run(memory, &buffers, data_len, file, id, sectors) {
        Ok(()) => STATUS_OK,
        Err(status) => status,
    };
    memory.write_obj(status, status_at).map_err(|_| Unanswerable::NoStatus(head))?;
    // After an error the data buffers hold nothing to rely on, so nothing before the status byte counts as written.
    let written = if status == STATUS_OK || data_len == 0 { data_len + 1 } else { 0 };
    Ok(u32::try_from(written).unwrap_or(u32::MAX))
}

/// Does what the header says with the `data_len` bytes of writable buffers.
fn run(
    memory: &GuestMemoryMmap,
    buffers: &ChainBuffers,
    data_len: u64,
    file: &File,
    id: &str,
    sectors: u64,
) -> Result<(), u8> {
    let (kind, sector) = header(memory, buffers).ok_or(STATUS_IOERR)?;
    let data = || slices(memory, &buffers.writable).ok_or(STATUS_IOERR);
    match kind {
        TYPE_IN => {
            let end = sector.checked_add(data_len / SECTOR_SIZE);
            if !data_len.is_multiple_of(SECTOR_SIZE) || end.is_none_or(|end| end > sectors) {
                return Err(STATUS_IOERR);
            }
            read_at(file, sector * SECTOR_SIZE, data()?).map_err(|error| {
                tracing::warn!("failed to read {data_len} bytes at sector {sector} of image {id}: {error}");
                STATUS_IOERR
            })
        }
        TYPE_GET_ID => {
            let mut text = [0; ID_LEN];
            text.iter_mut().zip(id.bytes()).for_each(|(out, byte)| *out = byte);
            let mut left = &text[..];
            for slice in data()? {
                let (now, rest) = left.split_at_checked(slice.len()).unwrap_or((left, &[]));
                slice.write_slice(now, 0).map_err(|_| STATUS_IOERR)?;
                left = rest;
            }
            Ok(())
        }
        // Writing to a read-only device (§ 5.2.6.2).
        TYPE_OUT | TYPE_DISCARD | TYPE_WRITE_ZEROES | TYPE_SECURE_ERASE => Err(STATUS_IOERR),
        _ => Err(STATUS_UNSUPP),
    }
}

/// Type and sector.
fn header(memory: &GuestMemoryMmap, buffers: &ChainBuffers) -> Option<(u32, u64)> {
    let mut header = [0; HEADER_LEN];
    let mut left = &mut header[..];
    for slice in slices(memory, &buffers.readable)? {
        let (now, rest) = left.split_at_mut(slice.len().min(left.len()));
        slice.read_slice(now, 0).ok()?;
        left = rest;
    }
    if !left.is_empty() {
        return None;
    }
    let (kind, rest) = header.split_first_chunk::<4>()?;
    let sector = rest.last_chunk::<8>()?;
    Some((u32::from_le_bytes(*kind), u64::from_le_bytes(*sector)))
}

/// Reads from `file` straight into guest memory; zeros where the file has ended.
fn read_at(file: &File, mut offset: u64, mut slices: Vec<VolatileSlice>) -> io::Result<()> {
    while !slices.is_empty() {
        let guards: Vec<_> = slices.iter().take(libc::UIO_MAXIOV as usize).map(VolatileSlice::ptr_guard_mut).collect();
        let iovecs: Vec<libc::iovec> =
            guards.iter().map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }).collect();
        let at = libc::off64_t::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: every iovec is a slice of mapped guest memory, kept mapped by the guards; the guest may change it at
        // the same time, which the kernel's copy allows. `iovecs` has as many entries as its length says, at most
        // UIO_MAXIOV, so the count fits.
        let read = unsafe { libc::preadv64(file.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int, at) };
        drop(guards);
        match usize::try_from(read) {
            Ok(0) => {
                for slice in &slices {
                    zero(slice)?;
                }
                return Ok(());
            }
            Ok(read) => {
                offset += read as u64;
                advance(&mut slices, read)?;
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// Drops the first `count` bytes.
fn advance(slices: &mut Vec<VolatileSlice>, mut count: usize) -> io::Result<()> {
    let full = slices
        .iter()
        .take_while(|slice| {
            let fits = slice.len() <= count;
            if fits {
                count -= slice.len();
            }
            fits
        })
        .count();
    slices.drain(..full);
    if let Some(first) = slices.first_mut() {
        *first = first.offset(count).map_err(io::Error::other)?;
    }
    Ok(())
}

fn zero(slice: &VolatileSlice) -> io::Result<()> {
    let zeros = [0; 4096];
    let mut at = 0;
    while at < slice.len() {
        at += slice
            .write(zeros.get(..(slice.len() - at).min(zeros.len())).unwrap_or_default(), at)
            .map_err(io::Error::other)?;
    }
    Ok(())
}
