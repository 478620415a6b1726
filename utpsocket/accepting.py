"""What accept() does to a listening uTP socket: the kernel's accept4(), and a look at who it is.

Separate from lifecycle.py because no engine is asked. Any thread may call. Sources: SOCKETS.md §1; accept(2), poll(2).
"""

from __future__ import annotations

import errno
from typing import Any, Final

from utpsocket import options
from utpsocket.engine import names, verbs
from utpsocket.engine.identity import Identity, Role
from utpsocket.engine.names import Address
from utpsocket.engine.native import Socket, accepted, poll
from utpsocket.lifecycle import check_open, fail, own_engine

_POLLIN: Final = 0x001
_POLLRDHUP: Final = 0x2000


def accept(sock: Any, identity: Identity, made: Any) -> tuple[int, int, Address, Address]:
    """The next incoming connection: `made`, a socket object without an fd, then has one. Returns what its name says."""
    while True:
        try:
            _accept_any(sock, made)
        except BlockingIOError:
            if identity.role is Role.FAILED:  # listen() has not waited for what has come of it
                raise fail(identity.take_error() or errno.EINVAL) from None
            raise
        if identity.is_full:
            _tell_of_room(identity)
        name = Socket.getpeername(made)
        found = names.decode(name)
        if found is not None and names.maker(made)[0] == identity.owner_pid and names.is_ours(name, None):
            options.inherit(made, identity)
            return found
        Socket.close(made)  # a stranger who found the listening name: anyone on this machine can connect to it


def _tell_of_room(identity: Identity) -> None:
    identity.is_full = False  # first: if the engine says so once more, the next accept() tells it again
    loop = own_engine(identity)
    if loop is not None:
        loop.post(verbs.make_room, identity.endpoint)


def _accept_any(sock: Any, made: Any) -> None:
    """accept4(2) of a listening AF_UNIX socket, which after shutdown() says EAGAIN for ever to whoever does not block,
    while poll() says that there is something: EINVAL, as TCP's.
    """
    check_open(sock)
    timeout = sock.gettimeout()
    if timeout:
        mask = _wait_readable(sock, timeout)
        if not mask:
            raise TimeoutError("timed out")
        if mask & _POLLRDHUP:
            raise fail(errno.EINVAL)
    try:
        accepted(sock, made)
    except BlockingIOError:
        if _wait_readable(sock, 0) & _POLLRDHUP:
            raise fail(errno.EINVAL) from None
        raise


def _wait_readable(sock: Any, seconds: float) -> int:
    poller = poll()
    fd = sock.fileno()
    if fd < 0:
        raise fail(errno.EBADF)  # closed by another thread
    poller.register(fd, _POLLIN | _POLLRDHUP)
    found = poller.poll(seconds * 1_000)
    return int(found[0][1]) if found else 0
