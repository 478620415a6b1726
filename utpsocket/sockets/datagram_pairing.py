"""bind() of the second half of a port: a UDP socket of the program's and a uTP socket at one address.

In either order: bind_beside() binds a UDP socket where a uTP socket is bound, half_at() finds the UDP socket at the
address of a uTP socket and pair() makes the two halves of one port. Whichever was bound first is in the kernel's table
already, and the second may join it only while both have SO_REUSEPORT set. Of two UDP sockets of the program's one is
the half: the kernel refuses the other one, as without uTP.

Any thread may call. Sources: docs/sockets.md §3; engine/kernel/port_selector.py.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from utpsocket.engine import commands
from utpsocket.engine.current import running_engine
from utpsocket.engine.interpreter.native import Socket, StdlibSocket
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.interpreter.signal_errors import or_none, reraise_handler_error, suppress_errnos
from utpsocket.engine.kernel import netns, port_selector
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports.reuseport import is_shared
from utpsocket.sockets import datagrams
from utpsocket.sockets.datagrams import DatagramSocket
from utpsocket.sockets.local_addresses import resolved

if TYPE_CHECKING:
    from utpsocket.engine.helper.client import RemoteLoop
    from utpsocket.engine.interpreter.arguments import GivenAddress
    from utpsocket.protocol import Address

# For an address that a port which the engine is about to close still has; by feel.
_TRIES: Final = 100


def bind_beside(sock: StdlibSocket, address: GivenAddress, entry: DatagramSocket) -> bool:
    """bind() of a UDP socket to an address that the kernel says is in use: beside a uTP socket, if that is why. Returns
    False if it is not bound.
    """
    loop = running_engine()
    if loop is None or loop.caller_pid != os.getpid() or not loop.is_alive or not _may_join(sock, entry):
        return False
    local, namespace = resolved(int(Socket.family.__get__(sock)), address), netns.cookie(sock)
    for other, _ in datagrams.bound(local):
        if netns.cookie(other) == namespace:
            return False
    token, inode = datagrams.new_token(), os.fstat(sock.fileno()).st_ino
    loop.holders_watch.watch(sock.fileno(), inode)
    traits = port_selector.traits(sock, local[0])
    key = 0
    try:
        for _ in range(_TRIES):
            try:
                key = loop.perform(commands.admit_datagrams, local, inode, token, traits, namespace)
            except BlockingIOError:  # the port is about to be closed
                loop.call(commands.barrier)
                continue
            break
        port_selector.let_join(sock, bool(key))
        Socket.bind(sock, address)  # without a key: the port has been closed meanwhile, or another program has it
        if key:
            port_selector.attach(sock, utp_index=0)
            datagrams.become_half(sock, entry, token, key)
    except BaseException as error:
        with suppress_errnos():
            port_selector.let_join(sock, False)
        if key:
            loop.perform_or_post(commands.dismiss_datagrams, key, inode)
        if not isinstance(error, OSError) or error.errno != errno.EADDRINUSE:
            raise
        return False
    return True


def half_at(local: Address, namespace: int) -> tuple[StdlibSocket, DatagramSocket] | None:
    """The UDP socket of the program's that a uTP socket may be bound beside; None: there is none. There is no uTP
    socket of this process at the address.
    """
    for sock, entry in datagrams.bound(local):
        try:
            if netns.cookie(sock) == namespace and _may_join(sock, entry):
                return sock, entry
        except OSError as error:
            reraise_handler_error(error)  # closed by now
    return None


def _may_join(sock: StdlibSocket, entry: DatagramSocket) -> bool:
    """Whether the socket may be a half: not if it is connected, if the program shares its address with other processes,
    or if it is the half of a port of the parent's.
    """
    if or_none(Socket.getpeername, sock) is not None:
        return False
    if entry.token:
        return entry.pid == os.getpid()
    return not is_shared(sock)


def join(half: Socket, udp: Socket, address: GivenAddress) -> None:
    """Bind the engine's UDP socket beside the program's. Raises OSError."""
    host = Socket.getsockname(half)[0]
    if port_selector.traits(half, host) != port_selector.traits(udp, host):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    port_selector.let_join(half, True)
    port_selector.bind_beside(udp, address)


def pair(loop: Loop | RemoteLoop, sock: StdlibSocket, entry: DatagramSocket, key: int) -> None:
    """After join(): make the two sockets the halves of one port. Raises OSError.

    key   of the engine's port
    """
    token, inode = datagrams.new_token(), os.fstat(sock.fileno()).st_ino
    loop.holders_watch.watch(sock.fileno(), inode)
    (loop.perform if isinstance(loop, Loop) else loop.post)(commands.join_datagrams, key, inode, token)
    port_selector.attach(sock, utp_index=1)
    datagrams.become_half(sock, entry, token, key)
