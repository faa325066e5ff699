//! The emulated host, as a user sees it: `vmm host exec` on this very machine, whatever its KVM is like. Each test starts
//! one or two of them; `--test-threads 1` keeps them from slowing each other down. Needs `mkfs.ext4`, and a QEMU in the cache or on the
//! machine.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::{Finished, Sandbox, Vmm, patience, vmm_binary};

const CTRL_C: &str = "\x03";
/// The console's file and the disk have no names; this is the folder where they would be.
const UNNAMED_FILES: &str = "emulated-host";

/// `vmm host exec --host emulated FLAGS… -- sh -c SCRIPT`.
fn inside<'a>(sandbox: &'a Sandbox, flags: &[&str], script: &str) -> Vmm<'a> {
    Vmm::new(sandbox, ["host", "exec", "--host", "emulated"]).args(flags).args(["--", "sh", "-c", script])
}

/// Where `vmm` keeps its things when no flag says otherwise.
fn cache() -> PathBuf {
    let variable = |name: &str| env::var_os(name).map(PathBuf::from);
    variable("VMM_CACHE_DIR")
        .or_else(|| variable("XDG_CACHE_HOME").map(|dir| dir.join("vmm")))
        .or_else(|| variable("HOME").map(|dir| dir.join(".cache/vmm")))
        .expect("there is a cache")
}

/// Lines of standard output.
fn lines(finished: &Finished) -> Vec<String> {
    finished.out().lines().map(str::to_owned).collect()
}

#[test]
fn a_command_has_our_files_directory_environment_input_and_gives_its_output_and_exit_code() {
    let sandbox = Sandbox::new();
    let ours = sandbox.file("ours", "from outside\n");
    let script = "pwd; cat $OURS; echo $COLOUR; id -u; cat; echo complaint >&2; echo made > made-inside; exit 42";
    let finished = inside(&sandbox, &[], script).env("COLOUR", "blue").env("OURS", ours).stdin("typed\n").finish();
    finished.expect_code(42);
    let work = sandbox.work();
    assert_eq!(lines(&finished), [work.to_str().unwrap(), "from outside", "blue", "0", "typed"]);
    assert!(finished.err().contains("running in an emulated host: as asked\n"), "{finished}");
    assert!(finished.err().ends_with("complaint\n"), "{finished}");
    assert_eq!(fs::read_to_string(work.join("made-inside")).expect("it is here too"), "made\n");
    sandbox.assert_only_results_left();
}

#[test]
fn kvm_is_usable_inside_clocks_are_sound_and_scratch_is_ext4() {
    let sandbox = Sandbox::new();
    let script = format!(
        "{} doctor --json | grep '\"host\"'; cat /sys/devices/system/clocksource/clocksource0/current_clocksource; \
         cat /sys/module/kvm/parameters/tsc_tolerance_ppm; stat -f -c %T $VMM_SCRATCH_DIR $TMPDIR; \
         touch /dev/shm/x /run/x && echo $VMM_INSIDE_EMULATED_HOST; ulimit -Hn; df --output=size -BG $VMM_SCRATCH_DIR | tail -1",
        vmm_binary().display()
    );
    let finished = inside(&sandbox, &["--host-scratch", "5"], &script).finish();
    finished.expect_code(0);
    let lines = lines(&finished);
    let found = ["  \"host\": \"kvm\",", "tsc", "100000", "ext2/ext3", "ext2/ext3", "1", "1048576"];
    assert_eq!(lines[..7], found, "{finished}");
    let gib: u32 = lines[7].trim().trim_end_matches('G').parse().expect("a size");
    assert!((4..=5).contains(&gib), "{finished}");
    sandbox.assert_nothing_left();
}

