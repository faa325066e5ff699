//! Text from a guest, made fit for a terminal and for XML.

use std::borrow::Cow;
use std::fmt::Write;

/// `text` with every character that a terminal acts on shown as an escape: C0 and C1 controls, DEL, and the marks that
/// reverse the direction of what follows. Line breaks become visible too: one call, one line.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unfit) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("    "),
            c if is_unfit(c) => {
                let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
            }
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// Unicode's bidirectional controls (UAX #9) let text overwrite its neighbours just as an escape sequence does; U+FFFE and
/// U+FFFF are no characters, and XML (1.0 § 2.2) has no way to write them.
fn is_unfit(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || matches!(c, '\u{fffe}' | '\u{ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_stays_as_it_is() {
        for text in ["", "chmod::utf8 naïve 文件 😀", "a b"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text));
        }
    }

    #[test]
    fn whatever_a_terminal_would_act_on_is_shown() {
        assert_eq!(printable("\x1b[2J\x07x"), "\\u{1b}[2J\\u{7}x");
        assert_eq!(printable("a\nb\r\tc"), "a\\nb\\r    c");
        assert_eq!(printable("\u{9b}31m\u{7f}"), "\\u{9b}31m\\u{7f}");
        assert_eq!(printable("user\u{202e}txt.exe"), "user\\u{202e}txt.exe");
    }

    #[test]
    fn no_character_at_all_gets_through_that_moves_the_cursor() {
        let all: String = ('\0'..='\u{2fff}').collect();
        assert!(!printable(&all).chars().any(is_unfit));
    }
}
