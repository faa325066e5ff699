//! One stream connection between a guest port and a host socket.
//!
//! ```text
//!  guest's REQUEST ──────────────┐
//!                                ▼
//!  host connects ─▶ Connecting ─▶ Established ─▶ Closing (both SHUTDOWNs sent, waits for the guest's RST)
//!                       │            │              │
//!                       ▼            ▼              ▼
//!                      gone ◀──── Draining ◀── the guest is done, its last bytes are not yet in the host socket
//! ```
//!
//! Nothing here blocks. Payload to the host goes straight from guest memory into the socket; what does not fit waits in
//! a backlog, which credit keeps within the advertised buffer. Payload to the guest goes straight from the socket into
//! the receive buffer that was reserved for it.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use super::credit::{ReceiveCredit, SendCredit};
use super::guest_buffers::GuestBuffers;
use super::host_socket::{HostSocket, Input, Unread};
use super::packet::{HEADER_SIZE, Header, MAX_PAYLOAD, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// The two ports that name a connection; the CIDs are always the guest's and the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// Who on the host is waiting for the guest's answer to a REQUEST.
#[derive(Debug)]
pub(super) enum Opener {
    /// [`super::VsockHandle::connect`]: gets the host's end of the socket pair.
    Handle { stream: UnixStream, reply: SyncSender<io::Result<UnixStream>> },
    /// A program on the exposed Unix socket: the connection's socket is its own; it is sent `OK <host port>`.
    Program,
}

#[derive(Debug)]
enum Phase {
    Connecting(Option<Opener>),
    Established,
    Closing,
    Draining,
}

/// What is to become of a connection after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Outcome {
    /// It goes on.
    Alive,
    /// It is over and the guest knows.
    Gone,
    /// It is over and the guest must be told by a RST.
    Reset,
    /// The guest's side is over and needs a RST, the host's gets the backlog first.
    ResetAndDrain,
    /// The guest's side is over and the guest knows, the host's gets the backlog first.
    Drain,
}

/// What a packet for the guest says; the muxer adds the addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) op: Op,
    pub(super) flags: u32,
    pub(super) len: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

/// What epoll said of a host socket.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Readiness {
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// Both directions are shut down.
    pub(super) hung_up: bool,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Connection {
    ports: Ports,
    /// With the payload of the guest that it had no room for.
    socket: HostSocket,
    phase: Phase,
    send_credit: SendCredit,
    receive_credit: ReceiveCredit,
    /// The socket may have something to read: from the first word of epoll, which watches edges, until a read says
    /// otherwise.
    readable: bool,
    /// What the guest announced: SHUTDOWN_* bits.
    guest_shutdown: u32,
    /// What the guest is to be told: SHUTDOWN_* bits, SEND once everything the host wrote was sent on.
    host_shutdown: u32,
    /// What the guest was told of `host_shutdown`.
    told_shutdown: u32,
    /// REQUEST or RESPONSE, to be sent first of all.
    greeting: Option<Op>,
    credit_update_wanted: bool,
    /// A CREDIT_REQUEST was sent and not much credit has come since.
    credit_requested: bool,
    /// In the muxer's list of those that want to send.
    pub(super) queued: bool,
    /// Epoll was asked to tell when the socket becomes writable; kept by the muxer.
    pub(super) watched_writable: bool,
    /// When [`Connection::expire`] is due; kept by the muxer.
    pub(super) deadline: Option<Instant>,
}

impl Connection {
    /// A connection that the guest asked for by `request` and somebody behind `socket` accepts.
    pub(super) fn accept(ports: Ports, socket: UnixStream, request: &Header, buf_alloc: u32) -> Self {
        let mut connection = Connection::new(ports, socket, Phase::Established, Op::Response, buf_alloc);
        connection.send_credit.update(request.buf_alloc, request.fwd_cnt);
        connection
    }

    /// A connection that the host asks the guest for.
    pub(super) fn open(ports: Ports, socket: UnixStream, opener: Opener, buf_alloc: u32) -> Self {
        Connection::new(ports, socket, Phase::Connecting(Some(opener)), Op::Request, buf_alloc)
    }

    fn new(ports: Ports, socket: UnixStream, phase: Phase, greeting: Op, buf_alloc: u32) -> Self {
        Connection {
            ports,
            socket: HostSocket::new(socket, buf_alloc as usize),
            phase,
            send_credit: SendCredit::default(),
            receive_credit: ReceiveCredit::new(buf_alloc),
            readable: false,
            guest_shutdown: 0,
            host_shutdown: 0,
            told_shutdown: 0,
            greeting: Some(greeting),
            credit_update_wanted: false,
            credit_requested: false,
            queued: false,
            watched_writable: false,
            deadline: None,
        }
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    pub(super) fn fd(&self) -> RawFd {
        self.socket.fd()
    }

    pub(super) fn into_socket(self) -> UnixStream {
        self.socket.into_stream()
    }

    /// Waits for the guest to confirm the end: the host is done both ways.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing)
    }

    /// Waits for the guest's answer to a REQUEST.
    pub(super) fn is_connecting(&self) -> bool {
        matches!(self.phase, Phase::Connecting(_))
    }

