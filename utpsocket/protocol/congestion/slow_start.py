"""Slow start that ends at the first sign of a queue, and what a loss and a timeout do: common to LEDBAT and LEDBAT++.

The window doubles in each round trip (as libtorrent; libutp adds one packet, which takes minutes on long paths), up to
three quarters of the target delay. A queue is seen one round trip after it was caused, when the window has doubled
again. On a long path that is more than its queues hold. So the first sign of a queue ends the doubling: the window goes
back to half, which caused the queue, and then grows by a quarter per round trip, so that it exceeds the path by a
quarter at most (RFC 9406 does the same by RTT).

Sources: RFC 6817 §2.4.2 (loss, timeout; it leaves slow start open); RFC 9406 §4.2; RFC 3522 §3.2.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.congestion.queueing_delay import NO_SAMPLE, DelayController

CSS_GROWTH_DIVISOR: Final = 4  # growth of conservative slow start, after the first sign of a queue: RFC 9406 §4.2
MIN_QUEUE_US: Final = 4_000  # RFC 9406 MIN_RTT_THRESH: less is noise
MAX_QUEUE_US: Final = 16_000  # RFC 9406 MAX_RTT_THRESH


class SlowStartController(DelayController):
    """A controller that follows the queueing delay, but for congestion avoidance, which a class derived from it has.

    _ssthresh_bytes       slow start after a timeout ends at this window; 0: there was none
    _is_conservative      slow start has seen a queue (RFC 9406)
    _conservative_since   when it did
    _css_exit_us          slow start ends at this queueing delay, once it has seen a queue
    _before_reduction     window_bytes, is_slow_start and _ssthresh_bytes before the last loss or timeout; None: none to
                          undo
    """

    __slots__ = ("_before_reduction", "_conservative_since", "_css_exit_us", "_is_conservative", "_ssthresh_bytes")

    def __init__(self, segment_bytes: int, target_delay_us: int = 0) -> None:
        super().__init__(segment_bytes, target_delay_us)
        self._is_conservative = False
        self._conservative_since = 0
        self._css_exit_us = self.target_delay_us * 3 // 4
        self._ssthresh_bytes = 0
        self._before_reduction: tuple[int, bool, int] | None = None

    def _slow_start(self, acked_bytes: int, queueing_us: int, *, is_limited: bool, rtt_us: int, now: int) -> None:
        """An ack in slow start: see the module's docstring."""
        window = self.window_bytes
        is_full = self._sample3_us < NO_SAMPLE
        if queueing_us >= (self._css_exit_us if self._is_conservative else self.target_delay_us * 3 // 4):
            # The window of one round trip ago has caused this queue and filled the path: go on from there.
            self.is_slow_start = False
            self._ssthresh_bytes = 0
            growth = CSS_GROWTH_DIVISOR
            before = window * growth // (growth + 1) if self._is_conservative else window // 2
            self.window_bytes = max(before, self._min_window_bytes())
        elif is_full and not self._is_conservative and queueing_us >= min(max(MIN_QUEUE_US, rtt_us // 8), MAX_QUEUE_US):
            self._is_conservative = True
            self._conservative_since = now
            self.window_bytes = max(window // 2, self._min_window_bytes())
        elif is_limited:
            self.window_bytes = window + (acked_bytes // CSS_GROWTH_DIVISOR if self._is_conservative else acked_bytes)
            if self._ssthresh_bytes and self.window_bytes >= self._ssthresh_bytes:
                self.is_slow_start = False

    def on_loss(self, *, now: int) -> None:
        """See Controller.on_loss. RFC 6817 §2.4.2: at most half, once per round trip."""
        self._before_reduction = (self.window_bytes, self.is_slow_start, self._ssthresh_bytes)
        self.is_slow_start = False
        self.window_bytes = max(self.window_bytes // 2, self._min_window_bytes())

    def on_timeout(self, *, now: int) -> None:
        """See Controller.on_timeout. RFC 6817 §2.4.2; slow start again up to half of what was, as TCP (RFC 5681)."""
        if self.window_bytes > self.segment_bytes:  # else the timeout before this one has done it
            self._before_reduction = (self.window_bytes, self.is_slow_start, self._ssthresh_bytes)
            self._ssthresh_bytes = max(self.window_bytes // 2, 2 * self._min_window_bytes())
        self.is_slow_start = True
        self._is_conservative = False
        self.window_bytes = self.segment_bytes

    def on_spurious_loss(self, *, now: int) -> None:
        """See Controller.on_spurious_loss. RFC 3522 §3.2."""
        if self._before_reduction is not None:
            window, self.is_slow_start, self._ssthresh_bytes = self._before_reduction
            self.window_bytes = max(self.window_bytes, window)
            self._before_reduction = None

    def _on_longer_route(self) -> None:
        """See DelayController. A longer path holds more, so the window doubles again."""
        self.is_slow_start = True
        self._is_conservative = False
        self._ssthresh_bytes = 0

    def seed_window(self, window_bytes: int) -> None:
        """See Controller.seed_window. Does nothing after a queue or a timeout: then this path's own window is
        better.
        """
        if self.is_slow_start and not self._is_conservative and not self._ssthresh_bytes:
            self.window_bytes = max(self.window_bytes, window_bytes)
