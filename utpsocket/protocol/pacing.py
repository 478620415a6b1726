"""When the next burst may leave: the congestion window is spread over a round trip instead of sent at once.

It knows bytes, a rate and the clock, but neither packets nor windows. How many bytes leave at one instant does not
depend on the number of flights in which they leave: their time is reckoned as a whole.

Example: a round trip of 50 ms in which 625,000 bytes may leave. 1 ms is worth 12,500 bytes: 8 packets of 1,452 bytes.
The next ones may leave 0.93 ms later.

Source: docs/design.md §4 ("a burst is at most about 1 ms of the current rate"); RFC 9002 §7.7 for how
much faster than the window per round trip.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.runs import MAX_RUN_PACKETS

# Paths with a shorter least round trip are not paced: _CREDIT_US allows much of a window there anyway, and loopback of
# a busy machine looks like 4 ms, where bursts of two packets would keep it busier. By feel.
PACED_FROM_RTT_US: Final = 10_000
_BURST_US: Final = 1_000  # docs/design.md §4; Linux's TCP also sends 1 ms of its rate at a time
# Timers come up to some ms late; what was due in that time may follow at once. By feel.
_CREDIT_US: Final = 4_000
# On a busy machine the thread may come much later. Then more may follow at once, but no more than this part of a round
# trip (one half). By feel.
_LATE_RTT_DIVISOR: Final = 2
_MIN_BURST_PACKETS: Final = 2  # receivers ack every second packet: RFC 5681 §4.2


class Pacer:
    """The time that what was sent is worth. Times µs.

    ready_at         when the next burst may leave
    _credit_us       how far in the past the next burst may count from
    _instant_us      the instant at which packets last left, -1 never
    _instant_base    the time that its bytes count from
    _instant_bytes   how many bytes have left at that instant
    _burst_left      how many packets may still leave at that instant
    """

    __slots__ = ("_burst_left", "_credit_us", "_instant_base", "_instant_bytes", "_instant_us", "ready_at")

    def __init__(self) -> None:
        self.ready_at = 0
        self._credit_us = _CREDIT_US
        self._instant_us = -1
        self._instant_base = 0
        self._instant_bytes = 0
        self._burst_left = 0

    def packets(self, size: int, bytes_per_rtt: int, rtt_us: int, *, now: int) -> int:
        """How many packets of `size` bytes may leave now; 0: none before ready_at.

        bytes_per_rtt   the rate: so many bytes in each round trip
        """
        if rtt_us <= PACED_FROM_RTT_US:
            return MAX_RUN_PACKETS
        if now != self._instant_us:
            self._begin(now)
        if not self._burst_left and now >= self.ready_at:
            self._burst_left = max(_MIN_BURST_PACKETS, bytes_per_rtt * _BURST_US // (rtt_us * max(1, size)))
        return self._burst_left

    def on_late_timer(self, late_us: int, rtt_us: int) -> None:
        """A burst was due so long ago, and nothing but this machine has delayed it: the path's queues have had that
        time to drain, so more may leave now.
        """
        self._credit_us = max(_CREDIT_US, min(late_us, rtt_us // _LATE_RTT_DIVISOR))

    def on_sent(self, count: int, total_bytes: int, bytes_per_rtt: int, rtt_us: int, *, now: int) -> None:
        """`count` packets with `total_bytes` of payload left."""
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
