"""LEDBAT: use the bandwidth that others leave, and step back when the path's queues grow.

The window follows the queueing delay of our packets: the one-way delay that the peer measures, above the lowest one
that it has measured. The difference of the two clocks cancels out. The controller learns that something was lost, not
which packets.

Where deployed implementations differ from the RFC it follows them (docs/protocol.md §11): the gain is libutp's; the
base delay is the least of thirteen one-minute minima; slow start doubles the window in each round trip (as libtorrent;
libutp adds one packet, which takes minutes on long paths) and ends at three quarters of the target.

A queue is seen one round trip after it was caused, when the window has doubled again. On a long path that is more than
its queues hold. So the first sign of a queue ends the doubling: the window goes back to half, which caused the queue,
and then grows by a quarter per round trip, so that it exceeds the path by a quarter at most (RFC 9406 does the same by
RTT).

Example, after slow start: window 100,000 bytes, queueing delay 40 ms. Per round trip the window grows by 3,000 × (100 −
40) / 100 = 1,800 bytes; at 100 ms it stays, at 130 ms it shrinks by 900.

Sources: RFC 6817 §2.4.2, §3.1.1, appendix A.2 (clock skew); RFC 9406 §4.2; BEP 29 "congestion control".
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.congestion.queueing_delay import NO_SAMPLE, DelayController

TARGET_DELAY_US: Final = 100_000  # queueing delay LEDBAT steers to. RFC 6817 §2.5; libutp's default
MAX_GAIN_BYTES: Final = 3_000  # most growth or shrinkage per round trip: libutp MAX_CWND_INCREASE_BYTES_PER_RTT
INITIAL_PACKETS: Final = 10  # RFC 6928
# The same in bytes, where packets begin small and will soon be larger: ten packets of 1,380 bytes.
_MIN_INITIAL_WINDOW_BYTES: Final = 13_800
MIN_PACKETS: Final = 2  # RFC 6817 MIN_CWND
_CSS_GROWTH_DIVISOR: Final = 4  # growth of conservative slow start, after the first sign of a queue: RFC 9406 §4.2
_MIN_QUEUE_US: Final = 4_000  # RFC 9406 MIN_RTT_THRESH: less is noise
_MAX_QUEUE_US: Final = 16_000  # RFC 9406 MAX_RTT_THRESH


class Ledbat(DelayController):
    """The default controller. See Controller for its methods.

    window_bytes      the congestion window
    is_slow_start     whether it doubles, or grows by a quarter, in each round trip

    _segment_bytes        payload of a full packet
    _is_conservative      slow start has seen a queue (RFC 9406)
    _conservative_since   when it did
    _ssthresh_bytes       slow start after a timeout ends at this window; 0: there was none
    _before_reduction     window_bytes, is_slow_start and _ssthresh_bytes before the last loss or timeout; None: none to
                          undo
    _gain_remainder       rest of the last division of the gain
    """

    __slots__ = (
        "_before_reduction",
        "_conservative_since",
        "_gain_remainder",
        "_is_conservative",
        "_segment_bytes",
        "_ssthresh_bytes",
    )

    def __init__(self, segment_bytes: int) -> None:
        super().__init__()
        self._segment_bytes = segment_bytes
        self.window_bytes = max(INITIAL_PACKETS * segment_bytes, _MIN_INITIAL_WINDOW_BYTES)
        self.is_slow_start = True
        self._is_conservative = False
        self._conservative_since = 0
        self._ssthresh_bytes = 0
        self._before_reduction: tuple[int, bool, int] | None = None
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
        queueing_us = queueing_us + self._drift_penalty_us if queueing_us < NO_SAMPLE else 0
        if rtt_us and queueing_us > rtt_us:
            queueing_us = rtt_us  # the queueing delay is a part of the round trip
        window = self.window_bytes
        if self.is_slow_start:
            if is_limited or queueing_us >= _MIN_QUEUE_US:
                self._slow_start(acked_bytes, queueing_us, is_limited=is_limited, rtt_us=rtt_us, now=now)
            return
        off_target_us = TARGET_DELAY_US - queueing_us
        if off_target_us > 0 and not is_limited:
            return
        off_target_us = max(off_target_us, -TARGET_DELAY_US)
        # This ack's part of the gain of a round trip. The remainder of the division is kept: otherwise many small acks
        # would round the gain away, or up for one flow and down for another.
        divisor = TARGET_DELAY_US * max(window, acked_bytes)
        gain_bytes, self._gain_remainder = divmod(
            MAX_GAIN_BYTES * min(acked_bytes, window) * off_target_us + self._gain_remainder, divisor
        )
        self.window_bytes = max(window + gain_bytes, self._min_window_bytes())

    def _slow_start(self, acked_bytes: int, queueing_us: int, *, is_limited: bool, rtt_us: int, now: int) -> None:
        """Slow start, which RFC 6817 does not define: see the module's docstring."""
        window = self.window_bytes
        is_full = self._sample3_us < NO_SAMPLE
        if queueing_us >= TARGET_DELAY_US * 3 // 4:
            # The window of one round trip ago has caused this queue and filled the path: go on from there.
            self.is_slow_start = False
            self._ssthresh_bytes = 0
            growth = _CSS_GROWTH_DIVISOR
            before = window * growth // (growth + 1) if self._is_conservative else window // 2
            self.window_bytes = max(before, self._min_window_bytes())
        elif (
            is_full and not self._is_conservative and queueing_us >= min(max(_MIN_QUEUE_US, rtt_us // 8), _MAX_QUEUE_US)
        ):
            self._is_conservative = True
            self._conservative_since = now
            self.window_bytes = max(window // 2, self._min_window_bytes())
        elif is_limited:
            self.window_bytes = window + (acked_bytes // _CSS_GROWTH_DIVISOR if self._is_conservative else acked_bytes)
            if self._ssthresh_bytes and self.window_bytes >= self._ssthresh_bytes:
                self.is_slow_start = False

    def on_loss(self, *, now: int) -> None:
        """See Controller.on_loss. RFC 6817 §2.4.2: at most half, once per round trip."""
        self._before_reduction = (self.window_bytes, self.is_slow_start, self._ssthresh_bytes)
        self.is_slow_start = False
        self.window_bytes = max(self.window_bytes // 2, self._min_window_bytes())

    def on_timeout(self, *, now: int) -> None:
        """See Controller.on_timeout. RFC 6817 §2.4.2; slow start again up to half of what was, as TCP (RFC 5681)."""
        if self.window_bytes > self._segment_bytes:  # else the timeout before this one has done it
            self._before_reduction = (self.window_bytes, self.is_slow_start, self._ssthresh_bytes)
            self._ssthresh_bytes = max(self.window_bytes // 2, 2 * self._min_window_bytes())
        self.is_slow_start = True
        self._is_conservative = False
        self.window_bytes = self._segment_bytes

    def on_spurious_loss(self, *, now: int) -> None:
        """See Controller.on_spurious_loss. RFC 3522 §3.2."""
        if self._before_reduction is not None:
            window, self.is_slow_start, self._ssthresh_bytes = self._before_reduction
            self.window_bytes = max(self.window_bytes, window)
            self._before_reduction = None

    def seed_window(self, window_bytes: int) -> None:
        """See Controller.seed_window. Does nothing after a queue or a timeout: then this path's own window is
        better.
        """
        if self.is_slow_start and not self._is_conservative and not self._ssthresh_bytes:
            self.window_bytes = max(self.window_bytes, window_bytes)

    def on_segment_size(self, segment_bytes: int) -> None:
        """See Controller.on_segment_size."""
        self._segment_bytes = segment_bytes
        self.window_bytes = max(self.window_bytes, segment_bytes)

    def _min_window_bytes(self) -> int:
        """The smallest window, except after a timeout."""
        return MIN_PACKETS * self._segment_bytes
