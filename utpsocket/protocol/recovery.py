"""RTT, retransmission timeout, and when a packet counts as lost.

Separate because it is judgement over numbers: it holds no packet and sends none. The connection's send half tells
it what each ack newly covered and asks it about each flight.

Facts, then the decisions. A burst leaves in one instant, so "sent later" is (time, sequence number). A later
packet's arrival is evidence of loss: three of them are proof where the path has never reordered (BEP 29 and every
implementation: docs/protocol.md §9); where it has, only time is, as RACK does it. A retransmission is judged by time
alone, since its sequence number says nothing about when it left. A lost tail has no later packet to speak for it:
after two round trips a probe draws the ack that says so.

Sources: RFC 6298 (RTO), RFC 8985 (RACK-TLP), RFC 6675 (three SACKed packets), BEP 29 "packet loss".
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.flights import Acknowledged, Flight
from utpsocket.protocol.times import HALF_TIMESTAMP, MAX_ACK_DELAY_US, TIMESTAMP_MASK

MIN_RTO_US: Final = 200_000  # as Linux; libutp has 1 s, libtorrent 500 ms, librqbit 200 ms
MAX_RTO_US: Final = 60_000_000  # RFC 6298 (2.5)
INITIAL_RTO_US: Final = 1_000_000  # RFC 6298 (2.1)
DUPLICATE_THRESHOLD: Final = 3  # BEP 29 "packet loss"; RFC 6675 DupThresh
_FOREIGN_ACK_DELAY_US: Final = 100_000  # libutp's: a path without variance must not time out on it
_GRANULARITY_US: Final = 1_000  # epoll's timeout
_MAX_PROBE_MARGIN_US: Final = 30_000  # a lost last packet costs two round trips and 50 ms, no more
_MAX_UNMEASURED_RTO_US: Final = 3_000_000  # no path worth speaking of takes longer for a round trip
_MAX_REORDER_STEPS: Final = 16  # RFC 8985 §6.2 step 4: the window never exceeds one SRTT anyway


class Recovery:
    """Judges loss and keeps time. All times µs.

    rto_us             retransmission timeout with its backoff. BEP 29 "timeouts", RFC 6298 §2, §5.5
    probe_timeout_us   how long after the last packet left a tail-loss probe leaves. RFC 8985 §7.2: two round trips and
                       what the peer may wait before it acks; here also what the round trips vary by, or a busy machine
                       would be probed
    """

    __slots__ = (
        "backoff",
        "has_reordered",
        "latest_rtt_us",
        "min_rtt_us",
        "probe_timeout_us",
        "rack_rtt_us",
        "rack_sent_through_bytes",
        "rack_sent_us",
        "rack_seq",
        "reorder_steps",
        "rto_us",
        "rtt_var_us",
        "srtt_us",
        "timeouts_since_rtt",
    )

    def __init__(self) -> None:
        self.srtt_us = 0  # 0: no sample yet
        self.rtt_var_us = 0
        self.min_rtt_us = 0
        self.latest_rtt_us = 0
        self.backoff = 0  # consecutive timeouts
        self.timeouts_since_rtt = 0  # timeouts since a round trip was last measured
        self.rack_sent_us = -1
        self.rack_seq = -1
        self.rack_rtt_us = 0
        self.rack_sent_through_bytes = 0
        self.has_reordered = False
        self.reorder_steps = 1
        self.rto_us = self.probe_timeout_us = INITIAL_RTO_US

    # ── time ──

    def _update_timeouts(self) -> None:
        """The round trips or the backoff are others: so are the timeouts. They are asked for more often than that."""
        base = INITIAL_RTO_US
        if self.srtt_us:
            base = max(MIN_RTO_US, self.srtt_us + max(_FOREIGN_ACK_DELAY_US, 4 * self.rtt_var_us))
        rto_us = base << min(self.backoff, 16)
        if self.timeouts_since_rtt > self.backoff:
            # Karn and Partridge: where round trips have outgrown the timeout, whatever is sent is sent again before its
            # ack can come, so none is ever measured. What the timeouts have grown to therefore holds until one is.
            rto_us = max(rto_us, min(base << min(self.timeouts_since_rtt, 16), _MAX_UNMEASURED_RTO_US))
        self.rto_us = rto_us = min(MAX_RTO_US, rto_us)
        if self.srtt_us:
            margin_us = min(max(_GRANULARITY_US, 2 * self.rtt_var_us), _MAX_PROBE_MARGIN_US)
            self.probe_timeout_us = min(2 * self.srtt_us + MAX_ACK_DELAY_US + margin_us, rto_us)

    def on_rtt(self, rtt_us: int) -> None:
        """A round trip of a packet sent once only (Karn's rule is the caller's). RFC 6298 §2."""
        rtt_us = max(1, rtt_us)
        self.latest_rtt_us = rtt_us
        self.timeouts_since_rtt = 0
        if not self.srtt_us:
            self.srtt_us = rtt_us
            self.rtt_var_us = rtt_us // 2
            self.min_rtt_us = rtt_us
            self._update_timeouts()
            return
        self.rtt_var_us += (abs(self.srtt_us - rtt_us) - self.rtt_var_us) // 4
        self.srtt_us = max(1, self.srtt_us + (rtt_us - self.srtt_us) // 8)
        if rtt_us < self.min_rtt_us:
            self.min_rtt_us = rtt_us
        self._update_timeouts()

    def on_timeout(self) -> None:
        """A retransmission timeout ran out."""
        self.backoff += 1
        self.timeouts_since_rtt += 1
        self._update_timeouts()

    def on_progress(self) -> None:
        """Something new was acknowledged."""
        if self.backoff:
            self.backoff = 0
            self._update_timeouts()

    def on_window_open(self) -> None:
        """The peer takes data again: the timeouts behind its closed window said nothing about the path."""
        if self.backoff or self.timeouts_since_rtt:
            self.backoff = self.timeouts_since_rtt = 0
            self._update_timeouts()

    # ── loss ──

    def on_delivered(self, acknowledged: Acknowledged, echo_us: int, *, now: int) -> bool:
        """An ack newly covered packets. RFC 8985 §6.2 steps 1 to 4. Returns whether it shows that a packet was
        sent again for nothing.

        echo_us   the peer's last packet had arrived when this one of ours had left, or earlier: 32 bits, -1 if unknown
        """
        if acknowledged.sends == 1:
            # Where a retransmission left later, it drew the ack: what had waited behind the hole was not on its way
            # for so long, and one such sample would make the next timeout minutes.
            self.on_rtt(now - acknowledged.sent_us)
        if acknowledged.reordered_seq >= 0:
            self.has_reordered = True
        rtt_us = now - acknowledged.sent_us
        if acknowledged.sends > 1:
            if echo_us >= 0 and (echo_us - acknowledged.sent_us) & TIMESTAMP_MASK >= HALF_TIMESTAMP:
                # Whatever the peer has heard left before the retransmission: the original had arrived, so patience was
                # too short. RFC 3522 §3.2.
                self.has_reordered = True
                self.reorder_steps = min(_MAX_REORDER_STEPS, self.reorder_steps + 1)
                return True
            if echo_us < 0 and rtt_us < self.min_rtt_us:
                # RFC 8985 §6.2 step 2: perhaps the original's. No proof of it: a peer that acks once for all that has
                # waited in its socket's buffer takes longer than the path does.
                return False
        if (acknowledged.sent_us, acknowledged.seq) > (self.rack_sent_us, self.rack_seq):
            self.rack_sent_us = acknowledged.sent_us
            self.rack_seq = acknowledged.seq
            self.rack_sent_through_bytes = acknowledged.sent_through_bytes
            self.rack_rtt_us = rtt_us
        return False

    @property
    def reorder_window_us(self) -> int:
        """How much later than a later packet one may still arrive. RFC 8985 §6.2 step 4."""
        return min(self.srtt_us, self.reorder_steps * max(_GRANULARITY_US, self.min_rtt_us // 4))

    def on_later_arrival(self, sent_us: int, seq: int, *, now: int) -> None:
        """A packet has arrived that left no earlier than this one; which it was, nobody says."""
        if (sent_us, seq) > (self.rack_sent_us, self.rack_seq):
            self.rack_sent_us, self.rack_seq, self.rack_rtt_us = sent_us, seq, now - sent_us

    def lost_at(self, flight: Flight, last_seq: int, sacked_above: int) -> int | None:
        """When a flight in flight, up to its packet last_seq, counts as lost: a time, perhaps in the past, or None
        while nothing sent later has arrived.
        """
        if not self.has_reordered and flight.sends == 1 and sacked_above >= DUPLICATE_THRESHOLD:
            return 0
        if (flight.sent_us, last_seq) >= (self.rack_sent_us, self.rack_seq):
            return None
        return flight.sent_us + self.rack_rtt_us + self.reorder_window_us

    def _check(self) -> None:
        """Invariants, for tests and the simulator."""
        assert self.srtt_us >= 0 and self.rtt_var_us >= 0
        assert MIN_RTO_US <= self.rto_us <= MAX_RTO_US
