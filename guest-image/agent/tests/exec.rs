//! Commands through the real engine, run by this ordinary process.

mod support;

use std::time::{Duration, Instant};

use agent::serve::{ServeEnd, ServeError};
use support::{Engine, command, is_alive, wait_until};
use wire::{MAX_CHUNK, ProcessEnd, STDIN_WINDOW, Stream, ToGuest, ToHost, WindowSize};

#[test]
fn a_command_gives_its_output_by_stream_and_its_exit_code() {
    let mut engine = Engine::start();
    engine.exec(&["sh", "-c", "echo out; echo err >&2; exit 7"], false);
    assert_eq!(engine.finish(), (b"out\n".to_vec(), b"err\n".to_vec(), ProcessEnd::Exited(7)));
    assert!(matches!(engine.close(), ServeEnd::HostClosed));
}

#[test]
fn the_environment_is_what_was_given_and_nothing_else() {
    let mut engine = Engine::start();
    engine.exec(&["env"], false);
    let (out, ..) = engine.finish();
    let mut lines: Vec<_> = std::str::from_utf8(&out).unwrap().lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["MARK=here", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]);
}

#[test]
fn the_working_directory_is_made_when_it_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("a/b");
    let mut engine = Engine::start();
    let mut pwd = command(&["pwd"]);
    pwd.cwd = inner.to_str().unwrap().into();
    engine.send(&ToGuest::Exec { command: pwd, pty: None, stdin: false });
    assert_eq!(engine.finish().0, format!("{}\n", inner.display()).into_bytes());
}

#[test]
fn a_command_that_is_not_there_or_not_executable_says_so_with_its_errno() {
    let mut engine = Engine::start();
    for (program, expected) in
        [("no-such-program", libc::ENOENT), ("/no/such", libc::ENOENT), ("/etc/passwd", libc::EACCES)]
    {
        engine.exec(&[program], true);
        let ToHost::ExecNotStarted { errno, error } = engine.next() else { panic!("{program} started") };
        assert_eq!(errno, expected);
        assert!(error.contains(program), "{error}");
    }
    engine.send(&ToGuest::Exec { command: command(&[]), pty: None, stdin: false });
    assert!(matches!(engine.next(), ToHost::ExecNotStarted { errno: libc::EINVAL, .. }));
    // The engine is as good as before.
    engine.exec(&["true"], false);
    assert_eq!(engine.finish().2, ProcessEnd::Exited(0));
}

#[test]
fn death_by_a_signal_is_told_apart_from_an_exit_code() {
    let mut engine = Engine::start();
    engine.exec(&["sh", "-c", "kill -SEGV $$"], false);
    assert_eq!(engine.finish().2, ProcessEnd::Signaled(libc::SIGSEGV));
}

#[test]
fn fifteen_megabytes_of_output_arrive_whole_and_in_order_though_the_host_is_slow() {
    let mut engine = Engine::start();
    engine.exec(&["sh", "-c", "seq 1 2000000"], false);
    // The command fills every buffer on the way before the first byte is taken.
    std::thread::sleep(Duration::from_millis(300));
    let (out, _, end) = engine.finish();
    assert_eq!(end, ProcessEnd::Exited(0));
    let mut expected = 1u64;
    for line in out.split(|&b| b == b'\n').filter(|line| !line.is_empty()) {
        assert_eq!(std::str::from_utf8(line).unwrap().parse(), Ok(expected));
        expected += 1;
    }
    assert_eq!(expected, 2_000_001);
}

#[test]
fn output_written_just_before_a_command_dies_is_not_lost() {
    let mut engine = Engine::start();
    for _ in 0..20 {
        engine.exec(&["sh", "-c", "head -c 60000 /dev/zero; kill -9 $$"], false);
        let (out, _, end) = engine.finish();
        assert_eq!((out.len(), end), (60_000, ProcessEnd::Signaled(9)));
    }
}

