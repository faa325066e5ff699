//! The transport, driven through its registers the way Linux drives it and the ways nobody should.

mod failures;
mod fuzz;
mod guest;
mod msix_and_bar;
mod negotiation;
mod queues;
mod reset;
mod shared_memory;

use guest::{Guest, Probe};
