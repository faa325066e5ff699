//! The library behind the `vmm` binary.
//!
//! The walk: [`cli`] → [`config`] → [`machine`] (builder → running VM) → [`session`] (agent link, driver),
//! as often as [`schedule`] wants a guest → [`report`] and [`verdict`] → [`exit_code`]. Dependencies point that way only: the machine knows nothing of suites,
//! reports see nothing but [`session::RunEvent`]s.

pub mod bisect;
pub mod cli;
pub mod command;
pub mod config;
pub mod exit_code;
pub mod guest_setup;
pub mod host;
pub mod machine;
pub mod report;
pub mod schedule;
pub mod scratch;
pub mod session;
pub mod trace;
pub mod verdict;
