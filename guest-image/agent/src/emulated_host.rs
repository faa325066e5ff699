//! The agent as PID 1 of an emulated host: a Linux under QEMU whose CPU is emulated and in which KVM works.
//!
//! It makes the emulated host look like the machine below, as far as a command can see: that machine's root directory,
//! by 9p, becomes the root; `/proc`, `/sys`, `/dev` and `/run` are fresh; a scratch disk is mounted at
//! [`SCRATCH_MOUNT`]. Then [`crate::serve`] answers on a virtio-serial port.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, mount_move};
use rustix::process::{Resource, Rlimit, chdir, chroot, getrlimit, setrlimit};
use rustix::thread::{UnshareFlags, sched_getaffinity, sched_setaffinity, unshare_unsafe};
use rustix::time::{ClockId, clock_gettime};
use wire::{PROTOCOL_VERSION, ToHost};

use crate::cpu_wakers::CpuWakers;
use crate::mounts::{MountError, mount_at};
use crate::serve::{ServeEnd, Server};
use crate::timer_check::TimerCheck;
use crate::{kernel_log, modules, network, power, process_tree};

/// `vmm.mode=` on the kernel command line that selects this.
pub const MODE: &str = "emulated-host";
/// Where the scratch disk is mounted.
pub const SCRATCH_MOUNT: &str = "/run/vmm-scratch";
/// The virtio-serial port we serve on, by its name in `/sys/class/virtio-ports/*/name`.
const PORT_NAME: &str = "vmm.agent";
/// The 9p tag of the root directory of the machine below.
const ROOT_TAG: &str = "hostroot";
/// Serial number of the scratch disk, in `/sys/block/*/serial`.
const SCRATCH_SERIAL: &str = "vmm-scratch";
const NEW_ROOT: &str = "/newroot";
/// `fs.nr_open` as the kernel sets it: the most that may be asked for.
const OPEN_FILES: u64 = 1 << 20;
/// Devices appear within milliseconds of their driver.
const DEVICE_LIMIT: Duration = Duration::from_secs(30);
/// How long the machine below may take to read our last word.
const GOODBYE_LIMIT: Duration = Duration::from_secs(5);

/// `msize` is the most that the virtio transport takes. `cache=0xb` keeps file data and metadata, as `loose` does, because
/// nobody else is expected to change the machine's files meanwhile; but without the write-back of `loose` (bit 2), so that
/// what a command has written is on the machine below when `write` returns, even if QEMU is killed right then. The price:
/// no shared writable mappings of the machine's files (`Documentation/filesystems/9p.rst`).
const ROOT_OPTIONS: &str = "trans=virtio,version=9p2000.L,msize=512000,cache=0xb,access=client";

/// What failed while the emulated host was set up.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("failed to {doing}: {source}")]
    Step { doing: String, source: io::Error },
}

/// Names what was being done when an error came.
trait While<T> {
    fn during(self, doing: impl Into<String>) -> Result<T, SetupError>;
}

impl<T, E: Into<io::Error>> While<T> for Result<T, E> {
    fn during(self, doing: impl Into<String>) -> Result<T, SetupError> {
        self.map_err(|e| SetupError::Step { doing: doing.into(), source: e.into() })
    }
}

/// Serves, then powers off. `/proc`, `/sys` and `/dev` are mounted.
pub fn run() -> ! {
    let timers = TimerCheck::start();
    match set_up(timers) {
        Ok(server) => serve(server),
        Err(error) => power::fatal(&error.to_string()),
    }
}

fn serve(mut server: Server) -> ! {
    match server.run() {
        ServeEnd::ShutdownAsked => {}
        ServeEnd::HostClosed => kernel_log::error("vmm closed the stream"),
        ServeEnd::Broken(error) => kernel_log::error(&format!("fatal: {error}")),
    }
    process_tree::kill_everything();
    rustix::fs::sync();
    // Whether or not vmm hears it, the machine goes down.
    let _ = server.say_goodbye(GOODBYE_LIMIT);
    power::off()
}

