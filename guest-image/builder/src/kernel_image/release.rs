//! What a kernel's read-only data says about it: the release in its banner and the configuration it carries.

use std::fs::File;
use std::io::{self, Read};

use super::elf::Segment;
use super::read_at;

/// Start of `linux_banner` (Linux `init/version-timestamp.c`): `Linux version RELEASE (user@host) …`.
const BANNER: &[u8] = b"Linux version ";
/// `uname -r` has at most this many bytes (`__NEW_UTS_LEN`).
const MAX_RELEASE: usize = 64;
/// Around the gzip-compressed `.config` of `CONFIG_IKCONFIG` (Linux `kernel/configs.c`).
const CONFIG_START: &[u8] = b"IKCFG_ST";
const CONFIG_END: &[u8] = b"IKCFG_ED";
/// A `.config` has some 300 KiB.
const MAX_CONFIG: u64 = 16 << 20;
/// Segments are read in pieces of this size, so that a debug kernel does not have to fit in memory.
const PIECE: usize = 4 << 20;

/// The word a version string starts with, when it looks like a release.
pub(super) fn first_word(text: &[u8]) -> Option<String> {
    let end = text.iter().position(|b| *b == b' ' || *b == 0)?;
    let word = std::str::from_utf8(&text[..end]).ok()?;
    let plausible = (1..=MAX_RELEASE).contains(&word.len())
        && word.starts_with(|c: char| c.is_ascii_digit())
        && word.chars().all(|c| c.is_ascii_graphic());
    plausible.then(|| word.to_owned())
}

/// The release in the banner of a vmlinux with these segments, if it has one.
pub(super) fn find_in(file: &File, segments: &[Segment]) -> io::Result<Option<String>> {
    scan(file, segments, BANNER, |found| {
        let mut text = vec![0; MAX_RELEASE + 1];
        let have = read_at(file, found + BANNER.len() as u64, &mut text)?;
        // Format strings mention the banner too, but not with a release after it.
        Ok(first_word(&text[..have]))
    })
}

/// The embedded `.config`, if there is one.
pub(super) fn embedded_config(file: &File, segments: &[Segment]) -> io::Result<Option<Vec<u8>>> {
    scan(file, segments, CONFIG_START, |found| {
        let mut bytes = vec![0; 4 << 20];
        let have = read_at(file, found + CONFIG_START.len() as u64, &mut bytes)?;
        let Some(end) = find(&bytes[..have], CONFIG_END) else { return Ok(None) };
        let mut config = Vec::new();
        // A damaged configuration is as good as none: nothing but the manifest shows it.
        match flate2::bufread::GzDecoder::new(&bytes[..end]).take(MAX_CONFIG).read_to_end(&mut config) {
            Ok(_) => Ok(Some(config)),
            Err(_) => Ok(None),
        }
    })
}

/// Calls `accept` with the file offset of each occurrence of `needle` until it returns something.
fn scan<T>(
    file: &File,
    segments: &[Segment],
    needle: &[u8],
    mut accept: impl FnMut(u64) -> io::Result<Option<T>>,
) -> io::Result<Option<T>> {
    let mut piece = vec![0; PIECE];
    for segment in segments {
        let end = segment.offset + segment.length;
        let mut position = segment.offset;
        while position < end {
            let wanted = PIECE.min(usize::try_from(end - position).unwrap_or(PIECE));
            let have = read_at(file, position, &mut piece[..wanted])?;
            let mut from = 0;
            while let Some(at) = find(&piece[from..have], needle) {
                if let Some(result) = accept(position + (from + at) as u64)? {
                    return Ok(Some(result));
                }
                from += at + 1;
            }
            // Pieces overlap by what an occurrence across their border needs; the last one ends the segment.
            if have < wanted || position + have as u64 >= end {
                break;
            }
            position += (have - needle.len()) as u64;
        }
    }
    Ok(None)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(haystack, needle)
}
