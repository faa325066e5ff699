//! The host's side of a connection: a Unix stream socket and what it had no room for. Nothing here blocks.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SendFlags;

use super::guest_buffers::GuestBuffers;

/// A backlog that has grown beyond this is freed, not kept, when it is empty again.
const KEPT_BACKLOG: usize = 4096;
const SEND_FLAGS: SendFlags = SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL);

/// Nobody reads at the other end any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unread;

/// What reading gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// So many bytes, more than 0.
    Data(usize),
    /// Nothing until the socket becomes readable again.
    Blocked,
    /// Nothing this time.
    Interrupted,
    /// The other end writes no more; nor does it read, if `closed`.
    End { closed: bool },
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct HostSocket {
    stream: UnixStream,
    backlog: VecDeque<u8>,
    /// The most bytes that the backlog is ever given.
    limit: usize,
}

impl HostSocket {
    pub(super) fn new(stream: UnixStream, limit: usize) -> Self {
        HostSocket { stream, backlog: VecDeque::new(), limit }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }

    pub(super) fn has_backlog(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// Sends a payload as far as the socket takes it and keeps the rest; returns how many bytes the socket took.
    pub(super) fn write(&mut self, payload: &GuestBuffers) -> Result<usize, Unread> {
        let mut sent = 0;
        if self.backlog.is_empty() && payload.len() > 0 {
            sent = match payload.send_to(&self.stream) {
                Ok(sent) => sent,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => 0,
                Err(_) => return Err(Unread),
            };
        }
        if sent < payload.len() {
            self.keep(&payload.range(sent, payload.len()));
        }
        Ok(sent)
    }

    /// Sends the backlog as far as the socket takes it; returns how many bytes that were, and whether anybody reads.
    pub(super) fn flush(&mut self) -> (usize, Result<(), Unread>) {
        let mut total = 0;
        while !self.backlog.is_empty() {
            let (front, _) = self.backlog.as_slices();
            match rustix::net::send(&self.stream, front, SEND_FLAGS) {
                Ok(sent) => {
                    self.backlog.drain(..sent.min(self.backlog.len()));
                    total += sent;
                }
                Err(rustix::io::Errno::AGAIN) => return (total, Ok(())),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return (total, Err(Unread)),
            }
        }
        if self.backlog.capacity() > KEPT_BACKLOG {
            self.backlog = VecDeque::new();
        }
        (total, Ok(()))
    }

    /// Forgets the backlog; returns how many bytes it had.
    pub(super) fn drop_backlog(&mut self) -> usize {
        std::mem::take(&mut self.backlog).len()
    }

    /// Sends a short text that a socket that was not used yet has room for.
    pub(super) fn write_text(&mut self, text: &str) -> io::Result<()> {
        let sent = rustix::net::send(&self.stream, text.as_bytes(), SEND_FLAGS)?;
        if sent < text.len() { Err(ErrorKind::WriteZero.into()) } else { Ok(()) }
    }

    /// Reads into `room`, which has some.
    pub(super) fn read(&mut self, room: &GuestBuffers) -> Input {
        match room.receive_from(&self.stream) {
            Ok(0) => Input::End { closed: self.is_closed() },
            Ok(len) => Input::Data(len),
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => Input::Blocked,
                ErrorKind::Interrupted => Input::Interrupted,
                // ECONNRESET: closed with unread data. Everything that it wrote was read before.
                _ => {
                    tracing::debug!("vsock: host socket ends: {error}");
                    Input::End { closed: true }
                }
            },
        }
    }

    /// Ends one direction.
    pub(super) fn shutdown(&self, how: Shutdown) {
        if let Err(error) = self.stream.shutdown(how) {
            // ENOTCONN: the other end is closed, which epoll tells as well.
            tracing::debug!("vsock: host socket not shut down: {error}");
        }
    }

    /// Whether both directions are shut down. Epoll tells that too, but perhaps later than a read sees the end.
    fn is_closed(&self) -> bool {
        let mut polled = [PollFd::new(&self.stream, PollFlags::empty())];
        let count = rustix::event::poll(&mut polled, Some(&Timespec::default()));
        count.is_ok() && polled.iter().any(|polled| polled.revents().contains(PollFlags::HUP))
    }

    fn keep(&mut self, rest: &GuestBuffers) {
        let mut bytes = vec![0; rest.len()];
        let copied = rest.copy_to(&mut bytes);
        let needed = self.backlog.len() + copied;
        if needed > self.backlog.capacity() {
            // Doubles, so that small packets are cheap, but not beyond what it can become.
            let capacity = needed.max((2 * needed).min(self.limit));
            self.backlog.reserve_exact(capacity - self.backlog.len());
        }
        self.backlog.extend(bytes.get(..copied).unwrap_or_default());
    }
}
