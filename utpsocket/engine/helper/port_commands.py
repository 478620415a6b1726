"""Commands for a bind() that does not wait: to an address that a port of ours has, with an engine in another process.

The caller has decided by what it knows (known_ports.py) that the address may be shared, and has chosen the port's key.
Here that is decided again. With the command comes a UDP socket that is not bound, in case the port has been closed
meanwhile. Only the engine's thread calls.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from utpsocket.engine import command_queue, commands
from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.ports import overlapping_ports
from utpsocket.engine.user_fds.socket_state import Identity, Role
from utpsocket.protocol import Address

if TYPE_CHECKING:
    from utpsocket.engine.loop import Loop

# At a port without holders, which the first try closes; by feel.
_TRIES: Final = 3


def take_port(
    loop: Loop,
    key: int,
    udp_sock: Socket,
    local: Address,
    identity: Identity,
    reuse_address: bool,
    shares: bool,
    namespace: int,
) -> None:
    """Bind a user's socket to this address: to the port of that key if there is one, else to a new one. Raises
    EADDRINUSE.
    """
    found = 0
    for tries_left in reversed(range(_TRIES)):
        try:
            found = commands.share_port(
                loop, local, identity, reuse_address=reuse_address, shares=shares, namespace=namespace
            )
            break
        except BlockingIOError:
            if not tries_left:
                raise
    if found == key:
        udp_sock.close()
        return
    if found:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))  # a port that the caller does not know has it
    overlapped: list[int] = []
    try:
        if reuse_address:
            overlapped = commands.allow_overlap(loop, local, namespace=namespace)
        if overlapped:
            overlapping_ports.bind_over(udp_sock, local)
        else:
            udp_sock.bind(local)
        commands.adopt_port(loop, udp_sock, identity, reuse_address=reuse_address, shares=shares, key=key)
    finally:
        commands.end_overlap(loop, overlapped, key)


def keep_port(
    loop: Loop,
    key: int,
    udp_sock: Socket,
    inode: int,
    local: Address,
    identity: Identity,
    reuse_address: bool,
    shares: bool,
    namespace: int,
    reservation: Socket | None,
) -> None:
    """A bound socket has got another fd; its inode was `inode` before. It keeps its port, or is bound to it again.

    reservation   keeps the address for it where processes share that (ports/reuseport.py)
    """
    if commands.replace_holder(loop, key, inode, identity):
        udp_sock.close()
        if reservation is not None:
            reservation.close()
    elif reservation is not None:
        commands.adopt_port_as(loop, key, udp_sock, identity, reuse_address, shares, reservation)
    else:
        take_port(loop, key, udp_sock, local, identity, reuse_address, shares, namespace)


def _undo(loop: Loop, code: int, key: int, *arguments: object) -> None:
    """The socket is not bound: its next call raises the error."""
    identity = next(argument for argument in arguments if isinstance(argument, Identity))
    commands.drop_holders_of(loop, identity.inode)
    if key not in loop.endpoints:
        loop.bound.on_refused(key)
    identity.error = code
    identity.role = Role.FAILED


command_queue.UNDO[take_port] = command_queue.UNDO[keep_port] = command_queue.UNDO[commands.adopt_port_as] = _undo
