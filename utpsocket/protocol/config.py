"""Tuning, and the memory that the connections of one thread share.

A Config is what socket options and environment variables become; a Workspace is memory that would be wasted if each
connection had its own (docs/design.md §4, docs/performance.md §8). Both outlive any connection.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.congestion import CONTROLLERS, DEFAULT_CONTROLLER
from utpsocket.protocol.known_path import KnownPath
from utpsocket.protocol.packet import HEADER_BYTES
from utpsocket.protocol.pathmtu import CEILING_IPV4_BYTES, FLOOR_BYTES, START_IPV4_BYTES, PathMtu
from utpsocket.protocol.sendbuffer import BlockPool, SendBuffer
from utpsocket.protocol.sendhalf import SendHalf

# Where many connections send to one peer they take turns, and each sends so much new data in its turn
# (engine/ports/send_grants.py); a connection among many is promised as much of the receive buffer
# (engine/ports/receive_shares.py). Two system calls of full packets: docs/design.md §6.
GRANT_BYTES: Final = 144 << 10


class Workspace:
    """Memory for all connections of one thread: `blocks`, of which their send buffers are made."""

    __slots__ = ("blocks",)

    def __init__(self) -> None:
        self.blocks = BlockPool()


class Config:
    """What a connection is made with. Datagrams are UDP payload.

    start_datagram_bytes   size used until a larger one is confirmed
    max_datagram_bytes     size never exceeded, whatever the path carries: UTP_MAX_MTU
    min_datagram_bytes     size that every path is taken to carry
    receive_buffer_bytes   most bytes kept for the application, and so the window: SO_RCVBUF
    send_buffer_bytes      most bytes taken from the application and not acked: SO_SNDBUF
    max_send_buffer_bytes  what that grows to over a long path, with the congestion window; 0: it does not grow
    congestion             a name of CONTROLLERS: UTP_CONGESTION
    target_delay_us        queueing delay to keep to, µs; 0: the controller's own. UTP_TARGET_DELAY
    known_path             what other connections to the same peer have found out about the path; None: nothing
    """

    __slots__ = (
        "congestion",
        "known_path",
        "max_send_buffer_bytes",
        "max_datagram_bytes",
        "min_datagram_bytes",
        "receive_buffer_bytes",
        "send_buffer_bytes",
        "start_datagram_bytes",
        "target_delay_us",
    )

    def __init__(
        self,
        start_datagram_bytes: int = START_IPV4_BYTES,
        max_datagram_bytes: int = CEILING_IPV4_BYTES,
        min_datagram_bytes: int = FLOOR_BYTES,
        receive_buffer_bytes: int = 4 << 20,
        send_buffer_bytes: int = 4 << 20,
        congestion: str = DEFAULT_CONTROLLER,
        known_path: KnownPath | None = None,
        target_delay_us: int = 0,
        max_send_buffer_bytes: int = 0,
    ) -> None:
        self.start_datagram_bytes = start_datagram_bytes
        self.max_datagram_bytes = max_datagram_bytes
        self.min_datagram_bytes = min_datagram_bytes
        self.receive_buffer_bytes = receive_buffer_bytes
        self.send_buffer_bytes = send_buffer_bytes
        self.max_send_buffer_bytes = max_send_buffer_bytes
        self.congestion = congestion
        self.known_path = known_path
        self.target_delay_us = target_delay_us

    def new_send_half(self, workspace: Workspace, first_seq: int) -> SendHalf:
        """Make the sending half of a connection.

        first_seq   our first sequence number
        """
        mtu = PathMtu(
            self.start_datagram_bytes, self.max_datagram_bytes, self.known_path, floor_bytes=self.min_datagram_bytes
        )
        return SendHalf(
            first_seq,
            SendBuffer(workspace.blocks, self.send_buffer_bytes, self.max_send_buffer_bytes),
            CONTROLLERS[self.congestion](mtu.datagram_bytes - HEADER_BYTES, self.target_delay_us),
            mtu,
        )
