//! `vmm bisect`: over ready kernels, killed and resumed, and what it says of ends and trees that make no sense.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tests::{Finished, Sandbox, Vmm, fake_suite, patience, vmm_binary};

/// Time enough to say no, even if git is started a dozen times on an emulated CPU: nothing may have been built or booted.
const AT_ONCE: Duration = Duration::from_secs(120);
/// Fails from 6.12 on.
const IS_6_1: &str = "case $(uname -r) in 6.1.*) ;; *) exit 7 ;; esac";

/// Kernels of Debian's, as `series` names them, each a file of its own bytes in a folder of its own: `k1`, `k2`… Equal
/// numbers behind a series make equal files. Gives the list for `--kernels`.
fn kernels(sandbox: &Sandbox, series: &[(&str, u8)]) -> PathBuf {
    let mut list = String::new();
    for (at, (series, salt)) in series.iter().enumerate() {
        let name = format!("k{}", at + 1);
        let dir = sandbox.dir(&name);
        let fetched =
            Command::new(vmm_binary()).args(["kernel", "fetch", &format!("debian:{series}")]).output().unwrap();
        let vmlinux = PathBuf::from(String::from_utf8(fetched.stdout).unwrap().trim_end());
        let entry = vmlinux.parent().expect("a kernel is in the cache: make prepare");
        let mut image = fs::read(entry.join("vmlinuz")).expect("a packaged kernel is there");
        image.push(*salt);
        fs::write(dir.join(&name), image).unwrap();
        fs::copy(entry.join("config"), dir.join("config")).unwrap();
        std::os::unix::fs::symlink(entry.join("modules"), dir.join("modules")).unwrap();
        list += &format!("{name}/{name}\n");
    }
    sandbox.file("list", list)
}

fn bisect<'a>(sandbox: &'a Sandbox, list: &Path, flags: &[&str]) -> Vmm<'a> {
    let words = ["bisect", "--kernels", list.to_str().unwrap()];
    Vmm::new(sandbox, words)
        .args(flags)
        .args(["exec", "--host", "kvm", "--", "sh", "-c", IS_6_1])
        .deadline(patience(240))
}

fn folder(sandbox: &Sandbox) -> PathBuf {
    let mut entries = fs::read_dir(sandbox.work().join("results")).expect("there are results");
    entries.next().expect("there is a bisection").unwrap().path()
}

fn report(sandbox: &Sandbox) -> Value {
    serde_json::from_slice(&fs::read(folder(sandbox).join("report.json")).expect("a report is there")).unwrap()
}

fn found(report: &Value) -> &str {
    report["found"]["id"].as_str().unwrap_or_default()
}

#[test]
fn the_first_kernel_that_fails_is_named_in_as_few_boots_as_promised() {
    let sandbox = Sandbox::new();
    let series: Vec<_> = (0..8).map(|n| (if n < 3 { "6.1" } else { "6.12" }, n)).collect();
    let list = kernels(&sandbox, &series);
    let finished = bisect(&sandbox, &list, &[]).finish();
    finished.expect_code(0).expect_in_out("first bad kernel: k4").expect_in_out("exit code 7");
    let report = report(&sandbox);
    assert!(found(&report).ends_with("/k4/k4"), "{finished}");
    // The logarithm of seven candidates, and the two ends.
    assert!(report["boots"].as_u64().unwrap() <= 5, "{report}");
    let text = fs::read_to_string(folder(&sandbox).join("report.md")).unwrap();
    for part in ["# first bad kernel: k4", "the failure: exit code 7", "## How to reproduce", "vmm exec --kernel"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    sandbox.assert_only_results_left();
}

#[test]
fn killed_three_times_and_resumed_it_gives_the_same_answer_and_repeats_no_step() {
    let sandbox = Sandbox::new();
    let list = kernels(&sandbox, &[("6.1", 0), ("6.1", 1), ("6.1", 2), ("6.12", 3), ("6.12", 4)]);
    let mut running = bisect(&sandbox, &list, &[]).spawn();
    // While the first runs, after it, and after the first step of the search.
    running.wait_for_err("running k5");
    running.signal(Signal::KILL);
    running.finish().expect_signal(9);
    for after in ["k5: exit code 7", "k1: exit code 0"] {
        let mut running = Vmm::new(&sandbox, ["bisect", "--resume"]).deadline(patience(240)).spawn();
        running.wait_for_out(after);
        running.signal(Signal::KILL);
        running.finish().expect_signal(9);
        sandbox.assert_only_results_left();
    }
    let finished = Vmm::new(&sandbox, ["bisect", "--resume"]).deadline(patience(240)).finish();
    finished.expect_code(0).expect_in_out("first bad kernel: k4").expect_in_out("after 2 steps");
    let report = report(&sandbox);
    let steps: Vec<_> = report["steps"].as_array().unwrap().iter().map(|step| step["id"].to_string()).collect();
    let mut once = steps.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), steps.len(), "{steps:?}");
    // A finished one says the same again, at once.
    let again = Vmm::new(&sandbox, ["bisect", "--resume"]).finish();
    again.expect_code(0).expect_in_out("first bad kernel: k4").expect_within(AT_ONCE);
    sandbox.assert_only_results_left();
}

