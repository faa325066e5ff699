//! Files that look like kernels and are none that can be booted.

/// The start of an x86 bzImage whose header promises more than there is (Linux's Documentation/arch/x86/boot.rst).
#[must_use]
pub fn truncated_bzimage() -> Vec<u8> {
    let mut image = vec![0; 8 << 10];
    image[0x1f1] = 4; // setup_sects
    image[0x1f4..0x1f8].copy_from_slice(&0x0008_0000_u32.to_le_bytes()); // syssize: 8 MiB in units of 16 bytes
    image[0x1fe..0x200].copy_from_slice(&0xaa55_u16.to_le_bytes()); // boot_flag
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes()); // version 2.15
    image[0x211] = 1; // loadflags: LOADED_HIGH
    image[0x236..0x238].copy_from_slice(&1_u16.to_le_bytes()); // xloadflags: XLF_KERNEL_64
    image[0x248..0x24c].copy_from_slice(&0x200_u32.to_le_bytes()); // payload_offset
    image[0x24c..0x250].copy_from_slice(&0x0070_0000_u32.to_le_bytes()); // payload_length
    image
}

/// An arm64 Image (Linux's Documentation/arch/arm64/booting.rst).
#[must_use]
pub fn arm64_image() -> Vec<u8> {
    let mut image = vec![0; 64 << 10];
    image[..2].copy_from_slice(b"MZ");
    image[16..24].copy_from_slice(&(64_u64 << 10).to_le_bytes()); // image_size
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}

/// An ELF executable for another machine (EM_AARCH64).
#[must_use]
pub fn arm64_elf() -> Vec<u8> {
    let mut image = vec![0; 4096];
    image[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    image[16..18].copy_from_slice(&2_u16.to_le_bytes()); // ET_EXEC
    image[18..20].copy_from_slice(&183_u16.to_le_bytes()); // EM_AARCH64
    image[20..24].copy_from_slice(&1_u32.to_le_bytes());
    image
}
