//! `vmm exec`: a command's output, input, exit code and signals, through a guest.

use std::fs;

use sha2::{Digest, Sha256};
use tests::{Sandbox, Vmm};

#[test]
fn the_commands_exit_code_becomes_ours() {
    let sandbox = Sandbox::new();
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 128 + 15)] {
        Vmm::sh(&sandbox, &[], script).finish().expect_code(code).expect_out("");
    }
    sandbox.assert_nothing_left();
}

#[test]
fn a_command_that_cannot_be_started_gives_what_shells_give() {
    let sandbox = Sandbox::new();
    let exec = |command: &str| Vmm::new(&sandbox, ["exec", "--host", "kvm", "--", command]).finish();
    exec("nosuchcommand").expect_code(127).expect_error(&["nosuchcommand"]);
    exec("/etc/passwd").expect_code(126).expect_error(&["/etc/passwd"]);
    sandbox.assert_nothing_left();
}

#[test]
fn output_and_errors_stay_apart_and_every_byte_gets_through() {
    let sandbox = Sandbox::new();
    let finished =
        Vmm::sh(&sandbox, &[], "echo to stdout; echo to stderr >&2; printf '\\000\\377\\r\\n\\033[31m'").finish();
    finished.expect_code(0);
    assert_eq!(finished.stdout, b"to stdout\n\0\xff\r\n\x1b[31m", "{finished}");
    assert!(finished.err().contains("to stderr\n"), "{finished}");
}

#[test]
fn input_gets_through_whole() {
    let sandbox = Sandbox::new();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let finished = Vmm::sh(&sandbox, &[], "cat").stdin(bytes.clone()).finish();
    finished.expect_code(0);
    assert_eq!(Sha256::digest(&finished.stdout), Sha256::digest(&bytes), "{} bytes", finished.stdout.len());
}

#[test]
fn without_input_the_command_reads_nothing() {
    let sandbox = Sandbox::new();
    Vmm::sh(&sandbox, &[], "wc -c").finish().expect_code(0).expect_out("0");
}

#[test]
fn both_scratch_shares_are_mounted_and_gone_afterwards() {
    let sandbox = Sandbox::new();
    let script =
        "grep -c ' virtiofs ' /proc/mounts; for d in /mnt/virtiofs1 /mnt/virtiofs2; do echo $d > $d/f; cat $d/f; done";
    Vmm::sh(&sandbox, &[], script).finish().expect_code(0).expect_out("2\n/mnt/virtiofs1\n/mnt/virtiofs2");
    sandbox.assert_nothing_left();
}

#[test]
fn what_the_guest_writes_is_on_the_host_and_the_other_way_round() {
    let sandbox = Sandbox::new();
    let (one, two) = (sandbox.dir("one"), sandbox.dir("two"));
    fs::write(two.join("from-host"), "hello guest").unwrap();
    let share = |path: &std::path::Path, tag: &str| format!("{}:{tag}", path.display());
    let flags = ["--shared-dir", &share(&one, "first"), "--shared-dir", &share(&two, "second")];
    let script = "set -e; a=$(sed -n 's/^first \\([^ ]*\\) virtiofs.*/\\1/p' /proc/mounts); \
                  b=$(sed -n 's/^second \\([^ ]*\\) virtiofs.*/\\1/p' /proc/mounts); \
                  cat $b/from-host; echo hello host > $a/from-guest; mkdir $a/d; sync $a/from-guest";
    Vmm::sh(&sandbox, &flags, script).finish().expect_code(0).expect_out("hello guest");
    assert_eq!(fs::read_to_string(one.join("from-guest")).unwrap(), "hello host\n");
    assert!(one.join("d").is_dir());
    sandbox.assert_nothing_left();
}

#[test]
fn the_guest_has_the_cpus_memory_and_command_line_asked_for() {
    let sandbox = Sandbox::new();
    let script =
        "nproc; awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo; grep -o 'vmm_e2e=[^ ]*' /proc/cmdline";
    for (cpus, memory, least) in [("1", "256M", 150), ("2", "1G", 850), ("4", "4G", 3800)] {
        let flags = ["--cpus", cpus, "--memory", memory, "--append", "vmm_e2e=yes"];
        let finished = Vmm::sh(&sandbox, &flags, script).finish();
        finished.expect_code(0);
        let out = finished.out();
        let lines: Vec<_> = out.lines().collect();
        assert_eq!(lines.len(), 3, "{finished}");
        let mib: u64 = lines[1].parse().unwrap();
        let asked = if memory == "256M" { 256 } else { memory.trim_end_matches('G').parse::<u64>().unwrap() * 1024 };
        assert_eq!((lines[0], lines[2]), (cpus, "vmm_e2e=yes"), "{finished}");
        assert!((least..=asked).contains(&mib), "{mib} MiB of {asked}: {finished}");
    }
}

#[test]
fn a_guest_with_the_older_kernel_works_as_well() {
    let sandbox = Sandbox::new();
    let script = "uname -r; grep -c ' virtiofs ' /proc/mounts; echo x > /mnt/virtiofs1/x && cat /mnt/virtiofs1/x";
    let finished = Vmm::sh(&sandbox, &["--kernel", "debian:6.1", "--cpus", "2"], script).finish();
    finished.expect_code(0);
    assert!(finished.out().starts_with("6.1."), "{finished}");
    assert!(finished.out().ends_with("\n2\nx\n"), "{finished}");
}

#[test]
fn a_command_that_leaves_children_behind_does_not_keep_the_guest_alive() {
    let sandbox = Sandbox::new();
    let script = "(trap '' HUP TERM; sleep 1000) >/dev/null 2>&1 & echo done";
    Vmm::sh(&sandbox, &[], script).finish().expect_code(0).expect_out("done");
    sandbox.assert_nothing_left();
}

#[test]
fn the_console_is_kept_where_it_is_asked_for() {
    let sandbox = Sandbox::new();
    let console = sandbox.other().join("console.log");
    // What the kernel says of itself is not printed by default: each character costs an exit.
    let flags = ["--console", console.to_str().unwrap(), "--append", "loglevel=7"];
    Vmm::sh(&sandbox, &flags, "echo a word for the log > /dev/kmsg").finish().expect_code(0);
    let log = fs::read_to_string(&console).unwrap();
    assert!(log.contains("Linux version"), "{log}");
}
