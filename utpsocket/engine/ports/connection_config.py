"""What a new connection is made with, by the socket's options, its port and its peer's address.

Only the engine's thread calls. Source: socket(7); docs/protocol.md §10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

from utpsocket.engine.channels.receive_buffer import FIRST_WINDOW_BYTES
from utpsocket.engine.interpreter.originals import os, struct
from utpsocket.engine.user_fds.socket_state import Settings, window_bytes
from utpsocket.protocol import Address, Config, Connection
from utpsocket.protocol.pathmtu import (
    CEILING_IPV4_BYTES,
    CEILING_IPV6_BYTES,
    FLOOR_BYTES,
    FLOOR_IPV6_BYTES,
    START_IPV4_BYTES,
)

if TYPE_CHECKING:
    from utpsocket.engine.channels.utp import Bridge
    from utpsocket.engine.kernel.udp import Port
    from utpsocket.engine.ports.receive_shares import ReceiveShares
    from utpsocket.protocol.layout import Layout

    class Engine(Protocol):
        """What is used of the port's engine."""

        max_datagram_bytes: int
        congestion: str
        target_delay_us: int
        max_window_bytes: int

    class ConnectionPort(Protocol):
        """What is used of the port (endpoint.py)."""

        port: Port
        shares: ReceiveShares

        @property
        def loop(self) -> Engine: ...


IDS_PER_DIAL: Final = 4
"""One, and spare ones for SYNs that are repeated with another id (handshake.py)."""
_FRESH: Final[Layout[tuple[int, int, int, int, int]]] = struct.Struct("=5H")  # ids, and a first sequence number
MIN_BUFFER_BYTES: Final = 4_096
"""Of a connection, whatever SO_RCVBUF says: two large packets."""
# Unacked and unsent data of a connection, until its congestion window asks for more. With the pair's buffer about what
# TCP takes for a peer that reads nothing (tcp_wmem[2] is 4 MiB).
_SEND_BYTES: Final = 3 << 20
_AF_INET6: Final = 10


def _first_window_bytes(endpoint: ConnectionPort, settings: Settings) -> int:
    """What is kept at first for a program that does not read; if it has set SO_RCVBUF, at any time."""
    asked_bytes = window_bytes(settings.receive_buffer_bytes) or FIRST_WINDOW_BYTES
    return max(MIN_BUFFER_BYTES, min(asked_bytes, endpoint.shares.single_share_bytes))


def connection_config(endpoint: ConnectionPort, settings: Settings, addr: Address) -> Config:
    """The tuning of a connection of this port to this address."""
    is_v4 = endpoint.port.family != _AF_INET6 or (isinstance(addr, tuple) and addr[0].startswith("::ffff:"))
    floor_bytes = FLOOR_BYTES if is_v4 else FLOOR_IPV6_BYTES
    is_this_machine = is_v4 and isinstance(addr, tuple) and addr[0].removeprefix("::ffff:").startswith("127.")
    limit = endpoint.loop.max_datagram_bytes or settings.max_datagram_bytes
    send, max_send = _SEND_BYTES, endpoint.loop.max_window_bytes
    if settings.send_buffer_bytes:
        send = window_bytes(settings.send_buffer_bytes) or _SEND_BYTES
        max_send = 0
    return Config(
        start_datagram_bytes=START_IPV4_BYTES if is_this_machine else floor_bytes,
        min_datagram_bytes=floor_bytes,
        max_datagram_bytes=limit or (CEILING_IPV4_BYTES if is_v4 else CEILING_IPV6_BYTES),
        receive_buffer_bytes=_first_window_bytes(endpoint, settings),
        send_buffer_bytes=max(MIN_BUFFER_BYTES, send),
        max_send_buffer_bytes=max_send,
        congestion=settings.congestion or endpoint.loop.congestion,
        target_delay_us=settings.target_delay_us or endpoint.loop.target_delay_us,
    )


def set_buffers(endpoint: ConnectionPort, settings: Settings, bridge: Bridge) -> None:
    """Have a connection follow SO_SNDBUF and SO_RCVBUF, where they are set."""
    connection = bridge.connection
    if settings.send_buffer_bytes:
        connection.send.buffer.set_capacity(max(MIN_BUFFER_BYTES, window_bytes(settings.send_buffer_bytes)))
    if settings.receive_buffer_bytes:
        connection.receive.reassembly.resize(_first_window_bytes(endpoint, settings))
        if bridge.engine_sock is not None:
            bridge.receive_buffer.apply_option(bridge.engine_sock, settings.receive_buffer_bytes)


def control_congestion(endpoint: ConnectionPort, settings: Settings, connection: Connection) -> None:
    """Have a connection follow UTP_CONGESTION and UTP_TARGET_DELAY."""
    loop = endpoint.loop
    connection.send.control_congestion(
        settings.congestion or loop.congestion, settings.target_delay_us or loop.target_delay_us
    )


def fresh_ids(bridges: Mapping[tuple[Address, int], object], addr: Address) -> tuple[list[int], int]:
    """Random ids that with those beside them are not used with this peer, and a random sequence number. Each id's
    neighbour is the other direction's, and a socket may connect to itself.

    bridges   the port's connections
    """
    ids: list[int] = []
    while len(ids) < IDS_PER_DIAL:
        *numbers, first_seq = _FRESH.unpack(os.urandom(_FRESH.size))
        for one in numbers:
            for other in ids:
                if one - other + 1 & 0xFFFF <= 2:
                    break
            else:
                if not (bridges and any((addr, one + by & 0xFFFF) in bridges for by in (-1, 0, 1))):
                    ids.append(one)
    return ids[:IDS_PER_DIAL], first_seq
