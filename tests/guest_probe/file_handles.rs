//! File handles, name_to_handle_at(2) and open_by_handle_at(2): whether what they were taken of is what they open later.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How many files a folder gets.
const FOLDER_SIZE: usize = 100;
/// Linux's MAX_HANDLE_SZ.
const MAX_HANDLE: usize = 128;

/// struct file_handle with room for the longest.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    content: [u8; MAX_HANDLE],
}

/// Makes `count` files below `dir`, each with its own path in it, and lists them and their folders in `list`: handle's type,
/// handle, inode number, path.
pub(crate) fn make(dir: &Path, count: usize, list: &Path) -> io::Result<()> {
    let mut lines = String::new();
    for number in 0..count {
        let folder = dir.join(format!("d{}", number / FOLDER_SIZE));
        if number % FOLDER_SIZE == 0 {
            fs::create_dir_all(&folder)?;
            lines.push_str(&line_of(&folder)?);
        }
        let path = folder.join(format!("f{number}"));
        fs::write(&path, path.as_os_str().as_bytes())?;
        lines.push_str(&line_of(&path)?);
    }
    fs::write(list, lines)?;
    println!("{count} files made");
    Ok(())
}

/// Opens each handle of `list` on the file system that `dir` is on. Those whose path is there must lead to it: same inode
/// number, and of a file what was written into it. Those whose path is gone must be stale.
pub(crate) fn check(dir: &Path, list: &Path) -> io::Result<()> {
    let mount = File::open(dir)?;
    let (mut files, mut folders, mut stale) = (0, 0, 0);
    for line in fs::read_to_string(list)?.lines() {
        let wrong = |what: String| io::Error::other(format!("{line}: {what}"));
        let mut words = line.splitn(4, ' ');
        let (Some(kind), Some(handle), Some(ino), Some(path)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(wrong("no line of a list".into()));
        };
        let path = PathBuf::from(path);
        let opened = open(&mount, kind.parse().map_err(io::Error::other)?, handle);
        if !path.exists() {
            match opened {
                Err(error) if error.raw_os_error() == Some(libc::ESTALE) => stale += 1,
                Err(error) => return Err(wrong(format!("of a removed file: {error}, not ESTALE"))),
                Ok(_) => return Err(wrong("a removed file was opened".into())),
            }
            continue;
        }
        let mut file = opened.map_err(|error| wrong(error.to_string()))?;
        let metadata = file.metadata()?;
        if metadata.ino().to_string() != ino || metadata.ino() != fs::metadata(&path)?.ino() {
            return Err(wrong(format!("opened inode {}", metadata.ino())));
        }
        if metadata.is_dir() {
            folders += 1;
            continue;
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        if content != path.as_os_str().as_bytes() {
            return Err(wrong(format!("read {:?}", String::from_utf8_lossy(&content))));
        }
        files += 1;
    }
    println!("opened by handle: {files} files, {folders} folders; stale: {stale}");
    Ok(())
}

fn line_of(path: &Path) -> io::Result<String> {
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
    let mut handle = Handle { bytes: MAX_HANDLE as u32, kind: 0, content: [0; MAX_HANDLE] };
    let mut mount_id = 0;
    // SAFETY: `handle` is laid out as struct file_handle and has as much room as it says; the path is empty and terminated.
    let result = unsafe {
        libc::name_to_handle_at(
            file.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    };
    if result != 0 {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(error.kind(), format!("name_to_handle_at {}: {error}", path.display())));
    }
    let mut line = format!("{} ", handle.kind);
    for byte in handle.content.iter().take(handle.bytes as usize) {
        let _ = write!(line, "{byte:02x}");
    }
    let _ = writeln!(line, " {} {}", file.metadata()?.ino(), path.display());
    Ok(line)
}

fn open(mount: &File, kind: i32, hex: &str) -> io::Result<File> {
    let bytes: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| hex.get(at..at + 2).and_then(|byte| u8::from_str_radix(byte, 16).ok()))
        .collect::<Option<_>>()
        .ok_or_else(|| io::Error::other("no handle"))?;
    let mut handle = Handle { bytes: bytes.len() as u32, kind, content: [0; MAX_HANDLE] };
    handle.content.get_mut(..bytes.len()).ok_or_else(|| io::Error::other("too long"))?.copy_from_slice(&bytes);
    // SAFETY: `handle` is laid out as struct file_handle and holds as many bytes as it says.
    let fd = unsafe {
        libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), libc::O_RDONLY | libc::O_CLOEXEC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call gave us this descriptor, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(fd) })
}
