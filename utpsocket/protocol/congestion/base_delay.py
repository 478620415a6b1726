"""The base delay of our packets: the lowest one-way delay of the last minutes. What is above it is queueing delay.

A one-way delay is the difference of two machines' clocks, so only differences of it mean anything. Times are those of
BEP 29's headers: µs of 32 bits, which wrap.

**A longer route.** The lowest delay of thirteen minutes is wrong when a route becomes longer, and a controller that
takes the rest for a queue would not use the path for as long. A queue of others looks alike, and must not be taken for
the path. What differs: the delay of a route rises at once, and then stands still for as long as one looks, at a level
that is never gone below. So the base rises if

* the lowest delay of a slice of time was MIN_STEP_US above that of the slice before, without a window that had grown;
* it is above the base by more than the target, which no queue of our own can stay at: the controller shrinks it away;
* and FLAT_SLICES slices later none was lower, and as many were at that level.

If it is gone below after all, it was a queue: the base of before holds again, and the next time twice as many slices
are asked for.

Example: the target is 60 ms and the queue at it. The route becomes 130 ms longer: 190 ms above the base in the first
slice, 130 ms in the next one, when the queue has left; 3 s later that is the base.

Sources: RFC 6817 §2.4.2, §3.1.1; BEP 29 "congestion control". RFC 6817 leaves longer routes to the end of the history;
that the base rises earlier is our own.
"""

from __future__ import annotations

from array import array
from typing import Final

from utpsocket.protocol.times import HALF_TIMESTAMP, TIMESTAMP_MASK

BASE_MINUTES: Final = 13  # libutp DELAY_BASE_HISTORY
_MINUTE_US: Final = 60_000_000
SLICE_US: Final = 500_000  # longer than most round trips, so that two packets in flight are seen in each. By feel
MIN_STEP_US: Final = 20_000  # a fifth of RFC 6817's target: less costs little. By feel
_LEVEL_US: Final = 4_000  # RFC 9406 MIN_RTT_THRESH: less is noise
FLAT_SLICES: Final = 6  # 3 s. By feel: a queue of CUBIC's stands still for longer, but does not begin with a step
_MAX_FLAT_SLICES: Final = 192
_MAX_RISE_SLICES: Final = 4 * FLAT_SLICES  # if the level is not seen so often by then, it is none
_DRAIN_SLICES: Final = 2  # in which the queue of before leaves, at the latest
_REVERT_US: Final = 60_000_000  # how long a base that has risen may turn out to be a queue. By feel


def _above(delay_us: int, other_us: int) -> int:
    """By how much a time of 32 bits is after another one; negative: before."""
    above_us = (delay_us - other_us) & TIMESTAMP_MASK
    return above_us if above_us < HALF_TIMESTAMP else above_us - TIMESTAMP_MASK - 1


