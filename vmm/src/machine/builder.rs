//! From a configuration to a running machine, in the order in which things need each other.

use std::error::Error;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use devices::GuestMem;
use devices::serial_console::SerialConsole;
use devices::virtio::block::BlockDevice;
use devices::virtio::fs::{FsConfig, FsDevice, Tag};
use devices::virtio::pci::MAX_QUEUES;
use devices::virtio::vsock::{VsockDevice, VsockOptions};
use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::{Cap, Kvm};

use super::address_map::{self, COM1, COM1_GSI, I8042, KVM_IDENTITY_MAP, KVM_TSS, MIB, PCI_CONFIG, POWER_CONTROL};
use super::cpu_setup::{self, CpuModel};
use super::flight::Flight;
use super::guest_memory::{self, MemoryError};
use super::inspection::Inspection;
use super::interrupts::InterruptRouter;
use super::io_bus::SharedDevice;
use super::kernel_loader::{self, LoadError};
use super::missing_memory::MissingMemory;
use super::pci_devices::{self, PciBus, PciDevices};
use super::power_control::{PowerControl, ResetController};
use super::statistics::StatisticsReader;
use super::stopper::{self, Stopper};
use super::vcpu::{Buses, VcpuThread};
use super::vcpu_stats::VcpuStats;
use super::{BuildError, MachineConfig, RunningVm, ShareConfig, acpi, command_line, polling};

/// APIC ids of interrupt messages have 8 bits, and 255 is everybody.
const MAX_CPUS: u32 = 254;

/// The guest's vsock address; the host's is 2.
const GUEST_CID: u64 = 3;

/// Builds the machine and starts its vCPUs.
///
/// # Errors
/// See [`BuildError`]; nothing is left behind then.
pub fn start(config: &MachineConfig) -> Result<RunningVm, BuildError> {
    // KVM, and what the configuration asks for against what this host has.
    let kvm = open_kvm()?;
    check_cpus(&kvm, config.cpus)?;
    guest_memory::check_size(config.memory_mib)?;
    let cpu_model = CpuModel::new(&kvm, config.cpus).map_err(BuildError::kvm("read the CPU features KVM supports"))?;
    let shared_memory = pci_devices::shared_memory_window(config);
    check_address_width(&cpu_model, config.memory_mib, &shared_memory)?;
    let console_log =
        File::create(&config.console_log).map_err(BuildError::open("console log", &config.console_log))?;

    // The VM, its RAM and its interrupt controllers.
    let vm = Arc::new(kvm.create_vm().map_err(BuildError::kvm("create a VM"))?);
    polling::set_halt_polling(&kvm, &vm, config.polling.longest()).map_err(BuildError::kvm("set halt polling"))?;
    vm.set_identity_map_address(KVM_IDENTITY_MAP).map_err(BuildError::kvm("place KVM's identity map"))?;
    vm.set_tss_address(KVM_TSS).map_err(BuildError::kvm("place KVM's TSS"))?;
    let ram = guest_memory::create(config.memory_mib)?;
    guest_memory::register(&vm, &ram).map_err(BuildError::kvm("give the VM its memory"))?;
    vm.create_irq_chip().map_err(BuildError::kvm("create the interrupt controllers"))?;
    let router = InterruptRouter::new(vm.clone());

    // Kernel, initramfs and everything that describes the machine to them.
    let kernel = kernel_loader::load_kernel(&ram, &config.kernel)?;
    let initramfs = match &config.initramfs {
        Some(path) => Some(kernel_loader::load_initramfs(&ram, path, kernel, &config.kernel)?),
        None => None,
    };
    kernel_loader::write_command_line(&ram, &command_line::compose(&config.append))?;
    let rsdp = acpi::write_tables(&ram, config.cpus, &shared_memory)?;
    kernel_loader::write_boot_params(&ram, initramfs, rsdp)?;
    cpu_setup::write_boot_tables(&ram).map_err(|_| LoadError::Write("the boot page tables"))?;

    // Devices behind ports.
    let (stopper, stopped) = Stopper::new();
    let buses = Arc::new(Buses::default());
    let serial_interrupt = router.pin(COM1_GSI).map_err(BuildError::kvm("wire the serial port's interrupt"))?;
    let ports: [(_, SharedDevice); 3] = [
        (COM1, Arc::new(Mutex::new(SerialConsole::new(serial_interrupt, Box::new(console_log))))),
        (I8042, Arc::new(Mutex::new(ResetController::new(stopper.clone())))),
        (POWER_CONTROL, Arc::new(Mutex::new(PowerControl::new(stopper.clone())))),
    ];
    for (range, device) in ports {
        add_ports(&buses, range, device)?;
    }
    let memory = GuestMem::new(ram);

    // Devices on the PCI bus; the guest names block devices and numbers PCI slots in this order.
    let mut pci = PciDevices::new(vm.clone(), memory.clone(), router, buses.clone(), stopper.clone(), shared_memory);
    for (name, path) in images(config) {
        pci.add(Box::new(open_image(&name, path)?))?;
    }
    let mut share_stats = Vec::new();
    let mut flight = Flight { shares: Vec::new() };
    for share in &config.shares {
        let share = open_share(share, config)?;
        share_stats.push(share.stats());
        flight.shares.push(share.flight());
        pci.add(Box::new(share))?;
    }
    let (vsock_device, vsock) = VsockDevice::new(GUEST_CID, VsockOptions::default());
    pci.add(Box::new(vsock_device))?;
    let exposed_vsock = match &config.vsock_socket {
        Some(path) => Some(vsock.expose(path).map_err(|e| BuildError::device("vsock", &e))?),
        None => None,
    };
    let PciBus { root: pci_root, devices, shared_memory } = pci.finish();
    add_ports(&buses, PCI_CONFIG, Arc::new(Mutex::new(pci_root)))?;

    // vCPUs: all are made before the first one runs.
    stopper::install_kick_handler().map_err(BuildError::kvm("install the signal handler for vCPU threads"))?;
    let mut vcpu_fds = Vec::new();
    for index in 0..config.cpus {
        let vcpu = vm.create_vcpu(u64::from(index)).map_err(BuildError::kvm("create a vCPU"))?;
        cpu_setup::set_up(&vcpu, &cpu_model, index, kernel.entry).map_err(BuildError::kvm("set up a vCPU"))?;
        vcpu_fds.push(vcpu);
    }
    let vcpus = vcpu_fds.iter().filter_map(VcpuStats::of).collect();
    let stats = StatisticsReader { shares: share_stats, vcpus };
    let mut machine = RunningVm {
        stopper,
        stopped,
        inspection: Inspection::new(config.cpus),
        vcpus: Vec::new(),
        stats,
        flight,
        devices,
        vsock,
        exposed_vsock,
    };
    for (index, vcpu) in (0..).zip(vcpu_fds) {
        // Dropping the machine stops the threads that run already.
        let missing = MissingMemory::new(shared_memory.clone());
        let (stopper, inspection) = (machine.stopper.clone(), machine.inspection.clone());
        let thread = VcpuThread::spawn(index, vcpu, memory.clone(), missing, buses.clone(), stopper, inspection)
            .map_err(|source| BuildError::Thread { name: format!("vcpu{index}"), source })?;
        machine.vcpus.push(thread);
    }
    Ok(machine)
}

