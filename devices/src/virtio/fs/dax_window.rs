//! The DAX window: addresses of this process that the guest sees as memory, with pieces of host files mapped there.
//!
//! Addresses without a file are reserved (PROT_NONE) and cost no memory; an access of the guest's fails like one behind
//! the end of a file that was cut short. Nobody here loads from or stores to the window.
//!
//! A mapping that goes on behind the end of its file, because that shrank or was shorter from the start, has addresses that
//! look mapped and fail when touched. KVM takes such a failure of a mapping that allows the access for one that will pass
//! (asynchronous page faults: `hva_to_pfn` in Linux virt/kvm/kvm_main.c) and tries again for ever. [`watch`] therefore
//! turns pages that files do not have into reserved ones, of which KVM tells the VMM.
//!
//! They come back when the file has grown: before a request of the guest's that made it grow is answered, or, when somebody
//! on the host did, as soon as the guest touches them, [`watch`] at the latest.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::constants::{DAX_RANGE, MAP_ALIGNMENT_LOG2, MAX_DAX_MAPPINGS};
use super::passthrough::{Permit, errno};
use crate::virtio::SharedMemory;

/// What offsets and lengths are multiples of.
const PAGE: u64 = 1 << MAP_ALIGNMENT_LOG2;
/// How long a program of the guest may hang before it gets its SIGBUS.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);
/// Bytes; virtual until touched.
const WATCH_STACK: usize = 128 << 10;
/// How many mappings were restored in all windows.
static RESTORED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// [`RESTORED`] when this thread, a vCPU's, asked last.
    static RESTORED_BEFORE: Cell<u64> = const { Cell::new(0) };
}

/// `shmid` of the cache window (VIRTIO_FS_SHMCAP_ID_CACHE, virtio 1.2 § 5.11.5).
const CACHE_ID: u8 = 0;

/// A file that stays open as long as any part of it is mapped.
#[derive(Debug)]
pub(super) struct MappedFile {
    node: u64,
    file: File,
    /// Its descriptor counts.
    _permit: Permit,
}

impl MappedFile {
    /// An open file of `node`.
    pub(super) fn new(node: u64, file: File, permit: Permit) -> Self {
        MappedFile { node, file, _permit: permit }
    }
}

/// A piece of a file in the window.
#[derive(Clone, Debug)]
struct Mapping {
    len: u64,
    file: Arc<MappedFile>,
    file_offset: u64,
    writable: bool,
    /// From so many bytes on something else is there instead of the file, which ended there.
    ended: Option<Ended>,
}

/// What is behind the end of a file.
#[derive(Clone, Copy, Debug)]
struct Ended {
    at: u64,
    /// Zeros, as opposed to nothing.
    zeros: bool,
}

impl Mapping {
    /// Bytes of it that the file has now, in whole pages.
    fn present(&self) -> io::Result<u64> {
        let end = self.file.file.metadata()?.len().checked_next_multiple_of(PAGE).unwrap_or(u64::MAX);
        Ok(end.saturating_sub(self.file_offset).min(self.len))
    }
}

/// Mappings by their offset in the window. They do not overlap.
type Mappings = BTreeMap<u64, Mapping>;

/// A share's window.
#[derive(Debug)]
pub(super) struct DaxWindow {
    /// Address of the reservation and its length, which is more than the window's for the sake of alignment.
    reserved: (usize, usize),
    base: usize,
    size: u64,
    mappings: Mutex<Mappings>,
    /// Some mapping may have zeros in it, which the guest can use without anybody noticing that its file has grown. Spares a
    /// look at all of them with every request.
    any_zeros: AtomicBool,
}

