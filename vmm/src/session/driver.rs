//! Drives a run: agent frames, deadlines, Ctrl-C and the machine's end become one ordered stream of events.

use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never, select};
use wire::{FrameError, SuitePlan, ToGuest, ToHost};

use super::console_log::{self, ConsoleFindings};
use super::greeting::brief;
use super::suite_state::{Step, SuiteState};
use super::{AgentLink, GuestHandle, LinkEvent, NotReady, RunEvent, RunOutcome, RunPlan, await_greeting};
use crate::machine::StopReason;

/// Frames that were under way when the machine stopped arrive within this time of each other.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How many times the agent is asked for a sign of life before it is given up.
const PULSES: u32 = 12;
/// It is asked more often when that would take longer than this from one time to the next.
const LONGEST_PULSE: Duration = Duration::from_secs(5);
/// A stream that ends is followed by the machine's end, if that is why.
const STOP_AFTER_CLOSE: Duration = Duration::from_secs(5);

/// Runs all suites of `plan` in a machine that was just started, telling `sink` each event as it happens, from
/// [`RunEvent::BootStarted`] to [`RunEvent::MachineStopped`]. When it returns the machine has stopped or was told to.
///
/// The first message of `interrupts` lets the guest finish its shares and power off, the second stops it at once.
pub fn run_suites<I>(
    plan: &RunPlan,
    guest: GuestHandle<'_>,
    interrupts: &Receiver<I>,
    sink: &mut dyn FnMut(RunEvent),
) -> RunOutcome {
    sink(RunEvent::BootStarted);
    let GuestHandle { agent, stopped, console_log, stop } = guest;
    let (ending, stop_reason) = match AgentLink::accept(agent) {
        Ok(link) => {
            let mut driver = Driver {
                plan,
                link,
                stopped,
                interrupts: interrupts.clone(),
                sink: &mut *sink,
                total_deadline: plan.deadlines.total.and_then(|total| Instant::now().checked_add(total)),
                stop_reason: None,
                timed_out_test: None,
                not_started: None,
            };
            let ending = driver.run();
            (ending, driver.stop_reason)
        }
        Err(error) => (Ending::CannotTest(format!("failed to start a thread for the agent's stream: {error}")), None),
    };
    let stop_reason = stop_reason.unwrap_or_else(stop);
    let findings = findings(console_log.as_deref(), sink);
    sink(RunEvent::MachineStopped { reason: stop_reason.to_string() });
    outcome(ending, &stop_reason, &findings)
}

/// How the talk with the guest ended.
#[derive(Debug)]
enum Ending {
    /// Everything ran; the guest said goodbye.
    Complete,
    /// Everything ran, then the guest did not shut down.
    NoGoodbye(Duration),
    /// The guest never came to work.
    NotReady(NotReady<StopReason>),
    /// The machine stopped in the middle.
    Stopped(StopReason),
    /// The agent is gone or talks nonsense.
    AgentLost(String),
    /// A deadline of ours passed.
    TimedOut(String),
    /// Nothing can be said about the tests.
    CannotTest(String),
    /// Ctrl-C.
    Interrupted,
}

impl Ending {
    /// What the test that ran just then is told to have ended of.
    fn why(&self) -> String {
        match self {
            Self::Stopped(reason) => format!("the machine stopped: {reason}"),
            Self::AgentLost(reason) | Self::TimedOut(reason) | Self::CannotTest(reason) => reason.clone(),
            Self::Interrupted => "the run was interrupted".into(),
            Self::NotReady(reason) => reason.to_string(),
            Self::Complete | Self::NoGoodbye(_) => "the run ended".into(),
        }
    }
}

/// Something that happened.
enum Happening {
    Frame(ToHost),
    Closed(Option<FrameError>),
    Stopped(StopReason),
    Interrupted,
    Deadline,
}

struct Driver<'a, I> {
    plan: &'a RunPlan,
    link: AgentLink,
    stopped: Receiver<StopReason>,
    interrupts: Receiver<I>,
    sink: &'a mut dyn FnMut(RunEvent),
    total_deadline: Option<Instant>,
    stop_reason: Option<StopReason>,
    timed_out_test: Option<String>,
    not_started: Option<String>,
}

