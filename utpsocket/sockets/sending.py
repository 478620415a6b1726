"""send() and sendall() without a release of the GIL, where the engine is in another process.

The socket module releases the GIL around send(2). A thread that computes takes it then, and keeps it for a switch
interval, 5 ms: so a program that sends 256 KiB at a time beside such a thread sends 50 MB/s, however fast the engine
is. What there is room for in the socket pair takes no waiting, but a copy, 50 µs for 256 KiB. So it is written with the
GIL held, and only what must wait is left to the socket module. Where the engine is a thread of this process it must
read meanwhile, for which it needs the GIL.

Any thread may call. Sources: CPython's Modules/socketmodule.c; send(2) MSG_DONTWAIT.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from utpsocket.engine.kernel.native_calls import Stream
from utpsocket.engine.kernel.syscalls import PlainStream
from utpsocket.protocol.build import IS_COMPILED
from utpsocket.sockets import lifecycle

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.arguments import ReadableBuffer
    from utpsocket.engine.interpreter.native import Socket

# Others are left to the socket module, which knows what it may raise for them.
_KINDS: Final = (bytes, bytearray, memoryview)
_keeps_gil: Final = Stream is not PlainStream


def sent_at_once(sock: Socket, data: ReadableBuffer, flags: object) -> int:
    """Send as much of the data as there is room for, of a socket whose engine is in another process.

    Returns how many bytes were taken, 0 if it is left to the socket module. Raises ECONNRESET, which the kernel reports
    once; any other error comes again from the socket module's call.
    """
    if flags or not _keeps_gil or type(data) not in _KINDS:
        return 0
    view = memoryview(data)
    if not view.nbytes or not view.c_contiguous or not (IS_COMPILED or _has_address(view)):
        return 0
    try:
        count = Stream(sock).send([view])
    except ValueError:
        return 0  # it is closed
    if count == -errno.ECONNRESET:
        raise lifecycle.os_error(errno.ECONNRESET)
    return max(0, count)


def _has_address(view: memoryview) -> bool:
    """Whether ctypes finds the memory without copying it."""
    return not view.readonly or (isinstance(view.obj, bytes) and view.nbytes == len(view.obj))
