"""gevent and eventlet over uTP: the one class of which each makes all its sockets is replaced.

This module imports neither, since a hook may be set while one of them is being imported. A hook can be set again and
undone. Any thread may call; early, as with gevent.monkey.patch_all(). Sources: docs/sockets.md §5.
"""

from __future__ import annotations

import sys
from typing import Any, Final
from weakref import ReferenceType

from utpsocket.engine.interpreter import switch_interval
from utpsocket.engine.interpreter.native import Socket, StdlibSocket
from utpsocket.green.inner_sockets import EventletInside, GeventInside

# Where gevent.socket.socket is defined.
_GEVENT: Final = "gevent._socket3"
_GEVENT_SSL: Final = "gevent.ssl"
_EVENTLET: Final = "eventlet.greenio.base"

# A module whose sockets must be able to speak TLS, with a hook or without.
_NEEDS_SSL: Final = "utpsocket.green.cooperative"

# By module: the class that was there before. gevent.ssl's is never removed.
_saved: dict[str, type[Socket]] = {}


def hook_gevent() -> None:
    """Have gevent's sockets speak uTP from now on, those of AF_INET and AF_INET6 streams.

    It includes gevent.socket, gevent.server, gevent.pywsgi, gevent.ssl and what gevent.monkey has put in place of
    socket. The rules of utpsocket.monkey hold where the process is patched. A second call does nothing.

    Raises: ImportError where gevent is not installed.
    Next: unhook_gevent(), to undo it.
    Source: docs/guide/green.md §1; docs/sockets.md §5.
    """
    if _GEVENT in _saved:
        return
    __import__(_GEVENT)
    module = sys.modules[_GEVENT]
    _saved[_GEVENT] = module.socket._gevent_sock_class
    module.socket._gevent_sock_class = GeventInside
    switch_interval.request(_GEVENT)
    adapt_gevent_ssl(GeventInside)


def unhook_gevent() -> None:
    """Undo hook_gevent(). Sockets that exist go on over uTP. Without a hook it does nothing.

    Raises: nothing.
    Source: docs/guide/green.md §1.
    """
    before = _saved.pop(_GEVENT, None)
    if before is not None:
        switch_interval.withdraw(_GEVENT)
        sys.modules[_GEVENT].socket._gevent_sock_class = before
        if _NEEDS_SSL not in sys.modules:
            adapt_gevent_ssl(before)


def hook_eventlet() -> None:
    """Have eventlet's sockets speak uTP from now on, those of AF_INET and AF_INET6 streams.

    TLS under eventlet needs utpsocket.monkey.patch_all() instead. The rules of utpsocket.monkey hold where the process
    is patched. A second call does nothing.

    Raises: ImportError where eventlet is not installed.
    Next: unhook_eventlet(), to undo it.
    Source: docs/guide/green.md §1, §3; docs/sockets.md §5.
    """
    if _EVENTLET in _saved:
        return
    __import__(_EVENTLET)
    module: Any = sys.modules[_EVENTLET]  # a library without types
    _saved[_EVENTLET] = module._original_socket
    module._original_socket = EventletInside
    switch_interval.request(_EVENTLET)


def unhook_eventlet() -> None:
    """Undo hook_eventlet(). Sockets that exist go on over uTP. Without a hook it does nothing.

    Raises: nothing.
    Source: docs/guide/green.md §1.
    """
    before = _saved.pop(_EVENTLET, None)
    if before is not None:
        switch_interval.withdraw(_EVENTLET)
        module: Any = sys.modules[_EVENTLET]  # a library without types
        module._original_socket = before


def adapt_gevent_ssl(base: type[Socket]) -> None:
    """Derive gevent.ssl's inner sockets from `base`. gevent does this itself once, when gevent.ssl is imported."""
    module: Any = sys.modules.get(_GEVENT_SSL)  # a library without types
    if module is None or not hasattr(module, "_contextawaresock"):
        return
    gevents_own = _saved.setdefault(_GEVENT_SSL, module._contextawaresock)
    if base in gevents_own.__bases__:
        module._contextawaresock = gevents_own
        return

    class _contextawaresock(base):  # type: ignore[misc, valid-type]  # chosen at run time
        __slots__ = ("_sslsock",)

        def __init__(
            self, family: int, type: int, proto: int, fileno: int | None, sslsocket_wref: ReferenceType[StdlibSocket]
        ) -> None:
            super().__init__(family, type, proto, fileno)
            self._sslsock = sslsocket_wref

    module._contextawaresock = _contextawaresock
