use std::io::Write;
use std::sync::mpsc::channel;
use std::thread;

use super::*;

/// One connection of a transfer as the guest drives it: what it has to send, and what it got so far.
struct Flow {
    socket: Socket,
    outgoing: Vec<u8>,
    offset: usize,
    incoming: Vec<u8>,
    /// Forward count the device was told last.
    told: u32,
    packet: usize,
}

impl Flow {
    fn new(socket: Socket, outgoing: Vec<u8>) -> Flow {
        Flow { socket, outgoing, offset: 0, incoming: Vec::new(), told: 0, packet: MAX_PAYLOAD as usize }
    }

    fn sent_all(&self) -> bool {
        self.offset == self.outgoing.len()
    }

    /// Sends a packet, if there is credit for one; says whether it did.
    fn send(&mut self, guest: &mut Guest) -> bool {
        let len = self.packet.min(self.socket.credit() as usize).min(self.outgoing.len() - self.offset);
        if len == 0 {
            return false;
        }
        let payload = self.outgoing[self.offset..self.offset + len].to_vec();
        self.offset += len;
        self.told = self.socket.fwd_cnt;
        let header = self.socket.data(&payload);
        guest.send(header, &payload);
        true
    }

    /// Takes a packet as a guest does whose program reads at once.
    fn take(&mut self, guest: &mut Guest, header: &Header, payload: &[u8]) {
        self.socket.take(header);
        self.incoming.extend_from_slice(payload);
        self.socket.fwd_cnt = self.socket.fwd_cnt.wrapping_add(header.len);
        let in_flight = self.socket.fwd_cnt.wrapping_sub(self.told);
        assert!(in_flight <= self.socket.buf_alloc, "the device sent {in_flight} bytes, more than its credit");
        let asked = header.op == Op::CreditRequest as u16;
        if asked || in_flight > self.socket.buf_alloc * 3 / 4 {
            self.told = self.socket.fwd_cnt;
            guest.send(self.socket.header(Op::CreditUpdate), &[]);
        }
    }
}

/// Moves packets both ways until `done`.
fn pump(guest: &mut Guest, flows: &mut [Flow], mut done: impl FnMut(&[Flow]) -> bool) {
    let mut deadline = Instant::now() + PATIENCE;
    while !done(flows) {
        let mut progress = false;
        for flow in flows.iter_mut() {
            progress |= flow.send(guest);
        }
        while let Some((header, payload)) = guest.next_within(Duration::ZERO) {
            progress = true;
            let flow = flows.iter_mut().find(|flow| flow.socket.guest_port == header.dst_port).unwrap();
            assert_ne!(Op::from_number(header.op), Some(Op::Reset), "{flow:?}", flow = flow.socket);
            flow.take(guest, &header, &payload);
        }
        if progress {
            deadline = Instant::now() + PATIENCE;
        } else {
            assert!(Instant::now() < deadline, "the transfer stands still");
            thread::sleep(Duration::from_micros(50));
        }
    }
}

fn move_both_ways(features: u64, rx_buffer: &[u32], connections: u32, len: usize, packet: usize) {
    let mut guest = Guest::with(VsockOptions::default(), features, rx_buffer, 256 / rx_buffer.len().max(4));
    let listener = guest.handle.listen(1);
    let mut flows = Vec::new();
    let mut threads = Vec::new();
    let pairs: Vec<_> = (0..connections).map(|port| guest.connect_to(&listener, port, 1)).collect();
    for (port, (socket, host)) in (0u32..).zip(pairs) {
        let mut flow = Flow::new(socket, pattern(u64::from(port), len));
        flow.packet = packet;
        flows.push(flow);
        let mut writer = host.try_clone().unwrap();
        threads.push(thread::spawn(move || writer.write_all(&pattern(u64::from(port) + 1000, len)).unwrap()));
        threads.push(thread::spawn(move || {
            let mut received = vec![0; len];
            let mut host = host;
            host.read_exact(&mut received).unwrap();
            assert!(received == pattern(u64::from(port), len), "data of guest port {port} changed");
        }));
    }
    pump(&mut guest, &mut flows, |flows| {
        flows.iter().all(|flow| flow.sent_all() && flow.incoming.len() == len)
            && threads.iter().all(|thread| thread.is_finished())
    });
    for thread in threads {
        thread.join().unwrap();
    }
    for flow in &flows {
        let port = flow.socket.guest_port;
        assert!(flow.incoming == pattern(u64::from(port) + 1000, len), "data for guest port {port} changed");
    }
    assert_eq!(guest.driver.interrupt().failures(), []);
}

