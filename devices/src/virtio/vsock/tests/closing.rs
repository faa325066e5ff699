use std::io::{ErrorKind, Write};
use std::net::Shutdown;
use std::thread;

use super::*;

/// A guest with one connection from port 5 to port 1.
fn connected() -> (Guest, Socket, UnixStream) {
    connected_with(VsockOptions::default())
}

fn connected_with(options: VsockOptions) -> (Guest, Socket, UnixStream) {
    let mut guest = Guest::with(options, EVENT_IDX, OLD_LINUX, 128);
    let listener = guest.handle.listen(1);
    let (socket, host) = guest.connect_to(&listener, 5, 1);
    (guest, socket, host)
}

fn read_to_end(host: &mut UnixStream) -> Vec<u8> {
    let mut data = Vec::new();
    host.read_to_end(&mut data).unwrap();
    data
}

/// Fills the host socket and part of the backlog; returns what was sent.
fn fill(guest: &mut Guest, socket: &mut Socket) -> Vec<u8> {
    let mut sent = Vec::new();
    loop {
        while socket.credit() > 0 {
            let payload = pattern(sent.len() as u64, socket.credit().min(32_768) as usize);
            let header = socket.data(&payload);
            guest.send(header, &payload);
            sent.extend(payload);
        }
        match guest.next_within(SILENCE) {
            Some((header, _)) => socket.take(&header),
            None => return sent,
        }
    }
}

#[test]
fn a_close_by_the_guest_is_confirmed_and_ends_the_hosts_stream() {
    let (mut guest, mut socket, mut host) = connected();
    let packet = socket.data(b"last words");
    guest.send(packet, b"last words");
    guest.send(socket.shutdown(SHUTDOWN_BOTH), &[]);
    let header = guest.expect(Op::Reset);
    assert_eq!((header.src_port, header.dst_port), (1, 5));
    assert_eq!(read_to_end(&mut host), b"last words");
    guest.wait_connections(0);
    guest.expect_silence();
}

#[test]
fn a_close_by_the_guest_loses_nothing_that_the_host_has_yet_to_read() {
    let (mut guest, mut socket, mut host) = connected();
    let sent = fill(&mut guest, &mut socket);
    guest.send(socket.shutdown(SHUTDOWN_BOTH), &[]);
    guest.expect(Op::Reset);
    assert_eq!(guest.handle.connections(), 1, "it has a backlog to deliver");
    // The guest may use the port again at once.
    let listener = guest.handle.listen(1);
    let (again, _host_again) = guest.connect_to(&listener, 5, 1);
    assert_eq!(again.credit(), 256 * 1024);
    assert!(read_to_end(&mut host) == sent);
    guest.wait_connections(1);
    // The old one's end did not take the new one's ports away.
    guest.send(again.header(Op::CreditRequest), &[]);
    guest.expect(Op::CreditUpdate);
}

#[test]
fn a_reset_by_the_guest_loses_nothing_either() {
    let (mut guest, mut socket, mut host) = connected();
    let sent = fill(&mut guest, &mut socket);
    guest.send(socket.header(Op::Reset), &[]);
    guest.expect_silence();
    assert!(read_to_end(&mut host) == sent);
    guest.wait_connections(0);
}

#[test]
fn a_backlog_whose_host_goes_away_is_dropped() {
    let (mut guest, mut socket, host) = connected();
    fill(&mut guest, &mut socket);
    guest.send(socket.shutdown(SHUTDOWN_BOTH), &[]);
    guest.expect(Op::Reset);
    drop(host);
    guest.wait_connections(0);
}

#[test]
fn a_guest_that_stops_sending_still_receives() {
    let (mut guest, mut socket, mut host) = connected();
    let packet = socket.data(b"question");
    guest.send(packet, b"question");
    guest.send(socket.shutdown(SHUTDOWN_SEND), &[]);
    assert_eq!(read_to_end(&mut host), b"question");
    host.write_all(b"answer").unwrap();
    assert_eq!(guest.next().1, b"answer");
    drop(host);
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
    guest.send(socket.header(Op::Reset), &[]);
    guest.wait_connections(0);
}

