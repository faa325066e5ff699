//! What a request is when it does not matter when it came and what numbers its nodes have.

use std::collections::HashMap;
use std::fmt::Write;

use devices::virtio::fs::Record;

use crate::report::printable;

/// FUSE_ROOT_ID.
const ROOT: u64 = 1;
/// The longest path that is put together, bytes: a guest's directories may be nested without end.
const MAX_PATH: usize = 1024;

/// The names of nodes: the path by which each was found or made last, as far as a trace tells.
#[derive(Debug, Default)]
pub struct Naming {
    paths: HashMap<u64, String>,
    /// Nodes of which no name is known, in order of appearance.
    nameless: HashMap<u64, usize>,
    /// What names in directories led to last.
    entries: HashMap<(u64, String), u64>,
}

impl Naming {
    /// A node's path from the root of the share; `node 1`, `node 2` where there is none.
    pub fn path(&mut self, node: u64) -> String {
        if node == ROOT {
            return "/".to_owned();
        }
        if let Some(path) = self.paths.get(&node) {
            return path.clone();
        }
        let next = self.nameless.len() + 1;
        format!("<node {}>", self.nameless.entry(node).or_insert(next))
    }

    /// Whether a request only asks again for what the guest was told before: its cache has become too old, or is too small,
    /// which depends on the time.
    pub fn is_refresh(&self, record: &Record) -> bool {
        match (record.operation.as_ref(), record.entry, record.names.first()) {
            ("GETATTR" | "STATX", ..) => record.error.is_none() && !record.in_flight,
            ("LOOKUP", Some(entry), Some(name)) => {
                name == "." || name == ".." || self.entries.get(&(record.node, name.clone())) == Some(&entry)
            }
            _ => false,
        }
    }

    /// Learns what a request tells of nodes' names.
    pub fn learn(&mut self, record: &Record) {
        let Some(entry) = record.entry.filter(|entry| *entry != ROOT) else { return };
        if let Some(name) = record.names.first() {
            self.entries.insert((record.node, name.clone()), entry);
        }
        let directory = self.path(record.node);
        let path = match record.names.first().map(String::as_str) {
            // A lookup of these leads to a node that has a name.
            Some("." | "..") => return,
            Some(name) => format!("{}/{name}", directory.trim_end_matches('/')),
            None => format!("{}/<unnamed>", directory.trim_end_matches('/')),
        };
        let start = path.char_indices().map(|(at, _)| at).find(|at| path.len() - at <= MAX_PATH).unwrap_or(0);
        let path = if start == 0 { path } else { format!("…{}", &path[start..]) };
        self.paths.insert(entry, path);
    }
}

/// Arguments that are nodes.
const NODES: [&str; 2] = ["of", "to"];
/// Operations whose replies say by their length how much there was.
const SIZED: [&str; 6] = ["READ", "READDIR", "READDIRPLUS", "READLINK", "GETXATTR", "LISTXATTR"];

/// A request without its time, its numbers and who made it: two that do the same have the same text. Without names and
/// paths if `nameless`. One line, fit for a terminal.
pub fn describe(record: &Record, naming: &mut Naming, nameless: bool) -> String {
    let mut text = record.operation.to_string();
    if !nameless {
        let _ = write!(text, " {}", naming.path(record.node));
        for name in &record.names {
            let _ = write!(text, " {name:?}");
        }
        if record.names_cut {
            text.push('…');
        }
    }
    for (name, value) in &record.arguments {
        match name.as_ref() {
            node if NODES.contains(&node) => {
                if !nameless {
                    let _ = write!(text, " {node}={}", naming.path(*value));
                }
            }
            // Of another request, by its number.
            "interrupts" => {}
            octal @ "mode" => {
                let _ = write!(text, " {octal}={value:#o}");
            }
            hexadecimal @ ("flags" | "valid" | "command" | "mask") => {
                let _ = write!(text, " {hexadecimal}={value:#x}");
            }
            other => {
                let _ = write!(text, " {other}={value}");
            }
        }
    }
    if record.in_flight {
        text.push_str(" → no reply");
    } else if let Some(error) = &record.error {
        let _ = write!(text, " → {error}");
    } else if SIZED.contains(&record.operation.as_ref()) {
        let _ = write!(text, " → {} bytes", record.bytes_out.saturating_sub(16));
    }
    if record.injected {
        text.push_str(" (injected)");
    }
    printable(&text).into_owned()
}
