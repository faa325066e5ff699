use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::progress::Silent;

fn cache() -> (tempfile::TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path().join("vmm")).unwrap();
    (dir, cache)
}

fn key(text: &str) -> Key {
    KeyBuilder::default().with("test", text).finish()
}

fn tmp_content(cache: &Cache) -> Vec<String> {
    fs::read_dir(cache.root().join(TMP)).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn an_entry_is_built_once_and_found_afterwards() {
    let (_dir, cache) = cache();
    let builds = AtomicUsize::new(0);
    for _ in 0..2 {
        let path = cache
            .ensure("thing", &key("a"), &Silent, |dir| {
                builds.fetch_add(1, Ordering::Relaxed);
                fs::write(dir.join("file"), "content").at("write", dir)
            })
            .unwrap();
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "content");
    }
    assert_eq!(builds.load(Ordering::Relaxed), 1);
    assert!(tmp_content(&cache).is_empty());
}

#[test]
fn a_failed_build_leaves_neither_entry_nor_scratch() {
    let (_dir, cache) = cache();
    let failed = cache.ensure("thing", &key("a"), &Silent, |dir| {
        fs::write(dir.join("half"), "x").at("write", dir)?;
        Err(Error::Interrupted { doing: "testing".into() })
    });
    assert!(matches!(failed, Err(Error::Interrupted { .. })));
    assert!(cache.get("thing", &key("a")).is_none());
    assert!(tmp_content(&cache).is_empty());
}

/// A build of `owner`'s boot that nobody holds the lock of.
fn leftover(cache: &Cache, name: &str, owner: &str) -> PathBuf {
    let path = cache.root().join(TMP).join(name);
    fs::create_dir_all(path.join("deep")).unwrap();
    fs::write(path.join("deep/half"), "x").unwrap();
    fs::write(path.with_extension("lock"), owner).unwrap();
    path
}

#[test]
fn what_a_dead_process_left_is_swept_and_what_a_living_one_builds_is_not() {
    let (_dir, cache) = cache();
    let alive = cache.scratch().unwrap();
    let dead = leftover(&cache, "1-0-1", &boot_id());

    Cache::open(cache.root()).unwrap();

    assert!(!dead.exists());
    assert!(!dead.with_extension("lock").exists());
    assert!(alive.path().is_dir());
}

#[test]
fn a_build_under_another_kernel_is_left_alone_until_it_must_be_dead() {
    let (_dir, cache) = cache();
    let foreign = leftover(&cache, "1-0-1", "another-boot");
    let unnamed = leftover(&cache, "1-0-2", "");
    let old = leftover(&cache, "1-0-3", "another-boot");
    let long_ago = SystemTime::now() - FOREIGN_LIFETIME - Duration::from_secs(1);
    File::options().write(true).open(old.with_extension("lock")).unwrap().set_modified(long_ago).unwrap();

    Cache::open(cache.root()).unwrap();

    assert!(foreign.is_dir() && unnamed.is_dir());
    assert!(!old.exists());
}

#[test]
fn an_entry_that_appeared_meanwhile_without_our_lock_is_taken() {
    let (_dir, cache) = cache();
    let path = cache
        .ensure("thing", &key("a"), &Silent, |dir| {
            let published = cache.path_of("thing", &key("a"));
            fs::create_dir_all(&published).unwrap();
            fs::write(published.join("file"), "theirs").unwrap();
            fs::write(dir.join("file"), "ours").at("write", dir)
        })
        .unwrap();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "theirs");
}

#[test]
fn two_that_want_the_same_entry_at_once_build_it_once() {
    let (_dir, cache) = cache();
    let builds = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                cache
                    .ensure("thing", &key("a"), &Silent, |dir| {
                        builds.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(50));
                        fs::write(dir.join("file"), "x").at("write", dir)
                    })
                    .unwrap();
            });
        }
    });
    assert_eq!(builds.load(Ordering::Relaxed), 1);
}

