"""What a congestion controller must do.

A base class and no Protocol: the compiled build calls the methods of a class that it knows without looking up names.
"""

from __future__ import annotations

from typing import ClassVar, Final

INITIAL_PACKETS: Final = 10  # RFC 6928
# The same in bytes, where packets begin small and will soon be larger: ten packets of 1,380 bytes.
_MIN_INITIAL_WINDOW_BYTES: Final = 13_800
MIN_PACKETS: Final = 2  # RFC 6817 MIN_CWND; the least ssthresh of RFC 5681 §3.1


class Controller:
    """What the sending half uses of a congestion controller. Bytes are payload, times µs.

    NAME               what UTP_CONGESTION and TCP_CONGESTION call it
    window_bytes       how much may be in flight
    is_slow_start      whether pacing should leave room for a window that doubles
    segment_bytes      payload of a full packet
    target_delay_us    the queueing delay to keep to (UTP_TARGET_DELAY), where the controller has such a thing
    """

    __slots__ = ("is_slow_start", "segment_bytes", "target_delay_us", "window_bytes")

    NAME: ClassVar[str] = ""

    def __init__(self, segment_bytes: int, target_delay_us: int = 0) -> None:
        self.segment_bytes = segment_bytes
        self.target_delay_us = target_delay_us
        self.window_bytes = max(INITIAL_PACKETS * segment_bytes, _MIN_INITIAL_WINDOW_BYTES)
        self.is_slow_start = True

    def take_over(self, other: Controller) -> None:
        """Go on where another controller of the same connection is: with its window, and out of slow start if it
        is.
        """
        self.window_bytes = other.window_bytes
        self.is_slow_start = other.is_slow_start

    def _min_window_bytes(self) -> int:
        """The smallest window, except after a timeout."""
        return MIN_PACKETS * self.segment_bytes

    @property
    def queueing_delay_us(self) -> int:
        """The latest estimate of how long packets wait in the path's queues; 0 if the peer sends no timestamp
        difference.
        """
        raise NotImplementedError

    def on_delay(self, delay_us: int, *, now: int) -> None:
        """The peer has measured the one-way delay of a packet of ours (BEP 29 "timestamp_difference_microseconds"),
        with the difference of the two clocks in it.
        """
        raise NotImplementedError

    def on_round_trip(self, rtt_us: int, *, now: int) -> None:
        """The peer measures no one-way delays: a round trip stands for one."""
        raise NotImplementedError

    def on_peer_delay(self, delay_us: int) -> None:
        """We have measured the one-way delay of a packet of the peer's, with the difference of the clocks in it: the
        packet that the next call of on_delay() is about.
        """
        raise NotImplementedError

    def on_ack(
        self, acked_bytes: int, *, in_flight_bytes: int, is_limited: bool, rtt_us: int, sent_us: int, now: int
    ) -> None:
        """Packets were newly acked or sacked, and none is lost.

        acked_bytes       their payload
        in_flight_bytes   payload that was in flight before
        is_limited        the window, or pacing, has kept data back since they left
        rtt_us            the latest round trip, 0 before the first sample
        sent_us           when the newest of them left
        """
        raise NotImplementedError

    def on_loss(self, *, now: int) -> None:
        """Packets were lost; at most once per round trip."""
        raise NotImplementedError

    def on_timeout(self, *, now: int) -> None:
        """The retransmission timeout ran out."""
        raise NotImplementedError

    def on_spurious_loss(self, *, now: int) -> None:
        """An ack shows that the last loss or timeout was spurious: undo what it did to the window. RFC 3522 §3.2."""
        raise NotImplementedError

    def seed_window(self, window_bytes: int) -> None:
        """Another connection to the same peer has had this window and lost nothing: slow start may begin there. RFC
        9040 "Ensemble Sharing".
        """
        raise NotImplementedError

    def on_segment_size(self, segment_bytes: int) -> None:
        """Full packets now carry this much payload."""
        self.segment_bytes = segment_bytes
        self.window_bytes = max(self.window_bytes, segment_bytes)
