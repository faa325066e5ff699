//! Whole machines with kernels of a few instructions, on this machine's KVM. Any KVM can run these, also one that is
//! of no use for a real kernel. Without `/dev/kvm` they say so and pass.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use devices::virtio::fs::CachePolicy;
use tempfile::{NamedTempFile, TempDir};

use super::test_kernel::{Code, file};
use super::*;

/// More than any of these guests needs, on any host.
const PATIENCE: Duration = Duration::from_secs(20);

/// One machine at a time, so that a thread left behind can be told from another test's.
struct Fixture {
    dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

impl Fixture {
    /// `None` when there is no KVM.
    fn new() -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        if !Path::new("/dev/kvm").exists() {
            println!("skipped: there is no /dev/kvm");
            return None;
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Some(Self { dir: tempfile::tempdir().unwrap(), _alone: alone })
    }

    fn config(&self, kernel: &NamedTempFile) -> MachineConfig {
        MachineConfig {
            kernel: kernel.path().to_owned(),
            initramfs: None,
            append: String::new(),
            cpus: 1,
            memory_mib: 128,
            root_image: None,
            suite_images: Vec::new(),
            shares: Vec::new(),
            cache: CachePolicy::Auto,
            share_settings: ShareSettings::default(),
            polling: Polling::default(),
            vsock_socket: None,
            console_log: self.dir.path().join("console.log"),
        }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("console.log")).unwrap()).into_owned()
    }

    /// Runs code to its end.
    fn run(&self, code: Code) -> StopReason {
        let kernel = code.kernel();
        let machine = start(&self.config(&kernel)).unwrap();
        let reason = machine.stopped().recv_timeout(PATIENCE).unwrap();
        assert_eq!(machine.stop(PATIENCE), reason, "the first reason is the one that counts");
        assert_no_machine_threads();
        reason
    }

    fn build_error(&self, config: &MachineConfig) -> String {
        let error = start(config).err().expect("the machine started");
        assert_no_machine_threads();
        error.to_string()
    }
}

/// Waits a little: tests of single vCPU threads run at the same time in this process, and theirs end soon.
fn assert_no_machine_threads() {
    let deadline = Instant::now() + PATIENCE;
    while !machine_threads().is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(machine_threads(), Vec::<String>::new());
}

/// Names of this process's threads that belong to a machine.
fn machine_threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    let of_machine = |name: &String| ["vcpu", "fs[", "block[", "vsock", "teardown"].iter().any(|p| name.starts_with(p));
    names.filter(of_machine).collect()
}

#[test]
fn a_guest_that_powers_off_stops_the_machine_with_that_reason() {
    let Some(fixture) = Fixture::new() else { return };
    assert_eq!(fixture.run(Code::default().out(0x600, 0x34).halt()), StopReason::PowerOff);
}

#[test]
fn a_guest_resets_by_acpi_or_by_the_keyboard_controller() {
    let Some(fixture) = Fixture::new() else { return };
    assert_eq!(fixture.run(Code::default().out(0x602, 1).halt()), StopReason::Reset);
    assert_eq!(fixture.run(Code::default().out(0x64, 0xfe).halt()), StopReason::Reset);
}

#[test]
fn a_triple_fault_is_told_from_a_reset() {
    let Some(fixture) = Fixture::new() else { return };
    assert_eq!(fixture.run(Code::default().undefined()), StopReason::TripleFault { vcpu: 0 });
}

#[test]
fn a_guest_that_runs_into_nowhere_fails_with_its_registers() {
    let Some(fixture) = Fixture::new() else { return };
    // No RAM and no device there: KVM can neither run nor emulate it.
    let reason = fixture.run(Code::default().jump(0xd000_0000));
    let StopReason::KvmFailed { vcpu: 0, detail } = reason else { panic!("{reason:?}") };
    assert!(detail.contains("emulate") && detail.contains("rip 0xd0000000"), "{detail}");
}

#[test]
fn a_guest_that_spins_is_looked_at_and_one_that_ended_shows_where() {
    let Some(fixture) = Fixture::new() else { return };
    let kernel = Code::default().spin().kernel();
    let machine = start(&fixture.config(&kernel)).unwrap();
    let inspector = machine.inspector();
    let seen = inspector.look(PATIENCE);
    assert!(seen.len() == 1 && seen[0].starts_with("vCPU 0: rip 0x"), "{seen:?}");
    // This code has no handler for the NMI it gets; looked at again, it is as it was when it ended.
    let reason = machine.stopped().recv_timeout(PATIENCE).unwrap();
    assert_eq!(reason, StopReason::TripleFault { vcpu: 0 });
    machine.stop(PATIENCE);
    assert!(inspector.has_stopped());
    assert_eq!(inspector.look(Duration::ZERO).len(), 1);
    assert_no_machine_threads();
}

