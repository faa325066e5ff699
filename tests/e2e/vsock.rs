//! virtio-vsock: much data, many connections, through `--vsock-socket`.

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tests::stream::{Pattern, first_difference, send_pattern};
use tests::{Running, Sandbox, Vmm, guest_probe, patience};

const PORT: u32 = 5000;

/// Bytes to move each way: 1 GiB, or as many MiB as `VMM_TEST_VSOCK_MIB` says where that takes too long.
fn volume() -> u64 {
    std::env::var("VMM_TEST_VSOCK_MIB").map_or(1024, |text| text.parse::<u64>().expect("a number of MiB")) << 20
}

/// A guest that serves [`PORT`], and how to reach it.
struct Guest {
    running: Running,
    socket: PathBuf,
}

impl Guest {
    /// `script` runs in the guest; `PROBE` in it starts the probe.
    fn start(sandbox: &Sandbox, script: &str) -> Self {
        let share = sandbox.dir("share");
        let probe = Path::new(env!("CARGO_BIN_EXE_guest-probe"));
        let script = script.replace("PROBE", &guest_probe::install(probe, &share, "/mnt/virtiofs1"));
        let socket = sandbox.other().join("vsock");
        let share = format!("{}:myfs1", share.display());
        let flags = ["--vsock-socket", socket.to_str().unwrap(), "--shared-dir", &share, "--memory", "512M"];
        // Told only when a test fails.
        let running =
            Vmm::sh(sandbox, &flags, &script).env("RUST_LOG", "devices=debug").deadline(patience(150)).spawn();
        Self { running, socket }
    }

    fn connect(&self) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).expect("the vsock socket can be reached");
        stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            assert_eq!(stream.read(&mut byte).unwrap(), 1, "closed after {:?}", String::from_utf8_lossy(&answer));
            answer.push(byte[0]);
        }
        assert!(answer.starts_with(b"OK "), "{:?}", String::from_utf8_lossy(&answer));
        stream
    }

    fn ask(&self, request: &str) -> UnixStream {
        let mut stream = self.connect();
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        stream
    }

    /// Opens a connection and closes it again; returns when the guest has taken and closed it too, so that connections do
    /// not come faster than it takes them: it refuses those that its backlog has no room for.
    fn open_and_close(&self) {
        let mut stream = self.connect();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the guest sends nothing");
    }

    fn answer_to(&self, request: &str) -> String {
        let mut answer = String::new();
        self.ask(request).read_to_string(&mut answer).unwrap();
        answer
    }
}

#[test]
fn much_data_each_way_arrives_unchanged_while_results_stream() {
    let bytes = volume();
    let sandbox = Sandbox::new();
    let script =
        "PROBE serve 5000 & probe=$!; i=0; while kill -0 $probe 2>/dev/null; do i=$((i+1)); echo line $i; done";
    let mut guest = Guest::start(&sandbox, script);
    guest.running.wait_for_out("ready\n");
    guest.running.wait_for_out("line 100\n");
    let before = guest.running.out_so_far().lines().count();
    thread::scope(|scope| {
        let give = scope.spawn(|| first_difference(Pattern::new(1), bytes, guest.ask(&format!("give 1 {bytes}"))));
        let take = scope.spawn(|| {
            let mut stream = guest.ask(&format!("take 2 {bytes}"));
            // Cut off in the middle when the guest finds a difference: what the probe prints says where.
            let sent = send_pattern(Pattern::new(2), bytes, &mut stream);
            let mut verdict = String::new();
            let answered = stream.read_to_string(&mut verdict);
            sent.and(answered).map_err(|error| format!("{error}, {verdict:?}")).map(|_| verdict)
        });
        let (gave, took) = (give.join().unwrap(), take.join().unwrap());
        let out = guest.running.out_so_far();
        let complaints: Vec<&str> = out.lines().filter(|line| !line.starts_with("line ")).collect();
        let said = guest.running.err_so_far();
        assert_eq!(gave.unwrap(), None, "out of the guest: {complaints:?}\n{said}");
        assert_eq!(took, Ok("same\n".to_owned()), "into the guest: {complaints:?}\n{said}");
    });
    let during = guest.running.out_so_far().lines().count() - before;
    drop(guest.ask("bye"));
    let finished = guest.running.finish();
    finished.expect_code(0);
    assert!(during > 100, "results stood still: {during} lines while data moved");
    let out = finished.out();
    let numbers = out.lines().filter_map(|line| line.strip_prefix("line ")).map(|n| n.parse::<usize>().unwrap());
    assert!(numbers.zip(1..).all(|(got, wanted)| got == wanted), "lines were lost or out of order");
    sandbox.assert_nothing_left();
}

#[test]
fn a_thousand_connections_each_way_leave_nothing() {
    let sandbox = Sandbox::new();
    let mut guest = Guest::start(&sandbox, "PROBE serve 5000");
    guest.running.wait_for_out("ready\n");
    let listener = UnixListener::bind(sandbox.other().join("vsock_6000")).unwrap();
    let (said, heard) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut bytes = Vec::new();
            stream.unwrap().read_to_end(&mut bytes).unwrap();
            said.send(bytes).unwrap();
        }
    });
    let both_ways = |count: usize| {
        for _ in 0..count {
            guest.open_and_close();
        }
        assert_eq!(guest.answer_to(&format!("call 6000 {count}")), "called\n");
        for _ in 0..count {
            assert_eq!(heard.recv_timeout(patience(10)).unwrap(), b"x");
        }
    };
    // A few first, so that whatever is made once is there already.
    both_ways(10);
    let before = settled(guest.running.id(), None);
    both_ways(1000);
    let after = settled(guest.running.id(), Some(before));
    assert_eq!(after, before, "(descriptors, threads) after 1,000 connections each way and before");
    drop(guest.ask("bye"));
    guest.running.finish().expect_code(0);
    sandbox.assert_nothing_left();
}

#[test]
fn a_port_that_nobody_listens_on_is_refused_and_the_guest_lives() {
    let sandbox = Sandbox::new();
    let mut guest = Guest::start(&sandbox, "PROBE serve 5000");
    guest.running.wait_for_out("ready\n");
    let refused = guest.answer_to("call 6001 1");
    assert!(refused.starts_with("not called: "), "{refused}");
    let mut stream = UnixStream::connect(&guest.socket).unwrap();
    stream.write_all(b"CONNECT 4999\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"OK"), "{answer:?}");
    for nonsense in [&b"CONNECT \n"[..], b"HELLO\n", b"CONNECT 99999999999\n", &[b'x'; 4096]] {
        let mut stream = UnixStream::connect(&guest.socket).unwrap();
        let _ = stream.write_all(nonsense);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"OK"), "{answer:?}");
    }
    drop(guest.ask("bye"));
    guest.running.finish().expect_code(0);
    sandbox.assert_nothing_left();
}

/// Open descriptors and threads of a process, once they do not change any more or are as `wanted`.
fn settled(pid: u32, wanted: Option<(usize, usize)>) -> (usize, usize) {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count);
    let held = || (count("fd"), count("task"));
    let give_up = Instant::now() + Duration::from_secs(10);
    let mut last = held();
    loop {
        thread::sleep(Duration::from_millis(500));
        let now = held();
        let done = wanted.map_or(now == last, |wanted| now == wanted);
        if done || Instant::now() > give_up {
            return now;
        }
        last = now;
    }
}