#[test]
fn many_mebibytes_on_several_connections_arrive_unchanged_both_ways() {
    move_both_ways(EVENT_IDX, OLD_LINUX, 6, 3 << 20, 65_536);
}

#[test]
fn data_arrives_unchanged_without_event_idx() {
    move_both_ways(0, OLD_LINUX, 2, 2 << 20, 20_000);
}

#[test]
fn one_descriptor_for_header_and_payload_serves_as_well_as_odd_pieces() {
    move_both_ways(EVENT_IDX, &[4096], 2, 1 << 20, 4097);
    move_both_ways(EVENT_IDX, &[44 + 65_536], 2, 1 << 20, 65_536);
    move_both_ways(EVENT_IDX, &[13, 100, 0, 5000, 1], 2, 300_000, 999);
    move_both_ways(EVENT_IDX, &[45], 1, 2000, 1);
}

#[test]
fn a_packet_in_pieces_of_a_page_and_through_an_indirect_table_arrives_unchanged() {
    let mut guest = Guest::with(VsockOptions::default(), EVENT_IDX | INDIRECT_DESC, OLD_LINUX, 16);
    let listener = guest.handle.listen(1);
    let (mut socket, mut host) = guest.connect_to(&listener, 5, 1);
    let payload = pattern(5, 60_000);
    for indirect in [false, true] {
        let header = socket.data(&payload);
        let mut segments = vec![readable(header.to_bytes())];
        segments.extend(payload.chunks(4096).map(readable));
        if indirect {
            guest.driver.queue(TX).add_indirect(&segments);
        } else {
            guest.driver.queue(TX).add(&segments);
        }
        guest.driver.queue(TX).kick_if_wanted();
        let mut received = vec![0; payload.len()];
        host.read_exact(&mut received).unwrap();
        assert!(received == payload);
    }
}

#[test]
fn a_host_that_does_not_read_stops_its_own_connection_and_no_other() {
    let mut guest = Guest::start();
    let listener = guest.handle.listen(1);
    let (slow, mut slow_host) = guest.connect_to(&listener, 1, 1);
    let (fast, fast_host) = guest.connect_to(&listener, 2, 1);
    let len = 8 << 20;
    let mut flows = [Flow::new(slow, pattern(1, len)), Flow::new(fast, pattern(2, len))];
    let (finished, fast_done) = channel();
    let fast_reader = thread::spawn(move || {
        let mut received = vec![0; len];
        let mut host = fast_host;
        host.read_exact(&mut received).unwrap();
        finished.send(()).unwrap();
        assert!(received == pattern(2, len));
    });
    pump(&mut guest, &mut flows, |_| fast_done.try_recv().is_ok());
    fast_reader.join().unwrap();
    // What the slow one could send is the credit and what the socket took.
    assert!(!flows[0].sent_all());
    guest.settle_tx();
    while let Some((header, payload)) = guest.next_within(SILENCE) {
        let flow = flows.iter_mut().find(|flow| flow.socket.guest_port == header.dst_port).unwrap();
        flow.take(&mut guest, &header, &payload);
    }
    assert_eq!(flows[0].socket.credit(), 0, "the device still gives credit to a connection whose host does not read");

    let slow_reader = thread::spawn(move || {
        let mut received = vec![0; len];
        // Slowly at first.
        for chunk in received.chunks_mut(1 << 20) {
            slow_host.read_exact(chunk).unwrap();
            thread::sleep(Duration::from_millis(2));
        }
        assert!(received == pattern(1, len));
    });
    pump(&mut guest, &mut flows[..1], |flows| flows[0].sent_all() && slow_reader.is_finished());
    slow_reader.join().unwrap();
}

/// Takes payload until `received` has `window` bytes; says whether the device asked for credit meanwhile.
fn receive_window(guest: &mut Guest, received: &mut Vec<u8>, window: usize) -> bool {
    let mut asked = false;
    while received.len() < window {
        let (header, payload) = guest.next();
        asked |= header.op == Op::CreditRequest as u16;
        received.extend(payload);
    }
    assert_eq!(received.len(), window, "more than the credit");
    asked
}

