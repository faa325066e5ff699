//! Waiting for an agent's first frame, and judging whether it can be worked with.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, never, select};
use wire::{FrameError, MountReport, PROTOCOL_VERSION, ToHost};

use super::{AgentLink, LinkEvent};

/// A guest whose sleep of 10 ms took longer than this has broken timers; a busy host explains no such figure.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// What the agent said before the machine stopped is worth waiting this long for.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What an agent says of itself and its guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// `uname -r`.
    pub kernel_release: String,
    /// Guest uptime when it connected, milliseconds.
    pub uptime_ms: u64,
    /// What became of each share.
    pub mounts: Vec<MountReport>,
}

impl Greeting {
    /// The shares that could not be mounted, in words; `None` when all are.
    #[must_use]
    pub fn failed_mounts(&self) -> Option<String> {
        let failed: Vec<_> = self
            .mounts
            .iter()
            .filter_map(|share| {
                let error = share.error.as_ref()?;
                Some(format!("the guest could not mount share {} at {}: {error}", share.tag, share.mount_point))
            })
            .collect();
        (!failed.is_empty()).then(|| failed.join("; "))
    }
}

/// Why there is no agent to work with. `S` says why a machine stopped.
#[derive(Debug, thiserror::Error)]
pub enum NotReady<S: std::fmt::Debug + std::fmt::Display> {
    /// It did not speak in time.
    #[error(
        "the guest's agent did not speak within {} (--boot-timeout); to see on its console how far the kernel came: \
         --append ignore_loglevel",
        humantime::format_duration(*.0)
    )]
    TimedOut(Duration),
    /// The machine stopped before.
    #[error("the machine stopped before the guest's agent spoke: {0}")]
    Stopped(S),
    /// Its stream ended before its first frame, or is no stream of frames.
    #[error("the guest's agent closed its stream before it spoke{}", .0.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
    Closed(Option<FrameError>),
    /// It spoke out of turn.
    #[error("the guest's agent began with something else than its greeting: {0}")]
    NoGreeting(String),
    /// It is of another version.
    #[error(
        "the guest's agent speaks protocol {0}, this vmm speaks {PROTOCOL_VERSION}; rebuild the guest image with \
         `vmm image build`"
    )]
    OtherVersion(u16),
    /// Its timers do not work.
    #[error(
        "a sleep of 10 ms took {0} ms in the guest: timers of virtual machines are broken on this host, no deadline would \
         hold; with an emulated host start a new one, else check that the host's TSC is stable"
    )]
    BrokenTimers(u64),
    /// Ctrl-C.
    #[error("interrupted while the guest was starting")]
    Interrupted,
}

/// Waits for the agent's greeting until `limit` has passed.
///
/// # Errors
/// Says why there is no working agent.
pub fn await_greeting<S: std::fmt::Debug + std::fmt::Display, I>(
    link: &AgentLink,
    stopped: &Receiver<S>,
    interrupts: &Receiver<I>,
    limit: Duration,
) -> Result<Greeting, NotReady<S>> {
    let deadline = Instant::now().checked_add(limit);
    let mut interrupts = interrupts.clone();
    let mut stopped = stopped.clone();
    let event = loop {
        let timeout = match deadline {
            Some(deadline) => crossbeam_channel::at(deadline),
            None => never(),
        };
        select! {
            recv(link.events()) -> event => match event {
                // Who pressed Ctrl-C knows why the guest went away.
                Ok(LinkEvent::Closed(_)) | Err(_) if interrupts.try_recv().is_ok() => return Err(NotReady::Interrupted),
                event => break event,
            },
            recv(stopped) -> reason => match reason {
                // It may have spoken just before.
                Ok(reason) => match link.events().recv_timeout(LAST_WORDS) {
                    Ok(LinkEvent::Frame(frame)) => break Ok(LinkEvent::Frame(frame)),
                    _ => return Err(NotReady::Stopped(reason)),
                },
                Err(_) => stopped = never(),
            },
            recv(interrupts) -> interrupt => match interrupt {
                Ok(_) => return Err(NotReady::Interrupted),
                Err(_) => interrupts = never(),
            },
            recv(timeout) -> _ => return Err(NotReady::TimedOut(limit)),
        }
    };
    match event {
        Ok(LinkEvent::Frame(frame)) => judge(frame),
        Ok(LinkEvent::Closed(error)) => closed(error, &stopped),
        Err(_) => closed(None, &stopped),
    }
}

fn judge<S: std::fmt::Debug + std::fmt::Display>(frame: ToHost) -> Result<Greeting, NotReady<S>> {
    match frame {
        ToHost::Hello { protocol, .. } if protocol != PROTOCOL_VERSION => Err(NotReady::OtherVersion(protocol)),
        ToHost::Hello { sleep_10ms_took_ms, .. } if u128::from(sleep_10ms_took_ms) > LONGEST_SLEEP.as_millis() => {
            Err(NotReady::BrokenTimers(sleep_10ms_took_ms))
        }
        ToHost::Hello { kernel_release, uptime_ms, mounts, .. } => Ok(Greeting { kernel_release, uptime_ms, mounts }),
        other => Err(NotReady::NoGreeting(brief(&other))),
    }
}

/// A stream that ends because its machine stopped is told as that, if the machine says so soon.
fn closed<S: std::fmt::Debug + std::fmt::Display>(
    error: Option<FrameError>,
    stopped: &Receiver<S>,
) -> Result<Greeting, NotReady<S>> {
    match stopped.recv_timeout(Duration::from_secs(1)) {
        Ok(reason) => Err(NotReady::Stopped(reason)),
        Err(_) => Err(NotReady::Closed(error)),
    }
}

/// A frame's kind and a little of its content.
pub(super) fn brief(frame: &ToHost) -> String {
    format!("{frame:?}").chars().take(80).collect()
}
