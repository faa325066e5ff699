//! Ten faults that a file server may have, one of which a test build has if it is told so: what shows that the tests would
//! notice. Compiled only with the feature `planted-bugs`.
//!
//! Each stands between the server and the guest and changes what comes out of the server, or keeps a request from it.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use fuse_backend_rs::abi::fuse_abi::{Attr, AttrOut, Dirent, EntryOut, Opcode, SetattrIn};
use vm_memory::ByteValued;

use super::body::Body;
use super::chain::{OUT_HEADER_SIZE, Request};
use super::constants::opcode;
use super::deferred::Ticket;
use super::dispatch::{FuseServer, Outcome};
use super::flight::replies_with_entry;

/// A fault that a file server may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedBug {
    /// A directory that is not empty is busy when something is renamed to it.
    RenameErrno,
    /// What happens in a directory does not change when it was modified.
    MtimeLost,
    /// `.` is not listed.
    DotMissing,
    /// Writing and changing the owner leave the set-user-ID and set-group-ID bits.
    SuidKept,
    /// A file that was truncated has the size it had.
    SizeStale,
    /// Extended attributes are set and not kept.
    XattrDropped,
    /// fsync does nothing.
    FsyncIgnored,
    /// A file with several links has one fewer.
    LinkCount,
    /// The first entry of a directory is listed twice. Not a directory's: who walks a tree would come to its bottom two to
    /// the power of its depth times.
    EntryDoubled,
    /// A lock that somebody has is granted.
    LockTwice,
}

impl PlantedBug {
    /// All of them with their names.
    pub const ALL: [(&'static str, PlantedBug); 10] = [
        ("rename-errno", PlantedBug::RenameErrno),
        ("mtime-lost", PlantedBug::MtimeLost),
        ("dot-missing", PlantedBug::DotMissing),
        ("suid-kept", PlantedBug::SuidKept),
        ("size-stale", PlantedBug::SizeStale),
        ("xattr-dropped", PlantedBug::XattrDropped),
        ("fsync-ignored", PlantedBug::FsyncIgnored),
        ("link-count", PlantedBug::LinkCount),
        ("entry-doubled", PlantedBug::EntryDoubled),
        ("lock-twice", PlantedBug::LockTwice),
    ];
}

impl FromStr for PlantedBug {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, bug)| *bug);
        found.ok_or_else(|| format!("there are {}", Self::ALL.map(|(name, _)| name).join(", ")))
    }
}

/// One fault and what it has to remember.
pub(super) struct Planted {
    bug: PlantedBug,
    nodes: Mutex<HashMap<u64, Seen>>,
}

/// What the guest was told of a node.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    mtime: Option<(u64, u32)>,
    set_id: u32,
    size: u64,
    stale_size: Option<u64>,
}

// SETATTR's valid bits (FATTR_*).
const FATTR_MODE: u32 = 1 << 0;
const FATTR_SIZE: u32 = 1 << 3;
const FATTR_MTIME: u32 = 1 << 5;

impl FuseServer {
    /// The server with this fault in it.
    pub(super) fn with_bug(mut self, bug: Option<PlantedBug>) -> Self {
        self.planted = bug.map(|bug| Planted { bug, nodes: Mutex::default() });
        self
    }
}

impl Planted {
    /// Serves a request wrongly.
    pub(super) fn serve(
        &self,
        server: &FuseServer,
        request: &Request<'_>,
        ticket: impl FnOnce() -> Option<Ticket>,
    ) -> Outcome {
        let code = request.header.opcode;
        let is_dropped = match self.bug {
            PlantedBug::XattrDropped => code == opcode::SETXATTR,
            PlantedBug::FsyncIgnored => matches!(code, opcode::FSYNC | opcode::FSYNCDIR | opcode::SYNCFS),
            _ => false,
        };
        if is_dropped {
            return request.reply(0, &[]).map_or(Outcome::Used(0), Outcome::Used);
        }
        let outcome = server.serve_soundly(request, ticket);
        let Outcome::Used(used) = outcome else { return outcome };
        let changed = match used as usize {
            OUT_HEADER_SIZE => self.change_error(request),
            more if more > OUT_HEADER_SIZE => self.change_body(request, more),
            _ => None,
        };
        Outcome::Used(changed.unwrap_or(used))
    }

    fn change_error(&self, request: &Request<'_>) -> Option<u32> {
        let error = request.reply_error()?;
        match (self.bug, request.header.opcode, error) {
            (PlantedBug::RenameErrno, opcode::RENAME2, libc::ENOTEMPTY) => request.reply(libc::EBUSY, &[]),
            (PlantedBug::RenameErrno, code, libc::ENOTEMPTY) if code == Opcode::Rename as u32 => {
                request.reply(libc::EBUSY, &[])
            }
            (PlantedBug::LockTwice, opcode::SETLK, libc::EAGAIN) => request.reply(0, &[]),
            _ => None,
        }
    }

