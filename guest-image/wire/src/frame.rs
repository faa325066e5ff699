//! Length-prefixed framing.

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::MAX_FRAME;

/// Why a stream of frames ended.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer announced a frame over [`MAX_FRAME`] bytes, or one over it was to be sent.
    #[error("frame of {0} bytes is over the limit of {MAX_FRAME}")]
    TooLong(usize),
    /// The stream ended inside a frame.
    #[error("stream closed in the middle of a frame")]
    Truncated,
    /// The bytes are no frame of this protocol version.
    #[error("frame does not decode")]
    Malformed(#[source] postcard::Error),
    /// A frame announced more bytes than its content takes.
    #[error("frame has {0} bytes too many")]
    Overlong(usize),
    /// Reading or writing failed.
    #[error("failed to move a frame")]
    Io(#[source] io::Error),
}

/// Encodes `frame` with its length prefix.
///
/// # Errors
/// [`FrameError::TooLong`] when the encoding is over [`MAX_FRAME`].
pub fn encode_frame<T: Serialize>(frame: &T) -> Result<Vec<u8>, FrameError> {
    let bytes = postcard::to_extend(frame, vec![0u8; 4]).map_err(FrameError::Malformed)?;
    let body = bytes.len() - 4;
    let length = u32::try_from(body).ok().filter(|_| body <= MAX_FRAME).ok_or(FrameError::TooLong(body))?;
    let mut bytes = bytes;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// Writes one frame with a single `write_all`.
///
/// # Errors
/// See [`FrameError`].
pub fn write_frame<T: Serialize>(writer: &mut impl Write, frame: &T) -> Result<(), FrameError> {
    writer.write_all(&encode_frame(frame)?).map_err(FrameError::Io)
}

/// Reads one frame, blocking; `None` when the stream ended between frames.
///
/// # Errors
/// See [`FrameError`].
pub fn read_frame<T: DeserializeOwned>(reader: &mut impl Read) -> Result<Option<T>, FrameError> {
    let mut prefix = [0u8; 4];
    let mut have = 0;
    while have < prefix.len() {
        match reader.read(&mut prefix[have..]) {
            Ok(0) if have == 0 => return Ok(None),
            Ok(0) => return Err(FrameError::Truncated),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(FrameError::Io(e)),
        }
    }
    let length = u32::from_le_bytes(prefix) as usize;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    let mut body = vec![0u8; length];
    reader.read_exact(&mut body).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Truncated,
        _ => FrameError::Io(e),
    })?;
    decode_body(&body).map(Some)
}

/// A frame's content must fill its body: bytes left over mean that the two sides do not speak the same protocol.
fn decode_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body).map_err(FrameError::Malformed)? {
        (frame, []) => Ok(frame),
        (_, rest) => Err(FrameError::Overlong(rest.len())),
    }
}

/// Takes bytes as they arrive and gives whole frames: for readers that must not block.
///
/// Holds at most one frame and what was pushed after it, so a reader that takes all frames out after each push is bounded
/// by [`MAX_FRAME`] and the size of its reads.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    pending: Vec<u8>,
    /// Bytes of `pending` that were given out already.
    taken: usize,
}

impl FrameDecoder {
    /// Adds received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        // Moving the rest once per push, not once per frame, keeps many small frames linear.
        self.pending.drain(..self.taken);
        self.taken = 0;
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole frame, if it has arrived.
    ///
    /// # Errors
    /// See [`FrameError`]; the stream is then of no more use.
    pub fn next_frame<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let waiting = self.pending.get(self.taken..).unwrap_or_default();
        let Some(prefix) = waiting.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong(length));
        }
        let Some(body) = waiting.get(4..4 + length) else { return Ok(None) };
        let frame = decode_body(body)?;
        self.taken += 4 + length;
        Ok(Some(frame))
    }

    /// Whether the stream may end here: no part of a frame is waiting.
    #[must_use]
    pub fn is_at_boundary(&self) -> bool {
        self.taken == self.pending.len()
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
