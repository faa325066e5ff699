//! Drives a run: agent frames, deadlines, Ctrl-C and the machine's end become one ordered stream of events.

use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never, select};
use wire::{Command, FrameError, SuitePlan, TestStatus, ToGuest, ToHost};

use super::console_log::ConsoleFindings;
use super::ending::{self, Ending, GuestEnd};
use super::greeting::brief;
use super::listing::Listing;
use super::suite_state::{Step, SuiteState};
use super::work::{Task, WorkSource};
use super::{AUTOPSY, AgentLink, GuestHandle, LAST_REQUESTS, LinkEvent, NotReady, RunEvent, RunPlan, await_greeting};
use crate::machine::StopReason;

/// Frames that were under way when the machine stopped arrive within this time of each other.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How many times the agent is asked for a sign of life before it is given up.
const PULSES: u32 = 12;
/// It is asked more often when that would take longer than this from one time to the next.
const LONGEST_PULSE: Duration = Duration::from_secs(5);
/// A stream that ends is followed by the machine's end, if that is why.
const STOP_AFTER_CLOSE: Duration = Duration::from_secs(5);

/// Has a machine that was just started do what `work` gives, until that gives no more, telling `sink` each event as it happens,
/// from [`RunEvent::BootStarted`] to [`RunEvent::MachineStopped`]. When it returns the machine has stopped or was told to.
///
/// The first message of `interrupts` lets the guest finish its shares and power off, the second stops it at once.
pub fn run_tasks<I>(
    plan: &RunPlan,
    work: &mut dyn WorkSource,
    guest: GuestHandle<'_>,
    interrupts: &Receiver<I>,
    sink: &mut dyn FnMut(RunEvent),
) -> GuestEnd {
    sink(RunEvent::BootStarted);
    let GuestHandle { agent, stopped, console_log, autopsy, last_requests, stop } = guest;
    let (ending, stop_reason, findings) = match AgentLink::accept(agent) {
        Ok(link) => {
            let mut driver = Driver {
                plan,
                work,
                link,
                stopped,
                interrupts: interrupts.clone(),
                sink: &mut *sink,
                console_log: console_log.as_deref(),
                autopsy,
                last_requests,
                findings: None,
                stop_reason: None,
                timed_out_test: None,
                not_started: None,
            };
            let ending = driver.run();
            (ending, driver.stop_reason, driver.findings)
        }
        Err(error) => {
            (Ending::CannotTest(format!("failed to start a thread for the agent's stream: {error}")), None, None)
        }
    };
    let stop_reason = stop_reason.unwrap_or_else(stop);
    // An autopsy has made a kernel that hung panic: that is not what it died of.
    let findings = findings.unwrap_or_else(|| ending::findings(console_log.as_deref(), sink));
    sink(RunEvent::MachineStopped { reason: stop_reason.to_string() });
    ending::guest_end(ending, &stop_reason, &findings)
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
    work: &'a mut dyn WorkSource,
    link: AgentLink,
    stopped: Receiver<StopReason>,
    interrupts: Receiver<I>,
    sink: &'a mut dyn FnMut(RunEvent),
    console_log: Option<&'a Path>,
    autopsy: Box<dyn FnMut() -> String + 'a>,
    last_requests: Box<dyn FnMut() -> Vec<u8> + 'a>,
    /// What the console said of the guest's end before the autopsy.
    findings: Option<ConsoleFindings>,
    stop_reason: Option<StopReason>,
    timed_out_test: Option<String>,
    not_started: Option<String>,
}

