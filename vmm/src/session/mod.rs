//! A session with one guest: the link to its agent, the plan it gets, deadlines, and the one ordered stream of
//! [`RunEvent`]s that comes out. Knows the machine only as something that can stop; knows nothing of reports.
//!
//! The walk of a guest: [`run_tasks`] waits for the agent ([`greeting`](self)), gives it one [`Task`] after the other, turns
//! its frames into events, and ends with the guest powered off or, where a deadline passed, stopped. Which tasks those are
//! is the business of [`crate::schedule`].
//! `vmm exec` and `vmm shell` use [`exec_client`] on the same link instead.

mod agent_link;
pub mod console_log;
mod deadlines;
mod driver;
mod ending;
pub mod exec_client;
mod exec_streams;
mod greeting;
mod guest_handle;
mod listing;
mod lossy_text;
mod plan;
mod raw_terminal;
mod run_event;
mod suite_state;
mod work;

pub use agent_link::{AgentLink, LinkEvent};
pub use deadlines::{Deadlines, TimeLimit};
pub use driver::run_tasks;
pub use ending::{Fate, GuestEnd};
pub use greeting::{Greeting, NotReady, await_greeting};
pub use guest_handle::GuestHandle;
pub use plan::RunPlan;
pub use raw_terminal::RawTerminal;
pub use run_event::{AUTOPSY, LAST_REQUESTS, OutputStream, RunEvent, RunOutcome, SuiteEnd, TimedEvent};
pub use work::{Task, WorkSource};

/// The greeting of an agent that a test plays.
#[cfg(test)]
pub(crate) fn test_hello() -> wire::ToHost {
    wire::ToHost::Hello {
        protocol: wire::PROTOCOL_VERSION,
        kernel_release: "6.12.0".into(),
        uptime_ms: 900,
        sleep_10ms_took_ms: 10,
        mounts: vec![wire::MountReport { tag: "myfs1".into(), mount_point: "/mnt/virtiofs1".into(), error: None }],
    }
}
