//! Bytes that come in pieces, as text.

/// Turns a stream of bytes into text. A character that is cut between two pieces is put together again; what is no UTF-8 is
/// replaced.
#[derive(Debug, Default)]
pub(super) struct LossyText {
    /// The beginning of a character, at most 3 bytes.
    begun: Vec<u8>,
}

impl LossyText {
    /// The text of everything up to the last whole character.
    pub(super) fn push(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.begun);
        all.extend_from_slice(bytes);
        let whole = all.len() - begun_character(&all);
        self.begun = all.split_off(whole);
        String::from_utf8_lossy(&all).into_owned()
    }

    /// What is left at the end of the stream.
    pub(super) fn finish(&mut self) -> Option<String> {
        let begun = std::mem::take(&mut self.begun);
        (!begun.is_empty()).then(|| String::from_utf8_lossy(&begun).into_owned())
    }
}

/// How many bytes at the end are a character that may still be completed.
fn begun_character(bytes: &[u8]) -> usize {
    match std::str::from_utf8(&bytes[bytes.len().saturating_sub(3)..]) {
        Ok(_) => 0,
        Err(_) => (1..=bytes.len().min(3))
            .find(|&length| {
                let tail = &bytes[bytes.len() - length..];
                // No error length: the bytes end too early, they are not wrong (`Utf8Error::error_len`).
                matches!(std::str::from_utf8(tail), Err(e) if e.valid_up_to() == 0 && e.error_len().is_none())
            })
            .unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn through(pieces: &[&[u8]]) -> String {
        let mut text = LossyText::default();
        let mut all: String = pieces.iter().map(|piece| text.push(piece)).collect();
        all.extend(text.finish());
        all
    }

    #[test]
    fn a_character_cut_in_two_is_put_together() {
        assert_eq!(through(&[b"a\xc3", b"\xa4b"]), "aäb");
        assert_eq!(through(&[b"\xf0", b"\x9f", b"\x98", b"\x80"]), "😀");
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced_not_held_back() {
        assert_eq!(LossyText::default().push(b"a\xff"), "a\u{fffd}");
        assert_eq!(LossyText::default().push(b"\x80\x80"), "\u{fffd}\u{fffd}");
        assert_eq!(through(&[b"a\xc3"]), "a\u{fffd}");
    }

    proptest! {
        #[test]
        fn text_is_the_same_however_it_is_cut(text in "\\PC{0,40}", cut in 1usize..5) {
            let pieces: Vec<_> = text.as_bytes().chunks(cut).collect();
            prop_assert_eq!(through(&pieces), text);
        }

        #[test]
        fn any_bytes_give_some_text(bytes in prop::collection::vec(any::<u8>(), 0..40), cut in 1usize..5) {
            let pieces: Vec<_> = bytes.chunks(cut).collect();
            through(&pieces);
        }
    }
}
