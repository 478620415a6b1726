"""ssl over uTP: an SSLSocket whose plain half is ours, so that addresses, options and connect() answer as uTP's.

Separate because it needs `ssl`. OpenSSL works on the fd and knows nothing of us; but the stdlib's SSLSocket is a
socket.socket of its own around that fd, and would read our AF_UNIX names as IP addresses. Importing this module makes
SSLContext.wrap_socket() use the class below for every context that has not chosen its own; for sockets that are not
uTP's it behaves as the stdlib's, whose subclass it is.

Sources: CPython's Lib/ssl.py, SSLContext.sslsocket_class; docs/sockets.md §5.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

from utpsocket.engine.interpreter.native import StdlibSocket, class_made_by
from utpsocket.sockets import shim

# Not by a name of this module: gevent, which may patch ssl later, would warn of everybody who refers to it so.
_stdlibs: list[Any] = [made for made in ssl.SSLContext.__mro__ if made.__module__ == "ssl"]

if TYPE_CHECKING:
    from ssl import SSLSocket as _SSLSocket
else:
    _SSLSocket = class_made_by(ssl, "SSLSocket", StdlibSocket)
    if _SSLSocket is None:

        class _SSLSocket(StdlibSocket):
            """gevent patched before anybody imported ssl: ssl's class stands on gevent's socket, not the stdlib's."""

            __slots__ = ()


class SSLSocket(_SSLSocket, shim.socket):  # type: ignore[misc]  # both redefine the stdlib socket's methods
    """ssl.SSLSocket over a utpsocket.socket (or over any other). Made by SSLContext.wrap_socket()."""

    __slots__ = ()

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """As ssl.SSLSocket.read(). OpenSSL asks the kernel, which says ECONNRESET once where the peer's end of file was
        followed by a reset: over TCP that is the end of file.
        """
        try:
            return super().read(len, buffer)
        except ConnectionResetError:
            identity = self._utp
            if identity is None or not identity.has_ended_after_eof:
                raise
            return super().read(len, buffer)

    @classmethod
    def _create(cls, sock: Any, *args: Any, **kwargs: Any) -> Any:
        """What wrap_socket() calls. eventlet turns what it gets into a class of its own, which is the stdlib's kin: so
        its sockets, and what is not uTP's, get the stdlib's.
        """
        made_by: Any = super()
        if cls is SSLSocket and (getattr(sock, "_utp", None) is None or getattr(sock, "_wants_stdlib_ssl", False)):
            made_by = _SSLSocket
        return made_by._create(sock, *args, **kwargs)


def is_installed() -> bool:
    """Whether SSLContext.wrap_socket() makes our SSLSocket."""
    return bool(_stdlibs[0].sslsocket_class is SSLSocket)


def install() -> None:
    """Have SSLContext.wrap_socket() make our SSLSocket. Idempotent."""
    if _stdlibs[0].sslsocket_class is _SSLSocket:
        _stdlibs[0].sslsocket_class = SSLSocket


def uninstall() -> None:
    """Have SSLContext.wrap_socket() make the stdlib's SSLSocket again."""
    if _stdlibs[0].sslsocket_class is SSLSocket:
        _stdlibs[0].sslsocket_class = _SSLSocket
