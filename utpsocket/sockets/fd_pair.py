"""The user's side of the AF_UNIX pair: how its descriptor comes to be connected to the engine, and the gate.

While TCP connects, poll() reports nothing and send() blocks; an AF_UNIX pair can be written to as soon as it exists. So
the user's send buffer is set to its least size and filled, and the engine reads the filler when the connection is
established (docs/sockets.md §1): the gate. Enlarging the buffer would open the gate too early, so the user's side does
it later.

Any thread may call. Sources: unix(7), socket(7).
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Final

from utpsocket.engine.interpreter.native import (
    SOCK_NONBLOCK,
    Socket,
    StdlibSocket,
    accept_keeping_gil,
    connect_at_once,
    poll,
)
from utpsocket.engine.interpreter.originals import _socket, ctypes, os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel import fd_names, netns
from utpsocket.engine.kernel.high_fds import HIGH_FD, HighSocket, move_to_high_fd, with_room
from utpsocket.engine.user_fds import reset
from utpsocket.engine.user_fds.socket_state import Identity
from utpsocket.protocol.build import IS_COMPILED
from utpsocket.sockets import fd_swap

if TYPE_CHECKING or IS_COMPILED:
    from utpsocket import _native

# How much a program can write before the engine reads: with a small buffer the writer waits for the engine, which waits
# for the GIL where another thread computes. By feel.
_USER_BUFFER_BYTES: Final = 256 << 10
# An engine in its own process does not wait for the GIL, only the writer does: so it writes more each time. By feel.
_REMOTE_BUFFER_BYTES: Final = 512 << 10
_unix_stream: Final = partial(Socket, stdlib.AF_UNIX, stdlib.SOCK_STREAM)
_unix_listener: Final = partial(Socket, stdlib.AF_UNIX, stdlib.SOCK_STREAM | SOCK_NONBLOCK)
_new_engine_sock: Final = partial(HighSocket, stdlib.AF_UNIX, stdlib.SOCK_STREAM | SOCK_NONBLOCK, 0)
# Other processes would have to fill a queue under each of so many random names; by feel.
_TRIES: Final = 1_000
# Room for other processes' connections to the name before ours; by feel.
_LISTEN_BACKLOG: Final = 16
_POLLERR: Final = 0x008
_POLLHUP: Final = 0x010
# Of what was received and not read, for one call.
_MOVED_BYTES: Final = 65_536
# More than the smallest send buffer takes.
_FILLER: Final = bytes(8_192)


def pair(sock: StdlibSocket, identity: Identity) -> Socket:
    """Connect the user's descriptor to a new socket of the engine, with the gate closed. Returns the engine's socket.

    A listening AF_UNIX socket is made for this moment, so that the user's descriptor stays the same. Its name is what
    getpeername() of the raw descriptor returns then. Other processes may connect to the name too: these connections are
    closed, and where they fill the queue another name is tried. Raises EAGAIN after a thousand names.
    """
    assert identity.local is not None and identity.peer is not None
    if identity.settings.send_buffer_bytes:
        identity.send_buffer_bytes = Socket.getsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_SNDBUF) // 2
    else:
        identity.send_buffer_bytes = user_buffer_bytes(identity)
    fd = sock.fileno()
    make = partial(with_room, _unix_listener)
    is_elsewhere = False
    engine_sock: Socket | None = None
    for _ in range(_TRIES):
        identity.cookie = fd_names.new_cookie()
        name = fd_names.encode(identity.cookie, identity.local, identity.peer, identity.owner_pid)
        if IS_COMPILED and not is_elsewhere:
            engine_sock = _pair_in_c(sock, name, identity)
            if engine_sock is not None:
                return engine_sock
        Socket.setsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, 0)
        listening = netns.make_in_namespace_of(sock, make) if is_elsewhere else make()
        try:
            engine_sock = _pair_at(listening, fd, name)
        except ConnectionRefusedError:
            if is_elsewhere or netns.cookie(listening) == netns.cookie(sock):
                raise
            is_elsewhere = True  # each network namespace has its own names
            continue
        finally:
            listening.close()
        if engine_sock is not None:
            break
    if engine_sock is None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    identity.filler_bytes = _fill_send_buffer(sock)
    identity.is_gated = True
    return engine_sock


def _fill_send_buffer(sock: StdlibSocket) -> int:
    """Close the gate: fill the user's send buffer. Returns how many bytes that took."""
    try:
        return Socket.send(sock, _FILLER, stdlib.MSG_DONTWAIT)
    except BrokenPipeError:
        return 0  # shut down before it was connected: it needs no gate, since nothing can be sent


