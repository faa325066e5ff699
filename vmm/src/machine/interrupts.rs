//! Interrupt delivery: the in-kernel irqchip, irqfds on I/O APIC pins, and MSI-X vectors as irqfds with GSI routes.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::pci::msi::{MsiMessage, MsiVectors};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Pins of KVM's I/O APIC; their GSIs have the same numbers.
const IO_APIC_PINS: u32 = 24;
/// `KVM_MAX_IRQ_ROUTES` of x86.
const MAX_GSI: u32 = 4096;

/// The VM's GSI routing table and the GSIs given out so far.
pub struct InterruptRouter {
    vm: Arc<VmFd>,
    table: Mutex<RoutingTable>,
}

#[derive(Default)]
struct RoutingTable {
    msi: BTreeMap<u32, MsiMessage>,
    given_out: u32,
}

impl InterruptRouter {
    /// A router for `vm`, whose irqchip has been created.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Arc<Self> {
        Arc::new(Self { vm, table: Mutex::new(RoutingTable::default()) })
    }

    /// An eventfd that raises an edge on I/O APIC pin `gsi`.
    ///
    /// # Errors
    /// KVM's own.
    pub fn pin(&self, gsi: u32) -> io::Result<EventFd> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        self.vm.register_irqfd(&event, gsi)?;
        Ok(event)
    }

    /// `count` MSI-X vectors, all disabled.
    ///
    /// # Errors
    /// No eventfd could be had, or all GSIs are given out.
    pub fn msi_vectors(self: &Arc<Self>, count: u16) -> io::Result<Arc<MsiVectorSet>> {
        let first = {
            let mut table = self.lock();
            let first = IO_APIC_PINS + table.given_out;
            if first + u32::from(count) > MAX_GSI {
                return Err(io::Error::other("KVM has no GSIs left"));
            }
            table.given_out += u32::from(count);
            first
        };
        let vectors = (first..first + u32::from(count))
            .map(|gsi| {
                let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
                Ok(Vector { gsi, event, enabled: Mutex::new(false) })
            })
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(MsiVectorSet { router: self.clone(), vectors }))
    }

    /// Routes `gsi` to `message`. KVM replaces its whole table, which waits for every vCPU; an unchanged route is
    /// therefore not sent again.
    fn route(&self, gsi: u32, message: MsiMessage) -> io::Result<()> {
        let mut table = self.lock();
        if table.msi.get(&gsi) == Some(&message) {
            return Ok(());
        }
        let previous = table.msi.insert(gsi, message);
        let result = KvmIrqRouting::from_entries(&entries(&table.msi))
            .map_err(|e| io::Error::other(format!("{e:?}")))
            .and_then(|routing| self.vm.set_gsi_routing(&routing).map_err(io::Error::from));
        if result.is_err() {
            match previous {
                Some(previous) => table.msi.insert(gsi, previous),
                None => table.msi.remove(&gsi),
            };
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, RoutingTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The whole table as KVM takes it: the pins, which replacing it would lose, then the messages.
fn entries(messages: &BTreeMap<u32, MsiMessage>) -> Vec<kvm_irq_routing_entry> {
    let pins = (0..IO_APIC_PINS).map(|pin| {
        let mut entry = kvm_irq_routing_entry { gsi: pin, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
        entry.u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
        entry.u.irqchip.pin = pin;
        entry
    });
    let messages = messages.iter().map(|(gsi, message)| {
        let mut entry = kvm_irq_routing_entry { gsi: *gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
        entry.u.msi.address_lo = message.address as u32;
        entry.u.msi.address_hi = (message.address >> 32) as u32;
        entry.u.msi.data = message.data;
        entry
    });
    pins.chain(messages).collect()
}

/// The vectors of one PCI function.
pub struct MsiVectorSet {
    router: Arc<InterruptRouter>,
    vectors: Vec<Vector>,
}

struct Vector {
    gsi: u32,
    event: EventFd,
    /// Whether KVM listens to the eventfd.
    enabled: Mutex<bool>,
}

impl MsiVectorSet {
    fn vector(&self, index: u16) -> io::Result<&Vector> {
        self.vectors
            .get(usize::from(index))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("no MSI-X vector {index}")))
    }
}

impl MsiVectors for MsiVectorSet {
    fn enable(&self, vector: u16, message: MsiMessage) -> io::Result<()> {
        let vector = self.vector(vector)?;
        let mut enabled = vector.enabled.lock().unwrap_or_else(PoisonError::into_inner);
        self.router.route(vector.gsi, message)?;
        if !*enabled {
            // What was triggered while nobody listened had no effect. No count waiting is the usual case.
            drop(vector.event.read());
            self.router.vm.register_irqfd(&vector.event, vector.gsi)?;
            *enabled = true;
        }
        Ok(())
    }

    fn disable(&self, vector: u16) -> io::Result<()> {
        let vector = self.vector(vector)?;
        let mut enabled = vector.enabled.lock().unwrap_or_else(PoisonError::into_inner);
        if *enabled {
            self.router.vm.unregister_irqfd(&vector.event, vector.gsi)?;
            *enabled = false;
        }
        Ok(())
    }

    fn trigger(&self, vector: u16) -> io::Result<()> {
        self.vector(vector)?.event.write(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_routing_table_keeps_the_pins_beside_the_messages() {
        let message = MsiMessage { address: 0x1_fee0_1000, data: 0x41 };
        let entries = entries(&BTreeMap::from([(30, message)]));
        assert_eq!(entries.len(), 25);
        for (pin, entry) in entries.iter().take(24).enumerate() {
            assert_eq!((entry.gsi, entry.type_), (pin as u32, KVM_IRQ_ROUTING_IRQCHIP));
            // SAFETY: the entry is of the irqchip kind.
            assert_eq!(unsafe { entry.u.irqchip.pin }, pin as u32);
        }
        assert_eq!((entries[24].gsi, entries[24].type_), (30, KVM_IRQ_ROUTING_MSI));
        // SAFETY: the entry is of the MSI kind.
        let msi = unsafe { entries[24].u.msi };
        assert_eq!((msi.address_hi, msi.address_lo, msi.data), (1, 0xfee0_1000, 0x41));
    }

    use std::time::{Duration, Instant};

    use kvm_ioctls::{Kvm, VcpuFd};

    /// Spurious-interrupt vector register: its bit 8 enables the APIC (Intel SDM vol. 3 § 11.9).
    const APIC_SPURIOUS: usize = 0xf0;
    /// First of the eight interrupt request registers, 16 bytes apart (§ 11.8.4).
    const APIC_REQUESTS: usize = 0x200;

    /// A VM with one vCPU whose APIC takes interrupts; `None` when there is no KVM.
    fn machine() -> Option<(Arc<InterruptRouter>, VcpuFd)> {
        let Ok(kvm) = Kvm::new() else {
            println!("skipped: no usable /dev/kvm");
            return None;
        };
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut lapic = vcpu.get_lapic().unwrap();
        lapic.regs[APIC_SPURIOUS + 1] |= 1;
        vcpu.set_lapic(&lapic).unwrap();
        Some((InterruptRouter::new(vm), vcpu))
    }

    fn requested(vcpu: &VcpuFd, vector: usize) -> bool {
        let register = vcpu.get_lapic().unwrap().regs[APIC_REQUESTS + vector / 32 * 16 + vector % 32 / 8];
        register as u8 & 1 << (vector % 8) != 0
    }

    fn becomes_requested(vcpu: &VcpuFd, vector: usize) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !requested(vcpu, vector) {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn to_vector(data: u32) -> MsiMessage {
        MsiMessage { address: 0xfee0_0000, data }
    }

    #[test]
    fn a_triggered_vector_reaches_the_apic_it_is_routed_to() {
        let Some((router, vcpu)) = machine() else { return };
        let vectors = router.msi_vectors(3).unwrap();
        for (index, data) in [(0, 0x41), (1, 0x52), (2, 0x63)] {
            vectors.enable(index, to_vector(data)).unwrap();
        }
        vectors.trigger(1).unwrap();
        assert!(becomes_requested(&vcpu, 0x52));
        assert!(!requested(&vcpu, 0x41) && !requested(&vcpu, 0x63));
        vectors.enable(1, to_vector(0x74)).unwrap();
        vectors.trigger(1).unwrap();
        assert!(becomes_requested(&vcpu, 0x74), "a changed route counts");
    }

    #[test]
    fn a_disabled_vector_is_silent_until_it_is_enabled_and_triggered_again() {
        let Some((router, vcpu)) = machine() else { return };
        let vectors = router.msi_vectors(2).unwrap();
        vectors.trigger(0).unwrap();
        vectors.enable(0, to_vector(0x41)).unwrap();
        vectors.disable(0).unwrap();
        vectors.disable(0).unwrap();
        vectors.trigger(0).unwrap();
        vectors.enable(0, to_vector(0x42)).unwrap();
        // The other vector's arrival shows that there was time for this one's.
        vectors.enable(1, to_vector(0x53)).unwrap();
        vectors.trigger(1).unwrap();
        assert!(becomes_requested(&vcpu, 0x53));
        assert!(!requested(&vcpu, 0x41) && !requested(&vcpu, 0x42));
        vectors.trigger(0).unwrap();
        assert!(becomes_requested(&vcpu, 0x42));
    }

    #[test]
    fn a_vector_beyond_the_set_and_more_vectors_than_gsis_are_errors() {
        let Some((router, _vcpu)) = machine() else { return };
        let vectors = router.msi_vectors(1).unwrap();
        assert!(vectors.trigger(1).is_err());
        assert!(vectors.enable(1, to_vector(0x41)).is_err());
        assert!(router.msi_vectors(u16::MAX).is_err());
        assert!(router.msi_vectors(1).is_ok(), "a refused request takes nothing");
    }
}
