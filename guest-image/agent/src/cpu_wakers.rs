//! A thread on each CPU that does nothing but wake up when told to.
//!
//! QEMU's TCG changes a CPU's set of pending interrupts without a lock when that CPU enters a guest (`helper_vmrun` in
//! `target/i386/tcg/system/svm_helper.c`, 10.0 at least), and an interrupt that comes at that very moment can be lost:
//! its request stays in the local APIC, but nothing looks at it before the next one comes. When it was the timer of an idle
//! CPU there is none, and an emulated host of which every CPU waits like that has stopped for good. An interrupt from outside
//! wakes one of its CPUs, and waking a thread on each of the others sends them one too.

use std::io;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The threads. They end when this is dropped.
#[derive(Debug)]
pub struct CpuWakers(Vec<SyncSender<()>>);

impl CpuWakers {
    /// Starts one on each CPU that this thread may run on.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let usable = sched_getaffinity(None)?;
        let cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| usable.is_set(cpu));
        cpus.map(start_on).collect::<io::Result<_>>().map(Self)
    }

    /// Wakes them all. Never waits.
    pub fn wake(&self) {
        for waker in &self.0 {
            match waker.try_send(()) {
                // One that did not run since the last time will; one that is gone had no CPU to run on.
                Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
            }
        }
    }
}

fn start_on(cpu: usize) -> io::Result<SyncSender<()>> {
    let (sender, receiver) = sync_channel(1);
    thread::Builder::new().name(format!("waker{cpu}")).spawn(move || {
        let mut only = CpuSet::new();
        only.set(cpu);
        if sched_setaffinity(None, &only).is_ok() {
            while receiver.recv().is_ok() {}
        }
    })?;
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, Instant};

    use super::*;

    /// How often our thread called `name` gave up its CPU of its own will; 0 as long as it has not named itself.
    fn switches(name: &str) -> u64 {
        let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
        let task = tasks
            .map(|task| task.path())
            .find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name));
        let Some(task) = task else { return 0 };
        let status = fs::read_to_string(task.join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse().unwrap()
    }

    #[test]
    fn every_cpu_has_a_thread_that_wakes_when_told() {
        let wakers = CpuWakers::start().unwrap();
        let usable = sched_getaffinity(None).unwrap();
        assert_eq!(wakers.0.len(), usable.count() as usize);
        let cpu = (0..CpuSet::MAX_CPU).find(|&cpu| usable.is_set(cpu)).unwrap();
        let name = format!("waker{cpu}");
        let give_up = Instant::now() + Duration::from_secs(10);
        let until = |more_than: u64| {
            while switches(&name) <= more_than {
                assert!(Instant::now() < give_up, "{name} does not wake");
                thread::sleep(Duration::from_millis(5));
                wakers.wake();
            }
        };
        until(0);
        until(switches(&name));
    }
}
