"""Reno: TCP's additive increase and multiplicative decrease. It takes an equal share beside TCP, for foreground use.

Slow start is HyStart++'s (hystart.py). Fast retransmit and recovery are outstanding.py's, whatever the controller is.

Example: window 100 packets. Without a loss it is 101 packets one round trip later; after a loss it is 50.

Sources: RFC 5681 §3.1, §3.2; RFC 3522 §3.2 (a loss that was none); RFC 9406.
"""

from __future__ import annotations

from typing import ClassVar

from utpsocket.protocol.congestion.controller import Controller
from utpsocket.protocol.congestion.hystart import CSS_GROWTH_DIVISOR, HyStart
from utpsocket.protocol.congestion.queueing_delay import DelayController


class Reno(DelayController):
    """See Controller for its methods. The queueing delay is measured for figures only.

    ssthresh_bytes      slow start ends at this window; 0: there is none
    _hystart            the rounds of slow start
    _remainder          rest of the last division
    _before_reduction   window_bytes, is_slow_start and ssthresh_bytes before the last loss or timeout; None: none to
                        undo
    """

    __slots__ = ("_before_reduction", "_hystart", "_remainder", "ssthresh_bytes")

    NAME: ClassVar[str] = "reno"

    def __init__(self, segment_bytes: int, target_delay_us: int = 0) -> None:
        super().__init__(segment_bytes, target_delay_us)
        self.ssthresh_bytes = 0
        self._hystart = HyStart()
        self._remainder = 0
        self._before_reduction: tuple[int, bool, int] | None = None

    def on_ack(
        self, acked_bytes: int, *, in_flight_bytes: int, is_limited: bool, rtt_us: int, sent_us: int, now: int
    ) -> None:
        """See Controller.on_ack. RFC 5681 §3.1."""
        if self.is_slow_start:
            self._slow_start(acked_bytes, is_limited=is_limited, rtt_us=rtt_us, sent_us=sent_us, now=now)
        else:
            self._avoid_congestion(acked_bytes, is_limited=is_limited, rtt_us=rtt_us, now=now)

    def _slow_start(self, acked_bytes: int, *, is_limited: bool, rtt_us: int, sent_us: int, now: int) -> None:
        """RFC 5681 §3.1, with the end of RFC 9406."""
        is_over = self._hystart.is_over(rtt_us, sent_us, now=now)
        if is_limited:
            self.window_bytes += acked_bytes // CSS_GROWTH_DIVISOR if self._hystart.is_conservative else acked_bytes
        if is_over or 0 < self.ssthresh_bytes <= self.window_bytes:
            self.is_slow_start = False
            self.ssthresh_bytes = self.window_bytes
            self._begin_avoidance(now=now)

    def _begin_avoidance(self, *, now: int) -> None:
        """Slow start has ended without a loss."""

    def _avoid_congestion(self, acked_bytes: int, *, is_limited: bool, rtt_us: int, now: int) -> None:
        """One packet per round trip: RFC 5681 §3.1 (3)."""
        if is_limited:
            gain_bytes, self._remainder = divmod(
                self.segment_bytes * acked_bytes + self._remainder, max(1, self.window_bytes)
            )
            self.window_bytes += min(gain_bytes, acked_bytes)

    def _reduced_bytes(self) -> int:
        """The window after a loss: RFC 5681 §3.1 (4)."""
        return max(self.window_bytes // 2, self._min_window_bytes())

    def on_loss(self, *, now: int) -> None:
        """See Controller.on_loss. RFC 5681 §3.2."""
        self._before_reduction = (self.window_bytes, self.is_slow_start, self.ssthresh_bytes)
        self.is_slow_start = False
        self.window_bytes = self.ssthresh_bytes = self._reduced_bytes()

    def on_timeout(self, *, now: int) -> None:
        """See Controller.on_timeout. RFC 5681 §3.1: ssthresh as after a loss, a window of one packet, slow start."""
        if self.window_bytes > self.segment_bytes:  # else the timeout before this one has done it
            self._before_reduction = (self.window_bytes, self.is_slow_start, self.ssthresh_bytes)
            self.ssthresh_bytes = max(self._reduced_bytes(), 2 * self._min_window_bytes())
        self.is_slow_start = True
        self._hystart = HyStart()
        self.window_bytes = self.segment_bytes

    def on_spurious_loss(self, *, now: int) -> None:
        """See Controller.on_spurious_loss. RFC 3522 §3.2."""
        if self._before_reduction is not None:
            window, self.is_slow_start, self.ssthresh_bytes = self._before_reduction
            self.window_bytes = max(self.window_bytes, window)
            self._before_reduction = None

    def seed_window(self, window_bytes: int) -> None:
        """See Controller.seed_window."""
        if self.is_slow_start and not self.ssthresh_bytes:
            self.window_bytes = max(self.window_bytes, window_bytes)

    def take_over(self, other: Controller) -> None:
        """See Controller.take_over."""
        super().take_over(other)
        self.ssthresh_bytes = 0 if self.is_slow_start else self.window_bytes
