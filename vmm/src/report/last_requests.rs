//! What the shares served last, for whoever reports a failure. Machines come and go while reporters stay.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::machine::Flight;
use crate::trace;

/// The machine whose requests count now, if there is one: clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct LastRequests(Arc<Mutex<Option<Flight>>>);

impl LastRequests {
    /// From now on it is this machine, also when it has stopped.
    pub(super) fn watch(&self, flight: Flight) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(flight);
    }

    /// A trace of the last requests, those in flight included; nothing without a machine.
    pub(super) fn trace(&self) -> io::Result<Vec<u8>> {
        let flight = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        flight.map_or(Ok(Vec::new()), |flight| trace::last_requests(&flight))
    }
}
