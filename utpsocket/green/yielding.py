"""Bursts of connects and accepts give way to the rest of the hub.

Separate because it is about fairness, not sockets. A uTP connect or accept is a dozen small system calls, after each of
which the engine's thread may have the interpreter's lock before us: a tenth of a millisecond, or three. gevent runs
50 greenlets that are due, or accepts 100 connections, before it looks at its timers again. So work is counted
from the hub's last turn, and when it has taken BURST_SECONDS, the rest waits for the next one.

Called by greenlets and by the hub, each thread's for itself. Source: gevent's libev/corecext.pyx, _run_callbacks.
"""

from __future__ import annotations

import time
from typing import Any, Final
from weakref import WeakKeyDictionary

BURST_SECONDS: Final = 0.002  # some ten connects; a hub is late by a few of such pieces


class Turn:
    """What one hub has done since its loop last came round."""

    def __init__(self, hub: Any) -> None:
        self._began_at: float | None = None
        self._timer = hub.loop.timer(0, ref=False)  # timers wait for the loop, unlike callbacks

    def is_over(self) -> bool:
        """Whether this turn's time is used up. Counts from the first call in a turn."""
        now = time.monotonic()
        if self._began_at is None:
            self._began_at = now
            self._timer.start(self._end)
            return False
        return now - self._began_at > BURST_SECONDS

    def _end(self) -> None:
        self._began_at = None


_turns: WeakKeyDictionary[Any, Turn] = WeakKeyDictionary()


def turn_of(hub: Any) -> Turn:
    """This hub's turn."""
    turn = _turns.get(hub)
    if turn is None:
        turn = _turns[hub] = Turn(hub)
    return turn
