use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use agent::serve::{ServeEnd, ServeError, Server};
use crossbeam_channel::{Sender, bounded};

use std::time::Instant;

use super::*;

/// The agent's real engine, in a thread of this process.
struct Engine {
    link: AgentLink,
    thread: JoinHandle<ServeEnd>,
}

impl Engine {
    fn start() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || Server::new(theirs, &[]).unwrap().run());
        Self { link: AgentLink::over(ours).unwrap(), thread }
    }

    fn finish(self) {
        drop(self.link);
        let end = self.thread.join().unwrap();
        // With output still under way it is the writing that finds the stream closed, or, as a socket that is closed with bytes
        // unread tells its peer's next read too, the reading.
        let expected = match &end {
            ServeEnd::HostClosed | ServeEnd::Broken(ServeError::Write(_)) => true,
            ServeEnd::Broken(ServeError::Frame(FrameError::Io(error))) => {
                error.kind() == io::ErrorKind::ConnectionReset
            }
            _ => false,
        };
        assert!(expected, "{end:?}");
    }
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Our side of the standard streams.
struct Io {
    stdout: Sink,
    stderr: Sink,
    signal: Sender<i32>,
    resize: Sender<WindowSize>,
}

fn streams(stdin: Option<OwnedFd>) -> (Io, ExecStreams) {
    let (stdout, stderr) = (Sink::default(), Sink::default());
    let (signal, signals) = bounded(10);
    let (resize, window_sizes) = bounded(10);
    let streams = ExecStreams {
        stdin,
        stdout: Box::new(stdout.clone()),
        stderr: Box::new(stderr.clone()),
        signals,
        window_sizes,
    };
    (Io { stdout, stderr, signal, resize }, streams)
}

fn request(script: &str, terminal: Option<WindowSize>) -> ExecRequest {
    let env = vec![("PATH".into(), "/usr/bin:/bin".into())];
    let command = Command { argv: vec!["sh".into(), "-c".into(), script.into()], env, cwd: "/".into() };
    ExecRequest { command, terminal }
}

/// Closed on exec: the commands of other tests must not hold it open.
fn pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
}

fn running() -> (Sender<String>, Receiver<String>) {
    bounded(1)
}

