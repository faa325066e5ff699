//! Ends of the machine.

use std::time::Duration;

use rustix::system::{RebootCommand, reboot};

use crate::{kernel_log, process_tree};

/// Powers the machine off. As PID 1 of a mere PID namespace this ends that namespace (pid_namespaces(7)); as any
/// other process it exits: an agent that was started by mistake must not turn a developer's machine off.
pub fn off() -> ! {
    if process_tree::owns_all_processes() {
        let _ = reboot(RebootCommand::PowerOff);
        // A kernel that cannot power off halts here instead of panicking because its first process ended.
        loop {
            std::thread::sleep(Duration::from_secs(3600));
        }
    }
    std::process::exit(1)
}

/// Gives up: says why where the host can find it, and powers off.
pub fn fatal(reason: &str) -> ! {
    kernel_log::error(&format!("fatal: {reason}"));
    off()
}

/// Makes a panic of any thread end the machine with a message: a guest that hangs says nothing.
pub fn off_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        kernel_log::error(&format!("fatal: the agent panicked: {panic}"));
        off();
    }));
}
