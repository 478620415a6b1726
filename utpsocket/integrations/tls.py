"""ssl over uTP: an SSLSocket that is a uTP socket too, so that addresses, options and connect() are uTP's.

OpenSSL works on the descriptor and needs nothing from us. But the standard library's SSLSocket is a socket.socket of
its own around that descriptor, and would read AF_UNIX names as IP addresses. install() makes SSLContext.wrap_socket()
use the class below for every context whose sslsocket_class the program has not set. For sockets that are not uTP's it
behaves as the standard library's, whose subclass it is.

Sources: CPython's Lib/ssl.py, SSLContext.sslsocket_class; docs/sockets.md §5.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from utpsocket.engine.interpreter.native import StdlibSocket, class_made_by
from utpsocket.sockets import shim

# Not a name for the class itself: gevent, which may patch ssl later, warns of modules that have one.
_stdlibs: list[type[ssl.SSLContext]] = [made for made in ssl.SSLContext.__mro__ if made.__module__ == "ssl"]

if TYPE_CHECKING:
    from ssl import SSLSocket as _SSLSocket

    from _typeshed import WriteableBuffer
else:
    _SSLSocket = class_made_by(ssl, "SSLSocket", StdlibSocket)
    if _SSLSocket is None:

        class _SSLSocket(StdlibSocket):
            """Where gevent patched before ssl was imported: ssl's own class derives from gevent's socket there."""

            __slots__ = ()


class SSLSocket(_SSLSocket, shim.socket):  # type: ignore[misc]  # both redefine the stdlib socket's methods
    """ssl.SSLSocket over a utpsocket.socket (or over any other). Made by SSLContext.wrap_socket()."""

    __slots__ = ()

    def read(self, len: int = 1024, buffer: WriteableBuffer | None = None) -> bytes:
        """As ssl.SSLSocket.read(). OpenSSL calls the kernel, which gives ECONNRESET once where the peer's end of file
        was followed by a reset. Over TCP that is the end of file.
        """
        try:
            return super().read(len, buffer)
        except ConnectionResetError:
            identity = self._utp
            if identity is None or not identity.has_ended_after_eof:
                raise
            return super().read(len, buffer)

    @classmethod
    def _create(cls, sock: StdlibSocket, *args: object, **kwargs: object) -> ssl.SSLSocket:
        """As ssl.SSLSocket._create(), which wrap_socket() calls. eventlet changes the class of what it gets into a
        subclass of the standard library's. So its sockets, and sockets that are not uTP's, get the standard library's.
        """
        made_by: Any = super()  # type checkers do not know of _create()
        if cls is SSLSocket and (getattr(sock, "_utp", None) is None or getattr(sock, "_wants_stdlib_ssl", False)):
            made_by = _SSLSocket
        made: ssl.SSLSocket = made_by._create(sock, *args, **kwargs)
        return made


def is_installed() -> bool:
    """Whether SSLContext.wrap_socket() makes our SSLSocket."""
    return bool(_stdlibs[0].sslsocket_class is SSLSocket)


def install() -> None:
    """Have SSLContext.wrap_socket() make our SSLSocket. A second call does nothing."""
    if _stdlibs[0].sslsocket_class is _SSLSocket:
        _stdlibs[0].sslsocket_class = SSLSocket


def uninstall() -> None:
    """Have SSLContext.wrap_socket() make the standard library's SSLSocket again."""
    if _stdlibs[0].sslsocket_class is SSLSocket:
        _stdlibs[0].sslsocket_class = _SSLSocket
