//! The worker's part of [`super::VsockHandle::expose`]: accepts other programs and reads the line that says which port
//! of the guest they want.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events};
use rustix::net::RecvFlags;
use vmm_sys_util::epoll::EventSet;

use super::host_side::HostSide;

/// Programs that may be about to say their line. More are closed at once.
const MAX_WAITING: usize = 128;
/// How long a program may take to say its line.
const LINE_TIMEOUT: Duration = Duration::from_secs(10);
/// `CONNECT 4294967295\n` has 19 bytes; leave room for `\r` and blanks.
const MAX_LINE: usize = 32;

/// See the module's documentation. Events are told apart by the tokens that the worker gives out.
pub(super) struct Programs {
    host: Arc<HostSide>,
    listeners: HashMap<u32, Arc<UnixListener>>,
    waiting: HashMap<u32, Waiting>,
    next: u32,
    /// Token of the listener with identifier 0; the others follow.
    listener_base: u32,
    /// Token of the waiting program with identifier 0; the others follow.
    waiting_base: u32,
    /// Identifiers are smaller than this.
    limit: u32,
}

struct Waiting {
    stream: UnixStream,
    deadline: Instant,
}

/// A program that has said which port it wants.
pub(super) struct Wish {
    pub(super) guest_port: u32,
    pub(super) stream: UnixStream,
}

impl Programs {
    pub(super) fn new(host: Arc<HostSide>, listener_base: u32, waiting_base: u32, limit: u32) -> Self {
        let (listeners, waiting) = (HashMap::new(), HashMap::new());
        Programs { host, listeners, waiting, next: 0, listener_base, waiting_base, limit }
    }

    /// Watches the Unix sockets that are exposed now, and no others.
    pub(super) fn sync(&mut self, ops: &mut EventOps) {
        let exposed = self.host.exposed();
        self.listeners.retain(|id, listener| {
            let keep = exposed.contains_key(id);
            if !keep {
                unwatch(listener.as_ref(), ops);
            }
            keep
        });
        for (id, exposed) in exposed {
            if !self.listeners.contains_key(&id) && id < self.limit {
                // Edge-triggered, so that a lack of file descriptors does not make the worker spin.
                let interest = EventSet::IN | EventSet::EDGE_TRIGGERED;
                let events = Events::with_data(exposed.listener.as_ref(), self.listener_base + id, interest);
                match ops.add(events) {
                    Ok(()) => {
                        self.listeners.insert(id, exposed.listener);
                    }
                    Err(error) => {
                        tracing::warn!("vsock: socket {} not watched: {error}", exposed.path.display());
                    }
                }
            }
        }
    }

    /// A listening socket is ready: accepts whoever is there.
    pub(super) fn accept(&mut self, id: u32, ops: &mut EventOps) {
        let Some(listener) = self.listeners.get(&id).cloned() else { return };
        loop {
            match listener.accept() {
                Ok((stream, _)) => self.add(stream, ops),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(error) => {
                    // The next program that comes makes the socket ready again.
                    tracing::warn!("vsock: failed to accept a program: {error}");
                    return;
                }
            }
        }
    }

    /// A program has said something: its wish, if that was the whole line.
    pub(super) fn line_ready(&mut self, id: u32, ops: &mut EventOps) -> Option<Wish> {
        let line = read_line(&self.waiting.get(&id)?.stream);
        if matches!(&line, Err(error) if error.kind() == ErrorKind::WouldBlock) {
            return None;
        }
        let Waiting { stream, .. } = self.waiting.remove(&id)?;
        unwatch(&stream, ops);
        match line {
            Ok(guest_port) => Some(Wish { guest_port, stream }),
            Err(error) => {
                tracing::warn!("vsock: program on the exposed socket refused: {error}");
                None
            }
        }
    }

