//! A QEMU from Debian's packages, downloaded and unpacked without installing it: with the libraries it was linked with, so
//! that it runs on whatever this machine has.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use crate::apt::Apt;
use crate::cache::{Cache, Key, KeyBuilder};
use crate::error::{Error, IoContext, Result};
use crate::progress::Progress;
use crate::tool::Tool;

/// The first Debian whose QEMU is new enough, see `vmm`'s `host::emulated`.
const RELEASE: &str = "trixie";
const PACKAGE: &str = "qemu-system-x86";
const KIND: &str = "qemu";
/// Changes when what is kept of the packages does.
const RECIPE: &str = "1";

const PROGRAM: &str = "usr/bin/qemu-system-x86_64";
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// QEMU's own firmware, and SeaBIOS, which is a package of its own.
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// The words that start the unpacked QEMU, its own arguments to follow; `None` when it was not downloaded yet.
#[must_use]
pub fn cached(cache: &Cache) -> Option<Vec<OsString>> {
    cache.get(KIND, &key()).map(|dir| words(&dir))
}

/// The same, downloading it (40 MB) when it is not there.
///
/// # Errors
/// No network, no space.
pub fn ensure(cache: &Cache, progress: &dyn Progress) -> Result<Vec<OsString>> {
    cache.ensure(KIND, &key(), progress, |dir| unpack(cache, dir, progress)).map(|dir| words(&dir))
}

fn key() -> Key {
    KeyBuilder::default().with("release", RELEASE).with("package", PACKAGE).with("recipe", RECIPE).finish()
}

/// Its own loader starts it, which finds its own libraries: this machine's are another C library's.
fn words(dir: &Path) -> Vec<OsString> {
    let path = |name: &str| dir.join(name).into_os_string();
    let mut words = vec![path(LOADER), "--library-path".into(), path(LIBRARIES), path(PROGRAM)];
    for folder in FIRMWARE {
        words.extend(["-L".into(), path(folder)]);
    }
    words
}

fn unpack(cache: &Cache, dir: &Path, progress: &dyn Progress) -> Result<()> {
    let scratch = cache.scratch()?;
    let apt = Apt::new(&scratch.folder("apt")?, RELEASE)?;
    apt.update(progress)?;
    let debs = apt.download_with_dependencies(PACKAGE, progress)?;
    progress.step(&format!("unpacking {PACKAGE}"));
    let tree = scratch.folder("tree")?;
    for deb in &debs {
        Tool::new("dpkg-deb", format!("unpacking {}", deb.display()), scratch.path())
            .arg("-x")
            .args([deb, &tree])
            .run(progress)?;
    }
    for part in [PROGRAM, LIBRARIES].into_iter().chain(FIRMWARE) {
        let (from, to) = (tree.join(part), dir.join(part));
        let parent = to.parent().unwrap_or(dir);
        fs::create_dir_all(parent).at("create", parent)?;
        if !from.exists() {
            return Err(Error::malformed(
                format!("package {PACKAGE}"),
                format!("neither it nor what it needs has {part}"),
            ));
        }
        fs::rename(&from, &to).at("move", &from)?;
    }
    Ok(())
}
