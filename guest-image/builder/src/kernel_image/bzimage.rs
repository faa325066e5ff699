//! The setup header at the start of a bzImage (Linux `Documentation/arch/x86/boot.rst`).

/// Field offsets in the first sector and after it.
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const BOOT_FLAG: usize = 0x1fe;
const HEADER_MAGIC: usize = 0x202;
const PROTOCOL: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const XLOADFLAGS: usize = 0x236;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The header is whole when the file has this many bytes.
const HEADER_END: usize = 0x268;

/// `XLF_KERNEL_64`: the kernel has a 64-bit entry point.
const KERNEL_64: u16 = 1;
/// Protocol 2.12 (Linux 3.8) brought `xloadflags`; every x86-64 kernel that has virtio-fs is newer.
const OLDEST_PROTOCOL: u16 = 0x020c;

const SECTOR: u64 = 512;

/// What of the setup header is needed to find the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetupHeader {
    setup_bytes: u64,
    system_bytes: u64,
    version_start: u64,
    payload_offset: u64,
    payload_length: u32,
}

impl SetupHeader {
    /// `None` when `head`, the first 4 KiB of a file, is no bzImage; an error when it is one that cannot be booted.
    pub(super) fn parse(head: &[u8]) -> Result<Option<Self>, String> {
        if u16_at(head, BOOT_FLAG) != Some(0xaa55) || head.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
            return Ok(None);
        }
        if head.len() < HEADER_END {
            return Err(format!("it is truncated inside the boot header, after {} bytes", head.len()));
        }
        let protocol = u16_at(head, PROTOCOL).unwrap_or(0);
        if protocol < OLDEST_PROTOCOL {
            let (major, minor) = (protocol >> 8, protocol & 0xff);
            return Err(format!("its boot protocol {major}.{minor:02} is older than 2.12 (Linux 3.8)"));
        }
        if u16_at(head, XLOADFLAGS).unwrap_or(0) & KERNEL_64 == 0 {
            return Err("it is a 32-bit x86 kernel; a kernel built with CONFIG_64BIT=y is needed".to_owned());
        }
        // "For backwards compatibility, if the setup_sects field contains 0, the real value is 4."
        let setup_sectors = match head[SETUP_SECTS] {
            0 => 4,
            n => u64::from(n),
        };
        let header = Self {
            setup_bytes: (setup_sectors + 1) * SECTOR,
            system_bytes: u64::from(u32_at(head, SYSSIZE)) * 16,
            version_start: u64::from(u16_at(head, KERNEL_VERSION).unwrap_or(0)) + SECTOR,
            payload_offset: u64::from(u32_at(head, PAYLOAD_OFFSET)),
            payload_length: u32_at(head, PAYLOAD_LENGTH),
        };
        if u64::from(header.payload_length) > header.system_bytes || header.payload_length < 16 {
            return Err("its boot header is damaged: the payload does not fit in the image".to_owned());
        }
        Ok(Some(header))
    }

    /// Checks that a file of `length` bytes holds the whole payload.
    pub(super) fn check_length(&self, length: u64) -> Result<(), String> {
        let wanted = self.payload_start() + u64::from(self.payload_length);
        if length < wanted {
            return Err(format!("it is truncated: {length} bytes of at least {wanted}; copy or build it again"));
        }
        Ok(())
    }

    /// Where the version string starts, bytes into the file; somewhere in the header when the kernel has none.
    pub(super) fn version_start(&self) -> u64 {
        self.version_start
    }

    /// Where the payload starts, bytes into the file.
    pub(super) fn payload_start(&self) -> u64 {
        self.setup_bytes + self.payload_offset
    }

    /// How many bytes the payload has, with the size word that most compressions have appended.
    pub(super) fn payload_length(&self) -> usize {
        self.payload_length as usize
    }
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..offset + 2).map(|b| u16::from_le_bytes([b[0], b[1]]))
}

/// Callers have checked [`HEADER_END`].
fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes([bytes[offset], bytes[offset + 1], bytes[offset + 2], bytes[offset + 3]])
}
