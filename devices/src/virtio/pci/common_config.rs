//! Common configuration (virtio 1.2 § 4.1.4.3): the registers through which a driver negotiates features and sets up
//! queues. What the writes lead to is decided in [`super::device`].

use super::capabilities::COMMON_CONFIG_LEN;
use super::queue_config::QueueConfig;
use super::transport_interrupt::TransportInterrupt;

/// VIRTIO_F_VERSION_1 (§ 6): no device here works without.
pub(super) const FEATURE_VERSION_1: u64 = 1 << 32;

/// Registers that are plain values.
pub(super) struct CommonConfig {
    pub(super) offered: u64,
    pub(super) accepted: u64,
    pub(super) status: u8,
    pub(super) queues: Vec<QueueConfig>,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
}

/// A write that is more than a new value in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// To the device status register.
    Status(u8),
    /// `queue_enable` of this queue.
    EnableQueue(u16),
}

impl CommonConfig {
    pub(super) fn new(offered: u64, queue_max_sizes: &[u16]) -> Self {
        CommonConfig {
            offered: offered | FEATURE_VERSION_1,
            accepted: 0,
            status: 0,
            queues: queue_max_sizes.iter().map(|size| QueueConfig::new(*size)).collect(),
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        self.accepted = 0;
        self.status = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        self.queues.iter_mut().for_each(QueueConfig::reset);
    }

    /// Features can no longer change: VERSION_1 is among them, nothing that was not offered is.
    pub(super) fn features_acceptable(&self) -> bool {
        self.accepted & FEATURE_VERSION_1 != 0 && self.accepted & !self.offered == 0
    }

    /// Reads any bytes; zeros past the end. `status` is what the status register shows.
    pub(super) fn read(&self, interrupt: &TransportInterrupt, status: u8, offset: u64, data: &mut [u8]) {
        let image = self.image(interrupt, status);
        data.fill(0);
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (out, byte) in data.iter_mut().zip(image.into_iter().skip(skip)) {
            *out = byte;
        }
    }

    fn image(&self, interrupt: &TransportInterrupt, status: u8) -> Vec<u8> {
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let selected = self.queues.get(usize::from(self.queue_select));
        let register = |read: fn(&QueueConfig) -> u64| selected.map_or(0, read);
        let mut image = Vec::with_capacity(COMMON_CONFIG_LEN as usize);
        image.extend(self.device_feature_select.to_le_bytes());
        image.extend(half(self.offered, self.device_feature_select).to_le_bytes());
        image.extend(self.driver_feature_select.to_le_bytes());
        image.extend(half(self.accepted, self.driver_feature_select).to_le_bytes());
        image.extend(interrupt.config_vector().to_le_bytes());
        image.extend((self.queues.len() as u16).to_le_bytes());
        image.extend([status, interrupt.config_generation()]);
        image.extend(self.queue_select.to_le_bytes());
        // A size of zero says that there is no such queue.
        image.extend((register(|queue| queue.size.into()) as u16).to_le_bytes());
        image.extend(interrupt.queue_vector(self.queue_select).to_le_bytes());
        image.extend((register(|queue| queue.enabled.into()) as u16).to_le_bytes());
        // queue_notify_off: each queue has its own notification address.
        image.extend(selected.map_or(0, |_| self.queue_select).to_le_bytes());
        image.extend(register(|queue| queue.desc).to_le_bytes());
        image.extend(register(|queue| queue.driver).to_le_bytes());
        image.extend(register(|queue| queue.device).to_le_bytes());
        image
    }

    /// Takes a write of a whole register, or of one half of a 64-bit one (§ 4.1.3.1). Others, and writes to read-only
    /// registers, are dropped.
    pub(super) fn write(&mut self, interrupt: &TransportInterrupt, offset: u64, data: &[u8]) -> Effect {
        if let (0x20..0x38, Ok(whole)) = (offset, <[u8; 8]>::try_from(data)) {
            let value = u64::from_le_bytes(whole);
            self.write_queue_address(offset, value as u32);
            self.write_queue_address(offset + 4, (value >> 32) as u32);
            return Effect::None;
        }
        let Some(value) = little_endian(data) else { return Effect::None };
        let word = value as u16;
        match (offset, data.len()) {
            (0x00, 4) => self.device_feature_select = value,
            (0x08, 4) => self.driver_feature_select = value,
            (0x0c, 4) => self.accept_features(value),
            (0x10, 2) => interrupt.set_config_vector(word),
            (0x14, 1) => return Effect::Status(value as u8),
            (0x16, 2) => self.queue_select = word,
            (0x18, 2) => self.with_selected(|queue| queue.size = word),
            (0x1a, 2) => interrupt.set_queue_vector(self.queue_select, word),
            (0x1c, 2) if value == 1 => return Effect::EnableQueue(self.queue_select),
            (0x20..0x38, 4) => self.write_queue_address(offset, value),
            _ => tracing::debug!("write of {} bytes at {offset:#x} of common configuration dropped", data.len()),
        }
        Effect::None
    }

    fn accept_features(&mut self, value: u32) {
        if self.status & super::device_status::FEATURES_OK != 0 {
            return;
        }
        let shift = match self.driver_feature_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.accepted = self.accepted & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }

    fn write_queue_address(&mut self, offset: u64, value: u32) {
        let (shift, register) = if offset % 8 < 4 { (0, offset) } else { (32, offset - 4) };
        self.with_selected(|queue| {
            let address = match register {
                0x20 => &mut queue.desc,
                0x28 => &mut queue.driver,
                0x30 => &mut queue.device,
                _ => return,
            };
            *address = *address & !(0xffff_ffff << shift) | u64::from(value) << shift;
        });
    }

    /// Changes the selected queue. An enabled one keeps what it was enabled with (§ 4.1.4.3.2).
    fn with_selected(&mut self, change: impl FnOnce(&mut QueueConfig)) {
        if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| !queue.enabled) {
            change(queue);
        }
    }
}

fn little_endian(data: &[u8]) -> Option<u32> {
    match *data {
        [a] => Some(a.into()),
        [a, b] => Some(u16::from_le_bytes([a, b]).into()),
        [a, b, c, d] => Some(u32::from_le_bytes([a, b, c, d])),
        _ => None,
    }
}
