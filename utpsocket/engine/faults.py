"""Faults: exceptions on the engine's thread, and errnos that say that the machine is short of something.

The rule: all that the engine's thread does, it does for an owner (a connection, a port, a listener, a command, a relay,
an attempt), and Loop.owner is set to it meanwhile. Any exception ends that owner and no other: Loop calls
owner.fail(error), then forgets which fds were ready and re-arms epoll. If fail() raises, it is called again.

Only the engine's thread calls. Sources: errno(3), unix(7).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from utpsocket.engine.interpreter.native import sleep
from utpsocket.engine.interpreter.originals import os

TRANSIENT_ERRNOS: Final = frozenset({errno.EINTR, errno.ENOBUFS, errno.ENOMEM})
"""Errnos that say nothing about a socket: the same call may succeed in a moment. None of them makes an event."""

NO_ROOM_ERRNOS: Final = TRANSIENT_ERRNOS | {errno.EAGAIN}
"""A send that fails with one of these has sent nothing, and may be repeated."""

# Until a call that has failed with one of these is repeated, µs; by feel.
RETRY_US: Final = 1_000

# All by feel: calls of fail() of one owner, which is then left as it is; faults in a row without a pause, and the pause
# after further ones, so that the engine does not occupy the processor; faults in a row after which the engine ends; and
# faults while one of them is contained.
_CALL_TRIES: Final = 3
_FAULTS_WITHOUT_PAUSE: Final = 3
_PAUSE_SECONDS: Final = 0.001
_MAX_IN_ROW: Final = 1_000
_MAX_TRIES: Final = 10
# Errnos that a program is given as they are (errno_of).
_REPORTED_AS_THEY_ARE: Final = TRANSIENT_ERRNOS | {errno.EMFILE, errno.ENFILE, errno.ENOSPC}


def errno_of(error: BaseException) -> int:
    """The errno for a program's call that an exception of the engine has ended: that of a lack of memory, of fds or of
    room, else ECONNABORTED.
    """
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno in _REPORTED_AS_THEY_ARE:
        return int(error.errno) if error.errno != errno.EINTR else errno.ENOBUFS
    return errno.ECONNABORTED


def to_os_error(error: BaseException) -> OSError:
    """The OSError that a program's call raises for an exception of the engine's thread."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINTR):
        return error
    code = errno_of(error)
    failure = OSError(code, os.strerror(code))
    failure.__cause__ = error
    return failure


class Containment:
    """Ends the owners of faults, and counts faults in a row.

    in_row   faults without an iteration in between that had none
    """

    __slots__ = ("_tries", "in_row")

    def __init__(self) -> None:
        self._tries = 0
        self.in_row = 0

    def begin(self) -> None:
        """There was a fault, perhaps while an earlier one was being contained."""
        self._tries += 1
        self.in_row += 1

    def end_owners(self, owners: set[object], error: BaseException) -> bool:
        """Call fail() of each owner. Returns False if there were too many faults in a row: the engine must end."""
        if self._tries > _MAX_TRIES or self.in_row > _MAX_IN_ROW:
            return False
        if self.in_row > _FAULTS_WITHOUT_PAUSE:
            sleep(_PAUSE_SECONDS)
        for owner in owners:
            fail = getattr(owner, "fail", None)
            if fail is not None:
                retry_call(fail, error)
        return True

    def end(self) -> None:
        """The fault is contained."""
        self._tries = 0


def retry_call(call: Callable[..., object], *arguments: object) -> None:
    """Call it until it raises nothing, at most _CALL_TRIES times. Raises nothing itself."""
    for _ in range(_CALL_TRIES):
        try:
            call(*arguments)
        except BaseException:
            continue
        return
