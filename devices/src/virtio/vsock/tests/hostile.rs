//! What a guest may not do, and what it costs it: the packet, the connection, or the device; never more.

use std::io::Write;
use std::thread;

use super::*;
use crate::virtio::test_support::{DESC_F_NEXT, DESC_F_WRITE, MEMORY_SIZE, RawDescriptor};

fn connected() -> (Guest, Socket, UnixStream) {
    let mut guest = Guest::start();
    let listener = guest.handle.listen(1);
    let (socket, host) = guest.connect_to(&listener, 5, 1);
    (guest, socket, host)
}

/// Sends a packet that must cost the guest its only connection.
#[track_caller]
fn assert_resets(change: impl Fn(&Socket) -> (Header, Vec<u8>)) {
    let (mut guest, socket, mut host) = connected();
    let (header, payload) = change(&socket);
    guest.send(header, &payload);
    let reset = guest.expect(Op::Reset);
    assert_eq!((reset.src_cid, reset.dst_cid, reset.src_port, reset.dst_port), (2, 3, 1, 5));
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0, "the host's stream goes on");
    guest.wait_connections(0);
    guest.assert_works();
}

#[test]
fn packets_of_no_connection_are_answered_with_a_reset_except_resets() {
    let (mut guest, _socket, _host) = connected();
    for op in [Op::Response, Op::Shutdown, Op::ReadWrite, Op::CreditUpdate, Op::CreditRequest] {
        for (guest_port, host_port) in [(6, 1), (5, 2)] {
            guest.send(Socket::new(guest_port, host_port).header(op), &[]);
            let reset = guest.expect(Op::Reset);
            assert_eq!((reset.src_port, reset.dst_port), (host_port, guest_port), "{op:?}");
        }
    }
    guest.send(Socket::new(6, 1).header(Op::Reset), &[]);
    guest.expect_silence();
    guest.assert_works();
}

#[test]
fn an_unknown_operation_resets_the_connection() {
    for op in [0, 8, 0x105, u16::MAX] {
        assert_resets(|socket| (Header { op, ..socket.header(Op::Request) }, vec![]));
    }
}

#[test]
fn a_request_or_response_on_a_connection_resets_it() {
    assert_resets(|socket| (socket.header(Op::Request), vec![]));
    assert_resets(|socket| (socket.header(Op::Response), vec![]));
}

#[test]
fn a_wrong_socket_type_resets() {
    for socket_type in [0, 2, 3, u16::MAX] {
        assert_resets(|socket| (Header { socket_type, ..socket.header(Op::CreditUpdate) }, vec![]));
        let mut guest = Guest::start();
        let _listener = guest.handle.listen(1);
        guest.send(Header { socket_type, ..Socket::new(5, 1).header(Op::Request) }, &[]);
        assert_eq!(guest.expect(Op::Reset).socket_type, socket_type, "Linux looks for a socket of that type");
    }
}

#[test]
fn wrong_cids_are_refused_and_touch_no_connection() {
    let (mut guest, mut socket, mut host) = connected();
    let wrong = [(0, 2), (2, 2), (4, 2), (u64::MAX, 2), (3 | 1 << 32, 2), (3, 0), (3, 1), (3, 3), (3, 2 | 1 << 32)];
    for (src_cid, dst_cid) in wrong {
        for op in [Op::Request, Op::Shutdown, Op::ReadWrite] {
            let flags = SHUTDOWN_BOTH;
            guest.send(Header { src_cid, dst_cid, flags, ..socket.header(op) }, &[]);
            let reset = guest.expect(Op::Reset);
            assert_eq!((reset.src_cid, reset.dst_cid), (dst_cid, src_cid));
        }
        guest.send(Header { src_cid, dst_cid, ..socket.header(Op::Reset) }, &[]);
    }
    let packet = socket.data(b"alive");
    guest.send(packet, b"alive");
    let mut received = [0; 5];
    host.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"alive");
    guest.expect_silence();
}

