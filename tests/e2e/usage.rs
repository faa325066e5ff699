//! Whatever is wrong with the command line is one clear error, exit code 2, at once, and leaves nothing.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use tests::{Sandbox, Vmm, kernels};

/// Time enough to say no: nothing may have been built, downloaded or booted.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Runs `vmm ARGS…` and expects a usage error that contains `texts`.
#[track_caller]
fn refused<S: Into<OsString>>(sandbox: &Sandbox, args: impl IntoIterator<Item = S>, texts: &[&str]) {
    let finished = Vmm::new(sandbox, args).finish();
    finished.expect_code(2).expect_error(texts).expect_within(AT_ONCE).expect_out("");
    sandbox.assert_nothing_left();
}

#[test]
fn help_and_version_go_to_standard_output() {
    let sandbox = Sandbox::new();
    for args in [vec!["--help"], vec!["run", "--help"], vec!["exec", "--help"], vec!["--version"]] {
        let finished = Vmm::new(&sandbox, args).finish();
        finished.expect_code(0).expect_in_out("vmm");
        assert_eq!(finished.err(), "", "{finished}");
    }
    sandbox.assert_nothing_left();
}

#[test]
fn no_command_and_unknown_flags_are_refused() {
    let sandbox = Sandbox::new();
    for args in [vec!["frobnicate"], vec!["run", "--frobnicate"], vec!["exec"], vec!["exec", "--cpus"]] {
        let finished = Vmm::new(&sandbox, args).finish();
        finished.expect_code(2).expect_error(&[]);
    }
    Vmm::new(&sandbox, [""; 0]).finish().expect_code(2);
    sandbox.assert_nothing_left();
}

#[test]
fn a_manifest_with_an_unknown_key_is_one_error_that_names_the_key_and_its_line() {
    let sandbox = Sandbox::new();
    let manifest = sandbox.dir("m").join("mine.toml");
    let text = "name = 'mine'\ndescription = 'd'\nformat = 'exit-code'\nspeed = 'high'\n";
    std::fs::write(&manifest, text).unwrap();
    let words = ["suite", "add", "mine", "--manifest", manifest.to_str().unwrap(), "--source", "."];
    refused(&sandbox, words, &["mine.toml", "speed", "line 4"]);
}

#[test]
fn a_wrong_baseline_is_one_error_that_names_file_line_and_what_is_right() {
    let sandbox = Sandbox::new();
    let head = "suite = 'pjdfstest-rs'\n[[test]]\nname = 'a'\n";
    for (text, says) in [
        (format!("{head}expects = 'fail'\n"), &["line 4", "unknown field `expects`"][..]),
        (format!("{head}expect = 'flaky'\nfailed = 3\nruns = 2\n"), &["line 3", "failed is more than runs"]),
        (format!("{head}expect = 'fail'\n[[test]]\nname = 'a'\nexpect = 'skip'\n"), &["line 6", "twice"]),
        ("suite = 'x'\nkernel = 'new'\n".to_owned(), &["line 2", ">=6.1, <6.13"]),
        ("nothing of the kind".to_owned(), &["line 1"]),
    ] {
        let file = sandbox.dir("b").join("my.toml");
        std::fs::write(&file, text).unwrap();
        let texts: Vec<_> = ["my.toml"].iter().chain(says).copied().collect();
        refused(&sandbox, ["run", "--baseline", file.to_str().unwrap()], &texts);
        refused(&sandbox, ["baseline", "show", file.to_str().unwrap()], &texts);
    }
    refused(&sandbox, ["run", "--baseline", "/nonexistent.toml"], &["/nonexistent.toml"]);
    refused(&sandbox, ["run", "--format", "html"], &["html", "ktap"]);
    refused(&sandbox, ["baseline", "update", "/nonexistent"], &["/nonexistent", "no results folder"]);
}

#[test]
fn an_unknown_suite_is_refused_and_the_known_ones_are_named() {
    let sandbox = Sandbox::new();
    refused(&sandbox, ["run", "nosuchsuite"], &["nosuchsuite", "pjdfstest-rs"]);
    refused(&sandbox, ["run", "pjdfstest-rs", "nosuchsuite"], &["nosuchsuite"]);
    refused(&sandbox, ["run", "../etc"], &["../etc"]);
}

#[test]
fn a_kernel_that_is_not_there_is_refused() {
    let sandbox = Sandbox::new();
    refused(&sandbox, ["exec", "--kernel", "/nonexistent/bzImage", "--", "true"], &["/nonexistent/bzImage"]);
    refused(&sandbox, ["run", "--kernel", "/nonexistent/bzImage"], &["/nonexistent/bzImage"]);
}

