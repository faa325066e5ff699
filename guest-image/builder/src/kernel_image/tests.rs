//! Small made-up kernels for every format and every kind of damage, and whatever real kernels the machine has.

use std::fs;
use std::io::{Read, Write};
use std::path::PathBuf;

use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
use tempfile::TempDir;

use super::*;

const RELEASE: &str = "6.12.117+deb12-cloud-amd64";
const CONFIG: &[u8] = b"CONFIG_64BIT=y\nCONFIG_VIRTIO_FS=y\n";
const SETUP_SECTORS: usize = 3;
const PAYLOAD_OFFSET: usize = 100;

/// An ELF executable with one PT_LOAD segment that holds `data`.
fn elf(data: &[u8], e_type: u16, machine: u16, class: u8) -> Vec<u8> {
    let mut file = vec![0u8; 128];
    file[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1, 1, 0]);
    file[16..18].copy_from_slice(&e_type.to_le_bytes());
    file[18..20].copy_from_slice(&machine.to_le_bytes());
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..56].copy_from_slice(&56u16.to_le_bytes());
    file[56..58].copy_from_slice(&1u16.to_le_bytes());
    file[64..68].copy_from_slice(&1u32.to_le_bytes());
    file[72..80].copy_from_slice(&128u64.to_le_bytes());
    file[96..104].copy_from_slice(&(data.len() as u64).to_le_bytes());
    file.extend_from_slice(data);
    file
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn vmlinux() -> Vec<u8> {
    let mut data = b"%s version %s Linux version (none) ".to_vec();
    data.resize(100_000, 0x90);
    data.extend_from_slice(format!("Linux version {RELEASE} (builder@host) (gcc) #1 SMP\n\0").as_bytes());
    data.extend_from_slice(b"IKCFG_ST");
    data.extend_from_slice(&gzip(CONFIG));
    data.extend_from_slice(b"IKCFG_ED");
    elf(&data, 2, 62, 2)
}

fn liblzma_with(stream: Stream, data: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    liblzma::bufread::XzEncoder::new_stream(data, stream).read_to_end(&mut packed).unwrap();
    packed
}

/// What the kernel's build makes of `data`, size word included.
fn pack(data: &[u8], compression: Compression) -> Vec<u8> {
    let mut packed = match compression {
        Compression::None => return data.to_vec(),
        Compression::Gzip => return gzip(data),
        Compression::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Lzma => {
            liblzma_with(Stream::new_lzma_encoder(&LzmaOptions::new_preset(6).unwrap()).unwrap(), data)
        }
        Compression::Xz => {
            let mut filters = Filters::new();
            filters.x86().lzma2(&LzmaOptions::new_preset(6).unwrap());
            liblzma_with(Stream::new_stream_encoder(&filters, Check::Crc32).unwrap(), data)
        }
        Compression::Lz4 => {
            let mut packed = b"\x02\x21\x4c\x18".to_vec();
            for block in data.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend_from_slice(&(block.len() as u32).to_le_bytes());
                packed.extend_from_slice(&block);
            }
            packed
        }
        Compression::Zstd => ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest),
    };
    packed.extend_from_slice(&(data.len() as u32).to_le_bytes());
    packed
}