fn open_kvm() -> Result<Kvm, BuildError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => BuildError::NoKvm,
        libc::EACCES | libc::EPERM => BuildError::KvmPermission,
        _ => BuildError::KvmOpen(error.into()),
    })?;
    if kvm.get_api_version() != KVM_API_VERSION as i32 {
        return Err(BuildError::KvmLacks("KVM API version 12"));
    }
    let needed = [
        (Cap::UserMemory, "user memory"),
        (Cap::Irqchip, "the in-kernel interrupt controller"),
        (Cap::Irqfd, "irqfd"),
        (Cap::Ioeventfd, "ioeventfd"),
        (Cap::IrqRouting, "interrupt routing"),
        (Cap::ExtCpuid, "CPUID setting"),
        (Cap::ImmediateExit, "immediate exit"),
    ];
    match needed.into_iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Some((_, name)) => Err(BuildError::KvmLacks(name)),
        None => Ok(kvm),
    }
}

fn check_cpus(kvm: &Kvm, asked: u32) -> Result<(), BuildError> {
    let limit = u32::try_from(kvm.get_max_vcpus()).unwrap_or(MAX_CPUS).min(MAX_CPUS);
    if (1..=limit).contains(&asked) { Ok(()) } else { Err(BuildError::Cpus { asked, limit }) }
}

fn check_address_width(model: &CpuModel, memory_mib: u64, shared_memory: &Range<u64>) -> Result<(), BuildError> {
    let (needed, bits) = (address_map::address_bits(memory_mib * MIB, shared_memory), model.address_bits());
    if needed > bits {
        return Err(MemoryError::TooWide { asked: memory_mib, needed, bits }.into());
    }
    Ok(())
}

/// Every block device, with the name the guest finds as its serial number.
fn images(config: &MachineConfig) -> impl Iterator<Item = (String, &Path)> {
    let root = config.root_image.iter().map(|path| ("root".to_owned(), path.as_path()));
    let suites = config.suite_images.iter().enumerate();
    root.chain(suites.map(|(index, path)| (format!("suite{index}"), path.as_path())))
}

fn open_image(name: &str, path: &Path) -> Result<BlockDevice, BuildError> {
    let file = File::open(path).map_err(BuildError::open("image", path))?;
    BlockDevice::new(file, name).map_err(BuildError::open("image", path))
}

fn open_share(share: &ShareConfig, config: &MachineConfig) -> Result<FsDevice, BuildError> {
    let failed = |error: &(dyn Error + 'static)| BuildError::device(&format!("fs[{}]", share.tag), error);
    let mut fs = FsConfig::new(Tag::new(&share.tag).map_err(|e| failed(&e))?, &share.path);
    // A queue per vCPU, as many as the transport has room for beside the high-priority queue.
    let queues = usize::try_from(config.cpus).unwrap_or(MAX_QUEUES).min(MAX_QUEUES - 1);
    fs.request_queues = u16::try_from(queues).unwrap_or(1);
    fs.cache = config.cache;
    fs.poll = config.polling.longest();
    config.share_settings.apply(&mut fs);
    FsDevice::new(fs).map_err(|e| failed(&e))
}

fn add_ports(buses: &Buses, range: std::ops::Range<u16>, device: SharedDevice) -> Result<(), BuildError> {
    let range = u64::from(range.start)..u64::from(range.end);
    buses
        .ports
        .insert(range, device)
        .map_err(|error| BuildError::Kvm { action: "lay out the I/O ports", source: io::Error::other(error) })
}
