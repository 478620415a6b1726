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
from typing import TYPE_CHECKING, Final

from utpsocket.engine.interpreter.native import StdlibSocket, original
from utpsocket.sockets import shim

if TYPE_CHECKING:
    from utpsocket.protocol import Address

_MARKER: Final = "_GLOBAL_DEFAULT_TIMEOUT"
# Names that stand for the standard library's function with our class in it. Those that this interpreter lacks are left
# out.
REBOUND: Final = (
    "create_connection",
    "create_server",
    "fromfd",
    "fromshare",
    "has_dualstack_ipv6",
    "socketpair",
)


def incoming(listener: StdlibSocket) -> Iterator[tuple[StdlibSocket, Address]]:
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


def _incoming(listener: StdlibSocket) -> Iterator[tuple[StdlibSocket, Address]]:
    while listener.fileno() >= 0:
        try:
            yield listener.accept()
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EBADF):
                raise
            return


def over_globals(
    function: FunctionType, space: dict[str, object], defaults: tuple[object, ...] | None = None
) -> FunctionType:
    """Copy a function: the same code with other globals, and with other defaults where they are given."""
    if defaults is None:
        defaults = function.__defaults__
    copied = FunctionType(function.__code__, space, function.__name__, defaults, function.__closure__)
    copied.__kwdefaults__ = function.__kwdefaults__
    copied.__doc__ = function.__doc__
    return copied


def rebound(cls: type[StdlibSocket]) -> dict[str, object]:
    """The standard library's functions of the names in REBOUND, with this class of sockets in them."""
    space: dict[str, object] = dict(vars(stdlib))
    space["socket"] = cls
    for name in REBOUND:
        try:
            function = original("socket", name)
        except AttributeError:
            continue
        if isinstance(function, FunctionType):
            # eventlet's originals belong to a second copy of the module, with another marker for "no timeout given".
            markers = {id(function.__globals__.get(_MARKER)): space[_MARKER]}
            defaults = tuple(markers.get(id(value), value) for value in function.__defaults__ or ())
            copied = over_globals(function, space, defaults)
            copied.__module__ = "utpsocket"
            space[name] = copied
    return {name: space[name] for name in REBOUND if name in space}


REPLACEMENTS: Final = rebound(shim.socket)

# What is added to the standard library's docstrings.
_OVER_UTP: Final = {
    "create_connection": "the connection is a uTP connection, and the socket a utpsocket.socket.",
    "create_server": "the socket is a utpsocket.socket at a UDP port; dualstack_ipv6 and reuse_port are as over TCP.",
    "fromfd": "the descriptor of a uTP socket becomes a utpsocket.socket again, that of another socket a plain one.",
    "has_dualstack_ipv6": "the answer is for uTP's sockets, and the same as for TCP's.",
    "socketpair": "as in the standard library: a pair of AF_UNIX sockets unless another family is asked for.",
}
for _name, _function in REPLACEMENTS.items():
    if isinstance(_function, FunctionType) and _name in _OVER_UTP:
        # -OO leaves no docstring.
        if _function.__doc__:
            _function.__doc__ = f"{_function.__doc__.rstrip()}\n\n    Over uTP: {_OVER_UTP[_name]}\n"
