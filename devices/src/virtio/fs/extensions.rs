//! Extensions at the end of requests that make files (`fuse_ext_header`, protocol 7.38): who the caller is besides its
//! user and group, and how its security module labels the file.

use std::ffi::{CStr, CString};
use std::io;

use super::constants::{EXT_GROUPS, EXT_MAX_LABELS, EXT_UNIT, MAX_GROUPS};
use super::passthrough::{Label, errno};

/// Bytes of `struct fuse_ext_header`: size u32 (of header and data), type u32.
const HEADER: usize = 8;

/// What a request's extensions say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Extensions {
    /// The caller's supplementary groups, if they matter.
    pub(super) groups: Vec<u32>,
    /// The new file's security labels.
    pub(super) labels: Vec<Label>,
}

impl Extensions {
    /// Decodes extensions; unknown types are skipped.
    ///
    /// # Errors
    /// EINVAL when a length does not fit.
    pub(super) fn parse(mut bytes: &[u8]) -> io::Result<Self> {
        let mut found = Extensions::default();
        while !bytes.is_empty() {
            let (size, kind) = (word(bytes, 0)? as usize, word(bytes, 4)?);
            if size < HEADER {
                return Err(errno(libc::EINVAL));
            }
            let data = bytes.get(HEADER..size).ok_or_else(|| errno(libc::EINVAL))?;
            match kind {
                EXT_GROUPS => found.groups.extend(group_list(data)?),
                // For labels the type is how many there are (`struct fuse_secctx_header`).
                0..=EXT_MAX_LABELS => labels(data, kind, &mut found.labels)?,
                _ => {}
            }
            if found.groups.len() > MAX_GROUPS || found.labels.len() > EXT_MAX_LABELS as usize {
                return Err(errno(libc::EINVAL));
            }
            // Each extension is padded; the last one's padding may be missing.
            bytes = bytes.get(size.next_multiple_of(EXT_UNIT)..).unwrap_or_default();
        }
        Ok(found)
    }
}

/// `count` times `struct fuse_secctx` (size u32, padding), the attribute's name and the label, padded.
fn labels(mut data: &[u8], count: u32, found: &mut Vec<Label>) -> io::Result<()> {
    let short = || errno(libc::EINVAL);
    for _ in 0..count {
        let size = word(data, 0)? as usize;
        let rest = data.get(8..).ok_or_else(short)?;
        let name: CString = CStr::from_bytes_until_nul(rest).map_err(|_| short())?.into();
        let start = name.count_bytes() + 1;
        let value = rest.get(start..).and_then(|rest| rest.get(..size)).ok_or_else(short)?.to_vec();
        data = rest.get((start + size).next_multiple_of(EXT_UNIT)..).unwrap_or_default();
        found.push(Label { name, value });
    }
    Ok(())
}

/// `struct fuse_supp_groups`: how many, then the group ids.
fn group_list(data: &[u8]) -> io::Result<Vec<u32>> {
    let count = word(data, 0)? as usize;
    if count > MAX_GROUPS {
        return Err(errno(libc::EINVAL));
    }
    (0..count).map(|index| word(data, 4 + 4 * index)).collect()
}

fn word(bytes: &[u8], at: usize) -> io::Result<u32> {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
    word.map(|word| u32::from_le_bytes(*word)).ok_or_else(|| errno(libc::EINVAL))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn supplementary_groups(bytes: &[u8]) -> io::Result<Vec<u32>> {
        Extensions::parse(bytes).map(|found| found.groups)
    }

    /// An extension with one label for each of these.
    fn secctx(labels: &[(&str, &[u8])]) -> Vec<u8> {
        let mut data = Vec::new();
        for (name, value) in labels {
            data.extend(words(&[value.len() as u32, 0]));
            data.extend([name.as_bytes(), b"\0", value].concat());
            data.resize(data.len().next_multiple_of(8), 0);
        }
        [words(&[8 + data.len() as u32, labels.len() as u32]), data].concat()
    }

    #[test]
    fn labels_are_found_before_and_after_groups() {
        let label = |name: &str, value: &[u8]| Label { name: CString::new(name).unwrap(), value: value.to_vec() };
        let groups = words(&[16, EXT_GROUPS, 1, 7]);
        let selinux = [("security.selinux", &b"unconfined_u:object_r\0"[..])];
        let two = [("security.selinux", &b"a"[..]), ("security.smack", &b""[..])];
        for (labels, bytes) in [
            (vec![], secctx(&[])),
            (vec![label(selinux[0].0, selinux[0].1)], secctx(&selinux)),
            (vec![label("security.selinux", b"a"), label("security.smack", b"")], secctx(&two)),
        ] {
            for bytes in [[bytes.clone(), groups.clone()].concat(), [groups.clone(), bytes].concat()] {
                let found = Extensions::parse(&bytes).unwrap();
                assert_eq!((found.groups, &found.labels), (vec![7], &labels));
            }
        }
    }

    #[test]
    fn labels_that_lie_are_refused() {
        let good = secctx(&[("security.selinux", b"abc")]);
        for len in 9..good.len() - 4 {
            // The extension's own length says so too.
            let mut cut = good[..len].to_vec();
            cut[..4].copy_from_slice(&(len as u32).to_le_bytes());
            assert!(Extensions::parse(&cut).is_err(), "cut at {len}");
        }
        let mut more = good.clone();
        more[4] = 2;
        assert!(Extensions::parse(&more).is_err(), "two promised, one there");
        let mut large = good;
        large[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Extensions::parse(&large).is_err());
    }

    #[test]
    fn groups_are_found_among_extensions() {
        assert_eq!(supplementary_groups(&[]).unwrap(), Vec::<u32>::new());
        // size, type, count, group
        assert_eq!(supplementary_groups(&words(&[16, EXT_GROUPS, 1, 1234])).unwrap(), [1234]);
        // Three groups are padded to 24 + 4 + ...; an unknown extension comes first.
        let extensions = words(&[12, 99, 7, 0, 24, EXT_GROUPS, 3, 1, 2, 3]);
        assert_eq!(supplementary_groups(&extensions).unwrap(), [1, 2, 3]);
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let bad: [&[u32]; 6] = [
            &[16],                          // cut in the header
            &[0, EXT_GROUPS],               // would never end
            &[4, EXT_GROUPS],               // smaller than its header
            &[24, EXT_GROUPS, 1, 5],        // longer than the message
            &[16, EXT_GROUPS, 2, 5],        // more groups than data
            &[16, EXT_GROUPS, u32::MAX, 5], // far more
        ];
        for extensions in bad {
            let error = supplementary_groups(&words(extensions)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{extensions:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_loop(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            if let Ok(found) = Extensions::parse(&bytes) {
                prop_assert!(found.groups.len() <= bytes.len() / 4 && found.labels.len() <= bytes.len() / 8);
            }
        }
    }
}
