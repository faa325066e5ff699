//! An invocation on a terminal of its own.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Signal, ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::stdio::stdin;
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::finished::Finished;
use crate::guarded_child::GuardedChild;
use crate::running::Collected;

/// A started `vmm` with a controlling terminal, and the keyboard and screen of that terminal.
#[derive(Debug)]
pub struct Terminal {
    child: GuardedChild,
    keyboard: File,
    screen: Collected,
    seen: usize,
    slave: OwnedFd,
    before: Termios,
}

impl Terminal {
    pub(crate) fn start(mut command: Command, deadline: Duration) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).expect("a PTY can be had");
        grantpt(&master).expect("a PTY can be granted");
        unlockpt(&master).expect("a PTY can be unlocked");
        let name = ptsname(&master, Vec::new()).expect("a PTY has a name");
        let slave = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())
            .expect("a PTY can be opened");
        set_size(&slave, 40, 120);
        let before = tcgetattr(&slave).expect("a PTY has settings");
        let end = || Stdio::from(slave.try_clone().expect("a descriptor can be copied"));
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: between fork and exec only two system calls are made; nothing allocates or locks.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                ioctl_tiocsctty(stdin())?;
                Ok(())
            });
        }
        let child = GuardedChild::start(command, deadline);
        let keyboard = File::from(master);
        let screen = Collected::from(keyboard.try_clone().expect("a descriptor can be copied"));
        Self { child, keyboard, screen, seen: 0, slave, before }
    }

    /// Types.
    ///
    /// # Panics
    /// When the terminal does not take it.
    pub fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("a terminal takes what is typed");
    }

    /// Makes the terminal another size, as dragging a window's corner does.
    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(&self.slave, rows, columns);
    }

    /// Waits until `text` appears after what was waited for before.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        match self.screen.wait_for(text, self.seen, self.child.until()) {
            Some(end) => self.seen = end,
            None => {
                let finished = self.kill_and_collect();
                panic!("{text:?} did not appear on the terminal:\n{finished}");
            }
        }
    }

    /// Waits until `vmm` has made the terminal raw.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn wait_for_raw(&mut self) {
        while self.is_as_before() {
            if Instant::now() > self.child.until() {
                let finished = self.kill_and_collect();
                panic!("the terminal was never made raw:\n{finished}");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether the terminal's settings are what they were before `vmm` was started.
    ///
    /// # Panics
    /// When the settings cannot be read.
    #[must_use]
    pub fn is_as_before(&self) -> bool {
        let now = tcgetattr(&self.slave).expect("a PTY has settings");
        let modes = |t: &Termios| (t.input_modes, t.output_modes, t.local_modes, t.control_modes);
        modes(&now) == modes(&self.before)
            && format!("{:?}", now.special_codes) == format!("{:?}", self.before.special_codes)
    }

    /// Sends a signal to the process alone.
    pub fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }

    /// Whether it has ended by now.
    ///
    /// # Panics
    /// When that cannot be told.
    #[must_use]
    pub fn has_ended(&mut self) -> bool {
        self.child.child().try_wait().expect("a child can be waited for").is_some()
    }

    /// Waits for its end and fails unless the terminal is as it was.
    ///
    /// # Panics
    /// When the deadline passes, or the terminal was not restored.
    #[must_use]
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        match self.child.wait() {
            Some(status) => {
                let finished = self.collect(status);
                assert!(self.is_as_before(), "the terminal was not restored:\n{finished}");
                let times = |sequence: &str| finished.out().matches(sequence).count();
                assert!(times("\x1b[?25l") <= times("\x1b[?25h"), "the cursor is hidden still:\n{finished}");
                finished
            }
            None => panic!("it did not end within its deadline and was killed:\n{}", self.kill_and_collect()),
        }
    }

    fn kill_and_collect(&mut self) -> Finished {
        let status = self.child.kill();
        self.collect(status)
    }

    fn collect(&self, status: ExitStatus) -> Finished {
        self.child.finished(status, || {
            // Our own end of the terminal is open still, so that no end of file will come; what was written is there at
            // once.
            thread::sleep(Duration::from_millis(100));
            (self.screen.bytes(), Vec::new())
        })
    }
}

fn set_size(terminal: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).expect("a PTY has a size");
}