#[test]
fn a_guest_that_does_not_read_gets_no_more_than_its_credit_and_the_rest_later() {
    let mut guest = Guest::start();
    let listener = guest.handle.listen(1);
    let mut socket = Socket::new(1, 1);
    socket.buf_alloc = 10_000;
    guest.send(socket.header(Op::Request), &[]);
    guest.expect(Op::Response);
    let mut host = listener.recv_timeout(PATIENCE).unwrap();
    let data = pattern(9, 35_000);
    host.write_all(&data).unwrap();
    let mut received = Vec::new();
    while received.len() < data.len() {
        let window = data.len().min((socket.fwd_cnt + socket.buf_alloc) as usize);
        let asked = receive_window(&mut guest, &mut received, window);
        if window < data.len() {
            // Starved, at exactly the credit.
            if !asked {
                guest.expect(Op::CreditRequest);
            }
            guest.expect_silence();
        }
        socket.fwd_cnt = u32::try_from(received.len()).unwrap();
        guest.send(socket.header(Op::CreditUpdate), &[]);
    }
    assert!(received == data);
    // A little credit at a time is used, but does not make the device ask again and again.
    guest.settle_tx();
    host.write_all(&data[..12_000]).unwrap();
    let mut window = data.len() + 10_000;
    if !receive_window(&mut guest, &mut received, window) {
        guest.expect(Op::CreditRequest);
    }
    while window < data.len() + 12_000 {
        socket.fwd_cnt += 500;
        window += 500;
        guest.send(socket.header(Op::CreditUpdate), &[]);
        assert!(!receive_window(&mut guest, &mut received, window));
    }
    guest.expect_silence();
    // A guest that closes its window altogether, and opens it again.
    socket.fwd_cnt = u32::try_from(received.len()).unwrap();
    guest.send(socket.header(Op::CreditUpdate), &[]);
    let window = socket.buf_alloc;
    socket.buf_alloc = 0;
    guest.send(socket.header(Op::CreditUpdate), &[]);
    guest.settle_tx();
    host.write_all(b"late").unwrap();
    guest.expect(Op::CreditRequest);
    guest.expect_silence();
    socket.buf_alloc = window;
    guest.send(socket.header(Op::CreditUpdate), &[]);
    assert_eq!(guest.next().1, b"late");
}

#[test]
fn the_device_tells_its_credit_when_asked() {
    let mut guest = Guest::start();
    let listener = guest.handle.listen(1);
    let (mut socket, mut host) = guest.connect_to(&listener, 1, 1);
    assert_eq!((socket.peer_buf_alloc, socket.peer_fwd_cnt), (256 * 1024, 0));
    let packet = socket.data(&[7; 1000]);
    guest.send(packet, &[7; 1000]);
    host.read_exact(&mut [0; 1000]).unwrap();
    guest.send(socket.header(Op::CreditRequest), &[]);
    let header = guest.expect(Op::CreditUpdate);
    assert_eq!((header.buf_alloc, header.fwd_cnt, header.len), (256 * 1024, 1000, 0));
    guest.expect_silence();
}

#[test]
fn connections_take_turns_for_the_guests_buffers() {
    let mut guest = Guest::with(VsockOptions::default(), EVENT_IDX, OLD_LINUX, 8);
    let listener = guest.handle.listen(1);
    let mut hosts: Vec<UnixStream> = (0..4).map(|port| guest.connect_to(&listener, port, 1).1).collect();
    for host in &mut hosts {
        host.write_all(&pattern(0, 60_000)).unwrap();
    }
    // The first few may have come before the others wrote.
    let order: Vec<u32> = (0..40).map(|_| guest.next().0.dst_port).collect();
    for window in order[16..].windows(8) {
        for port in 0..4 {
            assert!(window.contains(&port), "guest port {port} has no turn in {order:?}");
        }
    }
}

