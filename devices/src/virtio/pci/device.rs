//! A virtio device as a PCI function: ties the registers to the device behind them.

use std::io;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::capabilities::{Capabilities, PciConfigWindow};
use super::common_config::{CommonConfig, Effect};
use super::device_status::{self, DEVICE_NEEDS_RESET, DRIVER_OK, FAILED, FEATURES_OK, Step};
use super::layout::{BAR_SIZE, MAX_QUEUES, NOTIFY, NOTIFY_OFF_MULTIPLIER, Region};
use super::transport_interrupt::{OnFailure, TransportInterrupt};
use crate::GuestMem;
use crate::bus::BusDevice;
use crate::pci::msi::MsiVectors;
use crate::pci::{
    BarIndex, BarMove, COMMAND_MEMORY_SPACE, ConfigSpace, Header, MemoryBar, Msix, PciError, PciFunction,
};
use crate::virtio::{Activation, ActiveQueue, DeviceType, VirtioDevice};

/// Vendor of every virtio device (virtio 1.2 § 4.1.2).
const VENDOR: u16 = 0x1af4;
/// Device id of type 0 (§ 4.1.2).
const DEVICE_BASE: u16 = 0x1040;
/// Non-transitional devices have revision 1 and a subsystem id of 0x40 or more (§ 4.1.2.1).
const REVISION: u8 = 1;
const SUBSYSTEM: u16 = 0x40;

