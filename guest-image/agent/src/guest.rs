//! The agent of a guest under test, from the kernel's hand-over to power-off.

use std::fs;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use wire::{MountReport, PROTOCOL_VERSION, ToHost};

use crate::kernel_command_line::{Options, Share};
use crate::serve::{ServeEnd, Server};
use crate::timer_check::TimerCheck;
use crate::{kernel_log, modules, mounts, network, power, process_tree, root, scope, shares, suite_images, vsock};

/// How long the host may take to listen, and the vsock device to appear.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// How long the host may take to read the last frame.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);

/// As systemd has it for a distribution's services.
const OPEN_FILES: u64 = 524_288;

/// Starts the guest, serves the host, powers off. `/proc`, `/sys` and `/dev` are mounted.
pub fn run(options: &Options) -> ! {
    let timers = TimerCheck::start();
    let mut start = StartLog::new(options.timing);
    start.complaints.extend(options.complaints.iter().cloned());
    start.complaints.extend(modules::load_all());
    start.step("modules");
    if let Some(device) = &options.root {
        match root::switch_to(device, &options.root_fs_type) {
            Ok(complaints) => start.complaints.extend(complaints),
            Err(error) => give_up(&start.complaints, &error.to_string()),
        }
        start.step("root");
    }
    start.complaints.extend(mounts::mount_temporary_file_systems());
    start.complaints.extend(scope::link_programs());
    raise_open_files_limit();
    if let Err(errno) = rustix::system::sethostname(b"vmm-guest") {
        start.complaints.push(format!("failed to set the host name: {errno}"));
    }
    if let Err(error) = network::loopback_up() {
        start.complaints.push(format!("failed to bring the loopback interface up: {error}"));
    }
    start.step("mounts");
    start.complaints.extend(suite_images::mount_all(&options.suites));
    start.step("suites");
    let mounted = shares::mount_all(&options.shares);
    start.step("shares");
    let stream = match vsock::connect(options.port, CONNECT_LIMIT) {
        Ok(stream) => stream,
        Err(error) => {
            let hint = match error.raw_os_error() {
                Some(libc::EAFNOSUPPORT) => " (the kernel has no vsock: CONFIG_VSOCKETS)",
                Some(libc::ENODEV) => " (no vsock device, or no driver for it: CONFIG_VIRTIO_VSOCKETS)",
                _ => "",
            };
            let reason = format!("failed to connect to the host's vsock port {}: {error}{hint}", options.port);
            give_up(&start.complaints, &reason)
        }
    };
    start.step("connect");
    let hello = hello(mounted.clone(), timers.finish());
    start.step("timer check");
    serve(stream, hello, start, options.shares.clone(), &mounted)
}

/// What commands may raise their limit to: the kernel's 4096 is less than a test of many open files asks for. What they have
/// without asking stays as programs that use select(2) need it.
fn raise_open_files_limit() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { maximum: Some(OPEN_FILES), ..limit };
    // It is PID 1's to raise; if a kernel refuses, its own limit has to do.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
}

fn serve(stream: OwnedFd, hello: ToHost, start: StartLog, shares: Vec<Share>, mounted: &[MountReport]) -> ! {
    let mut first = vec![hello];
    first.extend(start.into_lines().into_iter().map(|line| ToHost::Log { line }));
    let mut server = match Server::new(stream, &first) {
        Ok(server) => server.with_shares(shares),
        Err(error) => power::fatal(&format!("failed to set up the stream to the host: {error}")),
    };
    match server.run() {
        ServeEnd::ShutdownAsked => {}
        // Nobody listens any more: what was written is still worth keeping.
        ServeEnd::HostClosed => kernel_log::error("the host closed the stream"),
        ServeEnd::Broken(error) => kernel_log::error(&format!("fatal: {error}")),
    }
    process_tree::kill_everything();
    rustix::fs::sync();
    for complaint in shares::unmount_all(mounted) {
        server.log(complaint);
    }
    // Whether or not the host hears it, the machine goes down.
    let _ = server.say_goodbye(GOODBYE_LIMIT);
    power::off()
}

fn give_up(complaints: &[String], reason: &str) -> ! {
    for complaint in complaints {
        kernel_log::error(complaint);
    }
    power::fatal(reason)
}

fn hello(mounts: Vec<MountReport>, sleep_10ms_took_ms: u64) -> ToHost {
    ToHost::Hello {
        protocol: PROTOCOL_VERSION,
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        uptime_ms: uptime_ms(),
        sleep_10ms_took_ms,
        mounts,
    }
}

/// Milliseconds since the kernel started, as `/proc/uptime` but finer.
fn uptime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// What the start has to tell once there is somebody to tell it to.
struct StartLog {
    complaints: Vec<String>,
    timing: Option<String>,
}

impl StartLog {
    fn new(timing: bool) -> Self {
        let timing = timing.then(|| format!("uptime at the agent's start {} ms", uptime_ms()));
        Self { complaints: Vec::new(), timing }
    }

    fn step(&mut self, done: &str) {
        if let Some(timing) = &mut self.timing {
            timing.push_str(&format!(", after {done} {} ms", uptime_ms()));
        }
    }

    fn into_lines(self) -> Vec<String> {
        let mut lines = self.complaints;
        lines.extend(self.timing);
        lines
    }
}

/// The options of this boot.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn options() -> std::io::Result<Options> {
    Ok(Options::parse(&fs::read_to_string("/proc/cmdline")?))
}
