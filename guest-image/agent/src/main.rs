//! `/init` of the initramfs.
#![no_main]

use std::os::fd::IntoRawFd;

use agent::kernel_command_line::Options;
use agent::scope::Program;
use agent::{emulated_host, guest, mounts, power};

/// Instead of Rust's own entry: its runtime aborts when standard input, output and error are closed and `/dev/null` is not
/// there to stand in, which is what an initramfs without device nodes begins with.
// SAFETY: the one symbol of this name in the program, with the signature that the C start-up code calls.
#[unsafe(no_mangle)]
extern "C" fn main(_argc: i32, _argv: *const *const u8) -> i32 {
    if std::process::id() != 1 {
        let mut arguments = std::env::args_os();
        if let Some(program) = arguments.next().and_then(|name| Program::of(&name)) {
            return program.run(&arguments.collect::<Vec<_>>());
        }
        eprintln!("this is the agent of a vmm guest: it runs as the first process of a virtual machine, not by hand");
        return 2;
    }
    power::off_on_panic();
    if let Err(error) = mounts::mount_kernel_file_systems() {
        power::fatal(&error.to_string());
    }
    occupy_standard_descriptors();
    // A pipe or socket whose other side is gone is an error where it is written, not a reason to die.
    // SAFETY: setting a signal to be ignored installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    match guest::options() {
        Ok(options) => run(&options),
        Err(error) => power::fatal(&format!("failed to read /proc/cmdline: {error}")),
    }
}

fn run(options: &Options) -> ! {
    match options.mode.as_str() {
        "guest" => guest::run(options),
        emulated_host::MODE => emulated_host::run(),
        other => power::fatal(&format!("vmm.mode={other} on the kernel command line is no mode of this agent")),
    }
}

/// Sees to it that no file opened later becomes standard input, output or error of this process by accident.
fn occupy_standard_descriptors() {
    while let Ok(file) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        if file.into_raw_fd() > 2 {
            // One too many stays open, which costs nothing.
            return;
        }
    }
}