#[test]
fn the_end_of_the_guests_stream_comes_after_its_backlog() {
    let (mut guest, mut socket, mut host) = connected();
    let sent = fill(&mut guest, &mut socket);
    guest.send(socket.shutdown(SHUTDOWN_SEND), &[]);
    guest.settle_tx();
    assert!(read_to_end(&mut host) == sent);
    assert_eq!(guest.handle.connections(), 1);
}

#[test]
fn a_guest_that_stops_receiving_makes_the_hosts_writes_fail() {
    let (mut guest, mut socket, mut host) = connected();
    guest.send(socket.shutdown(SHUTDOWN_RECEIVE), &[]);
    guest.settle_tx();
    assert_eq!(host.write_all(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    let packet = socket.data(b"but sends");
    guest.send(packet, b"but sends");
    let mut received = [0; 9];
    host.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"but sends");
    guest.send(socket.shutdown(SHUTDOWN_SEND), &[]);
    guest.expect(Op::Reset);
    guest.wait_connections(0);
}

#[test]
fn a_host_that_stops_receiving_by_itself_still_sends() {
    let (mut guest, mut socket, mut host) = connected();
    host.shutdown(Shutdown::Read).unwrap();
    // Noticed when the guest sends.
    let packet = socket.data(b"unread");
    guest.send(packet, b"unread");
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_RECEIVE);
    host.write_all(b"but sends").unwrap();
    assert_eq!(guest.next().1, b"but sends");
    // What was on the way is dropped and costs no credit.
    for _ in 0..20 {
        let packet = socket.data(&[0; 60_000]);
        guest.send(packet, &[0; 60_000]);
        guest.send(socket.header(Op::CreditRequest), &[]);
        let header = guest.expect(Op::CreditUpdate);
        assert_eq!(header.fwd_cnt, socket.sent);
    }
}

#[test]
fn a_host_that_stops_sending_still_receives() {
    let (mut guest, mut socket, mut host) = connected();
    host.write_all(b"question").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.next().1, b"question");
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
    let packet = socket.data(b"answer");
    guest.send(packet, b"answer");
    guest.send(socket.shutdown(SHUTDOWN_BOTH), &[]);
    guest.expect(Op::Reset);
    assert_eq!(read_to_end(&mut host), b"answer");
    guest.wait_connections(0);
}

#[test]
fn a_close_by_the_host_comes_after_all_it_wrote() {
    let (mut guest, socket, mut host) = connected();
    let data = pattern(4, 150_000);
    host.write_all(&data).unwrap();
    drop(host);
    let mut received = Vec::new();
    let mut told = 0;
    while told != SHUTDOWN_BOTH {
        let (header, payload) = guest.next();
        match Op::from_number(header.op) {
            Some(Op::ReadWrite) => {
                assert_eq!(told & SHUTDOWN_SEND, 0, "payload after the end");
                received.extend(payload);
            }
            Some(Op::Shutdown) => told |= header.flags,
            other => panic!("{other:?}"),
        }
    }
    assert!(received == data);
    assert_eq!(guest.handle.connections(), 1, "until the guest confirms");
    guest.send(socket.header(Op::Reset), &[]);
    guest.wait_connections(0);
}

#[test]
fn what_the_host_wrote_arrives_even_if_it_closes_without_reading() {
    let (mut guest, mut socket, mut host) = connected();
    let packet = socket.data(b"never read");
    guest.send(packet, b"never read");
    guest.settle_tx();
    let data = pattern(8, 20_000);
    host.write_all(&data).unwrap();
    drop(host);
    let mut received = Vec::new();
    while received.len() < data.len() {
        received.extend(guest.next().1);
    }
    assert!(received == data);
    guest.send(socket.header(Op::Reset), &[]);
    guest.wait_connections(0);
}

#[test]
fn payload_for_a_closed_host_is_dropped_and_both_closing_at_once_ends_well() {
    let (mut guest, mut socket, host) = connected();
    drop(host);
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
    let packet = socket.data(b"too late");
    guest.send(packet, b"too late");
    guest.send(socket.shutdown(SHUTDOWN_BOTH), &[]);
    guest.expect(Op::Reset);
    guest.wait_connections(0);
}

#[test]
fn a_guest_that_does_not_confirm_a_close_is_reset_after_a_while() {
    let options = VsockOptions { close_timeout: Duration::from_millis(40), ..VsockOptions::default() };
    let (mut guest, _socket, host) = connected_with(options);
    drop(host);
    guest.expect(Op::Shutdown);
    guest.expect(Op::Reset);
    guest.wait_connections(0);
    guest.assert_works();
}

