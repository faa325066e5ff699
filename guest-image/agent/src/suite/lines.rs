//! Cuts a stream of any bytes into lines of bounded length, as text without terminal escapes.

/// Longer lines are cut here; what follows up to the newline is dropped from parsing (not from the output).
const MAX_LINE: usize = 16 << 10;

/// Collects the line that has begun.
#[derive(Debug, Default)]
pub(super) struct LineSplitter {
    partial: Vec<u8>,
}

impl LineSplitter {
    /// Adds a piece with at most one newline, at its end; gives the line that it completes.
    pub(super) fn push(&mut self, piece: &[u8]) -> Option<String> {
        let (text, complete) = match piece.split_last() {
            Some((b'\n', text)) => (text, true),
            _ => (piece, false),
        };
        let room = MAX_LINE.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&text[..text.len().min(room)]);
        complete.then(|| self.take())
    }

    /// The last line, if it has no newline.
    pub(super) fn finish(&mut self) -> Option<String> {
        (!self.partial.is_empty()).then(|| self.take())
    }

    /// The line that has begun and not ended, as far as it is known.
    pub(super) fn unfinished(&self) -> Option<String> {
        (!self.partial.is_empty()).then(|| plain_text(&self.partial))
    }

    fn take(&mut self) -> String {
        let line = plain_text(&self.partial);
        self.partial.clear();
        line
    }
}

/// Text without terminal control sequences (ECMA-48 § 5.4) and carriage returns; what is no UTF-8 is replaced.
fn plain_text(bytes: &[u8]) -> String {
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().copied().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            0x1b if rest.peek() == Some(&b'[') => {
                rest.next();
                // Parameters and intermediates, then one final byte.
                while rest.next_if(|b| (0x20..=0x3f).contains(b)).is_some() {}
                rest.next_if(|b| (0x40..=0x7e).contains(b));
            }
            b'\r' => {}
            _ => plain.push(byte),
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_arrives_whole_however_it_was_cut() {
        let mut lines = LineSplitter::default();
        assert_eq!(lines.push(b"ab"), None);
        assert_eq!(lines.push(b""), None);
        assert_eq!(lines.push(b"c\r\n").as_deref(), Some("abc"));
        assert_eq!(lines.push(b"\n").as_deref(), Some(""));
        assert_eq!(lines.finish(), None);
        assert_eq!(lines.push(b"rest"), None);
        assert_eq!(lines.finish().as_deref(), Some("rest"));
    }

    #[test]
    fn a_hundred_megabytes_without_a_newline_take_no_more_than_one_line_of_memory() {
        let mut lines = LineSplitter::default();
        let piece = [b'x'; 64 << 10];
        for _ in 0..1600 {
            assert_eq!(lines.push(&piece), None);
        }
        assert!(lines.partial.capacity() <= 2 * MAX_LINE);
        assert_eq!(lines.push(b"\n").unwrap().len(), MAX_LINE);
    }

    #[test]
    fn colours_are_taken_out_and_broken_escapes_do_no_harm() {
        assert_eq!(plain_text(b"\x1b[1;32mok\x1b[0m 1"), "ok 1");
        assert_eq!(plain_text(b"a\x1b["), "a");
        assert_eq!(plain_text(b"a\x1b[12"), "a");
        assert_eq!(plain_text(b"\xff\x00b"), "\u{fffd}\0b");
    }
}
