"""When to try again what makes no event: room in the kernel's accept queue, or a free fd number.

Both halves of a listener need it (listener.py, tcp_listener.py). An accept() that is called in Python by a process that
the engine serves sends the engine a command: expect_success(). Any other accept() does not, so the engine also tries
whenever it wakes up for something else; and by a timer, after as long again as it has waited, at most half a second.

    Example, in ms since the first failure. Tried in vain at 0: again at 2 at the latest. In vain at 2, 4, 8 …: again at
    4, 8, 16 …. From 500 on, every 500. A queue from which nothing is taken so costs two calls a second.

Only the engine's thread calls. Times: µs.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.times import NEVER

_MIN_WAIT_US: Final = 2_000  # by feel: a program that accepts in a loop takes less
_MAX_WAIT_US: Final = 500_000  # by feel: the longest that an accept() may wait for what is already there


class Retries:
    """Of one thing that is tried again and again."""

    __slots__ = ("_allowed_at", "_since")

    def __init__(self) -> None:
        self._since: int | None = None  # when it first failed; None: it has not
        self._allowed_at = NEVER  # from when on it may be tried as soon as the engine is awake

    def next_at(self, *, now: int) -> int:
        """It has failed. Returns when to try again at the latest."""
        if self._since is None:
            self._since = now
        self._allowed_at = now + _MIN_WAIT_US
        return now + max(_MIN_WAIT_US, min(now - self._since, _MAX_WAIT_US))

    def is_due(self, *, now: int) -> bool:
        """Whether it may be tried before next_at(), now that the engine is awake."""
        return now >= self._allowed_at

    def expect_success(self) -> None:
        """Something has happened by which it is likely to succeed now: is_due() from here on, if it is waited for."""
        if self._allowed_at != NEVER:
            self._allowed_at = 0

    def on_progress(self) -> None:
        """Some of it has succeeded: the next failure counts as the first, and what is left still waits to be tried."""
        self._since = None

    def reset(self) -> None:
        """It has succeeded: the next failure counts as the first."""
        self._since = None
        self._allowed_at = NEVER