/// Why a device cannot be put behind the transport.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// More queues than [`MAX_QUEUES`].
    #[error("{device} has {queues} queues, more than the {MAX_QUEUES} that its MSI-X table has room for")]
    TooManyQueues {
        /// The device's name.
        device: String,
        /// How many it wants.
        queues: usize,
    },
    /// The capabilities do not fit.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// No eventfd for a queue's notifications.
    #[error("failed to make an eventfd for a queue of {device}; raise the limit on open files (ulimit -n)")]
    EventFd {
        /// The device's name.
        device: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A [`VirtioDevice`] behind the PCI transport. As a [`PciFunction`] it answers configuration access, as a
/// [`BusDevice`] accesses to its BAR; the VMM shares it between both behind a mutex. Workers never take that mutex.
pub struct VirtioPciDevice {
    device: Box<dyn VirtioDevice>,
    memory: GuestMem,
    buffers: GuestMem,
    config: ConfigSpace,
    capabilities: Capabilities,
    bar: MemoryBar,
    shared_memory_bar: Option<MemoryBar>,
    common: CommonConfig,
    interrupt: Arc<TransportInterrupt>,
    notify: Vec<EventFd>,
    /// The device was activated and not reset since.
    active: bool,
    /// A refusal or a failure of the driver was logged: a guest must not be able to fill the log.
    warned: bool,
}

impl VirtioPciDevice {
    /// MSI-X vectors of the function for `device`: one per queue and one for configuration changes. `MsiVectors` given
    /// to [`VirtioPciDevice::new`] must have as many.
    pub fn vector_count(device: &dyn VirtioDevice) -> u16 {
        u16::try_from(device.queue_max_sizes().len()).map_or(u16::MAX, |queues| queues.saturating_add(1))
    }

    /// Puts `device` behind the transport. `memory` and `buffers` are what [`Activation`] says. `on_failure` is called at most once between two resets, from any thread; it
    /// must not wait for a vCPU.
    ///
    /// # Errors
    /// See [`SetupError`].
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMem,
        buffers: GuestMem,
        vectors: Arc<dyn MsiVectors>,
        on_failure: OnFailure,
    ) -> Result<Self, SetupError> {
        let name = device.name().to_owned();
        let sizes = device.queue_max_sizes();
        let queues = sizes.len();
        if queues > MAX_QUEUES {
            return Err(SetupError::TooManyQueues { device: name, queues });
        }
        let new_event = |_: &u16| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let notify = sizes.iter().map(new_event).collect::<io::Result<Vec<_>>>();
        let notify = notify.map_err(|source| SetupError::EventFd { device: name.clone(), source })?;
        let vector_count = Self::vector_count(device.as_ref());
        let mut config = ConfigSpace::new(&header(device.device_type()));
        config.add_register_bar(BAR_SIZE);
        let shared_memory = device.shared_memory();
        let shared_memory_bar = shared_memory.as_ref().map(|shared| {
            let size = shared.size().next_power_of_two();
            config.add_shared_memory_bar(size);
            MemoryBar::new(BarIndex::SharedMemory, size)
        });
        let shared_memory = shared_memory.map(|shared| (shared.id(), shared.size()));
        let capabilities = Capabilities::add(&mut config, queues as u32, vector_count, shared_memory)?;
        let msix = Msix::new(vectors, vector_count);
        let interrupt = Arc::new(TransportInterrupt::new(&name, msix, queues, on_failure));
        let common = CommonConfig::new(device.device_features(), sizes);
        let bar = MemoryBar::new(BarIndex::Registers, BAR_SIZE);
        let (active, warned) = (false, false);
        Ok(VirtioPciDevice {
            device,
            memory,
            buffers,
            config,
            capabilities,
            bar,
            shared_memory_bar,
            common,
            interrupt,
            notify,
            active,
            warned,
        })
    }

    /// Puts the BAR at `base`, a multiple of [`BAR_SIZE`], before the guest starts. The VMM's range on the MMIO bus and
    /// ioeventfds have to be there too.
    pub fn set_bar_base(&mut self, base: u64) {
        self.config.set_bar_base(BarIndex::Registers, base);
        self.bar.set_base(base);
    }

    /// Puts the BAR of the device's shared memory at `base`, a multiple of its size. The memory itself has to be there
    /// too.
    pub fn set_shared_memory_base(&mut self, base: u64) {
        if let Some(bar) = &mut self.shared_memory_bar {
            self.config.set_bar_base(BarIndex::SharedMemory, base);
            bar.set_base(base);
        }
    }

    /// Where the BAR is now.
    pub fn bar_base(&self) -> u64 {
        self.bar.base()
    }

    /// A notification address per queue, as offset in the BAR, with the eventfd that a write of any width and value to
    /// it has to signal. A write that reaches [`BusDevice::write`] instead does the same.
    ///
    /// # Errors
    /// The eventfd could not be duplicated.
    pub fn notify_events(&self) -> io::Result<Vec<(u64, EventFd)>> {
        let step = u64::from(NOTIFY_OFF_MULTIPLIER);
        (0u64..).zip(&self.notify).map(|(queue, event)| Ok((NOTIFY + queue * step, event.try_clone()?))).collect()
    }

    /// Stops the device's workers, for the machine's teardown. As a reset by the guest.
    pub fn reset(&mut self) {
        if self.active {
            self.device.reset();
            self.active = false;
        }
        self.common.reset();
        self.interrupt.reset();
        for event in &self.notify {
            // A kick that nobody took belongs to the time before the reset. None there is no error.
            drop(event.read());
        }
    }

    fn status(&self) -> u8 {
        let needs_reset = if self.interrupt.needs_reset() { DEVICE_NEEDS_RESET } else { 0 };
        self.common.status | needs_reset
    }

    fn write_status(&mut self, written: u8) {
        if written == 0 {
            return self.reset();
        }
        for step in device_status::steps(self.common.status, written) {
            match step {
                Step::Set(bit) => {
                    self.common.status |= bit;
                    if bit == FAILED {
                        self.warn_once("the guest's driver gave the device up");
                    }
                }
                Step::CheckFeatures if self.common.features_acceptable() => self.common.status |= FEATURES_OK,
                // The driver reads back that the bit is not set (§ 3.1.1, step 6), and must not go on.
                Step::CheckFeatures => {
                    let (accepted, offered) = (self.common.accepted, self.common.offered);
                    return self.warn_once(&format!("features {accepted:#x} of {offered:#x} refused to the driver"));
                }
                Step::Start => self.start(),
            }
        }
    }

    fn warn_once(&mut self, what: &str) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!("{}: {what}", self.device.name());
        }
    }

    /// DRIVER_OK. After a failure of set-up the device stays still until it is reset.
    fn start(&mut self) {
        self.common.status |= DRIVER_OK;
        self.interrupt.set_driver_ok();
        if self.active || self.interrupt.needs_reset() {
            return;
        }
        let queues = match self.active_queues() {
            Ok(queues) => queues,
            Err(error) => return self.interrupt.fail_for(format!("failed to copy a queue's eventfd: {error}")),
        };
        let features = self.common.accepted;
        let interrupt = self.interrupt.clone();
        let (memory, buffers) = (self.memory.clone(), self.buffers.clone());
        match self.device.activate(Activation { memory, buffers, interrupt, queues, features }) {
            Ok(()) => self.active = true,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                self.interrupt.fail_for(format!("failed to start: {error}{cause}"));
            }
        }
    }

    fn active_queues(&self) -> io::Result<Vec<ActiveQueue>> {
        let event_idx = self.common.accepted & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = Vec::new();
        for ((index, config), notify) in (0u16..).zip(&self.common.queues).zip(&self.notify) {
            if let Some(queue) = config.enabled.then(|| config.to_queue(event_idx)).flatten() {
                queues.push(ActiveQueue { index, queue, notify: notify.try_clone()? });
            }
        }
        Ok(queues)
    }

    fn enable_queue(&mut self, index: u16) {
        let status = self.common.status;
        let Some(queue) = self.common.queues.get_mut(usize::from(index)) else { return };
        // Enabled twice, before features are settled or after the device started: the driver is wrong, and the queue
        // stays as it is (§ 4.1.4.3.2, § 3.1.1).
        if queue.enabled || status & (FEATURES_OK | DRIVER_OK) != FEATURES_OK {
            return tracing::debug!("enable of queue {index} ignored in status {status:#x}");
        }
        match queue.check(&self.memory.memory()) {
            Ok(()) => queue.enabled = true,
            Err(bad) => self.interrupt.fail_for(format!("the driver set queue {index} up wrongly: {bad}")),
        }
    }

    fn notify(&self, offset: u64) {
        let queue = usize::try_from(offset / u64::from(NOTIFY_OFF_MULTIPLIER)).unwrap_or(usize::MAX);
        if let Some(Err(error)) = self.notify.get(queue).map(|event| event.write(1)) {
            // The counter is full, so the worker has not taken a kick in a while and still will.
            tracing::debug!("{}: kick of queue {queue} not counted: {error}", self.device.name());
        }
    }

    fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match Region::of(offset) {
            Region::CommonConfig(offset) => self.common.read(&self.interrupt, self.status(), offset, data),
            Region::Isr(0) => {
                if let Some(first) = data.first_mut() {
                    *first = self.interrupt.take_isr();
                }
            }
            Region::DeviceConfig(offset) => self.device.read_config(offset, data),
            Region::MsixTable(offset) => self.interrupt.msix().read_table(offset, data),
            Region::MsixPending(offset) => self.interrupt.msix().read_pending(offset, data),
            Region::Isr(_) | Region::Notify(_) | Region::Nothing => {}
        }
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) {
        match Region::of(offset) {
            Region::CommonConfig(offset) => match self.common.write(&self.interrupt, offset, data) {
                Effect::None => {}
                Effect::Status(written) => self.write_status(written),
                Effect::EnableQueue(index) => self.enable_queue(index),
            },
            Region::DeviceConfig(offset) => self.device.write_config(offset, data),
            Region::Notify(offset) => self.notify(offset),
            Region::MsixTable(offset) => {
                let routed = self.interrupt.msix().write_table(offset, data);
                self.check_routed(routed);
            }
            Region::Isr(_) | Region::MsixPending(_) | Region::Nothing => {}
        }
    }

    fn check_routed(&self, routed: io::Result<()>) {
        if let Err(error) = routed {
            self.interrupt.fail_for(format!("failed to route an MSI-X vector: {error}"));
        }
    }

    fn memory_space_enabled(&self) -> bool {
        self.config.command() & COMMAND_MEMORY_SPACE != 0
    }
}

