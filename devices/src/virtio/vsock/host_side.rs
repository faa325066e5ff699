//! What the handles and the worker share: who listens on which port, what the handles ask the worker for.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use vmm_sys_util::eventfd::EventFd;

/// Connections of the guest that may wait in a listener's channel; one more is refused, as by a full accept queue.
/// Without a limit a guest could pile up file descriptors there.
const LISTEN_BACKLOG: usize = 128;

/// Somebody wants a connection to a port of the guest.
pub(super) struct ConnectRequest {
    pub(super) guest_port: u32,
    pub(super) reply: SyncSender<io::Result<UnixStream>>,
}

/// A Unix socket through which other programs reach the guest.
#[derive(Clone)]
pub(super) struct Exposed {
    pub(super) path: PathBuf,
    pub(super) listener: Arc<UnixListener>,
}

/// See the module's documentation. Outlives the device's resets.
#[derive(Default)]
pub(super) struct HostSide {
    state: Mutex<State>,
    connections: AtomicUsize,
}

#[derive(Default)]
struct State {
    listeners: HashMap<u32, SyncSender<UnixStream>>,
    exposed: BTreeMap<u32, Exposed>,
    next_exposed: u32,
    running: Option<Running>,
    starts: u64,
}

/// The worker, while there is one.
struct Running {
    number: u64,
    wake: EventFd,
    requests: Vec<ConnectRequest>,
}

/// Held by a worker for as long as it serves requests. Those still waiting at its end fail.
pub(super) struct Serving {
    host: Arc<HostSide>,
    number: u64,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut state = self.host.lock();
        // A worker that did not stop in time may end when its successor runs already.
        if state.running.as_ref().is_some_and(|running| running.number == self.number) {
            state.running = None;
        }
    }
}

impl HostSide {
    /// From now on requests are taken; `wake` is written for each.
    pub(super) fn serve(self: &Arc<Self>, wake: EventFd) -> Serving {
        let mut state = self.lock();
        state.starts += 1;
        let number = state.starts;
        state.running = Some(Running { number, wake, requests: Vec::new() });
        Serving { host: self.clone(), number }
    }

    /// The guest's connections to `port` go to the returned channel, from now on.
    pub(super) fn listen(&self, port: u32) -> Receiver<UnixStream> {
        let (sender, receiver) = sync_channel(LISTEN_BACKLOG);
        self.lock().listeners.insert(port, sender);
        receiver
    }

    /// Hands a request to the worker.
    pub(super) fn request(&self, request: ConnectRequest) -> io::Result<()> {
        let mut state = self.lock();
        let Some(running) = &mut state.running else {
            let text = "the guest has not started its vsock driver; try again when it has booted";
            return Err(io::Error::new(ErrorKind::NotConnected, text));
        };
        running.requests.push(request);
        running.wake.write(1)
    }

    /// The requests since the last call.
    pub(super) fn take_requests(&self) -> Vec<ConnectRequest> {
        self.lock().running.as_mut().map(|running| std::mem::take(&mut running.requests)).unwrap_or_default()
    }

    /// Adds a listening Unix socket; returns what to remove it by.
    pub(super) fn expose(&self, exposed: Exposed) -> u32 {
        let mut state = self.lock();
        let id = state.next_exposed;
        state.next_exposed += 1;
        state.exposed.insert(id, exposed);
        state.wake();
        id
    }

    /// Removes a listening Unix socket.
    pub(super) fn unexpose(&self, id: u32) {
        let mut state = self.lock();
        state.exposed.remove(&id);
        state.wake();
    }

    /// The listening Unix sockets.
    pub(super) fn exposed(&self) -> BTreeMap<u32, Exposed> {
        self.lock().exposed.clone()
    }

    /// Finds whoever takes the guest's connections to `port`; returns the device's end of a stream to them.
    pub(super) fn open_port(&self, port: u32) -> io::Result<UnixStream> {
        let mut state = self.lock();
        if let Some(listener) = state.listeners.get(&port) {
            let (ours, theirs) = UnixStream::pair()?;
            match listener.try_send(theirs) {
                Ok(()) => return Ok(ours),
                Err(TrySendError::Full(_)) => {
                    return Err(io::Error::other(format!("{LISTEN_BACKLOG} connections wait to be accepted")));
                }
                Err(TrySendError::Disconnected(_)) => {
                    state.listeners.remove(&port);
                }
            }
        }
        let mut outcome = Err(io::Error::new(ErrorKind::ConnectionRefused, "nobody listens"));
        for exposed in state.exposed.values() {
            outcome = connect_program(&exposed.path, port);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Live connections.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }

    pub(super) fn set_connections(&self, count: usize) {
        self.connections.store(count, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is a single insertion or removal: a panic leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&self) {
        if let Some(running) = &self.running
            && let Err(error) = running.wake.write(1)
        {
            tracing::warn!("vsock: worker not woken: {error}");
        }
    }
}

/// Connects to the Unix socket `<path>_<port>`, on which another program takes the guest's connections to `port`.
/// Never blocks: a program with a full accept queue counts as absent.
fn connect_program(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut name = OsString::from(path);
    name.push(format!("_{port}"));
    let address = SocketAddrUnix::new(name.as_os_str())?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}
