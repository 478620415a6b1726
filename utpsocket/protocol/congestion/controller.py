"""What a congestion controller must do.

A base class and no Protocol: the compiled build calls the methods of a class that it knows without looking up names.
"""

from __future__ import annotations


class Controller:
    """What the sending half uses of a congestion controller. Bytes are payload, times µs.

    window_bytes    how much may be in flight
    is_slow_start   whether pacing should leave room for a window that doubles
    """

    __slots__ = ("is_slow_start", "window_bytes")

    window_bytes: int
    is_slow_start: bool

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

    def on_peer_delay(self, delay_us: int, *, now: int) -> None:
        """We have measured the one-way delay of a packet of the peer's: it shows how the clocks drift."""
        raise NotImplementedError

    def changes_base(self, delay_us: int) -> bool:
        """Whether on_peer_delay() would change anything for this delay, or one that is up to an eighth of the range
        longer, at the time of its last call. May return True needlessly.
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
        raise NotImplementedError