/// Sends `total` bytes as the window allows, and takes what comes back.
fn feed_all(engine: &mut Engine, total: usize) -> (usize, usize) {
    let (mut sent, mut unacknowledged, mut received) = (0, 0usize, 0);
    let chunk = vec![b'z'; MAX_CHUNK];
    loop {
        while sent < total && unacknowledged + MAX_CHUNK <= STDIN_WINDOW {
            let n = (total - sent).min(MAX_CHUNK);
            engine.send(&ToGuest::Stdin { data: chunk[..n].to_vec() });
            sent += n;
            unacknowledged += n;
            if sent == total {
                engine.send(&ToGuest::StdinEof);
            }
        }
        match engine.next() {
            ToHost::StdinConsumed { bytes } => unacknowledged -= bytes as usize,
            ToHost::Output { data, .. } => received += data.len(),
            ToHost::StdinClosed => return (sent, received),
            ToHost::ExecFinished { end } => {
                assert_eq!(end, ProcessEnd::Exited(0));
                return (sent, received);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn ten_megabytes_go_through_a_command_and_back() {
    let mut engine = Engine::start();
    engine.exec(&["cat"], true);
    assert_eq!(feed_all(&mut engine, 10 << 20), (10 << 20, 10 << 20));
}

#[test]
fn a_command_that_closes_its_standard_input_stops_the_flow_and_goes_on() {
    let mut engine = Engine::start();
    engine.exec(&["sh", "-c", "head -c 1 >/dev/null; exec 0<&-; sleep 0.2; echo alive"], true);
    let (sent, _) = feed_all(&mut engine, 10 << 20);
    assert!(sent < 10 << 20);
    // What crossed the message on the way does no harm.
    engine.send(&ToGuest::Stdin { data: vec![0; 100] });
    engine.send(&ToGuest::StdinEof);
    assert_eq!(engine.finish().0, b"alive\n");
}

#[test]
fn a_signal_overtakes_standard_input_that_is_stuck() {
    let mut engine = Engine::start();
    engine.exec(&["sh", "-c", "trap 'echo caught; exit 3' TERM; echo ready; while :; do sleep 0.05; done"], true);
    assert!(matches!(engine.next(), ToHost::Output { .. }));
    for _ in 0..STDIN_WINDOW / MAX_CHUNK {
        engine.send(&ToGuest::Stdin { data: vec![0; MAX_CHUNK] });
    }
    engine.send(&ToGuest::Signal(libc::SIGTERM));
    let (out, _, end) = engine.finish();
    assert_eq!((out.as_slice(), end), (&b"caught\n"[..], ProcessEnd::Exited(3)));
}

#[test]
fn more_standard_input_than_the_window_ends_the_stream() {
    let mut engine = Engine::start();
    engine.exec(&["sleep", "60"], true);
    for _ in 0..STDIN_WINDOW / MAX_CHUNK + 2 {
        engine.send(&ToGuest::Stdin { data: vec![0; MAX_CHUNK] });
    }
    wait_until("the engine hangs up", || wire::read_frame::<ToHost>(&mut engine.stream).map_or(true, |f| f.is_none()));
    assert!(matches!(engine.close(), ServeEnd::Broken(ServeError::Window(_))));
}

#[test]
fn bytes_that_are_no_frame_end_the_stream_and_kill_the_command() {
    let mut engine = Engine::start();
    engine.exec(&["sh", "-c", "echo $$; exec sleep 60"], false);
    let ToHost::Output { data, .. } = engine.next() else { panic!("no output") };
    let pid = String::from_utf8(data).unwrap().trim().to_owned();
    std::io::Write::write_all(&mut engine.stream, &[0xff; 16]).unwrap();
    wait_until("the command dies", || !is_alive(&pid));
    assert!(matches!(engine.close(), ServeEnd::Broken(ServeError::Frame(_))));
}

#[test]
fn a_host_that_goes_away_leaves_no_process() {
    let mut engine = Engine::start();
    engine.exec(&["sh", "-c", "sleep 61 & echo $$ $!; wait"], false);
    let ToHost::Output { data, .. } = engine.next() else { panic!("no output") };
    let pids = String::from_utf8(data).unwrap();
    assert!(matches!(engine.close(), ServeEnd::HostClosed));
    wait_until("both die", || !pids.split_whitespace().any(is_alive));
}

#[test]
fn what_a_command_leaves_in_the_background_dies_with_it_and_holds_nothing_up() {
    let mut engine = Engine::start();
    let start = Instant::now();
    engine.exec(&["sh", "-c", "sleep 62 & echo $!"], false);
    let (out, _, end) = engine.finish();
    assert_eq!(end, ProcessEnd::Exited(0));
    assert!(start.elapsed() < Duration::from_secs(10));
    wait_until("it dies", || !is_alive(String::from_utf8_lossy(&out).trim()));
}

#[test]
fn a_second_command_is_refused_while_one_runs() {
    let mut engine = Engine::start();
    engine.exec(&["cat"], true);
    engine.exec(&["true"], false);
    assert!(matches!(engine.next(), ToHost::ExecNotStarted { errno: libc::EBUSY, .. }));
    engine.send(&ToGuest::StdinEof);
    assert_eq!(engine.finish().2, ProcessEnd::Exited(0));
}

#[test]
fn frames_that_concern_no_command_are_harmless() {
    let mut engine = Engine::start();
    for frame in [
        ToGuest::Stdin { data: vec![1] },
        ToGuest::StdinEof,
        ToGuest::Signal(15),
        ToGuest::Resize(WindowSize { rows: 1, columns: 1 }),
        ToGuest::KillTest { reason: "none".into() },
    ] {
        engine.send(&frame);
    }
    engine.exec(&["sleep", "0.1"], false);
    for number in [0, -1, 65, i32::MIN, i32::MAX] {
        engine.send(&ToGuest::Signal(number));
    }
    assert_eq!(engine.finish().2, ProcessEnd::Exited(0));
    engine.send(&ToGuest::Shutdown);
    wait_until("it ends", || wire::read_frame::<ToHost>(&mut engine.stream).unwrap().is_none());
    assert!(matches!(engine.close(), ServeEnd::ShutdownAsked));
}

fn on_terminal(engine: &mut Engine, script: &str) {
    engine.send(&ToGuest::Exec {
        command: command(&["sh", "-c", script]),
        pty: Some(WindowSize { rows: 33, columns: 101 }),
        stdin: true,
    });
}

fn read_until(engine: &mut Engine, end: &str) -> String {
    let mut text = String::new();
    while !text.contains(end) {
        match engine.next() {
            ToHost::Output { stream: Stream::Stdout, data } => text.push_str(std::str::from_utf8(&data).unwrap()),
            ToHost::StdinConsumed { .. } => {}
            other => panic!("{other:?} after {text:?}"),
        }
    }
    text
}

#[test]
fn a_terminal_has_the_size_it_was_given_and_learns_a_new_one() {
    let mut engine = Engine::start();
    on_terminal(&mut engine, "trap 'stty size; exit 4' WINCH; tty -s && stty size; while :; do sleep 0.05; done");
    read_until(&mut engine, "33 101\r\n");
    engine.send(&ToGuest::Resize(WindowSize { rows: 5, columns: 6 }));
    let (out, _, end) = engine.finish();
    assert_eq!((out.as_slice(), end), (&b"5 6\r\n"[..], ProcessEnd::Exited(4)));
}

#[test]
fn control_c_typed_on_a_terminal_interrupts_the_command_in_the_foreground() {
    let mut engine = Engine::start();
    on_terminal(&mut engine, "echo ready; exec sleep 63");
    read_until(&mut engine, "ready");
    engine.send(&ToGuest::Stdin { data: vec![3] });
    assert_eq!(engine.finish().2, ProcessEnd::Signaled(libc::SIGINT));
}

#[test]
fn the_end_of_standard_input_is_typed_on_a_terminal() {
    for input in ["", "whole line\n", "begun line"] {
        let mut engine = Engine::start();
        on_terminal(&mut engine, "stty -echo; echo ready; cat >/dev/null; echo done");
        read_until(&mut engine, "ready\r\n");
        engine.send(&ToGuest::Stdin { data: input.into() });
        engine.send(&ToGuest::StdinEof);
        let (out, _, end) = engine.finish();
        assert_eq!((String::from_utf8_lossy(&out).as_ref(), end), ("done\r\n", ProcessEnd::Exited(0)), "{input:?}");
    }
}

#[test]
fn all_output_of_a_terminal_arrives_though_the_command_is_gone() {
    let mut engine = Engine::start();
    on_terminal(&mut engine, "stty -onlcr; seq 1 20000");
    let (out, ..) = engine.finish();
    assert_eq!(out.iter().filter(|&&b| b == b'\n').count(), 20_000);
}

#[test]
fn jobs_of_a_terminal_session_die_with_its_leader() {
    let mut engine = Engine::start();
    on_terminal(&mut engine, "set -m; sleep 64 & echo pid $!; exit 0");
    let (out, ..) = engine.finish();
    let text = String::from_utf8_lossy(&out).into_owned();
    let pid = text.split_once("pid ").unwrap().1.split_whitespace().next().unwrap();
    wait_until("it dies", || !is_alive(pid));
}
