//! Where things lie in the transport's one memory BAR: a page each, so that every capability is aligned and none can
//! grow into the next.

/// Bytes of the BAR. All of it is one range on the VMM's MMIO bus.
pub const BAR_SIZE: u64 = 0x8000;

pub(super) const PAGE: u64 = 0x1000;
pub(super) const COMMON_CONFIG: u64 = 0x0000;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE_CONFIG: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const MSIX_TABLE: u64 = 0x4000;
pub(super) const MSIX_PENDING: u64 = 0x5000;

/// Bytes between the notification addresses of two queues (virtio 1.2 § 4.1.4.4).
pub(super) const NOTIFY_OFF_MULTIPLIER: u32 = 4;
/// Queues of a device: with one more vector than queues the MSI-X table fills its page.
pub const MAX_QUEUES: usize = 255;

/// Part of the BAR that an access falls into, with the offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Region {
    CommonConfig(u64),
    Isr(u64),
    DeviceConfig(u64),
    Notify(u64),
    MsixTable(u64),
    MsixPending(u64),
    Nothing,
}

impl Region {
    pub(super) fn of(offset: u64) -> Self {
        let within = offset % PAGE;
        match offset - within {
            COMMON_CONFIG => Region::CommonConfig(within),
            ISR => Region::Isr(within),
            DEVICE_CONFIG => Region::DeviceConfig(within),
            NOTIFY => Region::Notify(within),
            MSIX_TABLE => Region::MsixTable(within),
            MSIX_PENDING => Region::MsixPending(within),
            _ => Region::Nothing,
        }
    }
}
