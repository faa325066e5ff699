//! All connections of the device: which packet belongs to which, whose turn it is to send, and what answers a packet
//! that belongs to none. Knows sockets and guest buffers, but neither queues nor epoll: what epoll should watch is
//! handed out as [`Change`]s.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use super::VsockOptions;
use super::connection::{Connection, Opener, Outcome, Packet, Ports, Readiness};
use super::guest_buffers::GuestBuffers;
use super::host_side::HostSide;
use super::packet::{HEADER_SIZE, HOST_CID, Header, MAX_PAYLOAD, Op, TYPE_STREAM};

/// How many RSTs for packets without a connection may wait for receive buffers before no more packets are taken from
/// the guest. A guest that gives no buffers thus stops itself and nothing grows (§ 5.10.6.2 asks for such a limit).
const MAX_WAITING_RESETS: usize = 1024;
/// Host ports of connections that the host opens start here, away from the well-known ones that the guest connects to.
const FIRST_EPHEMERAL_PORT: u32 = 1 << 30;
/// VMADDR_PORT_ANY, no port.
const PORT_ANY: u32 = u32::MAX;

/// Names a connection for as long as the device runs; never two at once, and reused only after 2^30 others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ConnectionId(pub(super) u32);

impl ConnectionId {
    /// Identifiers are smaller than this.
    pub(super) const LIMIT: u32 = 1 << 30;
}

/// What epoll should know. To be carried out in order.
#[derive(Debug)]
pub(super) enum Change {
    /// Watch a new socket.
    Watch(ConnectionId, RawFd),
    /// Tell when the socket becomes writable (true) or no longer (false).
    WatchWritable(ConnectionId, RawFd, bool),
    /// Stop watching this socket, then close it.
    Close(UnixStream),
}

/// See the module's documentation.
pub(super) struct Muxer {
    guest_cid: u64,
    options: VsockOptions,
    host: Arc<HostSide>,
    connections: HashMap<ConnectionId, Connection>,
    by_ports: HashMap<Ports, ConnectionId>,
    /// Those that want to send to the guest, in the order of their turns; each at most once.
    ready: VecDeque<ConnectionId>,
    /// RSTs that no connection stands behind (any more).
    resets: VecDeque<Header>,
    deadlines: BTreeSet<(Instant, ConnectionId)>,
    changes: Vec<Change>,
    next_id: u32,
    next_port: u32,
}

impl Muxer {
    pub(super) fn new(guest_cid: u64, options: VsockOptions, host: Arc<HostSide>) -> Self {
        Muxer {
            guest_cid,
            options,
            host,
            connections: HashMap::new(),
            by_ports: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            deadlines: BTreeSet::new(),
            changes: Vec::new(),
            next_id: 0,
            next_port: FIRST_EPHEMERAL_PORT,
        }
    }

    /// False while so many answers wait for receive buffers that no packet should be taken from the guest.
    pub(super) fn accepts_packets(&self) -> bool {
        self.resets.len() < MAX_WAITING_RESETS
    }

