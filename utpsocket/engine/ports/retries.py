"""When to try again what makes no event: room in the kernel's queue of accepts, or a free fd.

Separate because both halves of a listener of both need it. accept() tells the engine where it is called in Python by a
process that the engine serves. Otherwise it may try whenever it wakes up for anything; and of itself after as long
again as it has waited, at most half a second: a queue from which nobody takes costs nothing.

Only the engine's thread calls.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.times import NEVER

_LEAST_US: Final = 2_000
_MOST_US: Final = 500_000


class Retries:
    """Of one thing that is tried."""

    __slots__ = ("_may_at", "_since")

    def __init__(self) -> None:
        self._since: int | None = None  # it has been in vain
        self._may_at = NEVER

    def next_at(self, *, now: int) -> int:
        """It was tried in vain: when to try again at the latest."""
        if self._since is None:
            self._since = now
        self._may_at = now + _LEAST_US
        return now + max(_LEAST_US, min(now - self._since, _MOST_US))

    def is_due(self, *, now: int) -> bool:
        """Whether it may be tried before its time, now that the engine is awake."""
        return now >= self._may_at

    def expect_success(self) -> None:
        """It is likely to succeed, if it is still waited for."""
        if self._may_at != NEVER:
            self._may_at = 0

    def reset(self) -> None:
        """What follows is tried at once."""
        self._since = None
        self._may_at = NEVER
