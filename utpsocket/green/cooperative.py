"""A cooperative socket over uTP beside gevent's own: gevent.socket's names, those that make streams with our class.

Separate because it is the one module that cannot do without gevent. As in sockets/functions.py each function is
gevent's (or the interpreter's) own with its global name `socket` bound to our class: same code, same behaviour, another
transport.

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
from utpsocket.options import SOL_UTP, UTP_CONGESTION, UTP_INFO, UTP_KEEPALIVE, UTP_MAX_MTU, UTP_SHARE_PORT

__all__ = ["SOL_UTP", "UTP_CONGESTION", "UTP_INFO", "UTP_KEEPALIVE", "UTP_MAX_MTU", "UTP_SHARE_PORT", "socket"]

GEVENTS: Final = ("create_connection", "fromfd", "socketpair")
"""Functions of gevent.socket that make a socket."""
STDLIBS: Final = ("create_server", "has_dualstack_ipv6")
"""Functions that gevent leaves to the stdlib, whose class they name."""


def _over_utp(function: Any) -> Any:
    """gevent's or the stdlib's function, making sockets of our class."""
    space = {**function.__globals__, "socket": socket, **_REBOUND}
    rebound = FunctionType(function.__code__, space, function.__name__, function.__defaults__, function.__closure__)
    rebound.__kwdefaults__ = function.__kwdefaults__
    rebound.__doc__ = function.__doc__
    return rebound


class _Inside(GeventInside):
    """Whoever asks for this socket by name gets uTP, whatever rules a patch has."""

    __slots__ = ()

    _routes = None


class socket(gevents.socket):  # type: ignore[misc]  # gevent ships few types
    """socket(family=AF_INET, type=SOCK_STREAM, proto=0, fileno=None) -> socket object

    gevent's socket.socket, except that AF_INET and AF_INET6 streams speak uTP (BEP 29) instead of TCP. Every call that
    would block lets other greenlets run.
    """

    __slots__ = ()

    _gevent_sock_class = _Inside

    def accept(self) -> tuple[Any, Any]:
        """accept() -> (socket object, address info): the next incoming connection."""
        accepted: tuple[Any, Any] = _accept(self)
        return accepted


_REBOUND: dict[str, Any] = {}
_accept: Final = _over_utp(gevents.socket.accept)
for _name in (*GEVENTS, *STDLIBS):
    _REBOUND[_name] = _over_utp(getattr(gevents, _name) if _name in GEVENTS else original("socket", _name))
globals().update(_REBOUND)
adapt_gevent_ssl(GeventInside)
switch_interval.ask(__name__)


def __getattr__(name: str) -> Any:
    """All else is gevent's."""
    return getattr(gevents, name)
