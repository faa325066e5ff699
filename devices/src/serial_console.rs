//! The first serial port, on vm-superio: where the guest kernel's log goes.

use std::io::{self, Write};

use vm_superio::Trigger;
use vm_superio::serial::{Error, NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// A 16550A at eight ports; offset 0 is its data register.
pub struct SerialConsole {
    serial: Serial<Interrupt, NoEvents, Box<dyn Write + Send>>,
    /// A failing output is logged once, not once per byte.
    output_failed: bool,
}

/// The port's interrupt line, edge-triggered (IRQ 4 on a PC).
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl SerialConsole {
    /// A port that writes what the guest sends to `out`, byte by byte as it comes, and raises its interrupt through
    /// `interrupt`.
    pub fn new(interrupt: EventFd, out: Box<dyn Write + Send>) -> Self {
        SerialConsole { serial: Serial::new(Interrupt(interrupt), out), output_failed: false }
    }

    /// Gives the guest input, as much as the port's FIFO of 64 bytes has room for; returns how much that was.
    ///
    /// # Errors
    /// The interrupt could not be raised; the bytes are in the FIFO all the same.
    pub fn enqueue(&mut self, input: &[u8]) -> io::Result<usize> {
        let taken = input.len().min(self.serial.fifo_capacity());
        let Some(input) = input.get(..taken) else { return Ok(0) };
        match self.serial.enqueue_raw_bytes(input) {
            Ok(written) => Ok(written),
            // No room, or in loopback mode: nothing taken.
            Err(Error::FullFifo) => Ok(0),
            Err(Error::Trigger(error) | Error::IOError(error)) => Err(error),
        }
    }
}

impl BusDevice for SerialConsole {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Ok(register @ 0..8) = u8::try_from(offset) else { return };
        if let Some(first) = data.first_mut() {
            *first = self.serial.read(register);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (Ok(register @ 0..8), Some(value)) = (u8::try_from(offset), data.first()) else { return };
        match self.serial.write(register, *value) {
            Ok(()) => self.output_failed = false,
            Err(error) if !self.output_failed => {
                self.output_failed = true;
                tracing::warn!("the guest's console output is being lost: {error}");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn console() -> (SerialConsole, Screen, EventFd) {
        let screen = Screen::default();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        (SerialConsole::new(event.try_clone().unwrap(), Box::new(screen.clone())), screen, event)
    }

    fn read(console: &mut SerialConsole, offset: u64) -> u8 {
        let mut data = [0];
        console.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn what_the_guest_sends_comes_out_and_the_line_is_always_ready() {
        let (mut console, screen, _) = console();
        for byte in b"hello\n" {
            assert_eq!(read(&mut console, LINE_STATUS) & 0x60, 0x60, "transmitter empty");
            console.write(DATA, &[*byte]);
        }
        assert_eq!(*screen.0.lock().unwrap(), b"hello\n");
    }

    #[test]
    fn input_raises_the_interrupt_and_is_read_in_order() {
        let (mut console, _, event) = console();
        console.write(INTERRUPT_ENABLE, &[1]);
        assert_eq!(console.enqueue(b"ab").unwrap(), 2);
        assert!(event.read().unwrap() > 0);
        assert_eq!([read(&mut console, DATA), read(&mut console, DATA)], *b"ab");
        assert_eq!(read(&mut console, LINE_STATUS) & 1, 0, "no more data");
    }

    #[test]
    fn input_that_does_not_fit_is_not_taken() {
        let (mut console, ..) = console();
        assert_eq!(console.enqueue(&[b'x'; 100]).unwrap(), 64);
        assert_eq!(console.enqueue(b"y").unwrap(), 0);
    }

    #[test]
    fn a_broken_output_does_not_stop_the_guest() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _data: &[u8]) -> io::Result<usize> {
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut console = SerialConsole::new(EventFd::new(EFD_NONBLOCK).unwrap(), Box::new(Broken));
        console.write(DATA, b"x");
        console.write(DATA, b"y");
        assert_eq!(read(&mut console, LINE_STATUS) & 0x60, 0x60);
    }

    proptest! {
        #[test]
        fn no_access_panics(
            accesses in prop::collection::vec(
                (any::<bool>(), prop_oneof![0u64..10, any::<u64>()], prop::collection::vec(any::<u8>(), 0..9)), 0..64)
        ) {
            let (mut console, ..) = console();
            for (is_write, offset, mut data) in accesses {
                if is_write { console.write(offset, &data) } else { console.read(offset, &mut data) }
                console.enqueue(&data).unwrap();
            }
        }
    }
}
