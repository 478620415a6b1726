"""What the controller takes for a queue, and what for the path or the clocks: traces of one-way delays.

Both delays have an offset of the clocks in them, and times that wrap.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from utpsocket.protocol.congestion.ledbat import Ledbat
from utpsocket.protocol.times import TIMESTAMP_MASK

EVERY_US = 20_000  # a sample, where nothing else is said
OFFSETS = (0, 3_000_000_000, TIMESTAMP_MASK - 25_000)


class Trace:
    """A controller that gets a sample every 20 ms. The functions give µs for a time in seconds since the start.

    ours, peers   what waits on the way there and back, beside 20 ms and 30 ms
    """

    def __init__(self, offset_us: int = 0, ppm: int = 0, every_us: int = EVERY_US) -> None:
        self.controller = Ledbat(1_400)
        self.controller.is_slow_start = False
        self.offset_us = offset_us
        self.ppm = ppm
        self.every_us = every_us
        self.now = 0

    def run(
        self,
        seconds: float,
        ours: Callable[[float], float] = lambda second: 0,
        peers: Callable[[float], float] = lambda second: 0,
    ) -> list[int]:
        """Let time pass. Returns all estimates of the queueing delay."""
        estimates = []
        start = self.now
        while self.now < start + seconds * 1e6:
            self.now += self.every_us
            second = (self.now - start) / 1e6
            clock_us = self.offset_us + self.now * self.ppm // 1_000_000
            self.controller.on_peer_delay((30_000 + round(peers(second)) - clock_us) & TIMESTAMP_MASK)
            self.controller.on_delay((20_000 + round(ours(second)) + clock_us) & TIMESTAMP_MASK, now=self.now)
            estimates.append(self.controller.queueing_delay_us)
        return estimates


@pytest.mark.parametrize("offset_us", OFFSETS)
def test_a_longer_route_becomes_the_base_within_five_seconds(offset_us: int) -> None:
    trace = Trace(offset_us)
    trace.run(30, lambda second: min(100_000, second * 20_000))
    assert trace.controller.queueing_delay_us >= 99_000
    # The queue of before leaves within half a second.
    estimates = trace.run(5, lambda second: 130_000 + max(0, 100_000 - second * 200_000))
    assert estimates[2] > 200_000
    assert estimates[-1] == 0
    assert trace.controller.is_slow_start, "the path holds more: the window doubles again"
    assert trace.run(60, lambda second: 190_000)[-1] == 60_000


@pytest.mark.parametrize("offset_us", OFFSETS)
def test_a_shorter_route_becomes_the_base_at_once(offset_us: int) -> None:
    trace = Trace(offset_us)
    trace.run(10, lambda second: 130_000)
    assert trace.run(1)[0] == 0
    assert trace.run(1, lambda second: 50_000)[-1] == 50_000


def test_a_route_that_is_longer_by_less_than_the_target_is_a_queue() -> None:
    """The controller fills the rest of the target, so the link is used all the same."""
    trace = Trace()
    trace.run(10)
    assert trace.run(60, lambda second: 90_000)[-1] == 90_000


def test_a_queue_that_stands_without_a_step_is_a_queue() -> None:
    """CUBIC's grows, and stands still for seconds before it loses."""
    trace = Trace()
    trace.run(10)
    trace.run(10, lambda second: 30_000 * second)
    assert trace.run(60, lambda second: 300_000)[-1] == 300_000


def test_a_step_that_our_own_window_has_caused_is_a_queue() -> None:
    trace = Trace()
    trace.run(10)
    trace.controller.window_bytes *= 2
    assert trace.run(60, lambda second: 150_000)[-1] == 150_000


def test_a_queue_that_drains_slowly_is_no_route() -> None:
    """LEDBAT's, after the round trip has become shorter by the queue of the way back."""
    trace = Trace()
    trace.run(10)
    assert trace.run(10, lambda second: 280_000 - 4_000 * second)[-1] == 240_000


def test_a_level_that_is_gone_below_was_a_queue_and_the_next_one_is_watched_for_longer() -> None:
    trace = Trace()
    trace.run(10)
    assert trace.run(5, lambda second: 300_000)[-1] == 0
    assert trace.run(2, lambda second: 200_000)[-1] == 200_000
    trace.run(2)
    assert trace.run(5, lambda second: 300_000)[-1] == 300_000
    assert trace.run(5, lambda second: 300_000)[-1] == 0
    trace.run(2)
    assert trace.run(8, lambda second: 300_000)[-1] == 300_000


@pytest.mark.parametrize("offset_us", OFFSETS)
@pytest.mark.parametrize("drains_in", [0.1, 0.4, 3.0, 30.0])
def test_a_way_back_that_was_full_and_drains_is_no_clock(drains_in: float, offset_us: int) -> None:
    trace = Trace(offset_us)
    trace.run(15, lambda second: min(100_000, second * 50_000), lambda second: 400_000)
    estimates = trace.run(
        max(60, drains_in), lambda second: 100_000, lambda second: max(0, 400_000 * (1 - second / drains_in))
    )
    assert min(estimates) >= 95_000 and max(estimates) <= 105_000


@pytest.mark.parametrize(("ppm", "offset_us"), list(zip((500, -100, -500), OFFSETS, strict=True)))
def test_clocks_that_run_apart_for_hours_are_no_queue(ppm: int, offset_us: int) -> None:
    """The queue is empty for a third of a second in each ten, as after a slowdown."""
    trace = Trace(offset_us, ppm, every_us=100_000)
    trace.run(30, lambda second: 0)
    for _ in range(20):
        estimates = trace.run(360, lambda second: 60_000 if second % 10 > 0.35 else 0)
        high = [estimate for estimate in estimates if estimate > 30_000]
        assert min(high) >= 55_000 and max(high) <= 65_000


@pytest.mark.parametrize("ppm", [500, -500])
def test_clocks_that_run_apart_are_no_longer_route(ppm: int) -> None:
    """With a queue that is never empty the drift is found later, and never taken for the path."""
    trace = Trace(0, ppm, every_us=100_000)
    estimates = trace.run(600, lambda second: 60_000)
    assert max(estimates) <= 300_000
    skew = trace.controller._skew
    assert skew is not None and abs(skew.rate_ppb - ppm * 1_000) <= 5_000


def test_round_trips_stand_for_the_delays_that_a_peer_does_not_measure() -> None:
    controller = Ledbat(1_400)
    for number in range(20):
        controller.on_round_trip(50_000 + 1_000 * number, now=number * 50_000)
    assert controller.queueing_delay_us == 17_000
    controller.on_delay(3_000_000_000, now=1_000_000)
    assert controller.queueing_delay_us == 0, "the first one of its own begins anew"


def test_a_base_delay_is_forgotten_after_thirteen_minutes() -> None:
    """RFC 6817's BASE_HISTORY, of delays that have risen slowly: no step tells a route from a queue."""
    trace = Trace(every_us=100_000)
    trace.run(10)
    trace.run(10, lambda second: 5_000 * second)
    assert trace.run(12 * 60, lambda second: 50_000)[-1] == 50_000
    assert trace.run(2 * 60, lambda second: 50_000)[-1] == 0
