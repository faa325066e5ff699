//! How a port-I/O or memory-mapped access of a vCPU reaches a device.

/// A device that answers accesses to a range of ports or guest-physical addresses.
///
/// `offset` counts from the start of the device's range; `data` is 1, 2, 4 or 8 bytes, little-endian. Called from
/// vCPU threads under the range's lock: it must not block and must accept every offset and length.
pub trait BusDevice: Send {
    /// Fills `data`; bytes nobody backs read as `0xff` (ports, PCI) as on hardware.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data`; a write nobody backs is dropped.
    fn write(&mut self, offset: u64, data: &[u8]);
}