fn set_up(timers: TimerCheck) -> Result<Server, SetupError> {
    // Each step waits for what it needs. What comes last in the list are file systems that a command may want; loading
    // those goes on while the first command starts.
    let loader = thread::Builder::new().name("modules".into());
    loader.spawn(load_modules).during("start the thread that loads modules")?;
    let port = open_port()?;
    mount_root()?;
    wait_for("KVM in the emulated CPU", || Path::new("/dev/kvm").exists().then_some(()))?;
    hold_vms();
    start_other_cpus();
    switch_root()?;
    // The kernel's own limit for its first process is 4096, and a file server has a file open for each inode its guest
    // knows. The soft limit stays: programs that want more ask for it.
    let files = Rlimit { maximum: Some(OPEN_FILES), ..getrlimit(Resource::Nofile) };
    setrlimit(Resource::Nofile, files).during("raise the limit of open files")?;
    let mut first = vec![hello(timers.finish())];
    // Comforts: programs that talk to themselves over TCP, a prompt that tells where one is, and speed.
    let comforts = [
        ("allow huge pages for shared memory", allow_huge_pages()),
        ("bring the loopback interface up", network::loopback_up()),
        ("set the host name", rustix::system::sethostname(b"vmm-emulated-host").map_err(io::Error::from)),
    ];
    for (doing, result) in comforts {
        if let Err(error) = result {
            first.push(ToHost::Log { line: format!("failed to {doing}: {error}") });
        }
    }
    let wakers = CpuWakers::start().during("start a thread on each CPU")?;
    leave_the_first_cpu().during("keep commands off the first CPU")?;
    let server = Server::new(port, &first).during("serve on the virtio-serial port")?;
    Ok(server.with_cpu_wakers(wakers))
}

/// Starts the CPUs that `maxcpus=1` kept back: what patched the kernel's code so far did it with nobody looking.
fn start_other_cpus() {
    let Ok(cpus) = fs::read_dir("/sys/devices/system/cpu") else { return };
    for switch in cpus.flatten().map(|cpu| cpu.path().join("online")).filter(|path| path.is_file()) {
        let is_off = fs::read_to_string(&switch).is_ok_and(|state| state.trim() == "0");
        if is_off && let Err(error) = fs::write(&switch, "1") {
            kernel_log::error(&format!("failed to start a CPU by {}: {error}", switch.display()));
        }
    }
}

/// Keeps this thread, and so what it will start, off CPU 0 where there is another: no guest may run on it.
///
/// QEMU's TCG keeps SVM's global interrupt flag of a CPU in a word, `hflags2`, that it takes for that CPU's own and changes
/// without a lock. But whenever any CPU loads x87 state, as it does at every switch of tasks (`FXRSTOR`), `cpu_clear_ignne` in
/// `target/i386/tcg/system/fpu_helper.c` clears a bit in that word of the first CPU, and a change that the first CPU makes at
/// that moment is lost: CLGI or the entry or exit of a guest then did not happen as far as interrupts are concerned. One
/// meets the host's kernel with the guest's registers, or none comes any more. A CPU that runs no guests changes nothing.
fn leave_the_first_cpu() -> io::Result<()> {
    let mut cpus = sched_getaffinity(None)?;
    if cpus.count() > 1 {
        cpus.unset(0);
        sched_setaffinity(None, &cpus)?;
    }
    Ok(())
}

/// Keeps two virtual machines that never run open as long as this system lives, if they can be had.
///
/// KVM switches a static key on with the first of each of these and off with the last: VMs (`preempt_notifier_key`, in the
/// middle of `__schedule`), vCPUs whose APIC is not enabled, as it is until their kernel enables it (`apic_sw_disabled`),
/// and vCPUs without an APIC (`kvm_has_noapic_vcpu`), the last two in the middle of `KVM_RUN`. Under TCG with several CPUs,
/// code that is patched while another CPU runs it can be taken up in the middle of an instruction: about one guest in a
/// few dozen then took the whole emulated host along. With one of each always there, nothing is patched.
fn hold_vms() {
    let Ok(kvm) = File::options().read(true).write(true).open("/dev/kvm") else { return };
    for irqchip in [true, false] {
        if let Err(error) = hold_vm(&kvm, irqchip) {
            kernel_log::error(&format!("failed to hold a virtual machine open: {error}"));
        }
    }
}

