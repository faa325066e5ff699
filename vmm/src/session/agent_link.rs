//! The stream to an agent as two channels: frames that come, frames to send.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use wire::{FrameError, ToGuest, ToHost, read_frame, write_frame};

/// Frames that wait to be handled; more stay in the stream, and the agent waits.
const INBOUND_FRAMES: usize = 64;

/// What comes from an agent.
#[derive(Debug)]
pub enum LinkEvent {
    /// A frame.
    Frame(ToHost),
    /// The stream ended: `None` between two frames, else what is wrong with it. Always the last event.
    Closed(Option<FrameError>),
}

/// A link to one agent. Reading and writing happen in threads of their own, so that neither a silent nor a deaf agent holds
/// anything up. Dropping the link closes the stream.
#[derive(Debug)]
pub struct AgentLink {
    events: Receiver<LinkEvent>,
    outbound: Sender<ToGuest>,
    stream: Arc<Mutex<Connection>>,
    pulse: Arc<Pulse>,
}

/// Whether the agent lives.
#[derive(Debug, Default)]
struct Pulse {
    /// Frames read so far, [`ToHost::Pong`]s too.
    frames: AtomicU64,
    /// Whether nothing is read because nobody takes what was read.
    held_up: AtomicBool,
    fell_silent: AtomicBool,
}

/// The stream once there is one, and whether it is wanted still.
#[derive(Debug, Default)]
struct Connection {
    stream: Option<UnixStream>,
    dropped: bool,
}

impl AgentLink {
    /// A link over the first stream that `agent` gives; if it never gives one, the link is closed when the sender is gone.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn accept(agent: mpsc::Receiver<UnixStream>) -> io::Result<Self> {
        Self::start(move || agent.recv().ok())
    }

    /// A link over `stream`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn over(stream: UnixStream) -> io::Result<Self> {
        Self::start(move || Some(stream))
    }

    fn start(stream: impl FnOnce() -> Option<UnixStream> + Send + 'static) -> io::Result<Self> {
        let (event_sender, events) = bounded(INBOUND_FRAMES);
        let (outbound, to_send) = unbounded();
        let connection = Arc::new(Mutex::new(Connection::default()));
        let pulse = Arc::new(Pulse::default());
        let heard = Arc::clone(&pulse);
        let shared = Arc::clone(&connection);
        // Not joined: it may be waiting for a stream that never comes. It ends with the stream, or with the machine.
        thread::Builder::new().name("agent-reader".into()).spawn(move || {
            let Some(stream) = stream() else {
                let _ = event_sender.send(LinkEvent::Closed(None));
                return;
            };
            if !adopt(&shared, &stream) {
                return;
            }
            let started = stream.try_clone().and_then(|writer| {
                let write = move || write_frames(writer, &to_send, &shared);
                thread::Builder::new().name("agent-writer".into()).spawn(write)
            });
            match started {
                Ok(_) => read_frames(stream, &event_sender, &heard),
                Err(error) => {
                    let _ = event_sender.send(LinkEvent::Closed(Some(FrameError::Io(error))));
                }
            }
        })?;
        Ok(Self { events, outbound, stream: connection, pulse })
    }

    /// What comes from the agent, in order.
    #[must_use]
    pub fn events(&self) -> &Receiver<LinkEvent> {
        &self.events
    }

    /// Asks the agent every `period` whether it lives, from now on until the link is dropped, and closes the stream when nothing
    /// was heard from it for `limit`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn watch(&self, period: Duration, limit: Duration) -> io::Result<()> {
        let (outbound, connection, pulse) = (self.outbound.clone(), Arc::clone(&self.stream), Arc::clone(&self.pulse));
        thread::Builder::new().name("agent-pulse".into()).spawn(move || {
            let (mut frames, mut since) = (0, Instant::now());
            loop {
                thread::sleep(period);
                if !is_wanted(&connection) || outbound.send(ToGuest::Ping).is_err() {
                    return;
                }
                let now = pulse.frames.load(Ordering::Relaxed);
                if now != frames || pulse.held_up.load(Ordering::Relaxed) {
                    (frames, since) = (now, Instant::now());
                } else if since.elapsed() > limit {
                    pulse.fell_silent.store(true, Ordering::Relaxed);
                    close(&connection);
                    return;
                }
            }
        })?;
        Ok(())
    }

    /// How many frames came from the agent so far, answers to pings too.
    #[must_use]
    pub fn frames_read(&self) -> u64 {
        self.pulse.frames.load(Ordering::Relaxed)
    }

    /// Whether the stream was closed because the agent did not answer any more, see [`Self::watch`].
    #[must_use]
    pub fn fell_silent(&self) -> bool {
        self.pulse.fell_silent.load(Ordering::Relaxed)
    }

    /// Sends a frame, soon and without waiting; if the stream is gone it is lost, and [`LinkEvent::Closed`] tells.
    pub fn send(&self, frame: ToGuest) {
        let _ = self.outbound.send(frame);
    }
}

