"""The user's side of the AF_UNIX pair: from a fresh fd to one that is connecting, and the gate that keeps it quiet.

Separate from shim.py because it is all kernel and no interface. While TCP connects, poll() says nothing and send()
blocks; an AF_UNIX pair is writable from its first moment. So the user's send buffer is shrunk and stuffed with filler,
which the engine drains when the connection stands (SOCKETS.md §1). Enlarging the buffer again would open the gate too
early, so it is left to the user's side, later.

Any thread may call. Sources: unix(7), socket(7).
"""

from __future__ import annotations

import os
import socket as stdlib
import struct
from typing import Any, Final

from utpsocket import replacement
from utpsocket.engine import names
from utpsocket.engine.identity import Identity
from utpsocket.engine.native import Socket

# What a program writes ahead of the engine: with little of it, a thread that keeps the GIL busy stalls the writer too.
_USER_BUFFER_BYTES: Final = 256 << 10
# An engine in its own process never waits for that thread, only the writer does: more per wait then, as with TCP.
_FAR_BUFFER_BYTES: Final = 512 << 10
_FILLER: Final = bytes(8_192)  # more than the smallest send buffer takes
_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred: pid, uid, gid


def pair(sock: Any, identity: Identity) -> int:
    """Connect the user's fresh fd to a new engine's end, gate closed; returns the end's fd.

    Through a private, momentary listening socket, so that the same fd goes from fresh to connecting. Its name becomes
    what getpeername() says of the raw fd.
    """
    assert identity.local is not None and identity.peer is not None
    name = names.encode(identity.cookie, identity.local, identity.peer, identity.owner_pid)
    door = Socket(stdlib.AF_UNIX, stdlib.SOCK_STREAM)
    try:
        door.setblocking(False)
        door.bind(name)
        door.listen(1)
        if identity.settings.send_buffer_bytes:
            identity.send_buffer_bytes = Socket.getsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_SNDBUF) // 2
        else:
            identity.send_buffer_bytes = user_buffer_bytes(identity)
        Socket.setsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, 0)
        Socket.connect(sock, name)
        identity.filler_bytes = Socket.send(sock, _FILLER, stdlib.MSG_DONTWAIT)
        identity.is_gated = True
        while True:
            end_fd, _ = door._accept()
            end = Socket(fileno=end_fd)
            if comes_from(end, os.getpid()):
                return int(end.detach())
            end.close()  # a stranger who found the name: anyone on this machine can connect to it
    finally:
        door.close()


def user_buffer_bytes(identity: Identity) -> int:
    """What setsockopt(SO_SNDBUF) is given for the fd of a user who asked for nothing."""
    return _USER_BUFFER_BYTES if identity.owner_pid == os.getpid() else _FAR_BUFFER_BYTES


def open_gate(sock: Any, identity: Identity) -> None:
    """Give the user's fd its send buffer back, once the connection stands."""
    identity.is_gated = False
    Socket.setsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, identity.send_buffer_bytes)


def comes_from(sock: Any, pid: int) -> bool:
    """Whether the other end of this AF_UNIX connection was made by that process of this user. unix(7) SO_PEERCRED."""
    credentials = Socket.getsockopt(sock, stdlib.SOL_SOCKET, stdlib.SO_PEERCRED, _CREDENTIALS.size)
    peer_pid, peer_uid, _ = _CREDENTIALS.unpack(credentials)
    return bool(peer_pid == pid and peer_uid == os.getuid())


def renew(sock: Any) -> None:
    """Put a fresh AF_UNIX socket in the place of the user's fd: TCP can connect again after a failed attempt, AF_UNIX
    cannot.
    """
    replacement.put(Socket(stdlib.AF_UNIX, stdlib.SOCK_STREAM), sock)