    /// Whether [`Muxer::fill`] may have a packet.
    pub(super) fn wants_to_send(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// What epoll should know since the last call.
    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Takes one packet of the guest: `packet` is all of its device-readable buffers.
    pub(super) fn receive(&mut self, packet: &GuestBuffers) {
        let Some(bytes) = packet.read_array::<HEADER_SIZE>() else {
            tracing::debug!("vsock: {} bytes are no packet", packet.len());
            return;
        };
        let header = Header::from_bytes(&bytes);
        let ports = Ports { guest: header.src_port, host: header.dst_port };
        if let Err(reason) = self.check(&header, packet.len()) {
            tracing::debug!(?header, "vsock: packet refused: {reason}");
            let ours = header.src_cid == self.guest_cid && header.dst_cid == HOST_CID;
            match self.by_ports.get(&ports).copied().filter(|_| ours) {
                Some(id) => self.settle(id, Outcome::Reset),
                None => self.refuse(&header),
            }
            return;
        }
        let request = header.op == Op::Request as u16;
        let known = self.by_ports.get(&ports).copied();
        // A guest that asks for a connection anew has forgotten one that the host closed.
        let closing = |id| self.connections.get(&id).is_some_and(Connection::is_closing);
        match known {
            Some(id) if request && closing(id) => {
                self.settle(id, Outcome::Gone);
                self.accept(ports, &header);
            }
            Some(id) => {
                let payload = packet.range(HEADER_SIZE, header.len as usize);
                let Some(connection) = self.connections.get_mut(&id) else { return };
                let outcome = connection.receive(&header, &payload);
                self.settle(id, outcome);
            }
            None if request => self.accept(ports, &header),
            None => self.refuse(&header),
        }
    }

    /// Puts the next packet for the guest into a receive buffer; returns its length, or `None` when the buffer was left
    /// unused: nobody has anything to send, or only payload and the buffer has no room for any.
    pub(super) fn fill(&mut self, buffers: &GuestBuffers) -> Option<u32> {
        if buffers.len() < HEADER_SIZE {
            return None;
        }
        if let Some(header) = self.resets.pop_front() {
            return Some(write_packet(buffers, header));
        }
        for _ in 0..self.ready.len() {
            let id = self.ready.pop_front()?;
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.queued = false;
            let was_closing = connection.is_closing();
            let packet = connection.produce(buffers);
            let ports = connection.ports();
            if connection.is_closing() && !was_closing {
                self.set_deadline(id, Some(Instant::now() + self.options.close_timeout));
            }
            self.queue(id);
            if let Some(packet) = packet {
                return Some(write_packet(buffers, self.header(ports, packet)));
            }
        }
        None
    }

    /// Takes what epoll said of a connection's socket. The connection may be gone already.
    pub(super) fn host_event(&mut self, id: ConnectionId, ready: Readiness) {
        if let Some(connection) = self.connections.get_mut(&id) {
            let outcome = connection.host_event(ready);
            self.settle(id, outcome);
        }
    }

    /// The socket of this connection cannot be watched: ends it.
    pub(super) fn host_failed(&mut self, id: ConnectionId) {
        if self.connections.contains_key(&id) {
            self.settle(id, Outcome::Reset);
        }
    }

    /// Asks the guest for a connection to its port `guest_port` and gives `reply` the outcome.
    pub(super) fn connect(&mut self, guest_port: u32, reply: SyncSender<io::Result<UnixStream>>) {
        let pair = UnixStream::pair().and_then(|(ours, theirs)| self.check_room().map(|()| (ours, theirs)));
        match pair {
            Ok((ours, stream)) => self.open(guest_port, ours, Opener::Handle { stream, reply }),
            // The caller may have given up.
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    /// Asks the guest for a connection on behalf of the program behind `socket`; on any trouble the socket is closed.
    pub(super) fn connect_program(&mut self, guest_port: u32, socket: UnixStream) {
        match self.check_room() {
            Ok(()) => self.open(guest_port, socket, Opener::Program),
            Err(error) => tracing::warn!("vsock: program refused: {error}"),
        }
    }

    /// When [`Muxer::expire`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(instant, _)| *instant)
    }

    /// Ends the connections whose time is over at `now`.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(instant, id)) = self.deadlines.first()
            && instant <= now
        {
            self.deadlines.pop_first();
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.deadline = None;
                let outcome = connection.expire();
                self.settle(id, outcome);
            }
        }
    }

