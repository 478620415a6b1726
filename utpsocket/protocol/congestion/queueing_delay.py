"""The queueing delay of our packets: what their one-way delay, which the peer measures, is above its base.

A controller that reads it is derived from DelayController. The one-way delays of the peer's packets, which we measure,
show how the two clocks drift apart.

Sources: RFC 6817 §2.4.2 (current delay), appendix A.2 (clock skew); libutp (three samples, drift, penalty).
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.congestion.base_delay import BaseDelay
from utpsocket.protocol.congestion.controller import Controller
from utpsocket.protocol.times import HALF_TIMESTAMP, TIMESTAMP_MASK

# For the last three samples, libutp CUR_DELAY_SIZE, until there are so many: more than any sample.
NO_SAMPLE: Final = 1 << 32
# A peer whose clock runs away by more than this per period may do so to get more bandwidth. Both are libutp's.
MAX_DRIFT_US: Final = 200_000
DRIFT_PERIOD_US: Final = 5_000_000


class DelayController(Controller):
    """A controller that knows the queueing delay. See Controller for its methods; a class derived from it has the rest.

    _base                 base delay of our packets
    _peer_base_delay      base delay of the peer's packets
    _sample1_us, _sample2_us, _sample3_us   the last three samples above the base delay, the newest first; NO_SAMPLE
                          where there are not so many
    _drift_us             how far the clocks have drifted in this period, which ends at _drift_ends_at
    _drift_penalty_us     added to the queueing delay for the drift of the last period
    """

    __slots__ = (
        "_base",
        "_drift_ends_at",
        "_drift_penalty_us",
        "_drift_us",
        "_peer_base_delay",
        "_sample1_us",
        "_sample2_us",
        "_sample3_us",
    )

    def __init__(self, segment_bytes: int, target_delay_us: int = 0) -> None:
        super().__init__(segment_bytes, target_delay_us)
        self._base = BaseDelay()
        self._peer_base_delay = BaseDelay()
        self._sample1_us = self._sample2_us = self._sample3_us = NO_SAMPLE
        self._drift_us = 0
        self._drift_ends_at = 0
        self._drift_penalty_us = 0

    def take_over(self, other: Controller) -> None:
        """See Controller.take_over. What was measured is kept."""
        super().take_over(other)
        if isinstance(other, DelayController):
            self._base, self._peer_base_delay = other._base, other._peer_base_delay
            self._sample1_us, self._sample2_us, self._sample3_us = (
                other._sample1_us,
                other._sample2_us,
                other._sample3_us,
            )
            self._drift_us = other._drift_us
            self._drift_ends_at = other._drift_ends_at
            self._drift_penalty_us = other._drift_penalty_us

    @property
    def queueing_delay_us(self) -> int:
        """The least of the last three samples above the base delay; 0 without samples."""
        least_us = min(self._sample1_us, self._sample2_us, self._sample3_us)
        return least_us + self._drift_penalty_us if least_us < NO_SAMPLE else 0

    def on_delay(self, delay_us: int, *, now: int) -> None:
        """See Controller.on_delay. A jump of half the range is a crafted or broken sample, and begins a new base
        delay.
        """
        above_us = self._base.add(delay_us, now=now)
        self._sample3_us = self._sample2_us
        self._sample2_us = self._sample1_us
        self._sample1_us = above_us if above_us < HALF_TIMESTAMP >> 1 else HALF_TIMESTAMP >> 1

    def on_peer_delay(self, delay_us: int, *, now: int) -> None:
        """See Controller.on_peer_delay. As libutp does it.

        When the base delay of the peer's packets falls, its clock runs faster than ours, so that our packets seem to
        take longer and longer. So the base delay of our packets is raised by as much. If it runs away faster than
        clocks do, a penalty is added to the queueing delay.
        """
        base = self._peer_base_delay
        before_us = base.value_us
        if (
            now < base.minute_ends_at
            and now < self._drift_ends_at
            and (delay_us - base.lowest_us) & TIMESTAMP_MASK < HALF_TIMESTAMP
            and (delay_us - before_us) & TIMESTAMP_MASK < HALF_TIMESTAMP
        ):
            return  # as nearly always: above the base delay, and add() would do nothing
        base.add(delay_us, now=now)
        if before_us < 0:
            self._drift_ends_at = now + DRIFT_PERIOD_US
            return
        if base.value_us != before_us:
            fall_us = (before_us - base.value_us) & TIMESTAMP_MASK
            if fall_us <= 10_000 and self._base.value_us >= 0:
                self._base.shift(fall_us)
                self._drift_us += fall_us
        if now >= self._drift_ends_at:
            self._drift_ends_at = now + DRIFT_PERIOD_US
            self._drift_penalty_us = max(0, self._drift_us - MAX_DRIFT_US) // 7
            self._drift_us = 0

    def changes_base(self, delay_us: int) -> bool:
        """See Controller.changes_base."""
        return self._peer_base_delay.changes_base(delay_us)