#[test]
fn commands_have_as_many_cpus_as_here_and_never_the_first() {
    let sandbox = Sandbox::new();
    let finished =
        inside(&sandbox, &[], "nproc; sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status").finish();
    finished.expect_code(0);
    // 16 is the most that it has for commands.
    let cpus = thread::available_parallelism().unwrap().get().min(16);
    let range = if cpus == 1 { "1".to_owned() } else { format!("1-{cpus}") };
    assert_eq!(lines(&finished), [cpus.to_string(), range], "{finished}");
}

#[test]
fn a_command_that_is_killed_or_not_there_has_the_code_a_shell_gives_it() {
    let sandbox = Sandbox::new();
    inside(&sandbox, &[], "kill -9 $$").finish().expect_code(137);
    let finished = Vmm::new(&sandbox, ["host", "exec", "--host", "emulated", "--", "no-such-command"]).finish();
    finished.expect_code(127).expect_error(&["no-such-command"]);
    sandbox.assert_nothing_left();
}

#[test]
fn a_signal_reaches_the_command() {
    let sandbox = Sandbox::new();
    let script = "trap 'echo asked; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let mut running = inside(&sandbox, &[], script).spawn();
    running.wait_for_out("ready");
    running.signal(Signal::TERM);
    running.finish().expect_code(9).expect_in_out("asked");
    sandbox.assert_nothing_left();
}

#[test]
fn on_a_terminal_the_command_has_one_too_and_ctrl_c_goes_inside() {
    let sandbox = Sandbox::new();
    let script = "trap 'echo tra''pped' INT; stty size; echo rea''dy; read line; read line; stty size; exit 5";
    let mut terminal = inside(&sandbox, &[], script).on_terminal();
    terminal.wait_for("40 120");
    terminal.wait_for("ready");
    terminal.type_in(CTRL_C);
    terminal.wait_for("trapped");
    terminal.resize(33, 101);
    thread::sleep(patience(1));
    terminal.type_in("\r\r");
    terminal.wait_for("33 101");
    terminal.finish().expect_code(5);
    sandbox.assert_nothing_left();
}

#[test]
fn killing_vmm_outright_ends_qemu_and_what_was_written_is_here() {
    let sandbox = Sandbox::new();
    let mut running = inside(&sandbox, &[], "echo first > kept; echo second >> kept; echo ready; sleep 600").spawn();
    running.wait_for_out("ready");
    let named: Vec<_> = fs::read_dir(cache().join(UNNAMED_FILES)).expect("the folder is there").collect();
    assert!(named.is_empty(), "no file of an emulated host has a name: {named:?}");
    running.signal(Signal::KILL);
    running.finish().expect_signal(9);
    // That QEMU is gone is part of it.
    sandbox.assert_only_results_left();
    assert_eq!(fs::read_to_string(sandbox.work().join("kept")).expect("kept"), "first\nsecond\n");
}

#[test]
fn ctrl_c_while_it_starts_ends_it_at_once() {
    let sandbox = Sandbox::new();
    let mut terminal = inside(&sandbox, &[], "echo never").on_terminal();
    terminal.wait_for("starting emulated host");
    // Typed at the terminal, which is not raw yet, it is a signal.
    terminal.type_in(CTRL_C);
    terminal.finish().expect_code(130).expect_within(patience(10));
    sandbox.assert_nothing_left();
}

#[test]
fn a_kernel_that_panics_is_reported_with_the_last_lines_of_its_console() {
    let sandbox = Sandbox::new();
    let finished = inside(&sandbox, &["--host-append", "rdinit=/nonexistent"], "echo never").finish();
    finished.expect_code(125).expect_error(&["emulated host ended before it was up", "kernel panic"]);
    sandbox.assert_nothing_left();
}

#[test]
fn an_agent_that_cannot_go_on_says_why() {
    let sandbox = Sandbox::new();
    let finished = inside(&sandbox, &["--host-append", "vmm.mode=nonsense"], "echo never").finish();
    finished.expect_code(125).expect_error(&["emulated host ended before it was up", "vmm.mode=nonsense"]);
    sandbox.assert_nothing_left();
}

