"""Verbs of a caller who does not wait for its port: bind() to an address that a port of ours has, where the engine is
another process.

Separate from commands.py, of which they are made, because the caller has judged already what they judge again
(known_ports.py), and made up the port's key. It has sent a UDP socket along, not bound yet, in case the port is gone by
now. Only the engine's thread calls.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from utpsocket.engine import command_queue, commands
from utpsocket.engine.interpreter.originals import os
from utpsocket.engine.kernel.fd_names import Address
from utpsocket.engine.ports import overlapping_ports
from utpsocket.engine.user_fds.socket_state import Identity, Role

if TYPE_CHECKING:
    from utpsocket.engine.loop import Loop

_TRIES: Final = 3  # at a port that was held by nobody, and is closed by the first


def take_port(
    loop: Loop,
    key: int,
    udp_sock: Any,
    local: Address,
    identity: Identity,
    reuse: bool,
    shares: bool,
    namespace: int,
) -> None:
    """A user's socket is bound to this address, to the port of that key if it is there. Raises EADDRINUSE."""
    found = 0
    for tries_left in reversed(range(_TRIES)):
        try:
            found = commands.share_port(loop, local, identity, reuse=reuse, shares=shares, namespace=namespace)
            break
        except BlockingIOError:
            if not tries_left:
                raise
    if found == key:
        udp_sock.close()
        return
    if found:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))  # of a port that the caller does not know
    way: list[int] = []
    try:
        if reuse:
            way = commands.allow_overlap(loop, local, namespace=namespace)
        if way:
            overlapping_ports.bind_over(udp_sock, local)
        else:
            udp_sock.bind(local)
        commands.adopt_port(loop, udp_sock, identity, reuse=reuse, shares=shares, key=key)
    finally:
        commands.end_overlap(loop, way, key)


def keep_port(
    loop: Loop,
    key: int,
    udp_sock: Any,
    inode: int,
    local: Address,
    identity: Identity,
    reuse: bool,
    shares: bool,
    namespace: int,
) -> None:
    """The fd of a bound socket, until now `inode`, is another one: it has its port still, or again."""
    if commands.replace_holder(loop, key, inode, identity):
        udp_sock.close()
    else:
        take_port(loop, key, udp_sock, local, identity, reuse, shares, namespace)


def _undo(loop: Loop, code: int, key: int, *arguments: Any) -> None:
    """It is not bound, and its next call says so."""
    identity = next(argument for argument in arguments if isinstance(argument, Identity))
    commands.drop_holders_of(loop, identity.inode)
    if key not in loop.endpoints:
        loop.bound.on_refused(key)
    identity.error = code
    identity.role = Role.FAILED


command_queue.UNDO[take_port] = command_queue.UNDO[keep_port] = command_queue.UNDO[commands.adopt_port_as] = _undo
