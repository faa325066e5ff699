//! The shares' requests: beside failing tests, in traces, and where two of those part.

use std::fs;
use std::path::Path;

use tests::{Finished, Sandbox, Vmm, fake_suite};

/// Runs a script with `--trace`.
fn traced(sandbox: &Sandbox, trace: &Path, flags: &[&str], script: &str) -> Finished {
    let flags = [&["--trace", trace.to_str().unwrap()], flags].concat();
    Vmm::sh(sandbox, &flags, &format!("cd /mnt/virtiofs1; {script}")).finish()
}

fn trace(sandbox: &Sandbox, words: &[&str]) -> Finished {
    Vmm::new(sandbox, [&["trace"], words].concat()).finish()
}

#[test]
fn two_runs_that_do_the_same_have_the_same_trace_and_one_that_fails_parts_from_them() {
    let sandbox = Sandbox::new();
    let files = ["one", "two", "bad"].map(|name| sandbox.work().join(name));
    let [one, two, bad] = files.each_ref().map(|file| file.to_str().unwrap());
    let script = "mkdir dir; echo hello > dir/file; echo more >> dir/file; rm dir/file; rmdir dir; true";
    for (file, flags) in [(one, &[][..]), (two, &[]), (bad, &["--fault", "myfs1:op=WRITE,nth=2,errno=EDQUOT"])] {
        let finished = traced(&sandbox, Path::new(file), flags, script);
        finished.expect_code(0);
        assert!(finished.err().contains("requests traced to"), "{finished}");
    }
    trace(&sandbox, &["diff", one, two]).expect_code(0).expect_in_out("myfs1: the same").expect_in_out("MKDIR");
    let parted = trace(&sandbox, &["diff", one, bad]);
    parted.expect_code(1).expect_in_out("\n  - WRITE /dir/file offset=6 size=5\n");
    parted.expect_in_out("\n  + WRITE /dir/file offset=6 size=5 → EDQUOT (injected)\n");
    trace(&sandbox, &["show", bad]).expect_code(0).expect_in_out("MKDIR / \"dir\" mode=0o");
    trace(&sandbox, &["diff", one, "/etc/passwd"]).expect_code(2).expect_error(&["/etc/passwd:1"]);
    trace(&sandbox, &["show", "/does/not/exist"]).expect_error(&["/does/not/exist"]);
}

#[test]
fn a_trace_that_cannot_be_written_is_refused_before_anything_starts() {
    let sandbox = Sandbox::new();
    let finished = Vmm::sh(&sandbox, &["--trace", "/does/not/exist/trace"], "echo ran").finish();
    finished.expect_code(2).expect_error(&["--trace /does/not/exist/trace"]);
    let faults = Vmm::sh(&sandbox, &["--fault", "op=WRIET,errno=EIO"], "echo ran").finish();
    faults.expect_code(2).expect_error(&["op=WRIET", "WRITE"]);
    assert!(!faults.out().contains("ran"));
}

#[test]
fn a_test_that_fails_leaves_the_requests_it_made() {
    let sandbox = Sandbox::new();
    let scripts = [
        ("a/00.t", "echo 1..1; touch passes; echo ok 1"),
        ("b/00.t", "echo 1..1; mkdir telltale; mkdir telltale; echo not ok 1"),
    ];
    let cache = fake_suite::add(&sandbox, &scripts);
    let run = Vmm::new(&sandbox, ["run", "--host", "kvm", fake_suite::NAME]).env("VMM_CACHE_DIR", &cache);
    run.finish().expect_code(1);
    let artefacts = sandbox.work().join("results/latest/artefacts/pjdfstest");
    let kept = artefacts.join("b_00.t_1.fuse.jsonl");
    let text = fs::read_to_string(&kept).unwrap();
    assert!(text.contains("\"operation\":\"MKDIR\"") && text.contains("\"names\":[\"telltale\"]"), "{text}");
    assert!(!artefacts.join("a_00.t_1.fuse.jsonl").exists());
    trace(&sandbox, &["show", kept.to_str().unwrap()]).expect_code(0).expect_in_out("MKDIR / \"telltale\"");
}
