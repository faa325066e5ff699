//! A host that cannot do what is asked: one clear error, exit code 125 (or 2), nothing left.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::geteuid;
use tests::{Sandbox, SmallDisk, Vmm, vmm_binary};

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
    finished.expect_code(125).expect_error(&[place, "space"]);
    drop(disk);
    sandbox.assert_nothing_left();
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
    finished.expect_code(125).expect_error(&["/dev/kvm", "permission"]);
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

/// `vmm ARGS…` as user 65534, who can read the binary wherever it lives.
fn as_nobody<'a>(sandbox: &'a Sandbox, args: &[&str]) -> Vmm<'a> {
    let copy = sandbox.other().join("vmm");
    fs::copy(vmm_binary(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let script = "shift; exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" \"$@\"";
    Vmm::new(sandbox, args.iter().copied()).wrapped_in(["sh", "-c", script, copy.to_str().unwrap()])
}
