//! A suite of a test's own making: shell scripts under the name of `pjdfstest`, in a cache that shares everything else with
//! the user's.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::sandbox::Sandbox;
use crate::vmm::Vmm;

/// The name that the suite goes by.
pub const NAME: &str = "pjdfstest";

/// `vmm suite add pjdfstest --source` with a source whose tests are these scripts: name below `tests/`, and what the shell
/// runs. They print TAP. Gives the cache directory that has the suite.
///
/// # Panics
/// When the suite cannot be added.
#[must_use]
pub fn add(sandbox: &Sandbox, scripts: &[(&str, &str)]) -> PathBuf {
    let cache = cache_like_the_users(sandbox);
    let source = sandbox.dir("suite-source");
    executable(&source.join("configure"), "exit 0");
    for (name, script) in scripts {
        let path = source.join("tests").join(name);
        fs::create_dir_all(path.parent().expect("a test lies in a folder")).expect("a folder can be made");
        executable(&path, script);
    }
    // Of the tools that the real suite is built with, only make has anything to do, and that is little.
    let tools = sandbox.dir("tools");
    for tool in ["autoreconf", "automake"] {
        executable(&tools.join(tool), "exit 0");
    }
    executable(&tools.join("make"), "echo '#!/bin/sh' > pjdfstest; echo none > COPYING");
    let mut path = OsString::from(&tools);
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let words = [OsString::from("suite"), "add".into(), NAME.into(), "--source".into(), source.into()];
    let finished = Vmm::new(sandbox, words).env("PATH", path).env("VMM_CACHE_DIR", &cache).finish();
    finished.expect_code(0);
    cache
}

/// `vmm suite add NAME --manifest FILE --source DIR` with `manifest` and a source whose only file is `run`, a shell script.
/// Gives the cache directory that has the suite.
///
/// # Panics
/// When the suite cannot be added.
#[must_use]
pub fn add_own(sandbox: &Sandbox, name: &str, manifest: &str, script: &str) -> PathBuf {
    let cache = cache_like_the_users(sandbox);
    let source = sandbox.dir("own-source");
    executable(&source.join("run"), script);
    let manifest = sandbox.file("own.toml", manifest);
    let words = [OsString::from("suite"), "add".into(), name.into()];
    let words = words.into_iter().chain(["--manifest".into(), manifest.into(), "--source".into(), source.into()]);
    Vmm::new(sandbox, words).env("VMM_CACHE_DIR", &cache).finish().expect_code(0);
    cache
}

/// A cache with what the user's has, but for suites.
fn cache_like_the_users(sandbox: &Sandbox) -> PathBuf {
    let own = sandbox.dir("cache");
    let users = env::var_os("VMM_CACHE_DIR")
        .map(PathBuf::from)
        .or_else(|| env::var_os("XDG_CACHE_HOME").map(|dir| Path::new(&dir).join("vmm")))
        .or_else(|| env::var_os("HOME").map(|dir| Path::new(&dir).join(".cache/vmm")))
        .expect("HOME is set");
    for kind in fs::read_dir(&users).into_iter().flatten().flatten() {
        let name = kind.file_name();
        if ["suite", "tmp", "locks", "scratch"].iter().any(|own| name == *own) {
            continue;
        }
        // Folders of its own, so that what is added stays in the sandbox.
        let folder = own.join(name);
        fs::create_dir(&folder).expect("a folder can be made in a sandbox");
        for entry in fs::read_dir(kind.path()).into_iter().flatten().flatten() {
            symlink(entry.path(), folder.join(entry.file_name())).expect("a link can be made in a sandbox");
        }
    }
    own
}

fn executable(path: &Path, script: &str) {
    fs::write(path, format!("#!/bin/sh\n{script}\n")).expect("a script can be written in a sandbox");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("a script can be made executable");
}
