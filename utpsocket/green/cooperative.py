"""A cooperative socket over uTP beside gevent's own: gevent.socket's names, of which those that make streams use our
class.

This is the one module that imports gevent. As in utpsocket/sockets/functions.py each function is gevent's (or the
interpreter's) own with its global name `socket` bound to our class: the same code over another transport.

Called by greenlets. Sources: gevent's socket.py and _socket3.py.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any, Final

import gevent.socket as gevents
import gevent.ssl  # noqa: F401  # its sockets must be able to stand on ours before it wraps one

from utpsocket.engine.interpreter import switch_interval
from utpsocket.engine.interpreter.native import original
from utpsocket.green.hooks import adapt_gevent_ssl
from utpsocket.green.inner_sockets import GeventInside
from utpsocket.options import (
    SOL_UTP,
    UTP_CONGESTION,
    UTP_INFO,
    UTP_KEEPALIVE,
    UTP_MAX_MTU,
    UTP_SHARE_PORT,
    UTP_TARGET_DELAY,
)
from utpsocket.sockets.functions import over_globals

__all__ = [
    "SOL_UTP",
    "UTP_CONGESTION",
    "UTP_INFO",
    "UTP_KEEPALIVE",
    "UTP_MAX_MTU",
    "UTP_SHARE_PORT",
    "UTP_TARGET_DELAY",
    "socket",
]

# Functions of gevent.socket that make a socket.
GEVENTS: Final = ("create_connection", "fromfd", "socketpair")
# Functions that gevent leaves to the standard library, and which use its class.
STDLIBS: Final = ("create_server", "has_dualstack_ipv6")


def _over_utp(function: FunctionType) -> FunctionType:
    """gevent's or the stdlib's function, making sockets of our class."""
    space = {**function.__globals__, "socket": socket, **_REBOUND}
    return over_globals(function, space)


class _Inside(GeventInside):
    """Inside a socket of this module: always uTP, whatever the rules of a patch are."""

    __slots__ = ()

    _routes = None


class socket(gevents.socket):  # type: ignore[misc]  # gevent ships few types
    """socket(family=AF_INET, type=SOCK_STREAM, proto=0, fileno=None) -> socket object

    A subclass of gevent.socket.socket, with the same methods: a call that would block lets other greenlets run.

    Over uTP: a stream of AF_INET or AF_INET6 is a uTP (BEP 29) socket, also where utpsocket.monkey has rules. A socket
    of any other family or type is gevent's.

    Parameters:
        family, type, proto, fileno: as for utpsocket.socket().
    Raises: OSError and TypeError, as utpsocket.socket.
    Next: connect(); or bind() and listen(). close() in the end, or a with statement.
    Source: gevent.socket.socket; docs/guide/green.md §2.
    """

    __slots__ = ()

    _gevent_sock_class = _Inside

    def accept(self) -> tuple[socket, object]:
        """accept() -> (socket object, address info)

        Wait for an incoming connection and take it; other greenlets run meanwhile.

        Over uTP: as utpsocket.socket.accept().

        Returns: the connection's socket, of this class, and the peer's address.
        Raises: as utpsocket.socket.accept().
        Next: recv() and send() on the new socket; accept() again.
        Source: accept(2); gevent.socket.socket.accept().
        """
        accepted: tuple[socket, object] = _accept(self)
        return accepted


_REBOUND: dict[str, FunctionType] = {}
_accept: Final = _over_utp(gevents.socket.accept)
for _name in (*GEVENTS, *STDLIBS):
    _REBOUND[_name] = _over_utp(getattr(gevents, _name) if _name in GEVENTS else original("socket", _name))
globals().update(_REBOUND)
adapt_gevent_ssl(GeventInside)
switch_interval.request(__name__)


def __getattr__(name: str) -> Any:
    """All else is gevent's."""
    return getattr(gevents, name)