#[test]
fn equal_kernels_are_not_booted_and_a_suite_is_known_by_the_tests_that_fail() {
    let sandbox = Sandbox::new();
    let list = kernels(&sandbox, &[("6.1", 0), ("6.1", 0), ("6.12", 1), ("6.12", 1), ("6.12", 1)]);
    let uname = "echo 1..3; echo ok 1; case $(uname -r) in 6.1.*) echo ok 2 ;; *) echo not ok 2 ;; esac; echo not ok 3";
    let cache = fake_suite::add(&sandbox, &[("a/00.t", uname)]);
    let words = ["bisect", "--kernels", list.to_str().unwrap(), "run", "--host", "kvm", fake_suite::NAME];
    let finished = Vmm::new(&sandbox, words).env("VMM_CACHE_DIR", &cache).deadline(patience(240)).finish();
    finished.expect_code(0).expect_in_out("first bad kernel: k3").expect_in_out("its kernel is that of");
    let report = report(&sandbox);
    // The third fails everywhere, and so tells nothing.
    assert_eq!((&report["boots"], &report["signature"]), (&2.into(), &"fails: pjdfstest: a/00.t:2".into()));
    sandbox.assert_only_results_left();
}

#[test]
fn ends_that_do_not_differ_are_told_with_what_was_seen() {
    let sandbox = Sandbox::new();
    let list = kernels(&sandbox, &[("6.1", 0), ("6.12", 1), ("6.12", 2)]);
    let never = bisect(&sandbox, &list, &["--bad", "k1", "--good", "k2", "--fix"]);
    never.finish().expect_code(125).expect_in_out("k1 does not fail: it passed 1 of 1 runs");
    let both = bisect(&sandbox, &list, &["--good", "2", "--bad", "3"]);
    both.finish().expect_code(125).expect_in_out("k2 fails as well, in 1 of 1 runs");
    sandbox.assert_only_results_left();
}

#[test]
fn vmm_run_by_itself_is_a_script_for_git_bisect() {
    let sandbox = Sandbox::new();
    let good = [("6.1", "good"), ("6.1", "good"), ("6.12", "bad"), ("6.12", "bad"), ("6.12", "bad")];
    let tree = Tree::new(&sandbox);
    let ids: Vec<_> = good
        .iter()
        .enumerate()
        .map(|(n, (series, _))| tree.commit("kernel", &format!("debian:{series}"), &format!("change {n}")))
        .collect();
    let uname = "echo 1..1; case $(uname -r) in 6.1.*) echo ok 1 ;; *) echo not ok 1 ;; esac";
    let cache = fake_suite::add(&sandbox, &[("a/00.t", uname)]);
    tree.git(&["bisect", "start", &ids[4], &ids[0]]);
    let results = sandbox.work().join("results");
    let script = format!(
        "exec {} run --host kvm --results {} --kernel \"$(cat kernel)\" {}",
        vmm_binary().display(),
        results.display(),
        fake_suite::NAME
    );
    let mut git = Command::new("git");
    git.arg("-C").arg(&tree.0).args(["bisect", "run", "sh", "-c", &script]);
    let run = git.env("VMM_CACHE_DIR", &cache).env("VMM_SCRATCH_DIR", sandbox.scratch()).output().unwrap();
    let out = String::from_utf8_lossy(&run.stdout);
    assert!(out.contains(&format!("{} is the first", ids[2])), "{out}{}", String::from_utf8_lossy(&run.stderr));
}

