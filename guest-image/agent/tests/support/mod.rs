#![expect(dead_code, reason = "each test program is compiled with this and uses a part of it")]
//! A host's side of the real engine, which runs in a thread of the test over a socket pair.

use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use agent::serve::{ServeEnd, Server};
use wire::{Command, ProcessEnd, Stream, ToGuest, ToHost, read_frame, write_frame};

pub(crate) struct Engine {
    pub(crate) stream: UnixStream,
    thread: Option<JoinHandle<ServeEnd>>,
}

impl Engine {
    pub(crate) fn start() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        // No frame for this long means that the engine hangs: fail, do not wait for ever.
        ours.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let thread = std::thread::spawn(move || Server::new(theirs, &[]).unwrap().run());
        Self { stream: ours, thread: Some(thread) }
    }

    /// The host's side of an engine that runs elsewhere.
    pub(crate) fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { stream, thread: None }
    }

    pub(crate) fn send(&mut self, frame: &ToGuest) {
        write_frame(&mut self.stream, frame).unwrap();
    }

    pub(crate) fn next(&mut self) -> ToHost {
        read_frame(&mut self.stream).unwrap().expect("the engine closed the stream")
    }

    pub(crate) fn exec(&mut self, argv: &[&str], stdin: bool) {
        self.send(&ToGuest::Exec { command: command(argv), pty: None, stdin });
    }

    /// Everything until the command's end: standard output, standard error, the end.
    pub(crate) fn finish(&mut self) -> (Vec<u8>, Vec<u8>, ProcessEnd) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            match self.next() {
                ToHost::Output { stream: Stream::Stdout, data } => out.extend(data),
                ToHost::Output { stream: Stream::Stderr, data } => err.extend(data),
                ToHost::ExecFinished { end } => return (out, err, end),
                ToHost::StdinConsumed { .. } | ToHost::StdinClosed => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Closes the host's side and waits for the engine's end.
    pub(crate) fn close(mut self) -> ServeEnd {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.thread.take().unwrap().join().expect("the engine panicked")
    }
}

pub(crate) fn command(argv: &[&str]) -> Command {
    Command {
        argv: argv.iter().map(ToString::to_string).collect(),
        env: vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into()), ("MARK".into(), "here".into())],
        cwd: "/".into(),
    }
}

pub(crate) fn is_alive(pid: &str) -> bool {
    // A zombie whose parent has not reaped it yet does not run any more.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