/// Keeps the stream where dropping the link can close it; `false` when the link is gone already.
fn adopt(connection: &Mutex<Connection>, stream: &UnixStream) -> bool {
    let Ok(mut connection) = connection.lock() else { return false };
    connection.stream = stream.try_clone().ok();
    !connection.dropped
}

/// Whether the link was not dropped and its stream was not closed.
fn is_wanted(connection: &Mutex<Connection>) -> bool {
    connection.lock().is_ok_and(|connection| !connection.dropped)
}

/// Wakes both threads, whatever they wait in.
fn close(connection: &Mutex<Connection>) {
    if let Ok(connection) = connection.lock()
        && let Some(stream) = &connection.stream
    {
        // It may be closed already.
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn read_frames(mut stream: UnixStream, events: &Sender<LinkEvent>, pulse: &Pulse) {
    loop {
        let read = read_frame(&mut stream);
        pulse.frames.fetch_add(1, Ordering::Relaxed);
        let event = match read {
            Ok(Some(ToHost::Pong)) => continue,
            Ok(Some(frame)) => LinkEvent::Frame(frame),
            Ok(None) => LinkEvent::Closed(None),
            Err(error) => LinkEvent::Closed(Some(error)),
        };
        let last = matches!(event, LinkEvent::Closed(_));
        pulse.held_up.store(true, Ordering::Relaxed);
        if events.send(event).is_err() || last {
            return;
        }
        pulse.held_up.store(false, Ordering::Relaxed);
    }
}

/// Ends with the link, or closes the stream: whoever waits for an answer to a frame that was not sent would do so for ever.
fn write_frames(mut stream: UnixStream, frames: &Receiver<ToGuest>, connection: &Mutex<Connection>) {
    for frame in frames {
        if let Err(error) = write_frame(&mut stream, &frame) {
            tracing::debug!(%error, "the agent takes no more frames");
            return close(connection);
        }
    }
}

impl Drop for AgentLink {
    fn drop(&mut self) {
        if let Ok(mut connection) = self.stream.lock() {
            connection.dropped = true;
        }
        close(&self.stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_stream_that_never_comes_closes_the_link() {
        let (sender, receiver) = mpsc::channel();
        let link = AgentLink::accept(receiver).unwrap();
        drop(sender);
        assert!(matches!(link.events().recv_timeout(SOON), Ok(LinkEvent::Closed(None))));
    }

    #[test]
    fn frames_pass_both_ways_also_those_sent_before_the_stream_came() {
        let (sender, receiver) = mpsc::channel();
        let link = AgentLink::accept(receiver).unwrap();
        link.send(ToGuest::Signal(15));
        let (mut agent, ours) = UnixStream::pair().unwrap();
        sender.send(ours).unwrap();
        assert_eq!(read_frame(&mut agent).unwrap(), Some(ToGuest::Signal(15)));
        write_frame(&mut agent, &ToHost::Goodbye).unwrap();
        assert!(matches!(link.events().recv_timeout(SOON), Ok(LinkEvent::Frame(ToHost::Goodbye))));
        drop(link);
        assert_eq!(read_frame::<ToGuest>(&mut agent).unwrap(), None);
    }

    #[test]
    fn an_agent_that_reads_nothing_holds_up_neither_sending_nor_dropping() {
        let (_agent, ours) = UnixStream::pair().unwrap();
        let link = AgentLink::over(ours).unwrap();
        for _ in 0..100 {
            link.send(ToGuest::Stdin { data: vec![0; wire::MAX_CHUNK] });
        }
        drop(link);
    }
    #[test]
    fn an_agent_that_answers_stays_and_one_that_falls_silent_is_left() {
        let (mut agent, ours) = UnixStream::pair().unwrap();
        let link = AgentLink::over(ours).unwrap();
        link.watch(Duration::from_millis(5), Duration::from_millis(400)).unwrap();
        for _ in 0..100 {
            assert_eq!(read_frame(&mut agent).unwrap(), Some(ToGuest::Ping));
            write_frame(&mut agent, &ToHost::Pong).unwrap();
        }
        write_frame(&mut agent, &ToHost::Goodbye).unwrap();
        assert!(matches!(link.events().recv_timeout(SOON), Ok(LinkEvent::Frame(ToHost::Goodbye))), "no Pong before it");
        assert!(!link.fell_silent());
        assert!(matches!(link.events().recv_timeout(SOON), Ok(LinkEvent::Closed(None))));
        assert!(link.fell_silent());
    }

    #[test]
    fn an_agent_is_not_silent_while_nobody_takes_what_it_said() {
        let (mut agent, ours) = UnixStream::pair().unwrap();
        let link = AgentLink::over(ours).unwrap();
        link.watch(Duration::from_millis(5), Duration::from_millis(50)).unwrap();
        for _ in 0..=INBOUND_FRAMES {
            write_frame(&mut agent, &ToHost::Goodbye).unwrap();
        }
        thread::sleep(Duration::from_millis(300));
        assert!(!link.fell_silent());
        drop(link);
    }
}