    /// Whether the socket's becoming writable matters.
    pub(super) fn wants_writable(&self) -> bool {
        self.socket.has_backlog()
    }

    /// Takes a packet of the guest for this connection. `payload` is as long as the header says.
    pub(super) fn receive(&mut self, header: &Header, payload: &GuestBuffers) -> Outcome {
        self.send_credit.update(header.buf_alloc, header.fwd_cnt);
        // A guest that has just read a little answers with a little credit. Asking for more at once would cut the
        // stream into such pieces; Linux tells by itself when there is more.
        if self.send_credit.available() > header.buf_alloc / 2 {
            self.credit_requested = false;
        }
        let Some(op) = Op::from_number(header.op) else { return self.violation("unknown operation") };
        if let Phase::Connecting(opener) = &mut self.phase {
            return match op {
                Op::Response => {
                    let opener = opener.take();
                    self.opened(opener)
                }
                Op::Reset => {
                    let text = format!("the guest refused a connection to its vsock port {}", self.ports.guest);
                    self.fail_opener(ErrorKind::ConnectionRefused, text);
                    Outcome::Gone
                }
                _ => self.violation("no answer to a REQUEST"),
            };
        }
        match op {
            Op::Request | Op::Response => self.violation("the connection exists"),
            Op::Reset => self.guest_gone(Outcome::Gone, Outcome::Drain),
            Op::Shutdown => self.guest_shuts_down(header.flags & SHUTDOWN_BOTH),
            Op::ReadWrite => self.payload(header.len, payload),
            // The credit fields were taken above.
            Op::CreditUpdate => Outcome::Alive,
            Op::CreditRequest => {
                self.credit_update_wanted = true;
                Outcome::Alive
            }
        }
    }

