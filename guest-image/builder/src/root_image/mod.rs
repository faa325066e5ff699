//! The root image: a Debian root file system with what the suites need at run time, as a read-only erofs image.
//!
//! Suites that need more packages than others get an image with these as well; each set of packages has an image of its
//! own in the cache. A hook in the finished tree takes away what differs from build to build and runs mkfs.erofs with a
//! fixed time and UUID. Uncompressed: a guest reads a small part of it, and there both decompression and exits cost more
//! than bytes. The same packages give the same bytes; `packages.lock` beside the image lists them.

mod lock;
mod packages;

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{Cache, Key, KeyBuilder};
use crate::debian_root::{DebianRoot, EPOCH, RELEASE, shell_quote};
use crate::error::{IoContext, Result};
use crate::progress::Progress;
use crate::tool;

pub use lock::{Lock, LockedPackage};

/// First folder below the cache's root.
pub const KIND: &str = "root";
/// Changes when the recipe does in a way that no other ingredient of the key shows.
const RECIPE: &str = "2";
const FINISH: &str = include_str!("finish.sh");
const UUID: &str = "76a5a3e0-3a6c-4b1f-9d5e-0d7a6c2f1b01";

/// A finished root image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootImage {
    /// The erofs image.
    pub image: PathBuf,
    /// The list of its packages, see [`Lock`].
    pub lock: PathBuf,
    /// Of the image, hexadecimal.
    pub sha256: String,
}

/// Gives the root image with the packages `extra` besides those that all have, building it if it is not in the cache. That
/// takes about a minute and a network.
///
/// # Errors
/// Missing tools, no network, no space, no user namespaces: each says what to do.
pub fn ensure(cache: &Cache, extra: &[String], progress: &dyn Progress) -> Result<RootImage> {
    load(&cache.ensure(KIND, &key(extra), progress, |dir| build(cache, extra, dir, progress))?)
}

/// Builds the root image anew from what the mirror has now, and replaces the one in the cache.
///
/// # Errors
/// As [`ensure`].
pub fn rebuild(cache: &Cache, extra: &[String], progress: &dyn Progress) -> Result<RootImage> {
    load(&cache.rebuild(KIND, &key(extra), progress, |dir| build(cache, extra, dir, progress))?)
}

/// The root image, if it has been built.
///
/// # Errors
/// The cache entry cannot be read.
pub fn find(cache: &Cache, extra: &[String]) -> Result<Option<RootImage>> {
    cache.get(KIND, &key(extra)).map(|dir| load(&dir)).transpose()
}

fn key(extra: &[String]) -> Key {
    KeyBuilder::default()
        .with("recipe", RECIPE)
        .with("release", RELEASE)
        .with("packages", packages::all(extra).join(" "))
        .with("users", packages::USERS)
        .with("groups", packages::GROUPS)
        .with("folders", packages::FOLDERS.join(" "))
        .with("finish", FINISH)
        .finish()
}

fn load(dir: &Path) -> Result<RootImage> {
    let recorded = dir.join("root.sha256");
    let sha256 = fs::read_to_string(&recorded).at("read", recorded)?;
    Ok(RootImage { image: dir.join("root.erofs"), lock: dir.join("packages.lock"), sha256: sha256.trim().to_owned() })
}

fn build(cache: &Cache, extra: &[String], dir: &Path, progress: &dyn Progress) -> Result<()> {
    const DOING: &str = "making the root image";
    tool::require(&["mmdebstrap", "mkfs.erofs", "apt-get", "dpkg-deb"], DOING)?;
    progress.step("making a Debian root file system");
    let mut root = DebianRoot::new(cache, DOING, dir)?.packages(packages::all(extra)).hook(HOOK);
    for file in ["root.erofs", "installed.txt", "packages.txt"] {
        root = root.hook(&format!("download /vmm-image/{file} {}", shell_quote(&dir.join(file))));
    }
    for (name, value) in hook_settings() {
        root = root.env(name, value);
    }
    root.make(progress, |_| {})?;

    let read = |name: &str| fs::read_to_string(dir.join(name)).at("read", dir.join(name));
    let lock = Lock::new(RELEASE, &read("installed.txt")?, &read("packages.txt")?)?;
    let write = |name: &str, text: String| fs::write(dir.join(name), text).at("write", dir.join(name));
    write("packages.lock", lock.to_text()?)?;
    write("root.sha256", crate::cache::sha256_file(&dir.join("root.erofs"))?)?;
    for name in ["installed.txt", "packages.txt"] {
        fs::remove_file(dir.join(name)).at("remove", dir.join(name))?;
    }
    Ok(())
}

/// Runs the script from the environment: a file in a home folder could not be read from inside the user namespace.
const HOOK: &str = r#"sh -c "$VMM_FINISH" finish "$1""#;

/// What the script expects in its environment.
fn hook_settings() -> [(&'static str, String); 7] {
    [
        ("VMM_FINISH", FINISH.to_owned()),
        ("VMM_MKFS", tool::locate("mkfs.erofs")),
        ("VMM_EPOCH", EPOCH.to_owned()),
        ("VMM_UUID", UUID.to_owned()),
        ("VMM_USERS", packages::USERS.to_owned()),
        ("VMM_GROUPS", packages::GROUPS.to_owned()),
        ("VMM_FOLDERS", packages::FOLDERS.join(" ")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_of_packages_has_an_image_of_its_own_whatever_their_order() {
        let named = |names: &[&str]| key(&names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>());
        assert_eq!(named(&[]), named(&["python3", "perl"]), "these are in every image");
        assert_ne!(named(&[]), named(&["dbench"]));
        assert_eq!(named(&["dump", "dbench"]), named(&["dbench", "dump", "dbench"]));
    }

    #[test]
    fn the_finishing_script_is_valid_shell() {
        let checked = std::process::Command::new("sh").args(["-n", "-c", FINISH]).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }

    #[test]
    fn every_user_has_a_group_of_its_own_id_and_a_home_of_its_own() {
        for user in packages::USERS.lines() {
            let fields: Vec<_> = user.split(':').collect();
            let group = format!("{}:x:{}:", fields[0], fields[3]);
            assert!(packages::GROUPS.lines().any(|g| g == group), "{user}");
            assert_eq!(fields[5], format!("/home/{}", fields[0]));
        }
    }
}
