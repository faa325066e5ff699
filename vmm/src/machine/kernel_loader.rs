//! Puts kernel, initramfs, command line and boot parameters into guest RAM for the 64-bit boot protocol
//! (Linux `Documentation/arch/x86/boot.rst`, "64-bit Boot Protocol"): no firmware, no decompressor.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{self, Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};

use super::address_map::{self, COMMAND_LINE, COMMAND_LINE_MAX, HIGH_MEMORY, MIB, ZERO_PAGE};

/// Why the guest cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file does not open or read.
    #[error("failed to read {what} {}", path.display())]
    Read {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The kernel is no loadable ELF file.
    #[error("kernel {} is no loadable x86-64 ELF vmlinux ({reason}); give a vmlinux or a bzImage", path.display())]
    NotLoadable {
        /// The file.
        path: PathBuf,
        /// linux-loader's reason.
        reason: String,
    },
    /// Kernel and initramfs do not fit.
    #[error(
        "{memory_mib} MiB of guest memory are too little for kernel {} and its initramfs; give at least --memory {needed_mib}M",
        path.display()
    )]
    TooLittleMemory {
        /// The kernel.
        path: PathBuf,
        /// Guest RAM.
        memory_mib: u64,
        /// What would do.
        needed_mib: u64,
    },
    /// The command line is too long or cannot be passed.
    #[error("the kernel command line {reason}; shorten --append")]
    CommandLine {
        /// What is wrong with it.
        reason: String,
    },
    /// A boot structure does not fit in guest RAM.
    #[error("failed to write {0} to guest memory")]
    Write(&'static str),
}

/// Room a kernel needs beside itself and its initramfs until user space runs: page structs, per-CPU areas, the
/// unpacked initramfs. A distribution kernel takes some 60 MiB.
const BREATHING_ROOM: u64 = 64 * MIB;

/// A kernel in guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedKernel {
    /// Physical address of the 64-bit entry point.
    pub entry: u64,
    /// First byte after the kernel with its BSS.
    pub end: u64,
}

/// Copies the loadable segments of the vmlinux at `path` to where they are linked.
///
/// # Errors
/// See [`LoadError`].
pub fn load_kernel(memory: &GuestMemoryMmap, path: &Path) -> Result<LoadedKernel, LoadError> {
    let mut file = open("kernel", path)?;
    let loaded = Elf::load(memory, None, &mut file, Some(GuestAddress(HIGH_MEMORY))).map_err(|error| {
        if let loader::Error::Elf(loader::elf::Error::ReadKernelImage) = error {
            // Either the file ends early, which its identification has ruled out, or RAM does.
            return too_little(memory, path, low_memory(memory).end + BREATHING_ROOM);
        }
        LoadError::NotLoadable { path: path.to_owned(), reason: error.to_string() }
    })?;
    if loaded.kernel_end > low_memory(memory).end {
        return Err(too_little(memory, path, loaded.kernel_end + BREATHING_ROOM));
    }
    Ok(LoadedKernel { entry: loaded.kernel_load.0, end: loaded.kernel_end })
}

/// Copies the initramfs to the top of low RAM, out of the way of everything the kernel allocates early, and returns
/// where it is.
///
/// # Errors
/// See [`LoadError`].
pub fn load_initramfs(
    memory: &GuestMemoryMmap,
    path: &Path,
    kernel: LoadedKernel,
    kernel_path: &Path,
) -> Result<Range<u64>, LoadError> {
    let mut file = open("initramfs", path)?;
    let read_error = |source| LoadError::Read { what: "initramfs", path: path.to_owned(), source };
    let length = file.metadata().map_err(read_error)?.len();
    if length == 0 {
        return Err(read_error(io::Error::new(io::ErrorKind::InvalidData, "it is empty; build it again")));
    }
    let top = low_memory(memory).end;
    let needed = kernel.end + length + BREATHING_ROOM;
    if needed > top {
        return Err(too_little(memory, kernel_path, needed));
    }
    let start = (top - length) & !0xfff;
    let count = usize::try_from(length).map_err(|e| read_error(io::Error::other(e)))?;
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut file, count)
        .map_err(|e| read_error(io::Error::other(e)))?;
    Ok(start..start + length)
}

/// Writes the command line, checked for length and content.
///
/// # Errors
/// [`LoadError::CommandLine`].
pub fn write_command_line(memory: &GuestMemoryMmap, line: &str) -> Result<(), LoadError> {
    if line.len() + 1 > COMMAND_LINE_MAX {
        let reason = format!("has {} bytes, x86 kernels read at most {}", line.len(), COMMAND_LINE_MAX - 1);
        return Err(LoadError::CommandLine { reason });
    }
    if line.contains('\0') || line.contains('\n') {
        return Err(LoadError::CommandLine { reason: "contains a newline or a NUL".to_owned() });
    }
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    memory.write_slice(&bytes, GuestAddress(COMMAND_LINE)).map_err(|_| LoadError::Write("the kernel command line"))
}

