"""The cases: what runs over which link, what is measured of it, and what is wanted.

The subject of a case is a kind of flow (flows.py). Most links have 20 Mbit/s, a round trip of 50 ms and a queue of
500 ms; a flow can have GOODPUT_BPS of payload there. Goals are the project's own, but for those of `validate` and of
QUICK: they say that the lab is right, and that nothing is badly wrong.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.linklab.flows import Flow
from tests.linklab.link import Change, Way
from tests.linklab.measured import Measured, jain

GOODPUT_BPS: Final = 19_300_000
"""20 Mbit/s less the headers: 1,448 bytes of 1,500 with TCP's timestamps, 1,452 with uTP's header."""
AT_TARGET_MS: Final = 80.0
"""A mean delay that counts as at the target, whose largest is 60 ms: room for what several flows add by probing."""


@dataclass(frozen=True)
class Figure:
    """One figure of one run.

    value   None: it did not come to it, which misses every goal
    digits  behind the point, where it is shown
    """

    name: str
    value: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    digits: int = 1

    @property
    def goal(self) -> str:
        """As text; empty where there is none."""
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    @property
    def status(self) -> str:
        """met or missed; empty where there is no goal."""
        if not self.goal:
            return ""
        if self.value is None:
            return "missed"
        # What is shown is compared: 0.949 is shown as 0.95.
        value = round(self.value, self.digits)
        is_less = self.at_least is not None and value < self.at_least
        is_more = self.at_most is not None and value > self.at_most
        return "missed" if is_less or is_more else "met"

    @property
    def shown(self) -> str:
        """With its unit."""
        if self.value is None:
            return "never" if self.goal else "–"
        return f"{self.value:.{self.digits}f} {self.unit}".rstrip()

    def as_json(self) -> dict[str, Any]:
        """What --json prints of it."""
        value = None if self.value is None else round(self.value, 4)
        return {"name": self.name, "value": value, "unit": self.unit, "goal": self.goal, "status": self.status}


@dataclass(frozen=True)
class Case:
    """One case.

    flows    of a subject: most cases call it with the kind of flow
    figures  of a run
    tcp      congestion controls that the kernel must have
    streams  it has several connections in one process
    """

    name: str
    what: str
    seconds: float
    flows: Callable[[str], list[Flow]]
    figures: Callable[[Measured], Iterator[Figure]]
    forward: Way = field(default_factory=Way)
    back: Way | None = None
    changes: Sequence[Change] = ()
    tcp: Sequence[str] = ()
    streams: int = 1


def mbit(name: str, bits_per_second: float, *, at_least: float | None = None, at_most: float | None = None) -> Figure:
    return Figure(name, bits_per_second / 1e6, "Mbit/s", at_least, at_most, 2)


def ms(name: str, us: float | None, *, at_least: float | None = None, at_most: float | None = None) -> Figure:
    return Figure(name, None if us is None else us / 1e3, "ms", at_least, at_most, 0)


def seconds(name: str, value: float | None, *, at_least: float | None = None, at_most: float | None = None) -> Figure:
    return Figure(name, value, "s", at_least, at_most, 2)


def fairness(name: str, rates: Sequence[float], *, at_least: float | None = None) -> Figure:
    return Figure(name, jain(rates), "", at_least, None, 2)


def share(name: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> Figure:
    return Figure(name, 100 * value, "%", at_least, at_most, 1)


def _alone(run: Measured) -> Iterator[Figure]:
    wait = run.waits(5, 60)
    yield share("utilisation", run.utilisation(5, 60), at_least=99)
    yield ms("queueing delay, mean", wait.mean_us, at_most=65)
    yield ms("queueing delay, 95 %", wait.p95_us, at_most=80)
    yield seconds("95 % of the rate after", run.reaches(0, 0.95 * GOODPUT_BPS, 0), at_most=2)
    yield ms("largest queueing delay of the first 5 s", run.waits(0, 5).max_us, at_most=80)


def _rtt_200(run: Measured) -> Iterator[Figure]:
    yield seconds("90 % of the rate after", run.reaches(0, 0.9 * GOODPUT_BPS, 0), at_most=5)
    yield ms("largest queueing delay of the first 10 s", run.waits(0, 10).max_us, at_most=80)
    yield share("utilisation", run.utilisation(10, 60))
    yield ms("queueing delay, mean", run.waits(10, 60).mean_us)


def _cubic_joins(run: Measured) -> Iterator[Figure]:
    yield mbit("TCP over its 40 s", run.goodput(1, 30, 70), at_least=17.5)
    yield mbit("we, beside it", run.goodput(0, 35, 70), at_most=1)
    yield seconds("TCP has left: 90 % of the rate after", run.reaches(0, 0.9 * GOODPUT_BPS, 70), at_most=3)


def _bbr_joins(run: Measured) -> Iterator[Figure]:
    yield mbit("BBR over its 40 s", run.goodput(1, 20, 60), at_least=15)
    yield mbit("we, beside it", run.goodput(0, 25, 60))


def _cubic_first(run: Measured) -> Iterator[Figure]:
    yield mbit("TCP keeps", run.goodput(0, 20, 80), at_least=18.3)
    yield mbit("we", run.goodput(1, 20, 80))
    yield ms("our delay estimate is wrong by", run.estimate_error_us(1, 40, 80))


PAGES: Final = (20.0, 30.0, 40.0, 50.0)


def _page(run: Measured) -> Iterator[Figure]:
    pages = range(len(PAGES))
    for name, size_bytes, goal in (("200 kB", 200_000, 0.6), ("1 MB", 1_000_000, 1.1)):
        times = [run.time_for(flow, size_bytes) for flow in pages]
        known = [second for second in times if second is not None]
        yield seconds(f"time for {name}", statistics.mean(known) if len(known) == len(times) else None, at_most=goal)
    yield mbit("we, all the time", run.goodput(len(PAGES), 20, 60))


def _shallow(run: Measured) -> Iterator[Figure]:
    yield mbit("TCP over its 60 s", run.goodput(1, 20, 80), at_least=15)
    yield mbit("we, beside it", run.goodput(0, 20, 80))
    yield mbit("we, alone before", run.goodput(0, 5, 20))
    yield mbit("we, alone after", run.goodput(0, 85, 100))


def _second_flow(run: Measured) -> Iterator[Figure]:
    whole, late = ([run.goodput(flow, *span) for flow in (0, 1)] for span in ((30, 150), (120, 150)))
    yield fairness("Jain, 2 min", whole, at_least=0.95)
    yield fairness("Jain, the last 30 s", late, at_least=0.95)
    yield mbit("first flow, the last 30 s", late[0])
    yield mbit("second flow, the last 30 s", late[1])
    yield ms("queueing delay, the last 30 s", run.waits(120, 150).mean_us, at_most=AT_TARGET_MS)
    yield share("utilisation", run.utilisation(30, 150))


def _eight(at_least: float, *, of_one: bool = False) -> Callable[[Measured], Iterator[Figure]]:
    def figures(run: Measured) -> Iterator[Figure]:
        def rates(start: float, end: float) -> list[float]:
            if of_one:
                return [run.goodput(0, start, end, stream) for stream in range(8)]
            return [run.goodput(flow, start, end) for flow in range(8)]

        yield fairness("Jain", rates(10, 90), at_least=at_least)
        yield fairness("Jain, the last 30 s", rates(60, 90))
        yield mbit("the slowest, the last 30 s", min(rates(60, 90)))
        yield ms("queueing delay, mean", run.waits(10, 90).mean_us)
        yield share("utilisation", run.utilisation(10, 90))

    return figures


LONGER_US: Final = 130_000


def _route(run: Measured) -> Iterator[Figure]:
    yield seconds("90 % of the rate after", run.reaches(0, 0.9 * GOODPUT_BPS, 31, 80), at_most=15)
    yield mbit("15 s to 50 s afterwards", run.goodput(0, 45, 80), at_least=round(0.9 * GOODPUT_BPS / 1e6, 1))
    yield ms("queueing delay then", run.waits(45, 80).mean_us)
    yield mbit("the path is short again", run.goodput(0, 85, 120))
    yield ms("queueing delay then, short", run.waits(85, 120).mean_us)


def _way_back_drains(run: Measured) -> Iterator[Figure]:
    # TCP ends at 40 s, and its queue is empty half a second later.
    yield ms("queueing delay from 15 s on, mean", run.waits(55.5, 100).mean_us, at_most=AT_TARGET_MS)
    yield ms("queueing delay from 15 s on, 95 %", run.waits(55.5, 100).p95_us)
    yield mbit("we, while it is full", run.goodput(0, 20, 40), at_least=15)
    yield mbit("we, afterwards", run.goodput(0, 50, 100))


def _uplink(run: Measured) -> Iterator[Figure]:
    beside = run.ping(15, 65)
    yield ms("ping with nothing beside it", run.ping(0, 5).min_us)
    yield ms("ping beside us, mean", beside.mean_us, at_most=115)
    yield ms("ping beside us, 95 %", beside.p95_us)
    yield share("utilisation", run.utilisation(15, 65))


def _lossy(run: Measured) -> Iterator[Figure]:
    yield mbit("we", run.goodput(0, 5, 60), at_least=4)


def _acks(run: Measured) -> Iterator[Figure]:
    yield mbit("we, beside it", run.goodput(0, 22, 60), at_least=15)
    yield mbit("TCP, the other way", run.goodput(1, 22, 60))
    yield ms("queueing delay, mean", run.waits(22, 60).mean_us)


def _skewed(run: Measured) -> Iterator[Figure]:
    for start in (5, 60, 120):
        yield ms(f"queueing delay from {start} s on, mean", run.waits(start, start + 30).mean_us, at_most=AT_TARGET_MS)
    yield share("utilisation", run.utilisation(5, 150), at_least=95)


def _way_back_short(run: Measured) -> Iterator[Figure]:
    yield ms("queueing delay before, mean", run.waits(50, 60).mean_us, at_most=AT_TARGET_MS)
    yield ms("queueing delay from 15 s after on, mean", run.waits(75, 110).mean_us, at_most=AT_TARGET_MS)
    yield mbit("we, before", run.goodput(0, 40, 60))
    yield mbit("we, after", run.goodput(0, 65, 110), at_least=round(0.9 * GOODPUT_BPS / 2e6, 1))


def _alone_long(run: Measured) -> Iterator[Figure]:
    minutes = [run.waits(60 * minute, 60 * minute + 60).mean_us for minute in range(1, 16)]
    yield ms("queueing delay, the largest mean of a minute", max(minutes), at_most=AT_TARGET_MS)
    yield ms("queueing delay, the last minute", minutes[-1], at_most=AT_TARGET_MS)
    yield share("utilisation", run.utilisation(60, 960), at_least=95)


def _validate(run: Measured) -> Iterator[Figure]:
    yield share("TCP's part of what the link can carry", run.goodput(0, 5, 15) / GOODPUT_BPS, at_least=97, at_most=101)
    yield Figure("smallest ping with nothing beside it", run.ping(0, 1.9).min_us / 1e3, "ms", 50, 51)
    # A queue of 200 ms that TCP fills again and again, and the two delays.
    yield Figure("ping beside TCP, 95 %", run.ping(5, 15).p95_us / 1e3, "ms", 215, 262, 0)
    yield Figure("smallest ping, 30 ms longer each way", run.ping(17, 19).min_us / 1e3, "ms", 110, 111)


def _quick_alone(run: Measured) -> Iterator[Figure]:
    yield share("utilisation", run.utilisation(5, 20), at_least=90)
    yield ms("queueing delay, mean", run.waits(5, 20).mean_us, at_most=130)


def _quick_joins(run: Measured) -> Iterator[Figure]:
    # Half of what it would get without us is what a TCP flow would leave it: LEDBAT leaves it more.
    yield mbit("TCP", run.goodput(1, 20, 50), at_least=12)
    yield mbit("we, alone before", run.goodput(0, 5, 15), at_least=17)
    yield mbit("we, beside it", run.goodput(0, 25, 50))


def _of(*cases: Case) -> dict[str, Case]:
    return {case.name: case for case in cases}


def _subject(*spans: tuple[float, float | None]) -> Callable[[str], list[Flow]]:
    return lambda kind: [Flow(kind, start, end) for start, end in spans]


CASES: Final = _of(
    Case("alone", "alone, a queue of 500 ms", 60, _subject((0, None)), _alone),
    Case("rtt-200", "alone, a round trip of 200 ms", 60, _subject((0, None)), _rtt_200, forward=Way(delay_us=100_000)),
    Case(
        "cubic-joins",
        "CUBIC comes after 30 s and leaves after 70 s",
        90,
        lambda kind: [Flow(kind), Flow("cubic", 30, 70)],
        _cubic_joins,
        tcp=["cubic"],
    ),
    Case(
        "bbr-joins",
        "BBR comes after 20 s and leaves after 60 s",
        65,
        lambda kind: [Flow(kind), Flow("bbr", 20, 60)],
        _bbr_joins,
        tcp=["bbr"],
    ),
    Case(
        "cubic-first",
        "CUBIC was there 20 s before us",
        80,
        lambda kind: [Flow("cubic"), Flow(kind, 20)],
        _cubic_first,
        tcp=["cubic"],
    ),
    Case(
        "page",
        "four CUBIC connections of 3 s beside us",
        60,
        lambda kind: [*(Flow("cubic", start, start + 3) for start in PAGES), Flow(kind)],
        _page,
        tcp=["cubic"],
    ),
    Case(
        "shallow",
        "a queue of 31 ms, below the target; CUBIC from 20 s to 80 s",
        100,
        lambda kind: [Flow(kind), Flow("cubic", 20, 80)],
        _shallow,
        forward=Way(queue_us=31_000),
        tcp=["cubic"],
    ),
    Case("second-flow", "a second of us 30 s later", 150, _subject((0, None), (30, None)), _second_flow),
    Case("eight", "8 of us at once", 90, lambda kind: [Flow(kind)] * 8, _eight(0.98)),
    Case(
        "eight-apart",
        "8 of us, each 0.1 s after the one before",
        90,
        lambda kind: [Flow(kind, 0.1 * number) for number in range(8)],
        _eight(0.95),
    ),
    Case(
        "eight-of-one",
        "8 connections of one process, each after the one before",
        90,
        lambda kind: [Flow(kind, streams=8)],
        _eight(0.95, of_one=True),
        streams=8,
    ),
    Case(
        "route",
        "the path becomes 130 ms longer each way after 30 s, and short again after 80 s",
        120,
        _subject((0, None)),
        _route,
        forward=Way(delay_us=20_000),
        changes=[
            Change(30, "", {"delay_us": 20_000 + LONGER_US}),
            Change(80, "", {"delay_us": 20_000}),
        ],
    ),
    Case(
        "way-back",
        "CUBIC has filled the way back when we begin at 15 s, and ends at 40 s",
        100,
        lambda kind: [Flow(kind, 15), Flow("cubic", 0, 40, is_back=True)],
        _way_back_drains,
        tcp=["cubic"],
    ),
    Case(
        "uplink",
        "an uplink of 1 Mbit/s with a queue of 1 s, 8 Mbit/s down",
        65,
        _subject((5, None)),
        _uplink,
        forward=Way(1_000_000, 20_000, 1_000_000),
        back=Way(8_000_000, 20_000, 200_000),
    ),
    Case("loss", "alone, 1 % of the packets lost at random", 60, _subject((0, None)), _lossy, Way(loss=0.01), Way()),
    Case(
        "acks",
        "a CUBIC download fills the way of our acks from 20 s to 60 s",
        65,
        lambda kind: [Flow(kind), Flow("cubic", 20, 60, is_back=True)],
        _acks,
        tcp=["cubic"],
    ),
)
"""Those of the table."""

VALIDATE: Final = Case(
    "validate",
    "is the lab right: CUBIC alone from 2 s to 15 s, a queue of 200 ms; a path 30 ms longer from 16 s on",
    20,
    lambda kind: [Flow("cubic", 2, 15)],
    _validate,
    forward=Way(queue_us=200_000),
    changes=[Change(16, "", {"delay_us": 55_000})],
    tcp=["cubic"],
)

QUICK: Final = (
    VALIDATE,
    Case("quick-alone", "alone", 20, _subject((0, None)), _quick_alone),
    Case(
        "quick-joins",
        "CUBIC comes after 15 s",
        50,
        lambda kind: [Flow(kind), Flow("cubic", 15)],
        _quick_joins,
        tcp=["cubic"],
    ),
)
"""Two minutes, with goals that a busy machine does not miss."""

FURTHER: Final = _of(
    Case(
        "clock-fast",
        "alone, our clock 500 millionths too fast",
        150,
        lambda kind: [Flow(kind, ppm=500)],
        _skewed,
    ),
    Case(
        "clock-slow",
        "alone, our clock 500 millionths too slow",
        150,
        lambda kind: [Flow(kind, ppm=-500)],
        _skewed,
    ),
    Case(
        "way-back-short",
        "CUBIC has filled a short queue on the way back when we begin at 10 s, and ends at 60 s; 10 Mbit/s",
        110,
        lambda kind: [Flow(kind, 10), Flow("cubic", 0, 60, is_back=True)],
        _way_back_short,
        forward=Way(10_000_000, 15_000, 600_000),
        back=Way(10_000_000, 15_000, 150_000),
        tcp=["cubic"],
    ),
    Case(
        "both-ways",
        "one of us stands at its target on the way back when another begins at 20 s, and ends at 60 s; 10 Mbit/s",
        110,
        lambda kind: [Flow(kind, 20), Flow(kind, 0, 60, is_back=True)],
        _way_back_short,
        forward=Way(10_000_000, 25_000, 600_000),
    ),
    Case(
        "alone-long",
        "alone for 16 min, longer than the base delay's history; 5 Mbit/s",
        960,
        _subject((0, None)),
        _alone_long,
        forward=Way(5_000_000, 25_000, 1_000_000),
    ),
)
"""Beside the table: what has been taken for something else before."""

EVERY: Final = {**CASES, **FURTHER, **{case.name: case for case in QUICK}}