/// A repository of the test's own.
struct Tree(PathBuf);

impl Tree {
    fn new(sandbox: &Sandbox) -> Self {
        let tree = Self(sandbox.dir("tree"));
        tree.git(&["init", "-q", "-b", "main"]);
        tree
    }

    /// One that looks like a kernel's.
    fn of_a_kernel(sandbox: &Sandbox) -> Self {
        let tree = Self::new(sandbox);
        fs::create_dir_all(tree.0.join("scripts/kconfig")).unwrap();
        fs::write(tree.0.join("scripts/kconfig/merge_config.sh"), "exit 1\n").unwrap();
        tree.commit("Kbuild", "", "begin");
        tree
    }

    fn commit(&self, file: &str, content: &str, subject: &str) -> String {
        fs::write(self.0.join(file), content).unwrap();
        self.git(&["add", "-A"]);
        self.git(&[
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "commit",
            "-q",
            "--allow-empty",
            "-m",
            subject,
        ]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn git(&self, words: &[&str]) -> String {
        let output = Command::new("git").arg("-C").arg(&self.0).args(words).output().unwrap();
        assert!(output.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Everything that must be as it was.
    fn state(&self) -> String {
        let words = [
            ["status", "--porcelain"],
            ["rev-parse", "HEAD"],
            ["stash", "list"],
            ["worktree", "list"],
            ["for-each-ref", "--format=%(refname)"],
        ];
        words.map(|words| self.git(&words)).join("\n")
    }

    /// `vmm bisect --tree TREE FLAGS run`.
    fn bisect(&self, sandbox: &Sandbox, flags: &[&str]) -> Finished {
        let before = self.state();
        let words = ["bisect", "--tree", self.0.to_str().unwrap()];
        let finished = Vmm::new(sandbox, words).args(flags.iter().copied()).args(["exec", "--", "true"]).finish();
        assert_eq!(self.state(), before, "{finished}");
        finished
    }

    /// The same, refused.
    fn refused(&self, sandbox: &Sandbox, flags: &[&str], texts: &[&str]) {
        let finished = self.bisect(sandbox, flags);
        finished.expect_code(2).expect_error(texts).expect_within(AT_ONCE).expect_out("");
        sandbox.assert_nothing_left();
    }
}

#[test]
fn revisions_that_make_no_sense_are_refused_with_what_git_knows_of_them() {
    let sandbox = Sandbox::new();
    let tree = Tree::of_a_kernel(&sandbox);
    let old = tree.commit("a", "1", "the base");
    let new = tree.commit("a", "2", "newer");
    tree.git(&["checkout", "-q", "-b", "side", &old]);
    let side = tree.commit("b", "1", "aside");
    tree.git(&["checkout", "-q", "main"]);
    tree.refused(&sandbox, &["--good", "v9.9", "--bad", "HEAD"], &["--good v9.9", "no such commit"]);
    tree.refused(&sandbox, &["--good", &old, "--bad", "nonsense"], &["--bad nonsense", "no such commit"]);
    tree.refused(&sandbox, &["--good", &new, "--bad", &old], &["exchange", "--fix"]);
    tree.refused(&sandbox, &["--good", &new, "--bad", &new], &["same commit"]);
    tree.refused(&sandbox, &["--good", &side, "--bad", "HEAD"], &["not an ancestor", "the base", &old]);
    tree.refused(&sandbox, &["--good", &old, "--bad", "HEAD", "--fix"], &["exchange"]);
    tree.refused(&sandbox, &["--bad", "HEAD"], &["--good is missing"]);
    tree.refused(&sandbox, &["--good", &old], &["--bad is needed once"]);
    tree.refused(&sandbox, &["--good", &old, "--bad", "HEAD", "--", "nowhere"], &["no commit", "nowhere"]);
    tree.refused(&sandbox, &["--good", &old, "--bad", "HEAD", "--config", "/nonexistent"], &["--config /nonexistent"]);
    let log = sandbox.file("log", "git bisect start\nrm -rf /\n");
    tree.refused(&sandbox, &["--replay", log.to_str().unwrap()], &["line 2"]);
}

#[test]
fn trees_that_cannot_be_searched_are_refused() {
    let sandbox = Sandbox::new();
    let tree = Tree::new(&sandbox);
    let old = tree.commit("a", "1", "one");
    tree.commit("a", "2", "two");
    tree.refused(&sandbox, &["--good", &old, "--bad", "HEAD"], &["not the history of a kernel", "Kbuild"]);
    let clone = sandbox.dir("shallow");
    tree.git(&["clone", "-q", "--depth", "1", &format!("file://{}", tree.0.display()), clone.to_str().unwrap()]);
    Tree(clone).refused(&sandbox, &["--good", &old, "--bad", "HEAD"], &["shallow", "git fetch --unshallow"]);
    for (dir, says) in [("/nonexistent", "is not a directory"), ("/", "no work tree")] {
        let words = ["bisect", "--tree", dir, "--good", "a", "--bad", "b", "run"];
        Vmm::new(&sandbox, words).finish().expect_code(2).expect_error(&[dir, says]).expect_within(AT_ONCE);
    }
    sandbox.assert_nothing_left();
}

#[test]
fn a_missing_compiler_is_named_with_its_package_before_anything_is_made() {
    let sandbox = Sandbox::new();
    let tree = Tree::of_a_kernel(&sandbox);
    let old = tree.git(&["rev-parse", "HEAD"]);
    tree.commit("a", "1", "one");
    let tools = sandbox.dir("only-git");
    let git = Command::new("sh").args(["-c", "command -v git"]).output().unwrap();
    std::os::unix::fs::symlink(String::from_utf8(git.stdout).unwrap().trim_end(), tools.join("git")).unwrap();
    let words = ["bisect", "--tree", tree.0.to_str().unwrap(), "--good", &old, "--bad", "HEAD", "exec", "--", "true"];
    let finished = Vmm::new(&sandbox, words).env("PATH", &tools).finish();
    finished.expect_code(125).expect_error(&["gcc", "apt-get install"]).expect_within(AT_ONCE);
    sandbox.assert_nothing_left();
}

#[test]
fn questions_and_lists_that_make_no_sense_are_refused() {
    let sandbox = Sandbox::new();
    let list = sandbox.file("kernels", "debian:6.1\ndebian:6.12\n");
    let list = list.to_str().unwrap();
    let refused = |words: &[&str], texts: &[&str]| {
        let finished = Vmm::new(&sandbox, ["bisect"]).args(words.iter().copied()).finish();
        finished.expect_code(2).expect_error(texts).expect_within(AT_ONCE).expect_out("");
        sandbox.assert_nothing_left();
    };
    refused(&["--kernels", list], &["run SUITE", "exec -- CMD"]);
    refused(&["run"], &["--tree", "--kernels"]);
    refused(&["--kernels", list, "run", "nosuchsuite"], &["nosuchsuite", "pjdfstest-rs"]);
    refused(&["--kernels", list, "run", "--kernel", "debian:6.1"], &["--kernel", "itself"]);
    refused(&["--kernels", list, "exec", "--memory", "1M", "--", "true"], &["--memory 1M"]);
    refused(&["--kernels", list, "--good", "2", "--bad", "1", "run"], &["wrong way round"]);
    refused(&["--kernels", list, "--bad", "9", "run"], &["--bad 9", "no such kernel"]);
    refused(&["--kernels", "/nonexistent", "run"], &["/nonexistent"]);
    refused(&["--kernels", list, "--repeat", "often", "run"], &["--repeat", "auto"]);
    refused(&["--kernels", list, "--error", "2", "run"], &["--error"]);
    refused(&["--resume", "/nonexistent"], &["/nonexistent", "no bisection"]);
    refused(&["--resume"], &["no bisection", "--resume DIR"]);
}