    /// When [`Programs::expire`] has something to do next.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|waiting| waiting.deadline).min()
    }

    /// Closes the programs that have not said their line by `now`.
    pub(super) fn expire(&mut self, now: Instant, ops: &mut EventOps) {
        self.waiting.retain(|_, waiting| {
            let keep = waiting.deadline > now;
            if !keep {
                unwatch(&waiting.stream, ops);
            }
            keep
        });
    }

    fn add(&mut self, stream: UnixStream, ops: &mut EventOps) {
        if self.waiting.len() >= MAX_WAITING {
            tracing::warn!("vsock: {MAX_WAITING} programs have yet to say which port they want, one more is refused");
            return;
        }
        let id = loop {
            let id = self.next;
            self.next = (self.next + 1) % self.limit;
            if !self.waiting.contains_key(&id) {
                break id;
            }
        };
        let interest = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        match ops.add(Events::with_data(&stream, self.waiting_base + id, interest)) {
            Ok(()) => {
                self.waiting.insert(id, Waiting { stream, deadline: Instant::now() + LINE_TIMEOUT });
            }
            Err(error) => tracing::warn!("vsock: program not watched: {error}"),
        }
    }
}

/// Reads `CONNECT <port>\n` and not a byte beyond: what follows is for the guest. `WouldBlock` if the line is not whole.
fn read_line(stream: &UnixStream) -> io::Result<u32> {
    let bad = |text: &str| io::Error::new(ErrorKind::InvalidData, text);
    let mut buffer = [0; MAX_LINE];
    let (peeked, _) = rustix::net::recv(stream, &mut buffer, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    let seen = buffer.get(..peeked).unwrap_or_default();
    let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
        return Err(match peeked {
            0 => bad("it left without a word"),
            MAX_LINE => bad("its first line is too long for CONNECT <port>"),
            _ => ErrorKind::WouldBlock.into(),
        });
    };
    let port = parse_line(seen.get(..end).unwrap_or_default()).ok_or_else(|| bad("expected CONNECT <port>"))?;
    let mut line = vec![0; end + 1];
    rustix::net::recv(stream, &mut line[..], RecvFlags::DONTWAIT)?;
    Ok(port)
}

fn parse_line(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (command, port, rest) = (words.next()?, words.next()?, words.next());
    if !command.eq_ignore_ascii_case("connect") || rest.is_some() {
        return None;
    }
    port.parse().ok()
}

fn unwatch(source: &impl AsRawFd, ops: &mut EventOps) {
    if let Err(error) = ops.remove(Events::empty(source)) {
        tracing::debug!("vsock: socket not unwatched: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn line(text: &[u8]) -> Result<u32, ErrorKind> {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(text).unwrap();
        read_line(&theirs).map_err(|error| error.kind())
    }

    #[test]
    fn the_line_says_the_port_in_decimal() {
        assert_eq!(line(b"CONNECT 52\n"), Ok(52));
        assert_eq!(line(b"connect 4294967295\r\n"), Ok(u32::MAX));
        assert_eq!(line(b"CONNECT 4294967296\n"), Err(ErrorKind::InvalidData));
        assert_eq!(line(b"CONNECT -1\n"), Err(ErrorKind::InvalidData));
        assert_eq!(line(b"CONNECT\n"), Err(ErrorKind::InvalidData));
        assert_eq!(line(b"CONNECT 5 6\n"), Err(ErrorKind::InvalidData));
        assert_eq!(line(b"GET / HTTP/1.1\r\n"), Err(ErrorKind::InvalidData));
        assert_eq!(line(b"\xff\xfe\n"), Err(ErrorKind::InvalidData));
    }

    #[test]
    fn half_a_line_is_waited_for_and_an_endless_one_is_not() {
        assert_eq!(line(b"CONN"), Err(ErrorKind::WouldBlock));
        assert_eq!(line(&[b'x'; MAX_LINE]), Err(ErrorKind::InvalidData));
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert_eq!(read_line(&theirs).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(ours);
        assert_eq!(read_line(&theirs).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn what_follows_the_line_stays_in_the_socket() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"CONNECT 1024\nhello").unwrap();
        assert_eq!(read_line(&theirs).unwrap(), 1024);
        let mut rest = [0; 5];
        theirs.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");
    }
}
