//! This process's standard streams as channels, so that none of them can block the talk with the guest.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use wire::{MAX_CHUNK, Stream};

/// Pieces of output that wait to be written.
const OUTPUT_PIECES: usize = 4;

/// Reads standard input in a thread.
#[derive(Debug)]
pub(super) struct StdinReader {
    chunks: Receiver<Vec<u8>>,
    wake: OwnedFd,
}

impl StdinReader {
    pub(super) fn start(input: OwnedFd) -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC)?;
        let woken = wake.try_clone()?;
        // A meeting point: what the guest has no room for stays in our own standard input.
        let (sender, chunks) = bounded(0);
        // Not joined: the descriptor may be in a read that another reader of the same pipe made wait.
        thread::Builder::new().name("stdin".into()).spawn(move || read_input(&input, &woken, &sender))?;
        Ok(Self { chunks, wake })
    }

    /// What was read; disconnected at its end.
    pub(super) fn chunks(&self) -> &Receiver<Vec<u8>> {
        &self.chunks
    }
}

impl Drop for StdinReader {
    fn drop(&mut self) {
        // Cannot fail on an eventfd of ours that is below its maximum.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

fn read_input(input: &OwnedFd, wake: &OwnedFd, chunks: &Sender<Vec<u8>>) {
    let mut buffer = vec![0; MAX_CHUNK];
    loop {
        let mut fds = [PollFd::new(input, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        if !fds[1].revents().is_empty() {
            return;
        }
        match rustix::io::read(input, &mut buffer[..]) {
            Ok(0) => return,
            Ok(n) => {
                if chunks.send(buffer[..n].to_vec()).is_err() {
                    return;
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // A terminal that hung up: as good as its end.
            Err(_) => return,
        }
    }
}

/// Writes standard output and standard error in a thread, in the order given.
#[derive(Debug)]
pub(super) struct OutputWriter {
    pieces: Option<Sender<(Stream, Vec<u8>)>>,
    /// Gets the stream that does not take any more.
    failures: Receiver<Stream>,
    done: Receiver<()>,
}

impl OutputWriter {
    pub(super) fn start(mut stdout: Box<dyn Write + Send>, mut stderr: Box<dyn Write + Send>) -> std::io::Result<Self> {
        let (pieces, to_write) = bounded::<(Stream, Vec<u8>)>(OUTPUT_PIECES);
        let (failed, failures) = bounded(2);
        let (finished, done) = bounded(1);
        thread::Builder::new().name("output".into()).spawn(move || {
            let mut broken = [false; 2];
            for (stream, data) in to_write {
                let (writer, broken) = match stream {
                    Stream::Stdout => (&mut stdout, &mut broken[0]),
                    Stream::Stderr => (&mut stderr, &mut broken[1]),
                };
                // What comes after a failure is thrown away, so that the command can end.
                if !*broken && writer.write_all(&data).and_then(|()| writer.flush()).is_err() {
                    *broken = true;
                    let _ = failed.send(stream);
                }
            }
            let _ = finished.send(());
        })?;
        Ok(Self { pieces: Some(pieces), failures, done })
    }

    /// Where pieces are given; full while the streams do not take them.
    pub(super) fn pieces(&self) -> Option<&Sender<(Stream, Vec<u8>)>> {
        self.pieces.as_ref()
    }

    /// Streams that broke.
    pub(super) fn failures(&self) -> &Receiver<Stream> {
        &self.failures
    }

    /// No more pieces: gives a message once all are written.
    pub(super) fn finish(&mut self) -> &Receiver<()> {
        self.pieces = None;
        &self.done
    }
}
