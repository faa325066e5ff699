//! `vmm bisect`: from "it broke somewhere" to the commit.
//!
//! [`History`] is what is searched and [`Search`] decides what to test next: both are pure, and [`belief`] is the
//! arithmetic behind them. [`Signature`] recognises one failure in another run. [`Journal`] has every step on the disk,
//! [`Workshop`] makes of a commit something to run, [`GuestRun`] runs it by a [`Runner`], several side by side if asked to, and [`Bisection`] does one after
//! the other. [`Report`] tells what it came to. The command line is not read here.

mod ahead;
pub mod belief;
mod drive;
pub mod git;
pub mod git_log;
mod guest_run;
mod history;
mod journal;
mod names;
mod report;
mod runner;
mod search;
mod signature;
mod tester;
mod workshop;

pub use drive::{Bisection, GIT_LOG, Outcome};
pub use guest_run::{GuestEnd, GuestRun, is_exec};
pub use history::{History, Node};
pub use journal::{Journal, Request, Step, Subject};
pub use names::Names;
pub use report::{JSON, MARKDOWN, Report};
pub use runner::{Call, LogDetails, Processes, Runner, create_log};
pub use search::{Conclusion, Event, Next, Repeat, Rules, Search};
pub use signature::{End, Observation, Seen, Signature};
pub use workshop::{Made, Making, Workshop};
