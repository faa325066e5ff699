//! The guests of a run: what each one boots from, and what each one cost.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::config::MachineOptions;
use crate::guest_setup::{GuestFiles, PreparedShares};
use crate::machine::{self, Statistics, StatisticsReader};
use crate::schedule::crew::StartedGuest;
use crate::trace::Trace;

/// Boots the guests of a run.
pub(super) struct Guests<'a> {
    options: &'a MachineOptions,
    files: &'a GuestFiles,
    console_log: PathBuf,
    /// Those of the first guest, made before anything else was; each later one gets its own.
    shares: Mutex<Option<PreparedShares>>,
    /// By guest, as asked for.
    statistics: Mutex<Vec<(u32, StatisticsReader)>>,
    trace: Mutex<Option<Trace>>,
    /// The highest number of a guest so far.
    booted: AtomicU32,
}

impl<'a> Guests<'a> {
    /// Guests as `options` say, the first one with `shares`.
    pub(super) fn new(
        options: &'a MachineOptions,
        files: &'a GuestFiles,
        console_log: PathBuf,
        shares: PreparedShares,
        trace: Option<Trace>,
    ) -> Self {
        let (shares, trace) = (Mutex::new(Some(shares)), Mutex::new(trace));
        Self { options, files, console_log, shares, statistics: Mutex::default(), trace, booted: AtomicU32::new(0) }
    }

    /// Boots one.
    pub(super) fn start(&self, guest: u32) -> anyhow::Result<StartedGuest> {
        self.booted.fetch_max(guest, Ordering::Relaxed);
        let options = self.options;
        let prepared = self.shares.lock().unwrap_or_else(PoisonError::into_inner).take();
        let shares = match prepared {
            Some(shares) => shares,
            None => PreparedShares::new(&options.shares)?,
        };
        let console_log = console_log_of(&self.console_log, guest);
        let vm = machine::start(&self.files.machine(options, &shares.list(), &console_log))?;
        if options.stats {
            self.statistics.lock().unwrap_or_else(PoisonError::into_inner).push((guest, vm.statistics()));
        }
        if let Some(trace) = self.trace.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            trace.follow(vm.flight());
        }
        Ok(StartedGuest { handle: super::guest_handle(vm, console_log), keep: Box::new(shares) })
    }

    /// The highest number of a guest so far.
    pub(super) fn booted(&self) -> u32 {
        self.booted.load(Ordering::Relaxed)
    }

    /// The shares go before the last word: whoever reads it finds nothing left behind.
    pub(super) fn finish(self) -> (Vec<(u32, Statistics)>, Option<Trace>) {
        let mut readers = self.statistics.into_inner().unwrap_or_else(PoisonError::into_inner);
        readers.sort_by_key(|(guest, _)| *guest);
        let statistics = readers.into_iter().map(|(guest, reader)| (guest, reader.read())).collect();
        (statistics, self.trace.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// `console.log` for the first guest, `console-2.log` for the second.
fn console_log_of(first: &Path, guest: u32) -> PathBuf {
    if guest <= 1 {
        return first.to_owned();
    }
    let stem = first.file_stem().unwrap_or_default().to_string_lossy();
    let extension = first.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    first.with_file_name(format!("{stem}-{guest}{extension}"))
}

/// One guest's as it is; of several a list.
pub(super) fn statistics_json(statistics: &[(u32, Statistics)]) -> serde_json::Result<serde_json::Value> {
    match statistics {
        [(_, only)] => only.to_json(),
        several => several.iter().map(|(_, one)| one.to_json()).collect::<Result<Vec<_>, _>>().map(Into::into),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_guest_has_a_console_of_its_own() {
        let names = |first: &str| [1, 2, 11].map(|guest| console_log_of(Path::new(first), guest).display().to_string());
        assert_eq!(names("r/console.log"), ["r/console.log", "r/console-2.log", "r/console-11.log"]);
        assert_eq!(names("plain"), ["plain", "plain-2", "plain-11"]);
    }
}