#[test]
fn a_file_that_is_no_kernel_is_refused_by_name_and_kind() {
    let sandbox = Sandbox::new();
    for (name, bytes, kind) in [
        ("empty", Vec::new(), "an empty file"),
        ("text", b"#!/bin/sh\necho I am no kernel\n".to_vec(), "a text file"),
        ("cut", kernels::truncated_bzimage(), "truncated"),
        ("Image", kernels::arm64_image(), "an arm64 Image"),
        ("vmlinux", kernels::arm64_elf(), "arm64"),
    ] {
        let path = sandbox.file(name, bytes);
        for command in [vec!["exec"], vec!["run"]] {
            let args = command.iter().map(OsStr::new).chain([OsStr::new("--kernel"), path.as_os_str()]);
            let args =
                args.chain(if command[0] == "exec" { vec![OsStr::new("--"), OsStr::new("true")] } else { vec![] });
            refused(&sandbox, args.map(OsString::from), &[path.to_str().unwrap(), kind]);
        }
    }
}

#[test]
fn a_directory_without_a_kernel_in_it_is_refused() {
    let sandbox = Sandbox::new();
    let tree = sandbox.dir("tree");
    refused(&sandbox, ["exec", "--kernel", tree.to_str().unwrap(), "--", "true"], &[tree.to_str().unwrap()]);
}

#[test]
fn too_little_and_too_much_memory_are_refused() {
    let sandbox = Sandbox::new();
    for size in ["1M", "0", "1T", "99999999T", "-1", "much", "1.5G", ""] {
        let flag = format!("--memory={size}");
        refused(&sandbox, ["exec", flag.as_str(), "--", "true"], &["memory", size]);
    }
}

#[test]
fn no_cpus_and_too_many_cpus_are_refused() {
    let sandbox = Sandbox::new();
    for count in ["0", "1000", "99999999999", "-1", "two"] {
        let flag = format!("--cpus={count}");
        refused(&sandbox, ["exec", flag.as_str(), "--", "true"], &["cpus", count]);
    }
}

#[test]
fn a_share_that_is_not_there_or_no_directory_is_refused() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("file", "");
    for (path, why) in [("/nonexistent/share", "no such file"), (file.to_str().unwrap(), "is not a directory")] {
        refused(&sandbox, ["exec", "--shared-dir", &format!("{path}:tag"), "--", "true"], &[path, why]);
    }
}

#[test]
fn a_tag_that_is_empty_too_long_or_used_twice_is_refused() {
    let sandbox = Sandbox::new();
    let dir = sandbox.dir("share").to_str().unwrap().to_owned();
    let share = |tag: &str| format!("{dir}:{tag}");
    let (limit, over) = ("x".repeat(36), "x".repeat(37));
    for tag in ["", &over, "é".repeat(19).as_str()] {
        refused(&sandbox, ["exec", "--shared-dir", &share(tag), "--", "true"], &["a tag has 1 to 36 bytes"]);
    }
    let twice = ["exec", "--shared-dir", &share(&limit), "--shared-dir", &share(&limit), "--", "true"];
    refused(&sandbox, twice, &[&format!("the tag `{limit}` is used twice")]);
    refused(&sandbox, ["exec", "--shared-dir", &dir, "--", "true"], &["PATH:TAG"]);
}

#[test]
fn a_tag_that_is_no_text_is_refused() {
    let sandbox = Sandbox::new();
    let mut share = sandbox.dir("share").into_os_string();
    share.push(OsStr::from_bytes(b":\xff\xfe"));
    let args = [OsStr::new("exec"), OsStr::new("--shared-dir"), &share, OsStr::new("--"), OsStr::new("true")];
    refused(&sandbox, args, &[]);
}

#[test]
fn a_deadline_that_makes_no_sense_is_refused() {
    let sandbox = Sandbox::new();
    for flag in ["--timeout", "--boot-timeout"] {
        for time in ["0", "soon", "-1", "5 parsecs"] {
            let flag = format!("{flag}={time}");
            refused(&sandbox, ["exec", flag.as_str(), "--", "true"], &["timeout"]);
        }
    }
    refused(&sandbox, ["run", "--test-timeout=0"], &["timeout"]);
}

#[test]
fn an_unknown_host_is_refused() {
    let sandbox = Sandbox::new();
    refused(&sandbox, ["exec", "--host", "vmware", "--", "true"], &["vmware", "emulated"]);
}

#[test]
fn a_bad_line_in_a_test_list_is_refused_with_its_number() {
    let sandbox = Sandbox::new();
    let list = sandbox.file("list", "# known\nfine # F:1/18 sometimes\nnot fine\n");
    for flag in ["--exclude-file", "--expect-failures"] {
        refused(&sandbox, ["run", flag, list.to_str().unwrap()], &[list.to_str().unwrap(), "line 3"]);
        refused(&sandbox, ["run", flag, "/nonexistent/list"], &["/nonexistent/list"]);
    }
}

#[test]
fn comparing_what_is_no_results_folder_is_refused() {
    let sandbox = Sandbox::new();
    let folder = sandbox.work();
    let path = folder.to_str().unwrap();
    refused(&sandbox, ["compare", path, path], &[path, "no results folder"]);
    refused(&sandbox, ["compare", path], &["<NEW>"]);
}
