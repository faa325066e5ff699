//! Writing the archive format that the kernel unpacks into its first root file system: "newc" cpio
//! (Documentation/driver-api/early-userspace/buffer-format.rst). The same entries give the same bytes.

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFCHR: u32 = 0o020_000;

/// An archive in the making. All entries belong to root and have time 0.
#[derive(Debug, Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    /// Adds a folder. `name` has no leading slash; its parents must have been added.
    pub(crate) fn folder(&mut self, name: &str, mode: u32) {
        self.entry(name, S_IFDIR | mode, (0, 0), &[]);
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, S_IFREG | mode, (0, 0), content);
    }

    /// Adds a character device.
    pub(crate) fn character_device(&mut self, name: &str, mode: u32, (major, minor): (u32, u32)) {
        self.entry(name, S_IFCHR | mode, (major, minor), &[]);
    }

    /// The archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        // Archives are made of 512-byte blocks; the kernel does not mind, other readers may.
        self.pad(512);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = if mode & S_IFDIR != 0 { 2 } else { 1 };
        // No module or agent comes near 4 GiB, which is the format's own limit.
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let fields = [
            self.entries, // inode: unique, as equal ones with several links would be hard links
            mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            size,
            0, // device of the file itself
            0,
            device.0,
            device.1,
            name_size,
            0, // checksum: not in this variant
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive back: name, mode, content.
    fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let (mut at, mut entries) = (0, Vec::new());
        loop {
            let field = |n: usize| {
                let start = at + 6 + n * 8;
                usize::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name_at = at + 110;
            let name = String::from_utf8(bytes[name_at..name_at + name_size - 1].to_vec()).unwrap();
            let data_at = (name_at + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return entries;
            }
            entries.push((name, u32::try_from(mode).unwrap(), bytes[data_at..data_at + size].to_vec()));
            at = (data_at + size).next_multiple_of(4);
        }
    }

    fn sample() -> Vec<u8> {
        let mut cpio = Cpio::default();
        cpio.folder("dev", 0o755);
        cpio.character_device("dev/console", 0o600, (5, 1));
        cpio.file("init", 0o755, b"#!/bin/sh\n");
        cpio.file("empty", 0o644, b"");
        cpio.finish()
    }

    #[test]
    fn what_goes_in_comes_out_in_order() {
        let entries = read(&sample());
        let names: Vec<_> = entries.iter().map(|(n, ..)| n.as_str()).collect();
        assert_eq!(names, ["dev", "dev/console", "init", "empty"]);
        assert_eq!(entries[2].1, 0o100_755);
        assert_eq!(entries[2].2, b"#!/bin/sh\n");
    }

    #[test]
    fn the_same_entries_give_the_same_whole_blocks() {
        assert_eq!(sample(), sample());
        assert_eq!(sample().len() % 512, 0);
    }

    #[test]
    fn cpio_itself_lists_the_archive() {
        let Some(cpio) = crate::tool::find("cpio") else { return };
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("a.cpio");
        std::fs::write(&archive, sample()).unwrap();
        let input = std::fs::File::open(&archive).unwrap();
        let output = std::process::Command::new(cpio).arg("-itv").stdin(input).output().unwrap();
        let listing = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && listing.contains("5,   1"), "{listing}");
    }
}
