//! The root bus: configuration access through ports 0xcf8..0xcff (mechanism #1, PCI 3.0 § 3.2.2.3.2) and the host
//! bridge at 0000:00:00.0.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{BarIndex, BarMove, BarMover, ConfigSpace, Header, PciAddress, PciError, PciFunction};
use crate::bus::BusDevice;

/// CONFIG_DATA, counted from CONFIG_ADDRESS (0xcf8).
const DATA_PORT: u64 = 4;
const ENABLE: u32 = 1 << 31;

/// Bus 0 with its functions. Answers the eight ports from 0xcf8; `offset` 0 is port 0xcf8.
///
/// CONFIG_ADDRESS takes aligned 4-byte accesses only, as on hardware: Linux probes the mechanism with a byte write to
/// 0xcfb that must not change it. CONFIG_DATA takes 1, 2 and 4 bytes.
pub struct PciRoot {
    config_address: u32,
    functions: Vec<(PciAddress, Slot)>,
}

struct Slot {
    function: Arc<Mutex<dyn PciFunction>>,
    mover: Option<Arc<dyn BarMover>>,
    /// A refused move was logged: a guest must not be able to fill the log.
    warned: bool,
}

impl PciRoot {
    /// A bus with nothing but the host bridge.
    pub fn new() -> Self {
        let bridge = Slot { function: Arc::new(Mutex::new(HostBridge::new())), mover: None, warned: false };
        PciRoot { config_address: 0, functions: vec![(PciAddress::HOST_BRIDGE, bridge)] }
    }

    /// Puts a function on the bus. `mover` is told when the guest moves its BAR.
    ///
    /// # Errors
    /// [`PciError::AddressTaken`].
    pub fn add(
        &mut self,
        address: PciAddress,
        function: Arc<Mutex<dyn PciFunction>>,
        mover: Arc<dyn BarMover>,
    ) -> Result<(), PciError> {
        if self.functions.iter().any(|(taken, _)| *taken == address) {
            return Err(PciError::AddressTaken(address));
        }
        self.functions.push((address, Slot { function, mover: Some(mover), warned: false }));
        Ok(())
    }

    /// The function that CONFIG_ADDRESS selects.
    fn selected(&mut self) -> Option<&mut (PciAddress, Slot)> {
        let address = self.config_address;
        let (bus, function) = ((address >> 16) & 0xff, (address >> 8) & 7);
        if address & ENABLE == 0 || bus != 0 || function != 0 {
            return None;
        }
        let device = (address >> 11) & 0x1f;
        self.functions.iter_mut().find(|(at, _)| u32::from(at.device()) == device)
    }

    /// Offset in configuration space and number of bytes of an access to CONFIG_DATA; none if it does not start there.
    fn config_range(&self, offset: u64, len: usize) -> Option<(usize, usize)> {
        let byte = usize::try_from(offset.checked_sub(DATA_PORT)?).ok().filter(|byte| *byte < 4)?;
        Some(((self.config_address & 0xfc) as usize + byte, len.min(4 - byte)))
    }
}

impl Default for PciRoot {
    fn default() -> Self {
        Self::new()
    }
}

impl BusDevice for PciRoot {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.config_address.to_le_bytes());
        } else if let Some((register, len)) = self.config_range(offset, data.len())
            && let Some((_, slot)) = self.selected()
            && let Some(data) = data.get_mut(..len)
        {
            lock(&slot.function).read_config(register, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 {
            if let Ok(address) = data.try_into() {
                // Bits 30:24 and 1:0 are reserved and read as zero.
                self.config_address = u32::from_le_bytes(address) & 0x80ff_fffc;
            }
        } else if let Some((register, len)) = self.config_range(offset, data.len())
            && let Some((address, slot)) = self.selected()
            && let Some(data) = data.get(..len)
        {
            // The function's lock is free again when the VMM moves the BAR: see `BarMover::move_bar`.
            let moved = lock(&slot.function).write_config(register, data);
            let Some(mover) = &slot.mover else { return };
            for bar in moved {
                match mover.move_bar(*address, bar) {
                    Ok(()) => lock(&slot.function).bar_moved(bar.bar, bar.new),
                    Err(error) if !slot.warned => {
                        slot.warned = true;
                        tracing::warn!("BAR of {address} stays at {:#x}, not {:#x}: {error}", bar.old, bar.new);
                    }
                    Err(_) => {}
                }
            }
        }
    }
}

fn lock(function: &Arc<Mutex<dyn PciFunction>>) -> MutexGuard<'_, dyn PciFunction + 'static> {
    function.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A function whose class tells Linux that configuration access works (`pci_sanity_check`). Nothing else in it.
struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    fn new() -> Self {
        // Red Hat's generic host bridge: no quirk of any guest kernel is bound to it. Class 06 00: host bridge.
        let (vendor, device) = (0x1b36, 0x0008);
        let class = 0x06_00_00;
        let config =
            ConfigSpace::new(&Header { vendor, device, revision: 0, class, subsystem_vendor: 0, subsystem: 0 });
        HostBridge { config }
    }
}

impl PciFunction for HostBridge {
    fn read_config(&mut self, offset: usize, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) -> Vec<BarMove> {
        self.config.write(offset, data);
        Vec::new()
    }

    fn bar_moved(&mut self, _bar: BarIndex, _base: u64) {}
}

#[cfg(test)]
mod tests;