#[test]
fn a_guest_that_connects_from_a_port_whose_last_connection_the_host_closed_is_accepted() {
    let (mut guest, _socket, host) = connected();
    drop(host);
    guest.expect(Op::Shutdown);
    let listener = guest.handle.listen(1);
    let (_again, mut host) = guest.connect_to(&listener, 5, 1);
    assert_eq!(guest.handle.connections(), 1);
    host.write_all(b"hello").unwrap();
    assert_eq!(guest.next().1, b"hello");
}

#[test]
fn a_reset_of_the_device_ends_every_stream_and_it_starts_again() {
    let mut guest = Guest::start();
    for round in 0..5 {
        let listener = guest.handle.listen(1);
        let mut hosts: Vec<UnixStream> = (0..20).map(|port| guest.connect_to(&listener, port, 1).1).collect();
        for host in &mut hosts {
            host.write_all(b"on the way").unwrap();
        }
        guest.reset();
        assert_eq!(guest.handle.connections(), 0, "round {round}");
        for mut host in hosts {
            // Whether the device had taken what was written or not: the stream ends.
            let end = host.read(&mut [0; 1]);
            assert!(end.is_err() || matches!(end, Ok(0)), "{end:?}");
        }
        guest.device.reset();
        guest.activate(128);
    }
    guest.assert_works();
}

#[test]
fn a_reset_in_the_middle_of_a_transfer_ends_it_both_ways() {
    for round in 0..10 {
        let (mut guest, mut socket, host) = connected();
        let mut writer = host.try_clone().unwrap();
        let writing = thread::spawn(move || while writer.write_all(&[1; 10_000]).is_ok() {});
        let reading = thread::spawn(move || {
            let mut host = host;
            let mut buffer = [0; 10_000];
            while matches!(host.read(&mut buffer), Ok(n) if n > 0) {}
        });
        for _ in 0..round * 3 {
            if socket.credit() >= 5000 {
                let packet = socket.data(&[2; 5000]);
                guest.send(packet, &[2; 5000]);
            }
            if let Some((header, _)) = guest.next_within(Duration::ZERO) {
                socket.take(&header);
            }
        }
        guest.reset();
        reading.join().unwrap();
        writing.join().unwrap();
        guest.activate(64);
        guest.assert_works();
    }
}

#[test]
fn dropping_the_device_ends_its_streams() {
    let (guest, _socket, mut host) = connected();
    let handle = guest.handle.clone();
    drop(guest);
    assert_eq!(read_to_end(&mut host), b"");
    assert_eq!(handle.connect(1).unwrap_err().kind(), ErrorKind::NotConnected);
}

/// Counts this process's open sockets and eventfds. Other tests run at the same time, so this one looks at a child.
#[test]
fn a_thousand_connections_leave_nothing() {
    const CHILD: &str = "VSOCK_TEST_COUNTS_FDS";
    const NAME: &str = "virtio::vsock::tests::closing::a_thousand_connections_leave_nothing";
    if std::env::var_os(CHILD).is_none() {
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
        return;
    }
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut guest = Guest::start();
    let listener = guest.handle.listen(1);
    // Whatever is made once is made now.
    guest.assert_works();
    guest.expect_silence();
    guest.wait_connections(0);
    let before = fds();
    for round in 0..1200u32 {
        let (mut socket, mut host) = guest.connect_to(&listener, round, 1);
        let packet = socket.data(b"x");
        guest.send(packet, b"x");
        host.read_exact(&mut [0; 1]).unwrap();
        match round % 3 {
            0 => {
                guest.send(socket.shutdown(SHUTDOWN_BOTH), &[]);
                guest.expect(Op::Reset);
            }
            1 => {
                drop(host);
                guest.expect(Op::Shutdown);
                guest.send(socket.header(Op::Reset), &[]);
            }
            _ => guest.send(socket.header(Op::Reset), &[]),
        }
    }
    guest.wait_connections(0);
    guest.settle_tx();
    // A closed socket is closed at the end of the worker's turn.
    let deadline = Instant::now() + PATIENCE;
    while fds() != before {
        assert!(Instant::now() < deadline, "{} file descriptors, {before} before", fds());
        thread::sleep(Duration::from_millis(1));
    }
}
