//! Names for files that are given as a kernel by mistake.

/// Magic numbers and what they mean to someone who expected a kernel: offset, bytes, description.
const KNOWN: &[(usize, &[u8], &str)] = &[
    (0x38, b"ARM\x64", "an arm64 Image"),
    (0x38, b"RSC\x05", "a RISC-V Image"),
    (0, b"\x1f\x8b", "a gzip file (a compressed arm64 Image or archive?)"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\x02\x21\x4c\x18", "an lz4 file"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file"),
    (0, b"070701", "a cpio archive (an initramfs?)"),
    (0, b"070707", "a cpio archive (an initramfs?)"),
    (0, b"!<arch>\ndebian-binary", "a Debian package (unpack it with `dpkg-deb -x`)"),
    (0, b"!<arch>\n", "an ar archive"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"hsqs", "a squashfs image"),
    (0x400, b"\xe2\xe1\xf5\xe0", "an erofs image"),
    (0x438, b"\x53\xef", "an ext2/3/4 file system image"),
    (0, b"MZ", "an EFI or DOS program without a Linux boot header (a unified kernel image?)"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or FIT image"),
];

/// What a file that begins with `head` is, with its article.
pub(super) fn describe(head: &[u8]) -> String {
    if head.is_empty() {
        return "an empty file".to_owned();
    }
    for (offset, magic, name) in KNOWN {
        if head.get(*offset..offset + magic.len()) == Some(magic) {
            return (*name).to_owned();
        }
    }
    if head.get(0x1fe..0x200) == Some(b"\x55\xaa") {
        return "a boot sector or disk image".to_owned();
    }
    if is_text(head) {
        return "a text file".to_owned();
    }
    if head.iter().all(|byte| *byte == 0) {
        return "a file of zeroes".to_owned();
    }
    "a file of unknown format".to_owned()
}

fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The 4 KiB may end inside a character.
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&head[..e.valid_up_to()]).unwrap_or(""),
        Err(_) => return false,
    };
    !text.is_empty() && !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c' | '\x1b'))
}
