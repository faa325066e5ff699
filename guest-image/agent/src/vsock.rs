//! Connecting to the host.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// The host's address on every vsock (`VMADDR_CID_HOST`, vsock(7)).
const HOST_CID: u32 = 2;

/// Connects to `port` of the host, trying again for at most `limit` while the transport appears.
///
/// # Errors
/// What the last try failed with.
pub fn connect(port: u32, limit: Duration) -> io::Result<OwnedFd> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        match connect_once(port) {
            // No transport yet (its device is being probed), or nobody listens yet.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(
                        libc::ENODEV
                            | libc::ENETUNREACH
                            | libc::ECONNREFUSED
                            | libc::ECONNRESET
                            | libc::ETIMEDOUT
                            | libc::EINTR
                    )
                ) && Instant::now() < deadline =>
            {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            result => return result,
        }
    }
}

fn connect_once(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: socket takes plain numbers; a non-negative result is a descriptor that is ours alone.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: sockaddr_vm is plain data, for which all zeroes is a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = HOST_CID;
    address.svm_port = port;
    let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: the address outlives the call and has the length that is given.
    if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}