/// A VM with one vCPU, with or without interrupt controllers. Its descriptors are never closed; KVM opens them
/// close-on-exec, so only this process keeps them.
fn hold_vm(kvm: &File, irqchip: bool) -> io::Result<()> {
    /// `_IO(KVMIO, …)` of the kernel's `include/uapi/linux/kvm.h`.
    const KVM_CREATE_VM: libc::Ioctl = 0xae01;
    const KVM_CREATE_VCPU: libc::Ioctl = 0xae41;
    const KVM_CREATE_IRQCHIP: libc::Ioctl = 0xae60;
    let call = |fd: i32, request| {
        // SAFETY: all three take a number (machine type, nothing, vCPU id), here 0, and touch no memory of ours.
        let result = unsafe { libc::ioctl(fd, request, 0) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    };
    let vm = call(kvm.as_raw_fd(), KVM_CREATE_VM)?;
    if irqchip {
        call(vm, KVM_CREATE_IRQCHIP)?;
    }
    call(vm, KVM_CREATE_VCPU).map(drop)
}

/// Lets guest memory have huge pages when a VMM asks for them. Without, a boot of Debian's kernel takes 24,000 exits, 17,000
/// of them for the first touch of a small page; with them, 7,000.
fn allow_huge_pages() -> io::Result<()> {
    fs::write("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "advise")
}

/// Runs in a thread of its own. A module that is missing may or may not matter: the step that needs it finds out, and the
/// console has the reason.
fn load_modules() {
    // The modules are in the initramfs, which stays this thread's root when the others get another one.
    // SAFETY: it concerns this thread's root and working directory only, which nothing but this function uses.
    if let Err(errno) = unsafe { unshare_unsafe(UnshareFlags::FS) } {
        kernel_log::error(&format!("failed to keep the initramfs for loading modules: {errno}"));
    }
    for complaint in modules::load_all() {
        kernel_log::error(&complaint);
    }
}

/// Mounts `source` once its file system's module has been loaded.
fn mount_when_known(source: &str, target: &str, fs_type: &str, data: &str) -> Result<(), SetupError> {
    wait_for(&format!("the file system {fs_type}"), || {
        fs::read_to_string("/proc/filesystems").ok().filter(|known| lists(known, fs_type)).map(drop)
    })?;
    Ok(mount_at(source, target, fs_type, MountFlags::empty(), data)?)
}

/// A line of `/proc/filesystems` is the name behind a tab, which may have `nodev` before it.
fn lists(proc_filesystems: &str, fs_type: &str) -> bool {
    proc_filesystems.lines().any(|line| line.rsplit('\t').next() == Some(fs_type))
}

fn hello(sleep_10ms_took_ms: u64) -> ToHost {
    let uptime = clock_gettime(ClockId::Boottime);
    let uptime_ms = uptime.tv_sec.cast_unsigned() * 1000 + uptime.tv_nsec.cast_unsigned() / 1_000_000;
    ToHost::Hello {
        protocol: PROTOCOL_VERSION,
        kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
        uptime_ms,
        sleep_10ms_took_ms,
        mounts: Vec::new(),
    }
}

/// Mounts the machine's root directory at [`NEW_ROOT`] and what is fresh on top of it.
fn mount_root() -> Result<(), SetupError> {
    let none = MountFlags::empty();
    let fresh = |source: &str, path: &str, data: &str| mount_at(source, &under(path), source, none, data);
    mount_when_known(ROOT_TAG, NEW_ROOT, "9p", ROOT_OPTIONS)?;
    fresh("proc", "/proc", "")?;
    fresh("sysfs", "/sys", "")?;
    fresh("devtmpfs", "/dev", "")?;
    fresh("devpts", "/dev/pts", "gid=5,mode=620,ptmxmode=666")?;
    fresh("tmpfs", "/dev/shm", "mode=1777")?;
    fresh("tmpfs", "/run", "mode=755")?;
    for (link, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        let (link, target) = (under(&format!("/dev/{link}")), format!("/proc/self/fd{target}"));
        match symlink(&target, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error).during(format!("make {link}"))?,
            _ => {}
        }
    }
    let disk = wait_for("the scratch disk", || device(Path::new("/sys/block"), "serial", SCRATCH_SERIAL))?;
    let scratch = under(SCRATCH_MOUNT);
    mount_when_known(&disk.to_string_lossy(), &scratch, "ext4", "")?;
    let temporary = format!("{scratch}/tmp");
    fs::create_dir_all(&temporary)
        .and_then(|()| fs::set_permissions(&temporary, fs::Permissions::from_mode(0o1777)))
        .during(format!("make {temporary}"))
}

fn under(path: &str) -> String {
    format!("{NEW_ROOT}{path}")
}

/// Makes [`NEW_ROOT`] the root of everything that runs from now on.
fn switch_root() -> Result<(), SetupError> {
    chdir(NEW_ROOT)
        .and_then(|()| mount_move(".", "/"))
        .and_then(|()| chroot("."))
        .and_then(|()| chdir("/"))
        .during("make the machine's root directory ours")
}

/// Asks `look` until it finds something.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, SetupError> {
    let deadline = Instant::now() + DEVICE_LIMIT;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(io::Error::from(io::ErrorKind::TimedOut)).during(format!("find {what}"));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// The device node, if it is there, of that entry of `class` whose attribute `attribute` is `value`.
fn device(class: &Path, attribute: &str, value: &str) -> Option<PathBuf> {
    let node = Path::new("/dev").join(entry_with(class, attribute, value)?);
    node.exists().then_some(node)
}

fn entry_with(class: &Path, attribute: &str, value: &str) -> Option<std::ffi::OsString> {
    let mut entries = fs::read_dir(class).ok()?.flatten();
    let matches = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join(attribute)).is_ok_and(|text| text.trim_end_matches(['\n', '\0']) == value)
    };
    entries.find(matches).map(|entry| entry.file_name())
}