#[test]
fn a_length_that_lies_resets_the_connection() {
    // More than the buffers hold, by one and by very many.
    assert_resets(|socket| (Header { len: 101, ..socket.header(Op::ReadWrite) }, vec![0; 100]));
    assert_resets(|socket| (Header { len: 1, ..socket.header(Op::ReadWrite) }, vec![]));
    assert_resets(|socket| (Header { len: u32::MAX, ..socket.header(Op::ReadWrite) }, vec![0; 100]));
    assert_resets(|socket| (Header { len: u32::MAX - 43, ..socket.header(Op::ReadWrite) }, vec![0; 100]));
    // More than a packet may have, all of it there.
    assert_resets(|socket| (Header { len: 65_537, ..socket.header(Op::ReadWrite) }, vec![0; 65_537]));
    // On a packet that carries none.
    assert_resets(|socket| (Header { len: 4, ..socket.header(Op::CreditUpdate) }, vec![0; 4]));
}

#[test]
fn bytes_beyond_the_length_are_not_payload() {
    let (mut guest, mut socket, mut host) = connected();
    let header = socket.data(b"four");
    guest.send(header, b"four and more");
    guest.send(socket.shutdown(SHUTDOWN_SEND), &[]);
    let mut received = Vec::new();
    host.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"four");
}

#[test]
fn an_empty_payload_is_nothing() {
    let (mut guest, socket, mut host) = connected();
    guest.send(socket.header(Op::ReadWrite), &[]);
    host.write_all(b"x").unwrap();
    assert_eq!(guest.next().1, b"x");
    assert_eq!(guest.handle.connections(), 1);
}

#[test]
fn payload_beyond_the_credit_resets_the_connection() {
    let options = VsockOptions { buffer_size: 1000, ..VsockOptions::default() };
    let mut guest = Guest::with(options, EVENT_IDX, OLD_LINUX, 64);
    let listener = guest.handle.listen(1);
    let (mut within, mut host) = guest.connect_to(&listener, 5, 1);
    let packet = within.data(&[1; 1000]);
    guest.send(packet, &[1; 1000]);
    host.read_exact(&mut [0; 1000]).unwrap();
    guest.expect(Op::CreditUpdate);
    let (mut beyond, mut host) = guest.connect_to(&listener, 6, 1);
    let packet = beyond.data(&[1; 1001]);
    guest.send(packet, &[1; 1001]);
    guest.expect(Op::Reset);
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    guest.wait_connections(1);
}

#[test]
fn a_guest_that_ignores_credit_is_reset_and_what_came_before_is_delivered() {
    let (mut guest, mut socket, mut host) = connected();
    // Far more than credit and socket take together.
    let packets = 200;
    for number in 0..packets {
        let payload = [number; 10_000];
        let packet = socket.data(&payload);
        guest.send(packet, &payload);
    }
    while guest.next().0.op != Op::Reset as u16 {}
    let mut received = Vec::new();
    host.read_to_end(&mut received).unwrap();
    assert!(received.len() >= 256 * 1024 - 10_000, "only {} bytes", received.len());
    assert!(received.len() < usize::from(packets) * 10_000);
    for (number, payload) in (0u8..).zip(received.chunks(10_000)) {
        assert!(payload == [number; 10_000], "packet {number} is not as it was sent");
    }
    guest.wait_connections(0);
}

#[test]
fn payload_after_the_guest_said_it_sends_no_more_resets_the_connection() {
    let (mut guest, mut socket, mut host) = connected();
    guest.send(socket.shutdown(SHUTDOWN_SEND), &[]);
    let packet = socket.data(b"after all");
    guest.send(packet, b"after all");
    guest.expect(Op::Reset);
    assert_eq!(host.read(&mut [0; 1]).unwrap(), 0);
    guest.wait_connections(0);
}

#[test]
fn forward_counts_from_nowhere_give_no_credit() {
    let (mut guest, mut socket, mut host) = connected();
    host.write_all(&vec![0; 1000]).unwrap();
    assert_eq!(guest.next().1.len(), 1000);
    socket.buf_alloc = 1000;
    for fwd_cnt in [1001, u32::MAX, 1 << 31] {
        socket.fwd_cnt = fwd_cnt;
        guest.send(socket.header(Op::CreditUpdate), &[]);
    }
    guest.settle_tx();
    host.write_all(b"x").unwrap();
    guest.expect(Op::CreditRequest);
    guest.expect_silence();
    socket.fwd_cnt = 1000;
    guest.send(socket.header(Op::CreditUpdate), &[]);
    assert_eq!(guest.next().1, b"x");
}