impl BusDevice for VirtioPciDevice {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if self.memory_space_enabled() { self.read_bar(offset, data) } else { data.fill(0xff) }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if self.memory_space_enabled() {
            self.write_bar(offset, data);
        }
    }
}

impl PciFunction for VirtioPciDevice {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        // `pci_cfg_data` is a window into the BAR: reading it reads there (§ 4.1.4.9).
        if let Some(PciConfigWindow { offset: at, len }) = self.capabilities.pci_config_window(&self.config, offset) {
            let mut value = [0; 4];
            if let Some(value) = value.get_mut(..len) {
                self.read_bar(at, value);
            }
            self.config.write(offset & !3, &value);
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) -> Vec<BarMove> {
        self.config.write(offset, data);
        if let Some(control) = self.capabilities.written_msix_control(&self.config, offset, data.len()) {
            let routed = self.interrupt.msix().write_control(control);
            self.check_routed(routed);
        }
        if let Some(PciConfigWindow { offset: at, len }) = self.capabilities.pci_config_window(&self.config, offset) {
            let value: [u8; 4] = self.config.get(offset & !3);
            if let Some(value) = value.get(..len) {
                self.write_bar(at, value);
            }
        }
        let bars = std::iter::once(&mut self.bar).chain(&mut self.shared_memory_bar);
        bars.filter_map(|bar| bar.pending_move(&self.config)).collect()
    }

    fn bar_moved(&mut self, bar: BarIndex, base: u64) {
        match (bar, &mut self.shared_memory_bar) {
            (BarIndex::Registers, _) => self.bar.set_base(base),
            (BarIndex::SharedMemory, Some(bar)) => bar.set_base(base),
            (BarIndex::SharedMemory, None) => {}
        }
    }
}

fn header(device_type: DeviceType) -> Header {
    // PCI 3.0 appendix D. Drivers bind by vendor and device id; the class is for people who run lspci.
    let class = match device_type {
        DeviceType::Block => 0x01_00_00,
        DeviceType::Vsock => 0x07_80_00,
        DeviceType::Fs => 0x01_80_00,
    };
    let device = DEVICE_BASE + device_type as u16;
    Header { vendor: VENDOR, device, revision: REVISION, class, subsystem_vendor: VENDOR, subsystem: SUBSYSTEM }
}