#[test]
fn a_guest_out_of_receive_buffers_gets_everything_once_it_gives_some() {
    for features in [0, EVENT_IDX] {
        let mut guest = Guest::with(VsockOptions::default(), features, OLD_LINUX, 0);
        let listener = guest.handle.listen(1);
        guest.send(Socket::new(1, 1).header(Op::Request), &[]);
        let mut host = listener.recv_timeout(PATIENCE).unwrap();
        let data = pattern(3, 100_000);
        host.write_all(&data).unwrap();
        assert!(!guest.poll(SILENCE));
        guest.give(1);
        guest.expect(Op::Response);
        let mut received = Vec::new();
        while received.len() < data.len() {
            let (header, payload) = guest.next();
            assert_eq!(header.op, Op::ReadWrite as u16);
            received.extend(payload);
        }
        assert!(received == data, "features {features:#x}");
    }
}

#[test]
fn signals_come_once_for_a_batch_and_kicks_are_asked_for_only_when_needed() {
    let mut guest = Guest::with(VsockOptions::default(), EVENT_IDX, OLD_LINUX, 100);
    let listener = guest.handle.listen(1);
    let (_socket, mut host) = guest.connect_to(&listener, 1, 1);
    // The one for the RESPONSE, which may follow the used index by a moment.
    assert!(guest.driver.interrupt().wait_used_signals(RX, 1, PATIENCE));
    let before = 1;
    // Nobody takes from the used ring meanwhile, so used_event stays and one signal is enough (§ 2.7.7.2).
    host.write_all(&pattern(1, 40 * 4096)).unwrap();
    assert!(guest.driver.interrupt().wait_used_signals(RX, before + 1, PATIENCE));
    let deadline = Instant::now() + PATIENCE;
    while guest.driver.queue(RX).device_used_idx() < 40 {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(guest.driver.interrupt().used_signals(RX), before + 1);
    // The device had buffers all the time and asked for no kick.
    assert!(!guest.driver.queue(RX).kick_if_wanted());
    guest.driver.queue(RX).add(&[writable(44), writable(4096)]);
    assert!(!guest.driver.queue(RX).kick_if_wanted());
}

#[test]
fn without_event_idx_the_drivers_flag_keeps_signals_away() {
    let mut guest = Guest::with(VsockOptions::default(), 0, OLD_LINUX, 100);
    let listener = guest.handle.listen(1);
    let (_socket, mut host) = guest.connect_to(&listener, 1, 1);
    // The one for the RESPONSE, which may follow the used index by a moment.
    assert!(guest.driver.interrupt().wait_used_signals(RX, 1, PATIENCE));
    let before = 1;
    guest.driver.queue(RX).set_avail_flags(1);
    host.write_all(b"quietly").unwrap();
    assert_eq!(guest.next().1, b"quietly");
    thread::sleep(SILENCE);
    assert_eq!(guest.driver.interrupt().used_signals(RX), before);
    guest.driver.queue(RX).set_avail_flags(0);
    host.write_all(b"aloud").unwrap();
    assert!(guest.driver.interrupt().wait_used_signals(RX, before + 1, PATIENCE));
}

#[test]
fn without_event_idx_the_device_asks_for_kicks_only_while_it_waits_for_buffers() {
    let mut guest = Guest::with(VsockOptions::default(), 0, OLD_LINUX, 0);
    let listener = guest.handle.listen(1);
    let buffer = [writable(44), writable(4096)];
    let mut hosts = Vec::new();
    for port in 0..3 {
        guest.send(Socket::new(port, 1).header(Op::Request), &[]);
        hosts.push(listener.recv_timeout(PATIENCE).unwrap());
        let deadline = Instant::now() + PATIENCE;
        while !guest.driver.queue(RX).kick_if_wanted() {
            assert!(Instant::now() < deadline, "the device does not ask for a kick");
            thread::sleep(Duration::from_millis(1));
        }
        // One buffer that the RESPONSE waits for, and one more.
        guest.driver.queue(RX).add(&buffer);
        guest.driver.queue(RX).kick_if_wanted();
        assert_eq!(guest.driver.queue(RX).wait_used(PATIENCE).unwrap().len, 44);
        guest.driver.queue(RX).add(&buffer);
        assert!(!guest.driver.queue(RX).kick_if_wanted(), "the device asks for a kick that it has no use for");
        // It is found without one.
        guest.send(Socket::new(port + 10, 7).header(Op::Request), &[]);
        assert_eq!(guest.driver.queue(RX).wait_used(PATIENCE).unwrap().len, 44);
    }
}
