//! A guest's view of one function: configuration space by capability, registers by name.

use std::sync::{Arc, Mutex};

use crate::GuestMem;
use crate::bus::BusDevice;
use crate::pci::PciFunction;
use crate::pci::msi::recording::RecordingVectors;
use crate::virtio::pci::VirtioPciDevice;
use crate::virtio::test_support::FakeDriver;
use crate::virtio::{ActivateError, Activation, DeviceFailure, DeviceType, VirtioDevice};

pub(super) const VERSION_1: u64 = 1 << 32;
pub(super) const EVENT_IDX: u64 = 1 << 29;
pub(super) const ACKNOWLEDGE: u8 = 1;
pub(super) const DRIVER: u8 = 3;
pub(super) const FEATURES_OK: u8 = 11;
pub(super) const DRIVER_OK: u8 = 15;
pub(super) const NEEDS_RESET: u8 = 64;

/// What a [`Probe`] saw.
#[derive(Default)]
pub(super) struct ProbeLog {
    pub(super) activation: Option<Activation>,
    pub(super) activations: usize,
    pub(super) resets: usize,
    pub(super) config_writes: Vec<(u64, Vec<u8>)>,
    pub(super) refuse: bool,
}

/// A device that does nothing but remember: queues of 8 and 4 entries, feature bits 0, 5 and EVENT_IDX.
pub(super) struct Probe {
    pub(super) log: Arc<Mutex<ProbeLog>>,
    pub(super) queue_sizes: Vec<u16>,
}

impl VirtioDevice for Probe {
    fn name(&self) -> &str {
        "probe"
    }
    fn device_type(&self) -> DeviceType {
        DeviceType::Fs
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }
    fn device_features(&self) -> u64 {
        0x21 | EVENT_IDX
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = if at < 4 { 0xc0 + at as u8 } else { 0 };
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.log.lock().unwrap().config_writes.push((offset, data.to_vec()));
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut log = self.log.lock().unwrap();
        if log.refuse {
            return Err(ActivateError::Worker(std::io::Error::other("told to refuse")));
        }
        if !activation.queues.iter().any(|queue| queue.index == 0) {
            return Err(ActivateError::MissingQueue(0));
        }
        assert!(log.activation.is_none(), "activated twice without a reset");
        log.activations += 1;
        log.activation = Some(activation);
        Ok(())
    }
    fn reset(&mut self) {
        let mut log = self.log.lock().unwrap();
        log.resets += 1;
        log.activation = None;
    }
}

pub(super) struct Guest {
    pub(super) device: VirtioPciDevice,
    pub(super) driver: FakeDriver,
    pub(super) vectors: Arc<RecordingVectors>,
    pub(super) failures: Arc<Mutex<Vec<DeviceFailure>>>,
}

impl Guest {
    pub(super) fn with_probe() -> (Self, Arc<Mutex<ProbeLog>>) {
        let log = Arc::new(Mutex::new(ProbeLog::default()));
        let probe = Probe { log: log.clone(), queue_sizes: vec![8, 4] };
        (Self::new(Box::new(probe), FakeDriver::new(&[8, 4])), log)
    }

    /// `device`, with the memory of `driver` and its memory bit set.
    pub(super) fn new(device: Box<dyn VirtioDevice>, driver: FakeDriver) -> Self {
        let vectors = Arc::new(RecordingVectors::default());
        let failures = Arc::new(Mutex::new(Vec::new()));
        let seen = failures.clone();
        let on_failure = Arc::new(move |failure| seen.lock().unwrap().push(failure));
        let memory: GuestMem = driver.memory().clone();
        let mut device = VirtioPciDevice::new(device, memory.clone(), memory, vectors.clone(), on_failure).unwrap();
        device.write_config(4, &[6, 0]);
        Guest { device, driver, vectors, failures }
    }

    pub(super) fn config<const N: usize>(&mut self, offset: usize) -> [u8; N] {
        let mut data = [0; N];
        for (at, byte) in data.iter_mut().enumerate() {
            self.device.read_config(offset + at, std::slice::from_mut(byte));
        }
        data
    }

    /// Every capability, as (offset, id).
    pub(super) fn capabilities(&mut self) -> Vec<(usize, u8)> {
        let [mut next] = self.config::<1>(0x34);
        let mut found = Vec::new();
        while next != 0 {
            let [id, following] = self.config::<2>(next.into());
            found.push((next.into(), id));
            assert!(found.len() < 20, "the capability list is a loop");
            next = following;
        }
        found
    }

