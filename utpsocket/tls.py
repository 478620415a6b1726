"""ssl over uTP: an SSLSocket whose plain half is ours, so that addresses, options and connect() answer as uTP's.

Separate because it needs `ssl`, which it does not import before the program does: gevent warns of an ssl that was
there before it patched, and many programs never need it. OpenSSL works on the fd and knows nothing of us; but the
stdlib's SSLSocket is a socket.socket of its own around that fd, and would read our AF_UNIX names as IP addresses. So
SSLContext.wrap_socket() is made to use the class here for every context that has not chosen its own; for sockets that
are not uTP's it behaves as the stdlib's, whose subclass it is.

`tls.SSLSocket` is that class. Sources: CPython's Lib/ssl.py, SSLContext.sslsocket_class; SOCKETS.md §5.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from utpsocket import shim
from utpsocket.afterimport import AfterImport, is_being_imported
from utpsocket.engine.native import StdlibSocket, class_made_by

_is_wanted = False
_watch: AfterImport | None = None


def is_installed() -> bool:
    """Whether SSLContext.wrap_socket() makes our SSLSocket, or will when ssl is imported."""
    return _is_wanted


def install() -> None:
    """Have SSLContext.wrap_socket() make our SSLSocket, from the import of ssl on. Idempotent."""
    global _is_wanted, _watch
    _is_wanted = True
    if "ssl" in sys.modules and not is_being_imported("ssl"):
        _replace()
    elif _watch is None:
        _watch = AfterImport({"ssl": _replace})
        _watch.install()


def uninstall() -> None:
    """Have SSLContext.wrap_socket() make the stdlib's SSLSocket again."""
    global _is_wanted, _watch
    _is_wanted = False
    if _watch is not None:
        _watch.remove()
        _watch = None
    if "ssl" in sys.modules and not is_being_imported("ssl"):
        context, stdlibs, ours = _classes()
        if context.sslsocket_class is ours:
            context.sslsocket_class = stdlibs


def _replace() -> None:
    context, stdlibs, ours = _classes()
    if _is_wanted and ours is not None and context.sslsocket_class is stdlibs:
        context.sslsocket_class = ours


@cache
def _classes() -> tuple[Any, Any, Any]:
    """The stdlib's SSLContext and SSLSocket, whatever gevent and eventlet put in their places, and ours.

    None and None where gevent patched before anybody imported ssl: the stdlib's class then stands on gevent's socket,
    and nothing of it can stand on ours.
    """
    import ssl

    context = next(made for made in ssl.SSLContext.__mro__ if made.__module__ == "ssl")
    stdlibs: Any = class_made_by(ssl, "SSLSocket", StdlibSocket)
    if stdlibs is None:
        return context, None, None

    class SSLSocket(stdlibs, shim.socket):  # type: ignore[misc]  # both redefine the stdlib socket's methods
        """ssl.SSLSocket over a utpsocket.socket (or over any other). Made by SSLContext.wrap_socket()."""

        __slots__ = ()

    SSLSocket.__qualname__ = "SSLSocket"
    return context, stdlibs, SSLSocket


def __getattr__(name: str) -> Any:
    if name == "SSLSocket":
        return _classes()[2]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
