"""Protection against wrapped sequence numbers: packets from 65,536 packets ago are refused by their age.

Facts. The 16 bits of a sequence number come again after 65,536 packets: 95 MB, a tenth of a second at 10 Gbit/s, and a
datagram may be late by much more. A retransmission has a new timestamp. Packets first leave in the order of their
numbers. So a packet that may be taken now, which is at most MAX_OUT_OF_ORDER_PACKETS beyond the first missing one, left
after all that are before the first missing one. A packet whose number is one wrap too old left when the first missing
packet was 57,344 packets further back, or earlier. Any time between those two separates them, however fast the path is
and however much it reorders.

An ack can be late as well: it would ack packets that are in flight now, and their sender would forget them. A valid ack
names at most LARGE_REORDER_PACKETS (peerlimits.py) beyond the first that is not acked, so the same holds for the times
at which acks were sent.

Decisions. The peer's timestamp is noted every MARK_PACKETS that came in order. What was sent before the last mark but
one is dropped and acked. (RFC 7323 §5.3 compares with the last packet's time, which here would refuse what a
retransmission has overtaken.) A timestamp may be anything, and 0 means none. So a mark counts only if the peer's clock
and ours have advanced alike since the mark before, and for FORGET_US, far less than half of the 71.6 minutes in which
32 bits of microseconds wrap. A clock may be set back: if for RESTEP_US everything was refused, the marks are forgotten.

Sources: RFC 7323 §5.2, §5.3, §5.5.
"""

from __future__ import annotations

from array import array
from typing import Final

from utpsocket.protocol.reassembly import MAX_OUT_OF_ORDER_PACKETS
from utpsocket.protocol.times import HALF_TIMESTAMP, TIMESTAMP_MASK

# So that the mark before the last is between 16,384 and 32,768 packets old: older than what may arrive now, and younger
# than what is one wrap too old.
MARK_PACKETS: Final = 2 * MAX_OUT_OF_ORDER_PACKETS
RESTEP_US: Final = 1_000_000  # by feel: a few round trips
FORGET_US: Final = 600_000_000  # no datagram is in a network for so long
# How much the two clocks may differ in what has passed between two marks: queues fill and drain, and an eighth of the
# time for clocks that run differently. By feel.
_UNSTEADY_US: Final = 2_000_000


class Paws:
    """The marks of one direction. Times µs; names in `_us` are by the peer's clock, in `_at` by ours.

    mark_seq          the next mark is set when all before this number has come, or is acked
    is_armed          the mark before the last counts
    mark_us           that mark
    refused_packets   how many packets were older

    _mark_at          when that mark was set
    _last_us, _last_at   the last mark, 0 for none
    _refused_since    since when everything has been refused, -1: something was not
    """

    __slots__ = (
        "_last_at",
        "_last_us",
        "_mark_at",
        "_refused_since",
        "is_armed",
        "mark_seq",
        "mark_us",
        "refused_packets",
    )

    def __init__(self) -> None:
        self.mark_seq = MARK_PACKETS
        self.is_armed = False
        self.mark_us = 0
        self.refused_packets = 0
        self._mark_at = 0
        self._last_us = 0
        self._last_at = 0
        self._refused_since = -1

    def start(self, next_seq: int) -> None:
        """Have the stream begin with this number."""
        self.mark_seq = next_seq + MARK_PACKETS

    def on_in_order(self, next_seq: int, timestamp_us: int, *, now: int) -> None:
        """All before next_seq has come, the last packet of it with this timestamp."""
        self._refused_since = -1
        if next_seq >= self.mark_seq:
            self._mark(timestamp_us, now=now)

    def on_acked(self, una_seq: int, timestamp_us: int, *, now: int) -> None:
        """All before una_seq is acked, by a packet with this timestamp or before it."""
        self._refused_since = -1
        if una_seq >= self.mark_seq:
            self.mark_seq += (una_seq - self.mark_seq) // MARK_PACKETS * MARK_PACKETS
            self._mark(timestamp_us, now=now)

    def _mark(self, timestamp_us: int, *, now: int) -> None:
        """Set the next mark; the last one becomes the one that counts."""
        self.mark_seq += MARK_PACKETS
        self.is_armed = False
        if self._last_us and timestamp_us:
            elapsed_us = now - self._last_at
            peer_elapsed_us = (timestamp_us - self._last_us + HALF_TIMESTAMP & TIMESTAMP_MASK) - HALF_TIMESTAMP
            is_steady = peer_elapsed_us >= 0 and abs(peer_elapsed_us - elapsed_us) < _UNSTEADY_US + elapsed_us // 8
            self.is_armed = is_steady and elapsed_us < FORGET_US
        self.mark_us, self._mark_at = self._last_us, self._last_at
        self._last_us, self._last_at = timestamp_us, now

    def drop_if_wrapped(self, timestamp_us: int, *, now: int) -> bool:
        """Whether a packet that would be new is from before the mark, and so must be dropped; it is counted."""
        if not self.is_armed or not timestamp_us or not _is_before(timestamp_us, self.mark_us):
            return False
        if now - self._mark_at > FORGET_US:
            return False
        if self._refused_since < 0:
            self._refused_since = now
        elif now - self._refused_since >= RESTEP_US:
            self._refused_since = -1
            self._last_us = 0
            self.is_armed = False
            return False
        self.refused_packets += 1
        return True

    # ── runs: the same as packet by packet, or False ──

    def check_timestamp(self, first_seq: int, count: int, timestamp_us: int, timestamps: array[int] | None) -> bool:
        """Whether certainly no packet of a run would be refused.

        first_seq      of the run: the next number in order
        count          packets of the run; 0 for the acks in it
        timestamp_us   of the first packet
        timestamps     of all, None if they are equal
        """
        is_marking = first_seq + count >= self.mark_seq
        if not self.is_armed and not is_marking:
            return True
        if timestamps is not None:
            timestamp_us = min(timestamps)
            if max(timestamps) - timestamp_us >= HALF_TIMESTAMP >> 1:
                return False
        if self.is_armed and _is_before(timestamp_us, self.mark_us):
            return False
        return not is_marking or not _is_before(timestamp_us, self._last_us)

    def on_run(self, first_seq: int, count: int, timestamp_us: int, timestamps: array[int] | None, *, now: int) -> None:
        """That run, of fewer than MARK_PACKETS, has come in order."""
        self._refused_since = -1
        if first_seq + count >= self.mark_seq:
            self._mark(timestamp_us if timestamps is None else timestamps[self.mark_seq - 1 - first_seq], now=now)


def _is_before(timestamp_us: int, mark_us: int) -> bool:
    return 0 < (mark_us - timestamp_us) & TIMESTAMP_MASK < HALF_TIMESTAMP
