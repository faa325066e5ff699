//! The user's terminal in raw mode, and back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The one terminal that is in raw mode, and its settings before. Outside [`RawTerminal`], so that a panic of any thread and
/// an exit from anywhere find it.
static SAVED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);
static SAFETY_NETS: Once = Once::new();

/// A terminal in raw mode: every key goes inside, Ctrl-C too. Dropping it, a panic and `exit` restore the terminal.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Puts `terminal` into raw mode. There is one at a time.
    ///
    /// # Errors
    /// When it is no terminal, or one is in raw mode already (`AlreadyExists`).
    pub fn enter(terminal: impl AsFd) -> io::Result<Self> {
        SAFETY_NETS.call_once(|| {
            let previous = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                // First, so that the message is readable.
                restore();
                previous(panic);
            }));
            // SAFETY: the handler has the right signature, takes a lock that nobody holds for long, and does not unwind.
            unsafe { libc::atexit(restore_at_exit) };
        });
        let mut saved = SAVED.lock().unwrap_or_else(PoisonError::into_inner);
        if saved.is_some() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a terminal is in raw mode already"));
        }
        let terminal = terminal.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        *saved = Some((terminal, before));
        Ok(Self(()))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

extern "C" fn restore_at_exit() {
    restore();
}

fn restore() {
    if let Some((terminal, before)) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // If it is gone there is nothing to restore.
        let _ = tcsetattr(&terminal, OptionalActions::Now, &before);
    }
}

#[cfg(test)]
mod tests {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::LocalModes;

    use super::*;

    fn is_raw(terminal: &OwnedFd) -> bool {
        !tcgetattr(terminal).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ISIG | LocalModes::ECHO)
    }

    // One test, for there is one saved terminal in a process.
    #[test]
    fn the_terminal_is_raw_while_held_and_as_before_after_a_drop_or_a_panic() {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        unlockpt(&controller).unwrap();
        let terminal = ioctl_tiocgptpeer(&controller, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        assert!(!is_raw(&terminal));
        let raw = RawTerminal::enter(&terminal).unwrap();
        assert!(is_raw(&terminal));
        assert_eq!(RawTerminal::enter(&terminal).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        drop(raw);
        assert!(!is_raw(&terminal));
        let raw = RawTerminal::enter(&terminal).unwrap();
        // The panicking thread does not hold the guard: only the hook can have restored it.
        let panicked = std::thread::spawn(|| panic!("on purpose")).join();
        assert!(panicked.is_err() && !is_raw(&terminal));
        drop(raw);
        assert!(RawTerminal::enter(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
