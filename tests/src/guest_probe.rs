//! Getting the guest probe into a guest, whatever C library is in there.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Copies the probe with its dynamic linker and libraries into `share`, and gives the words that start it in a guest that
/// has the share mounted at `mount_point`.
///
/// # Panics
/// When the probe's libraries cannot be found.
#[must_use]
pub fn install(probe: &Path, share: &Path, mount_point: &str) -> String {
    let listed = Command::new("ldd").arg(probe).output().expect("ldd can be run");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let libraries: Vec<&str> = listed.split_whitespace().filter(|word| word.starts_with('/')).collect();
    for file in libraries.iter().copied().map(Path::new).chain([probe]) {
        let name = file.file_name().expect("a library has a name");
        fs::copy(file, share.join(name)).unwrap_or_else(|e| panic!("cannot copy {}: {e}", file.display()));
    }
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let linker = libraries.iter().map(|path| name(path)).find(|name| name.starts_with("ld-linux"));
    let linker = linker.unwrap_or_else(|| panic!("no dynamic linker among:\n{listed}"));
    let probe = name(&probe.to_string_lossy());
    format!("{mount_point}/{linker} --library-path {mount_point} {mount_point}/{probe}")
}
