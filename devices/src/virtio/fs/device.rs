//! The virtio-fs device (virtio 1.2 § 5.11).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::constants::{
    CONFIG_SIZE, DAX_RANGE, FIRST_REQUEST_QUEUE, HIPRIO_QUEUE, MAX_DAX_WINDOW, MAX_REQUEST_QUEUES, QUEUE_SIZE,
};
use super::dispatch::FuseServer;
use super::fault::Faults;
use super::passthrough::{DescriptorBudget, PassthroughFs};
use super::polling::Polling;
use super::queue_worker::{QueueWorker, WorkersRecord};
use super::{FlightReader, FsConfig, FsStatsReader, Tag};
use crate::virtio::{ActivateError, Activation, DeviceType, SharedMemory, VirtioDevice};
use crate::worker_thread::WorkerThread;

/// Linux shows this many bytes of a thread's name.
const THREAD_NAME_LEN: usize = 15;

/// Why a share cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The shared directory cannot be opened.
    #[error("failed to open {path:?} to share it as {tag}: it has to be a directory that this user may search")]
    SharedDir {
        /// The directory.
        path: PathBuf,
        /// The share's tag.
        tag: String,
        /// What the host says.
        #[source]
        source: io::Error,
    },
    /// /proc is needed to open what was looked up.
    #[error("failed to open /proc/self/fd: mount /proc")]
    Proc(#[source] io::Error),
    /// The number of request queues is out of range.
    #[error("share {tag} with {queues} request queues: 1 to {MAX_REQUEST_QUEUES} are possible")]
    RequestQueues {
        /// The share's tag.
        tag: String,
        /// How many were asked for.
        queues: u16,
    },
    /// The size of the DAX window is no multiple of 2 MiB or too large.
    #[error("share {tag} with a DAX window of {size} bytes: it is a multiple of {DAX_RANGE} up to {MAX_DAX_WINDOW}")]
    DaxWindowSize {
        /// The share's tag.
        tag: String,
        /// What was asked for.
        size: u64,
    },
    /// No room for the DAX window among the process's addresses, or no thread to watch it.
    #[error("failed to set up a DAX window of {size} bytes for share {tag}")]
    DaxWindow {
        /// The share's tag.
        tag: String,
        /// How many bytes.
        size: u64,
        /// What the host says.
        #[source]
        source: io::Error,
    },
}

impl FsError {
    pub(super) fn share(config: &FsConfig, source: io::Error) -> Self {
        FsError::SharedDir { path: config.shared_dir.clone(), tag: config.tag.to_string(), source }
    }
}

/// A virtio-fs device that serves one directory.
pub struct FsDevice {
    name: String,
    config: FsConfig,
    queue_sizes: Vec<u16>,
    config_space: [u8; CONFIG_SIZE],
    server: Arc<FuseServer>,
    record: WorkersRecord,
    faults: Option<Arc<Faults>>,
    workers: Vec<WorkerThread>,
}

impl FsDevice {
    /// Opens the shared directory. Raises the process's soft limit of open files to the hard one.
    ///
    /// # Errors
    /// See [`FsError`].
    pub fn new(config: FsConfig) -> Result<Self, FsError> {
        Self::with_budget(config, DescriptorBudget::of_process())
    }

    /// [`FsDevice::new`] with a budget of its own for the descriptors that the guest's files cost.
    pub(super) fn with_budget(config: FsConfig, budget: Arc<DescriptorBudget>) -> Result<Self, FsError> {
        let queues = config.request_queues;
        if !(1..=MAX_REQUEST_QUEUES).contains(&queues) {
            return Err(FsError::RequestQueues { tag: config.tag.to_string(), queues });
        }
        let mut config_space = [0; CONFIG_SIZE];
        let fields = config.tag.config_bytes().into_iter().chain(u32::from(queues).to_le_bytes());
        for (to, from) in config_space.iter_mut().zip(fields) {
            *to = from;
        }
        let server = FuseServer::new(&short_name(&config.tag, " slow"), PassthroughFs::new(&config, budget)?);
        #[cfg(feature = "planted-bugs")]
        let server = server.with_bug(config.planted_bug);
        Ok(FsDevice {
            name: format!("fs[{}]", config.tag),
            queue_sizes: vec![QUEUE_SIZE; usize::from(FIRST_REQUEST_QUEUE + queues)],
            config_space,
            server: Arc::new(server),
            faults: Faults::new(&config).map(Arc::new),
            record: WorkersRecord {
                stats: FsStatsReader::new(config.tag.clone(), usize::from(FIRST_REQUEST_QUEUE + queues)),
                flight: FlightReader::new(
                    config.tag.clone(),
                    usize::from(FIRST_REQUEST_QUEUE + queues),
                    config.flight_records,
                ),
            },
            config,
            workers: Vec::new(),
        })
    }

    /// What the device serves.
    pub fn config(&self) -> &FsConfig {
        &self.config
    }

    /// Where to read what it served, now and later.
    pub fn stats(&self) -> FsStatsReader {
        self.record.stats.clone()
    }

    /// Where to read its last requests, now and later.
    pub fn flight(&self) -> FlightReader {
        self.record.flight.clone()
    }

    /// `fs[tag] qN`, with as much of the tag as Linux shows of a name.
    fn thread_name(&self, queue: u16) -> String {
        let suffix = format!(" q{queue}");
        short_name(&self.config.tag, &suffix) + &suffix
    }
}

/// `fs[tag]`, with as much of the tag as leaves room for `suffix` in a thread's name.
fn short_name(tag: &Tag, suffix: &str) -> String {
    let mut name = String::from("fs[");
    for character in tag.as_str().chars() {
        if name.len() + character.len_utf8() + 1 + suffix.len() > THREAD_NAME_LEN {
            break;
        }
        name.push(character);
    }
    name + "]"
}

impl VirtioDevice for FsDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> DeviceType {
        DeviceType::Fs
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn device_features(&self) -> u64 {
        // Without INDIRECT_DESC a 1 MiB request would take a quarter of a queue.
        1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            let at = start.checked_add(index);
            *byte = at.and_then(|at| self.config_space.get(at)).copied().unwrap_or(0);
        }
    }

    fn shared_memory(&self) -> Option<Arc<dyn SharedMemory>> {
        self.server.fs.shared_memory()
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, buffers, interrupt, queues, features: _ } = activation;
        for needed in [HIPRIO_QUEUE, FIRST_REQUEST_QUEUE] {
            if !queues.iter().any(|queue| queue.index == needed) {
                return Err(ActivateError::MissingQueue(needed));
            }
        }
        for active in queues {
            let thread = self.thread_name(active.index);
            let (memory, interrupt, server) = (memory.clone(), interrupt.clone(), self.server.clone());
            let buffers = buffers.clone();
            let (signal, record) = (interrupt.clone(), self.record.clone());
            let (faults, polling) = (self.faults.clone(), Polling::new(self.config.poll));
            let worker = WorkerThread::spawn(&self.name, &thread, interrupt, move |stop| {
                QueueWorker::new(active, (memory, buffers), signal, (server, faults), record, (stop, polling))?.run()
            });
            match worker {
                Ok(worker) => self.workers.push(worker),
                Err(error) => {
                    self.reset();
                    return Err(ActivateError::Worker(error));
                }
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        // All at once, so that the deadlines run together.
        self.workers.iter().for_each(WorkerThread::request_stop);
        self.workers.clear();
        self.server.abandon();
    }
}

impl Drop for FsDevice {
    fn drop(&mut self) {
        self.reset();
    }
}
