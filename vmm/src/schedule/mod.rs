//! Which guest runs which tests: one guest for all of a run, a fresh one behind each that a test killed, or several side by
//! side. Knows guests only by their numbers and events; boots none.
//!
//! [`Schedule`] is the state of a run as far as work goes: what waits, what is under way in which guest, what is done. It gives
//! each guest its tasks, and what a guest tells passes through it, so that a suite begins and ends once in a run's events
//! however many guests ran parts of it. [`crew`] boots guests as long as there is work for them.

pub mod crew;
mod lists;
mod policy;
mod state;
mod suite_work;
pub mod times;
mod under_way;

pub use lists::Lists;
pub use policy::{GuestPer, Policy, Shard};
pub use state::Schedule;
pub use suite_work::Done;
