"""Congestion control: what a controller must do, and which controllers there are.

A controller is called for acks, losses and timeouts and has a window in bytes. Each is a file here; the socket option
UTP_CONGESTION chooses one by name, as TCP_CONGESTION does on Linux.
"""

from __future__ import annotations

from typing import Protocol

from utpsocket.protocol.congestion.ledbat import Ledbat


class Controller(Protocol):
    """What the sending half uses of a congestion controller. Bytes are payload, times µs.

    window_bytes    how much may be in flight
    is_slow_start   whether pacing should leave room for a window that doubles
    """

    window_bytes: int
    is_slow_start: bool

    @property
    def queueing_delay_us(self) -> int:
        """The latest estimate of how long packets wait in the path's queues; 0 if the peer sends no timestamp
        difference.
        """
        ...

    def on_delay(self, delay_us: int, *, now: int) -> None:
        """The peer has measured the one-way delay of a packet of ours (BEP 29 "timestamp_difference_microseconds"),
        with the difference of the two clocks in it.
        """
        ...

    def on_peer_delay(self, delay_us: int, *, now: int) -> None:
        """We have measured the one-way delay of a packet of the peer's: it shows how the clocks drift."""
        ...

    def changes_base(self, delay_us: int) -> bool:
        """Whether on_peer_delay() would change anything for this delay, or one that is up to an eighth of the range
        longer, at the time of its last call. May return True needlessly.
        """
        ...

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
        ...

    def on_loss(self, *, now: int) -> None:
        """Packets were lost; at most once per round trip."""
        ...

    def on_timeout(self, *, now: int) -> None:
        """The retransmission timeout ran out."""
        ...

    def on_spurious_loss(self, *, now: int) -> None:
        """An ack shows that the last loss or timeout was spurious: undo what it did to the window. RFC 3522 §3.2."""
        ...

    def seed_window(self, window_bytes: int) -> None:
        """Another connection to the same peer has had this window and lost nothing: slow start may begin there. RFC
        9040 "Ensemble Sharing".
        """
        ...

    def on_segment_size(self, segment_bytes: int) -> None:
        """Full packets now carry this much payload."""
        ...


# By the name that UTP_CONGESTION takes.
CONTROLLERS: dict[str, type[Ledbat]] = {"ledbat": Ledbat}
