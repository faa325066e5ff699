use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;

use agent::serve::{ServeEnd, Server};
use crossbeam_channel::bounded;

use super::*;
use crate::session::test_hello as hello;

fn deadlines() -> Deadlines {
    let long = Duration::from_secs(20);
    Deadlines { boot: long, test: None, total: None, agent: long, listing: long, shutdown: long }
}

/// Nobody listens.
fn streams(signals: &Receiver<i32>) -> ExecStreams {
    ExecStreams {
        stdin: None,
        stdout: Box::new(std::io::sink()),
        stderr: Box::new(std::io::sink()),
        signals: signals.clone(),
        window_sizes: crossbeam_channel::never(),
    }
}

/// Runs `script` in the agent's real engine, behind a machine that is none.
fn exec(script: &str, deadlines: Deadlines, timeout: Option<Duration>) -> (Result<u8, Failure>, bool) {
    let (agent_sender, agent) = mpsc::channel();
    let (_keep, stopped) = bounded(1);
    let engine = thread::spawn(move || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        agent_sender.send(ours).unwrap();
        let mut server = Server::new(theirs, &[hello()]).unwrap();
        let end = server.run();
        if matches!(end, ServeEnd::ShutdownAsked) {
            server.say_goodbye(Duration::from_secs(5)).unwrap();
        }
    });
    let mut stopped_by_us = false;
    let mut options = ExecOptions::new(vec!["sh".into(), "-c".into(), script.into()]);
    options.cwd = "/".into();
    options.env = vec![("GIVEN".into(), "value".into())];
    let guest = GuestHandle {
        autopsy: Box::new(String::new),
        last_requests: Box::new(Vec::new),
        agent,
        stopped,
        console_log: None,
        stop: Box::new(|| {
            stopped_by_us = true;
            StopReason::Requested
        }),
    };
    let (_signal, signals) = bounded(1);
    let limit = timeout.and_then(TimeLimit::start);
    let result = run_with(&options.request(None), guest, streams(&signals), &signals, &deadlines, limit);
    engine.join().unwrap();
    (result, stopped_by_us)
}

#[test]
fn a_command_ends_with_its_code_and_the_machine_with_it() {
    assert_eq!(exec("exit 42", deadlines(), None), (Ok(42), true));
}

#[test]
fn a_command_has_a_path_a_home_and_what_was_given() {
    assert_eq!(
        exec("test $HOME = /root && test $GIVEN = value && test -n \"$PATH\" && test -z \"$TERM\"", deadlines(), None)
            .0,
        Ok(0)
    );
}

#[test]
fn a_command_over_its_time_is_a_timeout_and_the_guest_is_shut_down() {
    let (result, stopped) = exec("sleep 60", deadlines(), Some(Duration::from_millis(100)));
    let failure = result.unwrap_err();
    assert_eq!(failure.code, ExitCode::Timeout);
    assert_eq!(failure.message, "the command took longer than 100ms (--timeout)");
    assert!(stopped);
}

#[test]
fn a_guest_that_hangs_is_not_waited_for_long() {
    let (agent_sender, agent) = mpsc::channel();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    agent_sender.send(ours).unwrap();
    // It takes the command, and nothing more.
    wire::write_frame(&mut theirs, &hello()).unwrap();
    let (_keep, stopped) = bounded(1);
    let guest = GuestHandle {
        agent,
        stopped,
        console_log: None,
        autopsy: Box::new(String::new),
        last_requests: Box::new(Vec::new),
        stop: Box::new(|| StopReason::Requested),
    };
    let (_signal, signals) = bounded(1);
    let deadlines = Deadlines { shutdown: Duration::from_secs(2), ..deadlines() };
    let began = std::time::Instant::now();
    let limit = TimeLimit::start(Duration::from_millis(100));
    let request = ExecOptions::new(vec!["true".into()]).request(None);
    let failure = run_with(&request, guest, streams(&signals), &signals, &deadlines, limit).unwrap_err();
    assert_eq!(failure.code, ExitCode::Timeout);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

fn failing(stop: Option<StopReason>, console: &str, deadlines: Deadlines) -> Failure {
    let (_agent, agent) = mpsc::channel();
    let (sender, stopped) = bounded(1);
    if let Some(reason) = stop {
        sender.send(reason).unwrap();
    }
    let log = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(log.path(), console).unwrap();
    let guest = GuestHandle {
        agent,
        stopped,
        console_log: Some(log.path().into()),
        autopsy: Box::new(String::new),
        last_requests: Box::new(Vec::new),
        stop: Box::new(|| StopReason::Requested),
    };
    let (_signal, signals) = bounded(1);
    run_with(&ExecOptions::new(vec!["true".into()]).request(None), guest, streams(&signals), &signals, &deadlines, None)
        .unwrap_err()
}

#[test]
fn a_guest_that_panics_at_boot_is_quoted() {
    let failure = failing(Some(StopReason::Reset), "[ 1.0] Kernel panic - not syncing: no init\n", deadlines());
    assert_eq!(failure.code, ExitCode::GuestDied);
    assert!(failure.message.contains("no init"), "{}", failure.message);
}

#[test]
fn an_agent_that_gives_up_is_quoted() {
    let failure = failing(Some(StopReason::PowerOff), "[ 1.0] vmm-agent: fatal: no root\n", deadlines());
    assert_eq!(failure.code, ExitCode::CannotTest);
    assert!(failure.message.contains("no root"), "{}", failure.message);
}

#[test]
fn a_guest_that_never_speaks_is_a_timeout() {
    let failure = failing(None, "", Deadlines { boot: Duration::from_millis(50), ..deadlines() });
    assert_eq!(failure.code, ExitCode::Timeout);
}
