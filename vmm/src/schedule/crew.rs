//! Boots guests and has them work, one after the other or several side by side, as long as there is something to do.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded, never, select, unbounded};

use super::Schedule;
use crate::session::{Fate, GuestEnd, GuestHandle, RunEvent, RunOutcome, RunPlan, Task, WorkSource, run_tasks};

/// Events on their way to the reports; guests wait when there are more.
const EVENTS: usize = 256;

/// A guest that boots.
pub struct StartedGuest {
    /// Its machine.
    pub handle: GuestHandle<'static>,
    /// Dropped once its machine has stopped: its shares.
    pub keep: Box<dyn Any>,
}

impl std::fmt::Debug for StartedGuest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StartedGuest").field("handle", &self.handle).finish_non_exhaustive()
    }
}

/// What comes from a worker.
enum News {
    Event(u32, RunEvent),
    /// Other workers may begin.
    Listed,
    /// It has ended; with its panic, if that is why.
    Gone(Option<Box<dyn Any + Send>>),
}

/// Runs all of `schedule` in guests that `start` boots, `jobs` of them at a time. `sink` is told each event and the number of
/// the guest that it is of, 0 for none; on the thread of the caller.
///
/// The first message of `interrupts` lets the guests finish their shares and power off, the second stops them at once.
pub fn run<I>(
    mut schedule: Schedule,
    jobs: usize,
    plan: &RunPlan,
    start: &(dyn Fn(u32) -> anyhow::Result<StartedGuest> + Sync),
    interrupts: &Receiver<I>,
    sink: &mut dyn FnMut(u32, RunEvent),
) -> RunOutcome {
    schedule.take_known_lists().into_iter().for_each(|event| sink(0, event));
    let at_once = schedule.useful_guests().min(jobs).max(1);
    let schedule = Mutex::new(schedule);
    let (sender, news) = bounded(EVENTS);
    let mut panicked = None;
    thread::scope(|scope| {
        // Should `sink` panic, it goes with this closure, and workers find that nobody listens.
        let news = news;
        let mut stops: Vec<Sender<()>> = Vec::new();
        let hire = |stops: &mut Vec<Sender<()>>| {
            let (stop, stopped) = unbounded();
            stops.push(stop);
            let (schedule, sender) = (&schedule, sender.clone());
            scope.spawn(move || {
                // A panic must not leave the main thread waiting for news.
                let done = catch_unwind(AssertUnwindSafe(|| work(schedule, plan, start, &stopped, &sender)));
                let _ = sender.send(News::Gone(done.err()));
            });
        };
        (0..at_once).for_each(|_| hire(&mut stops));
        let mut working = at_once;
        let mut to_hire = jobs.saturating_sub(at_once);
        let mut interrupts = interrupts.clone();
        while working > 0 {
            select! {
                recv(news) -> message => match message {
                    Ok(News::Event(guest, event)) => sink(guest, event),
                    Ok(News::Listed) => {
                        let more = std::mem::take(&mut to_hire);
                        (0..more).for_each(|_| hire(&mut stops));
                        working += more;
                    }
                    Ok(News::Gone(panic)) => {
                        working -= 1;
                        if let Some(panic) = panic {
                            // The others find nothing more to do.
                            lock(&schedule).interrupt();
                            panicked = Some(panic);
                        }
                    }
                    // Not while `sender` is here.
                    Err(_) => break,
                },
                recv(interrupts) -> message => match message {
                    Ok(_) => {
                        lock(&schedule).interrupt();
                        for stop in &stops {
                            let _ = stop.send(());
                        }
                    }
                    Err(_) => interrupts = never(),
                },
            }
        }
    });
    if let Some(panic) = panicked {
        resume_unwind(panic);
    }
    let (events, outcome) = schedule.into_inner().unwrap_or_else(PoisonError::into_inner).finish();
    events.into_iter().for_each(|event| sink(0, event));
    outcome
}

/// One guest after the other, until there is nothing more to do.
fn work(
    schedule: &Mutex<Schedule>,
    plan: &RunPlan,
    start: &(dyn Fn(u32) -> anyhow::Result<StartedGuest> + Sync),
    stopped: &Receiver<()>,
    news: &Sender<News>,
) {
    let mut told_listed = false;
    loop {
        let Some(guest) = lock(schedule).new_guest() else { return };
        let tell = |events: Vec<RunEvent>| {
            for event in events {
                if news.send(News::Event(guest, event)).is_err() {
                    lock(schedule).interrupt();
                }
            }
        };
        let end = match start(guest) {
            Ok(StartedGuest { handle, keep }) => {
                let mut source = GuestWork { schedule, guest, tasks: 0, news, told_listed: &mut told_listed };
                let mut sink = |event| {
                    // Not told under the lock: who takes the news may want it, too.
                    let events = lock(schedule).observe(guest, event);
                    tell(events);
                };
                let end = run_tasks(plan, &mut source, handle, stopped, &mut sink);
                drop(keep);
                end
            }
            Err(error) => {
                let reason = crate::command::error_chain(error.as_ref());
                GuestEnd { outcome: RunOutcome::CannotTest { reason }, fate: Fate::Over }
            }
        };
        let events = lock(schedule).guest_ended(guest, &end);
        tell(events);
    }
}

/// What one guest gets of the schedule.
struct GuestWork<'a> {
    schedule: &'a Mutex<Schedule>,
    guest: u32,
    tasks: u32,
    news: &'a Sender<News>,
    told_listed: &'a mut bool,
}

impl WorkSource for GuestWork<'_> {
    fn next_task(&mut self) -> Option<Task> {
        let task = lock(self.schedule).next_task(self.guest, self.tasks);
        if let Some(Task::Run(_)) = task {
            self.tasks += 1;
            if !std::mem::replace(self.told_listed, true) {
                let _ = self.news.send(News::Listed);
            }
        }
        task
    }

    fn listed(&mut self, tests: Result<Vec<String>, String>) {
        let events = lock(self.schedule).listed(tests);
        for event in events {
            let _ = self.news.send(News::Event(self.guest, event));
        }
    }
}

fn lock(schedule: &Mutex<Schedule>) -> MutexGuard<'_, Schedule> {
    schedule.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