/// Opens the port once QEMU is connected to its other side: before that, reading it means end of file.
fn open_port() -> Result<File, SetupError> {
    let ports = Path::new("/sys/class/virtio-ports");
    let path = wait_for("the virtio-serial port", || device(ports, "name", PORT_NAME))?;
    let port = OpenOptions::new().read(true).write(true).open(&path).during(format!("open {}", path.display()))?;
    wait_for("vmm at the other end of the virtio-serial port", || {
        let mut fds = [PollFd::new(&port, PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())).ok()?;
        let [fd] = fds;
        (!fd.revents().contains(PollFlags::HUP)).then_some(())
    })?;
    Ok(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_attribute_and_not_by_its_place() {
        let class = tempfile::tempdir().expect("tempdir");
        for (name, serial) in [("vda", "other"), ("vdb", "vmm-scratch\n"), ("vdc", "")] {
            fs::create_dir(class.path().join(name)).expect("made");
            fs::write(class.path().join(name).join("serial"), serial).expect("written");
        }
        fs::create_dir(class.path().join("loop0")).expect("made");
        assert_eq!(entry_with(class.path(), "serial", SCRATCH_SERIAL).expect("found"), "vdb");
        assert_eq!(entry_with(class.path(), "serial", "absent"), None);
        assert_eq!(entry_with(Path::new("/no/such/class"), "serial", SCRATCH_SERIAL), None);
    }

    #[test]
    fn a_device_without_a_node_is_not_there_yet() {
        let class = tempfile::tempdir().expect("tempdir");
        fs::create_dir(class.path().join("no-such-node")).expect("made");
        fs::write(class.path().join("no-such-node/name"), "port\n").expect("written");
        assert_eq!(device(class.path(), "name", "port"), None);
    }

    #[test]
    fn a_file_system_is_known_by_its_whole_name() {
        let known = "nodev\tsysfs\nnodev\t9p\n\text4\n";
        assert!(lists(known, "9p") && lists(known, "ext4"));
        assert!(!lists(known, "ext") && !lists(known, "nodev") && !lists(known, ""));
    }

    #[test]
    fn hello_tells_our_version_and_how_long_we_have_been_up() {
        let ToHost::Hello { protocol, uptime_ms, sleep_10ms_took_ms, .. } = hello(12) else { panic!("no hello") };
        assert_eq!((protocol, sleep_10ms_took_ms), (PROTOCOL_VERSION, 12));
        assert!(uptime_ms > 0);
    }
}
