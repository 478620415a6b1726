"""The base delay of one direction: the lowest one-way delay of the last minutes. What is above it is queueing delay.

A one-way delay is the difference of two machines' clocks, so only differences of it mean anything. Times are those of
BEP 29's headers: µs of 32 bits, which wrap.

Sources: RFC 6817 §2.4.2, §3.1.1; BEP 29 "congestion control".
"""

from __future__ import annotations

from array import array
from typing import Final

from utpsocket.protocol.times import HALF_TIMESTAMP, TIMESTAMP_MASK

BASE_MINUTES: Final = 13  # libutp DELAY_BASE_HISTORY
_MINUTE_US: Final = 60_000_000


class BaseDelay:
    """The lowest one-way delay of the last minutes, of 32-bit times that wrap.

    value_us          the base delay, -1 before the first sample
    lowest_us         the lowest of this minute
    minute_ends_at    when that is complete
    minima            the lowest of each of the minutes before it; None in the first one
    """

    __slots__ = ("lowest_us", "minima", "minute_ends_at", "value_us")

    def __init__(self) -> None:
        self.lowest_us = 0
        self.minima: array[int] | None = None
        self.minute_ends_at = 0
        self.value_us = -1

    def add(self, delay_us: int, *, now: int) -> int:
        """Take a sample. Returns how much it is above the base delay, 0 if it is the new one."""
        if self.value_us < 0:
            self.lowest_us = self.value_us = delay_us
            self.minute_ends_at = now + _MINUTE_US
            return 0
        if now >= self.minute_ends_at:
            self.minute_ends_at = now + _MINUTE_US
            self._begin_minute(delay_us)
        elif (delay_us - self.lowest_us) & TIMESTAMP_MASK >= HALF_TIMESTAMP:
            self.lowest_us = delay_us
        above_us = (delay_us - self.value_us) & TIMESTAMP_MASK
        if above_us >= HALF_TIMESTAMP:
            self.value_us = delay_us
            return 0
        return above_us

    def changes_base(self, delay_us: int) -> bool:
        """Whether add() of this sample would change anything before the minute ends. May return True needlessly."""
        lowest = self.lowest_us if self.value_us >= 0 else delay_us
        # A quarter, so that a sample that is somewhat longer is no jump of half the range either.
        quarter = HALF_TIMESTAMP >> 1
        return (delay_us - lowest) & TIMESTAMP_MASK >= quarter or (delay_us - self.value_us) & TIMESTAMP_MASK >= quarter

    def _begin_minute(self, delay_us: int) -> None:
        """The first sample of a minute: the lowest of the last one is complete, and that of the oldest is forgotten."""
        minima = self.minima
        if minima is None:
            self.minima = minima = array("I")
        minima.append(self.lowest_us)
        if len(minima) >= BASE_MINUTES:
            del minima[0]
        self.lowest_us = lowest = delay_us
        for other_us in minima:
            if (other_us - lowest) & TIMESTAMP_MASK >= HALF_TIMESTAMP:
                lowest = other_us
        self.value_us = lowest

    def shift(self, by_us: int) -> None:
        """The clocks have drifted apart by this much: correct all minima."""
        if self.minima is not None:
            self.minima = array("I", [(delay_us + by_us) & TIMESTAMP_MASK for delay_us in self.minima])
        self.lowest_us = (self.lowest_us + by_us) & TIMESTAMP_MASK
        self.value_us = (self.value_us + by_us) & TIMESTAMP_MASK
