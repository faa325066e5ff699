//! A device's shared memory as memory of the guest: a KVM memory slot that follows its BAR, and a region of the memory that
//! data buffers may be in.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use devices::GuestMem;
use devices::virtio::SharedMemory;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestAddressSpace, GuestRegionMmap};

use super::window_guard::WindowGuard;

/// One device's.
pub(super) struct SharedMemorySlot {
    vm: Arc<VmFd>,
    /// Shared by all devices.
    buffers: GuestMem,
    shared: Arc<dyn SharedMemory>,
    slot: u32,
    /// Where it may be.
    window: Range<u64>,
    base: Mutex<u64>,
    _guard: WindowGuard,
}

impl SharedMemorySlot {
    /// Puts `shared` at `base`.
    ///
    /// # Errors
    /// KVM's own.
    pub(super) fn new(
        vm: Arc<VmFd>,
        buffers: GuestMem,
        shared: Arc<dyn SharedMemory>,
        slot: u32,
        base: u64,
        window: Range<u64>,
    ) -> io::Result<Self> {
        let size = usize::try_from(shared.size()).map_err(io::Error::other)?;
        let guard = WindowGuard::new(shared.host_address(), size)?;
        let new = Self { vm, buffers, shared, slot, window, base: Mutex::new(base), _guard: guard };
        new.map(base)?;
        Ok(new)
    }

    /// Where it is.
    pub(super) fn base(&self) -> u64 {
        *self.base.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the BAR to `new`.
    ///
    /// # Errors
    /// It lies outside the window, or KVM refuses (another device's is there). Everything is then as before.
    pub(super) fn move_to(&self, new: u64) -> io::Result<()> {
        let end = new.checked_add(self.shared.size());
        if new < self.window.start || end.is_none_or(|end| end > self.window.end) {
            return Err(io::Error::other("it lies outside the PCI window for shared memory"));
        }
        let mut base = self.base.lock().unwrap_or_else(PoisonError::into_inner);
        self.unmap(*base)?;
        self.map(new).inspect_err(|_| {
            if let Err(error) = self.map(*base) {
                tracing::error!("the guest has lost its shared memory at {:#x}: {error}", *base);
            }
        })?;
        *base = new;
        Ok(())
    }

    fn map(&self, base: u64) -> io::Result<()> {
        self.set_slot(base, self.shared.size())?;
        let size = usize::try_from(self.shared.size()).map_err(io::Error::other)?;
        // SAFETY: the range is reserved as long as `shared` lives. The device that it belongs to has it, and outlives its
        // workers, who use the region; so has every vCPU's thread.
        let builder = unsafe { MmapRegionBuilder::new(size).with_raw_mmap_pointer(self.shared.host_address()) };
        let region = builder.build().map_err(io::Error::other)?;
        let region = GuestRegionMmap::new(region, GuestAddress(base)).ok_or_else(|| io::Error::other("past 2^64"))?;
        let with = self.buffers.memory().insert_region(Arc::new(region)).map_err(io::Error::other)?;
        self.replace_buffers(with);
        Ok(())
    }

    fn unmap(&self, base: u64) -> io::Result<()> {
        self.set_slot(base, 0)?;
        let without = self.buffers.memory().remove_region(GuestAddress(base), self.shared.size());
        let (without, _) = without.map_err(io::Error::other)?;
        self.replace_buffers(without);
        Ok(())
    }

    fn replace_buffers(&self, memory: vm_memory::GuestMemoryMmap) {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).replace(memory);
    }

    /// With a size of 0 the slot is removed.
    fn set_slot(&self, base: u64, size: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot: self.slot,
            flags: 0,
            guest_phys_addr: base,
            memory_size: size,
            userspace_addr: self.shared.host_address().addr() as u64,
        };
        // SAFETY: as in `map`; the slot is this object's.
        Ok(unsafe { self.vm.set_user_memory_region(region) }?)
    }
}