def _pair_in_c(sock: StdlibSocket, name: bytes, identity: Identity) -> Socket | None:
    """As _pair_at() and what follows it, in one call of C. None if it is not possible so, for whatever reason."""
    found: list[int] = []
    try:
        made = iter(partial(_native.connect_pair, sock.fileno(), name, os.getpid(), HIGH_FD, found), None)
        engine_sock = next(map(_new_engine_sock, made))
        (identity.filler_bytes,) = found
        identity.is_gated = True
        return engine_sock
    except OSError as error:
        reraise_handler_error(error)
        try:
            Socket.getpeername(sock)
        except OSError as unconnected:
            reraise_handler_error(unconnected)
            return None
        raise


def _pair_at(listening: Socket, fd: int, name: bytes) -> Socket | None:
    """Connect the descriptor to a listening socket of this name and accept it. None where others fill the queue."""
    listening.bind(name)
    listening.listen(_LISTEN_BACKLOG)
    code = connect_at_once(fd, name)
    if code == errno.EAGAIN:
        return None
    if code:
        raise OSError(code, os.strerror(code))
    while True:
        engine_sock = with_room(partial(_accepted, listening.fileno()))
        # Whichever user: a program may change that at any time.
        if fd_names.peer_credentials(engine_sock)[0] == os.getpid():
            return move_to_high_fd(engine_sock)
        engine_sock.close()


def _accepted(listening_fd: int) -> Socket:
    engine_sock = accept_keeping_gil(listening_fd, SOCK_NONBLOCK)
    if engine_sock is None:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return engine_sock


def user_buffer_bytes(identity: Identity) -> int:
    """What setsockopt(SO_SNDBUF) is given for the descriptor where the program has not set the option."""
    return _USER_BUFFER_BYTES if identity.owner_pid == os.getpid() else _REMOTE_BUFFER_BYTES


def open_gate(sock: StdlibSocket, identity: Identity) -> None:
    """Set the send buffer of the user's descriptor to its proper size, once the connection is established."""
    Socket.setsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, identity.send_buffer_bytes)
    identity.is_gated = False  # last: if this is interrupted it is done again


def renew(sock: StdlibSocket) -> None:
    """Put a new AF_UNIX socket in the place of the user's descriptor: TCP can connect again after a failed attempt,
    AF_UNIX cannot.
    """
    there = netns.cookie(sock)
    fd_swap.replace(netns.make_in_namespace(sock, there, partial(with_room, _unix_stream)), sock)


def reset_socket(name: bytes = b"", received_from: Socket | None = None) -> Socket:
    """An AF_UNIX socket that was reset: recv() gives ECONNRESET, and poll() reports it. Raises OSError.

    name            of its other end, if that has one
    received_from   a descriptor whose unread bytes are moved to the new one first
    """
    fresh, other_end = with_room(partial(_socket.socketpair, stdlib.AF_UNIX, stdlib.SOCK_STREAM, 0))
    try:
        if name:
            other_end.bind(name)
        if received_from is not None:
            _move_unread(received_from, other_end)
        fresh.send(b"!")
    except BaseException:
        fresh.close()
        raise
    finally:
        other_end.close()  # with a byte unread: the first end gets ECONNRESET (unix(7))
    return fresh


def _move_unread(sock: Socket, to: Socket) -> None:
    """Move what the descriptor has received, and nothing of it where not all may fit. Raises OSError."""
    left = reset.unread_bytes(sock.fileno())
    to.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, 2 * left)  # the kernel doubles it, and counts its bookkeeping
    if to.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF) < 2 * left:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
    while left > 0 and (data := Socket.recv(sock, min(left, _MOVED_BYTES), stdlib.MSG_DONTWAIT)):
        to.sendall(data)
        left -= len(data)


def show_reset(sock: Socket, name: bytes) -> None:
    """Have the kernel report that an accepted connection was reset before. The engine could not leave an unread byte at
    its end (user_fds/reset.py): no process had the descriptor yet. So another socket takes its place.

    sock   of which there are no duplicates yet
    name   of the engine's end
    """
    poller = poll()
    poller.register(sock.fileno(), 0)
    mask = sum(mask for _, mask in poller.poll(0))
    try:
        if mask & _POLLHUP:
            if not mask & _POLLERR:
                fd_swap.replace(reset_socket(name, sock), sock)
        else:  # the engine closes its end once all has been delivered
            Socket.send(sock, b"!", stdlib.MSG_DONTWAIT | stdlib.MSG_NOSIGNAL)
            Socket.shutdown(sock, stdlib.SHUT_WR)
    except OSError as error:
        reraise_handler_error(error)  # no fd is left, say: recv() and send() find the errno in the identity
