//! Writes every request of a machine's shares to a file.
//!
//! A thread looks after the shares' rings, as anybody may; those who serve requests do nothing for it and never wait. What
//! it comes too late for is counted and said.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use devices::virtio::fs::{FlightNews, FlightPosition, FlightReader};

use super::line::{Line, VERSION};
use crate::machine::Flight;

/// How often the rings are read.
const INTERVAL: Duration = Duration::from_millis(5);
/// How many times they are read before what was read is written to the file.
const INTERVALS_TO_FLUSH: u32 = 100;

/// Trouble with the file.
#[derive(Debug, thiserror::Error)]
#[error("failed to write the trace {}", path.display())]
pub struct TraceError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A trace that is being written. Dropped, it is complete as far as [`Trace::finish`] could make it.
#[derive(Debug)]
pub struct Trace {
    path: PathBuf,
    /// Here between machines.
    file: Option<TraceFile>,
    follower: Option<Follower>,
    machines: u32,
}

#[derive(Debug)]
struct TraceFile {
    to: BufWriter<File>,
    requests: u64,
    dropped: u64,
    /// The first; nothing is written after it.
    error: Option<io::Error>,
}

#[derive(Debug)]
struct Follower {
    stop: Sender<()>,
    thread: JoinHandle<TraceFile>,
}

impl Trace {
    /// Makes the file, or empties it.
    ///
    /// # Errors
    /// That cannot be done.
    pub fn create(path: &Path) -> Result<Self, TraceError> {
        let failed = |source| TraceError { path: path.to_path_buf(), source };
        let to = BufWriter::with_capacity(256 << 10, File::create(path).map_err(failed)?);
        let mut file = TraceFile { to, requests: 0, dropped: 0, error: None };
        file.write(&Line::Trace { version: VERSION });
        Ok(Self { path: path.to_path_buf(), file: Some(file), follower: None, machines: 0 })
    }

    /// From now on this machine's requests are written, until the next call or the end.
    pub fn follow(&mut self, flight: Flight) {
        self.stop();
        let Some(mut file) = self.file.take() else { return };
        self.machines += 1;
        file.write(&Line::Machine { number: self.machines });
        let (stop, stopped) = bounded(1);
        match thread::Builder::new().name("trace".into()).spawn(move || follow(&flight, &stopped, file)) {
            Ok(thread) => self.follower = Some(Follower { stop, thread }),
            Err(error) => tracing::error!("nothing is traced, no thread can be started: {error}"),
        }
    }

    fn stop(&mut self) {
        let Some(Follower { stop, thread }) = self.follower.take() else { return };
        drop(stop);
        match thread.join() {
            Ok(file) => self.file = Some(file),
            Err(_) => tracing::error!("the thread that writes the trace panicked"),
        }
    }

    /// Writes what is left, requests in flight included, and says what there is.
    ///
    /// # Errors
    /// Not everything could be written.
    pub fn finish(mut self) -> Result<String, TraceError> {
        self.stop();
        let lost = || io::Error::other("the thread that writes it ended");
        let written = self.file.take().ok_or_else(lost).and_then(|mut file| {
            file.flush();
            match file.error.take() {
                Some(error) => Err(error),
                None => Ok((file.requests, file.dropped)),
            }
        });
        let (requests, dropped) = written.map_err(|source| TraceError { path: self.path.clone(), source })?;
        let missing = match dropped {
            0 => String::new(),
            dropped => format!("; {dropped} came faster than they could be written and are missing"),
        };
        Ok(format!("{requests} requests traced to {}{missing}", self.path.display()))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.stop();
    }
}

impl TraceFile {
    fn write(&mut self, line: &Line) {
        if self.error.is_none() {
            self.error = line.write_to(&mut self.to).err();
        }
    }

    fn flush(&mut self) {
        if self.error.is_none() {
            self.error = self.to.flush().err();
        }
    }

    fn take(&mut self, share: &FlightReader, news: FlightNews) {
        self.requests += news.records.len() as u64;
        self.dropped += news.dropped;
        if news.dropped > 0 {
            self.write(&Line::Dropped { share: share.share().to_owned(), requests: news.dropped });
        }
        for record in news.records {
            self.write(&Line::Request(record));
        }
    }
}

fn follow(flight: &Flight, stopped: &Receiver<()>, mut file: TraceFile) -> TraceFile {
    let mut positions = vec![FlightPosition::default(); flight.shares().len()];
    let mut intervals = 0;
    loop {
        let goes_on = stopped.recv_timeout(INTERVAL).is_err_and(|error| error.is_timeout());
        for (share, position) in flight.shares().iter().zip(&mut positions) {
            file.take(share, share.read_on(position));
        }
        intervals += 1;
        if intervals % INTERVALS_TO_FLUSH == 0 {
            file.flush();
        }
        if !goes_on {
            break;
        }
    }
    for record in flight.in_flight() {
        file.requests += 1;
        file.write(&Line::Request(record));
    }
    file.flush();
    file
}
