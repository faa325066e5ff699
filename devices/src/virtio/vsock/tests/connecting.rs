use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::thread;

use super::*;
use crate::virtio::{ActivateError, DeviceType};

#[test]
fn the_configuration_is_the_guests_cid() {
    let (device, _handle) = VsockDevice::new(0x0102_0304, VsockOptions::default());
    let mut config = [0xff; 12];
    device.read_config(0, &mut config);
    assert_eq!(config, [4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut part = [0xff; 2];
    device.read_config(2, &mut part);
    assert_eq!(part, [2, 1]);
    for offset in [8, 1000, u64::MAX] {
        device.read_config(offset, &mut config);
        assert_eq!(config, [0; 12], "offset {offset}");
    }
}

#[test]
fn the_device_offers_streams_with_indirect_descriptors_and_event_idx() {
    let (device, _handle) = VsockDevice::new(3, VsockOptions::default());
    assert_eq!(device.device_type(), DeviceType::Vsock);
    assert_eq!(device.queue_max_sizes(), [256, 256, 256]);
    assert_eq!(device.device_features(), EVENT_IDX | INDIRECT_DESC);
}

#[test]
fn a_device_without_its_data_queues_does_not_start() {
    let (mut device, handle) = VsockDevice::new(3, VsockOptions::default());
    let mut driver = FakeDriver::new(&[256, 256, 256]);
    let error = device.activate(driver.activation_with(0, &[1, 2])).unwrap_err();
    assert!(matches!(error, ActivateError::MissingQueue(0)));
    let error = device.activate(driver.activation_with(0, &[0, 2])).unwrap_err();
    assert!(matches!(error, ActivateError::MissingQueue(1)));
    assert_eq!(handle.connect(1).unwrap_err().kind(), ErrorKind::NotConnected);
    device.activate(driver.activation_with(0, &[0, 1])).unwrap();
}

#[test]
fn a_listener_gets_a_blocking_stream_for_each_connection_of_the_guest() {
    let mut guest = Guest::start();
    let listener = guest.handle.listen(1024);
    let (mut first, mut first_host) = guest.connect_to(&listener, 40_000, 1024);
    let (mut second, mut second_host) = guest.connect_to(&listener, 40_001, 1024);
    assert_eq!(guest.handle.connections(), 2);
    let (one, two) = (first.data(b"one"), second.data(b"two"));
    guest.send(two, b"two");
    guest.send(one, b"one");
    let mut received = [0; 3];
    first_host.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"one");
    second_host.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"two");
}

#[test]
fn a_port_without_a_listener_answers_with_a_reset() {
    let mut guest = Guest::start();
    guest.send(Socket::new(40_000, 1024).header(Op::Request), &[]);
    let header = guest.expect(Op::Reset);
    assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
    assert_eq!((header.src_port, header.dst_port), (1024, 40_000));
    assert_eq!(guest.handle.connections(), 0);
}

#[test]
fn a_dropped_listener_refuses_and_a_new_one_accepts() {
    let mut guest = Guest::start();
    drop(guest.handle.listen(1024));
    guest.send(Socket::new(40_000, 1024).header(Op::Request), &[]);
    guest.expect(Op::Reset);
    let listener = guest.handle.listen(1024);
    guest.connect_to(&listener, 40_000, 1024);
}

#[test]
fn connections_that_wait_in_a_dropped_listener_are_closed() {
    let mut guest = Guest::start();
    let listener = guest.handle.listen(1024);
    let socket = guest.connect(40_000, 1024);
    drop(listener);
    assert_eq!(guest.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
    guest.send(socket.header(Op::Reset), &[]);
    guest.wait_connections(0);
}

#[test]
fn a_listener_that_accepts_nothing_has_a_limited_backlog() {
    let mut guest = Guest::start();
    let listener = guest.handle.listen(1024);
    for port in 0..128 {
        guest.connect(port, 1024);
    }
    guest.send(Socket::new(128, 1024).header(Op::Request), &[]);
    guest.expect(Op::Reset);
    drop(listener.recv().unwrap());
    assert_eq!(guest.expect(Op::Shutdown).dst_port, 0);
    guest.connect(129, 1024);
}

/// Runs `connect` on a thread and returns what the guest sees of it.
fn host_connects(guest: &mut Guest, port: u32) -> (thread::JoinHandle<std::io::Result<UnixStream>>, Socket) {
    let handle = guest.handle.clone();
    let connecting = thread::spawn(move || handle.connect(port));
    let header = guest.expect(Op::Request);
    assert_eq!((header.src_cid, header.dst_cid, header.dst_port), (HOST_CID, GUEST_CID, port));
    assert_eq!(header.socket_type, TYPE_STREAM);
    let mut socket = Socket::new(port, header.src_port);
    socket.take(&header);
    (connecting, socket)
}

#[test]
fn the_host_connects_to_a_port_of_the_guest() {
    let mut guest = Guest::start();
    let (connecting, mut socket) = host_connects(&mut guest, 7);
    guest.send(socket.header(Op::Response), &[]);
    let mut stream = connecting.join().unwrap().unwrap();
    stream.write_all(b"ping").unwrap();
    let (header, payload) = guest.next();
    assert_eq!((header.op, header.src_port, &payload[..]), (Op::ReadWrite as u16, socket.host_port, &b"ping"[..]));
    let packet = socket.data(b"pong");
    guest.send(packet, b"pong");
    let mut received = [0; 4];
    stream.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"pong");
}

