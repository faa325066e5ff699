//! The device against a fake guest: a driver with real virtqueues that speaks the protocol packet by packet, or breaks
//! it.

mod closing;
mod connecting;
mod hostile;
mod programs;
mod random;
mod transfer;

use std::collections::VecDeque;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::packet::*;
use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::test_support::{FakeDriver, Segment, Used, readable, writable};

const RX: u16 = 0;
const TX: u16 = 1;
const GUEST_CID: u64 = 3;
const EVENT_IDX: u64 = 1 << 29;
const INDIRECT_DESC: u64 = 1 << 28;
/// What Linux up to 6.1 gives per packet: a header's buffer and one page.
const OLD_LINUX: &[u32] = &[44, 4096];
/// Generous: the machine that runs the tests may be busy.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing must happen to be taken as "it does not happen".
const SILENCE: Duration = Duration::from_millis(50);
/// The credit that the fake guest gives unless a test says otherwise.
const GUEST_BUFFER: u32 = 256 * 1024;

/// A guest with its device.
struct Guest {
    driver: FakeDriver,
    device: VsockDevice,
    handle: VsockHandle,
    /// The descriptors of every receive buffer.
    rx_buffer: Vec<u32>,
    received: VecDeque<(Header, Vec<u8>)>,
    features: u64,
}

impl Guest {
    fn start() -> Guest {
        Guest::with(VsockOptions::default(), EVENT_IDX, OLD_LINUX, 128)
    }

    /// A guest that gave `rx_count` receive buffers, each of descriptors of these lengths.
    fn with(options: VsockOptions, features: u64, rx_buffer: &[u32], rx_count: usize) -> Guest {
        let (device, handle) = VsockDevice::new(GUEST_CID, options);
        let driver = FakeDriver::new(&[256, 256, 256]);
        let (rx_buffer, received) = (rx_buffer.to_vec(), VecDeque::new());
        let mut guest = Guest { driver, device, handle, rx_buffer, received, features };
        guest.activate(rx_count);
        guest
    }

    fn activate(&mut self, rx_count: usize) {
        self.give(rx_count);
        self.device.activate(self.driver.activation(self.features)).unwrap();
    }

    /// Resets the device as a driver does that goes away; what was received and not looked at is forgotten.
    fn reset(&mut self) {
        self.device.reset();
        self.driver.reset_queues();
        self.received.clear();
    }

    /// Gives the device `count` receive buffers.
    fn give(&mut self, count: usize) {
        let segments: Vec<Segment> = self.rx_buffer.iter().map(|len| writable(*len)).collect();
        for _ in 0..count {
            self.driver.queue(RX).add(&segments);
        }
        self.driver.queue(RX).kick_if_wanted();
    }

    /// Adds a chain to the transmit queue, first taking back what is used there.
    fn send_segments(&mut self, segments: &[Segment]) {
        let deadline = Instant::now() + PATIENCE;
        let queue = self.driver.queue(TX);
        loop {
            while let Some(Used { chain: Some(chain), len, .. }) = queue.poll_used() {
                assert_eq!(len, 0, "the device wrote into the transmit queue");
                queue.free_buffers(&chain);
            }
            if queue.free_descriptors() >= segments.len() {
                break;
            }
            assert!(Instant::now() < deadline, "the device takes nothing from the transmit queue");
            std::thread::sleep(Duration::from_micros(100));
        }
        queue.add(segments);
        queue.kick_if_wanted();
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        let header = readable(header.to_bytes());
        if payload.is_empty() {
            self.send_segments(&[header]);
        } else {
            self.send_segments(&[header, readable(payload)]);
        }
    }

    /// Waits until the device has returned everything that was sent.
    fn settle_tx(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let queue = self.driver.queue(TX);
        while queue.in_flight() > 0 {
            if let Some(chain) = queue.poll_used().and_then(|used| used.chain) {
                queue.free_buffers(&chain);
            }
            assert!(Instant::now() < deadline, "{} chains do not come back", queue.in_flight());
        }
    }

