//! What a request is about besides its node: the few numbers and names that tell one from another.
//!
//! Offsets are those of the structures in include/uapi/linux/fuse.h, counted from the end of `fuse_in_header`.

use super::super::constants::opcode;

/// The most numbers that are kept of a request.
pub(super) const VALUES: usize = 3;

/// A number in a message: what it is called, where it is, how many bytes it has.
type Value = (&'static str, usize, usize);

/// Where a request's numbers and names are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) values: &'static [Value],
    /// Where names begin.
    names_at: usize,
    /// How many there are, each with its NUL.
    names: usize,
}

const fn layout(values: &'static [Value], names_at: usize, names: usize) -> Layout {
    Layout { values, names_at, names }
}

/// The layout of an operation; nothing of those that say nothing more or are not known.
pub(super) fn layout_of(code: u32) -> Layout {
    match code {
        // LOOKUP, UNLINK, RMDIR, REMOVEXATTR.
        1 | 10 | 11 | 24 => layout(&[], 0, 1),
        opcode::FORGET => layout(&[("count", 0, 8)], 0, 0),
        // SETATTR: its size and mode mean something if `valid` says so.
        4 => layout(&[("valid", 0, 4), ("size", 16, 8), ("mode", 68, 4)], 0, 0),
        opcode::SYMLINK => layout(&[], 0, 2),
        opcode::MKNOD => layout(&[("mode", 0, 4), ("rdev", 4, 4)], 16, 1),
        opcode::MKDIR => layout(&[("mode", 0, 4)], 8, 1),
        // RENAME.
        12 => layout(&[("to", 0, 8)], 8, 2),
        // LINK: the header has the directory.
        13 => layout(&[("of", 0, 8)], 8, 1),
        // OPEN, OPENDIR.
        14 | 27 => layout(&[("flags", 0, 4)], 0, 0),
        // READDIR, READDIRPLUS are like READ.
        opcode::READ | opcode::WRITE | 28 | 44 => layout(&[("offset", 8, 8), ("size", 16, 4)], 0, 0),
        opcode::FSYNC | opcode::FSYNCDIR => layout(&[("flags", 8, 4)], 0, 0),
        opcode::SETXATTR => layout(&[("size", 0, 4), ("flags", 4, 4)], 8, 1),
        // GETXATTR.
        22 => layout(&[("size", 0, 4)], 8, 1),
        // LISTXATTR.
        23 => layout(&[("size", 0, 4)], 0, 0),
        opcode::GETLK | opcode::SETLK | opcode::SETLKW => {
            layout(&[("start", 16, 8), ("end", 24, 8), ("type", 32, 4)], 0, 0)
        }
        // ACCESS.
        34 => layout(&[("mask", 0, 4)], 0, 0),
        opcode::CREATE => layout(&[("flags", 0, 4), ("mode", 4, 4)], 16, 1),
        opcode::INTERRUPT => layout(&[("interrupts", 0, 8)], 0, 0),
        opcode::IOCTL => layout(&[("command", 12, 4)], 0, 0),
        opcode::BATCH_FORGET => layout(&[("count", 0, 4)], 0, 0),
        opcode::FALLOCATE => layout(&[("offset", 8, 8), ("size", 16, 8), ("mode", 24, 4)], 0, 0),
        opcode::RENAME2 => layout(&[("to", 0, 8), ("flags", 8, 4)], 16, 2),
        // LSEEK.
        46 => layout(&[("offset", 8, 8), ("whence", 16, 4)], 0, 0),
        opcode::COPY_FILE_RANGE | opcode::COPY_FILE_RANGE_64 => {
            layout(&[("offset", 8, 8), ("to", 16, 8), ("size", 40, 8)], 0, 0)
        }
        opcode::SETUPMAPPING => layout(&[("offset", 8, 8), ("size", 16, 8), ("flags", 24, 8)], 0, 0),
        opcode::TMPFILE => layout(&[("flags", 0, 4), ("mode", 4, 4)], 0, 0),
        opcode::STATX => layout(&[("mask", 20, 4)], 0, 0),
        _ => layout(&[], 0, 0),
    }
}

/// Whether an operation's reply begins with the node of what was found or made (`struct fuse_entry_out`).
pub(in super::super) fn replies_with_entry(code: u32) -> bool {
    // LOOKUP, LINK.
    const LOOKUP: u32 = 1;
    const LINK: u32 = 13;
    matches!(code, LOOKUP | LINK | opcode::SYMLINK | opcode::MKNOD | opcode::MKDIR | opcode::CREATE | opcode::TMPFILE)
}

impl Layout {
    /// The numbers in the start of a message; zero where it is too short.
    pub(super) fn read_values(&self, body: &[u8]) -> [u64; VALUES] {
        let mut values = [0; VALUES];
        for (value, (_, at, width)) in values.iter_mut().zip(self.values) {
            let mut bytes = [0; 8];
            let found = at.checked_add(*width).and_then(|end| body.get(*at..end)).unwrap_or_default();
            for (to, from) in bytes.iter_mut().zip(found) {
                *to = *from;
            }
            *value = u64::from_le_bytes(bytes);
        }
        values
    }

    /// The names in the start of a message, their NULs included, and whether they go on beyond it.
    pub(super) fn names<'b>(&self, code: u32, body: &'b [u8]) -> (&'b [u8], bool) {
        if self.names == 0 {
            return (&[], false);
        }
        let mut at = self.names_at;
        // With SETXATTR_EXT eight bytes more precede the name. The second of them is zero, and a name of one character is
        // none: there is a dot in each.
        if code == opcode::SETXATTR && body.get(at + 1) == Some(&0) {
            at += 8;
        }
        let rest = body.get(at..).unwrap_or_default();
        let mut ends = rest.iter().enumerate().filter(|(_, byte)| **byte == 0).map(|(index, _)| index + 1);
        match ends.nth(self.names - 1) {
            Some(end) => (rest.get(..end).unwrap_or_default(), false),
            None => (rest, true),
        }
    }
}
