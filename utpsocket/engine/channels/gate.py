"""The gate of a connect(): a pair whose send buffer is full of filler, so that the user's fd is unwritable."""

from __future__ import annotations

from ctypes import get_errno

from utpsocket.engine.faults import NO_ROOM_ERRNOS
from utpsocket.engine.interpreter import native


def drain_filler(engine_fd: int, remaining_bytes: int) -> int:
    """Read the filler of a gate: without it the user's fd is writable.

    Returns how many bytes of it are left; call again until none is, before anything that the program writes is read.

    The GIL is kept: a thread that waits for this fd must not run before the accept() that belongs to the connect() can
    return.
    """
    while remaining_bytes > 0:
        count = native.receiving(engine_fd, remaining_bytes)()
        if count < 0 and get_errno() in NO_ROOM_ERRNOS:
            return remaining_bytes
        if count <= 0:
            return 0  # the user has closed it
        remaining_bytes -= count
    return 0
