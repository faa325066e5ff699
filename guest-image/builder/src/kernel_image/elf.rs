//! The little of ELF that tells a bootable vmlinux from other ELF files (System V gABI, chapters 4 and 5).

use std::fs::File;

use super::read_at_most;

/// First bytes of every ELF file.
pub(super) const MAGIC: &[u8] = b"\x7fELF";

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: u16 = 56;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const TYPE_EXECUTABLE: u16 = 2;
const PT_LOAD: u32 = 1;
/// A vmlinux has about five.
const MAX_PROGRAM_HEADERS: u16 = 128;

/// The part of a PT_LOAD segment that stands in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Bytes into the file.
    pub(super) offset: u64,
    /// Bytes.
    pub(super) length: u64,
}

/// Checks that `file` is an ELF executable for x86-64 whose loadable segments are all in the file, and returns them.
pub(super) fn loadable_segments(file: &File) -> Result<Vec<Segment>, String> {
    let unreadable = |e: std::io::Error| format!("it cannot be read: {e}");
    let header = read_at_most(file, 0, HEADER_SIZE).map_err(unreadable)?;
    if !header.starts_with(MAGIC) {
        return Err("it is not an ELF file".to_owned());
    }
    if header.len() < HEADER_SIZE {
        return Err("it is truncated inside the ELF header".to_owned());
    }
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if header[4] != CLASS_64 {
        return Err("it is a 32-bit ELF file; an x86-64 vmlinux is needed".to_owned());
    }
    if header[5] != LITTLE_ENDIAN || half(18) != MACHINE_X86_64 {
        return Err(format!("it is an ELF file for {}; an x86-64 vmlinux is needed", machine_name(&header)));
    }
    match half(16) {
        TYPE_EXECUTABLE => {}
        1 => return Err("it is an ELF object file (a .o or a kernel module), not a linked vmlinux".to_owned()),
        3 => return Err("it is a position-independent ELF program or shared library, not a vmlinux".to_owned()),
        4 => return Err("it is a core dump, not a vmlinux".to_owned()),
        other => return Err(format!("it is an ELF file of unknown type {other}, not a vmlinux")),
    }
    let (table, entry_size, count) = (double(&header, 32), half(54), half(56));
    if entry_size != PROGRAM_HEADER_SIZE || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(format!("its ELF header is damaged ({count} program headers of {entry_size} bytes)"));
    }
    let length = file.metadata().map_err(unreadable)?.len();
    let size = usize::from(entry_size) * usize::from(count);
    let headers = read_at_most(file, table, size).map_err(unreadable)?;
    if headers.len() < size {
        return Err("it is truncated inside its program headers".to_owned());
    }
    let mut segments = Vec::new();
    for entry in headers.chunks_exact(usize::from(entry_size)) {
        if u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) != PT_LOAD {
            continue;
        }
        let segment = Segment { offset: double(entry, 8), length: double(entry, 32) };
        match segment.offset.checked_add(segment.length) {
            Some(end) if end <= length => segments.push(segment),
            _ => {
                return Err(format!("it is truncated: {length} bytes, but a segment ends beyond that; build it again"));
            }
        }
    }
    if segments.is_empty() {
        return Err("it has no loadable segment".to_owned());
    }
    Ok(segments)
}

fn machine_name(header: &[u8]) -> String {
    let machine = if header[5] == LITTLE_ENDIAN {
        u16::from_le_bytes([header[18], header[19]])
    } else {
        u16::from_be_bytes([header[18], header[19]])
    };
    match machine {
        3 => "32-bit x86".to_owned(),
        21 => "ppc64".to_owned(),
        22 => "s390x".to_owned(),
        40 => "32-bit arm".to_owned(),
        183 => "arm64".to_owned(),
        243 => "riscv".to_owned(),
        258 => "loongarch".to_owned(),
        other => format!("machine number {other}"),
    }
}

fn double(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}
