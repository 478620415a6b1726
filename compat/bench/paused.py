"""paused_alone and paused_beside_bulk: how long a message of 1 byte and its answer take, one every 2 ms."""

from __future__ import annotations

from typing import Final

from compat.bench.pair import pair
from compat.bench.sample import Sample
from compat.peers.children import Failed

BULK_CONNECTIONS: Final = 4


def paused(subject: str, seconds: float, *, parallel: int, kind: str = "sent") -> Sample:
    """The median of the round trips in ms; further figures: p99, and what the connections beside it moved.

    parallel   connections that carry bulk beside it
    kind       "sent": by the process that asks; "received": by it
    """
    settings = {"side": "paused_side", "kind": kind, "seconds": seconds, "parallel": parallel}
    with pair(subject, subject, settings) as both:
        accepted, dialed = both.measure()
    if accepted["bytes"] != dialed["bytes"]:
        raise Failed(f"{dialed['bytes']} bytes at one side, {accepted['bytes']} at the other")
    trips_ms = sorted(1_000 * trip for trip in dialed["trips"])
    more = {"p99_ms": trips_ms[-1 - len(trips_ms) // 100]}
    if parallel:
        took = max(accepted["ended"], dialed["ended"]) - min(accepted["started"], dialed["started"])
        more["bulk_mb_per_second"] = dialed["bytes"] / took / 1e6
    return Sample(trips_ms[len(trips_ms) // 2], None, more)
