//! The capabilities that tell the driver where the transport's structures are (virtio 1.2 § 4.1.4).

use super::layout::{COMMON_CONFIG, DEVICE_CONFIG, ISR, MSIX_PENDING, MSIX_TABLE, NOTIFY, NOTIFY_OFF_MULTIPLIER, PAGE};
use crate::pci::{BarIndex, ConfigSpace, PciError};

/// Capability ids (PCI 3.0 appendix H).
const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;

/// `cfg_type` (§ 4.1.4).
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI_CONFIG: u8 = 5;
const TYPE_SHARED_MEMORY: u8 = 8;

/// Bytes of `virtio_pci_common_cfg` up to and with `queue_device`: what follows belongs to features not offered.
pub(super) const COMMON_CONFIG_LEN: u32 = 56;
/// Bytes of `virtio_pci_cap`, and of `pci_cfg_data` behind it.
const CAP_LEN: u8 = 16;

/// Where the capabilities that the transport has to look into ended up.
pub(super) struct Capabilities {
    /// Offset of the MSI-X message control register.
    pub(super) msix_control: usize,
    /// Offset of `virtio_pci_cfg_cap`.
    pub(super) pci_config: usize,
}

/// Bytes of `virtio_pci_cfg_cap` before `pci_cfg_data`, and all of them.
pub(super) const PCI_CONFIG_DATA: usize = CAP_LEN as usize;
pub(super) const PCI_CONFIG_LEN: usize = PCI_CONFIG_DATA + 4;

/// A window into the BAR, chosen by the driver through `virtio_pci_cfg_cap` (§ 4.1.4.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PciConfigWindow {
    pub(super) offset: u64,
    pub(super) len: usize,
}

impl Capabilities {
    /// Adds all of them to `config` for a device with this many queues and MSI-X vectors, and maybe shared memory with
    /// this id and size, which begins where its BAR does.
    pub(super) fn add(
        config: &mut ConfigSpace,
        queues: u32,
        vectors: u16,
        shared_memory: Option<(u8, u64)>,
    ) -> Result<Self, PciError> {
        let msix = config.add_capability(CAP_MSIX, &msix(vectors), &[0, 0xc0])?;
        let mut add = |body: Vec<u8>, writable: &[u8]| config.add_capability(CAP_VENDOR, &body, writable);
        add(virtio(CAP_LEN, TYPE_COMMON, COMMON_CONFIG, COMMON_CONFIG_LEN), &[])?;
        add(virtio(CAP_LEN, TYPE_ISR, ISR, 1), &[])?;
        add(virtio(CAP_LEN, TYPE_DEVICE, DEVICE_CONFIG, PAGE as u32), &[])?;
        let mut notify = virtio(CAP_LEN + 4, TYPE_NOTIFY, NOTIFY, queues * NOTIFY_OFF_MULTIPLIER);
        notify.extend(NOTIFY_OFF_MULTIPLIER.to_le_bytes());
        add(notify, &[])?;
        if let Some((id, size)) = shared_memory {
            add(virtio64(TYPE_SHARED_MEMORY, BarIndex::SharedMemory, id, size), &[])?;
        }
        let mut access = virtio(CAP_LEN + 4, TYPE_PCI_CONFIG, 0, 0);
        access.extend([0; 4]);
        // cap_len, cfg_type: no; bar: yes; id, padding: no; offset, length, data: yes.
        let writable = [0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        let pci_config = add(access, &writable)?;
        Ok(Capabilities { msix_control: msix + 2, pci_config })
    }

    /// The MSI-X message control register, if a write of `len` bytes at `offset` touched it.
    pub(super) fn written_msix_control(&self, config: &ConfigSpace, offset: usize, len: usize) -> Option<u16> {
        let touched = offset < self.msix_control + 2 && self.msix_control < offset.saturating_add(len);
        touched.then(|| u16::from_le_bytes(config.get(self.msix_control)))
    }

    /// The window, if an access at `offset` falls into `pci_cfg_data` and what the driver chose makes sense.
    pub(super) fn pci_config_window(&self, config: &ConfigSpace, offset: usize) -> Option<PciConfigWindow> {
        let data = self.pci_config + PCI_CONFIG_DATA;
        if !(data..self.pci_config + PCI_CONFIG_LEN).contains(&offset) {
            return None;
        }
        let [bar] = config.get(self.pci_config + 4);
        let offset = u32::from_le_bytes(config.get(self.pci_config + 8));
        let len = u32::from_le_bytes(config.get(self.pci_config + 12));
        // § 4.1.4.9.1: lengths 1, 2 and 4, offset a multiple of the length.
        let fits = bar == 0 && matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len);
        fits.then_some(PciConfigWindow { offset: u64::from(offset), len: len as usize })
    }
}

/// `virtio_pci_cap` without its first two bytes.
fn virtio(cap_len: u8, cfg_type: u8, offset: u64, len: u32) -> Vec<u8> {
    let bar = 0;
    let (id, padding) = (0, [0, 0]);
    let mut body = vec![cap_len, cfg_type, bar, id];
    body.extend(padding);
    body.extend((offset as u32).to_le_bytes());
    body.extend(len.to_le_bytes());
    body
}

/// `virtio_pci_cap64` (§ 4.1.4.7) without its first two bytes: offset and length have 64 bits, the upper halves behind
/// the lower ones of `virtio_pci_cap`.
fn virtio64(cfg_type: u8, bar: BarIndex, id: u8, len: u64) -> Vec<u8> {
    let mut body = vec![CAP_LEN + 8, cfg_type, bar as u8, id];
    let (padding, offset_low, offset_high) = ([0; 2], [0; 4], [0; 4]);
    body.extend(padding);
    body.extend(offset_low);
    body.extend((len as u32).to_le_bytes());
    body.extend(offset_high);
    body.extend(((len >> 32) as u32).to_le_bytes());
    body
}

/// The MSI-X capability without its first two bytes (PCI 3.0 § 6.8.2): the low three bits of an offset name the BAR.
fn msix(vectors: u16) -> Vec<u8> {
    let mut body = vectors.saturating_sub(1).to_le_bytes().to_vec();
    body.extend((MSIX_TABLE as u32).to_le_bytes());
    body.extend((MSIX_PENDING as u32).to_le_bytes());
    body
}
