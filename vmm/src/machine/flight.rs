//! What a machine's shares served last, and what they have not answered yet.

use devices::virtio::fs::{FlightReader, Record};

/// How many requests of each queue are kept for somebody who writes them all to a file: 3 MiB, which is a tenth of a second
/// at 160,000 requests in a second.
pub(super) const TRACE_RECORDS: usize = 16 << 10;

/// Where to read a machine's requests, while it runs and after.
#[derive(Clone, Debug)]
pub struct Flight {
    pub(super) shares: Vec<FlightReader>,
}

impl Flight {
    /// The shares' recorders, in order.
    #[must_use]
    pub fn shares(&self) -> &[FlightReader] {
        &self.shares
    }

    /// The last requests of all shares by the time they were taken, those in flight included.
    #[must_use]
    pub fn read(&self) -> Vec<Record> {
        merged(self.shares.iter().flat_map(FlightReader::read).collect())
    }

    /// The requests of all shares that have no reply yet, oldest first.
    #[must_use]
    pub fn in_flight(&self) -> Vec<Record> {
        let mut records: Vec<Record> = self.shares.iter().flat_map(FlightReader::in_flight).collect();
        // Shares were made one after the other: what they have in common is now.
        records.sort_by_key(|record| std::cmp::Reverse(record.took_ns));
        records
    }
}

/// Shares are made within a few milliseconds, so their clocks nearly agree.
fn merged(mut records: Vec<Record>) -> Vec<Record> {
    records.sort_by_key(|record| record.at_ns);
    records
}
