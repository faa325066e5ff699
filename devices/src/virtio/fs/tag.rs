//! The name under which a guest mounts a share.

use std::fmt;
use std::str::FromStr;

use super::constants::TAG_SIZE;

/// A virtio-fs tag: 1 to 36 bytes of UTF-8 without control characters (virtio 1.2 § 5.11.4).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tag(String);

/// Why a text is no tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagError {
    /// The text is empty.
    #[error("a share's tag may not be empty: name it as the guest shall mount it, for example myfs1")]
    Empty,
    /// The text does not fit into the device's configuration space.
    #[error("the tag {tag:?} has {len} bytes, the device has room for {TAG_SIZE}: choose a shorter one")]
    TooLong {
        /// The text.
        tag: String,
        /// Its length in bytes.
        len: usize,
    },
    /// The text has a NUL, newline or other control character, which a guest could not mount it by.
    #[error("the tag {tag:?} has a control character: use letters, digits, '-', '_' or '.'")]
    Control {
        /// The text.
        tag: String,
    },
}

impl Tag {
    /// Checks a text.
    ///
    /// # Errors
    /// See [`TagError`].
    pub fn new(tag: impl Into<String>) -> Result<Self, TagError> {
        let tag = tag.into();
        if tag.is_empty() {
            Err(TagError::Empty)
        } else if tag.len() > TAG_SIZE {
            let len = tag.len();
            Err(TagError::TooLong { tag, len })
        } else if tag.chars().any(char::is_control) {
            Err(TagError::Control { tag })
        } else {
            Ok(Tag(tag))
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag as configuration space holds it: padded with NUL to 36 bytes.
    pub fn config_bytes(&self) -> [u8; TAG_SIZE] {
        let mut bytes = [0; TAG_SIZE];
        for (to, from) in bytes.iter_mut().zip(self.0.bytes()) {
            *to = from;
        }
        bytes
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Tag {
    type Err = TagError;
    fn from_str(tag: &str) -> Result<Self, TagError> {
        Tag::new(tag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_has_one_to_thirty_six_bytes() {
        assert_eq!(Tag::new(""), Err(TagError::Empty));
        assert_eq!(Tag::new("a").unwrap().as_str(), "a");
        let longest = "x".repeat(36);
        assert_eq!(Tag::new(longest.clone()).unwrap().config_bytes(), [b'x'; 36]);
        assert_eq!(Tag::new("x".repeat(37)), Err(TagError::TooLong { tag: "x".repeat(37), len: 37 }));
        // Bytes count, not characters.
        assert!(matches!(Tag::new("ä".repeat(19)), Err(TagError::TooLong { len: 38, .. })));
    }

    #[test]
    fn a_short_tag_is_padded_with_nul() {
        let bytes = Tag::new("myfs1").unwrap().config_bytes();
        assert_eq!(&bytes[..6], b"myfs1\0");
        assert!(bytes[5..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn control_characters_are_refused() {
        for tag in ["a\0b", "a\n", "\u{7f}"] {
            assert_eq!(Tag::new(tag), Err(TagError::Control { tag: tag.into() }));
        }
    }
}
