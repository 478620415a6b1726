"""The functions of the standard library's `socket` module that make stream sockets, over uTP.

Each is the running interpreter's own function with its global name `socket` bound to our class: the same code, so the
same behaviour of this Python version, over another transport. All other names of the module are left as they are.
"""

from __future__ import annotations

import errno
import os
import socket as stdlib
from collections.abc import Iterator
from types import FunctionType
from typing import Any, Final

from utpsocket.engine.interpreter.native import StdlibSocket, original
from utpsocket.sockets import shim

_MARKER: Final = "_GLOBAL_DEFAULT_TIMEOUT"
REBOUND: Final = (
    "create_connection",
    "create_server",
    "fromfd",
    "fromshare",
    "has_dualstack_ipv6",
    "socketpair",
)
"""Names that stand for the stdlib's function with our class in it; those this interpreter lacks are left out."""


def incoming(listener: StdlibSocket) -> Iterator[tuple[StdlibSocket, Any]]:
    """Yield incoming connections one by one: `for conn, address in utpsocket.incoming(listener): …`.

    The iteration waits as accept() does. It ends when the listener is closed or shut down. A shutdown() wakes it; a
    close() by another thread is noticed at the next connection, as by accept(). A TCP listener may be given too.

    Parameters:
        listener: a listening socket.
    Returns: an iterator over what accept() returns: (socket, address).
    Raises: at the call OSError: EBADF of a closed socket, EINVAL of one that does not listen. While iterating what
        accept() raises, such as TimeoutError, or BlockingIOError of a listener that does not block.
    Next: close each socket; listener.shutdown(SHUT_RDWR) to end the iteration.
    Source: accept(2); docs/guide/use.md §3.
    """
    if not listener.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ACCEPTCONN):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return _incoming(listener)


incoming.__module__ = "utpsocket"


def _incoming(listener: StdlibSocket) -> Iterator[tuple[StdlibSocket, Any]]:
    while listener.fileno() >= 0:
        try:
            yield listener.accept()
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EBADF):
                raise
            return


def rebound(cls: Any) -> dict[str, Any]:
    """The stdlib's functions of the names in REBOUND, around this class of sockets."""
    space: dict[str, Any] = dict(vars(stdlib))
    space["socket"] = cls
    for name in REBOUND:
        try:
            function = original("socket", name)
        except AttributeError:
            continue
        if isinstance(function, FunctionType):
            # eventlet's originals are of a second copy of the module, whose marker for "no timeout given" is another.
            markers = {id(function.__globals__.get(_MARKER)): space[_MARKER]}
            defaults = tuple(markers.get(id(value), value) for value in function.__defaults__ or ())
            copied = FunctionType(function.__code__, space, name, defaults, function.__closure__)
            copied.__kwdefaults__ = function.__kwdefaults__
            copied.__doc__ = function.__doc__
            copied.__module__ = "utpsocket"
            space[name] = copied
    return {name: space[name] for name in REBOUND if name in space}


REPLACEMENTS: Final = rebound(shim.socket)
