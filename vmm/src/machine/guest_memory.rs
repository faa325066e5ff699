//! Guest RAM: one memfd, mapped once and shared with KVM and every device.

use std::fs::File;
use std::io;
use std::ops::Range;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::MemfdFlags;
use vm_memory::{FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, MmapRegion};

use super::address_map::{self, MIB};

/// The smallest guest that a distribution kernel boots in with an initramfs, MiB.
pub const MIN_MEMORY_MIB: u64 = 128;

/// Memory slots below this are RAM's.
pub const FIRST_SHARED_SLOT: u32 = 8;

/// Why guest RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Less than [`MIN_MEMORY_MIB`].
    #[error("{0} MiB of guest memory are too little: a kernel with its initramfs needs at least {MIN_MEMORY_MIB} MiB")]
    TooSmall(u64),
    /// More than the host has.
    #[error(
        "{asked} MiB of guest memory are more than this host has: {total} MiB of RAM and swap; give a smaller --memory"
    )]
    TooLarge {
        /// What was asked for, MiB.
        asked: u64,
        /// RAM and swap of the host, MiB.
        total: u64,
    },
    /// More than the CPU can address.
    #[error(
        "{asked} MiB of guest memory need {needed} address bits, this host's guests have {bits}; give a smaller --memory"
    )]
    TooWide {
        /// What was asked for, MiB.
        asked: u64,
        /// Bits needed for it.
        needed: u32,
        /// Bits there are.
        bits: u32,
    },
    /// The host refused.
    #[error("failed to {action} for {mib} MiB of guest memory")]
    Host {
        /// What was tried.
        action: &'static str,
        /// How much memory.
        mib: u64,
        /// The reason.
        source: io::Error,
    },
}

/// Checks a size against the smallest guest and against what the host has, before anything is built.
///
/// # Errors
/// [`MemoryError::TooSmall`], [`MemoryError::TooLarge`].
pub fn check_size(mib: u64) -> Result<(), MemoryError> {
    if mib < MIN_MEMORY_MIB {
        return Err(MemoryError::TooSmall(mib));
    }
    let host = rustix::system::sysinfo();
    let unit = u64::from(host.mem_unit.max(1));
    // The widths of sysinfo's fields differ between C libraries.
    #[expect(clippy::useless_conversion, reason = "c_ulong is u64 on this target, not on every one")]
    let total = (u64::from(host.totalram) + u64::from(host.totalswap)).saturating_mul(unit) / MIB;
    // RAM is given out as the guest touches it, so a guest as large as the host is fine; a larger one cannot be.
    if mib > total {
        return Err(MemoryError::TooLarge { asked: mib, total });
    }
    Ok(())
}

/// Maps `mib` of shared, not yet populated memory, split around the 32-bit hole.
///
/// # Errors
/// [`MemoryError::Host`].
pub fn create(mib: u64) -> Result<GuestMemoryMmap, MemoryError> {
    let host = |action| move |source: io::Error| MemoryError::Host { action, mib, source };
    let bytes = mib * MIB;
    let memfd =
        rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC).map_err(|e| host("create a memfd")(e.into()))?;
    rustix::fs::ftruncate(&memfd, bytes).map_err(|e| host("size the memfd")(e.into()))?;
    let file = std::sync::Arc::new(File::from(memfd));
    let mut offset = 0;
    let mut regions = Vec::new();
    for Range { start, end } in address_map::ram_ranges(bytes) {
        // Every mapping of a file that vm-memory makes is MAP_SHARED | MAP_NORESERVE.
        let length = usize::try_from(end - start).map_err(|e| host("map the memfd")(io::Error::other(e)))?;
        regions.push((GuestAddress(start), length, Some(FileOffset::from_arc(file.clone(), offset))));
        offset += end - start;
    }
    let memory =
        GuestMemoryMmap::from_ranges_with_files(regions).map_err(|e| host("map the memfd")(io::Error::other(e)))?;
    for region in memory.iter() {
        prefer_huge_pages(region);
    }
    Ok(memory)
}

/// Asks for huge pages: each page fault of a guest under nested paging is an exit, and a boot touches tens of
/// thousands of small pages. Only takes effect where the host's `transparent_hugepage/shmem_enabled` allows it.
fn prefer_huge_pages(region: &MmapRegion) {
    // SAFETY: the range is a mapping that `region` owns; the advice changes no content.
    let result =
        unsafe { rustix::mm::madvise(region.as_ptr().cast(), region.size(), rustix::mm::Advice::LinuxHugepage) };
    if let Err(error) = result {
        tracing::debug!("no huge pages for guest memory: {error}");
    }
}

/// Makes `memory` the RAM of `vm`, one memslot per region.
///
/// # Errors
/// KVM's own.
pub fn register(vm: &VmFd, memory: &GuestMemoryMmap) -> io::Result<()> {
    for (slot, region) in memory.iter().enumerate() {
        let memslot = kvm_userspace_memory_region {
            slot: u32::try_from(slot).map_err(io::Error::other)?,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is mapped and stays so: the caller keeps `memory` until the VM and its vCPUs are gone,
        // and regions do not overlap by construction.
        unsafe { vm.set_user_memory_region(memslot) }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn too_little_and_impossible_sizes_are_refused_with_the_number() {
        assert!(check_size(1).unwrap_err().to_string().contains("1 MiB"));
        assert!(check_size(MIN_MEMORY_MIB).is_ok());
        // 1 EiB: no host has it.
        let error = check_size(1 << 40).unwrap_err().to_string();
        assert!(error.contains("more than this host has"), "{error}");
    }

    #[test]
    fn memory_above_the_hole_is_another_part_of_the_same_memfd() {
        let memory = create(4096).unwrap();
        let low = GuestAddress(address_map::HOLE.start - 8);
        let high = GuestAddress(address_map::HOLE.end);
        memory.write_obj(0x1111_u64, low).unwrap();
        memory.write_obj(0x2222_u64, high).unwrap();
        assert!(memory.write_obj(0_u64, GuestAddress(address_map::HOLE.start)).is_err());
        assert_eq!(memory.read_obj::<u64>(low).unwrap(), 0x1111);
        assert_eq!(memory.read_obj::<u64>(high).unwrap(), 0x2222);
        let offsets: Vec<u64> = memory.iter().map(|r| r.file_offset().unwrap().start()).collect();
        assert_eq!(offsets, [0, address_map::HOLE.start]);
    }

    #[test]
    fn memory_is_not_populated_before_it_is_touched() {
        let memory = create(1024).unwrap();
        let file = memory.iter().next().unwrap().file_offset().unwrap().file().metadata().unwrap();
        assert_eq!(file.len(), 1 << 30);
        assert_eq!(std::os::unix::fs::MetadataExt::blocks(&file), 0);
    }
}