#[test]
fn a_refused_connection_of_the_host_is_an_error() {
    let mut guest = Guest::start();
    let (connecting, socket) = host_connects(&mut guest, 7);
    guest.send(socket.header(Op::Reset), &[]);
    let error = connecting.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    assert_eq!(error.to_string(), "the guest refused a connection to its vsock port 7");
    guest.wait_connections(0);
    guest.expect_silence();
}

#[test]
fn a_guest_that_does_not_answer_is_given_up_on() {
    let options = VsockOptions { connect_timeout: Duration::from_millis(30), ..VsockOptions::default() };
    let mut guest = Guest::with(options, EVENT_IDX, OLD_LINUX, 16);
    let (connecting, socket) = host_connects(&mut guest, 7);
    assert_eq!(connecting.join().unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
    assert_eq!(guest.expect(Op::Reset).src_port, socket.host_port);
    guest.wait_connections(0);
    // Too late.
    guest.send(socket.header(Op::Response), &[]);
    guest.expect(Op::Reset);
    guest.assert_works();
}

#[test]
fn the_time_for_an_answer_does_not_limit_the_connection() {
    let options = VsockOptions { connect_timeout: Duration::from_millis(300), ..VsockOptions::default() };
    let mut guest = Guest::with(options, EVENT_IDX, OLD_LINUX, 16);
    let (connecting, mut socket) = host_connects(&mut guest, 7);
    guest.send(socket.header(Op::Response), &[]);
    let mut stream = connecting.join().unwrap().unwrap();
    thread::sleep(Duration::from_millis(500));
    let packet = socket.data(b"late");
    guest.send(packet, b"late");
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"late");
}

#[test]
fn an_answer_that_is_none_resets_the_connection() {
    let mut guest = Guest::start();
    let (connecting, socket) = host_connects(&mut guest, 7);
    guest.send(socket.header(Op::CreditUpdate), &[]);
    assert_eq!(connecting.join().unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
    guest.expect(Op::Reset);
    guest.wait_connections(0);
}

#[test]
fn host_ports_of_connections_in_use_or_just_closed_are_not_given_again() {
    let mut guest = Guest::start();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..50 {
        let (connecting, socket) = host_connects(&mut guest, 7);
        assert!(seen.insert(socket.host_port), "port {} again", socket.host_port);
        guest.send(socket.header(Op::Reset), &[]);
        connecting.join().unwrap().unwrap_err();
    }
}

#[test]
fn connecting_needs_a_running_driver() {
    let mut guest = Guest::start();
    guest.reset();
    assert_eq!(guest.handle.connect(7).unwrap_err().kind(), ErrorKind::NotConnected);
    guest.activate(16);
    let (connecting, socket) = host_connects(&mut guest, 7);
    guest.reset();
    assert_eq!(connecting.join().unwrap().unwrap_err().kind(), ErrorKind::ConnectionAborted);
    assert_eq!(socket.guest_port, 7);
}

#[test]
fn requests_beyond_the_limit_of_connections_are_refused_from_both_sides() {
    let options = VsockOptions { max_connections: 3, ..VsockOptions::default() };
    let mut guest = Guest::with(options, EVENT_IDX, OLD_LINUX, 64);
    let listener = guest.handle.listen(1);
    let mut pairs: Vec<_> = (0..3).map(|port| guest.connect_to(&listener, port, 1)).collect();
    guest.send(Socket::new(3, 1).header(Op::Request), &[]);
    guest.expect(Op::Reset);
    let error = guest.handle.connect(7).unwrap_err();
    assert_eq!(error.to_string(), "the vsock device has 3 connections, its limit");
    let (socket, _host) = pairs.remove(0);
    guest.send(socket.header(Op::Reset), &[]);
    guest.connect_to(&listener, 4, 1);
}

#[test]
fn handles_on_many_threads_connect_at_once() {
    let mut guest = Guest::start();
    let handle = Arc::new(guest.handle.clone());
    let callers: Vec<_> = (0..20)
        .map(|port| {
            let handle = handle.clone();
            thread::spawn(move || (port, handle.connect(port).unwrap()))
        })
        .collect();
    for _ in 0..20 {
        let header = guest.expect(Op::Request);
        let mut socket = Socket::new(header.dst_port, header.src_port);
        guest.send(socket.header(Op::Response), &[]);
        let text = header.dst_port.to_le_bytes();
        let packet = socket.data(&text);
        guest.send(packet, &text);
    }
    for caller in callers {
        let (port, mut stream) = caller.join().unwrap();
        let mut text = [0; 4];
        stream.read_exact(&mut text).unwrap();
        assert_eq!(u32::from_le_bytes(text), port);
    }
}