    /// Why a packet cannot be for any connection.
    fn check(&self, header: &Header, available: usize) -> Result<(), &'static str> {
        if header.src_cid != self.guest_cid {
            return Err("source CID is not the guest's");
        }
        if header.dst_cid != HOST_CID {
            return Err("destination CID is not the host's");
        }
        if header.socket_type != TYPE_STREAM {
            return Err("not a stream");
        }
        if header.len > MAX_PAYLOAD {
            return Err("payload too long");
        }
        if header.len > 0 && header.op != Op::ReadWrite as u16 {
            return Err("payload on a control packet");
        }
        if HEADER_SIZE + header.len as usize > available {
            return Err("payload longer than its buffers");
        }
        Ok(())
    }

    fn accept(&mut self, ports: Ports, request: &Header) {
        let socket = self.check_room().and_then(|()| self.host.open_port(ports.host));
        match socket {
            Ok(socket) => {
                let connection = Connection::accept(ports, socket, request, self.options.buffer_size);
                self.insert(connection);
            }
            Err(error) => {
                tracing::debug!(port = ports.host, "vsock: connection refused: {error}");
                self.refuse(request);
            }
        }
    }

    fn open(&mut self, guest_port: u32, socket: UnixStream, opener: Opener) {
        let ports = Ports { guest: guest_port, host: self.free_port(guest_port) };
        let id = self.insert(Connection::open(ports, socket, opener, self.options.buffer_size));
        self.set_deadline(id, Some(Instant::now() + self.options.connect_timeout));
    }

    fn check_room(&self) -> io::Result<()> {
        let limit = self.options.max_connections;
        if self.connections.len() < limit {
            return Ok(());
        }
        Err(io::Error::other(format!("the vsock device has {limit} connections, its limit")))
    }

    fn insert(&mut self, connection: Connection) -> ConnectionId {
        let id = loop {
            let id = ConnectionId(self.next_id);
            self.next_id = (self.next_id + 1) % ConnectionId::LIMIT;
            // There are far fewer connections than identifiers.
            if !self.connections.contains_key(&id) {
                break id;
            }
        };
        self.changes.push(Change::Watch(id, connection.fd()));
        self.by_ports.insert(connection.ports(), id);
        self.connections.insert(id, connection);
        self.host.set_connections(self.connections.len());
        self.queue(id);
        id
    }

    /// A host port that no connection to this guest port has. Ports are taken in turn, so that one that was just closed
    /// is used again only after all others.
    fn free_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = if port + 1 == PORT_ANY { FIRST_EPHEMERAL_PORT } else { port + 1 };
            // There are far fewer connections than ports.
            if !self.by_ports.contains_key(&Ports { guest: guest_port, host: port }) {
                return port;
            }
        }
    }

    /// Carries out what an event made of a connection.
    fn settle(&mut self, id: ConnectionId, outcome: Outcome) {
        if matches!(outcome, Outcome::Reset | Outcome::ResetAndDrain)
            && let Some(connection) = self.connections.get(&id)
        {
            let ports = connection.ports();
            let packet = Packet { op: Op::Reset, flags: 0, len: 0, buf_alloc: 0, fwd_cnt: 0 };
            self.resets.push_back(self.header(ports, packet));
        }
        match outcome {
            Outcome::Alive => {
                // Only an answer and an end are waited for no longer than so.
                let settled = |c: &Connection| c.deadline.is_some() && !c.is_connecting() && !c.is_closing();
                if self.connections.get(&id).is_some_and(settled) {
                    self.set_deadline(id, None);
                }
                self.watch_backlog(id);
                self.queue(id);
            }
            Outcome::Gone | Outcome::Reset => self.remove(id),
            Outcome::Drain | Outcome::ResetAndDrain => {
                self.set_deadline(id, None);
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.drain();
                    // The guest may use the ports again.
                    self.by_ports.remove(&connection.ports());
                }
            }
        }
    }

    fn remove(&mut self, id: ConnectionId) {
        self.set_deadline(id, None);
        if let Some(connection) = self.connections.remove(&id) {
            let ports = connection.ports();
            // A draining connection no longer has them; somebody else may.
            if self.by_ports.get(&ports) == Some(&id) {
                self.by_ports.remove(&ports);
            }
            self.changes.push(Change::Close(connection.into_socket()));
            self.host.set_connections(self.connections.len());
        }
    }

    fn watch_backlog(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && connection.wants_writable() != connection.watched_writable
        {
            connection.watched_writable = connection.wants_writable();
            self.changes.push(Change::WatchWritable(id, connection.fd(), connection.watched_writable));
        }
    }

    /// Gives a connection a turn, if it wants one and has none.
    fn queue(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !connection.queued
            && connection.wants_to_send()
        {
            connection.queued = true;
            self.ready.push_back(id);
        }
    }

    fn set_deadline(&mut self, id: ConnectionId, deadline: Option<Instant>) {
        if let Some(connection) = self.connections.get_mut(&id) {
            if let Some(old) = std::mem::replace(&mut connection.deadline, deadline) {
                self.deadlines.remove(&(old, id));
            }
            self.deadlines.extend(deadline.map(|deadline| (deadline, id)));
        }
    }

    /// Answers a packet that no connection takes. A RST gets no answer, or two devices could go on for ever.
    fn refuse(&mut self, header: &Header) {
        if header.op != Op::Reset as u16 {
            self.resets.push_back(header.reset_reply());
        }
    }

    fn header(&self, ports: Ports, packet: Packet) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            len: packet.len,
            socket_type: TYPE_STREAM,
            op: packet.op as u16,
            flags: packet.flags,
            buf_alloc: packet.buf_alloc,
            fwd_cnt: packet.fwd_cnt,
        }
    }
}

impl Drop for Muxer {
    fn drop(&mut self) {
        self.host.set_connections(0);
    }
}

/// Writes the header in front of the payload that is already there; returns the length of both.
fn write_packet(buffers: &GuestBuffers, header: Header) -> u32 {
    buffers.copy_from(&header.to_bytes());
    // 44.
    header.len + HEADER_SIZE as u32
}