impl DaxWindow {
    /// Reserves `size` bytes, aligned as huge pages are.
    ///
    /// # Errors
    /// The host's own.
    pub(super) fn new(size: u64) -> io::Result<Self> {
        let whole = size.checked_add(DAX_RANGE).and_then(|whole| usize::try_from(whole).ok());
        let whole = whole.ok_or_else(|| errno(libc::ENOMEM))?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping wherever there is room, which nothing refers to yet.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), whole, ProtFlags::empty(), flags) }?.addr();
        let base = start.next_multiple_of(DAX_RANGE as usize);
        let (mappings, any_zeros) = (Mutex::default(), AtomicBool::new(false));
        Ok(DaxWindow { reserved: (start, whole), base, size, mappings, any_zeros })
    }

    /// Checks a range: not empty, whole pages, inside the window.
    ///
    /// # Errors
    /// EINVAL.
    pub(super) fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        let aligned = offset.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len > 0;
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.size);
        if aligned && inside { Ok(()) } else { Err(errno(libc::EINVAL)) }
    }

    /// Maps `len` bytes of `file` from `file_offset` on at `offset`, instead of what was there.
    ///
    /// # Errors
    /// EINVAL: see [`DaxWindow::check`]; ENOMEM: too many mappings; and the host's own, after which nothing may be left
    /// of what was there.
    pub(super) fn map(
        &self,
        offset: u64,
        len: u64,
        file: MappedFile,
        file_offset: u64,
        writable: bool,
    ) -> io::Result<()> {
        self.check(offset, len)?;
        let in_file = file_offset.checked_add(len).is_some_and(|end| i64::try_from(end).is_ok());
        if !in_file || !file_offset.is_multiple_of(PAGE) {
            return Err(errno(libc::EINVAL));
        }
        let mapping = Mapping { len, file: Arc::new(file), file_offset, writable, ended: None };
        try_out(&mapping)?;
        let mut mappings = self.lock();
        let end = offset + len;
        let replaced = mappings.range(offset..end).filter(|(start, old)| *start + old.len <= end).count();
        if mappings.len() - replaced >= MAX_DAX_MAPPINGS {
            return Err(errno(libc::ENOMEM));
        }
        carve(&mut mappings, offset, len);
        self.place(offset, &mapping)?;
        mappings.insert(offset, mapping);
        Ok(())
    }

    /// Takes a range back.
    ///
    /// # Errors
    /// EINVAL: see [`DaxWindow::check`]; ENOMEM: it would leave too many pieces; and the host's own.
    pub(super) fn unmap(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len)?;
        let mut mappings = self.lock();
        let around = mappings.range(..offset).next_back();
        let splits = around.is_some_and(|(start, mapping)| start + mapping.len > offset + len);
        if splits && mappings.len() >= MAX_DAX_MAPPINGS {
            return Err(errno(libc::ENOMEM));
        }
        carve(&mut mappings, offset, len);
        self.fill(offset, len, ProtFlags::empty())
    }

    /// Takes everything back.
    pub(super) fn clear(&self) {
        let mut mappings = self.lock();
        if mappings.is_empty() {
            return;
        }
        mappings.clear();
        self.any_zeros.store(false, Ordering::Relaxed);
        if let Err(error) = self.fill(0, self.size, ProtFlags::empty()) {
            tracing::error!("failed to empty a DAX window: {error}");
        }
    }

    /// Brings files back that have grown since they were found too short.
    fn restore_grown(&self) {
        let mut mappings = self.lock();
        self.restore(&mut mappings, |_| true);
        let any = mappings.values().any(|mapping| mapping.ended.is_some_and(|ended| ended.zeros));
        self.any_zeros.store(any, Ordering::Relaxed);
    }

    /// The same if the guest might use zeros instead.
    pub(super) fn restore_zeros(&self) {
        if self.any_zeros.load(Ordering::Relaxed) {
            self.restore_grown();
        }
    }

    /// The same for one file, which the guest has just made longer.
    pub(super) fn restore_file(&self, node: u64) {
        self.restore(&mut self.lock(), |mapping| mapping.file.node == node);
    }

    fn restore(&self, mappings: &mut Mappings, of_interest: impl Fn(&Mapping) -> bool) {
        for (offset, mapping) in mappings.iter_mut().filter(|(_, mapping)| of_interest(mapping)) {
            let Some(Ended { at, .. }) = mapping.ended else { continue };
            if !mapping.present().is_ok_and(|present| present > at) {
                continue;
            }
            // Only what was taken back: the guest goes on using the rest.
            match self.place(offset + at, &part(mapping, at, mapping.len - at)) {
                Ok(()) => {
                    mapping.ended = None;
                    RESTORED.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => mapping.ended = Some(Ended { at, zeros: false }),
            }
        }
    }

    /// Takes the pages back that files do not have.
    fn withdraw_missing(&self) -> io::Result<()> {
        for (offset, mapping) in self.lock().iter_mut() {
            let present = mapping.present()?;
            if present < mapping.ended.map_or(mapping.len, |ended| ended.at) {
                self.end(*offset, mapping, Ended { at: present, zeros: false })?;
            }
        }
        Ok(())
    }

    /// Puts something else where the file of a mapping has ended.
    fn end(&self, offset: u64, mapping: &mut Mapping, ended: Ended) -> io::Result<()> {
        let protection = if ended.zeros { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::empty() };
        self.fill(offset.wrapping_add(ended.at), mapping.len - ended.at, protection)?;
        mapping.ended = Some(ended);
        self.any_zeros.fetch_or(ended.zeros, Ordering::Relaxed);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Mappings> {
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address of a checked offset.
    fn address(&self, offset: u64) -> *mut std::ffi::c_void {
        ptr::with_exposed_provenance_mut(self.base.wrapping_add(offset as usize))
    }

    /// Maps a file at `offset`, where there is room for it.
    fn place(&self, offset: u64, mapping: &Mapping) -> io::Result<()> {
        let (len, flags) = (mapping.len as usize, MapFlags::SHARED | MapFlags::FIXED);
        let fd = mapping.file.file.as_fd();
        // SAFETY: the range is checked to lie inside the reservation, which is ours alone and which no reference points
        // into; callers hold the lock.
        match unsafe { mmap(self.address(offset), len, protection(mapping), flags, fd, mapping.file_offset) } {
            Ok(_) => Ok(()),
            Err(error) => {
                // Linux before 6.13 leaves a hole, which must not be given to somebody else while the guest sees it.
                self.fill(offset, mapping.len, ProtFlags::empty())?;
                Err(error.into())
            }
        }
    }

    /// Puts anonymous memory at a checked range.
    fn fill(&self, offset: u64, len: u64, protection: ProtFlags) -> io::Result<()> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: as in `place`.
        unsafe { mmap_anonymous(self.address(offset), len as usize, protection, flags) }?;
        Ok(())
    }
}

impl SharedMemory for DaxWindow {
    fn id(&self) -> u8 {
        CACHE_ID
    }

    fn host_address(&self) -> *mut u8 {
        self.address(0).cast()
    }

    fn size(&self) -> u64 {
        self.size
    }

    /// True also when this thread has not heard of something that was restored: another vCPU, which touched the same pages,
    /// or the watch may have been faster.
    fn restore_grown(&self) -> bool {
        DaxWindow::restore_grown(self);
        let restored = RESTORED.load(Ordering::Relaxed);
        RESTORED_BEFORE.replace(restored) != restored
    }

    fn cover_missing(&self) -> io::Result<u64> {
        let mut covered = 0;
        for (offset, mapping) in self.lock().iter_mut() {
            let present = mapping.present()?;
            let zeros_from = mapping.ended.filter(|ended| ended.zeros).map_or(mapping.len, |ended| ended.at);
            if present < zeros_from {
                self.end(*offset, mapping, Ended { at: present, zeros: true })?;
                covered += zeros_from - present;
            }
        }
        Ok(covered)
    }
}

impl Drop for DaxWindow {
    fn drop(&mut self) {
        let (start, len) = self.reserved;
        // SAFETY: the reservation is ours, and whoever holds its address holds this object.
        if let Err(error) = unsafe { munmap(ptr::with_exposed_provenance_mut(start), len) } {
            tracing::error!("failed to give a DAX window's addresses back: {error}");
        }
    }
}

fn protection(mapping: &Mapping) -> ProtFlags {
    if mapping.writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ }
}

