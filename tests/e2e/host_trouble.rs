//! A host that cannot do what is asked: one clear error, exit code 125 (or 2), nothing left.

use std::fs;
use std::io::{ErrorKind, repeat};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::process::geteuid;
use serde_json::Value;
use tests::stream::{Pattern, send_pattern};
use tests::{Sandbox, SmallDisk, Vmm, vmm_binary};

use crate::suite_run::Run;

/// Whether the test can act out its part, which needs root: mounts, other users.
fn root() -> bool {
    let root = geteuid().is_root();
    if !root {
        println!("not root: this part is left out");
    }
    root
}

#[test]
fn results_that_cannot_be_written_are_an_error_that_names_the_place() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("file", "");
    for results in [file.clone(), file.join("below"), "/proc/1/results".into()] {
        let place = results.to_str().unwrap();
        let finished = Vmm::new(&sandbox, ["run", "--host", "kvm", "--results", place]).finish();
        finished.expect_code_in(&[2, 125]).expect_error(&[place]);
        sandbox.assert_nothing_left();
    }
}

#[test]
fn a_results_folder_of_someone_else_is_an_error() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new();
    let results = sandbox.dir("results");
    fs::set_permissions(&results, fs::Permissions::from_mode(0o755)).unwrap();
    let place = results.to_str().unwrap();
    let finished = as_nobody(&sandbox, &["run", "--results", place]).finish();
    finished.expect_code_in(&[2, 125]).expect_error(&[place]);
    assert_eq!(fs::read_dir(&results).unwrap().count(), 0);
    sandbox.assert_nothing_left();
}

#[test]
fn no_room_for_results_is_an_error_before_anything_starts() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new();
    let results = sandbox.dir("small");
    let disk = SmallDisk::mount(&results, 64).unwrap();
    let place = results.to_str().unwrap();
    let finished = Vmm::new(&sandbox, ["run", "--host", "kvm", "--results", place]).finish();
    finished.expect_code(125).expect_error(&[place, "free"]);
    assert_eq!(fs::read_dir(&results).unwrap().count(), 0, "nothing is left in it");
    drop(disk);
    sandbox.assert_nothing_left();
}

#[test]
fn no_room_for_an_image_is_an_error_that_names_the_place() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new();
    let cache = sandbox.dir("small");
    let disk = SmallDisk::mount(&cache, 256).unwrap();
    let place = cache.to_str().unwrap();
    let finished = Vmm::new(&sandbox, ["exec", "--host", "kvm", "--cache-dir", place, "--", "true"]).finish();
    finished.expect_code(125).expect_error(&[place, "no space left"]);
    assert_eq!(files_below(&cache), Vec::<PathBuf>::new());
    drop(disk);
    sandbox.assert_nothing_left();
}

#[test]
fn an_image_that_outgrows_the_disk_while_it_is_made_is_an_error_that_leaves_no_part_of_it() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new();
    let cache = sandbox.dir("small");
    // Room for the copy of the source, or for the image: not for both.
    let disk = SmallDisk::mount(&cache, 112 << 10).unwrap();
    let source = sandbox.dir("source");
    let mut bytes = Vec::new();
    send_pattern(Pattern::new(1), 72 << 20, &mut bytes).unwrap();
    fs::write(source.join("large"), bytes).unwrap();
    let manifest = "name = 'large'\ndescription = 'd'\nformat = 'exit-code'\n\
        [build]\nmethod = 'source'\n[run]\nargv = ['./run']\ncwd = '/'\n";
    let manifest = sandbox.file("large.toml", manifest);
    let place = cache.to_str().unwrap();
    let words = ["suite", "add", "large", "--cache-dir", place, "--manifest", manifest.to_str().unwrap(), "--source"];
    let finished = Vmm::new(&sandbox, words).args([&source]).finish();
    finished.expect_code(125).expect_error(&[place, "no space left", "image"]);
    assert_eq!(files_below(&cache), Vec::<PathBuf>::new());
    drop(disk);
    sandbox.assert_nothing_left();
}

