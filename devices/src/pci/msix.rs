//! MSI-X (PCI 3.0 § 6.8.2): the table and the pending bits of one function, and signalling without a lock.
//!
//! A device worker signals a vector while a vCPU may be masking it. Each vector has a generation, odd while it is
//! deliverable, which changes with every change to the vector. A signal reads it, triggers, and reads it again: unchanged
//! means that the trigger went out before anything was masked. Otherwise, and whenever the vector is masked, the signal
//! takes the table's lock and either triggers (again: a spurious interrupt is harmless, a lost one is a hang) or sets
//! the pending bit.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::msi::{MsiMessage, MsiVectors};

/// Virtio's "no vector" (virtio 1.2 § 4.1.5.1.2); never a table index, which end at 2047.
pub const NO_VECTOR: u16 = 0xffff;

/// Bytes of a table entry.
const ENTRY_SIZE: usize = 16;
/// Message control: function mask and enable (§ 6.8.2.3).
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const CONTROL_ENABLE: u16 = 1 << 15;
/// Vector control: masked (§ 6.8.2.9). The reset state.
const ENTRY_MASKED: u32 = 1;

/// MSI-X of one function, shared between its configuration space, its BAR and its workers.
pub struct Msix {
    vectors: Arc<dyn MsiVectors>,
    generations: Box<[AtomicU32]>,
    table: Mutex<Table>,
}

struct Table {
    entries: Vec<Entry>,
    enabled: bool,
    function_masked: bool,
}

#[derive(Clone, Copy)]
struct Entry {
    message: MsiMessage,
    control: u32,
    pending: bool,
    /// What `MsiVectors` was told last.
    routed: Option<MsiMessage>,
}

impl Msix {
    /// `count` vectors, all masked, MSI-X off.
    pub fn new(vectors: Arc<dyn MsiVectors>, count: u16) -> Self {
        let entry = Entry { message: MsiMessage::default(), control: ENTRY_MASKED, pending: false, routed: None };
        let entries = vec![entry; usize::from(count)];
        let generations = entries.iter().map(|_| AtomicU32::new(0)).collect();
        Msix { vectors, generations, table: Mutex::new(Table { entries, enabled: false, function_masked: false }) }
    }

    /// Number of vectors.
    pub fn count(&self) -> u16 {
        u16::try_from(self.generations.len()).unwrap_or(u16::MAX)
    }

    /// Sends `vector`, or remembers it as pending while it is masked. Unknown vectors are dropped.
    ///
    /// # Errors
    /// The VMM could not send it.
    pub fn signal(&self, vector: u16) -> io::Result<()> {
        let Some(generation) = self.generations.get(usize::from(vector)) else { return Ok(()) };
        let before = generation.load(Ordering::SeqCst);
        if before % 2 == 1 {
            self.vectors.trigger(vector)?;
            if generation.load(Ordering::SeqCst) == before {
                return Ok(());
            }
        }
        let mut table = self.lock();
        let enabled = table.enabled;
        let Some(entry) = table.entries.get_mut(usize::from(vector)) else { return Ok(()) };
        if entry.routed.is_some() {
            return self.vectors.trigger(vector);
        }
        // Without MSI-X there is no pending bit to set (§ 6.8.2.10).
        entry.pending |= enabled;
        Ok(())
    }

    /// The guest wrote the message control register.
    ///
    /// # Errors
    /// A route could not be installed or removed.
    pub fn write_control(&self, control: u16) -> io::Result<()> {
        let mut table = self.lock();
        table.enabled = control & CONTROL_ENABLE != 0;
        table.function_masked = control & CONTROL_FUNCTION_MASK != 0;
        let count = self.count();
        (0..count).try_for_each(|vector| self.apply(&mut table, vector))
    }

    /// The guest reads the table. Any offset and length; zeros past the end.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let table = self.lock();
        data.fill(0);
        let bytes = table.entries.iter().flat_map(Entry::bytes);
        for (out, byte) in data.iter_mut().zip(bytes.skip(usize::try_from(offset).unwrap_or(usize::MAX))) {
            *out = byte;
        }
    }

    /// The guest writes the table. Aligned 4- and 8-byte writes count (§ 6.8.2), others are dropped.
    ///
    /// # Errors
    /// A route could not be installed or removed.
    pub fn write_table(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return Ok(());
        }
        let Ok(vector) = u16::try_from(offset / ENTRY_SIZE as u64) else { return Ok(()) };
        let mut table = self.lock();
        let Some(entry) = table.entries.get_mut(usize::from(vector)) else { return Ok(()) };
        let mut field = offset % ENTRY_SIZE as u64;
        for word in data.chunks_exact(4) {
            entry.write(field, word.try_into().map_or(0, u32::from_le_bytes));
            field += 4;
        }
        self.apply(&mut table, vector)
    }

    /// The guest reads the pending bit array. Any offset and length; zeros past the end.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let table = self.lock();
        data.fill(0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = table.entries.chunks(8).skip(start);
        for (out, entries) in data.iter_mut().zip(bytes) {
            *out = entries.iter().rev().fold(0, |byte, entry| byte << 1 | u8::from(entry.pending));
        }
    }

    /// Tells the VMM about `vector` if what it should do changed, and sends what was pending.
    fn apply(&self, table: &mut Table, vector: u16) -> io::Result<()> {
        let deliverable = table.enabled && !table.function_masked;
        let index = usize::from(vector);
        let (Some(entry), Some(generation)) = (table.entries.get_mut(index), self.generations.get(index)) else {
            return Ok(());
        };
        let wanted = (deliverable && entry.control & ENTRY_MASKED == 0).then_some(entry.message);
        if !table.enabled {
            entry.pending = false;
        }
        if wanted == entry.routed {
            return Ok(());
        }
        if entry.routed.take().is_some() {
            // Even from here on: signals that read the odd value and trigger will see that it changed.
            generation.fetch_add(1, Ordering::SeqCst);
            if wanted.is_none() {
                return self.vectors.disable(vector);
            }
        }
        if let Some(message) = wanted {
            self.vectors.enable(vector, message)?;
            entry.routed = wanted;
            generation.fetch_add(1, Ordering::SeqCst);
            if std::mem::take(&mut entry.pending) {
                self.vectors.trigger(vector)?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn bytes(&self) -> [u8; ENTRY_SIZE] {
        let address = u128::from(self.message.address);
        let (data, control) = (u128::from(self.message.data), u128::from(self.control));
        (address | data << 64 | control << 96).to_le_bytes()
    }

    fn write(&mut self, field: u64, value: u32) {
        let message = &mut self.message;
        match field {
            // The two low bits of the address are reserved (§ 6.8.2.6).
            0 => message.address = message.address & !0xffff_ffff | u64::from(value & !3),
            4 => message.address = message.address & 0xffff_ffff | u64::from(value) << 32,
            8 => message.data = value,
            12 => self.control = value & ENTRY_MASKED,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
