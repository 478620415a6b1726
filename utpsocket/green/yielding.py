"""Bursts of connects and accepts yield to the rest of the hub.

A uTP connect or accept is a dozen small system calls, and after each the engine's thread may have the interpreter's
lock first: for a tenth of a millisecond, or for three. gevent runs 50 greenlets that are due, or accepts 100
connections, before it looks at its timers again. So the time is measured from the first connect or accept in an
iteration of the hub's event loop. After BURST_SECONDS the others wait for the next iteration.

Called by greenlets and by the hub, on the hub's thread. Source: gevent's libev/corecext.pyx, _run_callbacks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol
from weakref import WeakKeyDictionary

# Some ten connects. A timer of the hub is late by a few such bursts at most; by feel.
BURST_SECONDS: Final = 0.002


class _Timer(Protocol):
    def start(self, callback: Callable[[], None], /) -> object: ...


class _EventLoop(Protocol):
    def timer(self, after: float, *, ref: bool) -> _Timer: ...


class Hub(Protocol):
    """What is used of gevent's hub, which has no types."""

    @property
    def loop(self) -> _EventLoop:
        """Its event loop."""


class HubIteration:
    """The present iteration of one hub's event loop, as far as connects and accepts are concerned."""

    def __init__(self, hub: Hub) -> None:
        self._began_at: float | None = None
        # Unlike callbacks, timers wait for the loop.
        self._timer = hub.loop.timer(0, ref=False)

    def begin(self) -> None:
        """Start the clock, unless a connect or accept has started it in this iteration."""
        if self._began_at is None:
            self._began_at = time.monotonic()
            self._timer.start(self._end)

    @property
    def is_used_up(self) -> bool:
        """Whether no more connects and accepts shall be made in this iteration."""
        return self._began_at is not None and time.monotonic() - self._began_at > BURST_SECONDS

    def _end(self) -> None:
        self._began_at = None


_iterations: WeakKeyDictionary[Hub, HubIteration] = WeakKeyDictionary()


def begin_iteration(hub: Hub) -> HubIteration:
    """This hub's iteration, in which a connect or an accept is about to be made: it has begun now at the latest."""
    iteration = _iterations.get(hub)
    if iteration is None:
        iteration = _iterations[hub] = HubIteration(hub)
    iteration.begin()
    return iteration
