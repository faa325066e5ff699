//! Names of FUSE operations, as Linux has them without `FUSE_` (enum fuse_opcode, include/uapi/linux/fuse.h).

/// By opcode; gaps are empty.
const NAMES: [&str; 54] = [
    "",
    "LOOKUP",
    "FORGET",
    "GETATTR",
    "SETATTR",
    "READLINK",
    "SYMLINK",
    "",
    "MKNOD",
    "MKDIR",
    "UNLINK",
    "RMDIR",
    "RENAME",
    "LINK",
    "OPEN",
    "READ",
    "WRITE",
    "STATFS",
    "RELEASE",
    "",
    "FSYNC",
    "SETXATTR",
    "GETXATTR",
    "LISTXATTR",
    "REMOVEXATTR",
    "FLUSH",
    "INIT",
    "OPENDIR",
    "READDIR",
    "RELEASEDIR",
    "FSYNCDIR",
    "GETLK",
    "SETLK",
    "SETLKW",
    "ACCESS",
    "CREATE",
    "INTERRUPT",
    "BMAP",
    "DESTROY",
    "IOCTL",
    "POLL",
    "NOTIFY_REPLY",
    "BATCH_FORGET",
    "FALLOCATE",
    "READDIRPLUS",
    "RENAME2",
    "LSEEK",
    "COPY_FILE_RANGE",
    "SETUPMAPPING",
    "REMOVEMAPPING",
    "SYNCFS",
    "TMPFILE",
    "STATX",
    "COPY_FILE_RANGE_64",
];

/// An opcode's name.
pub(super) fn operation_name(opcode: u32) -> &'static str {
    let name = usize::try_from(opcode).ok().and_then(|opcode| NAMES.get(opcode).copied());
    name.filter(|name| !name.is_empty()).unwrap_or("UNKNOWN")
}

/// The opcode of a name in capitals.
pub(super) fn operation_code(name: &str) -> Option<u32> {
    let index = NAMES.iter().position(|known| !known.is_empty() && *known == name)?;
    u32::try_from(index).ok()
}

/// All names, by opcode.
pub(super) fn operation_names() -> impl Iterator<Item = &'static str> {
    NAMES.into_iter().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::fs::constants::opcode;

    #[test]
    fn operations_have_linuxs_names() {
        for (code, name) in [
            (opcode::FORGET, "FORGET"),
            (opcode::INIT, "INIT"),
            (opcode::SETLKW, "SETLKW"),
            (opcode::FALLOCATE, "FALLOCATE"),
            (opcode::STATX, "STATX"),
            (opcode::COPY_FILE_RANGE_64, "COPY_FILE_RANGE_64"),
            (7, "UNKNOWN"),
            (54, "UNKNOWN"),
        ] {
            assert_eq!(operation_name(code), name);
        }
    }

    #[test]
    fn every_name_leads_back_to_its_opcode() {
        for name in operation_names() {
            assert_eq!(operation_name(operation_code(name).unwrap()), name);
        }
        assert_eq!((operation_code(""), operation_code("UNKNOWN"), operation_code("read")), (None, None, None));
    }
}
