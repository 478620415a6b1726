"""Round trips, the retransmission timeout, and when a packet counts as lost.

It has no packets and sends none: outstanding.py passes in what each ack newly covered, and asks it about each flight.

A burst leaves at one instant, so "sent later" is decided by (time, sequence number). A packet may be lost if one that
left later has arrived. Where the path has never reordered, three of these mark it as lost (BEP 29 and every
implementation: docs/protocol.md §9); where it has, only time does, as in RACK. For a retransmission only time counts,
since its sequence number does not show when it left. After a lost tail no later packet arrives: after two round trips a
tail-loss probe makes the peer ack.

Example: a round trip of 50 ms, its variance 5 ms. The retransmission timeout is 50 + max(100, 20) = 150 ms, which the
least value makes 200 ms; a tail-loss probe leaves 100 + 10 + 10 = 120 ms after the last packet.

Sources: RFC 6298 (RTO), RFC 8985 (RACK-TLP), RFC 6675 (three SACKed packets), BEP 29 "packet loss".
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.flights import Acknowledged, Flight
from utpsocket.protocol.times import ACK_DELAY_US, HALF_TIMESTAMP, TIMESTAMP_MASK

MIN_RTO_US: Final = 200_000  # Linux's TCP_RTO_MIN; libutp has 1 s, libtorrent 500 ms, librqbit 200 ms
MAX_RTO_US: Final = 60_000_000  # RFC 6298 (2.5)
INITIAL_RTO_US: Final = 1_000_000  # RFC 6298 (2.1)
DUPLICATE_THRESHOLD: Final = 3  # BEP 29 "packet loss"; RFC 6675 DupThresh
# How long libutp delays an ack: without this a path with a steady round trip would time out on it.
_LIBUTP_ACK_DELAY_US: Final = 100_000
_GRANULARITY_US: Final = 1_000  # of epoll_wait(2)'s timeout; RFC 6298's G
# Most that variance adds to the time before a tail-loss probe. By feel: a lost last packet then costs two round trips
# and 40 ms at most.
_MAX_PROBE_MARGIN_US: Final = 30_000
# How far timeouts without a measured round trip keep the timeout up. By feel: round trips over satellites take 0.6 s.
_MAX_UNMEASURED_RTO_US: Final = 3_000_000
# Most quarters of the shortest round trip that the reordering window may grow to. RFC 8985 §6.2 step 4 has no bound but
# the smoothed round trip, which also holds here; this keeps the number small.
_MAX_REORDER_STEPS: Final = 16


class Recovery:
    """Round trips, timeouts, losses. Times µs.

    srtt_us, rtt_var_us       smoothed round trip and its variance, 0 before the first sample. RFC 6298 §2
    min_rtt_us, latest_rtt_us   the shortest sample and the last
    rto_us                    retransmission timeout with its backoff. BEP 29 "timeouts", RFC 6298 §2, §5.5
    probe_timeout_us          how long after the last packet a tail-loss probe leaves. RFC 8985 §7.2: two round trips
                              and the delay of an ack; here also the variance, or a busy machine would be probed
    backoff                   timeouts in a row
    timeouts_since_rtt        timeouts since a round trip was last measured
    probes_since_rtt          tail-loss probes since then
    rack_sent_us, rack_seq    of the packet that left last of all that have arrived, -1 before the first
    rack_rtt_us               its round trip
    rack_sent_through_bytes   payload of all that had left when that packet had
    has_reordered             the path has delivered a packet after one that left later
    reorder_steps             length of the reordering window, in quarters of the shortest round trip
    """

    __slots__ = (
        "backoff",
        "has_reordered",
        "latest_rtt_us",
        "min_rtt_us",
        "probe_timeout_us",
        "probes_since_rtt",
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
        self.srtt_us = 0
        self.rtt_var_us = 0
        self.min_rtt_us = 0
        self.latest_rtt_us = 0
        self.backoff = 0
        self.timeouts_since_rtt = 0
        self.probes_since_rtt = 0
        self.rack_sent_us = -1
        self.rack_seq = -1
        self.rack_rtt_us = 0
        self.rack_sent_through_bytes = 0
        self.has_reordered = False
        self.reorder_steps = 1
        self.rto_us = self.probe_timeout_us = INITIAL_RTO_US

    # ── time ──

    def _update_timeouts(self) -> None:
        """Compute both timeouts anew: round trip or backoff have changed. They are read more often than they change."""
        srtt_us, base = self.srtt_us, INITIAL_RTO_US
        if srtt_us:
            spread_us = 4 * self.rtt_var_us
            base = srtt_us + (spread_us if spread_us > _LIBUTP_ACK_DELAY_US else _LIBUTP_ACK_DELAY_US)
            if base < MIN_RTO_US:
                base = MIN_RTO_US
        rto_us = base << min(self.backoff, 16) if self.backoff else base
        if self.timeouts_since_rtt > self.backoff:
            # Karn's algorithm: if round trips have become longer than the timeout, every packet is sent again before
            # its ack comes, so none is ever measured. So the timeout stays as long as it has grown until one is
            # measured.
            rto_us = max(rto_us, min(base << min(self.timeouts_since_rtt, 16), _MAX_UNMEASURED_RTO_US))
        probes = self.probes_since_rtt
        if probes > 1:
            # Karn's algorithm again: each packet is probed for before its ack comes. A single probe may have been for a
            # loss.
            rto_us = max(rto_us, min(base << min(probes - 1, 16), _MAX_UNMEASURED_RTO_US))
        if rto_us > MAX_RTO_US:
            rto_us = MAX_RTO_US
        self.rto_us = rto_us
        if srtt_us:
            margin_us = 2 * self.rtt_var_us
            if margin_us < _GRANULARITY_US:
                margin_us = _GRANULARITY_US
            elif margin_us > _MAX_PROBE_MARGIN_US:
                margin_us = _MAX_PROBE_MARGIN_US
            probe_us = 2 * srtt_us + ACK_DELAY_US + margin_us
            if probes:
                probe_us <<= min(probes, 16)
            self.probe_timeout_us = probe_us if probe_us < rto_us else rto_us

    def on_rtt(self, rtt_us: int) -> None:
        """A round trip was measured, of a packet that was sent once only (Karn's algorithm). RFC 6298 §2."""
        if rtt_us < 1:
            rtt_us = 1
        self.latest_rtt_us = rtt_us
        self.timeouts_since_rtt = 0
        srtt_us, probes = self.srtt_us, self.probes_since_rtt
        if probes:
            self.probes_since_rtt = 0
        if not srtt_us or (probes > 1 and rtt_us > 2 * srtt_us):
            # The first one; or round trips have become so long that the average of before says nothing about them (RFC
            # 6298 §5.7).
            self.srtt_us = rtt_us
            self.rtt_var_us = rtt_us // 2
            if not srtt_us or rtt_us < self.min_rtt_us:
                self.min_rtt_us = rtt_us
            self._update_timeouts()
            return
        change_us = rtt_us - srtt_us
        self.rtt_var_us += ((change_us if change_us >= 0 else -change_us) - self.rtt_var_us) // 4
        srtt_us += change_us // 8
        self.srtt_us = srtt_us if srtt_us > 1 else 1
        if rtt_us < self.min_rtt_us:
            self.min_rtt_us = rtt_us
        self._update_timeouts()

    def on_timeout(self) -> None:
        """A retransmission timeout ran out."""
        self.backoff += 1
        self.timeouts_since_rtt += 1
        self._update_timeouts()

    def on_tail_probe(self) -> None:
        """A tail-loss probe leaves: the next one of packets whose round trip is not measured waits twice as long."""
        self.probes_since_rtt += 1
        self._update_timeouts()

    def on_progress(self) -> None:
        """Something was newly acked: the backoff ends."""
        if self.backoff:
            self.backoff = 0
            self._update_timeouts()

    def on_window_open(self) -> None:
        """The peer's window has opened: timeouts of zero-window probes say nothing about the path, so the backoff
        ends.
        """
        if self.backoff or self.timeouts_since_rtt:
            self.backoff = self.timeouts_since_rtt = 0
            self._update_timeouts()

    # ── loss ──

    def on_delivered(self, acknowledged: Acknowledged, echo_us: int, *, now: int) -> bool:
        """Packets were newly acked or sacked. RFC 8985 §6.2 steps 1 to 4.

        acknowledged   which
        echo_us        when the last packet left that the peer had received as it sent this ack: our clock's lower 32
                       bits; -1 if unknown
        now            µs
        -> bool        whether the ack shows that a packet was retransmitted although the original had arrived
        """
        if acknowledged.sends == 1:
            # Only if the packet that left last of them was no retransmission: else the ack was waiting for that one,
            # and the others, which had arrived before, would give a sample that is far too long.
            self.on_rtt(now - acknowledged.sent_us)
        if acknowledged.reordered_seq >= 0:
            self.has_reordered = True
        rtt_us = now - acknowledged.sent_us
        if acknowledged.sends > 1:
            if echo_us >= 0 and (echo_us - acknowledged.sent_us) & TIMESTAMP_MASK >= HALF_TIMESTAMP:
                # When the peer sent the ack, the retransmission had not left yet: so the original had arrived, and the
                # reordering window was too short. RFC 3522 §3.2.
                self.has_reordered = True
                self.reorder_steps = min(_MAX_REORDER_STEPS, self.reorder_steps + 1)
                return True
            if echo_us < 0 and rtt_us < self.min_rtt_us:
                # RFC 8985 §6.2 step 2: possibly the original's ack. It is no proof, since min_rtt_us may contain the
                # time that packets waited in the peer's socket.
                return False
        if (acknowledged.sent_us, acknowledged.seq) > (self.rack_sent_us, self.rack_seq):
            self.rack_sent_us = acknowledged.sent_us
            self.rack_seq = acknowledged.seq
            self.rack_sent_through_bytes = acknowledged.sent_through_bytes
            self.rack_rtt_us = rtt_us
        return False

    @property
    def reorder_window_us(self) -> int:
        """How long a packet may arrive after one that left later, without being lost. RFC 8985 §6.2 step 4."""
        return min(self.srtt_us, self.reorder_steps * max(_GRANULARITY_US, self.min_rtt_us // 4))

    def on_later_arrival(self, sent_us: int, seq: int, *, now: int) -> None:
        """A packet has arrived that left when this one did, or later; which packet it is is not known."""
        if (sent_us, seq) > (self.rack_sent_us, self.rack_seq):
            self.rack_sent_us, self.rack_seq, self.rack_rtt_us = sent_us, seq, now - sent_us

    def lost_at(self, flight: Flight, last_seq: int, sacked_above: int) -> int | None:
        """When a flight that is in flight counts as lost: a time, perhaps in the past, or None while no packet that
        left later has arrived.

        last_seq       the last of its packets that are asked about
        sacked_above   how many packets with a higher number have been sacked
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
