//! The seam between a device's MSI-X table and whoever delivers interrupts (KVM irqfd routes, or a test).

use std::io;

/// Address and data of one message-signalled interrupt, as the guest wrote them to the MSI-X table
/// (PCI Local Bus 3.0 § 6.8.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Message address, both halves.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Delivers the MSI-X vectors of one PCI function.
///
/// Built by the VMM with as many vectors as the function's table has entries. All methods may be called from any
/// thread. A vector index past the table never reaches this trait: the transport has checked it.
pub trait MsiVectors: Send + Sync {
    /// Routes `vector` to `message`. Called when the guest unmasks an entry or changes an unmasked one.
    ///
    /// # Errors
    /// The route could not be installed; the transport then reports DEVICE_NEEDS_RESET.
    fn enable(&self, vector: u16, message: MsiMessage) -> io::Result<()>;
    /// Stops delivery of `vector`; a later [`MsiVectors::trigger`] has no effect until it is enabled again.
    ///
    /// # Errors
    /// The route could not be removed.
    fn disable(&self, vector: u16) -> io::Result<()>;
    /// Sends `vector` once. Cheap (one eventfd write) and called on the hot path by device workers.
    ///
    /// # Errors
    /// The event could not be written.
    fn trigger(&self, vector: u16) -> io::Result<()>;
}

#[cfg(any(test, feature = "test-support"))]
pub mod recording {
    //! [`MsiVectors`] that remember what they were told.

    use std::io;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::{MsiMessage, MsiVectors};

    /// One call.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum MsiEvent {
        /// [`MsiVectors::enable`].
        Enable(u16, MsiMessage),
        /// [`MsiVectors::disable`].
        Disable(u16),
        /// [`MsiVectors::trigger`].
        Trigger(u16),
    }

    /// Keeps every call in order.
    #[derive(Debug, Default)]
    pub struct RecordingVectors {
        state: Mutex<(Vec<MsiEvent>, bool)>,
    }

    impl RecordingVectors {
        /// Every call so far.
        pub fn events(&self) -> Vec<MsiEvent> {
            self.lock().0.clone()
        }

        /// How often `vector` was sent so far.
        pub fn triggers(&self, vector: u16) -> usize {
            self.lock().0.iter().filter(|event| **event == MsiEvent::Trigger(vector)).count()
        }

        /// Makes further calls fail.
        pub fn refuse(&self, refuse: bool) {
            self.lock().1 = refuse;
        }

        fn record(&self, event: MsiEvent) -> io::Result<()> {
            let mut state = self.lock();
            if state.1 {
                return Err(io::Error::other("told to refuse"));
            }
            state.0.push(event);
            Ok(())
        }

        fn lock(&self) -> MutexGuard<'_, (Vec<MsiEvent>, bool)> {
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl MsiVectors for RecordingVectors {
        fn enable(&self, vector: u16, message: MsiMessage) -> io::Result<()> {
            self.record(MsiEvent::Enable(vector, message))
        }
        fn disable(&self, vector: u16) -> io::Result<()> {
            self.record(MsiEvent::Disable(vector))
        }
        fn trigger(&self, vector: u16) -> io::Result<()> {
            self.record(MsiEvent::Trigger(vector))
        }
    }
}
