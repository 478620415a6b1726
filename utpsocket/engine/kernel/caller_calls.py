"""System calls of bind(), listen(), connect() and accept() that the calling thread makes with the interpreter's lock
(GIL) kept.

The socket module releases the lock around each call. Where the engine's thread waits for it, the caller then gets it
back after a switch interval, or when the engine sleeps: a call that makes ten such system calls may wait ten times for
work that takes a microsecond each. So the compiled build makes those that cannot block without a release, several in
one call of _native.c; those of UDP sockets, which need nothing else, are called by name there. By ctypes each would
take longer than by the socket module, so the pure build does that for accept4(2) alone, which is called while the
engine is at work. What says nothing of the pure build is for the compiled one.

Any thread may call. Sources: bind(2), accept(2), epoll_ctl(2); Doc/library/ctypes.rst (PyDLL).
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Final

from utpsocket.engine.interpreter import libc
from utpsocket.engine.interpreter.native import SOCK_CLOEXEC, Socket
from utpsocket.engine.interpreter.originals import ctypes, os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel.fd_names import peer_credentials
from utpsocket.engine.kernel.syscalls import keeps_gil
from utpsocket.protocol.build import IS_COMPILED

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.originals import select

if TYPE_CHECKING or IS_COMPILED:
    from utpsocket import _native

_KEEPS_GIL: Final = keeps_gil()
_EPOLL_CTL_ADD: Final = 1
_own: Final = Socket.__init__
_AF_UNIX, _SOCK_STREAM = int(stdlib.AF_UNIX), int(stdlib.SOCK_STREAM)
_SOL_SOCKET, _SO_SNDBUF = int(stdlib.SOL_SOCKET), int(stdlib.SO_SNDBUF)


def accept_pair(listener: Socket, made: Socket, send_buffer_bytes: int) -> tuple[bytes, int, int] | None:
    """Accept a connection of a listening AF_UNIX socket. Returns the abstract name of its other end, b"" for none; its
    inode; the id of the process that has made the other end. None where the listener's fd may block, or there is no
    ctypes for it: then nothing is accepted. Raises OSError.

    made                a socket object without an fd, which owns the new one from its first moment
    send_buffer_bytes   SO_SNDBUF of the new socket
    """
    fd = listener.fileno()
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # closed by another thread
    if not IS_COMPILED:
        return accept_pair_in_python(fd, made, send_buffer_bytes)
    found: list[tuple[bytes, int, int]] = []
    fds = iter(partial(_native.accept_pair, fd, send_buffer_bytes, found), -1)
    return None if next(map(partial(_own, made, _AF_UNIX, _SOCK_STREAM, 0), fds), False) is not None else found[0]


def accept_pair_in_python(fd: int, made: Socket, send_buffer_bytes: int) -> tuple[bytes, int, int] | None:
    """The same in the pure build.

    fd   the listener's
    """
    if not _KEEPS_GIL or os.get_blocking(fd):
        return None
    fds = iter(partial(libc.accept4, fd, None, None, SOCK_CLOEXEC), -1)
    if next(map(partial(_own, made, _AF_UNIX, _SOCK_STREAM, 0), fds), False) is not None:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    Socket.setsockopt(made, _SOL_SOCKET, _SO_SNDBUF, send_buffer_bytes)
    name = Socket.getpeername(made)
    maker_pid, _ = peer_credentials(made)
    return name if type(name) is bytes else b"", os.fstat(made.fileno()).st_ino, maker_pid


def listen_at(sock: Socket, name: bytes, backlog: int) -> None:
    """bind() and listen() of an AF_UNIX socket. Raises what they raise.

    name   abstract
    """
    fd = sock.fileno()
    code = _native.listen_at(fd, name, max(0, backlog)) if fd >= 0 else errno.EBADF
    if code:
        raise OSError(code, os.strerror(code))


def register(epoll: select.epoll, fd: int, events: int) -> None:
    """As epoll.register()."""
    code = _native.epoll_ctl(epoll.fileno(), _EPOLL_CTL_ADD, fd, events)
    if code:
        raise OSError(code, os.strerror(code))