#[test]
fn a_disk_that_fills_up_during_a_run_is_named_and_what_was_written_parses() {
    if !root() {
        return;
    }
    let wait = "echo 1..1; until [ -e /mnt/virtiofs1/go ]; do sleep 0.1; done; echo ok 1";
    let run = Run::of(&[("a/00.t", "echo 1..1; echo ok 1"), ("b/00.t", wait)]);
    let (share, results) = (run.sandbox.dir("share"), run.sandbox.dir("small"));
    let disk = SmallDisk::mount(&results, 20 << 10).unwrap();
    let flags = ["--shared-dir", &format!("{}:myfs1", share.display()), "--results", results.to_str().unwrap()];
    let mut running = run.command(&flags).spawn();
    running.wait_for_out("PASS");
    let filled = fs::File::create(results.join("filler")).and_then(|mut file| std::io::copy(&mut repeat(1), &mut file));
    assert_eq!(filled.unwrap_err().kind(), ErrorKind::StorageFull);
    fs::write(share.join("go"), "").unwrap();
    let finished = running.finish();
    finished.expect_code(125).expect_in_out("b/00.t:1").expect_in_out("failed and is incomplete: No space left");
    let events = fs::read_to_string(results.join("latest/events.jsonl")).unwrap();
    let whole = &events[..events.rfind('\n').map_or(0, |end| end + 1)];
    let events: Vec<Value> = whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(events.iter().any(|event| event["event"] == "test-finished" && event["test"] == "a/00.t:1"), "{events:?}");
    drop(disk);
    run.sandbox.assert_nothing_left();
}

#[test]
fn no_permission_on_dev_kvm_is_an_error_that_says_how_to_get_it() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new();
    let closed = sandbox.file("kvm", "");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    // In a mount namespace of its own, so that the machine's /dev/kvm stays what it is.
    let script = format!(
        "mount --make-rprivate / && mount --bind {} /dev/kvm && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"",
        closed.display()
    );
    let finished = Vmm::new(&sandbox, ["exec", "--host", "kvm", "--", "true"])
        .wrapped_in(["unshare", "-m", "sh", "-c", &script, "sh"])
        .finish();
    finished.expect_code(125).expect_error(&["no permission to open /dev/kvm", "mend it: sudo"]);
    sandbox.assert_nothing_left();
}

#[test]
fn no_dev_kvm_at_all_is_an_error_when_kvm_is_asked_for() {
    if !root() {
        return;
    }
    let sandbox = Sandbox::new();
    let script = "mount --make-rprivate / && mount -t tmpfs none /dev && exec \"$@\"";
    let finished = Vmm::new(&sandbox, ["exec", "--host", "kvm", "--", "true"])
        .wrapped_in(["unshare", "-m", "sh", "-c", script, "sh"])
        .finish();
    finished.expect_code(125).expect_error(&["/dev/kvm"]);
    sandbox.assert_nothing_left();
}

#[test]
fn doctor_says_whether_guests_can_run() {
    let sandbox = Sandbox::new();
    let finished = Vmm::new(&sandbox, ["doctor"]).finish();
    finished.expect_in_out("KVM").expect_in_out("Ready");
    sandbox.assert_nothing_left();
}

/// Files in a cache, but for its locks, which are empty.
fn files_below(cache: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path());
    let below = |path: PathBuf| if path.is_dir() { files_below(&path) } else { vec![path] };
    entries.filter(|path| !path.ends_with("locks")).flat_map(below).collect()
}

/// `vmm ARGS…` as user 65534, who can read the binary wherever it lives.
fn as_nobody<'a>(sandbox: &'a Sandbox, args: &[&str]) -> Vmm<'a> {
    let copy = sandbox.other().join("vmm");
    fs::copy(vmm_binary(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let script = "shift; exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" \"$@\"";
    Vmm::new(sandbox, args.iter().copied()).wrapped_in(["sh", "-c", script, copy.to_str().unwrap()])
}
