"""How fast the peer's clock runs away from ours, by the one-way delays of both directions.

The sum of the two delays is the round trip without the clocks; their difference changes by twice what the clocks move
apart, and by what waits in queues. So the sample of the shortest round trip is the best of a period (NTP's clock
filter), and no queue can have changed its difference by more than its round trip is above the shortest of all. Two such
samples bound the rate, and the estimate moves no further than the bounds force it: a queue that drains, in whichever
direction, is never taken for a clock.

Example: two samples 100 s apart, with round trips 1 ms and 3 ms above the shortest; their differences are 100 ms apart.
The rate of the difference is between 96 and 104 ms in 100 s, that of the clocks half of it: 480 to 520 ppm. If the
second round trip had been 120 ms longer than the shortest, the bounds would say nothing.

Sources: RFC 5905 §10 (clock filter); RFC 6817 appendix A.2 (clock skew).
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.times import HALF_TIMESTAMP, TIMESTAMP_MASK

# Clocks of computers are within 500 ppm (RFC 5905 MAXFREQ), so two are within 1,000; what is more is no clock.
MAX_SKEW_PPB: Final = 1_000_000
_NOISE_US: Final = 200  # what timers and interrupts add to a sample. By feel
_MAX_SAMPLES: Final = 12
_MAX_AGE_US: Final = 780_000_000  # as the base delay's history: the rate changes with the temperature
_BILLION: Final = 1_000_000_000


class ClockSkew:
    """The rate, by the best sample of each period.

    rate_ppb    by how much longer, in billionths, our packets' one-way delays become as time passes
    _samples    (when, sum, difference) of the best of the last periods, the oldest first; neighbours are merged when
                there are many
    """

    __slots__ = ("_samples", "rate_ppb")

    def __init__(self) -> None:
        self.rate_ppb = 0
        self._samples: list[tuple[int, int, int]] = []

    def add(self, at: int, sum_us: int, difference_us: int) -> None:
        """Take the sample of a period's shortest round trip.

        at              when it was
        sum_us          one-way delay of ours and of the peer's packets together
        difference_us   ours less the peer's, of 32 bits
        """
        samples = self._samples
        while samples and at - samples[0][0] > _MAX_AGE_US:
            del samples[0]
        if samples:
            self._estimate(at, sum_us, difference_us)
        samples.append((at, sum_us, difference_us))
        if len(samples) > _MAX_SAMPLES:
            # Of each pair the one with the shorter round trip.
            self._samples = [min(pair, key=_sum) for pair in zip(samples[::2], samples[1::2], strict=False)]
            self._samples += samples[len(samples) & ~1 :]

    def _estimate(self, at: int, sum_us: int, difference_us: int) -> None:
        shortest_us = sum_us
        for _, other_us, _ in self._samples:
            if other_us < shortest_us:
                shortest_us = other_us
        least, most = -2 * MAX_SKEW_PPB, 2 * MAX_SKEW_PPB
        for then, then_sum_us, then_difference_us in self._samples:
            error_us = sum_us + then_sum_us - 2 * shortest_us + _NOISE_US
            change_us = (difference_us - then_difference_us) & TIMESTAMP_MASK
            if change_us >= HALF_TIMESTAMP:
                change_us -= TIMESTAMP_MASK + 1
            took_us = max(1, at - then)
            least = max(least, (change_us - error_us) * _BILLION // took_us)
            most = min(most, (change_us + error_us) * _BILLION // took_us)
        if least > most:
            # No rate fits: the route has changed in one direction, or the clock was set. Begin again.
            self._samples.clear()
            return
        self.rate_ppb = min(max(2 * self.rate_ppb, least), most) // 2

    def forget(self) -> None:
        """The path is another one: what was measured on the old one bounds nothing. The rate stays."""
        self._samples.clear()


def _sum(sample: tuple[int, int, int]) -> int:
    return sample[1]
