//! Reaching into PID 1 for its connection to the host.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SendFlags, Shutdown, send, shutdown, sockopt::socket_domain};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Says that a frame of 1000 bytes follows, sends three of them, and closes the connection.
pub(crate) fn cut() -> io::Result<()> {
    let stream = agent_stream()?;
    send(&stream, &[0xe8, 3, 0, 0, b'x', b'y', b'z'], SendFlags::empty())?;
    Ok(shutdown(&stream, Shutdown::Both)?)
}

/// The one vsock socket that PID 1 has open.
fn agent_stream() -> io::Result<OwnedFd> {
    let agent = pidfd_open(Pid::INIT, PidfdFlags::empty())?;
    for entry in fs::read_dir("/proc/1/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // Others may be closed meanwhile.
        let Ok(fd) = pidfd_getfd(agent.as_fd(), number, PidfdGetfdFlags::empty()) else { continue };
        if socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::VSOCK) {
            return Ok(fd);
        }
    }
    Err(io::Error::other("PID 1 has no vsock socket open"))
}