#[test]
fn chains_without_a_whole_header_are_returned_and_forgotten() {
    let mut guest = Guest::start();
    let header = Socket::new(5, 1).header(Op::Request).to_bytes();
    for len in [0, 1, 43] {
        guest.send_segments(&[readable(&header[..len])]);
        guest.send_segments(&[readable(&header[..len / 2]), readable(b""), readable(&header[len / 2..len])]);
    }
    guest.settle_tx();
    guest.expect_silence();
    guest.assert_works();
}

fn raw(address: u64, len: u32, flags: u16) -> Segment {
    Segment::Raw(RawDescriptor { address, len, flags, next: 0 })
}

#[test]
fn transmit_chains_that_are_writable_or_outside_memory_are_returned_and_forgotten() {
    let mut guest = Guest::start();
    let header = readable(Socket::new(5, 1).header(Op::CreditUpdate).to_bytes());
    let chains: [&[Segment]; 7] = [
        &[writable(44)],
        &[header.clone(), writable(100)],
        &[writable(100), header.clone()],
        &[raw(MEMORY_SIZE - 10, 44, 0)],
        &[raw(u64::MAX - 10, 44, 0)],
        &[raw(MEMORY_SIZE, u32::MAX, 0), raw(0, u32::MAX, 0)],
        &[header, raw(MEMORY_SIZE + 4096, 4096, 0)],
    ];
    for chain in chains {
        guest.send_segments(chain);
    }
    guest.settle_tx();
    guest.expect_silence();
    guest.assert_works();
}

#[test]
fn descriptor_loops_are_returned_and_forgotten() {
    for (queue, flags) in [(TX, DESC_F_NEXT), (RX, DESC_F_NEXT | DESC_F_WRITE)] {
        let mut guest = Guest::with(VsockOptions::default(), EVENT_IDX, OLD_LINUX, 0);
        guest.handle.listen(1);
        let looping = |next| RawDescriptor { address: 4096, len: 100, flags, next };
        guest.driver.queue(queue).write_descriptor(254, looping(255));
        guest.driver.queue(queue).write_descriptor(255, looping(254));
        guest.driver.queue(queue).make_available(255);
        guest.driver.queue(queue).kick();
        if queue == RX {
            // Makes the device look for a receive buffer.
            guest.send(Socket::new(6, 6).header(Op::CreditUpdate), &[]);
        }
        let used = guest.driver.queue(queue).wait_used(PATIENCE).unwrap();
        assert_eq!((used.head, used.len), (255, 0));
        guest.give(32);
        if queue == RX {
            guest.expect(Op::Reset);
        }
        guest.assert_works();
    }
}

#[test]
fn receive_buffers_that_cannot_be_used_are_returned_empty() {
    let mut guest = Guest::with(VsockOptions::default(), EVENT_IDX, OLD_LINUX, 0);
    let unusable: [&[Segment]; 7] = [
        &[readable([0; 4096])],
        &[writable(44), readable([0; 4096])],
        &[readable([0; 44]), writable(4096)],
        &[writable(43)],
        &[writable(0), writable(0)],
        &[raw(MEMORY_SIZE - 1, 4096, DESC_F_WRITE)],
        &[writable(44), raw(u64::MAX, 4096, DESC_F_WRITE)],
    ];
    for segments in unusable {
        guest.driver.queue(RX).add(segments);
    }
    guest.driver.queue(RX).kick();
    guest.send(Socket::new(6, 6).header(Op::CreditUpdate), &[]);
    for segments in unusable {
        let used = guest.driver.queue(RX).wait_used(PATIENCE).unwrap_or_else(|| panic!("{segments:?} is kept"));
        assert_eq!(used.len, 0, "{segments:?}");
    }
    guest.give(32);
    guest.expect(Op::Reset);
    guest.assert_works();
}

#[test]
fn a_receive_buffer_for_a_header_alone_carries_control_packets_and_does_not_block_payload() {
    let mut guest = Guest::with(VsockOptions::default(), EVENT_IDX, &[44], 1);
    let listener = guest.handle.listen(1);
    guest.send(Socket::new(5, 1).header(Op::Request), &[]);
    let mut host = listener.recv_timeout(PATIENCE).unwrap();
    let used = guest.driver.queue(RX).wait_used(PATIENCE).unwrap();
    assert_eq!(used.len, 44);
    host.write_all(b"payload").unwrap();
    guest.driver.queue(RX).add(&[writable(44)]);
    guest.driver.queue(RX).kick();
    assert_eq!(guest.driver.queue(RX).wait_used(PATIENCE).unwrap().len, 0);
    guest.rx_buffer = OLD_LINUX.to_vec();
    guest.give(1);
    assert_eq!(guest.next().1, b"payload");
}

