"""Sockets in the network namespace of another socket.

A socket belongs to the network namespace that its thread was in when it made the socket, and a thread may enter another
one at any time (unshare(2), setns(2)). So the thread that made the user's socket, the thread that calls now and the
engine's thread may be in three. Abstract AF_UNIX names and UDP ports exist in one namespace each. Therefore every
socket that is made for a user's socket is made in the namespace of that one. To enter it takes CAP_SYS_ADMIN; without
that an OSError is raised, with that reason in its text.

Any thread may call. Sources: network_namespaces(7), setns(2); socket(7) SO_NETNS_COOKIE; linux/sockios.h SIOCGSKNS.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from utpsocket.engine.interpreter import libc
from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import ctypes, fcntl, os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel.high_fds import give_back, with_room
from utpsocket.protocol.native import native_or

_S = TypeVar("_S", bound=Socket)
_SO_NETNS_COOKIE: Final = 71  # Linux 5.14
_COOKIE_BYTES: Final = 8
_SIOCGSKNS: Final = 0x894C
_CLONE_NEWNET: Final = 0x4000_0000
_probe: Final = partial(Socket, stdlib.AF_UNIX, stdlib.SOCK_DGRAM, 0)


def cookie_in_python(sock: Socket) -> int:
    """The cookie of the socket's network namespace; 0 where the kernel has none, or the socket is closed."""
    try:
        value = Socket.getsockopt(sock, stdlib.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE_BYTES)
    except OSError as error:
        reraise_handler_error(error)
        return 0
    return int.from_bytes(value, sys.byteorder)


cookie: Final[Callable[[Socket], int]] = native_or(cookie_in_python, "netns_cookie")
"""The same; in the compiled build by C."""


def cookie_here() -> int:
    """The cookie of the calling thread's namespace."""
    here = with_room(_probe)
    try:
        return cookie(here)
    finally:
        here.close()


def make_in_namespace(sock: Socket, there: int, make: Callable[[], _S]) -> _S:
    """make(), in the network namespace of `sock`. Raises EOPNOTSUPP if the thread may not enter that.

    there   the cookie of that namespace; 0: not known, and make() is called where the thread is
    make    returns a new socket
    """
    made = make()
    if not there or there == cookie(made):
        return made
    made.close()
    return make_in_namespace_of(sock, make)


def make_in_namespace_of(sock: Socket, make: Callable[[], _S]) -> _S:
    """make(), in the network namespace of `sock`, which is known to be another one than the thread's. Raises
    EOPNOTSUPP as make_in_namespace().
    """
    try:
        return _make_there(sock, make)
    except PermissionError as error:
        raise OSError(
            errno.EOPNOTSUPP,
            "the socket is in another network namespace than the thread that has to serve it, which may not enter that:"
            f" {error.strerror}",
        ) from error


def _make_there(sock: Socket, make: Callable[[], _S]) -> _S:
    here = with_room(_probe)
    fds: list[int] = []
    try:
        fds.extend(with_room(partial(fcntl.ioctl, each.fileno(), _SIOCGSKNS)) for each in (here, sock))
        back, there = fds
        _enter(there)
        try:
            return make()
        finally:
            _enter(back)
    finally:
        for fd in fds:
            os.close(fd)
        here.close()
        give_back()


def _enter(fd: int) -> None:
    if libc.setns(fd, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