class BaseDelay:
    """The lowest one-way delay of the last minutes, of 32-bit times that wrap.

    value_us          the base delay, -1 before the first sample
    lowest_us         the lowest of this minute
    lowest_at         when that was
    minute_ends_at    when the minute is complete
    minima            the lowest of each of the minutes before it; None in the first one
    minima_at         when those were
    slice_us          the lowest of this slice, -1 before its first sample
    step_window_bytes   the window before the last step
    _slice_before_us  the lowest of the slice before, -1 before the first
    _window_before, _window_earlier   the window at its end, and a slice earlier, in bytes
    _level_us         the level of a step that may be a longer route, -1: none
    _level_slices     slices since then; _flat_slices: how many of them were at that level
    _asked_slices     how many must be
    _before_rise      value_us before the base rose, -1: it has not lately
    _rose_at          when it did
    """

    __slots__ = (
        "_asked_slices",
        "_before_rise",
        "_flat_slices",
        "_level_slices",
        "_level_us",
        "_rose_at",
        "_slice_before_us",
        "_window_before",
        "_window_earlier",
        "lowest_at",
        "lowest_us",
        "minima",
        "minima_at",
        "minute_ends_at",
        "slice_us",
        "step_window_bytes",
        "value_us",
    )

    def __init__(self) -> None:
        self.lowest_us = 0
        self.lowest_at = 0
        self.minima: array[int] | None = None
        self.minima_at: array[int] | None = None
        self.minute_ends_at = 0
        self.value_us = -1
        self.slice_us = -1
        self.step_window_bytes = 0
        self._slice_before_us = -1
        self._window_before = self._window_earlier = 0
        self._level_us = -1
        self._level_slices = 0
        self._flat_slices = 0
        self._asked_slices = FLAT_SLICES
        self._before_rise = -1
        self._rose_at = 0

    def add(self, delay_us: int, *, now: int) -> int:
        """Take a sample. Returns how much it is above the base delay, 0 if it is the new one."""
        if self.value_us < 0:
            self.lowest_us = self.value_us = self.slice_us = delay_us
            self.lowest_at = now
            self.minute_ends_at = now + _MINUTE_US
            return 0
        if self.slice_us < 0 or (delay_us - self.slice_us) & TIMESTAMP_MASK >= HALF_TIMESTAMP:
            self.slice_us = delay_us
        if now >= self.minute_ends_at:
            self.minute_ends_at = now + _MINUTE_US
            self._begin_minute(delay_us, now=now)
        elif (delay_us - self.lowest_us) & TIMESTAMP_MASK >= HALF_TIMESTAMP:
            self.lowest_us = delay_us
            self.lowest_at = now
        above_us = (delay_us - self.value_us) & TIMESTAMP_MASK
        if above_us >= HALF_TIMESTAMP:
            self.value_us = delay_us
            return 0
        return above_us

    def _begin_minute(self, delay_us: int, *, now: int) -> None:
        """The first sample of a minute: the lowest of the last one is complete, and that of the oldest is forgotten."""
        if self.minima is None or self.minima_at is None:
            self.minima, self.minima_at = array("I"), array("q")
        self.minima.append(self.lowest_us)
        self.minima_at.append(self.lowest_at)
        if len(self.minima) >= BASE_MINUTES:
            del self.minima[0], self.minima_at[0]
        self.lowest_us = delay_us
        self.lowest_at = now
        self._choose()

    def _choose(self) -> None:
        lowest = self.lowest_us
        if self.minima is not None:
            for other_us in self.minima:
                if (other_us - lowest) & TIMESTAMP_MASK >= HALF_TIMESTAMP:
                    lowest = other_us
        self.value_us = lowest

    # ── clocks ──

    def shift(self, by_us: int) -> None:
        """The clocks have drifted apart by this much: correct all that is remembered."""
        if self.minima is not None:
            self.minima = array("I", [(delay_us + by_us) & TIMESTAMP_MASK for delay_us in self.minima])
        self.lowest_us = (self.lowest_us + by_us) & TIMESTAMP_MASK
        self.value_us = (self.value_us + by_us) & TIMESTAMP_MASK
        if self.slice_us >= 0:
            self.slice_us = (self.slice_us + by_us) & TIMESTAMP_MASK
        if self._slice_before_us >= 0:
            self._slice_before_us = (self._slice_before_us + by_us) & TIMESTAMP_MASK
        if self._level_us >= 0:
            self._level_us = (self._level_us + by_us) & TIMESTAMP_MASK
        if self._before_rise >= 0:
            self._before_rise = (self._before_rise + by_us) & TIMESTAMP_MASK

    def tilt(self, by_ppb: int, *, now: int) -> None:
        """The clocks have been drifting apart faster by so many billionths than was known: correct what is remembered,
        by its age.
        """
        if self.value_us < 0:
            return
        if self.minima is not None and self.minima_at is not None:
            for index, at in enumerate(self.minima_at):
                by_us = (now - at) * by_ppb // 1_000_000_000
                self.minima[index] = (self.minima[index] + by_us) & TIMESTAMP_MASK
        self.lowest_us = (self.lowest_us + (now - self.lowest_at) * by_ppb // 1_000_000_000) & TIMESTAMP_MASK
        self._choose()

    # ── routes ──

    def end_slice(self, window_bytes: int, target_us: int, *, now: int) -> bool:
        """A slice of time is over. Returns whether the base has risen: the route is a longer one.

        window_bytes   the congestion window
        target_us      the queueing delay that the controller keeps to
        """
        low_us, before_us = self.slice_us, self._slice_before_us
        if low_us < 0:
            return False  # no sample
        window_before = min(self._window_before, self._window_earlier)
        self._window_earlier, self._window_before = self._window_before, window_bytes
        self.slice_us, self._slice_before_us = -1, low_us
        if self._before_rise >= 0:
            if _above(self._level_us, low_us) > _LEVEL_US:
                self._revert()
            elif now - self._rose_at > _REVERT_US:
                self._before_rise = self._level_us = -1
            else:
                return False
        if self._level_us >= 0:
            return self._follow_level(low_us, target_us, now=now)
        if (
            before_us >= 0
            and _above(low_us, before_us) >= MIN_STEP_US
            and _above(low_us, self.value_us) > target_us + _LEVEL_US
            and window_bytes <= window_before + window_before // 8
        ):
            self._level_us = low_us
            self._level_slices = self._flat_slices = 0
            self.step_window_bytes = window_before
        return False

    def _follow_level(self, low_us: int, target_us: int, *, now: int) -> bool:
        above_us = _above(low_us, self._level_us)
        self._level_slices += 1
        if above_us < -_LEVEL_US:
            # What was in the queue before the step leaves first. A queue that drains for longer is one.
            is_route = self._level_slices <= _DRAIN_SLICES and _above(low_us, self.value_us) > target_us + _LEVEL_US
            self._level_us = low_us if is_route else -1
            self._flat_slices = 0
            return False
        if above_us <= _LEVEL_US:
            self._flat_slices += 1
        if self._flat_slices >= self._asked_slices:
            self._rise(now=now)
            return True
        if self._level_slices >= _MAX_RISE_SLICES + self._asked_slices:
            self._level_us = -1
        return False

    def _rise(self, *, now: int) -> None:
        self._before_rise = self.value_us
        self._rose_at = now
        self.value_us = self.lowest_us = self._level_us
        self.lowest_at = now
        self.minima = self.minima_at = None
        self.minute_ends_at = now + _MINUTE_US

    def _revert(self) -> None:
        """It was a queue, since it has become shorter."""
        before_us = self._before_rise
        if _above(before_us, self.value_us) < 0:
            self.value_us = self.lowest_us = before_us
        self._before_rise = self._level_us = -1
        self._asked_slices = min(2 * self._asked_slices, _MAX_FLAT_SLICES)
