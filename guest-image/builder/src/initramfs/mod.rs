//! The initramfs: the agent as `/init`, and the modules that the kernel at hand needs before it can reach its root.
//!
//! Layout: `/init`; `/modules`, a list of the modules' paths, one a line, each after what it needs; `/modules.dep`, the
//! same as modules.dep(5) has it (`PATH: DEPENDENCY…`), for loading only some; `/lib/modules/NAME.ko`; `/dev/console` and
//! the empty folders `/proc`, `/sys`, `/dev`, `/run`, `/newroot`. Not compressed: unpacking would cost guest time.

mod cpio;

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use crate::agent;
use crate::cache::{Cache, KeyBuilder, sha256_bytes};
use crate::error::{IoContext, Result};
use crate::kernel::{Kernel, needs};
use crate::modules::Module;
use crate::progress::Progress;
use cpio::Cpio;

/// First folder below the cache's root.
pub const KIND: &str = "initramfs";

/// Every change of the agent makes a new one; of those that are no longer asked for as many are kept.
const KEPT: usize = 12;

/// What the kernel will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitramfsKind {
    /// A guest under test.
    Guest,
    /// The Linux with real KVM that stands in for the machine.
    EmulatedHost,
}

/// Gives the initramfs for `kernel`, with the modules `extra` as far as the kernel has them.
///
/// # Errors
/// The kernel cannot do without a module that is not there ([`crate::Error::KernelUnfit`]), or the cache fails.
pub fn ensure(
    cache: &Cache,
    kernel: &Kernel,
    kind: InitramfsKind,
    extra: &[String],
    progress: &dyn Progress,
) -> Result<PathBuf> {
    let archive = pack(agent::BINARY, &needs::modules(kernel, kind, extra)?);
    let key = KeyBuilder::default().with("content", sha256_bytes(&archive)).finish();
    let entry = cache.ensure(KIND, &key, progress, |dir| {
        let path = dir.join("initramfs.cpio");
        fs::write(&path, &archive).at("write", path)
    })?;
    cache.keep_newest(KIND, KEPT);
    Ok(entry.join("initramfs.cpio"))
}

fn pack(agent: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut cpio = Cpio::default();
    for folder in ["dev", "proc", "sys", "run", "newroot", "lib", "lib/modules"] {
        cpio.folder(folder, 0o755);
    }
    // The kernel opens it for the first process before anything can be mounted on /dev.
    cpio.character_device("dev/console", 0o600, (5, 1));
    cpio.file("init", 0o755, agent);
    let mut list = String::new();
    for module in modules {
        let path = module_path(&module.name);
        cpio.file(path.trim_start_matches('/'), 0o644, &module.bytes);
        let _ = writeln!(list, "{path}");
    }
    cpio.file("modules", 0o644, list.as_bytes());
    cpio.file("modules.dep", 0o644, dependencies(modules).as_bytes());
    cpio.finish()
}

fn module_path(name: &str) -> String {
    format!("/lib/modules/{name}.ko")
}

/// The text of modules.dep(5): after each module all that it needs, directly or not; the last one is to be loaded first.
fn dependencies(modules: &[Module]) -> String {
    let mut text = String::new();
    for (position, module) in modules.iter().enumerate() {
        let mut needed: HashSet<&str> = HashSet::from([module.name.as_str()]);
        let _ = write!(text, "{}:", module_path(&module.name));
        // Whatever is needed comes earlier in the list, so one walk backwards meets each after all that need it.
        for earlier in modules[..=position].iter().rev() {
            if !needed.contains(earlier.name.as_str()) {
                continue;
            }
            needed.extend(earlier.depends.iter().map(String::as_str));
            if earlier.name != module.name {
                let _ = write!(text, " {}", module_path(&earlier.name));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, depends: &[&str]) -> Module {
        let depends = depends.iter().map(|&d| d.to_owned()).collect();
        Module { name: name.to_owned(), bytes: name.as_bytes().to_vec(), depends }
    }

    #[test]
    fn dependencies_are_listed_as_depmod_does() {
        let modules =
            [module("base", &[]), module("other", &[]), module("mid", &["base"]), module("top", &["mid", "other"])];
        let path = module_path;
        let expected =
            format!("{0}:\n{1}:\n{2}: {0}\n{3}: {2} {1} {0}\n", path("base"), path("other"), path("mid"), path("top"));
        assert_eq!(dependencies(&modules), expected);
    }

    #[test]
    fn the_same_agent_and_modules_give_the_same_archive() {
        let modules = [module("base", &[]), module("top", &["base"])];
        assert_eq!(pack(b"agent", &modules), pack(b"agent", &modules));
        assert_ne!(pack(b"agent", &modules), pack(b"agent", &modules[..1]));
    }
}
