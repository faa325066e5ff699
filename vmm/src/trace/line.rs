//! The lines of a trace.

use std::io::{self, Write};

use devices::virtio::fs::Record;
use serde::{Deserialize, Serialize};

use crate::machine::Flight;

/// What the first line of a trace says it is.
pub(super) const VERSION: u32 = 1;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// The first line.
    Trace {
        /// [`VERSION`].
        version: u32,
    },
    /// A machine was started: what follows is of its shares, whose clocks and nodes begin anew.
    Machine {
        /// 1 for the first.
        number: u32,
    },
    /// A request that was answered, or was not when the trace ended.
    Request(Record),
    /// Requests of a share that are missing here.
    Dropped {
        /// The share.
        share: String,
        /// How many.
        requests: u64,
    },
}

impl Line {
    pub(super) fn write_to(&self, to: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut *to, self)?;
        to.write_all(b"\n")
    }
}

/// A whole trace of the last requests, for a file beside a failing test.
///
/// # Errors
/// None that is known: serde's.
pub fn last_requests(flight: &Flight) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    Line::Trace { version: VERSION }.write_to(&mut bytes)?;
    for record in flight.read() {
        Line::Request(record).write_to(&mut bytes)?;
    }
    Ok(bytes)
}
