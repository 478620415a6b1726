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
        self._value, self._error = value, None if error is None else error.with_traceback(None)
        self._given.release()

    def wait(self) -> Any:
        """Block until answered; return or raise what was given. The thread that asked."""
        self._given.acquire()
        if self._error is not None:
            raise _anew(self._error)
        return self._value


def _anew(error: BaseException) -> BaseException:
    """The same exception without a reference to it in the engine's thread, nor from it into that: what is raised takes
    the program's frames along, and whoever lets go of it last lets go of all that is in them.
    """
    try:
        return type(error)(*error.args)
    except Exception:
        return error