    /// Takes what epoll said of the socket.
    pub(super) fn host_event(&mut self, ready: Readiness) -> Outcome {
        self.readable |= ready.readable || ready.hung_up;
        if ready.hung_up {
            // The host's end is closed: nobody will read what the guest sends.
            self.host_receives_no_more();
            if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
                self.host_shutdown |= SHUTDOWN_SEND;
            }
        }
        if ready.writable || ready.hung_up {
            self.flush();
        }
        if matches!(self.phase, Phase::Draining) && !self.socket.has_backlog() {
            return Outcome::Gone;
        }
        Outcome::Alive
    }

    /// The time the phase allows is over: no answer to a REQUEST, or no RST after both SHUTDOWNs.
    pub(super) fn expire(&mut self) -> Outcome {
        let text = format!("the guest did not answer a connection request to its vsock port {}", self.ports.guest);
        self.fail_opener(ErrorKind::TimedOut, text);
        Outcome::Reset
    }

    /// Whether [`Connection::produce`] may have a packet.
    pub(super) fn wants_to_send(&self) -> bool {
        match self.phase {
            Phase::Connecting(_) => self.greeting.is_some(),
            Phase::Established => {
                self.greeting.is_some()
                    || (self.may_read() && self.send_credit.available() > 0)
                    || self.shutdown_untold()
                    || self.credit_update_wanted
                    || self.receive_credit.update_due()
                    || self.credit_request_due()
            }
            Phase::Closing => self.shutdown_untold(),
            Phase::Draining => false,
        }
    }

    /// The next packet for the guest, its payload already behind the place of the header in `buffers` (a whole receive
    /// buffer of at least a header's length). `None` leaves `buffers` unused.
    pub(super) fn produce(&mut self, buffers: &GuestBuffers) -> Option<Packet> {
        if matches!(self.phase, Phase::Draining) {
            return None;
        }
        if let Some(op) = self.greeting.take() {
            return Some(self.packet(op, 0, 0));
        }
        if matches!(self.phase, Phase::Connecting(_)) {
            return None;
        }
        if let Some(len) = self.read_host(buffers) {
            return Some(self.packet(Op::ReadWrite, 0, len));
        }
        if self.shutdown_untold() {
            self.told_shutdown = self.host_shutdown;
            if self.told_shutdown == SHUTDOWN_BOTH {
                self.phase = Phase::Closing;
            }
            return Some(self.packet(Op::Shutdown, self.told_shutdown, 0));
        }
        if matches!(self.phase, Phase::Closing) {
            return None;
        }
        if self.credit_update_wanted || self.receive_credit.update_due() {
            return Some(self.packet(Op::CreditUpdate, 0, 0));
        }
        if self.credit_request_due() {
            self.credit_requested = true;
            return Some(self.packet(Op::CreditRequest, 0, 0));
        }
        None
    }

    /// Ends the guest's side: from now on only the backlog matters.
    pub(super) fn drain(&mut self) {
        self.phase = Phase::Draining;
    }

    fn packet(&mut self, op: Op, flags: u32, len: u32) -> Packet {
        self.credit_update_wanted = false;
        let (buf_alloc, fwd_cnt) = self.receive_credit.advertise();
        Packet { op, flags, len, buf_alloc, fwd_cnt }
    }

    /// Moves payload from the socket into `buffers`; `None` when there was none to move.
    fn read_host(&mut self, buffers: &GuestBuffers) -> Option<u32> {
        if !self.may_read() {
            return None;
        }
        let limit = self.send_credit.available().min(MAX_PAYLOAD);
        let room = buffers.range(HEADER_SIZE, limit as usize);
        if room.len() == 0 {
            return None;
        }
        match self.socket.read(&room) {
            Input::Data(len) => {
                // At most MAX_PAYLOAD.
                let len = u32::try_from(len).unwrap_or(MAX_PAYLOAD);
                self.send_credit.consume(len);
                return Some(len);
            }
            Input::Blocked => self.readable = false,
            Input::Interrupted => {}
            Input::End { closed } => {
                self.host_shutdown |= SHUTDOWN_SEND;
                if closed {
                    self.host_receives_no_more();
                }
            }
        }
        None
    }

    fn may_read(&self) -> bool {
        self.readable
            && matches!(self.phase, Phase::Established)
            && self.host_shutdown & SHUTDOWN_SEND == 0
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
    }

    fn shutdown_untold(&self) -> bool {
        self.host_shutdown & !self.told_shutdown != 0
    }

    fn credit_request_due(&self) -> bool {
        self.may_read() && self.send_credit.available() == 0 && !self.credit_requested
    }

    fn opened(&mut self, opener: Option<Opener>) -> Outcome {
        self.phase = Phase::Established;
        match opener {
            Some(Opener::Handle { stream, reply }) => {
                // If the caller has given up, the stream is dropped and the connection ends as any other.
                drop(reply.send(Ok(stream)));
            }
            Some(Opener::Program) => {
                let greeting = format!("OK {}\n", self.ports.host);
                if let Err(error) = self.socket.write_text(&greeting) {
                    tracing::debug!(ports = ?self.ports, "vsock: program is gone: {error}");
                    return Outcome::Reset;
                }
            }
            None => {}
        }
        Outcome::Alive
    }

    fn fail_opener(&mut self, kind: ErrorKind, text: String) {
        if let Phase::Connecting(opener) = &mut self.phase
            && let Some(Opener::Handle { reply, .. }) = opener.take()
        {
            drop(reply.send(Err(io::Error::new(kind, text))));
        }
    }

    fn violation(&mut self, what: &str) -> Outcome {
        tracing::debug!(ports = ?self.ports, "vsock: connection reset: {what}");
        let text = format!("the guest's vsock driver broke the protocol ({what})");
        self.fail_opener(ErrorKind::ConnectionReset, text);
        self.guest_gone(Outcome::Reset, Outcome::ResetAndDrain)
    }

    /// The guest's side is over: `now`, or `with_backlog` if bytes that it sent before are still to be delivered.
    fn guest_gone(&mut self, now: Outcome, with_backlog: Outcome) -> Outcome {
        if self.socket.has_backlog() { with_backlog } else { now }
    }

    fn guest_shuts_down(&mut self, flags: u32) -> Outcome {
        self.guest_shutdown |= flags;
        if self.guest_shutdown == SHUTDOWN_BOTH {
            // Linux waits for a RST before it lets go of a closed socket (virtio_transport_close).
            return self.guest_gone(Outcome::Reset, Outcome::ResetAndDrain);
        }
        if flags & SHUTDOWN_RECEIVE != 0 {
            // The host's writes fail from now on, as on any socket whose peer reads no more.
            self.socket.shutdown(Shutdown::Read);
        }
        self.finish_writing();
        Outcome::Alive
    }

    fn payload(&mut self, len: u32, payload: &GuestBuffers) -> Outcome {
        if let Err(error) = self.receive_credit.receive(len) {
            return self.violation(&error.to_string());
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return self.violation("payload after SHUTDOWN");
        }
        if self.host_shutdown & SHUTDOWN_RECEIVE != 0 {
            // Sent before the guest knew.
            self.receive_credit.forward(len);
            return Outcome::Alive;
        }
        match self.socket.write(payload) {
            Ok(sent) => self.forward(sent),
            Err(Unread) => {
                self.receive_credit.forward(len);
                self.host_receives_no_more();
            }
        }
        Outcome::Alive
    }

    /// Writes the backlog into the socket as far as it goes.
    fn flush(&mut self) {
        let (sent, outcome) = self.socket.flush();
        self.forward(sent);
        match outcome {
            Ok(()) => self.finish_writing(),
            Err(Unread) => self.host_receives_no_more(),
        }
    }

    /// Passes the end of the guest's stream on, once all of it was delivered.
    fn finish_writing(&mut self) {
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && !self.socket.has_backlog() {
            self.socket.shutdown(Shutdown::Write);
        }
    }

    fn host_receives_no_more(&mut self) {
        self.host_shutdown |= SHUTDOWN_RECEIVE;
        let dropped = self.socket.drop_backlog();
        self.forward(dropped);
    }

    fn forward(&mut self, len: usize) {
        // Never more than the guest sent, which fits.
        self.receive_credit.forward(u32::try_from(len).unwrap_or(u32::MAX));
    }
}