fn wait_for(sink: &Sink, text: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !sink.text().contains(text) {
        assert!(Instant::now() < deadline, "{:?}", sink.text());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn bytes_and_the_exit_code_pass_through() {
    let engine = Engine::start();
    let (_keep, stopped) = running();
    let (read, write) = pipe().unwrap();
    let (io, streams) = streams(Some(read));
    let writer = thread::spawn(move || {
        let mut input = File::from(write);
        for _ in 0..1000 {
            input.write_all(&[0xff; 5000]).unwrap();
        }
    });
    let end = run(&engine.link, &stopped, &request("cat; echo err >&2; exit 5", None), streams, None).unwrap();
    writer.join().unwrap();
    assert_eq!((end.exit_code(), io.stderr.text().as_str()), (5, "err\n"));
    let out = io.stdout.0.lock().unwrap();
    assert_eq!(out.len(), 5_000_000);
    assert!(out.iter().all(|&b| b == 0xff));
    drop(out);
    engine.finish();
}

#[test]
fn exit_codes_are_those_of_a_shell() {
    let engine = Engine::start();
    let (_keep, stopped) = running();
    for (script, code) in [("exit 0", 0), ("exit 255", 255), ("kill -TERM $$", 143)] {
        let end = run(&engine.link, &stopped, &request(script, None), streams(None).1, None).unwrap();
        assert_eq!(end.exit_code(), code, "{script}");
    }
    for (program, code) in [("/no/such/program", 127), ("/etc/passwd", 126)] {
        let mut request = request("", None);
        request.command.argv = vec![program.into()];
        let end = run(&engine.link, &stopped, &request, streams(None).1, None).unwrap();
        assert!(matches!(&end, ExecEnd::NotStarted { error, .. } if error.contains(program)));
        assert_eq!(end.exit_code(), code, "{program}");
    }
    engine.finish();
}

#[test]
fn a_signal_goes_to_the_command() {
    let engine = Engine::start();
    let (_keep, stopped) = running();
    let (io, streams) = streams(None);
    let out = io.stdout.clone();
    let client = thread::spawn(move || {
        let script = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done";
        let end = run(&engine.link, &stopped, &request(script, None), streams, None);
        engine.finish();
        end
    });
    wait_for(&out, "ready");
    io.signal.send(libc::SIGTERM).unwrap();
    assert_eq!(client.join().unwrap().unwrap().exit_code(), 9);
}

#[test]
fn a_command_that_ignores_signals_is_left_after_the_third() {
    let engine = Engine::start();
    let (_keep, stopped) = running();
    let (io, streams) = streams(None);
    let out = io.stdout.clone();
    let client = thread::spawn(move || {
        let script = "trap '' INT; echo ready; while :; do sleep 0.05; done";
        let end = run(&engine.link, &stopped, &request(script, None), streams, None);
        engine.finish();
        end
    });
    wait_for(&out, "ready");
    for _ in 0..3 {
        io.signal.send(libc::SIGINT).unwrap();
    }
    assert!(matches!(client.join().unwrap(), Err(ExecError::Interrupted)));
}

#[test]
fn a_reader_that_goes_away_ends_the_command_as_a_pipe_would() {
    let engine = Engine::start();
    let (_keep, stopped) = running();
    let (read, write) = pipe().unwrap();
    let (_io, mut streams) = streams(None);
    streams.stdout = Box::new(File::from(write));
    let reader = thread::spawn(move || {
        let mut first = [0; 10];
        File::from(read).read_exact(&mut first).unwrap();
    });
    let end = run(&engine.link, &stopped, &request("exec yes", None), streams, None).unwrap();
    reader.join().unwrap();
    assert_eq!(end.exit_code(), 128 + 13);
    engine.finish();
}

#[test]
fn output_that_nobody_takes_blocks_neither_signals_nor_memory() {
    let engine = Engine::start();
    let (_keep, stopped) = running();
    let (_read, write) = pipe().unwrap();
    let (io, mut streams) = streams(None);
    streams.stdout = Box::new(File::from(write));
    let client = thread::spawn(move || {
        let end = run(&engine.link, &stopped, &request("exec yes", None), streams, None);
        engine.finish();
        end
    });
    thread::sleep(Duration::from_millis(300));
    for _ in 0..3 {
        io.signal.send(libc::SIGINT).unwrap();
    }
    assert!(matches!(client.join().unwrap(), Err(ExecError::Interrupted)));
}

#[test]
fn a_terminal_echoes_resizes_and_takes_control_c_as_a_key() {
    let engine = Engine::start();
    let (_keep, stopped) = running();
    let (read, write) = pipe().unwrap();
    let (io, streams) = streams(Some(read));
    let out = io.stdout.clone();
    let client = thread::spawn(move || {
        let script = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done";
        let size = WindowSize { rows: 24, columns: 80 };
        let end = run(&engine.link, &stopped, &request(script, Some(size)), streams, None);
        engine.finish();
        end
    });
    wait_for(&out, "ready");
    io.resize.send(WindowSize { rows: 7, columns: 9 }).unwrap();
    wait_for(&out, "7 9");
    File::from(write).write_all(&[3]).unwrap();
    assert_eq!(client.join().unwrap().unwrap().exit_code(), 128 + 2);
}

#[test]
fn the_escape_key_thrice_leaves_a_terminal_whatever_runs_on_it() {
    let engine = Engine::start();
    let (_keep, stopped) = running();
    let (read, write) = pipe().unwrap();
    let (_io, streams) = streams(Some(read));
    File::from(write).write_all(b"\x1d\x1dx\x1d\x1d\x1d").unwrap();
    let size = WindowSize { rows: 24, columns: 80 };
    let end = run(&engine.link, &stopped, &request("stty raw; sleep 60", Some(size)), streams, None);
    assert!(matches!(end, Err(ExecError::Interrupted)));
    engine.finish();
}

#[test]
fn a_machine_that_stops_is_the_error_and_what_was_printed_before_is_there() {
    let engine = Engine::start();
    let (stop, stopped) = running();
    let (io, streams) = streams(None);
    let out = io.stdout.clone();
    let client = thread::spawn(move || {
        let end = run(&engine.link, &stopped, &request("echo last; sleep 60", None), streams, None);
        engine.finish();
        end
    });
    wait_for(&out, "last");
    stop.send("guest reset the machine".into()).unwrap();
    assert!(
        matches!(client.join().unwrap(), Err(ExecError::Stopped { reason, .. }) if reason == "guest reset the machine")
    );
}

#[test]
fn an_agent_that_goes_away_is_an_error() {
    for garbage in [&b""[..], b"\x05\x00\x00\x00x", b"\xff\xff\xff\xff"] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let link = AgentLink::over(ours).unwrap();
        let (keep, stopped) = running();
        theirs.write_all(garbage).unwrap();
        drop(theirs);
        let end = run(&link, &stopped, &request("true", None), streams(None).1, None);
        assert!(matches!(end, Err(ExecError::Closed(_))), "{end:?}");
        drop(keep);
    }
}

#[test]
fn a_command_that_no_frame_takes_is_refused_and_a_link_that_cannot_send_is_closed() {
    let long = "x".repeat(wire::MAX_FRAME);
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let link = AgentLink::over(ours).unwrap();
    let (_keep, stopped) = running();
    let end = run(&link, &stopped, &request(&long, None), streams(None).1, None);
    assert!(matches!(end, Err(ExecError::TooLong(_))), "{end:?}");
    link.send(ToGuest::KillTest { reason: long });
    let patience = Duration::from_secs(20);
    assert!(matches!(link.events().recv_timeout(patience), Ok(crate::session::LinkEvent::Closed(_))));
}

#[test]
fn a_stream_that_breaks_before_its_machine_stops_is_told_with_the_stop() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let link = AgentLink::over(ours).unwrap();
    let (stop, stopped) = running();
    theirs.write_all(b"\x05\x00\x00\x00x").unwrap();
    drop(theirs);
    stop.send("guest powered off".into()).unwrap();
    // Whichever of the two is seen first.
    let error = run(&link, &stopped, &request("true", None), streams(None).1, None).unwrap_err().to_string();
    assert!(error.contains("guest powered off"), "{error}");
    let error = ExecError::Stopped { reason: "guest powered off", stream: Some(FrameError::Truncated) }.to_string();
    assert!(
        error.ends_with("guest powered off (its agent's stream had broken: stream closed in the middle of a frame)"),
        "{error}"
    );
}

#[test]
fn a_deadline_holds_while_a_command_is_silent() {
    let engine = Engine::start();
    let (_keep, stopped) = running();
    let limit = TimeLimit::start(Duration::from_millis(100));
    let end = run(&engine.link, &stopped, &request("sleep 60", None), streams(None).1, limit);
    assert!(matches!(end, Err(ExecError::TimedOut(length)) if length == Duration::from_millis(100)));
    engine.finish();
}

#[test]
fn channels_that_nobody_holds_any_more_cost_no_time() {
    let engine = Engine::start();
    let (keep, stopped) = running();
    drop(keep);
    let (io, streams) = streams(None);
    let Io { stdout, signal, resize, .. } = io;
    drop((signal, resize));
    let spent = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
    };
    let before = spent();
    let end = run(&engine.link, &stopped, &request("sleep 0.5; echo done", None), streams, None).unwrap();
    assert!(spent() - before < Duration::from_millis(200), "it spins");
    assert_eq!((end.exit_code(), stdout.text().as_str()), (0, "done\n"));
    engine.finish();
}
