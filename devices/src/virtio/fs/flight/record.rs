//! A request as it is kept, and as it is told.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::body::Body;
use super::super::chain::Request;
use super::super::errno_name::errno_name;
use super::super::operation::operation_name;
use super::arguments::{VALUES, layout_of};
use super::ring::{WORDS, Words};

/// The most bytes of a request's names that are kept.
const NAME_BYTES: usize = (WORDS - NAME) * 8;

// Which word has what.
const UNIQUE: usize = 0;
const NODE: usize = 1;
const BEGUN: usize = 2;
const TOOK: usize = 3;
const OPCODE_AND_ERROR: usize = 4;
const CALLER: usize = 5;
const SIZES: usize = 6;
const ENTRY: usize = 7;
const FLAGS: usize = 8;
const VALUE: usize = 9;
const NAME: usize = VALUE + VALUES;

// What is in the word of flags above the names' length.
const NAME_CUT: u64 = 1 << 8;
const INJECTED: u64 = 1 << 9;

/// One request and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When the request was taken off its queue, in ns since the device was made.
    pub at_ns: u64,
    /// The share's tag.
    pub share: String,
    /// The queue it came on; 0 is the high-priority queue.
    pub queue: u16,
    /// The number the guest gave it.
    pub unique: u64,
    /// Linux's name of the operation, without `FUSE_`.
    pub operation: Cow<'static, str>,
    /// The node it is about; for what has a name, the directory.
    pub node: u64,
    /// The guest's process and user.
    pub pid: u32,
    /// See above.
    pub uid: u32,
    /// Its names, if it has any: as many bytes as were kept, control characters and all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Whether the names went on.
    #[serde(default, skip_serializing_if = "is_false")]
    pub names_cut: bool,
    /// Its most telling numbers, by the names that Linux has for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub arguments: BTreeMap<Cow<'static, str>, u64>,
    /// Bytes of the request, its header included.
    pub bytes_in: u32,
    /// Bytes of the reply, its header included; 0 for those that have none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes_out: u32,
    /// The errno of the reply, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Cow<'static, str>>,
    /// The node of what was found or made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<u64>,
    /// From `at_ns` to the reply, in ns; to now while the request is in flight.
    pub took_ns: u64,
    /// Whether it has no reply yet.
    #[serde(default, skip_serializing_if = "is_false")]
    pub in_flight: bool,
    /// Whether a fault was injected into it.
    #[serde(default, skip_serializing_if = "is_false")]
    pub injected: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// Whether one of a request's names is this one.
pub(in super::super) fn is_named(request: &Request<'_>, name: &[u8]) -> bool {
    let code = request.header.opcode;
    let layout = layout_of(code);
    let matches = |names: &[u8]| {
        let names = names.strip_suffix(b"\0").map(|names| names.split(|byte| *byte == 0));
        names.is_some_and(|mut names| names.any(|other| other == name))
    };
    match layout.names(code, request.body_start()) {
        (names, false) => matches(names),
        // Too long for the start of a message that is copied out with its header.
        (_, true) => Body::new(request).and_then(Body::rest).is_ok_and(|body| matches(layout.names(code, &body).0)),
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct Ending {
    pub(in super::super) took: Duration,
    pub(in super::super) bytes_out: u32,
    pub(in super::super) error: Option<i32>,
    pub(in super::super) entry: Option<u64>,
}

/// A request that begins, as words by their index.
pub(super) fn begun(request: &Request<'_>, begun_ns: u64, injected: bool) -> impl Iterator<Item = (usize, u64)> {
    let (header, body) = (&request.header, request.body_start());
    let layout = layout_of(header.opcode);
    let (names, cut) = layout.names(header.opcode, body);
    let kept = names.get(..NAME_BYTES).unwrap_or(names);
    let injected = if injected { INJECTED } else { 0 };
    let cut = if cut || kept.len() < names.len() { NAME_CUT } else { 0 };
    let fixed = [
        (UNIQUE, header.unique),
        (NODE, header.nodeid),
        (BEGUN, begun_ns),
        (OPCODE_AND_ERROR, header.opcode.into()),
        (CALLER, pair(header.pid, header.uid)),
        (SIZES, pair(header.len.min(u32::try_from(request.readable).unwrap_or(u32::MAX)), 0)),
        (FLAGS, kept.len() as u64 | cut | injected),
    ];
    let values = (VALUE..).zip(layout.read_values(body)).take(layout.values.len());
    let names = kept.chunks(8).map(|chunk| {
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(chunk) {
            *to = *from;
        }
        u64::from_le_bytes(bytes)
    });
    fixed.into_iter().chain(values).chain((NAME..).zip(names))
}

/// What is known of it more when it has ended.
pub(super) fn ended(of: impl Fn(usize) -> u64, ending: &Ending) -> [(usize, u64); 4] {
    let [opcode, sizes] = [OPCODE_AND_ERROR, SIZES].map(of);
    let error = u32::try_from(ending.error.unwrap_or(0)).unwrap_or(0);
    [
        (TOOK, u64::try_from(ending.took.as_nanos()).unwrap_or(u64::MAX)),
        (OPCODE_AND_ERROR, pair(low(opcode), error)),
        (SIZES, pair(low(sizes), ending.bytes_out)),
        (ENTRY, ending.entry.unwrap_or(0)),
    ]
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn low(word: u64) -> u32 {
    (word & u64::from(u32::MAX)) as u32
}

fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

fn word(words: &Words, index: usize) -> u64 {
    words.get(index).copied().unwrap_or(0)
}

impl Record {
    /// The record in these words. `now_ns` is for one that is still in flight.
    pub(super) fn new(share: &str, queue: u16, words: &Words, now_ns: Option<u64>) -> Self {
        let [opcode, caller, sizes, flags] = [OPCODE_AND_ERROR, CALLER, SIZES, FLAGS].map(|index| word(words, index));
        let at_ns = word(words, BEGUN);
        let done = now_ns.is_none();
        let values = layout_of(low(opcode)).values.iter().zip(VALUE..);
        let error = i32::try_from(high(opcode)).ok().filter(|error| done && *error != 0);
        Record {
            at_ns,
            share: share.to_owned(),
            queue,
            unique: word(words, UNIQUE),
            operation: operation_name(low(opcode)).into(),
            node: word(words, NODE),
            pid: low(caller),
            uid: high(caller),
            names: names(words, usize::try_from(flags & 0xff).unwrap_or(0)),
            names_cut: flags & NAME_CUT != 0,
            arguments: values.map(|((name, ..), index)| (Cow::from(*name), word(words, index))).collect(),
            bytes_in: low(sizes),
            bytes_out: if done { high(sizes) } else { 0 },
            error: error.map(|error| errno_name(error).map_or_else(|| format!("errno {error}").into(), Cow::from)),
            entry: Some(word(words, ENTRY)).filter(|entry| done && *entry != 0),
            took_ns: now_ns.map_or(word(words, TOOK), |now| now.saturating_sub(at_ns)),
            in_flight: !done,
            injected: flags & INJECTED != 0,
        }
    }
}

fn names(words: &Words, len: usize) -> Vec<String> {
    let bytes: Vec<u8> = words.iter().skip(NAME).flat_map(|word| word.to_le_bytes()).take(len).collect();
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    if len == 0 {
        return Vec::new();
    }
    bytes.split(|byte| *byte == 0).map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}
