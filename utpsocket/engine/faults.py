"""What an exception or an errno of the engine's own means, and to whom it is told.

Separate because every part of this room needs the same words. The rule: whatever is done on the engine's thread is done
for an owner (a connection, a port, a listener, a command, a relay, an attempt), which Loop.owner names while it is
done. An exception that comes out of it, whichever, costs that owner and nobody else: Loop calls owner.fail(errno), then
believes nothing that it remembered of readiness and asks epoll anew. fail() is called again after it has failed
itself half way.

Only the engine's thread calls. Sources: errno(3), unix(7).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, Final

from utpsocket.engine.interpreter.native import sleep
from utpsocket.engine.interpreter.originals import os

TRANSIENT: Final = frozenset({errno.EINTR, errno.ENOBUFS, errno.ENOMEM})
"""Errnos that say nothing about a socket: the same call may succeed in a moment. None of them makes an event."""

NO_ROOM: Final = TRANSIENT | {errno.EAGAIN}
"""With these nothing was sent, and nothing is lost."""

RETRY_US: Final = 1_000  # until a call that failed in this way is made again

_CAREFUL_TRIES: Final = 3  # an owner that cannot even be closed is left as it is
_AT_ONCE: Final = 3  # faults that the thread does not rest after
_REST_SECONDS: Final = 0.001  # whatever it is, it must not take the processor from all others
_MOST_IN_ROW: Final = 1_000  # then something is wrong that costing owners does not mend
_MOST_TRIES: Final = 10
_TOLD: Final = TRANSIENT | {errno.EMFILE, errno.ENFILE, errno.ENOSPC}


def errno_of(error: BaseException) -> int:
    """What a program is told that waits for a call of its own: a lack of something by its name, else ECONNABORTED."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno in _TOLD:
        return int(error.errno) if error.errno != errno.EINTR else errno.ENOBUFS
    return errno.ECONNABORTED


def told(error: BaseException) -> OSError:
    """The OSError for whoever called, by whatever exception it came."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINTR):
        return error
    code = errno_of(error)
    failure = OSError(code, os.strerror(code))
    failure.__cause__ = error
    return failure


class Containment:
    """How a fault is dealt with, and how often in vain.

    in_row   faults without an iteration between them that met none
    """

    __slots__ = ("_tries", "in_row")

    def __init__(self) -> None:
        self._tries = 0
        self.in_row = 0

    def begin(self) -> None:
        """A fault was met; or another one, while it was being contained."""
        self._tries += 1
        self.in_row += 1

    def cost(self, owners: set[Any], error: BaseException) -> bool:
        """Have the owners pay. False: there is no hope for the thread."""
        if self._tries > _MOST_TRIES or self.in_row > _MOST_IN_ROW:
            return False
        if self.in_row > _AT_ONCE:
            sleep(_REST_SECONDS)
        for owner in owners:
            fail = getattr(owner, "fail", None)
            if fail is not None:
                carefully(fail, error)
        return True

    def end(self) -> None:
        """It is contained."""
        self._tries = 0


def carefully(call: Callable[..., object], *arguments: Any) -> None:
    """One of several last acts: the next one is done whatever becomes of this."""
    for _ in range(_CAREFUL_TRIES):
        try:
            call(*arguments)
        except BaseException:
            continue
        return