fn bzimage(payload: &[u8]) -> Vec<u8> {
    let setup = (SETUP_SECTORS + 1) * 512;
    let mut file = vec![0u8; setup + PAYLOAD_OFFSET];
    file[..2].copy_from_slice(b"MZ");
    file[0x1f1] = SETUP_SECTORS as u8;
    file[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    file[0x20e..0x210].copy_from_slice(&0x200u16.to_le_bytes());
    file[0x236] = 1;
    file[0x248..0x24c].copy_from_slice(&(PAYLOAD_OFFSET as u32).to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let version = format!("{RELEASE} (builder@host) #1 SMP\0");
    file[0x400..0x400 + version.len()].copy_from_slice(version.as_bytes());
    file.extend_from_slice(payload);
    file.resize(file.len().next_multiple_of(16), 0);
    let system = (file.len() - setup).div_ceil(16) as u32;
    file[0x1f4..0x1f8].copy_from_slice(&system.to_le_bytes());
    file
}

struct Fixture {
    dir: TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn file(&self, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join("kernel");
        fs::write(&path, content).unwrap();
        path
    }

    fn dest(&self) -> PathBuf {
        self.dir.path().join("vmlinux")
    }

    fn entries(&self) -> usize {
        fs::read_dir(self.dir.path()).unwrap().count()
    }
}

fn identify_error(content: &[u8]) -> String {
    let fixture = Fixture::new();
    identify(&fixture.file(content)).unwrap_err().to_string()
}

#[test]
fn a_bzimage_of_every_compression_unpacks_to_the_vmlinux_it_was_made_of() {
    use Compression::{Bzip2, Gzip, Lz4, Lzma, None, Xz, Zstd};
    for compression in [None, Gzip, Bzip2, Lzma, Xz, Lz4, Zstd] {
        let fixture = Fixture::new();
        let path = fixture.file(&bzimage(&pack(&vmlinux(), compression)));
        let kernel = identify(&path).unwrap();
        assert_eq!(kernel.compression, Some(compression));
        assert_eq!((kernel.format, kernel.release.as_str()), (KernelFormat::BzImage, RELEASE));
        let unpacked = unpack_to(&path, &fixture.dest()).unwrap();
        assert_eq!((unpacked.format, unpacked.release.as_str()), (KernelFormat::Vmlinux, RELEASE));
        assert_eq!(fs::read(fixture.dest()).unwrap(), vmlinux(), "{compression:?}");
        assert_eq!(fixture.entries(), 2, "{compression:?} left a temporary file");
    }
}

#[test]
fn an_lz4_payload_of_several_blocks_unpacks_whole() {
    let mut data = vec![7u8; 17 << 20];
    data[9 << 20] = 8;
    assert_eq!(payload::unpack(&pack(&data, Compression::Lz4), Compression::Lz4, MAX_VMLINUX).unwrap(), data);
}

#[test]
fn a_vmlinux_tells_its_release_and_its_configuration() {
    let fixture = Fixture::new();
    let path = fixture.file(&vmlinux());
    let kernel = identify(&path).unwrap();
    assert_eq!((kernel.format, kernel.release.as_str()), (KernelFormat::Vmlinux, RELEASE));
    assert_eq!(embedded_config(&path).unwrap().as_deref(), Some(CONFIG));
    unpack_to(&path, &fixture.dest()).unwrap();
    assert_eq!(fs::read(fixture.dest()).unwrap(), vmlinux());
}

#[test]
fn a_banner_across_the_border_of_two_pieces_is_found() {
    for shift in 0..80 {
        let mut data = vec![0u8; (4 << 20) - 60 + shift];
        data.extend_from_slice(format!("Linux version {RELEASE} (x)\0").as_bytes());
        data.resize(5 << 20, 0);
        let fixture = Fixture::new();
        assert_eq!(identify(&fixture.file(&elf(&data, 2, 62, 2))).unwrap().release, RELEASE, "shift {shift}");
    }
}

#[test]
fn a_kernel_without_ikconfig_has_no_configuration() {
    let fixture = Fixture::new();
    let path = fixture.file(&elf(b"Linux version 6.1.0 (x)\0", 2, 62, 2));
    assert_eq!(embedded_config(&path).unwrap(), None);
}

#[test]
fn a_file_that_is_no_kernel_is_called_by_its_name() {
    let mut arm64 = vec![0u8; 4096];
    arm64[..2].copy_from_slice(b"MZ");
    arm64[0x38..0x3c].copy_from_slice(b"ARM\x64");
    let cases: &[(&[u8], &str)] = &[
        (b"", "an empty file"),
        (b"#!/bin/sh\necho hello\n", "a text file"),
        (&arm64, "an arm64 Image"),
        (&gzip(b"x"), "a gzip file"),
        (b"070701000000", "a cpio archive"),
        (b"MZ\0\0", "an EFI or DOS program"),
        (&[0; 8192], "a file of zeroes"),
        (&[0xde, 0xad, 0, 1, 2, 3], "a file of unknown format"),
    ];
    for (content, what) in cases {
        let error = identify_error(content);
        assert!(error.contains(what), "{error}");
        assert!(error.contains("give a bzImage"), "{error}");
    }
}

#[test]
fn an_elf_file_that_is_no_x86_64_kernel_says_which_it_is() {
    let cases: &[(Vec<u8>, &str)] = &[
        (elf(b"x", 2, 183, 2), "arm64"),
        (elf(b"x", 2, 3, 1), "32-bit"),
        (elf(b"x", 1, 62, 2), "object file"),
        (elf(b"x", 3, 62, 2), "shared library"),
        (elf(b"hello", 2, 62, 2), "not Linux"),
        (vmlinux()[..1000].to_vec(), "truncated"),
        (vmlinux()[..40].to_vec(), "truncated"),
        (vmlinux()[..100].to_vec(), "truncated"),
    ];
    for (content, what) in cases {
        let error = identify_error(content);
        assert!(error.contains(what), "{error}");
    }
}

#[test]
fn a_bzimage_cut_at_any_byte_before_its_payload_ends_is_refused() {
    let whole = bzimage(&pack(&vmlinux(), Compression::Gzip));
    let end = (SETUP_SECTORS + 1) * 512 + PAYLOAD_OFFSET + pack(&vmlinux(), Compression::Gzip).len();
    for length in (0..end).step_by(97).chain([0x205, 0x206, 0x250, 512, end - 1]) {
        let fixture = Fixture::new();
        let path = fixture.file(&whole[..length]);
        assert!(identify(&path).is_err(), "{length} of {end} bytes were accepted");
        assert!(unpack_to(&path, &fixture.dest()).is_err());
        assert_eq!(fixture.entries(), 1, "something was left behind");
    }
    assert!(identify_error(&whole[..end - 1]).contains("truncated"));
}

#[test]
fn a_damaged_payload_is_refused_and_leaves_nothing_behind() {
    use Compression::{Bzip2, Gzip, Lz4, Xz, Zstd};
    for compression in [Gzip, Bzip2, Xz, Lz4, Zstd] {
        let mut payload = pack(&vmlinux(), compression);
        let middle = payload.len() / 2;
        for byte in &mut payload[middle..middle + 16] {
            *byte ^= 0x5a;
        }
        let fixture = Fixture::new();
        let path = fixture.file(&bzimage(&payload));
        let error = unpack_to(&path, &fixture.dest()).unwrap_err().to_string();
        assert!(error.contains("payload"), "{compression:?}: {error}");
        assert_eq!(fixture.entries(), 1, "{compression:?} left something behind");
    }
}

#[test]
fn a_payload_of_another_size_than_recorded_is_refused() {
    let mut payload = pack(&vmlinux(), Compression::Xz);
    let end = payload.len();
    payload[end - 4..].copy_from_slice(&12345u32.to_le_bytes());
    let error = payload::unpack(&payload, Compression::Xz, MAX_VMLINUX).unwrap_err();
    assert!(error.contains("12345 went in"), "{error}");
}

#[test]
fn a_payload_that_unpacks_to_more_than_the_limit_is_refused() {
    use Compression::{Bzip2, Gzip, Lz4, Lzma, Xz, Zstd};
    for compression in [Gzip, Bzip2, Lzma, Xz, Lz4, Zstd] {
        let error = payload::unpack(&pack(&vec![0; 100_000], compression), compression, 4096).unwrap_err();
        assert!(error.contains("more than 4096 bytes"), "{compression:?}: {error}");
    }
}

#[test]
fn a_bzimage_that_cannot_be_booted_says_why() {
    let good = bzimage(&pack(&vmlinux(), Compression::Gzip));
    let with = |offset: usize, bytes: &[u8]| {
        let mut image = good.clone();
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
        identify_error(&image)
    };
    assert!(with(0x236, &[0]).contains("32-bit"));
    assert!(with(0x206, &[0x08, 0x02]).contains("2.08 is older"));
    assert!(with(0x24c, &[0xff, 0xff, 0xff, 0x7f]).contains("damaged"));
    assert!(with(0x248, &[0xff, 0xff, 0xff, 0xff]).contains("truncated"));
    assert!(with(0x20e, &[0xff, 0xff]).contains("kernel version"));
    let lzo = bzimage(b"\x89LZO\0\r\n\x1a\n0123456789");
    assert!(identify_error(&lzo).contains("LZO"));
}

#[test]
fn a_missing_file_and_a_directory_are_named() {
    let fixture = Fixture::new();
    let missing = identify(&fixture.dir.path().join("no-such-kernel")).unwrap_err().to_string();
    assert!(missing.contains("no-such-kernel"), "{missing}");
    let directory = identify(fixture.dir.path()).unwrap_err().to_string();
    assert!(directory.contains("a directory"), "{directory}");
}

#[test]
fn every_real_kernel_of_this_machine_unpacks() {
    let mut kernels: Vec<PathBuf> = std::env::var_os("VMM_TEST_KERNEL").map(PathBuf::from).into_iter().collect();
    for entry in fs::read_dir("/boot").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
            kernels.push(entry.path());
        }
    }
    if kernels.is_empty() {
        println!("skipped: no /boot/vmlinuz-* and no VMM_TEST_KERNEL");
    }
    for path in kernels {
        let fixture = Fixture::new();
        let kernel = identify(&path).unwrap();
        unpack_to(&path, &fixture.dest()).unwrap();
        assert_eq!(identify(&fixture.dest()).unwrap().release, kernel.release);
    }
}
