"""Kernel TCP sockets with a uTP socket's options.

The class socket makes one where the rules of a patched program say TCP, the engine where a connect() falls back to it.

Any thread may call. Sources: docs/sockets.md §8; tcp(7), socket(7).
"""

from __future__ import annotations

from functools import partial
from typing import Final

from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.originals import struct
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel.high_fds import with_room
from utpsocket.engine.user_fds.socket_state import Identity

_DOUBLED: Final = {(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF), (stdlib.SOL_SOCKET, stdlib.SO_RCVBUF)}
_INT: Final = struct.Struct("=i")


def tcp_socket(identity: Identity) -> Socket:
    """A kernel TCP socket with the options that this uTP socket was given."""
    tcp = with_room(partial(Socket, identity.family, stdlib.SOCK_STREAM, 0))
    apply_options(tcp, identity)
    return tcp


def apply_options(tcp: Socket, identity: Identity) -> None:
    """Give a TCP socket the options remembered for a uTP one: each was tried on TCP when it was set."""
    for (level, name), value in list(identity.options.items()):
        if (level, name) in _DOUBLED:  # they read back as twice what was asked for
            value = _INT.pack(_INT.unpack_from(value)[0] // 2)
        try:
            tcp.setsockopt(level, name, value)
        except OSError as error:
            reraise_handler_error(error)  # one that can be set in another state only, such as IPV6_V6ONLY after bind()