#[test]
fn without_mkfs_its_package_is_named() {
    let sandbox = Sandbox::new();
    let empty = sandbox.dir("no-programs");
    // It lives in /usr/sbin, which is looked at whatever PATH says: an ordinary user's does not name it.
    let hide = format!("mount -t tmpfs none {0} && mount --bind {0} /usr/sbin && exec \"$@\"", empty.display());
    let finished = inside(&sandbox, &[], "true").wrapped_in(["unshare", "-m", "sh", "-c", &hide, "sh"]).finish();
    finished.expect_code(125).expect_error(&["mkfs.ext4 is not installed", "apt-get install e2fsprogs"]);
    sandbox.assert_nothing_left();
}

#[test]
fn with_kvm_asked_for_the_command_runs_here_or_the_error_says_what_to_do() {
    let sandbox = Sandbox::new();
    let finished = Vmm::new(&sandbox, ["host", "exec", "--host", "kvm", "--", "sh", "-c", "echo here; exit 3"])
        .deadline(Duration::from_secs(60))
        .finish();
    if finished.code() == Some(3) {
        finished.expect_out("here");
    } else {
        finished.expect_code(125).expect_error(&["kvm", "--host emulated"]);
    }
    sandbox.assert_nothing_left();
}

/// `vmm bisect` over Debian's 6.1 and 6.12, guests in an emulated host.
fn bisect<'a>(sandbox: &'a Sandbox, script: &str) -> Vmm<'a> {
    let list = sandbox.file("list", "debian:6.1\ndebian:6.12\n");
    Vmm::new(sandbox, ["bisect", "--kernels", list.to_str().unwrap(), "--repeat", "2"])
        .args(["exec", "--host", "emulated", "--", "sh", "-c", script])
        .env("VMM_LOG", "debug")
}

/// How often a QEMU was started, as the log of `vmm` says it.
fn hosts_started(finished: &Finished) -> usize {
    finished.err().lines().filter(|line| line.contains("starting ") && line.contains("qemu-system")).count()
}

#[test]
fn a_bisection_runs_all_its_guests_in_one_emulated_host_and_takes_another_when_a_guest_died() {
    let sandbox = Sandbox::new();
    let finished = bisect(&sandbox, "case $(uname -r) in 6.1.*) ;; *) exit 7 ;; esac").finish();
    finished.expect_code(0).expect_in_out("first bad kernel: debian:6.12").expect_in_out("[0 of 2 runs failed]");
    assert_eq!(hosts_started(&finished), 1, "{finished}");
    fs::remove_dir_all(sandbox.work().join("results")).expect("there are results");

    let panic = "case $(uname -r) in 6.1.*) ;; *) echo c > /proc/sysrq-trigger; sleep 600 ;; esac";
    let finished = bisect(&sandbox, panic).finish();
    finished.expect_code(0).expect_in_out("first bad kernel: debian:6.12").expect_in_out("sysrq triggered crash");
    assert_eq!(hosts_started(&finished), 2, "{finished}");
    sandbox.assert_only_results_left();
}

#[test]
fn ctrl_c_ends_a_bisection_and_its_emulated_host_and_it_says_how_to_go_on() {
    let sandbox = Sandbox::new();
    let mut running = bisect(&sandbox, "echo under way >&2; sleep 600").spawn();
    running.wait_for_err("running debian:6.12");
    let results = fs::read_dir(sandbox.work().join("results")).expect("there are results").next();
    let log = results.expect("there is a bisection").unwrap().path().join("runs/001/output.log");
    let end = Instant::now() + patience(120);
    while !fs::read_to_string(&log).unwrap_or_default().contains("under way") {
        assert!(Instant::now() < end, "the guest never spoke");
        thread::sleep(Duration::from_millis(100));
    }
    running.signal(Signal::INT);
    let finished = running.finish();
    finished.expect_code(130);
    assert!(finished.err().contains("interrupted; go on with: vmm bisect --resume /"), "{finished}");
    sandbox.assert_only_results_left();
}
