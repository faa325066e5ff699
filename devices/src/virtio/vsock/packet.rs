//! The header every packet begins with (virtio 1.2 § 5.10.6), and the numbers in it.
//!
//! `virtio_vsock::packet::VsockPacket` is not used: it wants the header and the payload in one descriptor each, while
//! the specification lets a driver cut a packet anywhere (§ 2.7.4) and Linux does so since 6.7 (one descriptor per page
//! of a zero-copy or large send). The tests compare this header with that crate's.

use vm_memory::{ByteValued, Le16, Le32, Le64};

/// Bytes of a header.
pub(super) const HEADER_SIZE: usize = size_of::<WireHeader>();
/// The host's well-known CID (VMADDR_CID_HOST).
pub(super) const HOST_CID: u64 = 2;
/// VIRTIO_VSOCK_TYPE_STREAM, the only socket type without VIRTIO_VSOCK_F_SEQPACKET.
pub(super) const TYPE_STREAM: u16 = 1;
/// The largest payload of one packet, as in Linux (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE): drivers reject larger ones, so
/// does this device.
pub(super) const MAX_PAYLOAD: u32 = 64 * 1024;

/// The sender of this VIRTIO_VSOCK_OP_SHUTDOWN will not receive any more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// The sender of this VIRTIO_VSOCK_OP_SHUTDOWN will not send any more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both directions.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for (§ 5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Op {
    /// Opens a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Refuses or ends one.
    Reset = 3,
    /// Announces that one or both directions end.
    Shutdown = 4,
    /// Carries payload.
    ReadWrite = 5,
    /// Tells the sender's buffer space.
    CreditUpdate = 6,
    /// Asks for a credit update.
    CreditRequest = 7,
}

impl Op {
    /// The operation of this number; `None` for 0 (INVALID) and for numbers nobody has assigned.
    pub(super) fn from_number(number: u16) -> Option<Op> {
        const ALL: [Op; 7] =
            [Op::Request, Op::Response, Op::Reset, Op::Shutdown, Op::ReadWrite, Op::CreditUpdate, Op::CreditRequest];
        ALL.into_iter().find(|op| *op as u16 == number)
    }
}

/// A header, decoded. `op` and `socket_type` are kept as numbers: the peer may send any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of payload that follow.
    pub(super) len: u32,
    pub(super) socket_type: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Bytes of receive buffer the sender has for this connection.
    pub(super) buf_alloc: u32,
    /// Bytes of payload the sender has passed on to its user so far, modulo 2^32.
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn from_bytes(bytes: &[u8; HEADER_SIZE]) -> Header {
        let mut wire = WireHeader::default();
        wire.as_mut_slice().copy_from_slice(bytes);
        Header {
            src_cid: wire.src_cid.into(),
            dst_cid: wire.dst_cid.into(),
            src_port: wire.src_port.into(),
            dst_port: wire.dst_port.into(),
            len: wire.len.into(),
            socket_type: wire.socket_type.into(),
            op: wire.op.into(),
            flags: wire.flags.into(),
            buf_alloc: wire.buf_alloc.into(),
            fwd_cnt: wire.fwd_cnt.into(),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let wire = WireHeader {
            src_cid: self.src_cid.into(),
            dst_cid: self.dst_cid.into(),
            src_port: self.src_port.into(),
            dst_port: self.dst_port.into(),
            len: self.len.into(),
            socket_type: self.socket_type.into(),
            op: self.op.into(),
            flags: self.flags.into(),
            buf_alloc: self.buf_alloc.into(),
            fwd_cnt: self.fwd_cnt.into(),
        };
        let mut bytes = [0; HEADER_SIZE];
        bytes.copy_from_slice(wire.as_slice());
        bytes
    }

    /// The reset that answers this packet when no connection stands behind it: same type, ends swapped.
    pub(super) fn reset_reply(&self) -> Header {
        Header {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            socket_type: self.socket_type,
            op: Op::Reset as u16,
            ..Header::default()
        }
    }
}

/// The header as it lies in guest memory: little-endian, packed.
#[derive(Clone, Copy, Default)]
#[repr(C, packed)]
struct WireHeader {
    src_cid: Le64,
    dst_cid: Le64,
    src_port: Le32,
    dst_port: Le32,
    len: Le32,
    socket_type: Le16,
    op: Le16,
    flags: Le32,
    buf_alloc: Le32,
    fwd_cnt: Le32,
}

// SAFETY: only integers, packed so that there is no padding; every bit pattern is valid.
unsafe impl ByteValued for WireHeader {}

#[cfg(test)]
mod tests {
    use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};

    use super::*;

    const SAMPLE: Header = Header {
        src_cid: 0x0102_0304_0506_0708,
        dst_cid: 0x1112_1314_1516_1718,
        src_port: 0x2122_2324,
        dst_port: 0x3132_3334,
        len: 0x4142_4344,
        socket_type: 0x5152,
        op: 0x6162,
        flags: 0x7172_7374,
        buf_alloc: 0x8182_8384,
        fwd_cnt: 0x9192_9394,
    };

    #[test]
    fn the_header_lies_in_memory_as_rust_vmm_lays_it_out() {
        assert_eq!(HEADER_SIZE, PKT_HEADER_SIZE);
        let mut memory = [0u8; HEADER_SIZE];
        // SAFETY: `memory` outlives the packet and nothing else touches it meanwhile.
        let mut packet = unsafe { VsockPacket::new(&mut memory, None) }.unwrap();
        packet.set_header_from_raw(&SAMPLE.to_bytes()).unwrap();
        assert_eq!((packet.src_cid(), packet.dst_cid()), (SAMPLE.src_cid, SAMPLE.dst_cid));
        assert_eq!((packet.src_port(), packet.dst_port()), (SAMPLE.src_port, SAMPLE.dst_port));
        assert_eq!((packet.len(), packet.type_(), packet.op()), (SAMPLE.len, SAMPLE.socket_type, SAMPLE.op));
        assert_eq!(
            (packet.flags(), packet.buf_alloc(), packet.fwd_cnt()),
            (SAMPLE.flags, SAMPLE.buf_alloc, SAMPLE.fwd_cnt)
        );
    }

    #[test]
    fn a_header_survives_encoding_and_decoding() {
        assert_eq!(Header::from_bytes(&SAMPLE.to_bytes()), SAMPLE);
    }

    #[test]
    fn operations_have_the_numbers_of_the_specification() {
        assert_eq!(Op::from_number(0), None);
        assert_eq!(Op::from_number(1), Some(Op::Request));
        assert_eq!(Op::from_number(5), Some(Op::ReadWrite));
        assert_eq!(Op::from_number(7), Some(Op::CreditRequest));
        assert_eq!(Op::from_number(8), None);
    }

    #[test]
    fn a_reset_reply_swaps_the_ends_and_carries_nothing_else() {
        let reply = SAMPLE.reset_reply();
        assert_eq!((reply.src_cid, reply.dst_cid), (SAMPLE.dst_cid, SAMPLE.src_cid));
        assert_eq!((reply.src_port, reply.dst_port), (SAMPLE.dst_port, SAMPLE.src_port));
        assert_eq!((reply.op, reply.socket_type), (3, SAMPLE.socket_type));
        assert_eq!((reply.len, reply.flags, reply.buf_alloc, reply.fwd_cnt), (0, 0, 0, 0));
    }
}