impl<I> Driver<'_, I> {
    fn run(&mut self) -> Ending {
        let mut left = self.plan.suites.iter();
        let ending = match self.boot() {
            Ok(()) => loop {
                let Some(suite) = left.next() else { break None };
                if let Err(ending) = self.run_suite(suite) {
                    break Some(ending);
                }
            },
            Err(ending) => Some(ending),
        };
        for suite in left {
            let why = ending.as_ref().map(Ending::why).unwrap_or_default();
            let error = format!("not run: {why}");
            (self.sink)(RunEvent::SuiteNotStarted { suite: suite.name.clone(), error });
        }
        match ending {
            None => self.shut_down(),
            Some(Ending::Interrupted) => {
                // What was written to the shares so far is to be kept; whether that works out changes nothing.
                self.shut_down();
                Ending::Interrupted
            }
            Some(ending) => ending,
        }
    }

    fn boot(&mut self) -> Result<(), Ending> {
        let boot = self.plan.deadlines.boot;
        let limit = match self.total_deadline {
            Some(total) => boot.min(total.saturating_duration_since(Instant::now())),
            None => boot,
        };
        let greeting = await_greeting(&self.link, &self.stopped, &self.interrupts, limit).map_err(|not_ready| {
            if let NotReady::Stopped(reason) = &not_ready {
                self.stop_reason = Some(reason.clone());
            }
            match not_ready {
                NotReady::Interrupted => Ending::Interrupted,
                NotReady::TimedOut(_) if self.is_over_time() => Ending::TimedOut(self.over_time("the guest's start")),
                not_ready => Ending::NotReady(not_ready),
            }
        })?;
        let agent = self.plan.deadlines.agent;
        if let Err(error) = self.link.watch((agent / PULSES).min(LONGEST_PULSE), agent) {
            return Err(Ending::CannotTest(format!("no thread to watch over the guest can be had: {error}")));
        }
        let failed_mounts = greeting.failed_mounts();
        (self.sink)(RunEvent::GuestReady {
            kernel_release: greeting.kernel_release,
            uptime_ms: greeting.uptime_ms,
            mounts: greeting.mounts,
        });
        // The suites would run on the directory below and pass or fail for reasons of another file system.
        failed_mounts.map_or(Ok(()), |failed| Err(Ending::CannotTest(failed)))
    }

    fn run_suite(&mut self, plan: &SuitePlan) -> Result<(), Ending> {
        self.link.send(ToGuest::RunSuite(plan.clone()));
        let mut state = SuiteState::new(&plan.name);
        let mut started = false;
        let ending = loop {
            let silence = self.plan.deadlines.silence().filter(|_| plan.test_timeout_ms > 0);
            let silent_at = silence.and_then(|limit| state.progress_at.checked_add(limit));
            match self.next([silent_at, self.total_deadline].into_iter().flatten().min()) {
                Happening::Frame(frame) => {
                    started |= matches!(frame, ToHost::SuiteStarted { .. });
                    let shown = brief(&frame);
                    match state.on_frame(frame, self.sink) {
                        Step::GoesOn => {}
                        Step::Finished => {
                            self.timed_out_test = self.timed_out_test.take().or(state.timed_out);
                            return Ok(());
                        }
                        Step::NotStarted(error) => {
                            let error = format!("suite {} could not be started: {error}", plan.name);
                            self.not_started.get_or_insert(error);
                            return Ok(());
                        }
                        Step::OutOfTurn => {
                            break Ending::AgentLost(format!("the guest's agent spoke out of turn: {shown}"));
                        }
                    }
                }
                Happening::Closed(error) => break self.lost(error),
                Happening::Stopped(reason) => break Ending::Stopped(reason),
                Happening::Interrupted => break Ending::Interrupted,
                Happening::Deadline => {
                    break Ending::TimedOut(match (self.is_over_time(), silence) {
                        (false, Some(limit)) => format!(
                            "no sign of {} for {}, nor of the guest's agent that should have killed it",
                            state.running(),
                            humantime::format_duration(limit)
                        ),
                        _ => self.over_time(&state.running()),
                    });
                }
            }
        };
        if started {
            state.cut_off(&ending.why(), self.sink);
        } else {
            let error = format!("not run: {}", ending.why());
            (self.sink)(RunEvent::SuiteNotStarted { suite: plan.name.clone(), error });
        }
        Err(ending)
    }

    fn shut_down(&mut self) -> Ending {
        self.link.send(ToGuest::Shutdown);
        let limit = self.plan.deadlines.shutdown;
        let deadline = Instant::now().checked_add(limit);
        let mut said_goodbye = false;
        let mut closed = false;
        loop {
            match self.next_unless_closed(closed, deadline) {
                Happening::Frame(ToHost::Goodbye) => said_goodbye = true,
                Happening::Frame(ToHost::KernelLog { text }) => (self.sink)(RunEvent::KernelLog { text }),
                Happening::Frame(ToHost::Log { line }) => (self.sink)(RunEvent::Note { line }),
                // Of a suite that was cut off and reported as such.
                Happening::Frame(_) => {}
                Happening::Closed(_) => closed = true,
                Happening::Stopped(StopReason::PowerOff) if said_goodbye => return self.complete(),
                Happening::Stopped(reason) => return Ending::Stopped(reason),
                Happening::Interrupted => return Ending::Interrupted,
                Happening::Deadline if said_goodbye => {
                    let line = format!("the guest did not power off within {}", humantime::format_duration(limit));
                    (self.sink)(RunEvent::Note { line });
                    return self.complete();
                }
                Happening::Deadline => return Ending::NoGoodbye(limit),
            }
        }
    }

    /// All suites had their turn: what is to be said about the whole.
    fn complete(&mut self) -> Ending {
        match (self.timed_out_test.take(), self.not_started.take()) {
            (Some(timed_out), _) => Ending::TimedOut(timed_out),
            (None, Some(not_started)) => Ending::CannotTest(not_started),
            (None, None) => Ending::Complete,
        }
    }

    fn is_over_time(&self) -> bool {
        self.total_deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn over_time(&self, running: &str) -> String {
        let total = humantime::format_duration(self.plan.deadlines.total.unwrap_or_default());
        format!("the run took longer than {total} (--timeout); {running} was running")
    }

    /// The stream ended: because the guest hangs, because the machine stopped, or for a reason of its own.
    fn lost(&mut self, error: Option<FrameError>) -> Ending {
        if self.link.fell_silent() {
            let limit = humantime::format_duration(self.plan.deadlines.agent);
            return Ending::TimedOut(format!(
                "the guest hangs: nothing was heard from its agent for {limit} (--hang-timeout)"
            ));
        }
        let ended = match &error {
            Some(error) => format!("the stream of the guest's agent broke: {error}"),
            None => "the guest's agent closed its stream".into(),
        };
        match self.next_unless_closed(true, Instant::now().checked_add(STOP_AFTER_CLOSE)) {
            Happening::Stopped(reason) => {
                // Why the machine stopped explains more, but not a stream that broke before.
                if error.is_some() {
                    (self.sink)(RunEvent::Note { line: ended });
                }
                Ending::Stopped(reason)
            }
            Happening::Interrupted => Ending::Interrupted,
            _ => Ending::AgentLost(ended),
        }
    }

    fn next(&mut self, deadline: Option<Instant>) -> Happening {
        self.next_unless_closed(false, deadline)
    }

    /// Waits for the next thing to happen. When the machine has stopped, what its agent had sent comes first.
    fn next_unless_closed(&mut self, closed: bool, deadline: Option<Instant>) -> Happening {
        let events = if closed { never() } else { self.link.events().clone() };
        loop {
            // A flood of frames must not keep these from being seen.
            if self.interrupts.try_recv().is_ok() {
                return Happening::Interrupted;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Happening::Deadline;
            }
            if let Some(reason) = &self.stop_reason {
                return match events.recv_timeout(LAST_WORDS) {
                    Ok(LinkEvent::Frame(frame)) => Happening::Frame(frame),
                    _ => Happening::Stopped(reason.clone()),
                };
            }
            select! {
                recv(events) -> event => return match event {
                    Ok(LinkEvent::Frame(frame)) => Happening::Frame(frame),
                    Ok(LinkEvent::Closed(error)) => Happening::Closed(error),
                    Err(_) => Happening::Closed(None),
                },
                recv(self.stopped) -> reason => self.stop_reason = Some(reason.unwrap_or(StopReason::ThreadPanicked {
                    thread: "machine".into(),
                    message: "it ended without saying why".into(),
                })),
                recv(self.interrupts) -> interrupt => match interrupt {
                    Ok(_) => return Happening::Interrupted,
                    // Nobody can interrupt any more.
                    Err(_) => self.interrupts = never(),
                },
                recv(deadline.map_or_else(never, at)) -> _ => return Happening::Deadline,
            }
        }
    }
}

