//! Builds the agent, which this crate carries inside: statically, so that it runs as `/init` of any guest, and in a target
//! folder of its own, as the one in use is locked by the cargo that runs this.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// glibc's: the agent uses nothing that glibc cannot link statically.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let workspace = manifest_dir.join("../..").canonicalize().expect("the workspace is two folders up");
    for input in ["guest-image/agent", "guest-image/wire", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let out_dir = PathBuf::from(variable("OUT_DIR"));
    let target_dir = out_dir.join("agent-target");
    build(&workspace, &target_dir);
    let built = target_dir.join(TARGET).join("release/agent");
    let agent = out_dir.join("agent");
    fs::copy(&built, &agent)
        .unwrap_or_else(|e| panic!("failed to copy {} to {}: {e}", built.display(), agent.display()));
}

fn build(workspace: &Path, target_dir: &Path) {
    let cargo_home =
        env::var("CARGO_HOME").unwrap_or_else(|_| format!("{}/.cargo", env::var("HOME").unwrap_or_default()));
    // The paths would otherwise stand in the binary, and make it differ from one checkout to the next.
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        format!("--remap-path-prefix={}=/vmm", workspace.display()),
        format!("--remap-path-prefix={cargo_home}=/cargo"),
    ];
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(workspace)
        .args(["build", "--locked", "--release", "--package", "agent", "--target", TARGET, "--target-dir"])
        .arg(target_dir)
        .args(["--config", "profile.release.strip='symbols'", "--config", "profile.release.debug=false"])
        .args(["--config", "profile.release.opt-level=2", "--config", "profile.release.codegen-units=1"]);
    // What cargo set for this script describes this crate, this target and its wrapper (clippy), not the agent.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let ours = (name.starts_with("CARGO") && name != "CARGO_HOME" && name != "CARGO_NET_OFFLINE")
            || name.starts_with("DEP_")
            || name == "RUSTFLAGS"
            || name == "RUSTC_WORKSPACE_WRAPPER"
            || name == "CLIPPY_ARGS"
            || name == "TARGET"
            || name == "OUT_DIR";
        if ours {
            cargo.env_remove(&*name);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let status = cargo.status().unwrap_or_else(|e| panic!("failed to start cargo for the agent: {e}"));
    assert!(status.success(), "the agent does not build: {status}");
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo did not set {name}"))
}
