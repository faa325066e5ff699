//! The framed stream to the host, never blocking in either direction.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use wire::{FrameDecoder, FrameError, ToGuest, ToHost, encode_frame};

/// Bytes read from the host at once.
const READ_SIZE: usize = 64 << 10;

/// A stream of frames over any descriptor that can be polled: a socket, or a virtio-serial port.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
    decoder: FrameDecoder,
    buffer: Vec<u8>,
    /// Frames in a row: many small ones leave in one write, which over vsock is one packet.
    outbound: Vec<u8>,
    /// Bytes of `outbound` that are written already.
    written: usize,
}

impl Link {
    /// Takes the stream and makes it non-blocking.
    ///
    /// # Errors
    /// When the descriptor's flags cannot be changed.
    pub fn new(stream: impl Into<OwnedFd>) -> io::Result<Self> {
        let fd = stream.into();
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Self { fd, decoder: FrameDecoder::default(), buffer: vec![0; READ_SIZE], outbound: Vec::new(), written: 0 })
    }

    /// Queues a frame. It leaves with the next [`flush`](Self::flush).
    pub fn send(&mut self, frame: &ToHost) {
        let bytes = encode_frame(frame).or_else(|error| {
            // Texts are cut and output is chunked before it comes here, so this is a mistake of ours: say so, go on.
            encode_frame(&ToHost::Log { line: format!("a frame could not be sent: {error}") })
        });
        if let Ok(bytes) = bytes {
            self.outbound.extend_from_slice(&bytes);
        }
    }

    /// Bytes that wait for the host to take them.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.outbound.len() - self.written
    }

    /// Writes what the stream takes now.
    ///
    /// # Errors
    /// When the stream is broken.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.queued() > 0 {
            match rustix::io::write(&self.fd, &self.outbound[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.written += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        // What is written goes when it is at least as much as what is left, so that moving that costs no more than writing did.
        if self.written >= self.queued() {
            self.outbound.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }

    /// Writes everything queued, waiting for the host at most `limit`.
    ///
    /// # Errors
    /// When the stream is broken, or `TimedOut`.
    pub fn flush_within(&mut self, limit: Duration) -> io::Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            self.flush()?;
            if self.queued() == 0 {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let timeout = Timespec::try_from(left).unwrap_or_default();
            match poll(&mut [PollFd::new(&self.fd, PollFlags::OUT)], Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Reads once, what there is; `false` when the host closed the stream between two frames.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when it closed inside a frame, [`FrameError::Io`] when the stream is broken.
    pub fn receive(&mut self) -> Result<bool, FrameError> {
        match rustix::io::read(&self.fd, &mut self.buffer[..]) {
            Ok(0) if self.decoder.is_at_boundary() => Ok(false),
            Ok(0) => Err(FrameError::Truncated),
            Ok(n) => {
                self.decoder.push(&self.buffer[..n]);
                Ok(true)
            }
            Err(Errno::INTR | Errno::AGAIN) => Ok(true),
            Err(errno) => Err(FrameError::Io(errno.into())),
        }
    }

    /// The next whole frame of what was received.
    ///
    /// # Errors
    /// When the bytes are no frame; the stream is then of no more use.
    pub fn next_frame(&mut self) -> Result<Option<ToGuest>, FrameError> {
        self.decoder.next_frame()
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use wire::{Stream, read_frame, write_frame};

    use super::*;

    fn output(number: usize) -> ToHost {
        ToHost::Output { stream: Stream::Stdout, data: vec![number as u8; 1000 + number % 5000] }
    }

    #[test]
    fn frames_leave_in_order_to_a_host_that_reads_in_bits() {
        let (ours, mut host) = UnixStream::pair().unwrap();
        let mut link = Link::new(ours).unwrap();
        let reader = std::thread::spawn(move || {
            for number in 0..3000 {
                assert_eq!(read_frame(&mut host).unwrap(), Some(output(number)));
            }
            assert_eq!(host.read(&mut [0]).unwrap(), 0);
        });
        for number in 0..3000 {
            link.send(&output(number));
            link.flush().unwrap();
        }
        link.flush_within(Duration::from_secs(20)).unwrap();
        assert_eq!((link.queued(), link.outbound.len()), (0, 0));
        drop(link);
        reader.join().unwrap();
    }

    #[test]
    fn a_host_that_takes_nothing_is_given_up_after_the_limit() {
        let (ours, _host) = UnixStream::pair().unwrap();
        let mut link = Link::new(ours).unwrap();
        for number in 0..1000 {
            link.send(&output(number));
        }
        let error = link.flush_within(Duration::from_millis(30)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(link.queued() > 0);
    }

    #[test]
    fn a_frame_over_the_limit_becomes_a_line_in_the_log() {
        let (ours, mut host) = UnixStream::pair().unwrap();
        let mut link = Link::new(ours).unwrap();
        link.send(&ToHost::Log { line: "x".repeat(wire::MAX_FRAME) });
        link.flush().unwrap();
        let Some(ToHost::Log { line }) = read_frame(&mut host).unwrap() else { panic!("no log") };
        assert!(line.contains("over the limit"), "{line}");
    }

    #[test]
    fn the_end_of_the_stream_is_told_apart_from_a_cut_frame() {
        for (bytes, whole) in [(0, true), (3, false)] {
            let (ours, mut host) = UnixStream::pair().unwrap();
            let mut link = Link::new(ours).unwrap();
            write_frame(&mut host, &ToGuest::Shutdown).unwrap();
            io::Write::write_all(&mut host, &vec![0; bytes]).unwrap();
            drop(host);
            assert!(link.receive().unwrap());
            assert_eq!(link.next_frame().unwrap(), Some(ToGuest::Shutdown));
            assert_eq!(link.next_frame().unwrap(), None);
            match link.receive() {
                Ok(more) => assert!(whole && !more),
                Err(error) => assert!(!whole && matches!(error, FrameError::Truncated)),
            }
        }
    }
}
