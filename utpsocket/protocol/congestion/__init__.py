"""How much may be in flight: the controller's interface and the registry of controllers.

A controller is told of acks, losses and timeouts and answers with a window in bytes. One file for each; the socket
option UTP_CONGESTION chooses by name, like Linux's TCP_CONGESTION.
"""

from __future__ import annotations

from typing import Protocol

from utpsocket.protocol.congestion.ledbat import Ledbat


class Controller(Protocol):
    """What the send half needs of a congestion controller. Bytes are payload; times µs."""

    window_bytes: int
    is_slow_start: bool

    @property
    def queueing_delay_us(self) -> int:
        """The latest estimate of the delay this path's queues add; 0 where the peer gives none."""
        ...

    def on_delay(self, delay_us: int, *, now: int) -> None:
        """The peer measured a one-way delay (BEP 29 timestamp_difference): our clock to its clock, offset unknown."""
        ...

    def on_peer_delay(self, delay_us: int, *, now: int) -> None:
        """We measured a one-way delay of the peer's packets, which tells clock drift."""
        ...

    def changes_base(self, delay_us: int) -> bool:
        """Whether on_peer_delay() would learn anything from this delay, or one up to an eighth of the clock longer, at
        the time of its last call. May say yes without need.
        """
        ...

    def on_ack(
        self, acked_bytes: int, *, in_flight_bytes: int, is_limited: bool, rtt_us: int, sent_us: int, now: int
    ) -> None:
        """`acked_bytes` newly arrived; `in_flight_bytes` were under way before; is_limited: the window was full.
        sent_us: when the newest of them left.
        """
        ...

    def on_loss(self, *, now: int) -> None:
        """Packets were lost; at most once per round trip."""
        ...

    def on_timeout(self, *, now: int) -> None:
        """The retransmission timeout ran out."""
        ...

    def on_spurious_loss(self, *, now: int) -> None:
        """The last loss or timeout was none: what it did to the window may be undone, once."""
        ...

    def seed_window(self, window_bytes: int) -> None:
        """Another connection on the same path has had this window and lost nothing: slow start may begin there. RFC
        9040 "Ensemble Sharing".
        """
        ...

    def on_segment_size(self, segment_bytes: int) -> None:
        """Full packets now carry this much payload."""
        ...


CONTROLLERS: dict[str, type[Ledbat]] = {"ledbat": Ledbat}
"""By the name that UTP_CONGESTION takes."""
