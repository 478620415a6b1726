"""ssl over uTP: an SSLSocket whose plain half is ours, so that addresses, options and connect() answer as uTP's.

Separate because it needs `ssl`. OpenSSL works on the fd and knows nothing of us; but the stdlib's SSLSocket is a
socket.socket of its own around that fd, and would read our AF_UNIX names as IP addresses. Importing this module makes
SSLContext.wrap_socket() use the class below for every context that has not chosen its own; for sockets that are not
uTP's it behaves as the stdlib's, whose subclass it is.

Sources: CPython's Lib/ssl.py, SSLContext.sslsocket_class; SOCKETS.md §5.
"""

from __future__ import annotations

import ssl

from utpsocket import shim


class SSLSocket(ssl.SSLSocket, shim.socket):  # type: ignore[misc]  # both redefine the stdlib socket's methods
    """ssl.SSLSocket over a utpsocket.socket (or over any other). Made by SSLContext.wrap_socket()."""

    __slots__ = ()


def install() -> None:
    """Have SSLContext.wrap_socket() make our SSLSocket. Idempotent."""
    if ssl.SSLContext.sslsocket_class is ssl.SSLSocket:
        ssl.SSLContext.sslsocket_class = SSLSocket


def uninstall() -> None:
    """Have SSLContext.wrap_socket() make the stdlib's SSLSocket again."""
    if ssl.SSLContext.sslsocket_class is SSLSocket:
        ssl.SSLContext.sslsocket_class = ssl.SSLSocket
