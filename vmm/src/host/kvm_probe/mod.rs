//! Is this machine's KVM of any use, and how fast is it? Opening `/dev/kvm` or reading capabilities proves nothing: some
//! implementations interpret a guest's kernel mode one instruction at a time, and lack instructions that every stock
//! kernel uses. So a tiny guest is run, for a few milliseconds, under a deadline.

mod probe_guest;
mod verdict;

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

pub use verdict::{MIN_INSTRUCTIONS_PER_S, Verdict};

/// Where Linux puts KVM.
pub const KVM_DEVICE: &str = "/dev/kvm";

/// A usable KVM answers in less than 10 ms, an interpreting one in about 30 ms.
const DEADLINE: Duration = Duration::from_secs(3);
/// How long a probe that passed its deadline is kicked before its thread is left to itself.
const KICK_FOR: Duration = Duration::from_millis(500);

/// Runs the probe guest on [`KVM_DEVICE`]. Takes milliseconds, and never longer than a few seconds.
#[must_use]
pub fn probe() -> Verdict {
    probe_device(Path::new(KVM_DEVICE))
}

fn probe_device(device: &Path) -> Verdict {
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => within(DEADLINE, probe_guest::run),
        Err(error) => Verdict::from_open_error(&error, device),
    }
}

/// Runs `guest` in a thread of its own and gives up on it after `deadline`: its `KVM_RUN` is interrupted by a signal,
/// again and again, because one that arrives just before the ioctl is lost.
fn within(deadline: Duration, guest: impl FnOnce() -> Verdict + Send + 'static) -> Verdict {
    let (sender, receiver) = mpsc::sync_channel(1);
    let spawned = thread::Builder::new().name("kvm-probe".to_owned()).spawn(move || {
        // Nobody listens any more once the deadline has passed.
        let _ = sender.send(guest());
    });
    let worker = match spawned {
        Ok(worker) => worker,
        Err(error) => return Verdict::Error { detail: format!("failed to start the probe's thread: {error}") },
    };
    match receiver.recv_timeout(deadline) {
        Ok(verdict) => verdict,
        Err(RecvTimeoutError::Disconnected) => Verdict::Error { detail: "the probe's thread panicked".to_owned() },
        Err(RecvTimeoutError::Timeout) => {
            if let Err(error) = register_signal_handler(SIGRTMIN(), wake) {
                return Verdict::Error { detail: format!("failed to install the handler of the kick signal: {error}") };
            }
            let since = Instant::now();
            while since.elapsed() < KICK_FOR && !worker.is_finished() {
                // A failing kick changes nothing: the thread is left behind either way.
                let _ = worker.kill(SIGRTMIN());
                thread::sleep(Duration::from_millis(10));
            }
            Verdict::Hung { deadline }
        }
    }
}

/// Does nothing: that a signal was delivered is what ends `KVM_RUN`.
extern "C" fn wake(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

impl Verdict {
    fn from_open_error(error: &io::Error, device: &Path) -> Self {
        match error.raw_os_error() {
            // ENXIO, ENODEV: the node is there, nothing stands behind it.
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Self::Missing,
            Some(libc::EACCES | libc::EPERM) => Self::NoPermission { mend: verdict::permission_mend(device) },
            _ => Self::Error { detail: format!("failed to open {}: {error}", device.display()) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_missing() {
        assert_eq!(probe_device(Path::new("/dev/no-such-kvm")), Verdict::Missing);
    }

    #[test]
    fn a_device_we_may_not_open_names_the_command_that_mends_it() {
        let error = io::Error::from_raw_os_error(libc::EACCES);
        let verdict = Verdict::from_open_error(&error, Path::new("/dev/null"));
        assert!(matches!(&verdict, Verdict::NoPermission { mend } if !mend.is_empty()), "{verdict:?}");
    }

    #[test]
    fn an_open_that_fails_oddly_says_how() {
        let verdict = Verdict::from_open_error(&io::Error::from_raw_os_error(libc::EMFILE), Path::new("/dev/kvm"));
        assert!(verdict.to_string().contains("failed to open /dev/kvm"), "{verdict}");
    }

    #[test]
    fn the_probe_of_this_machine_ends_in_time_with_a_verdict_that_fits_the_device() {
        let started = Instant::now();
        let verdict = probe();
        assert!(started.elapsed() < DEADLINE + KICK_FOR + Duration::from_secs(2), "{:?}", started.elapsed());
        assert!(!matches!(verdict, Verdict::Error { .. }), "{verdict}");
        assert_eq!(verdict == Verdict::Missing, !Path::new(KVM_DEVICE).exists(), "{verdict}");
    }

    #[test]
    fn a_probe_that_never_ends_is_given_up_after_its_deadline() {
        let started = Instant::now();
        let (_keep, forever) = mpsc::channel::<()>();
        let verdict = within(Duration::from_millis(30), move || {
            let _ = forever.recv();
            Verdict::Missing
        });
        assert_eq!(verdict, Verdict::Hung { deadline: Duration::from_millis(30) });
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_probe_that_panics_is_an_error_and_not_a_crash() {
        let verdict = within(Duration::from_secs(5), || panic!("on purpose"));
        assert!(matches!(verdict, Verdict::Error { .. }), "{verdict:?}");
    }
}
