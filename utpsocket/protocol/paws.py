"""Protection against wrapped sequence numbers: data or an ack from 65,536 packets ago is refused by its age.

Separate because it judges by the peer's clock alone, and must never believe in it more than in the peer.

Facts. The 16 bits of a sequence number come again after 65,536 packets: 95 MB, which take a tenth of a second at
10 Gbit/s, and a datagram may be late by far more. A packet that is sent again is stamped anew. What may arrive now is
at most MAX_OUT_OF_ORDER_PACKETS ahead of the gap, so it was not sent before the packet so many before the gap had left;
and what is a turn of the numbers too old was sent when the gap was 57,344 packets further back, or earlier. Any time
between those two divides the ones from the others, whatever the speed of the path and however much it reorders.

An ack can be late, too: of packets that are on their way now it would say that they have arrived, and whoever sent them
would forget them. It names at most PROVEN_REORDER_PACKETS (peerlimits.py) beyond the first that is not acked, so the
same holds for the time at which acks were sent.

Decisions. The time is written down every MARK_PACKETS that came in order; what was sent before the last mark but one is
dropped and acked (RFC 7323 §5.3 does so by the last packet's time, which here would refuse what a retransmission has
overtaken). Timestamps may be anything: 0 says none; a mark counts only if the peer's clock and ours went alike since
the one before, and for FORGET_US, far less than half of the 71.6 minutes in which 32 bits of microseconds wrap. A clock
may be set back: when for RESTEP_US nothing came that is not refused, the marks are forgotten.

Sources: RFC 7323 §5.2, §5.3, §5.5.
"""

from __future__ import annotations

from array import array
from typing import Final

from utpsocket.protocol.reassembly import MAX_OUT_OF_ORDER_PACKETS
from utpsocket.protocol.times import HALF_TIMESTAMP, TIMESTAMP_MASK

MARK_PACKETS: Final = 2 * MAX_OUT_OF_ORDER_PACKETS
RESTEP_US: Final = 1_000_000
FORGET_US: Final = 600_000_000  # no datagram lives so long
_UNSTEADY_US: Final = 2_000_000  # queues that empty, and an eighth for clocks that differ


class Paws:
    """The peer's clock as its packets tell it in their order. All times µs, `_us` by the peer's clock.

    mark_seq          when the gap gets there, the next mark is set
    is_armed          the mark before the last is one to be believed
    mark_us           that mark
    refused_packets   how many were older
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
        """The stream begins there."""
        self.mark_seq = next_seq + MARK_PACKETS

    def on_in_order(self, next_seq: int, timestamp_us: int, *, now: int) -> None:
        """The gap is there now, and what moved it was sent at this time."""
        self._refused_since = -1
        if next_seq >= self.mark_seq:
            self._mark(timestamp_us, now=now)

    def on_acked(self, una_seq: int, timestamp_us: int, *, now: int) -> None:
        """The same of acks: what was sent at this time has moved the first number not acked there, or left it there."""
        self._refused_since = -1
        if una_seq >= self.mark_seq:
            self.mark_seq += (una_seq - self.mark_seq) // MARK_PACKETS * MARK_PACKETS
            self._mark(timestamp_us, now=now)

    def _mark(self, timestamp_us: int, *, now: int) -> None:
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
        """Whether a packet that would be new is of another turn of the numbers, and must be dropped."""
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

    # ── many at once: the same as one by one, or False ──

    def check_timestamp(self, first_seq: int, count: int, timestamp_us: int, timestamps: array[int] | None) -> bool:
        """Whether of a run that begins at the gap surely none is refused; timestamps: where they differ."""
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
        """That run has moved the gap by `count`, less than MARK_PACKETS."""
        self._refused_since = -1
        if first_seq + count >= self.mark_seq:
            self._mark(timestamp_us if timestamps is None else timestamps[self.mark_seq - 1 - first_seq], now=now)


def _is_before(timestamp_us: int, mark_us: int) -> bool:
    return 0 < (mark_us - timestamp_us) & TIMESTAMP_MASK < HALF_TIMESTAMP
