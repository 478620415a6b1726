"""The engine's fds keep out of the numbers that select() can watch: those are the user's.

Separate because every part of the engine that opens a socket needs it. Sources: select(2) FD_SETSIZE, fcntl(2).
"""

from __future__ import annotations

import os
from fcntl import F_DUPFD_CLOEXEC, fcntl
from typing import Any, Final

from utpsocket.engine.native import Socket

_HIGH_FD: Final = 1_024  # FD_SETSIZE


def raise_fd(sock: Any) -> Any:
    """The same socket on a high fd number, non-blocking; itself where the process may have no such number."""
    try:
        high = fcntl(sock.fileno(), F_DUPFD_CLOEXEC, _HIGH_FD)
    except OSError:
        return sock
    raised: Any = None
    try:
        raised = Socket(fileno=high)
        raised.setblocking(False)
    except BaseException:
        os.close(high if raised is None else raised.detach())
        raise
    sock.close()
    return raised
