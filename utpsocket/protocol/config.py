"""Tuning, and the memory that the connections of one thread share.

Separate because both outlive any connection: a Config is what socket options and environment variables become, a
Workspace is scratch that would be waste to keep per connection (docs/design.md §4, docs/performance.md §8).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from utpsocket.protocol.congestion import CONTROLLERS
from utpsocket.protocol.packet import HEADER_BYTES
from utpsocket.protocol.pathmtu import CEILING_IPV4_BYTES, FLOOR_BYTES, START_IPV4_BYTES, KnownPath, PathMtu
from utpsocket.protocol.sendbuffer import BlockPool, SendBuffer
from utpsocket.protocol.sendhalf import SendHalf

# Of new data that many connections to one peer's port send in their turn (ports/send_grants.py), at most, a rest
# included; as much is a connection of many promised (ports/receive_shares.py).
GRANT_BYTES: Final = 144 << 10


class Workspace:
    """Memory for every connection of one thread."""

    __slots__ = ("blocks",)

    def __init__(self) -> None:
        self.blocks = BlockPool()


@dataclass(slots=True)
class Config:
    """What a connection is told at birth. Datagrams are UDP payload."""

    start_datagram_bytes: int = START_IPV4_BYTES
    # Used until a larger size has been proven.
    max_datagram_bytes: int = CEILING_IPV4_BYTES
    # Never sent beyond, whatever the path carries: UTP_MAX_MTU.
    min_datagram_bytes: int = FLOOR_BYTES
    # What every path is taken to carry.
    receive_buffer_bytes: int = 4 << 20
    # Most bytes held for the application, and so the window advertised: SO_RCVBUF.
    send_buffer_bytes: int = 4 << 20
    # Most bytes accepted from the application and not acked: SO_SNDBUF.
    congestion: str = "ledbat"
    # A name of CONTROLLERS: UTP_CONGESTION.
    known_path: KnownPath | None = None
    # What other connections to the same peer have learned of the path.

    def new_send_half(self, workspace: Workspace, first_seq: int) -> SendHalf:
        """The sending half of a connection so configured."""
        mtu = PathMtu(
            self.start_datagram_bytes, self.max_datagram_bytes, self.known_path, floor_bytes=self.min_datagram_bytes
        )
        return SendHalf(
            first_seq,
            SendBuffer(workspace.blocks, self.send_buffer_bytes),
            CONTROLLERS[self.congestion](mtu.datagram_bytes - HEADER_BYTES),
            mtu,
        )