    /// Offset in configuration space of the virtio capability of this type.
    pub(super) fn virtio_capability(&mut self, cfg_type: u8) -> usize {
        let all = self.capabilities();
        let vendor = all.into_iter().filter(|(_, id)| *id == 9).map(|(offset, _)| offset);
        vendor.into_iter().find(|offset| self.config::<1>(offset + 3) == [cfg_type]).unwrap()
    }

    /// Offset in the BAR of the structure of this type.
    pub(super) fn structure(&mut self, cfg_type: u8) -> u64 {
        let capability = self.virtio_capability(cfg_type);
        u32::from_le_bytes(self.config(capability + 8)).into()
    }

    pub(super) fn read<const N: usize>(&mut self, offset: u64) -> [u8; N] {
        let mut data = [0xee; N];
        self.device.read(offset, &mut data);
        data
    }

    /// A register of common configuration, zero-extended.
    pub(super) fn common(&mut self, register: u64, len: usize) -> u64 {
        let at = self.structure(1) + register;
        let mut data = [0; 8];
        self.device.read(at, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    pub(super) fn set_common(&mut self, register: u64, len: usize, value: u64) {
        let at = self.structure(1) + register;
        self.device.write(at, &value.to_le_bytes()[..len]);
    }

    pub(super) fn status(&mut self) -> u8 {
        self.common(0x14, 1) as u8
    }

    /// Writes the status register and returns what it then shows.
    pub(super) fn set_status(&mut self, status: u8) -> u8 {
        self.set_common(0x14, 1, status.into());
        self.status()
    }

    pub(super) fn offered(&mut self) -> u64 {
        self.set_common(0, 4, 0);
        let low = self.common(4, 4);
        self.set_common(0, 4, 1);
        low | self.common(4, 4) << 32
    }

    pub(super) fn accept(&mut self, features: u64) {
        for half in 0..2 {
            self.set_common(8, 4, half);
            self.set_common(0xc, 4, features >> (32 * half) & 0xffff_ffff);
        }
    }

    /// Sets queue `index` up with the fake driver's rings, and enables it.
    pub(super) fn set_up_queue(&mut self, index: u16) {
        let queue = self.driver.queue(index);
        let (size, desc, avail, used) = (queue.size(), queue.desc_table, queue.avail_ring, queue.used_ring);
        self.set_common(0x16, 2, index.into());
        self.set_common(0x18, 2, size.into());
        for (register, address) in [(0x20, desc), (0x28, avail), (0x30, used)] {
            self.set_common(register, 4, address.0 & 0xffff_ffff);
            self.set_common(register + 4, 4, address.0 >> 32);
        }
        self.set_common(0x1c, 2, 1);
    }

    /// Up to FEATURES_OK.
    pub(super) fn negotiate(&mut self, features: u64) {
        self.set_status(0);
        self.set_status(ACKNOWLEDGE);
        self.set_status(DRIVER);
        self.accept(features);
        assert_eq!(self.set_status(FEATURES_OK), FEATURES_OK);
    }

    /// All the way to DRIVER_OK with every queue of the fake driver in `queues`.
    pub(super) fn bring_up(&mut self, queues: &[u16]) {
        let features = self.offered();
        self.negotiate(features);
        for (offset, event) in self.device.notify_events().unwrap() {
            let index = ((offset - self.structure(2)) / 4) as u16;
            if queues.contains(&index) {
                self.driver.queue(index).set_notify(event);
                self.driver.queue(index).reset();
            }
        }
        for queue in queues {
            self.set_up_queue(*queue);
        }
        self.set_status(DRIVER_OK);
    }

    /// Turns MSI-X on, unmasks every vector with data `100 + vector`, gives queue `i` vector `i + 1`, config vector 0.
    pub(super) fn set_up_msix(&mut self, queues: u16) {
        self.write_msix_control(0x8000);
        for vector in 0..=queues {
            self.device.write(0x4000 + u64::from(vector) * 16 + 8, &u32::from(100 + vector).to_le_bytes());
            self.mask_vector(vector, false);
        }
        self.set_common(0x10, 2, 0);
        for queue in 0..queues {
            self.set_common(0x16, 2, queue.into());
            self.set_common(0x1a, 2, u64::from(queue) + 1);
        }
    }

    pub(super) fn write_msix_control(&mut self, control: u16) {
        let (msix, _) = self.capabilities().into_iter().find(|(_, id)| *id == 0x11).unwrap();
        self.device.write_config(msix + 2, &control.to_le_bytes());
    }

    pub(super) fn mask_vector(&mut self, vector: u16, masked: bool) {
        self.device.write(0x4000 + u64::from(vector) * 16 + 12, &u32::from(masked).to_le_bytes());
    }

    pub(super) fn failures(&self) -> Vec<DeviceFailure> {
        self.failures.lock().unwrap().clone()
    }
}
