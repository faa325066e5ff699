//! Where a function sits on the bus.

use std::fmt;

/// Device number on bus 0; always function 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress(u8);

impl PciAddress {
    /// The host bridge, which [`super::PciRoot`] brings itself.
    pub const HOST_BRIDGE: PciAddress = PciAddress(0);
    /// Device numbers on a bus (PCI 3.0 § 3.2.2.3.2).
    pub const DEVICES: u8 = 32;

    /// Device number `device`, if there is one.
    pub const fn new(device: u8) -> Option<Self> {
        if device < Self::DEVICES { Some(PciAddress(device)) } else { None }
    }

    /// The device number, 0..32.
    pub const fn device(self) -> u8 {
        self.0
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.0", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_print_as_lspci_does_and_end_at_device_31() {
        assert_eq!(PciAddress::new(31).unwrap().to_string(), "0000:00:1f.0");
        assert_eq!(PciAddress::new(32), None);
    }
}
