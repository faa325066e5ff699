//! PCI: one root bus with type-1 configuration access, memory BARs and MSI-X. No INTx, no bridges, no hotplug.
//!
//! A function on the bus is a [`PciFunction`]. It owns a [`ConfigSpace`]; a BAR that the guest moves is reported as a
//! [`BarMove`], which [`PciRoot`] hands to the VMM's [`BarMover`] with no lock of the function held.

mod address;
mod config_space;
mod memory_bar;
pub mod msi;
mod msix;
mod root_bus;

use std::io;

pub use address::PciAddress;
pub use config_space::{BarIndex, COMMAND_MEMORY_SPACE, CONFIG_SPACE_SIZE, ConfigSpace, Header};
pub use memory_bar::MemoryBar;
pub use msix::{Msix, NO_VECTOR};
pub use root_bus::PciRoot;

/// What can go wrong while the bus is put together. None of it is the guest's doing.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// Two functions at one address.
    #[error("PCI address {0} is taken already")]
    AddressTaken(PciAddress),
    /// The function's capabilities need more than the 192 bytes behind the header.
    #[error("no room for capability {id:#04x} of {len} bytes in PCI configuration space")]
    ConfigSpaceFull {
        /// Capability id (PCI 3.0 appendix H).
        id: u8,
        /// Bytes, header included.
        len: usize,
    },
}

/// The guest gave a memory BAR a new place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarMove {
    /// Which BAR.
    pub bar: BarIndex,
    /// Guest-physical address that the BAR answers at until now.
    pub old: u64,
    /// Guest-physical address that the guest wants it at.
    pub new: u64,
    /// Bytes, a power of two.
    pub size: u64,
}

/// A function on the bus, called from vCPU threads through [`PciRoot`].
pub trait PciFunction: Send {
    /// Reads configuration space. `data` is 1, 2 or 4 bytes and does not cross a 4-byte boundary.
    fn read_config(&mut self, offset: usize, data: &mut [u8]);
    /// Writes configuration space, and says which memory BARs that gave another place: setting the command register's
    /// memory bit may do it to both.
    fn write_config(&mut self, offset: usize, data: &[u8]) -> Vec<BarMove>;
    /// The VMM moved a BAR as asked.
    fn bar_moved(&mut self, bar: BarIndex, base: u64);
}

/// The VMM's part in moving a BAR: its range on the MMIO bus and its ioeventfds, or its memory slot.
pub trait BarMover: Send + Sync {
    /// Moves what answers at `[bar.old, bar.old + bar.size)` to `bar.new`. Called with the lock of [`PciRoot`] held and
    /// none of the function's, so it may wait for accesses to the function that are under way.
    ///
    /// # Errors
    /// The new place cannot be used (RAM, another device, outside the PCI window). The BAR then goes on answering at
    /// the old place, whatever configuration space says.
    fn move_bar(&self, address: PciAddress, bar: BarMove) -> io::Result<()>;
}
