//! What the rest of the process does with the guest's sockets.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::host_side::{ConnectRequest, Exposed, HostSide};

/// How much later than the worker the caller of [`VsockHandle::connect`] gives up: only if the worker is stuck.
const CONNECT_SLACK: Duration = Duration::from_secs(5);

/// Opens and accepts stream connections with the guest. Clones share everything; it outlives the device's resets, and
/// so does every listener.
#[derive(Clone)]
pub struct VsockHandle {
    host: Arc<HostSide>,
    connect_timeout: Duration,
}

impl VsockHandle {
    pub(super) fn new(host: Arc<HostSide>, connect_timeout: Duration) -> Self {
        VsockHandle { host, connect_timeout }
    }

    /// Accepts the guest's connections to CID 2, port `port`: each arrives as a blocking stream. At most 128 wait to be
    /// received, more are refused. A second call for the same port takes over from the first. When the receiver is
    /// dropped, connections that wait in it are closed and new ones refused.
    pub fn listen(&self, port: u32) -> Receiver<UnixStream> {
        self.host.listen(port)
    }

    /// Connects to the guest's port `port` and returns a blocking stream.
    ///
    /// # Errors
    /// - `NotConnected`: the guest's driver does not run (yet).
    /// - `ConnectionRefused`: nobody in the guest listens on the port.
    /// - `TimedOut`: the guest did not answer within [`super::VsockOptions::connect_timeout`].
    /// - `ConnectionAborted`: the device was reset meanwhile.
    /// - Others: the device has as many connections as it may have, or the host gave no socket.
    pub fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let (reply, answer) = sync_channel(1);
        self.host.request(ConnectRequest { guest_port: port, reply })?;
        answer.recv_timeout(self.connect_timeout + CONNECT_SLACK).unwrap_or_else(|error| {
            Err(match error {
                RecvTimeoutError::Timeout => {
                    io::Error::new(ErrorKind::TimedOut, format!("no answer from the vsock device for port {port}"))
                }
                RecvTimeoutError::Disconnected => {
                    let text = format!("the vsock device was reset during a connection to the guest's port {port}");
                    io::Error::new(ErrorKind::ConnectionAborted, text)
                }
            })
        })
    }

    /// Lets other programs talk to the guest through Unix sockets, as Firecracker does:
    ///
    /// - a program that connects to `path` and writes `CONNECT <port>\n` gets `OK <host port>\n` and from then on the
    ///   stream to that port of the guest; if that fails, its connection is closed;
    /// - a connection of the guest to host port P that nobody [listens](VsockHandle::listen) for goes to the Unix
    ///   socket `<path>_<P>`, if a program listens there.
    ///
    /// It lasts until the returned guard is dropped, which removes the socket file.
    ///
    /// # Errors
    /// The socket cannot be made: `AddrInUse` if there is a file of that name, from an earlier run perhaps.
    pub fn expose(&self, path: impl AsRef<Path>) -> io::Result<ExposedSocket> {
        let path = path.as_ref();
        let bound = UnixListener::bind(path).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok((listener, file_identity(path)?))
        });
        let (listener, identity) = bound.map_err(|error| {
            let hint = if error.kind() == ErrorKind::AddrInUse { "; remove it if no other run uses it" } else { "" };
            io::Error::new(error.kind(), format!("failed to listen on vsock socket {}: {error}{hint}", path.display()))
        })?;
        let id = self.host.expose(Exposed { path: path.to_owned(), listener: Arc::new(listener) });
        Ok(ExposedSocket { host: self.host.clone(), id, path: path.to_owned(), identity })
    }

    /// Connections that exist now, half-closed and just ending ones included.
    pub fn connections(&self) -> usize {
        self.host.connections()
    }
}

/// Keeps a Unix socket of [`VsockHandle::expose`] open; dropping it removes the socket file.
#[must_use = "the socket is removed when this is dropped"]
pub struct ExposedSocket {
    host: Arc<HostSide>,
    id: u32,
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for ExposedSocket {
    fn drop(&mut self) {
        self.host.unexpose(self.id);
        // Somebody else may have put another file there.
        if file_identity(&self.path).is_ok_and(|identity| identity == self.identity)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("failed to remove vsock socket {}: {error}", self.path.display());
        }
    }
}

fn file_identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
