"""When the next burst may leave: a window spread over its round trip instead of thrown at once.

Separate because it knows neither packets nor windows, only bytes, a rate and the clock. How many bytes leave at one
instant does not depend on into how many flights they are cut: the debt of an instant is reckoned as a whole.

Source: docs/design.md §4 ("a burst is at most about 1 ms of the current rate"); RFC 9002 §7.7 for how
much faster than the window per round trip.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.runs import MAX_RUN_PACKETS

# Of the least round trip seen. Below, the credit allows much of a window anyway; and a busy machine's loopback looks
# like 4 ms, where bursts of two packets would keep it busy for ever.
PACED_FROM_RTT_US: Final = 10_000
_BURST_US: Final = 1_000  # docs/design.md §4
_CREDIT_US: Final = 4_000  # timers come up to a few ms late; what was due meanwhile may follow
_LATE_SHARE: Final = 2  # of a round trip at most: a thread that a busy machine leaves waiting comes later than that
_MIN_BURST_PACKETS: Final = 2


class Pacer:
    """The debt of what was sent, paid off by time. Times µs."""

    __slots__ = ("_burst_left", "_credit_us", "_instant_base", "_instant_bytes", "_instant_us", "ready_at")

    def __init__(self) -> None:
        self.ready_at = 0  # when the next burst may leave
        self._credit_us = _CREDIT_US
        self._instant_us = -1
        self._instant_base = 0
        self._instant_bytes = 0
        self._burst_left = 0

    def packets(self, size: int, bytes_per_rtt: int, rtt_us: int, *, now: int) -> int:
        """How many packets of `size` may leave now, when `bytes_per_rtt` leave in each round trip; 0: wait for
        ready_at.
        """
        if rtt_us <= PACED_FROM_RTT_US:
            return MAX_RUN_PACKETS
        if now != self._instant_us:
            self._begin(now)
        if not self._burst_left and now >= self.ready_at:
            self._burst_left = max(_MIN_BURST_PACKETS, bytes_per_rtt * _BURST_US // (rtt_us * max(1, size)))
        return self._burst_left

    def on_late_timer(self, late_us: int, rtt_us: int) -> None:
        """Something was due so long ago, and nothing but this machine kept it waiting: the path's queues have had the
        time to drain, so all that was due may leave now.
        """
        self._credit_us = max(_CREDIT_US, min(late_us, rtt_us // _LATE_SHARE))

    def on_sent(self, count: int, total_bytes: int, bytes_per_rtt: int, rtt_us: int, *, now: int) -> None:
        """`count` packets left."""
        if rtt_us <= PACED_FROM_RTT_US:
            return
        if now != self._instant_us:
            self._begin(now)
        self._burst_left = max(0, self._burst_left - count)
        self._instant_bytes += total_bytes
        self.ready_at = self._instant_base + self._instant_bytes * rtt_us // bytes_per_rtt

    def _begin(self, now: int) -> None:
        self._instant_us = now
        self._instant_base = max(self.ready_at, now - self._credit_us)
        self._credit_us = _CREDIT_US
        self._instant_bytes = 0
        self._burst_left = 0
