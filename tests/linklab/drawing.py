"""A run as a plot: rates, losses and the queue as the link saw them, windows and estimates of delay as the sources did.

The rate is that at the link: a receiver that waits for a lost packet gets nothing, and then more than the link can
carry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from tests.linklab.flows import Flow
from tests.linklab.link import Way
from tests.linklab.measured import PASSED, Measured
from utpsocket.cli import plot

STEP_SECONDS: Final = 0.5
"""What rates and losses are taken over."""
LINK_STEP_SECONDS: Final = 0.1


NAMES: Final = {"utp": "utpsocket", "tcp": "TCP", "libutp": "libutp", "libtorrent": "libtorrent"}


def draw(measured: Measured, *, title: str = "") -> str:
    """The plot of this run, as a text."""
    shown = title or ", ".join(flow.name for flow in measured.flows)
    labels = label_all(measured.flows)
    return plot.draw(
        [trace_of(measured, number, label) for number, label in enumerate(labels)],
        title=shown,
        note=describe(measured.ways[0]) + (f". Doubtful: {measured.doubt}" if measured.doubt else ""),
        seconds=measured.seconds,
        link_delay=_link_delay(measured),
    )


def describe(way: Way) -> str:
    """The link from left to right, in words."""
    queue = f"{way.queue_bytes:,} bytes" if way.queue_bytes else f"{way.queue_us / 1e3:g} ms"
    rate = f"{way.rate_bps / 1e6:g} Mbit/s" if way.rate_bps else "no limit of rate"
    chance = f", {100 * way.loss:g} % loss" if way.loss else ""
    return f"{rate}, {way.delay_us / 1e3:g} ms each way, a queue of {queue}{chance}"


def label_all(flows: Sequence[Flow]) -> list[str]:
    """What the flows are called: with a number where several would be called the same."""
    labels = [label_of(flow) for flow in flows]
    return [
        f"{label} ({labels[: place + 1].count(label)})" if labels.count(label) > 1 else label
        for place, label in enumerate(labels)
    ]


def label_of(flow: Flow) -> str:
    """Of one."""
    congestion = f", {flow.congestion}" if flow.congestion else ""
    streams = f", {flow.streams} connections" if flow.streams > 1 else ""
    return f"{NAMES[flow.transport]}{congestion}{streams}{', the other way' if flow.is_back else ''}"


def trace_of(measured: Measured, number: int, name: str) -> plot.Trace:
    """One flow. A source that has several connections is shown as their sum, its delay as their mean."""
    flow = measured.flows[number]
    end = flow.until(measured.seconds)
    steps = max(1, math.ceil((end - flow.start) / STEP_SECONDS))
    bits, losses = [0.0] * steps, [0.0] * steps
    for packet in measured.packets[flow.is_back]:
        # What leaves the queue after the flow's end is left out.
        at = packet.at + (packet.wait_us / 1e6 if packet.fate == PASSED else 0.0)
        step = math.floor((at - flow.start) / STEP_SECONDS)
        if packet.flow == number and 0 <= step < steps:
            bits[step] += 8 * packet.size_bytes * (packet.fate == PASSED)
            losses[step] += packet.fate != PASSED
    middles = [flow.start + (step + 0.5) * STEP_SECONDS for step in range(steps)]
    return plot.Trace(
        name,
        [(second, bit / STEP_SECONDS) for second, bit in zip(middles, bits, strict=True)],
        _of_streams(measured.sources[number], "cwnd_bytes", is_mean=False),
        _of_streams(measured.sources[number], "queueing_delay_us", is_mean=True),
        [*zip(middles, losses, strict=True)],
    )


def _of_streams(lines: list[dict[str, Any]], name: str, *, is_mean: bool) -> list[tuple[float, float | None]]:
    """The lines of one look at all connections follow each other, from connection 0 on."""
    looks: list[tuple[float, list[float]]] = []
    for line in lines:
        if name not in line:
            continue
        if line["stream"] == 0 or not looks:
            looks.append((line["t"], []))
        looks[-1][1].append(line[name])
    return [(second, sum(values) / (len(values) if is_mean else 1)) for second, values in looks if second >= 0]


def _link_delay(measured: Measured) -> list[tuple[float, float | None]]:
    """The mean of each step; no packet means no queue."""
    sums = [[0.0, 0.0] for _ in range(math.ceil(measured.seconds / LINK_STEP_SECONDS))]
    for packet in measured.packets[0]:
        step = math.floor(packet.at / LINK_STEP_SECONDS)
        if packet.fate == PASSED and 0 <= step < len(sums):
            sums[step][0] += packet.wait_us
            sums[step][1] += 1
    return [
        ((step + 0.5) * LINK_STEP_SECONDS, total / count if count else 0.0) for step, (total, count) in enumerate(sums)
    ]
