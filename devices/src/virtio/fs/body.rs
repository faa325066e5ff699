//! Taking messages apart.

use std::ffi::CStr;
use std::io::{self, Read};

use fuse_backend_rs::abi::fuse_abi::InHeader;
use fuse_backend_rs::transport::Reader;
use vm_memory::ByteValued;

use super::chain::Request;
use super::constants::MAX_OWN_BODY;
use super::passthrough::errno;

/// The error of a message that makes no sense.
pub(super) const MALFORMED: i32 = libc::EIO;

/// What is left of a message after its header.
pub(super) struct Body<'m> {
    reader: Reader<'m>,
    left: usize,
}

impl<'m> Body<'m> {
    /// Everything after the header, as long as the header says.
    pub(super) fn new(request: &Request<'m>) -> io::Result<Self> {
        let malformed = || errno(MALFORMED);
        let mut reader = request.reader().map_err(|_| malformed())?;
        reader.split_at(size_of::<InHeader>()).map(|rest| reader = rest).map_err(|_| malformed())?;
        let left = (request.header.len as usize).checked_sub(size_of::<InHeader>()).ok_or_else(malformed)?;
        Ok(Body { reader, left })
    }

    pub(super) fn object<T: ByteValued>(&mut self) -> io::Result<T> {
        self.left = self.left.checked_sub(size_of::<T>()).ok_or_else(|| errno(MALFORMED))?;
        self.reader.read_obj().map_err(|_| errno(MALFORMED))
    }

    /// # Errors
    /// E2BIG beyond what any request decoded here can need.
    pub(super) fn rest(mut self) -> io::Result<Vec<u8>> {
        if self.left > MAX_OWN_BODY {
            return Err(errno(libc::E2BIG));
        }
        let mut bytes = vec![0; self.left];
        self.reader.read_exact(&mut bytes).map_err(|_| errno(MALFORMED))?;
        Ok(bytes)
    }
}

/// A NUL-terminated name and what follows it.
pub(super) fn split_name(bytes: &[u8]) -> io::Result<(&CStr, &[u8])> {
    let name = CStr::from_bytes_until_nul(bytes).map_err(|_| errno(MALFORMED))?;
    Ok((name, bytes.get(name.count_bytes() + 1..).unwrap_or_default()))
}
