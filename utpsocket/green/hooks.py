"""gevent and eventlet over uTP: the one class that each makes all its sockets of.

Separate from the socket because a hook may be set while gevent is being imported. Each is idempotent and reversible.

Call from any thread, as gevent.monkey.patch_all(): early. Sources: docs/sockets.md §5.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from utpsocket.engine.interpreter import switch_interval
from utpsocket.green.inner_sockets import EventletInside, GeventInside

_GEVENT: Final = "gevent._socket3"  # where gevent.socket.socket is made
_GEVENT_SSL: Final = "gevent.ssl"
_EVENTLET: Final = "eventlet.greenio.base"

_NEEDS_SSL: Final = "utpsocket.green.cooperative"  # whose sockets must be able to speak TLS, hook or no hook

_saved: dict[str, Any] = {}  # by module: the class that was in place; gevent.ssl's for good


def hook_gevent() -> None:
    """gevent's sockets speak uTP from now on: the AF_INET and AF_INET6 streams among them. Imports gevent.socket."""
    if _GEVENT in _saved:
        return
    __import__(_GEVENT)
    module = sys.modules[_GEVENT]
    _saved[_GEVENT] = module.socket._gevent_sock_class
    module.socket._gevent_sock_class = GeventInside
    switch_interval.ask(_GEVENT)
    adapt_gevent_ssl(GeventInside)


def unhook_gevent() -> None:
    """gevent's sockets are its own again; those made meanwhile go on over uTP. Idempotent."""
    before = _saved.pop(_GEVENT, None)
    if before is not None:
        switch_interval.withdraw(_GEVENT)
        sys.modules[_GEVENT].socket._gevent_sock_class = before
        if _NEEDS_SSL not in sys.modules:
            adapt_gevent_ssl(before)


def hook_eventlet() -> None:
    """eventlet's sockets speak uTP from now on: the AF_INET and AF_INET6 streams among them. Imports eventlet."""
    if _EVENTLET in _saved:
        return
    __import__(_EVENTLET)
    module: Any = sys.modules[_EVENTLET]
    _saved[_EVENTLET] = module._original_socket
    module._original_socket = EventletInside
    switch_interval.ask(_EVENTLET)


def unhook_eventlet() -> None:
    """eventlet's sockets are its own again; those made meanwhile go on over uTP. Idempotent."""
    before = _saved.pop(_EVENTLET, None)
    if before is not None:
        switch_interval.withdraw(_EVENTLET)
        module: Any = sys.modules[_EVENTLET]
        module._original_socket = before


def adapt_gevent_ssl(base: Any) -> None:
    """Have gevent.ssl's sockets stand on `base`: gevent reads the attribute once, when gevent.ssl is imported."""
    module: Any = sys.modules.get(_GEVENT_SSL)
    if module is None or not hasattr(module, "_contextawaresock"):
        return
    gevents_own = _saved.setdefault(_GEVENT_SSL, module._contextawaresock)
    if base in gevents_own.__bases__:
        module._contextawaresock = gevents_own
        return

    class _contextawaresock(base):  # type: ignore[misc]  # chosen at run time
        __slots__ = ("_sslsock",)

        def __init__(self, family: int, type: int, proto: int, fileno: int | None, sslsocket_wref: Any) -> None:
            super().__init__(family, type, proto, fileno)
            self._sslsock = sslsocket_wref

    module._contextawaresock = _contextawaresock
