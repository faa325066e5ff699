//! Kernel files: what a file is, what is inside a bzImage, and which release it is.
//!
//! [`identify`] reads headers only and says in one error what a wrong file is instead. [`unpack_to`] takes a bzImage's
//! payload apart once, on the host, where it costs a fraction of a second; the guest's own decompressor would spend
//! seconds of emulated instructions on it at every boot. Nothing here runs or patches kernel code.

mod bzimage;
mod elf;
mod error;
mod foreign;
mod payload;
mod release;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use error::KernelImageError;
pub use payload::Compression;

use bzimage::SetupHeader;

/// How a kernel is wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFormat {
    /// `arch/x86/boot/bzImage`, what distributions install as `vmlinuz`.
    BzImage,
    /// The ELF file `vmlinux`, with or without debug information.
    Vmlinux,
}

/// A file that is an x86-64 Linux kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFile {
    /// The file.
    pub path: PathBuf,
    /// How it is wrapped.
    pub format: KernelFormat,
    /// What `uname -r` will say in a guest that boots it.
    pub release: String,
    /// How a bzImage's payload is compressed; `None` for a vmlinux.
    pub compression: Option<Compression>,
}

/// A kernel's payload is refused beyond this size, bytes: a debug kernel with everything built in has some 200 MiB.
const MAX_VMLINUX: u64 = 1 << 30;

/// Says what kernel the file at `path` is.
///
/// # Errors
/// The file cannot be read, is truncated, or is something else; the error says what.
pub fn identify(path: &Path) -> Result<KernelFile, KernelImageError> {
    let file = open(path)?;
    let head = read_head(&file, path)?;
    if let Some(header) = SetupHeader::parse(&head).map_err(|why| KernelImageError::unusable(path, why))? {
        let length = file.metadata().map_err(|e| KernelImageError::read(path, e))?.len();
        header.check_length(length).map_err(|why| KernelImageError::unusable(path, why))?;
        let magic = read_at_most(&file, header.payload_start(), 16).map_err(|e| KernelImageError::read(path, e))?;
        let compression = Compression::of(&magic).map_err(|why| KernelImageError::unusable(path, why))?;
        let version = read_at_most(&file, header.version_start(), 256).map_err(|e| KernelImageError::read(path, e))?;
        let release = release::first_word(&version)
            .ok_or_else(|| KernelImageError::unusable(path, "its boot header names no kernel version".to_owned()))?;
        return Ok(KernelFile {
            path: path.to_owned(),
            format: KernelFormat::BzImage,
            release,
            compression: Some(compression),
        });
    }
    if !head.starts_with(elf::MAGIC) {
        return Err(KernelImageError::not_a_kernel(path, foreign::describe(&head)));
    }
    let segments = elf::loadable_segments(&file).map_err(|why| KernelImageError::unusable(path, why))?;
    let release = release::find_in(&file, &segments)
        .map_err(|e| KernelImageError::read(path, e))?
        .ok_or_else(|| KernelImageError::not_a_kernel(path, "an x86-64 program that is not Linux".to_owned()))?;
    Ok(KernelFile { path: path.to_owned(), format: KernelFormat::Vmlinux, release, compression: None })
}

/// Writes the ELF vmlinux of the kernel at `path` to `dest`: a bzImage's payload unpacked, a vmlinux copied.
///
/// `dest` appears whole or not at all, and replaces what was there. Returns what `dest` now is.
///
/// # Errors
/// As [`identify`]; also when the payload does not unpack to a loadable ELF kernel or `dest` cannot be written.
pub fn unpack_to(path: &Path, dest: &Path) -> Result<KernelFile, KernelImageError> {
    let kernel = identify(path)?;
    let file = open(path)?;
    let directory = dest.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut target = tempfile::Builder::new()
        .prefix(".vmlinux-")
        .tempfile_in(directory)
        .map_err(|e| KernelImageError::write(dest, e))?;
    match kernel.compression {
        None => {
            let mut source = &file;
            io::copy(&mut source, target.as_file_mut()).map_err(|e| KernelImageError::write(dest, e))?;
        }
        Some(compression) => {
            let vmlinux = unpack_payload(&file, path, compression)?;
            let mut writer = BufWriter::new(target.as_file_mut());
            writer.write_all(&vmlinux).and_then(|()| writer.flush()).map_err(|e| KernelImageError::write(dest, e))?;
        }
    }
    elf::loadable_segments(target.as_file())
        .map_err(|why| KernelImageError::unusable(path, format!("its payload is no loadable kernel: {why}")))?;
    target.persist(dest).map_err(|e| KernelImageError::write(dest, e.error))?;
    Ok(KernelFile { path: dest.to_owned(), format: KernelFormat::Vmlinux, release: kernel.release, compression: None })
}

/// The `.config` a vmlinux carries (`CONFIG_IKCONFIG=y`), or `None` when it carries none. Unpack a bzImage first.
///
/// # Errors
/// The file cannot be read, or is no vmlinux.
pub fn embedded_config(vmlinux: &Path) -> Result<Option<Vec<u8>>, KernelImageError> {
    let file = open(vmlinux)?;
    let segments = elf::loadable_segments(&file).map_err(|why| KernelImageError::unusable(vmlinux, why))?;
    release::embedded_config(&file, &segments).map_err(|e| KernelImageError::read(vmlinux, e))
}

fn unpack_payload(file: &File, path: &Path, compression: Compression) -> Result<Vec<u8>, KernelImageError> {
    let head = read_head(file, path)?;
    let header = SetupHeader::parse(&head).map_err(|why| KernelImageError::unusable(path, why))?;
    let header = header.ok_or_else(|| KernelImageError::unusable(path, "it changed while it was read".to_owned()))?;
    let mut payload = vec![0; header.payload_length()];
    file.read_exact_at(&mut payload, header.payload_start()).map_err(|e| KernelImageError::read(path, e))?;
    payload::unpack(&payload, compression, MAX_VMLINUX).map_err(|why| KernelImageError::unusable(path, why))
}

fn open(path: &Path) -> Result<File, KernelImageError> {
    let file = File::open(path).map_err(|e| KernelImageError::read(path, e))?;
    let metadata = file.metadata().map_err(|e| KernelImageError::read(path, e))?;
    if metadata.is_file() {
        return Ok(file);
    }
    let what = if metadata.is_dir() { "a directory" } else { "not a regular file" };
    Err(KernelImageError::not_a_kernel(path, what.to_owned()))
}

/// The part of a file that every format's header fits in.
fn read_head(file: &File, path: &Path) -> Result<Vec<u8>, KernelImageError> {
    read_at_most(file, 0, 4096).map_err(|e| KernelImageError::read(path, e))
}

/// Up to `length` bytes at `offset`; fewer at the end of the file.
fn read_at_most(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let have = read_at(file, offset, &mut bytes)?;
    bytes.truncate(have);
    Ok(bytes)
}

/// Fills `buffer` from `offset` on; less at the end of the file. Returns how much.
fn read_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while have < buffer.len() {
        match file.read_at(&mut buffer[have..], offset + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}