impl<I> Driver<'_, I> {
    fn run(&mut self) -> Ending {
        let ending = match self.boot() {
            Ok(()) => loop {
                let done = match self.work.next_task() {
                    None => break None,
                    Some(Task::Run(plan)) => self.run_suite(&plan),
                    Some(Task::List(command)) => self.list(&command),
                };
                if let Err(ending) = done {
                    break Some(ending);
                }
            },
            Err(ending) => Some(ending),
        };
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
        let limit = match self.plan.total_until {
            Some(total) => boot.min(total.saturating_duration_since(Instant::now())),
            None => boot,
        };
        let greeting = await_greeting(&self.link, &self.stopped, &self.interrupts, limit).map_err(|not_ready| {
            if let NotReady::Stopped(reason) = &not_ready {
                self.stop_reason = Some(reason.clone());
            }
            match not_ready {
                NotReady::Interrupted => Ending::Interrupted,
                NotReady::TimedOut(_) if self.is_over_time() => Ending::OverTime(self.over_time("the guest's start")),
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
            match self.next([silent_at, self.plan.total_until].into_iter().flatten().min()) {
                Happening::Frame(frame) => {
                    started |= matches!(frame, ToHost::SuiteStarted { .. });
                    let shown = brief(&frame);
                    if let ToHost::TestFinished { name, status: TestStatus::Fail | TestStatus::Error, .. } = &frame {
                        state.tell_artefact(name, LAST_REQUESTS, (self.last_requests)(), self.sink);
                    }
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
                    break match (self.is_over_time(), silence) {
                        (false, Some(limit)) => Ending::Hung(format!(
                            "no sign of {} for {}, nor of the guest's agent that should have killed it",
                            state.running(),
                            humantime::format_duration(limit)
                        )),
                        _ => Ending::OverTime(self.over_time(&state.running())),
                    };
                }
            }
        };
        if ending.is_guests() {
            self.findings = Some(ending::findings(self.console_log, self.sink));
            let text = format!("{}\n{}", ending.why(), (self.autopsy)());
            let test = state.test().to_owned();
            state.tell_artefact(&test, LAST_REQUESTS, (self.last_requests)(), self.sink);
            state.tell_artefact(&test, AUTOPSY, text.into_bytes(), self.sink);
        }
        if started {
            state.cut_off((!matches!(ending, Ending::Interrupted)).then(|| ending.why()), self.sink);
        }
        Err(ending)
    }

    /// Asks a command of the suite for its tests.
    fn list(&mut self, command: &Command) -> Result<(), Ending> {
        self.link.send(ToGuest::Exec { command: command.clone(), pty: None, stdin: false });
        let limit = self.plan.deadlines.listing;
        let until = [Instant::now().checked_add(limit), self.plan.total_until].into_iter().flatten().min();
        let mut listing = Listing::default();
        loop {
            match self.next(until) {
                Happening::Frame(ToHost::KernelLog { text }) => (self.sink)(RunEvent::KernelLog { text }),
                Happening::Frame(ToHost::Log { line }) => (self.sink)(RunEvent::Note { line }),
                Happening::Frame(ToHost::Output { stream, data }) => listing.take(stream, &data),
                Happening::Frame(ToHost::ExecFinished { end }) => {
                    self.work.listed(listing.finish(end));
                    return Ok(());
                }
                Happening::Frame(ToHost::ExecNotStarted { error, .. }) => {
                    self.work.listed(Err(error));
                    return Ok(());
                }
                Happening::Frame(frame) => {
                    return Err(Ending::AgentLost(format!("the guest's agent spoke out of turn: {}", brief(&frame))));
                }
                Happening::Closed(error) => return Err(self.lost(error)),
                Happening::Stopped(reason) => return Err(Ending::Stopped(reason)),
                Happening::Interrupted => return Err(Ending::Interrupted),
                Happening::Deadline if self.is_over_time() => {
                    return Err(Ending::OverTime(self.over_time("the listing of a suite's tests")));
                }
                Happening::Deadline => {
                    let limit = humantime::format_duration(limit);
                    return Err(Ending::Hung(format!("a suite did not list its tests within {limit}")));
                }
            }
        }
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
            (Some(timed_out), _) => Ending::TestTimedOut(timed_out),
            (None, Some(not_started)) => Ending::NotStarted(not_started),
            (None, None) => Ending::Complete,
        }
    }

    fn is_over_time(&self) -> bool {
        self.plan.total_until.is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn over_time(&self, running: &str) -> String {
        let total = humantime::format_duration(self.plan.deadlines.total.unwrap_or_default());
        format!("the run took longer than {total} (--timeout); {running} was running")
    }

    /// The stream ended: because the guest hangs, because the machine stopped, or for a reason of its own.
    fn lost(&mut self, error: Option<FrameError>) -> Ending {
        if self.link.fell_silent() {
            let limit = humantime::format_duration(self.plan.deadlines.agent);
            return Ending::Hung(format!(
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

#[cfg(test)]
mod fake_guest;
#[cfg(test)]
mod tests;