#[test]
fn a_broken_ring_fails_the_device_and_a_reset_mends_it() {
    type Breakage = fn(&mut Guest, u16);
    let breakages: [(u16, Breakage); 4] = [
        (TX, |guest, queue| guest.driver.queue(queue).set_avail_idx(1000)),
        (TX, |guest, queue| guest.driver.queue(queue).make_available(256)),
        (TX, |guest, queue| guest.driver.queue(queue).make_available(u16::MAX)),
        (RX, |guest, queue| guest.driver.queue(queue).make_available(300)),
    ];
    for (queue, breakage) in breakages {
        let mut guest = Guest::with(VsockOptions::default(), EVENT_IDX, OLD_LINUX, 1);
        let listener = guest.handle.listen(1);
        let (_socket, mut host) = guest.connect_to(&listener, 5, 1);
        breakage(&mut guest, queue);
        guest.driver.queue(queue).kick();
        // The receive queue is looked at when there is something to be received.
        drop(host.write_all(&[0; 10_000]));
        let failure = guest.driver.interrupt().wait_failure(PATIENCE).unwrap();
        assert_eq!(failure.device, "vsock");
        assert!(failure.reason.contains(&format!("the driver broke queue {queue}")), "{}", failure.reason);
        // Nothing hangs on a device that has failed.
        while matches!(host.read(&mut [0; 100]), Ok(n) if n > 0) {}
        assert_eq!(guest.handle.connections(), 0);
        assert_eq!(guest.handle.connect(1).unwrap_err().kind(), std::io::ErrorKind::NotConnected);

        guest.reset();
        guest.activate(32);
        let (mut socket, mut host) = guest.connect_to(&listener, 6, 1);
        let packet = socket.data(b"again");
        guest.send(packet, b"again");
        host.read_exact(&mut [0; 5]).unwrap();
        assert_eq!(guest.driver.interrupt().failures().len(), 1);
    }
}

#[test]
fn endless_requests_neither_grow_the_device_nor_stop_the_others() {
    let options = VsockOptions { max_connections: 20, ..VsockOptions::default() };
    let mut guest = Guest::with(options, EVENT_IDX, OLD_LINUX, 100);
    let listener = guest.handle.listen(1);
    let (mut socket, mut host) = guest.connect_to(&listener, 5, 1);
    let mut refused = 0;
    for port in 1000..4000 {
        guest.send(Socket::new(port, 1).header(Op::Request), &[]);
        if let Some((header, _)) = guest.next_within(Duration::ZERO) {
            refused += usize::from(header.op == Op::Reset as u16);
        }
        assert!(guest.handle.connections() <= 20);
    }
    while refused < 3000 - 19 {
        refused += usize::from(guest.next().0.op == Op::Reset as u16);
    }
    guest.expect_silence();
    let packet = socket.data(b"alive");
    guest.send(packet, b"alive");
    host.read_exact(&mut [0; 5]).unwrap();
}

#[test]
fn a_guest_that_causes_answers_and_takes_none_stops_itself() {
    let mut guest = Guest::with(VsockOptions::default(), EVENT_IDX, OLD_LINUX, 0);
    // As many as the device remembers, and as many as the queue holds.
    for port in 0..1024 {
        guest.send(Socket::new(port, 1).header(Op::CreditUpdate), &[]);
    }
    guest.settle_tx();
    for port in 1024..1280 {
        guest.driver.queue(TX).add(&[readable(Socket::new(port, 1).header(Op::CreditUpdate).to_bytes())]);
    }
    guest.driver.queue(TX).kick();
    thread::sleep(SILENCE);
    assert_eq!(guest.driver.queue(TX).poll_used(), None, "the device takes packets that it has no room to answer");
    guest.give(64);
    for port in 0..1280 {
        assert_eq!(guest.expect(Op::Reset).dst_port, port);
    }
    guest.settle_tx();
    guest.assert_works();
}
