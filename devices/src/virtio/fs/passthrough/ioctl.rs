//! IOCTL: inode flags and project ids. Everything else is ENOTTY, as on a file system without the command.
//!
//! Who may change flags is checked by the guest's kernel, which turns these commands into its own interface before it
//! asks the file system.

use std::io;
use std::os::fd::AsRawFd;

use super::{PassthroughFs, errno};

/// FS_IOC_GETFLAGS, include/uapi/linux/fs.h: `_IOR('f', 1, long)`; the argument is an int nevertheless.
const GET_FLAGS: u32 = 0x8008_6601;
/// FS_IOC_SETFLAGS, `_IOW('f', 2, long)`.
const SET_FLAGS: u32 = 0x4008_6602;
/// FS_IOC_FSGETXATTR, `_IOR('X', 31, struct fsxattr)`.
const GET_FSXATTR: u32 = 0x801c_581f;
/// FS_IOC_FSSETXATTR, `_IOW('X', 32, struct fsxattr)`.
const SET_FSXATTR: u32 = 0x401c_5820;
/// Bytes of `struct fsxattr`, the largest argument of the four.
const FSXATTR_SIZE: usize = 28;

/// What an IOCTL gives back.
pub(in crate::virtio::fs) struct IoctlReply {
    /// The command's result.
    pub(in crate::virtio::fs) result: i32,
    /// What it wrote, as long as the guest has room for it.
    pub(in crate::virtio::fs) data: Vec<u8>,
}

impl PassthroughFs {
    /// Runs `command` on an open file with `input`; at most `out_size` bytes come back.
    pub(in crate::virtio::fs) fn control(
        &self,
        node: u64,
        handle: u64,
        command: u32,
        input: &[u8],
        out_size: u32,
    ) -> io::Result<IoctlReply> {
        let writes = match command {
            GET_FLAGS | GET_FSXATTR => false,
            SET_FLAGS | SET_FSXATTR => true,
            _ => return Err(errno(libc::ENOTTY)),
        };
        if writes {
            self.writable()?;
        }
        let open = self.handles.get(handle, node)?;
        let mut argument = [0; FSXATTR_SIZE];
        for (to, from) in argument.iter_mut().zip(input) {
            *to = *from;
        }
        // SAFETY: each of the four commands reads or writes at most 28 bytes, which is what `argument` has.
        let result = unsafe { libc::ioctl(open.file.as_raw_fd(), command.into(), argument.as_mut_ptr()) };
        if result < 0 {
            let error = io::Error::last_os_error();
            // A file system without flags says either; overlayfs in the guest only takes ENOTTY for "none".
            let unsupported = error.raw_os_error() == Some(libc::EOPNOTSUPP);
            return Err(if unsupported { errno(libc::ENOTTY) } else { error });
        }
        let data = if writes { Vec::new() } else { argument.into_iter().take(out_size as usize).collect() };
        Ok(IoctlReply { result, data })
    }
}
