//! Virtio devices on the PCI bus: each gets the next slot, a BAR in the PCI window, MSI-X vectors and ioeventfds, and one
//! that shares memory a second BAR above RAM.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use devices::GuestMem;
use devices::pci::{BarIndex, BarMove, BarMover, PciAddress, PciFunction, PciRoot};
use devices::virtio::pci::{BAR_SIZE, VirtioPciDevice};
use devices::virtio::{DeviceFailure, SharedMemory, VirtioDevice};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use super::address_map::{self, PCI_WINDOW};
use super::guest_memory;
use super::interrupts::InterruptRouter;
use super::shared_memory_slot::SharedMemorySlot;
use super::stopper::Stopper;
use super::vcpu::Buses;
use super::{BuildError, MachineConfig, StopReason};

/// Slots of the bus without the host bridge.
pub const MAX_DEVICES: usize = PciAddress::DEVICES as usize - 1;

/// A device as the bus, the PCI root and the machine's teardown share it.
pub type SharedVirtioDevice = Arc<Mutex<VirtioPciDevice>>;

/// What every device is wired to, and the devices wired so far.
pub struct PciDevices {
    vm: Arc<VmFd>,
    memory: GuestMem,
    /// `memory` with every device's shared memory.
    buffers: GuestMem,
    router: Arc<InterruptRouter>,
    buses: Arc<Buses>,
    stopper: Arc<Stopper>,
    /// Where BARs of shared memory go.
    window: Range<u64>,
    shared_memory: Vec<Arc<dyn SharedMemory>>,
    root: PciRoot,
    devices: Vec<SharedVirtioDevice>,
}

/// All devices, wired.
pub struct PciBus {
    /// For the port bus.
    pub root: PciRoot,
    /// For the teardown.
    pub devices: Vec<SharedVirtioDevice>,
    /// What of the devices the guest sees as memory.
    pub shared_memory: Vec<Arc<dyn SharedMemory>>,
}

/// Where the machine's shares have their DAX windows; empty if they have none.
#[must_use]
pub fn shared_memory_window(config: &MachineConfig) -> Range<u64> {
    let size = config.share_settings.dax_window;
    if size == 0 {
        return 0..0;
    }
    let bytes = config.memory_mib * address_map::MIB;
    address_map::shared_memory_window(bytes, config.shares.len() as u64, size.next_power_of_two())
}

impl PciDevices {
    /// An empty bus whose BARs of shared memory go to `window`.
    #[must_use]
    pub(super) fn new(
        vm: Arc<VmFd>,
        memory: GuestMem,
        router: Arc<InterruptRouter>,
        buses: Arc<Buses>,
        stopper: Arc<Stopper>,
        window: Range<u64>,
    ) -> Self {
        let buffers = GuestMem::from(memory.memory().into_inner());
        let (root, devices, shared_memory) = (PciRoot::new(), Vec::new(), Vec::new());
        Self { vm, memory, buffers, router, buses, stopper, window, shared_memory, root, devices }
    }

    /// Puts `device` into the next slot.
    ///
    /// # Errors
    /// No slot, eventfd or GSI is left, or KVM refuses.
    pub fn add(&mut self, device: Box<dyn VirtioDevice>) -> Result<(), BuildError> {
        let name = device.name().to_owned();
        let failed = |reason: String| BuildError::Device { device: name.clone(), reason };
        let slot = self.devices.len() + 1;
        let address = u8::try_from(slot).ok().and_then(PciAddress::new).ok_or(BuildError::TooManyDevices(slot))?;
        let vectors = self
            .router
            .msi_vectors(VirtioPciDevice::vector_count(device.as_ref()))
            .map_err(|e| failed(format!("no interrupts: {e}")))?;
        let stopper = self.stopper.clone();
        let on_failure = Arc::new(move |failure: DeviceFailure| stopper.stop(StopReason::DeviceFailed(failure)));
        let shared = device.shared_memory();
        let (memory, buffers) = (self.memory.clone(), self.buffers.clone());
        let mut device = VirtioPciDevice::new(device, memory, buffers, vectors, on_failure)
            .map_err(|e| BuildError::device(&name, &e))?;
        let base = PCI_WINDOW.start + (slot as u64 - 1) * BAR_SIZE;
        device.set_bar_base(base);
        let notify = device.notify_events().map_err(|e| failed(format!("no eventfd: {e}")))?;
        let shared = match shared {
            Some(shared) => {
                let slot = self.place_shared_memory(shared).map_err(|e| failed(format!("no DAX window: {e}")))?;
                device.set_shared_memory_base(slot.base());
                Some(slot)
            }
            None => None,
        };
        let mover = Mover { vm: self.vm.clone(), buses: Arc::downgrade(&self.buses), notify, shared };
        mover.register(base).map_err(|e| failed(format!("KVM refuses an ioeventfd: {e}")))?;

        let device: SharedVirtioDevice = Arc::new(Mutex::new(device));
        self.buses.memory.insert(base..base + BAR_SIZE, device.clone()).map_err(|e| failed(e.to_string()))?;
        let function: Arc<Mutex<dyn PciFunction>> = device.clone();
        self.root.add(address, function, Arc::new(mover)).map_err(|e| failed(e.to_string()))?;
        self.devices.push(device);
        Ok(())
    }

