//! What a guest does with a file server that fails, is slow, says too little or says nothing: the suite that nobody else
//! has, as below virtio-fs there is no block device to fail. Each fault has a machine of its own (`--fault`).

use std::fs;

use serde_json::Value;
use tests::{Finished, Sandbox, Vmm, fake_suite, patience};

/// A command in a guest whose shares have these faults; its output ends with its exit code.
fn with_faults(rules: &[&str], script: &str) -> Finished {
    let sandbox = Sandbox::new();
    let flags: Vec<&str> = rules.iter().flat_map(|rule| ["--fault", rule]).collect();
    let script = format!("cd /mnt/virtiofs1; exec 2>&1; {script}");
    let finished = Vmm::sh(&sandbox, &[&flags[..], &["--stats"]].concat(), &script).finish();
    sandbox.assert_nothing_left();
    finished
}

#[test]
fn an_error_of_a_write_reaches_the_program_and_later_writes_go_on() {
    let script = "dd if=/dev/zero of=f bs=4k count=1 oflag=direct && dd if=/dev/zero of=f bs=4k count=1 oflag=direct; \
                  dd if=/dev/zero of=f bs=4k count=2 oflag=direct && stat -c 'size %s' f";
    let finished = with_faults(&["op=WRITE,nth=2,errno=EIO"], script);
    finished.expect_code(0).expect_in_out("Input/output error").expect_in_out("size 8192");
    assert!(finished.err().contains("myfs1: faults injected on purpose: 1 × WRITE"), "{finished}");
}

#[test]
fn a_full_disk_is_told_by_write_and_by_fsync() {
    let finished = with_faults(&["op=WRITE,errno=ENOSPC"], "dd if=/dev/zero of=f bs=4k count=1 || echo write failed");
    finished.expect_code(0).expect_in_out("No space left on device").expect_in_out("write failed");
    let script = "dd if=/dev/zero of=f bs=4k count=1 conv=fsync || echo fsync failed; \
                  dd if=/dev/zero of=f bs=4k count=1 conv=fsync && echo fsync worked";
    let finished = with_faults(&["op=FSYNC,nth=1,errno=ENOSPC"], script);
    finished.expect_code(0).expect_in_out("fsync failed").expect_in_out("fsync worked");
}

#[test]
fn an_error_of_a_write_that_was_kept_back_reaches_fsync() {
    let sandbox = Sandbox::new();
    let script = "cd /mnt/virtiofs1; exec 2>&1; dd if=/dev/zero of=f bs=4k count=4 conv=fsync || echo fsync failed";
    let flags = ["--writeback", "--fault", "op=WRITE,nth=1,errno=EIO"];
    let finished = Vmm::sh(&sandbox, &flags, script).finish();
    finished.expect_code(0).expect_in_out("Input/output error").expect_in_out("\nfsync failed");
}

#[test]
fn an_error_of_a_lookup_reaches_the_program_and_is_not_remembered() {
    let script = "touch a b; echo 2 > /proc/sys/vm/drop_caches; stat -c %n a; stat -c %n b; stat -c %n a";
    let finished = with_faults(&["op=LOOKUP,name=a,nth=2,errno=EACCES"], script);
    finished.expect_code(0).expect_in_out("'a': Permission denied").expect_in_out("\nb\na");
}

#[test]
fn delays_fail_nothing() {
    let script = "time_begun=$(date +%s%N); for i in 1 2 3 4; do echo $i > f$i; done; cat f1 f2 f3 f4 | tr -d '\\n'; \
                  echo; [ $(($(date +%s%N) - time_begun)) -gt 800000000 ] && echo it was slow";
    let finished = with_faults(&["op=WRITE,delay=200ms", "op=GETATTR,every=2,delay=50ms"], script);
    finished.expect_code(0).expect_in_out("1234\nit was slow");
}

#[test]
fn a_read_that_comes_short_is_told_as_one_and_the_rest_can_be_had() {
    // Without a cache: with one, the kernel asks for what is missing by itself.
    let script = "cd /mnt/virtiofs1; head -c 8192 /dev/zero > f; for i in 1 2; do dd if=f bs=64k count=1 2>/dev/null | wc -c; done";
    let flags = ["--cache", "never", "--fault", "op=READ,nth=1,short"];
    Vmm::sh(&Sandbox::new(), &flags, script).finish().expect_code(0).expect_in_out("4096\n8192");
}

#[test]
fn half_a_reply_of_another_kind_does_not_bring_the_guest_down() {
    let rules =
        ["op=READDIRPLUS,nth=1,short", "op=READDIR,nth=1,short", "op=STATFS,nth=1,short", "op=GETXATTR,nth=1,short"];
    let script =
        "touch a b c d; ls | wc -l; stat -f . > /dev/null; cat a; echo alive; dmesg | grep -c -e BUG: -e Oops:";
    // What is cut off is asked for again or missing; that is the server's fault.
    with_faults(&rules, script).expect_in_out("alive\n0");
}

#[test]
fn a_stalled_queue_ends_with_the_deadline_and_the_trace_shows_what_it_stalled_at() {
    let sandbox = Sandbox::new();
    let trace = sandbox.work().join("trace");
    let flags = ["--fault", "myfs2:op=STATFS,stall", "--timeout", "30s", "--trace", trace.to_str().unwrap()];
    let finished = Vmm::sh(&sandbox, &flags, "echo before; stat -f /mnt/virtiofs2; echo after").finish();
    finished.expect_code(124).expect_out("before");
    let lines = fs::read_to_string(&trace).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let open: Vec<_> = lines.iter().map(|line| &line["request"]).filter(|r| r["in_flight"] == true).collect();
    assert!(
        open.iter().any(|r| r["operation"] == "STATFS" && r["share"] == "myfs2" && r["injected"] == true),
        "{open:?}"
    );
}

#[test]
fn a_test_that_waits_for_a_stalled_queue_is_an_error_and_its_requests_are_kept() {
    let sandbox = Sandbox::new();
    let scripts = [("a/00.t", "echo 1..1; echo ok 1"), ("b/00.t", "echo 1..1; mkdir stall; echo ok 1")];
    let cache = fake_suite::add(&sandbox, &scripts);
    let words = ["run", "--host", "kvm", "--test-timeout", "10s", "--hang-timeout", "20s", "--fault"];
    let run = Vmm::new(&sandbox, words).args(["op=MKDIR,name=stall,stall", fake_suite::NAME]);
    let finished = run.env("VMM_CACHE_DIR", &cache).deadline(patience(60)).finish();
    finished.expect_code(124);
    let results = fs::canonicalize(sandbox.work().join("results/latest")).unwrap();
    let tests = fs::read_to_string(results.join("results.json")).unwrap();
    let tests: Value = serde_json::from_str(&tests).unwrap();
    let tests = tests["suites"][0]["tests"].as_array().unwrap();
    let status = |name: &str| tests.iter().find(|test| test["test"] == name).map(|test| test["status"].clone());
    assert_eq!(status("a/00.t:1"), Some("pass".into()), "{finished}");
    assert_eq!(status("b/00.t:1"), Some("error".into()), "{finished}");
    let kept = fs::read_to_string(results.join("artefacts/pjdfstest/b_00.t_1.fuse.jsonl")).unwrap();
    let hung = kept.lines().find(|line| line.contains("\"in_flight\":true")).expect("the request in flight is there");
    assert!(hung.contains("\"operation\":\"MKDIR\"") && hung.contains("\"names\":[\"stall\"]"), "{hung}");
}
