"""LEDBAT: use the bandwidth that others leave, and step back when the path's queues grow.

The window follows the queueing delay of our packets: the one-way delay that the peer measures, above the lowest one
that it has measured. The difference of the two clocks cancels out. The controller learns that something was lost, not
which packets.

Where deployed implementations differ from the RFC it follows them (docs/protocol.md §11): the gain is libutp's; the
base delay is the least of thirteen one-minute minima (base_delay.py). slow_start.py comes first.

Example, after slow start: window 100,000 bytes, queueing delay 40 ms. Per round trip the window grows by 3,000 × (100 −
40) / 100 = 1,800 bytes; at 100 ms it stays, at 130 ms it shrinks by 900.

Sources: RFC 6817 §2.4.2, §2.5, §3.1.1, appendix A.2 (clock skew); BEP 29 "congestion control".
"""

from __future__ import annotations

from typing import ClassVar, Final

from utpsocket.protocol.congestion.queueing_delay import NO_SAMPLE
from utpsocket.protocol.congestion.slow_start import MIN_QUEUE_US, SlowStartController

TARGET_DELAY_US: Final = 100_000  # queueing delay LEDBAT steers to. RFC 6817 §2.5; libutp's default
MAX_GAIN_BYTES: Final = 3_000  # most growth or shrinkage per round trip: libutp MAX_CWND_INCREASE_BYTES_PER_RTT


class Ledbat(SlowStartController):
    """See Controller for its methods.

    _gain_remainder   rest of the last division of the gain
    """

    __slots__ = ("_gain_remainder",)

    NAME: ClassVar[str] = "ledbat"

    def __init__(self, segment_bytes: int, target_delay_us: int = 0) -> None:
        super().__init__(segment_bytes, target_delay_us or TARGET_DELAY_US)
        self._gain_remainder = 0

    def on_ack(
        self, acked_bytes: int, *, in_flight_bytes: int, is_limited: bool, rtt_us: int, sent_us: int, now: int
    ) -> None:
        """See Controller.on_ack. RFC 6817 §2.4.2."""
        if self.is_slow_start and sent_us < self._conservative_since:
            return  # older packets were sent with the larger window
        queueing_us = self._sample1_us  # as queueing_delay_us
        if self._sample2_us < queueing_us:
            queueing_us = self._sample2_us
        if self._sample3_us < queueing_us:
            queueing_us = self._sample3_us
        if queueing_us == NO_SAMPLE:
            queueing_us = 0
        if rtt_us and queueing_us > rtt_us:
            queueing_us = rtt_us  # the queueing delay is a part of the round trip
        window = self.window_bytes
        if self.is_slow_start:
            if is_limited or queueing_us >= MIN_QUEUE_US:
                self._slow_start(acked_bytes, queueing_us, is_limited=is_limited, rtt_us=rtt_us, now=now)
            return
        target_us = self.target_delay_us
        off_target_us = target_us - queueing_us
        if off_target_us > 0 and not is_limited:
            return
        off_target_us = max(off_target_us, -target_us)
        # This ack's part of the gain of a round trip. The remainder of the division is kept: otherwise many small acks
        # would round the gain away, or up for one flow and down for another.
        divisor = target_us * max(window, acked_bytes)
        gain_bytes, self._gain_remainder = divmod(
            MAX_GAIN_BYTES * min(acked_bytes, window) * off_target_us + self._gain_remainder, divisor
        )
        self.window_bytes = max(window + gain_bytes, self._min_window_bytes())
