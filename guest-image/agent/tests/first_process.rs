//! The engine as PID 1 of a PID namespace of its own: there nothing that a command starts can hide from it.
//!
//! The test starts this very program again inside `unshare`; the part that runs there is told by an environment variable
//! where to connect to.

mod support;

use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use agent::serve::{ServeEnd, Server};
use support::{Engine, wait_until};
use wire::{ProcessEnd, ResultFormat, SuitePlan, TestStatus, ToGuest, ToHost};

const SOCKET: &str = "AGENT_TEST_SOCKET";
const INSIDE: &str = "the_engine_inside";

struct FirstProcess {
    pub(crate) engine: Engine,
    unshare: Child,
    _directory: tempfile::TempDir,
}

impl FirstProcess {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        // In a user namespace as well, so that an ordinary user can run the test.
        let unshare = Command::new("unshare")
            .args(["--user", "--map-root-user", "--pid", "--mount-proc", "--fork", "--kill-child"])
            .arg(std::env::current_exe().unwrap())
            .args([INSIDE, "--exact", "--nocapture", "--test-threads=1"])
            .env(SOCKET, &path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare(1) of util-linux");
        listener.set_nonblocking(true).unwrap();
        let mut stream = None;
        wait_until("the engine connects", || {
            stream = listener.accept().ok().map(|(stream, _)| stream);
            stream.is_some()
        });
        let stream = stream.unwrap();
        stream.set_nonblocking(false).unwrap();
        Self { engine: Engine::over(stream), unshare, _directory: directory }
    }

    /// The processes of the namespace, as a command in it sees them, without itself.
    fn processes(&mut self) -> Vec<String> {
        let list = "for p in /proc/[0-9]*; do case $p in /proc/1 | /proc/$$) ;; *) read -r stat < $p/stat && echo $stat;; \
                    esac; done; exit 0";
        self.engine.exec(&["sh", "-c", list], false);
        let (out, _, end) = self.engine.finish();
        assert_eq!(end, ProcessEnd::Exited(0));
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    fn finish(mut self) {
        self.engine.send(&ToGuest::Shutdown);
        assert!(self.unshare.wait().unwrap().success());
    }
}

/// Does nothing unless it was started by [`FirstProcess`].
#[test]
fn the_engine_inside() {
    let Ok(path) = std::env::var(SOCKET) else { return };
    assert_eq!(std::process::id(), 1);
    let stream = UnixStream::connect(path).unwrap();
    // The kernel takes no signal without a handler from PID 1's own namespace, so a write to a closed pipe must be an error.
    let end = Server::new(stream, &[]).unwrap().run();
    assert!(matches!(end, ServeEnd::ShutdownAsked), "{end:?}");
}

#[test]
fn a_process_in_a_session_of_its_own_dies_with_the_command_that_started_it() {
    let mut first = FirstProcess::start();
    first
        .engine
        .exec(&["sh", "-c", "setsid sh -c 'sleep 71 & sleep 72' & setsid setsid sleep 73 & sleep 0.2; exit 6"], false);
    assert_eq!(first.engine.finish().2, ProcessEnd::Exited(6));
    assert_eq!(first.processes(), Vec::<String>::new());
    first.finish();
}

#[test]
fn orphans_are_reaped_and_never_taken_for_the_command() {
    let mut first = FirstProcess::start();
    // A thousand orphans end while the command runs, and as it ends.
    let script = "i=0; while [ $i -lt 1000 ]; do (true & ) ; i=$((i+1)); done; grep -ls '^State:.*Z' /proc/[0-9]*/status | wc -l; \
         exit 5";
    first.engine.exec(&["sh", "-c", script], false);
    let (out, _, end) = first.engine.finish();
    assert_eq!(end, ProcessEnd::Exited(5));
    let zombies: u32 = String::from_utf8(out).unwrap().trim().parse().unwrap();
    assert!(zombies < 20, "{zombies} zombies of a thousand");
    assert_eq!(first.processes(), Vec::<String>::new());
    first.finish();
}

#[test]
fn five_hundred_short_commands_each_have_their_own_end() {
    let mut first = FirstProcess::start();
    for code in 0..500 {
        let code = code % 256;
        first.engine.exec(&["sh", "-c", &format!("(sleep 0.001 &); exit {code}")], false);
        assert_eq!(first.engine.finish().2, ProcessEnd::Exited(code));
    }
    first.finish();
}

#[test]
fn a_test_over_its_time_is_killed_though_it_became_a_daemon_and_prove_goes_on() {
    let mut first = FirstProcess::start();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
    };
    file("0.t", "echo 1..2; echo ok 1; (setsid sh -c 'setsid sleep 74 & sleep 75' &); sleep 76");
    file("1.t", "echo 1..1; grep -qxs sleep /proc/[0-9]*/comm || echo ok 1");
    let directory = directory.path().to_str().unwrap();
    let argv = ["prove", "--formatter", "TAP::Formatter::Console", "-v", directory];
    let command = support::command(&argv);
    let plan =
        SuitePlan { name: "s".into(), command, format: ResultFormat::ProveTap, test_timeout_ms: 700, artefacts: None };
    first.engine.send(&ToGuest::RunSuite(plan));
    let mut results = Vec::new();
    loop {
        match first.engine.next() {
            ToHost::TestFinished { status, .. } => results.push(status),
            ToHost::SuiteFinished { .. } => break,
            _ => {}
        }
    }
    assert_eq!(results, [TestStatus::Pass, TestStatus::Error, TestStatus::Pass]);
    assert_eq!(first.processes(), Vec::<String>::new());
    first.finish();
}

#[test]
fn a_fork_bomb_is_over_when_its_command_is_killed() {
    let mut first = FirstProcess::start();
    // A tame one: each process has two children, until there are some hundred.
    let bomb = "f() { [ $1 -gt 6 ] && exec setsid sleep 77; f $(($1+1)) & f $(($1+1)) & wait; }; f 0";
    first.engine.exec(&["sh", "-c", bomb], false);
    std::thread::sleep(Duration::from_millis(700));
    first.engine.send(&ToGuest::Signal(libc::SIGKILL));
    assert_eq!(first.engine.finish().2, ProcessEnd::Signaled(9));
    assert_eq!(first.processes(), Vec::<String>::new());
    first.finish();
}
