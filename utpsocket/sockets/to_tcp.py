"""A uTP socket becomes a TCP socket where the rules of a patch send it to TCP.

Rules are about addresses, and an address is known only at bind(), listen() or connect(), when the user's descriptor is
an AF_UNIX socket already. So a kernel TCP socket takes its place under the same number, with the options, the timeout,
the flags and the epoll registrations that it had (fd_swap.py), and the Python object is a socket of the standard
library from then on. Duplicates of the descriptor do not follow.

A bound socket may still connect or listen, for which the rules may differ. So bind() to an address where the rules have
listeners use TCP binds a second socket, `bound_tcp`, and listen() or connect() decide. A listener of both has one too.

Any thread may call. Sources: docs/sockets.md §8; dup(2), socket(7).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from utpsocket.engine import commands
from utpsocket.engine.channels.tcp_socket import apply_options, tcp_socket
from utpsocket.engine.current import running_engine
from utpsocket.engine.interpreter.native import Socket, StdlibSocket
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.kernel.high_fds import move_to_high_fd
from utpsocket.engine.loop import Loop
from utpsocket.engine.user_fds.socket_state import Identity, Role
from utpsocket.sockets import fd_swap, lifecycle, registry

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.arguments import GivenAddress

# To find a port number that is free for UDP and for TCP; by feel.
_PAIR_TRIES: Final = 64
_PAIR_OPTIONS: Final = (stdlib.SO_RCVTIMEO, stdlib.SO_SNDTIMEO, stdlib.SO_RCVLOWAT)
_OPTION_BYTES: Final = 64


def bind(sock: StdlibSocket, identity: Identity, address: GivenAddress) -> None:
    """bind() under rules: a UDP port, a TCP socket, or both at one port number. Raises what bind() of TCP raises."""
    routes = identity.routes
    assert routes is not None
    if not routes.chooses_utp(identity.family, address, "listen"):
        bound_tcp = tcp_socket(identity)
        try:
            bound_tcp.bind(address)
        except BaseException:
            bound_tcp.close()
            raise
        identity.bound_tcp, identity.local = bound_tcp, bound_tcp.getsockname()
    elif routes.listen == "both":
        _bind_both(sock, identity, address)
    else:
        lifecycle.bind(sock, identity, address)


def _bind_both(sock: StdlibSocket, identity: Identity, address: GivenAddress) -> None:
    for _ in range(_PAIR_TRIES):
        bound_tcp = move_to_high_fd(tcp_socket(identity))
        try:
            bound_tcp.bind(address)
            identity.bound_tcp = bound_tcp
            assert isinstance(address, tuple)
            lifecycle.bind(sock, identity, (address[0], *bound_tcp.getsockname()[1:]))
            return
        except BaseException as error:
            bound_tcp.close()
            if not identity.endpoint:  # else listen() finds the closed one, and binds another
                identity.bound_tcp = None
            if not isinstance(error, OSError) or error.errno != errno.EADDRINUSE:
                raise
            if not isinstance(address, tuple) or address[1]:
                raise
    raise lifecycle.os_error(errno.EADDRINUSE)


def listens_over_tcp(sock: StdlibSocket, identity: Identity) -> bool:
    """Whether listen() is TCP's: then the socket is TCP's by now. One that is to listen over both has its TCP socket
    still, or again where a listen() that failed has closed it.
    """
    if identity.bound_tcp is None:
        return False
    if identity.endpoint:
        if identity.bound_tcp.fileno() < 0:
            _bind_tcp_again(identity)
        return False
    become_tcp(sock, identity)
    return True


def _bind_tcp_again(identity: Identity) -> None:
    """Bind another TCP socket to the port, in the place of one that is closed. Raises OSError."""
    assert identity.local is not None
    tcp = move_to_high_fd(tcp_socket(identity))
    try:
        try:
            tcp.bind(identity.local)
        except OSError as error:
            loop = running_engine()
            if error.errno != errno.EADDRINUSE or not isinstance(loop, Loop):
                raise
            loop.call(commands.barrier)  # its thread may be about to close the other one
            tcp.bind(identity.local)
        identity.bound_tcp = tcp
    except BaseException:
        tcp.close()
        raise


def connects_over_tcp(sock: StdlibSocket, identity: Identity, address: GivenAddress) -> bool:
    """Let the socket become a TCP socket, bound as before, if this connect() goes over TCP; whether it is one."""
    if identity.role not in (Role.UNCONNECTED, Role.FAILED) or sock.fileno() < 0:
        return False
    assert identity.routes is not None
    if not identity.routes.chooses_utp(identity.family, address, "connect"):
        become_tcp(sock, identity)
        return True
    if identity.bound_tcp is not None:
        local = identity.local
        assert local is not None
        drop_bound_tcp(identity)
        if not identity.endpoint:
            lifecycle.bind(sock, identity, local)
    return False


def drop_bound_tcp(identity: Identity) -> None:
    """Close the second socket, which is not needed."""
    bound_tcp, identity.bound_tcp = identity.bound_tcp, None
    if bound_tcp is not None:
        bound_tcp.close()


def become_tcp(sock: StdlibSocket, identity: Identity) -> None:
    """Put a kernel TCP socket in the descriptor's place. Raises OSError where the bound address is not free for TCP."""
    fd = sock.fileno()
    tcp, identity.bound_tcp = identity.bound_tcp, None
    if tcp is None or tcp.fileno() < 0:
        tcp = tcp_socket(identity)
    try:
        apply_options(tcp, identity)
        for name in _PAIR_OPTIONS:
            value = Socket.getsockopt(sock, stdlib.SOL_SOCKET, name, _OPTION_BYTES)
            if any(value):
                tcp.setsockopt(stdlib.SOL_SOCKET, name, value)
        if identity.endpoint and not tcp.getsockname()[1]:
            assert identity.local is not None
            tcp.bind(identity.local)
        timeout, is_blocking = Socket.gettimeout(sock), os.get_blocking(fd)
    except BaseException:
        tcp.close()
        raise
    fd_swap.replace(tcp, sock)
    proto = Socket.proto.__get__(sock)
    registry.forget(identity)
    sock._utp = None  # type: ignore[attr-defined]  # of the class in shim.py, which imports this
    Socket.__init__(sock, identity.family, stdlib.SOCK_STREAM, proto, fd)
    Socket.settimeout(sock, timeout)
    os.set_blocking(fd, is_blocking)
    loop = running_engine()
    if identity.endpoint and loop is not None and loop.caller_pid == os.getpid():
        (loop.perform if isinstance(loop, Loop) else loop.post)(commands.release, identity.endpoint, identity.inode)
