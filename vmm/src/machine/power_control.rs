//! Three I/O ports through which the guest ends the machine: ACPI sleep control, sleep status and reset
//! (ACPI 6.5 § 4.8.3.7, § 4.8.3.6), announced in the FADT. And the keyboard controller's reset command, for kernels
//! that were told `reboot=k`.

use std::convert::Infallible;
use std::sync::Arc;

use devices::bus::BusDevice;
use vm_superio::{I8042Device, Trigger};

use super::StopReason;
use super::stopper::Stopper;

/// Offsets from the first port.
pub const SLEEP_CONTROL_OFFSET: u16 = 0;
/// See [`SLEEP_CONTROL_OFFSET`].
pub const SLEEP_STATUS_OFFSET: u16 = 1;
/// See [`SLEEP_CONTROL_OFFSET`].
pub const RESET_OFFSET: u16 = 2;
/// What the FADT tells the kernel to write to the reset register.
pub const RESET_VALUE: u8 = 1;
/// What `\_S5` tells the kernel to write as SLP_TYP.
pub const S5_SLEEP_TYPE: u8 = 5;

/// SLP_EN of the sleep control register; SLP_TYP stands above two other bits.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

/// The ACPI ports.
pub struct PowerControl {
    stopper: Arc<Stopper>,
}

impl PowerControl {
    /// Ports that end the machine through `stopper`.
    #[must_use]
    pub fn new(stopper: Arc<Stopper>) -> Self {
        Self { stopper }
    }
}

impl BusDevice for PowerControl {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Nothing is pending: WAK_STS is clear, SLP_EN reads as zero.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        if offset == u64::from(SLEEP_CONTROL_OFFSET) {
            let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
            if value & SLEEP_ENABLE != 0 && sleep_type == S5_SLEEP_TYPE {
                self.stopper.stop(StopReason::PowerOff);
            }
        } else if offset == u64::from(RESET_OFFSET) && value == RESET_VALUE {
            self.stopper.stop(StopReason::Reset);
        }
    }
}

/// vm-superio's way to say that the guest asked for a reset.
pub struct ResetLine(Arc<Stopper>);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.stop(StopReason::Reset);
        Ok(())
    }
}

/// The keyboard controller, of which only the reset command works.
pub struct ResetController(I8042Device<ResetLine>);

impl ResetController {
    /// A controller that ends the machine through `stopper`.
    #[must_use]
    pub fn new(stopper: Arc<Stopper>) -> Self {
        Self(I8042Device::new(ResetLine(stopper)))
    }
}

impl BusDevice for ResetController {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (Some(first), Ok(offset)) = (data.first_mut(), u8::try_from(offset)) {
            *first = self.0.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Some(value), Ok(offset)) = (data.first(), u8::try_from(offset)) {
            let Ok(()) = self.0.write(offset, *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s5_with_the_enable_bit_powers_off() {
        let (stopper, stopped) = Stopper::new();
        let mut ports = PowerControl::new(stopper);
        for value in [0, SLEEP_ENABLE, S5_SLEEP_TYPE << 2, SLEEP_ENABLE | 3 << 2] {
            ports.write(0, &[value]);
            assert!(stopped.is_empty(), "{value:#x}");
        }
        ports.write(0, &[SLEEP_ENABLE | S5_SLEEP_TYPE << 2]);
        assert_eq!(stopped.try_recv(), Ok(StopReason::PowerOff));
    }

    #[test]
    fn the_reset_register_resets() {
        let (stopper, stopped) = Stopper::new();
        let mut ports = PowerControl::new(stopper);
        ports.write(1, &[RESET_VALUE]);
        ports.write(2, &[0]);
        ports.write(2, &[]);
        assert!(stopped.is_empty());
        ports.write(2, &[RESET_VALUE]);
        assert_eq!(stopped.try_recv(), Ok(StopReason::Reset));
    }

    #[test]
    fn the_keyboard_controller_resets_on_its_command_only() {
        let (stopper, stopped) = Stopper::new();
        let mut controller = ResetController::new(stopper);
        let mut status = [0xaa; 2];
        controller.read(4, &mut status);
        assert_eq!(status, [0, 0xff], "the input buffer is never full");
        controller.write(0, &[0xfe]);
        controller.write(4, &[0xd1]);
        assert!(stopped.is_empty());
        controller.write(4, &[0xfe]);
        assert_eq!(stopped.try_recv(), Ok(StopReason::Reset));
    }
}
