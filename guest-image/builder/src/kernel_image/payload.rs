//! The compressed vmlinux inside a bzImage.
//!
//! The kernel's build appends the unpacked size, 4 bytes little-endian, to the compressed data of every format but
//! gzip, whose own trailer ends with the same word (`size_append` in Linux `scripts/Makefile.lib`). It is the check
//! that the right amount came out; the formats' own checksums are verified where they have one.

use std::io::{self, Read};

use liblzma::stream::Stream;

/// How a payload is compressed (`CONFIG_KERNEL_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// `CONFIG_KERNEL_GZIP`.
    Gzip,
    /// `CONFIG_KERNEL_BZIP2`.
    Bzip2,
    /// `CONFIG_KERNEL_LZMA`.
    Lzma,
    /// `CONFIG_KERNEL_XZ`: with the x86 branch filter.
    Xz,
    /// `CONFIG_KERNEL_LZ4`: the legacy frame format.
    Lz4,
    /// `CONFIG_KERNEL_ZSTD`.
    Zstd,
    /// An ELF file as it is.
    None,
}

const LZ4_LEGACY_MAGIC: &[u8] = b"\x02\x21\x4c\x18";
/// Every block of an lz4 legacy frame but the last unpacks to this many bytes.
const LZ4_LEGACY_BLOCK: usize = 8 << 20;

impl Compression {
    /// Recognises a payload by its first bytes.
    pub(super) fn of(magic: &[u8]) -> Result<Self, String> {
        const KNOWN: &[(&[u8], Compression)] = &[
            (b"\x1f\x8b", Compression::Gzip),
            (b"BZh", Compression::Bzip2),
            (b"\xfd7zXZ\0", Compression::Xz),
            (LZ4_LEGACY_MAGIC, Compression::Lz4),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (super::elf::MAGIC, Compression::None),
            // lc/lp/pb of `lzma -9` and the low bytes of a power-of-two dictionary size; the format has no magic.
            (b"\x5d\0\0", Compression::Lzma),
        ];
        if let Some((_, compression)) = KNOWN.iter().find(|(known, _)| magic.starts_with(known)) {
            return Ok(*compression);
        }
        if magic.starts_with(b"\x89LZO") {
            return Err("its payload is LZO-compressed, which is not supported; build it with CONFIG_KERNEL_ZSTD=y, \
                        or give its vmlinux"
                .to_owned());
        }
        Err("its payload is not compressed in any known way; give its vmlinux".to_owned())
    }
}

/// Unpacks `payload`, at most `limit` bytes, and checks the size the kernel's build recorded.
pub(super) fn unpack(payload: &[u8], compression: Compression, limit: u64) -> Result<Vec<u8>, String> {
    let (body, trailer) = payload.split_at(payload.len().saturating_sub(4));
    let recorded = u32::from_le_bytes(trailer.try_into().map_err(|_| "its payload is empty".to_owned())?);
    let unpacked = match compression {
        Compression::None => return Ok(payload.to_vec()),
        // The trailer is gzip's own.
        Compression::Gzip => read_all(flate2::bufread::GzDecoder::new(payload), limit),
        Compression::Bzip2 => read_all(bzip2::bufread::BzDecoder::new(body), limit),
        Compression::Xz => Stream::new_stream_decoder(u64::MAX, 0)
            .map_err(io::Error::from)
            .and_then(|stream| read_all(liblzma::bufread::XzDecoder::new_stream(body, stream), limit)),
        Compression::Lzma => Stream::new_lzma_decoder(u64::MAX)
            .map_err(io::Error::from)
            .and_then(|stream| read_all(liblzma::bufread::XzDecoder::new_stream(body, stream), limit)),
        Compression::Zstd => unpack_zstd(body, limit),
        Compression::Lz4 => unpack_lz4_legacy(body, limit),
    };
    let unpacked = unpacked.map_err(|e| format!("its {compression:?} payload does not unpack: {e}; build it again"))?;
    if unpacked.len() as u64 != u64::from(recorded) {
        let got = unpacked.len();
        return Err(format!("its payload is damaged: {got} bytes came out of it, {recorded} went in; build it again"));
    }
    Ok(unpacked)
}

fn read_all(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {limit} bytes come out of it")));
    }
    Ok(bytes)
}

fn unpack_zstd(body: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    // Kernels are packed with `zstd -22 --ultra` from a pipe: the window is 128 MiB, over what ruzstd accepts when a
    // decoder is used again, but not when it is fresh.
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(body).map_err(io::Error::other)?;
    let unpacked = read_all(&mut decoder, limit)?;
    let (recorded, calculated) = (decoder.decoder.get_checksum_from_data(), decoder.decoder.get_calculated_checksum());
    if recorded.is_some() && recorded != calculated {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "checksum mismatch"));
    }
    Ok(unpacked)
}

fn unpack_lz4_legacy(body: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut rest = body.strip_prefix(LZ4_LEGACY_MAGIC).ok_or_else(|| damaged("no lz4 magic"))?;
    let mut unpacked = Vec::new();
    while !rest.is_empty() {
        // Concatenated frames repeat the magic where a block's length would stand.
        if let Some(next) = rest.strip_prefix(LZ4_LEGACY_MAGIC) {
            rest = next;
            continue;
        }
        let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("cut inside a block's length"))?;
        let length = u32::from_le_bytes(*length) as usize;
        let (block, tail) = tail.split_at_checked(length).ok_or_else(|| damaged("cut inside a block"))?;
        let start = unpacked.len();
        if (start + LZ4_LEGACY_BLOCK) as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {limit} bytes come out of it")));
        }
        unpacked.resize(start + LZ4_LEGACY_BLOCK, 0);
        let got = lz4_flex::block::decompress_into(block, &mut unpacked[start..]).map_err(io::Error::other)?;
        unpacked.truncate(start + got);
        rest = tail;
    }
    Ok(unpacked)
}
