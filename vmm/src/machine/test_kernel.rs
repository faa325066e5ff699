//! Kernels of a few bytes, for tests: an ELF file whose only segment is the code given.

use std::io::Write;

use tempfile::NamedTempFile;

/// Where the code is linked: the usual place of a kernel.
pub(super) const CODE_ADDRESS: u64 = 16 << 20;

/// An ELF kernel of one segment at `address` with `code` in it, which claims `memory_size` bytes.
pub(super) fn elf(address: u64, memory_size: u64, code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 120;
    let mut elf = vec![0u8; HEADERS as usize];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16] = 2;
    elf[18] = 62;
    elf[24..32].copy_from_slice(&address.to_le_bytes());
    elf[32] = 64;
    elf[54] = 56;
    elf[56] = 1;
    elf[64] = 1;
    elf[72..80].copy_from_slice(&HEADERS.to_le_bytes());
    elf[88..96].copy_from_slice(&address.to_le_bytes());
    elf[96..104].copy_from_slice(&(code.len() as u64).to_le_bytes());
    elf[104..112].copy_from_slice(&memory_size.to_le_bytes());
    elf.extend_from_slice(code);
    elf
}

/// A file with `content`, removed when dropped.
pub(super) fn file(content: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

/// 64-bit code, instruction by instruction.
#[derive(Default)]
pub(super) struct Code(Vec<u8>);

impl Code {
    /// `mov dx, port; mov al, value; out dx, al`.
    pub(super) fn out(mut self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        self.0.extend_from_slice(&[0x66, 0xba, low, high, 0xb0, value, 0xee]);
        self
    }

    /// `mov dx, port; mov eax, value; out dx, eax`.
    pub(super) fn out_eax(mut self, port: u16, value: u32) -> Self {
        let [low, high] = port.to_le_bytes();
        self.0.extend_from_slice(&[0x66, 0xba, low, high, 0xb8]);
        self.0.extend_from_slice(&value.to_le_bytes());
        self.0.push(0xef);
        self
    }

    /// `mov dx, port; in al, dx`.
    pub(super) fn input(mut self, port: u16) -> Self {
        let [low, high] = port.to_le_bytes();
        self.0.extend_from_slice(&[0x66, 0xba, low, high, 0xec]);
        self
    }

    /// `mov dx, port; out dx, al`.
    pub(super) fn out_al(mut self, port: u16) -> Self {
        let [low, high] = port.to_le_bytes();
        self.0.extend_from_slice(&[0x66, 0xba, low, high, 0xee]);
        self
    }

    /// `mov ebx, address; mov al, [rbx]`.
    pub(super) fn load(mut self, address: u32) -> Self {
        self.0.push(0xbb);
        self.0.extend_from_slice(&address.to_le_bytes());
        self.0.extend_from_slice(&[0x8a, 0x03]);
        self
    }

    /// `mov eax, address; jmp rax`.
    pub(super) fn jump(mut self, address: u32) -> Self {
        self.0.push(0xb8);
        self.0.extend_from_slice(&address.to_le_bytes());
        self.0.extend_from_slice(&[0xff, 0xe0]);
        self
    }

    /// `ud2`, which without an interrupt table is a triple fault.
    pub(super) fn undefined(mut self) -> Self {
        self.0.extend_from_slice(&[0x0f, 0x0b]);
        self
    }

    /// `jmp .`.
    pub(super) fn spin(mut self) -> Self {
        self.0.extend_from_slice(&[0xeb, 0xfe]);
        self
    }

    /// `cli; hlt`, from which nothing wakes.
    pub(super) fn halt(mut self) -> Self {
        self.0.extend_from_slice(&[0xfa, 0xf4]);
        self
    }

    /// The code as a kernel file.
    pub(super) fn kernel(self) -> NamedTempFile {
        file(&elf(CODE_ADDRESS, 4096, &self.0))
    }
}
