"""Floods from other processes, against a transfer that runs and against those who want to come in."""

from __future__ import annotations

import contextlib
import statistics
import time
from functools import partial
from typing import Final

import utpsocket
from tests.hostile.flooder import flooding
from tests.hostile.registry import Case, Measured, case
from tests.hostile.victim import Server, sending, serving, visit

_ROUNDS: Final = 3
_SECONDS: Final = 2.0
_VISITORS: Final = 6


def _rate(server: Server, seconds: float) -> float:
    """Bytes per second that the server takes now."""
    before, started = server.figures()["taken_bytes"], time.monotonic()
    time.sleep(seconds)
    after, now = server.figures()["taken_bytes"], time.monotonic()
    return float((after - before) / (now - started))


def kept(rate: int, *, kind: str = "syn", sources: int = 64, merged: bool = False, host: str = "127.0.0.1") -> Measured:
    """How much of a transfer's rate is left while the port is flooded, in alternation with no flood; medians."""
    calm, flooded = [], []
    with serving(host) as server, sending(server.address):
        time.sleep(0.5)
        for number in range(_ROUNDS):
            calm.append(_rate(server, _SECONDS))
            with flooding(
                server.address, kind=kind, rate=rate, seconds=20, sources=sources, seed=number, merged=merged
            ):
                time.sleep(0.5)
                flooded.append(_rate(server, _SECONDS))
            time.sleep(0.5)
    without, under = statistics.median(calm), statistics.median(flooded)
    return Measured(under / without, f"{without / 1e6:.1f} MB/s without, {under / 1e6:.1f} MB/s under the flood")


def slowest_visit(rate: int, *, kind: str = "syn", sources: int = 64, merged: bool = False) -> Measured:
    """How long the slowest of those takes who come while the port is flooded."""
    with serving() as server:
        visit(server.address)
        with flooding(server.address, kind=kind, rate=rate, seconds=30, sources=sources, merged=merged):
            time.sleep(0.5)
            took = [visit(server.address, timeout=5.0) for _ in range(_VISITORS)]
    return Measured(max(took), "each: " + ", ".join(f"{one:.3f}" for one in took))


def aftermath(rate: int) -> Measured:
    """What part of a processor the server uses in the second after a flood of a second has ended."""
    with serving() as server:
        visit(server.address)
        with flooding(server.address, rate=rate, seconds=1.0) as attacker:
            attacker.wait()
        time.sleep(0.2)
        before = server.figures()
        time.sleep(1.0)
        after = server.figures()
        if visit(server.address, timeout=3.0) > 3.0:
            return Measured(1.0, "no client gets in")
    used = after["cpu_seconds"] - before["cpu_seconds"]
    return Measured(used, f"{after['wakeups'] - before['wakeups']} wake-ups, {after['rss_bytes'] >> 20} MiB resident")


def deaf(rate: int) -> Measured:
    """What part of a processor a flood costs a server that never accepts and whose backlog is full."""
    with serving(backlog=4, accepts=False) as server, contextlib.ExitStack() as stack:
        with contextlib.suppress(TimeoutError):
            while True:  # false addresses do not fill a backlog: they prove nothing
                stack.enter_context(utpsocket.create_connection(server.address, timeout=1.0))
        with flooding(server.address, rate=rate, seconds=20, sources=0):
            time.sleep(1.0)
            before, started = server.figures(), time.monotonic()
            time.sleep(_SECONDS)
            after, now = server.figures(), time.monotonic()
    used = (after["cpu_seconds"] - before["cpu_seconds"]) / (now - started)
    return Measured(used, f"{after['connections']} connections, {after['rss_bytes'] >> 20} MiB resident")


def register() -> None:
    """Make the cases known."""
    for name, rate, least in (("20k", 20_000, 0.5), ("90k", 90_000, 0.2)):
        case(Case(f"flood_{name}", least, "ratio", partial(kept, rate), at_least=True))
        case(Case(f"flood_{name}_one_source", least, "ratio", partial(kept, rate, sources=1), at_least=True))
        case(Case(f"flood_{name}_spoofed", least, "ratio", partial(kept, rate, sources=0), at_least=True))
        case(Case(f"flood_{name}_spoofed_visit", 3.0, "s", partial(slowest_visit, rate, sources=0)))
        case(Case(f"flood_{name}_merged", least, "ratio", partial(kept, rate, merged=True), at_least=True))
        case(Case(f"flood_{name}_visit", 3.0, "s", partial(slowest_visit, rate)))
        case(Case(f"flood_{name}_merged_visit", 3.0, "s", partial(slowest_visit, rate, merged=True)))
    for kind in ("syn_payload", "same_syn", "data", "state", "reset", "short", "garbage", "version"):
        case(Case(f"flood_{kind}", 0.2, "ratio", partial(kept, 90_000, kind=kind), at_least=True))
        case(Case(f"flood_{kind}_visit", 3.0, "s", partial(slowest_visit, 90_000, kind=kind)))
    case(Case("flood_ipv6", 0.2, "ratio", lambda: kept(90_000, host="::1"), at_least=True))
    case(Case("flood_backlog_full", 0.5, "s/s", lambda: deaf(90_000)))
    case(Case("flood_aftermath", 0.1, "s/s", lambda: aftermath(90_000)))
