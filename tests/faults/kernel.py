"""System calls that fail: each kind of call with each errno that it may have, the next one, and all for a second.

On TCP's terms: what a send over UDP meets (no route, a firewall's EPERM, no buffers) costs no connection that stands,
as it costs none of TCP's: the packet is lost, and sent again. A lack of memory or buffers at the pair costs nobody
anything but time. Where a connection does end, both its ends get an errno; an end of file is only ever
the peer's own. A point reads `kernel:<call>:<once or second>:<errno>`.

Separate from engine.py, which has the points that are lines of code; both use worker.py.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tests.faults.calls import CALLS
from tests.faults.engine import run
from tests.faults.report import Note, Report

NAME = "kernel"
_LENGTHS = {"once": 0.0, "second": 1.0}
_QUICK_OF = 9
_PLAIN_ONLY = ("socket.send", "socket.receive")


def points(*, quick: bool) -> list[str]:
    has_epoll = os.environ.get("UTPSOCKET_POLLER") != "poll"  # poll() has no registrations for which memory may lack
    found = [
        f"{NAME}:{call}:{length}:{error}"
        for call, errors in CALLS.items()
        if has_epoll or not call.startswith("epoll_")
        for error in errors
        for length in _LENGTHS
    ]
    if quick:
        # Those that must fail nobody, and some of the others.
        return [point for number, point in enumerate(found) if number % _QUICK_OF == 0 or ":second:ENOBUFS" in point]
    return found


def parsed(point: str) -> dict[str, Any]:
    _, call, length, error = point.split(":")
    if call not in CALLS or length not in _LENGTHS:
        raise ValueError(f"{point}: no such call, or neither once nor second")
    return {"call": call, "error": error, "seconds": _LENGTHS[length]}


def inject(points: Sequence[str], note: Note) -> Report:
    return run(points, parsed, note)