/// Writes the zero page.
///
/// # Errors
/// [`LoadError::Write`].
pub fn write_boot_params(
    memory: &GuestMemoryMmap,
    initramfs: Option<Range<u64>>,
    rsdp: GuestAddress,
) -> Result<(), LoadError> {
    let too_wide = |_| LoadError::Write("an address beyond 4 GiB into the zero page");
    let mut params = boot_params::default();
    params.hdr.boot_flag = 0xaa55;
    params.hdr.header = u32::from_le_bytes(*b"HdrS");
    // "Undefined" boot loader, without a version.
    params.hdr.type_of_loader = 0xff;
    params.hdr.kernel_alignment = 16 << 20;
    params.hdr.cmd_line_ptr = u32::try_from(COMMAND_LINE).map_err(too_wide)?;
    params.hdr.cmdline_size = COMMAND_LINE_MAX as u32;
    if let Some(Range { start, end }) = initramfs {
        params.hdr.ramdisk_image = u32::try_from(start).map_err(too_wide)?;
        params.hdr.ramdisk_size = u32::try_from(end - start).map_err(too_wide)?;
    }
    params.acpi_rsdp_addr = rsdp.0;
    for (entry, (range, kind)) in params.e820_table.iter_mut().zip(address_map::e820(ram_bytes(memory))) {
        *entry = boot_e820_entry { addr: range.start, size: range.end - range.start, type_: kind as u32 };
        params.e820_entries += 1;
    }
    memory.write_obj(params, GuestAddress(ZERO_PAGE)).map_err(|_| LoadError::Write("the zero page"))
}

fn open(what: &'static str, path: &Path) -> Result<File, LoadError> {
    File::open(path).map_err(|source| LoadError::Read { what, path: path.to_owned(), source })
}

fn too_little(memory: &GuestMemoryMmap, kernel: &Path, needed: u64) -> LoadError {
    LoadError::TooLittleMemory {
        path: kernel.to_owned(),
        memory_mib: ram_bytes(memory) / MIB,
        needed_mib: needed.div_ceil(MIB).next_multiple_of(16),
    }
}

/// RAM below the hole.
fn low_memory(memory: &GuestMemoryMmap) -> Range<u64> {
    memory.iter().next().map_or(0..0, |region| region.start_addr().0..region.start_addr().0 + region.len())
}

fn ram_bytes(memory: &GuestMemoryMmap) -> u64 {
    memory.iter().map(GuestMemoryRegion::len).sum()
}

#[cfg(test)]
mod tests {
    use super::super::guest_memory;
    use super::super::test_kernel::{elf, file};
    use super::*;

    fn kernel(address: u64, memory_size: u64) -> Vec<u8> {
        elf(address, memory_size, b"code")
    }

    #[test]
    fn a_kernel_is_loaded_where_it_is_linked_and_its_bss_counts() {
        let memory = guest_memory::create(128).unwrap();
        let loaded = load_kernel(&memory, file(&kernel(16 * MIB, MIB)).path()).unwrap();
        assert_eq!(loaded, LoadedKernel { entry: 16 * MIB, end: 17 * MIB });
        assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(16 * MIB)).unwrap(), *b"code");
    }

    #[test]
    fn a_kernel_beyond_the_end_of_memory_says_how_much_would_do() {
        let memory = guest_memory::create(128).unwrap();
        for (address, size) in [(127 * MIB, 2 * MIB), (256 * MIB, 4)] {
            let error = load_kernel(&memory, file(&kernel(address, size)).path()).unwrap_err();
            assert!(matches!(error, LoadError::TooLittleMemory { memory_mib: 128, .. }), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_elf_kernel_is_refused() {
        let memory = guest_memory::create(128).unwrap();
        for content in [&b"hello"[..], &[0; 4096], &kernel(0x1000, 4)] {
            let error = load_kernel(&memory, file(content).path()).unwrap_err();
            assert!(matches!(error, LoadError::NotLoadable { .. }), "{error}");
        }
    }

    #[test]
    fn the_initramfs_lies_page_aligned_at_the_top_of_low_memory() {
        let memory = guest_memory::create(4096).unwrap();
        let kernel = LoadedKernel { entry: 16 * MIB, end: 64 * MIB };
        let range = load_initramfs(&memory, file(&[7; 5000]).path(), kernel, Path::new("k")).unwrap();
        assert_eq!(range, 3 * 1024 * MIB - 8192..3 * 1024 * MIB - 8192 + 5000);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(range.end - 1)).unwrap(), 7);
    }

    #[test]
    fn an_initramfs_that_does_not_fit_is_refused() {
        let memory = guest_memory::create(128).unwrap();
        let kernel = LoadedKernel { entry: 16 * MIB, end: 63 * MIB };
        let error = load_initramfs(&memory, file(&vec![7; 2 << 20]).path(), kernel, Path::new("k")).unwrap_err();
        assert!(error.to_string().contains("--memory 144M"), "{error}");
        assert!(load_initramfs(&memory, file(b"").path(), kernel, Path::new("k")).is_err());
    }

    #[test]
    fn a_command_line_of_the_longest_length_fits_and_one_byte_more_does_not() {
        let memory = guest_memory::create(128).unwrap();
        write_command_line(&memory, &"x".repeat(COMMAND_LINE_MAX - 1)).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(COMMAND_LINE + COMMAND_LINE_MAX as u64 - 1)).unwrap(), 0);
        let error = write_command_line(&memory, &"x".repeat(COMMAND_LINE_MAX)).unwrap_err().to_string();
        assert!(error.contains("2048 bytes"), "{error}");
        assert!(write_command_line(&memory, "a\nb").is_err());
    }

    #[test]
    fn the_zero_page_describes_memory_initramfs_and_acpi() {
        let memory = guest_memory::create(4096).unwrap();
        write_boot_params(&memory, Some(0x1000..0x3000), GuestAddress(0xe_0000)).unwrap();
        let params: boot_params = memory.read_obj(GuestAddress(ZERO_PAGE)).unwrap();
        let (image, size, rsdp) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size, params.acpi_rsdp_addr);
        assert_eq!((image, size, rsdp), (0x1000, 0x2000, 0xe_0000));
        assert_eq!(usize::from(params.e820_entries), address_map::e820(4096 * MIB).len());
        let last = params.e820_table[usize::from(params.e820_entries) - 1];
        let (address, length) = (last.addr, last.size);
        assert_eq!((address, length), (4096 * MIB, 1024 * MIB));
    }
}
