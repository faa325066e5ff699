//! `vmm bisect`: from "it broke somewhere" to the commit.
//!
//! [`History`] is what is searched and [`Search`] decides what to test next: both are pure, and [`belief`] is the
//! arithmetic behind them. [`Signature`] recognises one failure in another run. Everything that touches a disk, git, a
//! compiler or a guest is around that.

pub mod belief;
mod history;
mod search;
mod signature;

pub use history::{History, Node};
pub use search::{Conclusion, Event, Next, Repeat, Rules, Search};
pub use signature::{End, Observation, Seen, Signature};