#[test]
fn what_the_guest_prints_is_in_the_console_log() {
    let Some(fixture) = Fixture::new() else { return };
    let code = "hello\n".bytes().fold(Code::default(), |code, byte| code.out(0x3f8, byte));
    fixture.run(code.out(0x600, 0x34).halt());
    assert_eq!(fixture.console(), "hello\n");
}

#[test]
fn what_nobody_backs_reads_as_all_ones_and_takes_writes() {
    let Some(fixture) = Fixture::new() else { return };
    let code = Code::default().out(0x1234, 1).input(0x1234).out_al(0x3f8).load(0xd000_0000).out_al(0x3f8);
    fixture.run(code.out(0x600, 0x34).halt());
    assert_eq!(fs::read(fixture.dir.path().join("console.log")).unwrap(), [0xff, 0xff]);
}

#[test]
fn the_guest_finds_the_host_bridge_and_its_devices_by_configuration_access() {
    let Some(fixture) = Fixture::new() else { return };
    let read_vendor = |code: Code, slot: u32| code.out_eax(0xcf8, 1 << 31 | slot << 11).input(0xcfc).out_al(0x3f8);
    // The bridge, vsock, nothing.
    let code = [0, 1, 2].into_iter().fold(Code::default(), read_vendor);
    fixture.run(code.out(0x600, 0x34).halt());
    assert_eq!(fs::read(fixture.dir.path().join("console.log")).unwrap(), [0x36, 0xf4, 0xff]);
}

/// Slot 1 holds the vsock device of every machine without images and shares.
const VSOCK_BAR: u32 = 0xc000_0000;
/// `num_queues` of the common configuration (virtio 1.2 § 4.1.4.3): 3 for vsock.
const NUM_QUEUES: u32 = 0x12;

/// Writes a register of slot 1's configuration space.
fn configure(code: Code, register: u32, value: u32) -> Code {
    code.out_eax(0xcf8, 1 << 31 | 1 << 11 | register).out_eax(0xcfc, value)
}

/// Gives slot 1's BAR another place and prints what is at the old and at the new one.
fn print_after_move(to: u32) -> Code {
    let code = configure(Code::default(), 4, 2).load(VSOCK_BAR + NUM_QUEUES).out_al(0x3f8);
    let code = configure(configure(configure(code, 4, 0), 0x10, to), 4, 2);
    let code = code.load(VSOCK_BAR + NUM_QUEUES).out_al(0x3f8).load(to + NUM_QUEUES).out_al(0x3f8);
    code.out(0x600, 0x34).halt()
}

#[test]
fn a_device_answers_where_the_guest_moves_its_bar() {
    let Some(fixture) = Fixture::new() else { return };
    fixture.run(print_after_move(0xd000_0000));
    assert_eq!(fs::read(fixture.dir.path().join("console.log")).unwrap(), [3, 0xff, 3]);
}

#[test]
fn a_bar_cannot_be_moved_over_anything_else() {
    let Some(fixture) = Fixture::new() else { return };
    // Into RAM, whose zero stays visible; onto the I/O APIC, whose identification register is selected.
    for (to, seen) in [(0x20_0000, 0), (0xfec0_0000, 0)] {
        fixture.run(print_after_move(to));
        assert_eq!(fs::read(fixture.dir.path().join("console.log")).unwrap(), [3, 3, seen], "{to:#x}");
    }
}

#[test]
fn a_guest_that_never_ends_is_stopped_at_once_with_any_number_of_vcpus() {
    let Some(fixture) = Fixture::new() else { return };
    for (code, cpus) in [(Code::default().spin(), 1), (Code::default().halt(), 2), (Code::default().spin(), 4)] {
        let kernel = code.kernel();
        let machine = start(&MachineConfig { cpus, ..fixture.config(&kernel) }).unwrap();
        assert!(machine.stopped().recv_timeout(Duration::from_millis(50)).is_err(), "it stopped by itself");
        let began = Instant::now();
        assert_eq!(machine.stop(PATIENCE), StopReason::Requested);
        assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
        assert_no_machine_threads();
    }
}

#[test]
fn a_machine_that_is_dropped_leaves_no_thread_and_no_socket() {
    let Some(fixture) = Fixture::new() else { return };
    let kernel = Code::default().spin().kernel();
    let socket = fixture.dir.path().join("vsock");
    let machine = start(&MachineConfig { vsock_socket: Some(socket.clone()), ..fixture.config(&kernel) }).unwrap();
    assert!(socket.exists());
    drop(machine);
    assert_no_machine_threads();
    assert!(!socket.exists());
}

