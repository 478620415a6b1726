"""RESETs that a port sends outside of any connection: in answer to strays, rarely, and where a connection has ended by
a fault and cannot speak for itself.

Separate because they need nothing of a connection but numbers, and a table of their own of who has been told.

Only the engine's thread calls. Sources: PROTOCOL.md §4; libutp's RST_INFO table.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from utpsocket.protocol import PacketType, Transmit
from utpsocket.protocol.packet import Packet, encode
from utpsocket.protocol.states import State

if TYPE_CHECKING:
    from utpsocket.protocol import Connection

_REMEMBERED: Final = 1_000  # libutp's RST_INFO table
_AGAIN_US: Final = 10_000_000  # and its lifetime
_PER_SECOND: Final = 100


class Resets:
    """Of one port.

    sent   how many
    """

    __slots__ = ("_left", "_second", "_told", "sent")

    def __init__(self) -> None:
        self._told: OrderedDict[tuple[object, int], int] = OrderedDict()
        self._second = 0
        self._left = 0
        self.sent = 0

    def to_stray(self, addr: object, packet: Packet, *, now: int) -> Transmit | None:
        """Id as received, ack = the offending seq, seq = what the sender expects; None where it was said already, or
        too many were.
        """
        second = now // 1_000_000
        if second != self._second:
            self._second = second
            self._left = _PER_SECOND
        told = self._told
        key = (addr, packet.connection_id)
        while told and next(iter(told.values())) <= now - _AGAIN_US:
            told.popitem(last=False)
        if key in told or not self._left or len(told) >= _REMEMBERED:
            return None
        told[key] = now
        self._left -= 1
        self.sent += 1
        return Transmit(addr, _reset(packet.connection_id, packet.ack16 + 1, packet.seq16, now=now))

    def of(self, connection: Connection, *, now: int) -> Transmit | None:
        """Of a connection, whatever state it was left in; None where its peer knows nothing of it."""
        if connection.state in (State.IDLE, State.SYN_SENT):
            return None
        self.sent += 1
        seq, ack = connection.send.flights.next_seq, connection.receive.ack
        return Transmit(connection.addr, _reset(connection.send_id, seq, ack, now=now))


def _reset(connection_id: int, seq: int, ack: int, *, now: int) -> bytes:
    return encode(PacketType.RESET, connection_id, timestamp_us=now, difference_us=0, window_bytes=0, seq=seq, ack=ack)
