//! Which QEMU is started: this machine's own if it is sound enough, else Debian's, kept in the cache.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guest_image::{Cache, Progress, qemu};

use super::EmulatedHostError;
use crate::host::programs;

/// Before 8.1 TCG could translate a page of code while another CPU changed it, and keep what it had read: whoever patches its
/// own code, as every kernel does, ran what was there before, now and then (QEMU's commit deba78709ae8, "accel/tcg: Always
/// lock pages before translation"). Emulated hosts died of it.
const SOUND: (u32, u32) = (8, 1);

/// The words that start it. Downloads it if this machine has none that is sound; one that is not is taken where nothing
/// can be downloaded.
///
/// # Errors
/// There is none and none can be had.
pub(super) fn find(cache: &Cache, progress: &dyn Progress) -> Result<Vec<OsString>, EmulatedHostError> {
    if let Some((program, _)) = sound_qemu() {
        return Ok(vec![program.into()]);
    }
    let own = programs::find(programs::QEMU.name);
    let version = own.as_deref().and_then(version_of);
    match (qemu::ensure(cache, progress), own, version) {
        (Ok(words), _, _) => Ok(words),
        (Err(error @ guest_image::Error::Interrupted { .. }), _, _) => {
            Err(EmulatedHostError::Files { what: "QEMU", source: error })
        }
        (Err(error), Some(own), Some((major, minor))) => {
            eprintln!(
                "vmm: warning: {} is {major}.{minor}, under which guests die now and then; a newer one cannot be had: {error}",
                own.display()
            );
            Ok(vec![own.into()])
        }
        (Err(source), _, _) => Err(EmulatedHostError::Files { what: "QEMU", source }),
    }
}

/// This machine's own QEMU and its version, major and minor, if it is there and sound.
pub(in crate::host) fn sound_qemu() -> Option<(PathBuf, (u32, u32))> {
    let program = programs::find(programs::QEMU.name)?;
    let version = version_of(&program).filter(|version| *version >= SOUND)?;
    Some((program, version))
}

/// Major and minor version of the QEMU at `program`.
fn version_of(program: &Path) -> Option<(u32, u32)> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// From `QEMU emulator version 7.2.22 (Debian …)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_once("version ")?.1.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_qemu_prints_them_and_compared_as_numbers() {
        assert_eq!(parse_version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"), Some((7, 2)));
        assert!(parse_version("QEMU emulator version 10.0.3").is_some_and(|version| version >= SOUND));
        assert!(parse_version("QEMU emulator version 8.0.5").is_some_and(|version| version < SOUND));
        assert_eq!(parse_version("command not found"), None);
        assert_eq!(parse_version("version x"), None);
    }

    #[test]
    fn a_program_that_is_no_qemu_has_no_version() {
        assert_eq!(version_of(Path::new("/bin/true")), None);
        assert_eq!(version_of(Path::new("/no/such/program")), None);
    }
}
