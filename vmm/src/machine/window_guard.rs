//! Loads and stores of this process that hit a DAX window where nothing is mapped, or a file that was cut short.
//!
//! Nobody means to make any: what requests move goes through system calls, which fail with EFAULT, and headers in the window
//! are refused. But descriptors are in guest memory and are read more than once, so a guest that changes them at the right
//! moment could still lead one there, and SIGSEGV or SIGBUS would end the process. Instead it finds a page of zeros.

use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Shares that can have a window, and some for tests that run at the same time.
pub(super) const MAX_WINDOWS: usize = 16;
const PAGE: usize = 4096;

/// Start and end of each guarded range; an end of 0 is a free place. Read by the signal handler.
static WINDOWS: [(AtomicUsize, AtomicUsize); MAX_WINDOWS] =
    [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; MAX_WINDOWS];
/// What was done about SIGSEGV and SIGBUS before; none as long as the handler is not installed.
static EARLIER: Mutex<Option<[libc::sigaction; 2]>> = Mutex::new(None);
const SIGNALS: [i32; 2] = [libc::SIGSEGV, libc::SIGBUS];

/// Guards a range until it is dropped.
#[derive(Debug)]
pub(super) struct WindowGuard {
    place: usize,
}

impl WindowGuard {
    /// Guards `len` bytes from `start` on, whole pages that are reserved as long as this lives.
    ///
    /// # Errors
    /// Too many windows, or the system refuses the signal handler.
    pub(super) fn new(start: *mut u8, len: usize) -> io::Result<Self> {
        let mut earlier = EARLIER.lock().unwrap_or_else(PoisonError::into_inner);
        if earlier.is_none() {
            *earlier = Some([install(SIGNALS[0])?, install(SIGNALS[1])?]);
        }
        let free = WINDOWS.iter().position(|(_, end)| end.load(Ordering::Relaxed) == 0);
        let place = free.ok_or_else(|| io::Error::other("too many DAX windows"))?;
        let (from, end) = &WINDOWS[place];
        from.store(start.addr(), Ordering::Relaxed);
        end.store(start.addr() + len, Ordering::Release);
        Ok(Self { place })
    }
}

impl Drop for WindowGuard {
    fn drop(&mut self) {
        let _lock = EARLIER.lock().unwrap_or_else(PoisonError::into_inner);
        WINDOWS[self.place].1.store(0, Ordering::Release);
    }
}

/// Returns what was done about `signal` before.
fn install(signal: i32) -> io::Result<libc::sigaction> {
    let mut earlier = MaybeUninit::zeroed();
    // SAFETY: all-zero is a valid `sigaction`.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = on_fault as *const () as usize;
    // On the alternate stack where there is one: the handler that Rust has for stack overflows needs it.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: both structures live for the call; the handler keeps to what signal handlers may do.
    if unsafe { libc::sigaction(signal, &raw const action, earlier.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zero-initialized, and filled by the call.
    Ok(unsafe { earlier.assume_init() })
}

/// Async-signal-safe: atomics and system calls only, but for `give_up`, after which the process ends.
extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel gives the handler a valid siginfo, and these two signals have an address in it.
    let address = unsafe { (*info).si_addr() }.addr();
    let guarded = WINDOWS.iter().any(|(start, end)| {
        let end = end.load(Ordering::Acquire);
        (start.load(Ordering::Relaxed)..end).contains(&address)
    });
    if !guarded {
        return give_up(signal);
    }
    let page = ptr::with_exposed_provenance_mut::<c_void>(address & !(PAGE - 1));
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the page lies in a range that whoever guards it has reserved, and into which no reference points.
    let mapped = unsafe { libc::mmap(page, PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        give_up(signal);
    }
}

/// Lets the signal do what it did before this handler was there: the instruction faults again when the handler returns.
fn give_up(signal: i32) {
    // The one who holds the lock may be the thread that faults: then the default has to do.
    let earlier = EARLIER.try_lock().ok().and_then(|earlier| *earlier);
    let place = SIGNALS.iter().position(|known| *known == signal);
    // SAFETY: all-zero is a valid `sigaction`, and means the default.
    let default = unsafe { MaybeUninit::zeroed().assume_init() };
    let action = earlier.zip(place).and_then(|(all, place)| all.get(place).copied()).unwrap_or(default);
    // SAFETY: the structure lives for the call.
    unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

    use super::*;

    const LEN: usize = 4 * PAGE;

    /// Loads and stores a byte, as a header in the window would be.
    fn touch(address: *mut u8) -> u8 {
        // SAFETY: tests give addresses of their own mappings; that nothing may be there is the point.
        unsafe {
            let found = address.read_volatile();
            address.write_volatile(7);
            found
        }
    }

    #[test]
    fn where_nothing_is_mapped_there_are_zeros_and_the_process_lives() {
        // SAFETY: a new mapping wherever there is room.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), LEN, ProtFlags::empty(), MapFlags::PRIVATE) }.unwrap();
        let guard = WindowGuard::new(start.cast(), LEN).unwrap();
        let second: *mut u8 = start.cast::<u8>().wrapping_add(PAGE + 5);
        assert_eq!(touch(second), 0);
        assert_eq!(touch(second), 7);
        drop(guard);
        // SAFETY: mapped above.
        unsafe { munmap(start, LEN) }.unwrap();
    }

    #[test]
    fn where_a_file_has_ended_there_are_zeros_and_the_process_lives() {
        let file: File = tempfile::tempfile().unwrap();
        file.set_len(LEN as u64).unwrap();
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping wherever there is room.
        let start = unsafe { mmap(ptr::null_mut(), LEN, protection, flags, &file, 0) }.unwrap();
        let _guard = WindowGuard::new(start.cast(), LEN).unwrap();
        let last: *mut u8 = start.cast::<u8>().wrapping_add(LEN - 1);
        assert_eq!(touch(last), 0);
        file.set_len(PAGE as u64).unwrap();
        assert_eq!(touch(last), 0, "gone, and nobody died of it");
        assert_eq!(touch(start.cast()), 0, "what the file has is the file's");
        // SAFETY: mapped above.
        unsafe { munmap(start, LEN) }.unwrap();
    }

    #[test]
    fn other_faults_end_the_process_as_they_did() {
        const CHILD: &str = "VMM_TEST_FAULTING_CHILD";
        if std::env::var_os(CHILD).is_some() {
            // SAFETY: a new mapping wherever there is room.
            let start = unsafe { mmap_anonymous(ptr::null_mut(), LEN, ProtFlags::empty(), MapFlags::PRIVATE) }.unwrap();
            let _guard = WindowGuard::new(start.cast(), PAGE).unwrap();
            touch(start.cast::<u8>().wrapping_add(2 * PAGE));
            std::process::exit(0);
        }
        use std::os::unix::process::ExitStatusExt;
        let name = "machine::window_guard::tests::other_faults_end_the_process_as_they_did";
        let test = std::env::current_exe().unwrap();
        let ended = std::process::Command::new(test).args(["--exact", name]).env(CHILD, "1").output().unwrap().status;
        assert_eq!(ended.signal(), Some(libc::SIGSEGV), "{ended}");
    }
}