#[test]
fn rebuild_replaces_an_entry_and_keeps_the_old_one_when_it_fails() {
    let (_dir, cache) = cache();
    let put = |text: &'static str| move |dir: &Path| fs::write(dir.join("file"), text).at("write", dir);
    let path = cache.ensure("thing", &key("a"), &Silent, put("old")).unwrap();
    let failed = cache.rebuild("thing", &key("a"), &Silent, |_| Err(Error::malformed("it", "on purpose")));
    assert!(failed.is_err());
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "old");
    cache.rebuild("thing", &key("a"), &Silent, put("new")).unwrap();
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "new");
    assert!(tmp_content(&cache).is_empty());
}

#[test]
fn removed_entries_are_gone_from_the_list() {
    let (_dir, cache) = cache();
    cache.ensure("thing", &key("a"), &Silent, |_| Ok(())).unwrap();
    cache.ensure("other", &key("b"), &Silent, |_| Ok(())).unwrap();
    cache.remove("thing", key("a").as_str()).unwrap();
    let kinds: Vec<_> = cache.list().unwrap().into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds, ["other"]);
}

#[test]
fn keys_tell_apart_values_that_only_concatenate_alike() {
    let one = KeyBuilder::default().with("a", "bc").with("d", "").finish();
    let two = KeyBuilder::default().with("a", "b").with("cd", "").finish();
    assert_ne!(one, two);
}

#[test]
fn a_changed_file_gets_a_new_hash_though_an_old_one_is_remembered() {
    let (dir, cache) = cache();
    let file = dir.path().join("file");
    fs::write(&file, "abc").unwrap();
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(cache.sha256_of(&file).unwrap(), abc);
    assert_eq!(cache.sha256_of(&file).unwrap(), abc);
    fs::write(&file, "abd").unwrap();
    assert_ne!(cache.sha256_of(&file).unwrap(), abc);
}

#[test]
fn a_full_file_system_is_one_clear_error() {
    let error = Error::io("write", "/dev/full", std::io::Error::from_raw_os_error(libc::ENOSPC));
    let text = error.to_string();
    assert!(matches!(error, Error::NoSpace { .. }));
    assert!(text.contains("no space left") && text.contains("XDG_CACHE_HOME"), "{text}");
}

#[test]
fn mounts_inside_a_tree_are_found_the_innermost_first() {
    let table = "22 1 0:20 / / rw - ext4 /dev/vda rw\n\
                 30 22 0:5 / /c/tmp/1/dev/shm rw - tmpfs tmpfs rw\n\
                 31 30 0:6 / /c/tmp/1/dev/shm/in\\040side rw - tmpfs tmpfs rw\n\
                 32 22 0:7 / /c/tmp/10 rw - tmpfs tmpfs rw\n";
    let found = mounts_below(table, Path::new("/c/tmp/1"));
    assert_eq!(found, [Path::new("/c/tmp/1/dev/shm/in side"), Path::new("/c/tmp/1/dev/shm")]);
}

#[test]
fn a_mount_that_a_killed_build_left_is_taken_off_and_what_it_shows_survives() {
    let (dir, cache) = cache();
    let precious = dir.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), "x").unwrap();
    let dead = leftover(&cache, "1-0-1", &boot_id());
    if let Err(errno) = rustix::mount::mount_bind(&precious, dead.join("deep")) {
        eprintln!("cannot mount here ({errno}): nothing was tested");
        return;
    }

    Cache::open(cache.root()).unwrap();

    assert!(!dead.exists());
    assert_eq!(fs::read_to_string(precious.join("file")).unwrap(), "x");
}

#[test]
fn only_the_newest_entries_of_a_kind_are_kept_when_asked() {
    let (_dir, cache) = cache();
    for (name, age) in [("a", 3), ("b", 1), ("c", 2)] {
        let path = cache.ensure("thing", &key(name), &Silent, |_| Ok(())).unwrap();
        let made = SystemTime::now() - Duration::from_secs(age * 100);
        File::open(path).unwrap().set_modified(made).unwrap();
    }
    cache.ensure("other", &key("a"), &Silent, |_| Ok(())).unwrap();
    cache.keep_newest("thing", 2);
    let left = |name: &str| cache.get("thing", &key(name)).is_some();
    assert!(!left("a") && left("b") && left("c"));
    assert!(cache.get("other", &key("a")).is_some());
}
