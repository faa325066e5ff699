//! A few threads for requests that wait for the disk: fsync, syncfs, copying and allocating large ranges.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::deferred::{Answer, Ticket};
use super::passthrough::prepare_thread;

/// The most threads of a share. More than a disk gains from; when all are busy, slow requests wait for each other and
/// nothing else does.
const MAX_THREADS: usize = 4;

/// What a slow request does. It holds the files it works on, so that closing them meanwhile changes nothing.
pub(super) type Job = Box<dyn FnOnce() -> Answer + Send>;

/// How long dropping the pool waits for what was begun. Longer is the disk's affair: a thread touches nothing of the
/// guest's, so it may be left behind.
const DROP_DEADLINE: Duration = Duration::from_secs(5);

/// The pool of one share. Threads are started when there is work for them and end when the pool is dropped.
pub(super) struct SlowPool {
    name: String,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    /// A thread has ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<(Job, Ticket)>,
    threads: Vec<JoinHandle<()>>,
    /// How many of the threads have not ended.
    running: usize,
    idle: usize,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of one thread.
    fn work(&self) {
        if let Err(error) = prepare_thread() {
            tracing::warn!("a thread for slow requests keeps the process's umask and groups: {error}");
        }
        let mut state = self.lock();
        loop {
            if state.closed {
                state.running -= 1;
                self.ended.notify_one();
                return;
            }
            if let Some((job, ticket)) = state.jobs.pop_front() {
                drop(state);
                run(job, ticket);
                state = self.lock();
                continue;
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

fn run(job: Job, ticket: Ticket) {
    // A job holds nothing that a panic could leave half changed; the unanswered ticket becomes EIO.
    match catch_unwind(AssertUnwindSafe(job)) {
        Ok(answer) => ticket.answer(answer),
        Err(_) => tracing::error!("a slow request panicked"),
    }
}

impl SlowPool {
    /// A pool whose threads are called `name`.
    pub(super) fn new(name: String) -> Self {
        SlowPool { name, shared: Arc::default() }
    }

    /// Has `job` done and its ticket answered.
    pub(super) fn run(&self, job: Job, ticket: Ticket) {
        let mut state = self.shared.lock();
        state.jobs.push_back((job, ticket));
        if state.jobs.len() <= state.idle || state.running == MAX_THREADS {
            drop(state);
            self.shared.work.notify_one();
            return;
        }
        match self.spawn() {
            Ok(thread) => {
                state.threads.push(thread);
                state.running += 1;
            }
            Err(error) if state.running == 0 => {
                tracing::warn!("no thread for slow requests: {error}");
                let last = state.jobs.pop_back();
                drop(state);
                if let Some((job, ticket)) = last {
                    run(job, ticket);
                }
            }
            Err(error) => tracing::debug!("no more threads for slow requests: {error}"),
        }
    }

    fn spawn(&self) -> io::Result<JoinHandle<()>> {
        let shared = self.shared.clone();
        thread::Builder::new().name(self.name.clone()).spawn(move || shared.work())
    }

    /// Gives up on what was not begun.
    pub(super) fn clear(&self) {
        let jobs = std::mem::take(&mut self.shared.lock().jobs);
        drop(jobs);
    }
}

impl Drop for SlowPool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let (jobs, threads) = (std::mem::take(&mut state.jobs), std::mem::take(&mut state.threads));
        drop(jobs);
        self.shared.work.notify_all();
        let ended = self.shared.ended.wait_timeout_while(state, DROP_DEADLINE, |state| state.running > 0);
        match ended.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            // Jobs' panics are caught.
            false => threads.into_iter().for_each(|thread| drop(thread.join())),
            true => tracing::warn!("a slow request of {} goes on after the share's end", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use super::super::deferred::Answers;
    use super::*;

    fn wait_for(answers: &Answers, count: usize) -> Vec<(u64, Answer)> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut all = Vec::new();
        while all.len() < count {
            assert!(Instant::now() < deadline);
            all.extend(answers.take());
            thread::sleep(Duration::from_millis(1));
        }
        all
    }

    #[test]
    fn jobs_run_beside_each_other_and_a_panic_is_an_error_of_its_own_request_only() {
        let (pool, answers) = (SlowPool::new("pool".into()), Answers::new().unwrap());
        let (let_go, held) = channel::<()>();
        pool.run(
            Box::new(move || Ok(held.recv().map_or(Vec::new(), |()| b"last".to_vec()))),
            Ticket::new(1, answers.clone()),
        );
        pool.run(Box::new(|| panic!("on purpose")), Ticket::new(2, answers.clone()));
        for number in 3..50 {
            pool.run(Box::new(|| Ok(Vec::new())), Ticket::new(number, answers.clone()));
        }
        let quick = wait_for(&answers, 48);
        assert!(quick.iter().all(|(number, answer)| answer.is_err() == (*number == 2)));
        let_go.send(()).unwrap();
        assert_eq!(wait_for(&answers, 1)[0].1.as_deref().unwrap(), b"last");
    }

    #[test]
    fn dropping_the_pool_answers_what_was_not_begun() {
        let (pool, answers) = (SlowPool::new("pool".into()), Answers::new().unwrap());
        let (let_go, held) = channel::<()>();
        let held = Arc::new(Mutex::new(held));
        for number in 0..10 {
            let held = held.clone();
            let job = move || Ok(held.lock().unwrap().recv().map_or(Vec::new(), |()| Vec::new()));
            pool.run(Box::new(job), Ticket::new(number, answers.clone()));
        }
        thread::scope(|scope| {
            scope.spawn(|| drop(pool));
            // All but what was begun is answered before that ends.
            let early = wait_for(&answers, 10 - MAX_THREADS).len();
            drop(let_go);
            assert_eq!(wait_for(&answers, 10 - early).len(), 10 - early);
        });
    }
}
