//! A long stream of bytes that two sides can compute without having it.

use std::io::{self, Read, Write};

/// Pseudo-random bytes (xorshift64, Marsaglia 2003), the same for the same seed.
#[derive(Clone, Debug)]
pub struct Pattern(u64);

impl Pattern {
    /// The stream of that seed.
    #[must_use]
    pub fn new(seed: u32) -> Self {
        Self(u64::from(seed) << 1 | 1)
    }

    /// The next bytes. Asking for multiples of 8 keeps the stream the same however it is cut.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}

/// Writes the first `bytes` of a pattern.
///
/// # Errors
/// What writing says.
pub fn send_pattern(mut pattern: Pattern, mut bytes: u64, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    while bytes > 0 {
        let part = buffer.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        pattern.fill(&mut buffer);
        to.write_all(&buffer[..part])?;
        bytes -= part as u64;
    }
    Ok(())
}

/// How a stream is not the pattern that it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It ends after so many bytes, too few.
    EndsAt(u64),
    /// The byte at `at` and what follows, up to 16 bytes, is not what was wanted.
    Differs {
        /// Bytes before it.
        at: u64,
        /// What came.
        got: Vec<u8>,
        /// What should have come.
        wanted: Vec<u8>,
    },
}

/// Reads the first `bytes` of a pattern; where `from` first differs from them, or ends too early, if it does.
///
/// # Errors
/// What reading says.
pub fn first_difference(mut pattern: Pattern, bytes: u64, from: impl Read) -> io::Result<Option<Difference>> {
    let mut from = from.take(bytes);
    let (mut got, mut wanted) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut position = 0;
    loop {
        let mut filled = 0;
        while filled < got.len() {
            match from.read(&mut got[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0 {
            return Ok((position < bytes).then_some(Difference::EndsAt(position)));
        }
        pattern.fill(&mut wanted);
        if let Some(at) = got[..filled].iter().zip(&wanted).position(|(a, b)| a != b) {
            let end = filled.min(at + 16);
            return Ok(Some(Difference::Differs {
                at: position + at as u64,
                got: got[at..end].to_vec(),
                wanted: wanted[at..end].to_vec(),
            }));
        }
        position += filled as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_is_found() {
        let mut bytes = Vec::new();
        send_pattern(Pattern::new(7), 200_001, &mut bytes).unwrap();
        assert_eq!(bytes.len(), 200_001);
        assert_eq!(first_difference(Pattern::new(7), 200_001, &bytes[..]).unwrap(), None);
        bytes[150_000] ^= 1;
        let difference = first_difference(Pattern::new(7), 200_001, &bytes[..]).unwrap().unwrap();
        assert!(matches!(difference, Difference::Differs { at: 150_000, .. }), "{difference:?}");
        assert!(first_difference(Pattern::new(8), 200_001, &bytes[..]).unwrap().is_some());
        let short = first_difference(Pattern::new(7), 200, &bytes[..100]).unwrap();
        assert_eq!(short, Some(Difference::EndsAt(100)));
    }
}
