"""The answer to a call through the engine's door.

Separate from loop.py because it is the one thing that two threads wait at.
"""

from __future__ import annotations

from typing import Any

from utpsocket.engine.native import allocate_lock


class Answer:
    """What a verb returned or raised, for the thread that waits for it."""

    __slots__ = ("_error", "_given", "_value")

    def __init__(self) -> None:
        self._given = allocate_lock()
        self._given.acquire()

    def give(self, value: Any, error: BaseException | None) -> None:
        """Answer, once. The engine's thread."""
        self._value, self._error = value, error
        self._given.release()

    def wait(self) -> Any:
        """Block until answered; return or raise what was given. The thread that asked."""
        self._given.acquire()
        if self._error is not None:
            raise self._error
        return self._value
