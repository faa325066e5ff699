//! A started machine as a session sees it.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc;

use crossbeam_channel::Receiver;

use crate::machine::StopReason;

/// What a session needs of a running machine, and nothing else: plain channels, so that it is tested without one.
pub struct GuestHandle<'a> {
    /// Gives the agent's stream when it connects.
    pub agent: mpsc::Receiver<UnixStream>,
    /// Gets one message when the machine has stopped.
    pub stopped: Receiver<StopReason>,
    /// What the guest's kernel printed, as far as it has.
    pub console_log: Option<PathBuf>,
    /// What can be learned of a guest that died or hangs, for a person; the machine may still run.
    pub autopsy: Box<dyn FnMut() -> String + 'a>,
    /// The last requests that its shares served, as `vmm trace` reads them.
    pub last_requests: Box<dyn FnMut() -> Vec<u8> + 'a>,
    /// Stops the machine whatever its guest does, with a deadline of its own, and says why it stopped.
    pub stop: Box<dyn FnOnce() -> StopReason + 'a>,
}

impl std::fmt::Debug for GuestHandle<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestHandle").field("console_log", &self.console_log).finish_non_exhaustive()
    }
}