/// Looks for files that shrink and grow, on a thread called `name` that ends some time after the window.
///
/// # Errors
/// The thread could not be started.
pub(super) fn watch(window: &Arc<DaxWindow>, name: &str) -> io::Result<()> {
    let window = Arc::downgrade(window);
    let body = move || {
        loop {
            std::thread::sleep(WATCH_INTERVAL);
            let Some(window) = window.upgrade() else { return };
            // In this order: a file that grows all the time has room to grow into until the next look.
            if let Err(error) = window.withdraw_missing() {
                tracing::debug!("a mapped file cannot be looked at: {error}");
            }
            window.restore_grown();
        }
    };
    std::thread::Builder::new().name(name.to_owned()).stack_size(WATCH_STACK).spawn(body)?;
    Ok(())
}

/// Finds out whether the file can be mapped, before anything is given up for it.
fn try_out(mapping: &Mapping) -> io::Result<()> {
    let (len, fd) = (PAGE as usize, mapping.file.file.as_fd());
    // SAFETY: a new mapping wherever there is room, which nothing refers to.
    let trial = unsafe { mmap(ptr::null_mut(), len, protection(mapping), MapFlags::SHARED, fd, mapping.file_offset) }?;
    // SAFETY: just mapped.
    unsafe { munmap(trial, len) }?;
    Ok(())
}

/// Removes a checked range from the table. Mappings that reach into it keep what lies outside.
fn carve(mappings: &mut Mappings, offset: u64, len: u64) {
    let end = offset.saturating_add(len);
    let first = mappings.range(..offset).next_back().filter(|(start, mapping)| *start + mapping.len > offset);
    let from = first.map_or(offset, |(start, _)| *start);
    let touched: Vec<u64> = mappings.range(from..end).map(|(start, _)| *start).collect();
    for start in touched {
        let Some(mapping) = mappings.remove(&start) else { continue };
        if start < offset {
            mappings.insert(start, part(&mapping, 0, offset - start));
        }
        if start + mapping.len > end {
            mappings.insert(end, part(&mapping, end - start, start + mapping.len - end));
        }
    }
}

/// `len` bytes of a mapping from `skip` on.
fn part(mapping: &Mapping, skip: u64, len: u64) -> Mapping {
    let within = |ended: Ended| Ended { at: ended.at.saturating_sub(skip), ..ended };
    let ended = mapping.ended.map(within).filter(|ended| ended.at < len);
    Mapping { len, file_offset: mapping.file_offset + skip, ended, ..mapping.clone() }
}
