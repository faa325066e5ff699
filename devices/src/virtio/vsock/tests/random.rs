//! Whatever a guest sends, in whatever order, while the host does as it likes: no panic, no leak, and the next
//! well-behaved connection works.

use std::collections::BTreeSet;
use std::io::Write;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// A packet, header and payload; `extra` bytes more or fewer than the header says.
    Packet {
        header: Header,
        extra: i32,
    },
    /// Bytes that need not be a packet, in pieces; writable ones too.
    Garbage(Vec<(Vec<u8>, bool)>),
    /// Takes what the device sent.
    Receive,
    /// Drops the receive buffers that came back instead of giving new ones.
    Starve,
    HostWrites(usize, u16),
    HostReads(usize),
    HostCloses(usize),
    HostShutsDown(usize, bool),
}

fn edge_u32() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..4u32, 2 => 1..100_000u32, 1 => any::<u32>(), 1 => Just(u32::MAX)]
}

fn header() -> impl Strategy<Value = Header> {
    let cids =
        (prop_oneof![19 => Just(GUEST_CID), 1 => any::<u64>()], prop_oneof![19 => Just(HOST_CID), 1 => any::<u64>()]);
    let ports = (0..4u32, prop_oneof![9 => 1..3u32, 1 => any::<u32>()]);
    let op = prop_oneof![19 => prop_oneof![3 => Just(1u16), 2 => Just(5u16), 3 => 2..8u16], 1 => any::<u16>()];
    let socket_type = prop_oneof![19 => Just(TYPE_STREAM), 1 => any::<u16>()];
    let len = prop_oneof![3 => Just(0u32), 3 => 1..5000u32, 1 => Just(65_536u32), 1 => edge_u32()];
    let flags = prop_oneof![9 => 0..4u32, 1 => any::<u32>()];
    let buf_alloc = prop_oneof![3 => Just(GUEST_BUFFER), 1 => edge_u32()];
    (cids, ports, op, socket_type, len, flags, buf_alloc, edge_u32()).prop_map(
        |((src_cid, dst_cid), (src_port, dst_port), op, socket_type, len, flags, buf_alloc, fwd_cnt)| Header {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            len: if op == Op::ReadWrite as u16 { len } else { 0 },
            socket_type,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let extra = prop_oneof![9 => Just(0), 1 => -50..50i32];
    prop_oneof![
        12 => (header(), extra).prop_map(|(header, extra)| Step::Packet { header, extra }),
        2 => vec((vec(any::<u8>(), 0..80), any::<bool>()), 1..6).prop_map(Step::Garbage),
        4 => Just(Step::Receive),
        1 => Just(Step::Starve),
        2 => (0..8usize, 1..20_000u16).prop_map(|(host, len)| Step::HostWrites(host, len)),
        2 => (0..8usize).prop_map(Step::HostReads),
        1 => (0..8usize).prop_map(Step::HostCloses),
        1 => (0..8usize, any::<bool>()).prop_map(|(host, read)| Step::HostShutsDown(host, read)),
    ]
}

fn run(steps: Vec<Step>, features: u64) {
    let options =
        VsockOptions { max_connections: 6, close_timeout: Duration::from_millis(20), ..VsockOptions::default() };
    let mut guest = Guest::with(options, features, OLD_LINUX, 64);
    let listeners = [guest.handle.listen(1), guest.handle.listen(2)];
    let mut hosts: Vec<UnixStream> = Vec::new();
    let mut ports = BTreeSet::new();
    for step in steps {
        for stream in listeners.iter().flat_map(Receiver::try_iter) {
            stream.set_nonblocking(true).unwrap();
            hosts.push(stream);
        }
        assert!(guest.handle.connections() <= 6);
        match step {
            Step::Packet { header, extra } => {
                ports.insert((header.src_port, header.dst_port));
                let len = (i64::from(header.len) + i64::from(extra)).clamp(0, 100_000) as usize;
                guest.send(header, &vec![0x5a; len]);
            }
            Step::Garbage(pieces) => {
                let segments: Vec<Segment> = pieces
                    .into_iter()
                    .map(|(bytes, write)| if write { writable(bytes.len() as u32) } else { readable(bytes) })
                    .collect();
                guest.send_segments(&segments);
            }
            Step::Receive => while guest.next_within(Duration::ZERO).is_some() {},
            Step::Starve => {
                while let Some(used) = guest.driver.queue(RX).poll_used() {
                    guest.driver.queue(RX).free_buffers(&used.chain.unwrap());
                }
            }
            Step::HostWrites(host, len) => {
                if let Some(stream) = hosts.get_mut(host) {
                    // Full or closed is fine.
                    drop(stream.write(&vec![1; usize::from(len)]));
                }
            }
            Step::HostReads(host) => {
                if let Some(stream) = hosts.get_mut(host) {
                    let mut buffer = [0; 10_000];
                    if let Ok(len) = stream.read(&mut buffer) {
                        assert!(buffer[..len].iter().all(|byte| *byte == 0x5a), "bytes that no guest sent");
                    }
                }
            }
            Step::HostCloses(host) => {
                if host < hosts.len() {
                    hosts.swap_remove(host);
                }
            }
            Step::HostShutsDown(host, read) => {
                if let Some(stream) = hosts.get(host) {
                    let how = if read { std::net::Shutdown::Read } else { std::net::Shutdown::Write };
                    drop(stream.shutdown(how));
                }
            }
        }
    }
    // The host lets go of everything and the guest takes whatever still comes: then so must the device, whatever state
    // its connections are in.
    let free = guest.driver.queue(RX).free_descriptors() / OLD_LINUX.len();
    guest.give(free.min(64));
    drop((hosts, listeners));
    for (guest_port, host_port) in ports {
        let mut socket = Socket::new(guest_port, host_port);
        socket.buf_alloc = u32::MAX;
        guest.send(socket.header(Op::CreditUpdate), &[]);
        while guest.next_within(Duration::ZERO).is_some() {}
    }
    let deadline = Instant::now() + PATIENCE;
    while guest.handle.connections() > 0 {
        assert!(Instant::now() < deadline, "{} connections are left", guest.handle.connections());
        guest.next_within(Duration::from_millis(1));
    }
    // Late answers to what came before may still arrive.
    let listener = guest.handle.listen(9999);
    guest.send(Socket::new(9998, 9999).header(Op::Request), &[]);
    let answer = std::iter::repeat_with(|| guest.next().0).find(|header| header.dst_port == 9998).unwrap();
    assert_eq!(answer.op, Op::Response as u16);
    listener.recv_timeout(PATIENCE).unwrap();
    assert_eq!(guest.driver.interrupt().failures(), []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_packets_neither_panic_nor_leak_connections(
        steps in vec(step(), 1..120),
        features in prop_oneof![Just(0), Just(EVENT_IDX)],
    ) {
        run(steps, features);
    }
}