    /// Takes one used receive buffer and gives a fresh one for it.
    fn poll(&mut self, timeout: Duration) -> bool {
        let queue = self.driver.queue(RX);
        let Some(Used { chain: Some(chain), len, .. }) = queue.wait_used(timeout) else { return false };
        let bytes = queue.written(&chain);
        queue.free_buffers(&chain);
        self.give(1);
        assert!(len as usize >= HEADER_SIZE, "a packet of {len} bytes");
        let header = Header::from_bytes(bytes[..HEADER_SIZE].try_into().unwrap());
        assert_eq!(len as usize, HEADER_SIZE + header.len as usize, "{header:?}");
        self.received.push_back((header, bytes[HEADER_SIZE..len as usize].to_vec()));
        true
    }

    /// The next packet; `None` if none comes for a while.
    fn next_within(&mut self, timeout: Duration) -> Option<(Header, Vec<u8>)> {
        if self.received.is_empty() {
            self.poll(timeout);
        }
        self.received.pop_front()
    }

    #[track_caller]
    fn next(&mut self) -> (Header, Vec<u8>) {
        self.next_within(PATIENCE).expect("no packet came")
    }

    #[track_caller]
    fn expect(&mut self, op: Op) -> Header {
        let (header, _) = self.next();
        assert_eq!(Op::from_number(header.op), Some(op), "{header:?}");
        header
    }

    #[track_caller]
    fn expect_silence(&mut self) {
        let packet = self.next_within(SILENCE);
        assert_eq!(packet, None, "expected no packet");
    }

    /// A connection from the guest's `guest_port` to whoever listens on `host_port`.
    #[track_caller]
    fn connect(&mut self, guest_port: u32, host_port: u32) -> Socket {
        let mut socket = Socket::new(guest_port, host_port);
        self.send(socket.header(Op::Request), &[]);
        let header = self.expect(Op::Response);
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
        assert_eq!((header.src_port, header.dst_port), (host_port, guest_port));
        assert_eq!(header.socket_type, TYPE_STREAM);
        socket.take(&header);
        socket
    }

    /// A connection with both ends.
    #[track_caller]
    fn connect_to(&mut self, listener: &Receiver<UnixStream>, guest_port: u32, host_port: u32) -> (Socket, UnixStream) {
        let socket = self.connect(guest_port, host_port);
        (socket, listener.recv_timeout(PATIENCE).unwrap())
    }

    #[track_caller]
    fn wait_connections(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.handle.connections() != count {
            assert!(Instant::now() < deadline, "{} connections, not {count}", self.handle.connections());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[track_caller]
    fn assert_works(&mut self) {
        assert_eq!(self.driver.interrupt().failures(), []);
        let listener = self.handle.listen(9999);
        let (mut socket, mut host) = self.connect_to(&listener, 9998, 9999);
        let packet = socket.data(b"still here");
        self.send(packet, b"still here");
        let mut received = [0; 10];
        host.read_exact(&mut received).unwrap();
        assert_eq!(&received, b"still here");
        self.send(socket.header(Op::Reset), &[]);
        assert_eq!(host.read(&mut received).unwrap(), 0);
    }
}

/// The guest's end of a connection: ports and counters.
#[derive(Debug)]
struct Socket {
    guest_port: u32,
    host_port: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
    sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
}

impl Socket {
    fn new(guest_port: u32, host_port: u32) -> Socket {
        let (peer_buf_alloc, peer_fwd_cnt) = (0, 0);
        Socket { guest_port, host_port, buf_alloc: GUEST_BUFFER, fwd_cnt: 0, sent: 0, peer_buf_alloc, peer_fwd_cnt }
    }

    fn header(&self, op: Op) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: self.guest_port,
            dst_port: self.host_port,
            len: 0,
            socket_type: TYPE_STREAM,
            op: op as u16,
            flags: 0,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    fn shutdown(&self, flags: u32) -> Header {
        Header { flags, ..self.header(Op::Shutdown) }
    }

    /// The header for this payload; counts it as sent.
    fn data(&mut self, payload: &[u8]) -> Header {
        let len = u32::try_from(payload.len()).unwrap();
        self.sent = self.sent.wrapping_add(len);
        Header { len, ..self.header(Op::ReadWrite) }
    }

    /// Bytes that may be sent.
    fn credit(&self) -> u32 {
        self.peer_buf_alloc - self.sent.wrapping_sub(self.peer_fwd_cnt)
    }

    /// Takes the credit of a received packet.
    fn take(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
    }
}

/// `len` bytes that differ for every `seed` and at every place.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}
