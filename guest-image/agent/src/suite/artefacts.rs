//! The files that a failing test leaves: xfstests' `.out.bad`, `.full`, `.dmesg`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use wire::MAX_ARTEFACT;

/// Files of one test that are sent.
const MAX_FILES: usize = 16;
/// Stands between the start and the end of a file that is too long.
const GAP: &[u8] = b"\n[the middle is left out]\n";

/// What there is for `test`, by kind: with the pattern `/r/{test}` and the test `generic/001`, the file
/// `/r/generic/001.out.bad` is of the kind `out.bad`. What cannot be read is not there.
pub(super) fn of_test(pattern: &str, test: &str) -> Vec<(String, Vec<u8>)> {
    let path = pattern.replace("{test}", test);
    let Some((folder, stem)) = path.rsplit_once('/') else { return Vec::new() };
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut kinds: Vec<String> =
        names.filter_map(|name| Some(name.strip_prefix(stem)?.strip_prefix('.')?.to_owned())).collect();
    kinds.sort();
    kinds.truncate(MAX_FILES);
    let read = |kind: String| {
        let data = read(&Path::new(folder).join(format!("{stem}.{kind}"))).ok().filter(|data| !data.is_empty())?;
        Some((kind, data))
    };
    kinds.into_iter().filter_map(read).collect()
}

/// A regular file's content, of a long one the start and the end.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // A test chooses what lies there: neither a link out of the folder nor a pipe without a writer must do harm.
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let length =
        file.metadata().and_then(|m| if m.is_file() { Ok(m.len()) } else { Err(io::ErrorKind::Other.into()) })?;
    if length <= MAX_ARTEFACT as u64 {
        return piece(&mut file, MAX_ARTEFACT);
    }
    let half = (MAX_ARTEFACT - GAP.len()) / 2;
    let mut data = piece(&mut file, half)?;
    data.extend_from_slice(GAP);
    file.seek(SeekFrom::Start(length - half as u64))?;
    data.extend(piece(&mut file, half)?);
    Ok(data)
}

fn piece(file: &mut File, limit: usize) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    file.take(limit as u64).read_to_end(&mut data)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("generic")).unwrap();
        let pattern = format!("{}/{{test}}", dir.path().display());
        (dir, pattern)
    }

    #[test]
    fn a_test_has_the_files_that_begin_with_its_name_and_a_dot() {
        let (dir, pattern) = folder();
        for (name, text) in [("001.full", "f"), ("001.out.bad", "b"), ("0012.full", "other"), ("001.hints", "")] {
            fs::write(dir.path().join("generic").join(name), text).unwrap();
        }
        let found = of_test(&pattern, "generic/001");
        assert_eq!(found, [("full".into(), b"f".to_vec()), ("out.bad".into(), b"b".to_vec())]);
        assert_eq!(of_test(&pattern, "generic/002"), []);
        assert_eq!(of_test("no folder", "generic/001"), []);
    }

    #[test]
    fn a_long_file_keeps_its_start_and_its_end() {
        let (dir, pattern) = folder();
        let mut text = vec![b'x'; 2 * MAX_ARTEFACT];
        text[..5].copy_from_slice(b"start");
        let end = text.len() - 3;
        text[end..].copy_from_slice(b"end");
        fs::write(dir.path().join("generic/001.full"), text).unwrap();
        let (_, data) = of_test(&pattern, "generic/001").remove(0);
        assert!(data.len() <= MAX_ARTEFACT && data.starts_with(b"start") && data.ends_with(b"end"));
        assert!(String::from_utf8_lossy(&data).contains("left out"));
    }

    #[test]
    fn links_pipes_and_folders_are_no_artefacts() {
        let (dir, pattern) = folder();
        let at = |name: &str| dir.path().join("generic").join(name);
        std::os::unix::fs::symlink("/etc/passwd", at("001.link")).unwrap();
        fs::create_dir(at("001.folder")).unwrap();
        let pipe = std::ffi::CString::new(at("001.pipe").into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: the path is a C string that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
        assert_eq!(of_test(&pattern, "generic/001"), []);
    }
}
