"""recv() and send() for the sockets of a hub, with the interpreter's lock (GIL) kept, where ctypes can make the call.

The socket module releases the lock around every call. While the engine is at work, the hub then waits to get it back,
though a non-blocking call takes microseconds: with a hundred greenlets most of an iteration is waiting. This is done as
in utpsocket/engine/kernel/syscalls.py, under the same conditions.

Called by the hub's thread, for sockets that do not block. Sources: recv(2), send(2), Doc/library/ctypes.rst (PyDLL).
"""

from __future__ import annotations

import ctypes
from typing import Final

from utpsocket.engine.interpreter import libc
from utpsocket.engine.kernel import syscalls

IS_POSSIBLE: Final = syscalls.keeps_gil()
_MSG_DONTWAIT: Final = 0x40
_MSG_NOSIGNAL: Final = 0x4000
# What an AF_UNIX socket takes at once.
_MAX_SEND_BYTES: Final = 256 << 10

_recv, _send = libc.recv, libc.send
_char = ctypes.c_char


def receive_into(fd: int, room: memoryview) -> int:
    """Receive into `room`, which must be writable and not empty. Returns how many bytes, 0 at the end of the stream, or
    a negative errno.
    """
    count = _recv(fd, ctypes.addressof(_char.from_buffer(room)), room.nbytes, _MSG_DONTWAIT)
    return count if count >= 0 else -ctypes.get_errno()


def send(fd: int, data: bytes | bytearray | memoryview) -> int:
    """Send bytes, or the first of them. Returns how many, or a negative errno."""
    if type(data) is not bytes:
        view = memoryview(data)
        whole = view.obj
        data = (
            whole if type(whole) is bytes and view.nbytes == len(whole) else view.cast("B")[:_MAX_SEND_BYTES].tobytes()
        )
    count = _send(fd, data, len(data), _MSG_DONTWAIT | _MSG_NOSIGNAL)
    return count if count >= 0 else -ctypes.get_errno()
