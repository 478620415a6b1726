"""accept() of a listening uTP socket, and the end of listening.

The connections wait in the queue of the kernel's listening AF_UNIX socket. accept4(2) takes one, and then its far end
is checked, since any process of this machine can connect to that socket. Any thread may call. Sources: docs/sockets.md
§1; accept(2), poll(2).
"""

from __future__ import annotations

import errno
from typing import Final

from utpsocket.engine import commands
from utpsocket.engine.current import running_engine
from utpsocket.engine.interpreter.native import Socket, StdlibSocket, accept_keeping_gil, accepted, poll
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.kernel import fd_names
from utpsocket.engine.kernel.caller_calls import accept_pair
from utpsocket.engine.loop import Loop
from utpsocket.engine.user_fds import shared_errnos
from utpsocket.engine.user_fds.socket_state import Identity, Role
from utpsocket.sockets import closing, fd_pair, lifecycle, option_calls, registry
from utpsocket.sockets.lifecycle import check_open, os_error, own_engine

_POLLIN: Final = 0x001
_POLLRDHUP: Final = 0x2000


def accept(sock: StdlibSocket, identity: Identity, made: Socket) -> tuple[bytes, int, int]:
    """The next incoming connection: `made`, a socket object without an fd, then has one. Returns the name of the
    engine's end of it, its cookie, and the inode of `made`, 0 where it is not known.
    """
    while True:
        try:
            found = _accept_any(sock, made, option_calls.pair_buffer_bytes(identity))
        except BlockingIOError:
            # A listen() that did not wait for the engine has failed since.
            if identity.role is Role.FAILED:
                raise os_error(identity.take_error() or errno.EINVAL) from None
            raise
        if identity.is_full:
            _report_room(identity)
        # Of another process's socket it may be "" or b"", which has no cookie.
        name, inode, maker_pid = found or (Socket.getpeername(made), 0, fd_names.peer_credentials(made)[0])
        cookie = _cookie_if_made_by_engine(name, maker_pid, identity)
        if cookie is not None:
            if shared_errnos.peek(identity.owner_pid, cookie):
                fd_pair.show_reset(made, name)
                found, inode = None, 0  # `made` may be another socket now
            if found is None:
                option_calls.apply_send_buffer(made, identity)
            if identity.options:
                option_calls.restore(made, identity)
            return name, cookie, inode
        Socket.close(made)


def _cookie_if_made_by_engine(name: bytes, maker_pid: int, listener: Identity) -> int | None:
    """The cookie in the name of an accepted socket's far end, which the process `maker_pid` has made, if that is the
    engine's. None if another process has connected to the listening name.
    """
    cookie = fd_names.cookie_of(name) if maker_pid == listener.owner_pid else None
    # A far end that this process has made, as the kernel says, is that of this process's engine.
    if (
        cookie is None
        or maker_pid == os.getpid()
        or (fd_names.is_ours(name, None) and fd_names.decode(name) is not None)
    ):
        return cookie
    return None


def _report_room(identity: Identity) -> None:
    # First: if the engine finds the queue full again, the next accept() reports again.
    identity.is_full = False
    loop = own_engine(identity)
    if loop is not None:
        loop.post(commands.on_accept, identity.endpoint)


def _accept_any(sock: StdlibSocket, made: Socket, send_buffer_bytes: int) -> tuple[bytes, int, int] | None:
    """accept4(2) of a listening AF_UNIX socket. After shutdown() it gives EAGAIN for ever on a non-blocking one, while
    poll() reports it readable; this raises EINVAL as TCP does. Returns what caller_calls.accept_pair() does.
    """
    check_open(sock)
    timeout = sock.gettimeout()
    if timeout:
        mask = _wait_readable(sock, timeout)
        if not mask:
            raise TimeoutError("timed out")
        if mask & _POLLRDHUP:
            raise os_error(errno.EINVAL)
    try:
        if timeout is not None:
            found = accept_pair(sock, made, send_buffer_bytes)
            if found is not None:
                return found
        accepted(sock, made)
    except BlockingIOError:
        if sock.fileno() >= 0 and _wait_readable(sock, 0) & _POLLRDHUP:  # -1: closed by another thread meanwhile
            raise os_error(errno.EINVAL) from None
        raise
    return None


def _wait_readable(sock: StdlibSocket, seconds: float) -> int:
    poller = poll()
    fd = sock.fileno()
    if fd < 0:
        raise os_error(errno.EBADF)  # closed by another thread
    poller.register(fd, _POLLIN | _POLLRDHUP)
    found = poller.poll(seconds * 1_000)
    return int(found[0][1]) if found else 0


def stop_listening(sock: StdlibSocket, identity: Identity) -> None:
    """The listening descriptor was shut down: new connections are refused, and those that wait are reset."""
    loop = running_engine()
    if loop is None or loop.pid != identity.owner_pid:
        return
    if sock.gettimeout() != 0:
        loop.call(commands.stop_listening, identity.endpoint, identity.inode)
    elif isinstance(loop, Loop):
        loop.perform(commands.stop_listening, identity.endpoint, identity.inode)
    else:
        loop.post(commands.stop_listening, identity.endpoint, identity.inode)
    _reset_queue(sock, identity)
    lifecycle.become_unconnected(sock, identity)


def _reset_queue(sock: StdlibSocket, listener: Identity) -> None:
    """Reset the connections that wait for accept(), one by one: the descriptor may be open in another process, which
    would keep the queue.
    """
    while (waiting := accept_keeping_gil(sock.fileno())) is not None:
        try:
            name: bytes = Socket.getpeername(waiting)
            cookie = _cookie_if_made_by_engine(name, fd_names.peer_credentials(waiting)[0], listener)
            identity = None if cookie is None else registry.identify_accepted(waiting, name, cookie, listener.owner_pid)
            # Before the engine sees the close, which without SO_LINGER would be an end of file.
            if identity is not None:
                identity.settings.linger_seconds = 0
                lifecycle.apply_options(identity, at_once=False, to_connection=False, is_nodelay=False)
        finally:
            Socket.close(waiting)
        if identity is not None:
            closing.after_close(identity, None)
