//! SIGCHLD as a descriptor that can be polled.
//!
//! A handler that writes to an eventfd, not a signalfd: that needs the signal blocked in every thread of the process, or
//! the kernel throws it away as ignored.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// The eventfd of the one [`ChildSignal`], or -1.
static TARGET: AtomicI32 = AtomicI32::new(-1);

/// Readable when children may have ended since it was cleared. There is one at a time.
#[derive(Debug)]
pub struct ChildSignal(OwnedFd);

impl ChildSignal {
    /// Catches SIGCHLD from here on. It is readable at once, for children that ended before.
    ///
    /// # Errors
    /// When there is one already, or no descriptor.
    pub fn catch() -> io::Result<Self> {
        let fd = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        if TARGET.compare_exchange(-1, fd.as_raw_fd(), Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "SIGCHLD is caught already"));
        }
        let caught = Self(fd);
        // SAFETY: sigaction is plain data, for which all zeroes is a value; it outlives the call. The handler only writes to a
        // descriptor, which is async-signal-safe, and keeps errno.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = tell as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART | libc::SA_NOCLDSTOP;
            libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut())
        };
        if result == 0 { Ok(caught) } else { Err(io::Error::last_os_error()) }
    }

    /// Makes it unreadable until the next child ends.
    pub fn clear(&self) {
        // EAGAIN: it was clear.
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for ChildSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for ChildSignal {
    fn drop(&mut self) {
        TARGET.store(-1, Ordering::SeqCst);
    }
}

extern "C" fn tell(_signal: libc::c_int) {
    let fd = TARGET.load(Ordering::SeqCst);
    if fd >= 0 {
        let one = 1u64.to_ne_bytes();
        // SAFETY: errno's location is valid in every thread; `one` has the 8 bytes that an eventfd takes.
        unsafe {
            let errno = *libc::__errno_location();
            libc::write(fd, one.as_ptr().cast(), one.len());
            *libc::__errno_location() = errno;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn is_readable(signal: &ChildSignal, timeout: i64) -> bool {
        let timeout = Timespec { tv_sec: timeout, tv_nsec: 0 };
        loop {
            match poll(&mut [PollFd::new(signal, PollFlags::IN)], Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                ready => return ready.unwrap() == 1,
            }
        }
    }

    // Other tests of this program start no children.
    #[test]
    fn it_becomes_readable_when_a_child_ends_whichever_thread_waits() {
        let signal = ChildSignal::catch().unwrap();
        assert!(ChildSignal::catch().is_err());
        assert!(is_readable(&signal, 0), "for what ended before");
        signal.clear();
        assert!(!is_readable(&signal, 0));
        std::thread::spawn(|| Command::new("true").status().unwrap()).join().unwrap();
        assert!(is_readable(&signal, 10));
        drop(signal);
        drop(ChildSignal::catch().unwrap());
    }
}
