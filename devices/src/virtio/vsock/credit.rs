//! Credit-based flow control of one connection (virtio 1.2 § 5.10.6.3), one type per direction. All counters are
//! modulo 2^32.

use std::num::Wrapping;

use super::packet::MAX_PAYLOAD;

/// How much may be sent to the guest: its buffer space less what is on the way.
#[derive(Debug, Default)]
pub(super) struct SendCredit {
    peer_buf_alloc: u32,
    peer_fwd_cnt: Wrapping<u32>,
    sent: Wrapping<u32>,
}

impl SendCredit {
    /// Takes the credit fields that every packet of the guest carries.
    pub(super) fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.peer_buf_alloc = buf_alloc;
        // The guest cannot have passed on more than was sent. A count outside what is on the way is an old one:
        // Linux stamps packets before it queues them, so two threads may send theirs in the wrong order.
        let progress = Wrapping(fwd_cnt) - self.peer_fwd_cnt;
        if progress <= self.in_flight() {
            self.peer_fwd_cnt = Wrapping(fwd_cnt);
        }
    }

    /// Bytes that may be sent now.
    pub(super) fn available(&self) -> u32 {
        // The guest may shrink its buffer below what is on the way.
        self.peer_buf_alloc.saturating_sub(self.in_flight().0)
    }

    /// Counts `len` bytes as sent.
    pub(super) fn consume(&mut self, len: u32) {
        self.sent += len;
    }

    fn in_flight(&self) -> Wrapping<u32> {
        self.sent - self.peer_fwd_cnt
    }
}

/// How much the guest may send, and when to tell it more.
#[derive(Debug)]
pub(super) struct ReceiveCredit {
    buf_alloc: u32,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    /// The forward count the guest was told last.
    advertised: Wrapping<u32>,
}

/// The guest sent more than it had credit for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes of payload against a credit of {credit}")]
pub(super) struct CreditExceeded {
    len: u32,
    credit: u32,
}

impl ReceiveCredit {
    /// For a receive buffer of `buf_alloc` bytes.
    pub(super) fn new(buf_alloc: u32) -> Self {
        ReceiveCredit { buf_alloc, received: Wrapping(0), forwarded: Wrapping(0), advertised: Wrapping(0) }
    }

    /// Counts `len` bytes from the guest, if it had the credit.
    ///
    /// What counts is the credit that the guest was told of, so that at most `buf_alloc` bytes are ever buffered.
    pub(super) fn receive(&mut self, len: u32) -> Result<(), CreditExceeded> {
        let credit = self.guest_credit();
        if len > credit {
            return Err(CreditExceeded { len, credit });
        }
        self.received += len;
        Ok(())
    }

    /// Counts `len` received bytes as passed on (or dropped because nobody reads them any more).
    pub(super) fn forward(&mut self, len: u32) {
        self.forwarded += len;
    }

    /// The buf_alloc and fwd_cnt fields for a packet that is about to be sent.
    pub(super) fn advertise(&mut self) -> (u32, u32) {
        self.advertised = self.forwarded;
        (self.buf_alloc, self.forwarded.0)
    }

    /// Whether the guest should be told of freed space by a packet of its own: it is short of credit (so it may be
    /// waiting), or half of the buffer would be news to it.
    pub(super) fn update_due(&self) -> bool {
        let news = (self.forwarded - self.advertised).0;
        news > 0 && (self.guest_credit() < MAX_PAYLOAD || news >= self.buf_alloc / 2)
    }

    /// Bytes the guest believes it may send.
    fn guest_credit(&self) -> u32 {
        self.buf_alloc.saturating_sub((self.received - self.advertised).0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUFFER: u32 = 256 * 1024;

    fn send_credit(buf_alloc: u32) -> SendCredit {
        let mut credit = SendCredit::default();
        credit.update(buf_alloc, 0);
        credit
    }

    #[test]
    fn nothing_may_be_sent_before_the_guest_told_its_buffer() {
        assert_eq!(SendCredit::default().available(), 0);
    }

    #[test]
    fn sending_uses_credit_and_the_forward_count_gives_it_back() {
        let mut credit = send_credit(1000);
        credit.consume(600);
        assert_eq!(credit.available(), 400);
        credit.consume(400);
        assert_eq!(credit.available(), 0);
        credit.update(1000, 700);
        assert_eq!(credit.available(), 700);
    }

    #[test]
    fn a_buffer_that_shrinks_below_what_is_on_the_way_leaves_no_credit() {
        let mut credit = send_credit(1000);
        credit.consume(800);
        credit.update(500, 0);
        assert_eq!(credit.available(), 0);
        credit.update(500, 800);
        assert_eq!(credit.available(), 500);
    }

    #[test]
    fn a_forward_count_that_goes_back_or_ahead_of_what_was_sent_is_ignored() {
        let mut credit = send_credit(1000);
        credit.consume(600);
        credit.update(1000, 500);
        credit.update(1000, 400);
        assert_eq!(credit.available(), 900);
        credit.update(1000, 601);
        assert_eq!(credit.available(), 900);
        credit.update(u32::MAX, u32::MAX);
        assert_eq!(credit.available(), u32::MAX - 100);
    }

    #[test]
    fn send_counters_wrap() {
        let mut credit = send_credit(1 << 20);
        for round in 1..=5000u32 {
            credit.consume(1 << 20);
            assert_eq!(credit.available(), 0);
            credit.update(1 << 20, (1u32 << 20).wrapping_mul(round));
            assert_eq!(credit.available(), 1 << 20);
        }
    }

    #[test]
    fn the_guest_may_fill_the_buffer_and_not_a_byte_more() {
        let mut credit = ReceiveCredit::new(1000);
        credit.receive(1000).unwrap();
        credit.receive(0).unwrap();
        assert_eq!(credit.receive(1), Err(CreditExceeded { len: 1, credit: 0 }));
    }

    #[test]
    fn freed_space_is_credit_only_once_the_guest_was_told() {
        let mut credit = ReceiveCredit::new(1000);
        credit.receive(1000).unwrap();
        credit.forward(300);
        assert!(credit.receive(1).is_err());
        assert_eq!(credit.advertise(), (1000, 300));
        credit.receive(300).unwrap();
        assert!(credit.receive(1).is_err());
    }

    #[test]
    fn an_update_is_due_when_the_guest_runs_short_or_half_the_buffer_is_news() {
        let mut credit = ReceiveCredit::new(BUFFER);
        assert!(!credit.update_due());
        credit.receive(100).unwrap();
        credit.forward(100);
        assert!(!credit.update_due(), "plenty of credit is left");
        credit.receive(BUFFER / 2 - 100).unwrap();
        credit.forward(BUFFER / 2 - 100);
        assert!(credit.update_due());
        credit.advertise();
        assert!(!credit.update_due());
        credit.receive(BUFFER).unwrap();
        assert!(!credit.update_due(), "nothing to tell");
        credit.forward(1);
        assert!(credit.update_due(), "the guest may be waiting for this byte");
    }

    #[test]
    fn receive_counters_wrap() {
        let mut credit = ReceiveCredit::new(1 << 20);
        for round in 1..=5000u32 {
            credit.receive(1 << 20).unwrap();
            assert!(credit.receive(1).is_err());
            credit.forward(1 << 20);
            assert_eq!(credit.advertise(), (1 << 20, (1u32 << 20).wrapping_mul(round)));
        }
    }
}