    /// Makes `shared` memory of the guest at the next free place of the window.
    fn place_shared_memory(&mut self, shared: Arc<dyn SharedMemory>) -> io::Result<SharedMemorySlot> {
        let size = shared.size().next_power_of_two();
        let base = self.shared_memory.len() as u64 * size + self.window.start;
        let slot = guest_memory::FIRST_SHARED_SLOT + self.shared_memory.len() as u32;
        self.shared_memory.push(shared.clone());
        SharedMemorySlot::new(self.vm.clone(), self.buffers.clone(), shared, slot, base, self.window.clone())
    }

    /// Everything that was made.
    #[must_use]
    pub fn finish(self) -> PciBus {
        PciBus { root: self.root, devices: self.devices, shared_memory: self.shared_memory }
    }
}

/// Stops the workers of every device.
pub fn reset_all(devices: &[SharedVirtioDevice]) {
    for device in devices {
        device.lock().unwrap_or_else(PoisonError::into_inner).reset();
    }
}

/// Moves one device's BAR when the guest does.
struct Mover {
    vm: Arc<VmFd>,
    /// Which hold the root bus, and that this: none of it would ever be freed. As long as a vCPU runs they are there.
    buses: Weak<Buses>,
    /// Offset in the BAR and event of each queue's notification address.
    notify: Vec<(u64, EventFd)>,
    /// The second BAR.
    shared: Option<SharedMemorySlot>,
}

impl Mover {
    fn register(&self, base: u64) -> io::Result<()> {
        for (offset, event) in &self.notify {
            self.vm.register_ioevent(event, &IoEventAddress::Mmio(base + offset), NoDatamatch)?;
        }
        Ok(())
    }

    fn unregister(&self, base: u64) -> io::Result<()> {
        for (offset, event) in &self.notify {
            self.vm.unregister_ioevent(event, &IoEventAddress::Mmio(base + offset), NoDatamatch)?;
        }
        Ok(())
    }
}

impl BarMover for Mover {
    fn move_bar(&self, _address: PciAddress, bar: BarMove) -> io::Result<()> {
        if bar.bar == BarIndex::SharedMemory {
            return self.shared.as_ref().map_or(Ok(()), |slot| slot.move_to(bar.new));
        }
        let end = bar.new.checked_add(bar.size);
        if bar.new < PCI_WINDOW.start || end.is_none_or(|end| end > PCI_WINDOW.end) {
            return Err(io::Error::other("it lies outside the PCI window"));
        }
        let Some(buses) = self.buses.upgrade() else { return Ok(()) };
        buses.memory.relocate(bar.old, bar.new).map_err(io::Error::other)?;
        // A kick that finds no ioeventfd reaches the device through the bus: slower, not lost.
        self.unregister(bar.old).and_then(|()| self.register(bar.new)).inspect_err(|_| {
            // The driver finds the BAR where it was. What cannot be undone costs speed only, see above.
            let _ = self.unregister(bar.new);
            let _ = buses.memory.relocate(bar.new, bar.old);
            let _ = self.register(bar.old);
        })
    }
}
