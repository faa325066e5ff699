//! The device as the transport sees it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::Arc;

use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::request::SECTOR_SIZE;
use super::worker::BlockWorker;
use crate::event_loop;
use crate::virtio::{ActivateError, Activation, DeviceType, VirtioDevice};
use crate::worker_thread::WorkerThread;

const QUEUE_SIZE: u16 = 256;
/// Data segments of a request: a chain is at most as long as the queue (§ 2.7.5.3.1), two are header and status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE as u32 - 2;

/// Feature bits, § 5.2.3.
const FEATURE_SEG_MAX: u64 = 1 << 2;
const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_BLK_SIZE: u64 = 1 << 6;

/// A read-only disk. The file must not shrink while the device is in use: what is gone then reads as zeros.
pub struct BlockDevice {
    name: String,
    id: String,
    file: Arc<File>,
    sectors: u64,
    worker: Option<WorkerThread>,
}

impl BlockDevice {
    /// Serves `file`, a regular file or block device, as `block[name]`; `name` is also its serial number (the first 20
    /// bytes of it), which the guest finds in `/sys/block/*/serial`. A last sector that is not full is filled up with
    /// zeros.
    ///
    /// # Errors
    /// The length of `file` could not be had.
    pub fn new(mut file: File, name: &str) -> io::Result<Self> {
        let len = file.seek(SeekFrom::End(0))?;
        let sectors = len.div_ceil(SECTOR_SIZE);
        Ok(BlockDevice {
            name: format!("block[{name}]"),
            id: name.to_owned(),
            file: Arc::new(file),
            sectors,
            worker: None,
        })
    }

    /// `struct virtio_blk_config` (§ 5.2.4) up to `blk_size`, which is the last field of a feature offered here.
    fn config(&self) -> Vec<u8> {
        let mut config = self.sectors.to_le_bytes().to_vec();
        let size_max = 0u32;
        config.extend(size_max.to_le_bytes());
        config.extend(SEGMENTS_MAX.to_le_bytes());
        let geometry = [0; 4];
        config.extend(geometry);
        config.extend((SECTOR_SIZE as u32).to_le_bytes());
        config
    }
}

impl VirtioDevice for BlockDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn device_features(&self) -> u64 {
        let ring = 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        FEATURE_SEG_MAX | FEATURE_READ_ONLY | FEATURE_BLK_SIZE | ring
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (out, byte) in data.iter_mut().zip(self.config().into_iter().skip(skip)) {
            *out = byte;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, interrupt, queues, .. } = activation;
        let queue = queues.into_iter().find(|queue| queue.index == 0).ok_or(ActivateError::MissingQueue(0))?;
        let (file, id, sectors) = (self.file.clone(), self.id.clone(), self.sectors);
        let device_interrupt = interrupt.clone();
        let worker = WorkerThread::spawn(&self.name, &self.name, interrupt, move |stop| {
            let mut worker =
                BlockWorker { memory, interrupt: device_interrupt, queue, file, id, sectors, stop: stop.clone() };
            event_loop::run(&stop, &mut worker)
        });
        self.worker = Some(worker.map_err(ActivateError::Worker)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}
