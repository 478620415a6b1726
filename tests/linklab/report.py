"""One run for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from tests.linklab.measured import Measured, jain


def spans_alone(measured: Measured, flow: int) -> list[tuple[float, float]]:
    """When this flow is the only one of its direction."""
    own = measured.flows[flow]
    others = [
        (other.start, other.until(measured.seconds))
        for number, other in enumerate(measured.flows)
        if number != flow and other.is_back == own.is_back
    ]
    spans, start, end = [], own.start, own.until(measured.seconds)
    for other_start, other_end in sorted(others):
        if other_start > start:
            spans.append((start, min(other_start, end)))
        start = max(start, other_end)
        if start >= end:
            break
    if start < end:
        spans.append((start, end))
    return spans


def span_together(measured: Measured) -> tuple[float, float] | None:
    """When all flows from left to right run; None where there is no such time, or fewer than two flows."""
    flows = [flow for flow in measured.flows if not flow.is_back]
    start = max((flow.start for flow in flows), default=0.0)
    end = min((flow.until(measured.seconds) for flow in flows), default=0.0)
    return (start, end) if len(flows) > 1 and start < end else None


def as_json(measured: Measured) -> dict[str, Any]:
    """What --json prints: docs/commands.md §2."""
    flows = []
    for number, flow in enumerate(measured.flows):
        start, end, way = flow.start, flow.until(measured.seconds), int(flow.is_back)
        alone = spans_alone(measured, number)
        alone_seconds = sum(until - since for since, until in alone)
        alone_bits = sum(
            8 * (measured.bytes_at(number, until) - measured.bytes_at(number, since)) for since, until in alone
        )
        waits = measured.waits(start, end, way, number)
        flows.append(
            {
                "kind": flow.kind,
                "name": flow.name,
                "goodput_bits_per_second": round(measured.goodput(number, start, end)),
                "alone_bits_per_second": round(alone_bits / alone_seconds) if alone_seconds else None,
                "mean_queueing_delay_us": round(waits.mean_us),
                "p95_queueing_delay_us": round(waits.p95_us),
                "losses": sum(measured.drops(start, end, way, number)),
            }
        )
    together = span_together(measured)
    rates = [measured.goodput(n, *together) for n, flow in enumerate(measured.flows) if together and not flow.is_back]
    ping = measured.ping(0, measured.seconds)
    return {
        "flows": flows,
        "utilisation": round(measured.utilisation(0, measured.seconds), 4),
        "jain": round(jain(rates), 4) if rates and together else None,
        "ping_us": {name: round(value) for name, value in asdict(ping).items()},
        "emulator": measured.report,
        "doubtful": measured.doubt,
    }


def as_text(measured: Measured, every: float = 1.0) -> str:
    """A line for each second, then a summary."""
    return "\n".join([*_seconds(measured, every), "", *_summary(measured)])


def _seconds(measured: Measured, every: float) -> Iterator[str]:
    names = [flow.name for flow in measured.flows]
    yield "   s  " + "  ".join(names) + "  Mbit/s   wait mean/max ms >   <   ping ms   drops >/<   cwnd kB"
    second = 0.0
    while second + every <= measured.seconds + 1e-9:
        span = second, second + every
        rates = "  ".join(f"{measured.goodput(n, *span) / 1e6:{len(name)}.2f}" for n, name in enumerate(names))
        waits = [measured.waits(*span, way) for way in (0, 1)]
        shown = "  ".join(f"{wait.mean_us / 1e3:6.1f}/{wait.max_us / 1e3:6.1f}" for wait in waits)
        drops = "/".join(str(sum(measured.drops(*span, way))) for way in (0, 1))
        cwnds = " ".join(f"{measured.source(n, span[1]).get('cwnd_bytes', 0) / 1e3:.0f}" for n in range(len(names)))
        yield f"{second:4.0f}  {rates}   {shown}   {measured.ping(*span).mean_us / 1e3:6.1f}   {drops:>7}   {cwnds}"
        second += every


def _summary(measured: Measured) -> Iterator[str]:
    for number, flow in enumerate(measured.flows):
        start, end = flow.start, flow.until(measured.seconds)
        last = measured.source(number, end)
        hidden = ("t", "stream", "cpu_seconds")
        figures = " ".join(f"{name}={value}" for name, value in last.items() if name not in hidden)
        cpu = "{:.2f} + {:.2f}".format(*measured.cpu_shares(number, start, end))
        yield f"{flow.name}: {measured.goodput(number, start, end) / 1e6:.2f} Mbit/s; CPUs {cpu}; {figures}"
    whole = 0.0, measured.seconds
    for way, sign in enumerate("><"):
        full, chance = measured.drops(*whole, way)
        used = 100 * measured.utilisation(*whole, way)
        wait = shown_delay(measured.waits(*whole, way))
        yield f"{sign} used {used:.1f} %; wait {wait}; dropped {full} by the full queue, {chance} by chance"
    ping = measured.ping(*whole)
    yield f"ping min {ping.min_us / 1e3:.1f}, {shown_delay(ping)}; {ping.lost} lost"
    yield "emulator: " + ", ".join(f"{name} {value:g}" for name, value in measured.report.items())
    if measured.doubt:
        yield f"DOUBTFUL: {measured.doubt}"


def shown_delay(delay: Any) -> str:
    """Mean, 95th percentile and maximum."""
    return f"mean {delay.mean_us / 1e3:.1f}, p95 {delay.p95_us / 1e3:.1f}, max {delay.max_us / 1e3:.1f} ms"


def shown_flows(names: Sequence[str]) -> str:
    """For a title."""
    return ", ".join(names)