    fn change_body(&self, request: &Request<'_>, used: usize) -> Option<u32> {
        let code = request.header.opcode;
        let mut body = request.reply_body(used)?;
        let plus = code == Opcode::Readdirplus as u32;
        if plus || code == Opcode::Readdir as u32 {
            let room = request.writable.checked_sub(OUT_HEADER_SIZE)?;
            let listed = match self.bug {
                PlantedBug::DotMissing => listing(&body, plus, |name, _| if name == b"." { 0 } else { 1 }),
                PlantedBug::EntryDoubled => {
                    let mut doubled = false;
                    listing(&body, plus, |_, kind| {
                        let first = kind != libc::DT_DIR && !std::mem::replace(&mut doubled, true);
                        if first { 2 } else { 1 }
                    })
                }
                _ => return None,
            }?;
            return (listed.len() <= room).then(|| request.reply(0, &[&listed])).flatten();
        }
        let (node, at) = if replies_with_entry(code) {
            (u64::from_le_bytes(body.get(..8)?.try_into().ok()?), size_of::<EntryOut>() - size_of::<Attr>())
        } else if code == opcode::GETATTR || code == Opcode::Setattr as u32 {
            (request.header.nodeid, size_of::<AttrOut>() - size_of::<Attr>())
        } else {
            if code == opcode::WRITE {
                self.with(request.header.nodeid, |seen| seen.stale_size = None);
            }
            return None;
        };
        let bytes = body.get_mut(at..at + size_of::<Attr>())?;
        let mut attr = Attr::default();
        attr.as_mut_slice().copy_from_slice(bytes);
        let mut valid = 0;
        if code == Opcode::Setattr as u32 {
            valid = Body::new(request).and_then(|mut body| body.object::<SetattrIn>()).ok()?.valid;
        }
        self.with(node, |seen| self.bug.change(&mut attr, seen, valid));
        bytes.copy_from_slice(attr.as_slice());
        request.reply(0, &[&body])
    }

    fn with(&self, node: u64, act: impl FnOnce(&mut Seen)) {
        act(self.nodes.lock().unwrap_or_else(PoisonError::into_inner).entry(node).or_default());
    }
}

impl PlantedBug {
    /// Changes attributes that the guest is told, after a SETATTR of what `valid` says.
    fn change(self, attr: &mut Attr, seen: &mut Seen, valid: u32) {
        let kind = attr.mode & libc::S_IFMT;
        match self {
            PlantedBug::MtimeLost if kind == libc::S_IFDIR => {
                let now = (attr.mtime, attr.mtimensec);
                let first = seen.mtime.filter(|_| valid & FATTR_MTIME == 0).unwrap_or(now);
                seen.mtime = Some(first);
                (attr.mtime, attr.mtimensec) = first;
            }
            PlantedBug::SuidKept if kind == libc::S_IFREG => {
                if valid & FATTR_MODE == 0 {
                    attr.mode |= seen.set_id;
                }
                seen.set_id = attr.mode & (libc::S_ISUID | libc::S_ISGID);
            }
            PlantedBug::SizeStale if kind == libc::S_IFREG => {
                if valid & FATTR_SIZE != 0 {
                    seen.stale_size = Some(seen.size);
                }
                attr.size = seen.stale_size.unwrap_or(attr.size);
                seen.size = attr.size;
            }
            PlantedBug::LinkCount if kind == libc::S_IFREG && attr.nlink > 1 => attr.nlink -= 1,
            _ => {}
        }
    }
}

/// A directory's entries, each as many times as `times` says of its name and type (`DT_*`); `None` if the reply makes no sense.
fn listing(mut body: &[u8], plus: bool, mut times: impl FnMut(&[u8], u8) -> usize) -> Option<Vec<u8>> {
    let head = if plus { size_of::<EntryOut>() } else { 0 };
    let mut listed = Vec::new();
    while !body.is_empty() {
        let mut dirent = Dirent::default();
        dirent.as_mut_slice().copy_from_slice(body.get(head..head + size_of::<Dirent>())?);
        let name_at = head + size_of::<Dirent>();
        let name_end = name_at.checked_add(dirent.namelen as usize)?;
        let end = name_end.checked_next_multiple_of(8)?.min(body.len());
        let (entry, rest) = body.split_at_checked(end)?;
        #[expect(clippy::cast_possible_truncation, reason = "DT_* are less than 16")]
        let kind = dirent.type_ as u8;
        for time in 0..times(body.get(name_at..name_end)?, kind) {
            // The guest counts a lookup for each entry with a node, the server one.
            let (node, listing) = entry.split_at_checked(head)?;
            listed.extend(node.iter().map(|byte| if time == 0 { *byte } else { 0 }));
            listed.extend(listing);
        }
        body = rest;
    }
    Some(listed)
}
