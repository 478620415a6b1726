"""The queueing delay of our packets: what their one-way delay, which the peer measures, is above its base.

A controller that reads it is derived from DelayController. Where the peer measures nothing, round trips stand for the
one-way delays: they have the queues of both directions in them, and no clocks.

Each slice of time ends with what is done seldom: the base follows the drift of the clocks (clock_skew.py) and longer
routes (base_delay.py).

Sources: RFC 6817 §2.4.2 (current delay), appendix A.2 (clock skew); libutp (three samples).
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.congestion.base_delay import SLICE_US, BaseDelay
from utpsocket.protocol.congestion.clock_skew import ClockSkew
from utpsocket.protocol.congestion.controller import Controller
from utpsocket.protocol.times import HALF_TIMESTAMP, TIMESTAMP_MASK

# For the last three samples, libutp CUR_DELAY_SIZE, until there are so many: more than any sample.
NO_SAMPLE: Final = 1 << 32
# The best sample of so long counts for the clocks: a slowdown, or another gap in our queue, is often among them.
_SKEW_PERIOD_US: Final = 10_000_000
_BILLION: Final = 1_000_000_000


class DelayController(Controller):
    """A controller that knows the queueing delay. See Controller for its methods; a class derived from it has the rest.

    _base                 base delay of our packets
    _skew                 drift of the clocks; None before the first sample of it
    _peer_delay_us        the latest one-way delay of the peer's packets; -1 before the first
    _sample1_us, _sample2_us, _sample3_us   the last three samples above the base delay, the newest first; NO_SAMPLE
                          where there are not so many
    _is_by_rtt            the samples are round trips
    _slice_ends_at        when end_slice() is due
    _sum_us, _difference_us, _sum_at   of this period's shortest sum of both one-way delays: it, their difference, when;
                          -1 before the first
    _skew_period_ends_at  when the period is over
    _drift_until, _drift_rest   the base has followed the clocks until then; rest of that division
    """

    __slots__ = (
        "_base",
        "_difference_us",
        "_drift_rest",
        "_drift_until",
        "_is_by_rtt",
        "_peer_delay_us",
        "_sample1_us",
        "_sample2_us",
        "_sample3_us",
        "_skew",
        "_skew_period_ends_at",
        "_slice_ends_at",
        "_sum_at",
        "_sum_us",
    )

    def __init__(self, segment_bytes: int, target_delay_us: int = 0) -> None:
        super().__init__(segment_bytes, target_delay_us)
        self._base = BaseDelay()
        self._skew: ClockSkew | None = None
        self._peer_delay_us = -1
        self._sample1_us = self._sample2_us = self._sample3_us = NO_SAMPLE
        self._is_by_rtt = False
        self._slice_ends_at = 0
        self._sum_us = self._difference_us = self._sum_at = -1
        self._skew_period_ends_at = 0
        self._drift_until = 0
        self._drift_rest = 0

    def take_over(self, other: Controller) -> None:
        """See Controller.take_over. What was measured is kept."""
        super().take_over(other)
        if isinstance(other, DelayController):
            self._base, self._skew, self._peer_delay_us = other._base, other._skew, other._peer_delay_us
            self._sample1_us, self._sample2_us, self._sample3_us = (
                other._sample1_us,
                other._sample2_us,
                other._sample3_us,
            )
            self._is_by_rtt = other._is_by_rtt
            self._slice_ends_at = other._slice_ends_at
            self._sum_us, self._difference_us, self._sum_at = other._sum_us, other._difference_us, other._sum_at
            self._skew_period_ends_at = other._skew_period_ends_at
            self._drift_until, self._drift_rest = other._drift_until, other._drift_rest

    @property
    def queueing_delay_us(self) -> int:
        """The least of the last three samples above the base delay; 0 without samples."""
        least_us = min(self._sample1_us, self._sample2_us, self._sample3_us)
        return least_us if least_us < NO_SAMPLE else 0

    def on_delay(self, delay_us: int, *, now: int) -> None:
        """See Controller.on_delay. A jump of half the range is a crafted or broken sample, and begins a new base
        delay.
        """
        if self._is_by_rtt:
            self._is_by_rtt = False
            self._base = BaseDelay()
        peer_delay_us = self._peer_delay_us
        if peer_delay_us >= 0:
            sum_us = (delay_us + peer_delay_us) & TIMESTAMP_MASK
            if sum_us < self._sum_us or self._sum_us < 0:
                self._sum_us = sum_us
                self._difference_us = (delay_us - peer_delay_us) & TIMESTAMP_MASK
                self._sum_at = now
        self._add(delay_us, now=now)

    def on_round_trip(self, rtt_us: int, *, now: int) -> None:
        """See Controller.on_round_trip."""
        self._is_by_rtt = True
        self._add(rtt_us, now=now)

    def _add(self, delay_us: int, *, now: int) -> None:
        if now >= self._slice_ends_at:
            self._end_slice(now)
        above_us = self._base.add(delay_us, now=now)
        self._sample3_us = self._sample2_us
        self._sample2_us = self._sample1_us
        self._sample1_us = above_us if above_us < HALF_TIMESTAMP >> 1 else HALF_TIMESTAMP >> 1

    def _end_slice(self, now: int) -> None:
        """What is done seldom."""
        base, skew = self._base, self._skew
        if not self._slice_ends_at:
            self._drift_until = now
            self._skew_period_ends_at = now + _SKEW_PERIOD_US
        self._slice_ends_at = now + SLICE_US
        if skew is not None and skew.rate_ppb and not self._is_by_rtt:
            by_us, self._drift_rest = divmod((now - self._drift_until) * skew.rate_ppb + self._drift_rest, _BILLION)
            if by_us and base.value_us >= 0:
                base.shift(by_us)
        self._drift_until = now
        if now >= self._skew_period_ends_at:
            self._skew_period_ends_at = now + _SKEW_PERIOD_US
            if self._sum_us >= 0:
                if skew is None:
                    skew = self._skew = ClockSkew()
                before_ppb = skew.rate_ppb
                skew.add(self._sum_at, self._sum_us, self._difference_us)
                self._sum_us = -1
                if skew.rate_ppb != before_ppb and not self._is_by_rtt:
                    base.tilt(skew.rate_ppb - before_ppb, now=now)
        if base.end_slice(self.window_bytes, self.target_delay_us, now=now) and self.target_delay_us:
            if skew is not None:
                skew.forget()
            self._sample1_us = self._sample2_us = self._sample3_us = NO_SAMPLE
            # A longer path holds more than before. Half of it, lest the step was a queue of others after all.
            self.window_bytes = max(self.window_bytes, base.step_window_bytes // 2)
            self._on_longer_route()

    def _on_longer_route(self) -> None:
        """The base delay has risen: the window suits a path that is no more."""

    def on_peer_delay(self, delay_us: int) -> None:
        """See Controller.on_peer_delay."""
        self._peer_delay_us = delay_us