fn findings(console_log: Option<&Path>, sink: &mut dyn FnMut(RunEvent)) -> ConsoleFindings {
    let Some(path) = console_log else { return ConsoleFindings::default() };
    console_log::read(path).unwrap_or_else(|error| {
        sink(RunEvent::Note { line: format!("failed to read {}: {error}", path.display()) });
        ConsoleFindings::default()
    })
}

fn outcome(ending: Ending, stop_reason: &StopReason, findings: &ConsoleFindings) -> RunOutcome {
    if matches!(ending, Ending::Interrupted) {
        return RunOutcome::Interrupted;
    }
    // Whatever else was noticed, it came of this.
    if let Some(death) = findings.kernel_death() {
        return RunOutcome::GuestDied { reason: death };
    }
    let reason = match &findings.agent_fatal {
        Some(fatal) => format!("{}; the guest's agent gave up: {fatal}", ending.why()),
        None => ending.why(),
    };
    match ending {
        Ending::Complete => RunOutcome::Completed,
        Ending::Interrupted => RunOutcome::Interrupted,
        Ending::TimedOut(reason) => RunOutcome::TimedOut { reason },
        Ending::NoGoodbye(limit) => RunOutcome::TimedOut {
            reason: format!("the guest did not shut down within {}", humantime::format_duration(limit)),
        },
        Ending::CannotTest(_) => RunOutcome::CannotTest { reason },
        Ending::NotReady(NotReady::TimedOut(_)) => RunOutcome::TimedOut { reason },
        Ending::NotReady(NotReady::Stopped(StopReason::TripleFault { .. })) => RunOutcome::GuestDied { reason },
        Ending::NotReady(_) => RunOutcome::CannotTest { reason },
        Ending::Stopped(_) | Ending::AgentLost(_) if is_ours(stop_reason) => RunOutcome::CannotTest { reason },
        Ending::Stopped(_) | Ending::AgentLost(_) => RunOutcome::GuestDied { reason },
    }
}

/// Whether the machine stopped for a reason that says nothing about the guest.
fn is_ours(reason: &StopReason) -> bool {
    matches!(reason, StopReason::KvmFailed { .. } | StopReason::ThreadPanicked { .. })
}

#[cfg(test)]
mod tests;