#[test]
fn exits_are_counted_where_kvm_counts_them() {
    let Some(fixture) = Fixture::new() else { return };
    let kernel = Code::default().out(0x80, 0).out(0x80, 0).out(0x600, 0x34).halt().kernel();
    let machine = start(&fixture.config(&kernel)).unwrap();
    machine.stopped().recv_timeout(PATIENCE).unwrap();
    let Some(stats) = machine.vcpu_stats().first() else { return println!("skipped: KVM has no statistics") };
    let counters = stats.read().unwrap();
    let Some((_, exits)) = counters.iter().find(|(name, _)| *name == "exits") else {
        panic!("no counter of exits in {counters:?}")
    };
    println!("{exits} exits");
}

#[test]
fn impossible_sizes_are_refused_before_anything_is_made() {
    let Some(fixture) = Fixture::new() else { return };
    let kernel = Code::default().spin().kernel();
    let config = || fixture.config(&kernel);
    for (config, text) in [
        (MachineConfig { cpus: 0, ..config() }, "0 vCPUs"),
        (MachineConfig { cpus: 1000, ..config() }, "1000 vCPUs"),
        (MachineConfig { memory_mib: 1, ..config() }, "1 MiB of guest memory are too little"),
        (MachineConfig { memory_mib: 1 << 40, ..config() }, "more than this host has"),
    ] {
        let error = fixture.build_error(&config);
        assert!(error.contains(text), "{error}");
        assert!(!config.console_log.exists(), "{text}: the console log was made");
    }
}

#[test]
fn a_bad_file_is_one_error_that_names_it() {
    let Some(fixture) = Fixture::new() else { return };
    let good = Code::default().spin().kernel();
    let text = file(b"this is no kernel");
    let missing = fixture.dir.path().join("missing");
    let share = ShareConfig { path: missing.clone(), tag: "myfs1".to_owned() };
    let config = || fixture.config(&good);
    for (config, words) in [
        (MachineConfig { kernel: missing.clone(), ..config() }, ["kernel", "missing"]),
        (fixture.config(&text), ["no loadable", text.path().to_str().unwrap()]),
        (MachineConfig { initramfs: Some(missing.clone()), ..config() }, ["initramfs", "missing"]),
        (MachineConfig { root_image: Some(missing.clone()), ..config() }, ["image", "missing"]),
        (MachineConfig { suite_images: vec![missing.clone()], ..config() }, ["image", "missing"]),
        (MachineConfig { shares: vec![share], ..config() }, ["myfs1", "missing"]),
        (MachineConfig { console_log: missing.join("log"), ..config() }, ["console log", "missing"]),
        (MachineConfig { append: "x".repeat(4096), ..config() }, ["command line", "--append"]),
        (MachineConfig { vsock_socket: Some(missing.join("s")), ..config() }, ["vsock", "missing"]),
    ] {
        let error = fixture.build_error(&config);
        assert!(words.iter().all(|word| error.contains(word)), "{words:?} not in: {error}");
    }
}

#[test]
fn more_devices_than_slots_are_refused() {
    let Some(fixture) = Fixture::new() else { return };
    let kernel = Code::default().spin().kernel();
    let image = file(&[0; 512]);
    let suite_images = vec![image.path().to_owned(); pci_devices::MAX_DEVICES];
    let error = fixture.build_error(&MachineConfig { suite_images, ..fixture.config(&kernel) });
    assert!(error.contains("31 PCI slots"), "{error}");
}

#[test]
fn a_machine_that_has_stopped_leaves_nothing_behind() {
    let Some(fixture) = Fixture::new() else { return };
    let kernel = Code::default().spin().kernel();
    let share = |tag: &str| ShareConfig { path: fixture.dir.path().to_owned(), tag: tag.to_owned() };
    let config = MachineConfig {
        shares: vec![share("myfs1"), share("myfs2")],
        share_settings: ShareSettings { dax_window: 2 << 20, ..ShareSettings::default() },
        ..fixture.config(&kernel)
    };
    // More windows than there can be at a time.
    for _ in 0..window_guard::MAX_WINDOWS {
        let machine = start(&config).unwrap();
        assert_eq!(machine.stop(PATIENCE), StopReason::Requested);
    }
    assert_no_machine_threads();
}

#[test]
fn a_share_and_images_are_served_and_given_up_again() {
    let Some(fixture) = Fixture::new() else { return };
    let kernel = Code::default().spin().kernel();
    let image = file(&[0; 4096]);
    let share = |tag: &str| ShareConfig { path: fixture.dir.path().to_owned(), tag: tag.to_owned() };
    let config = MachineConfig {
        root_image: Some(image.path().to_owned()),
        suite_images: vec![image.path().to_owned()],
        shares: vec![share("myfs1"), share("myfs2")],
        cpus: 4,
        ..fixture.config(&kernel)
    };
    let machine = start(&config).unwrap();
    assert_eq!(machine.connect(1).unwrap_err().kind(), std::io::ErrorKind::NotConnected);
    assert_eq!(machine.stop(PATIENCE), StopReason::Requested);
    assert_no_machine_threads();
}
