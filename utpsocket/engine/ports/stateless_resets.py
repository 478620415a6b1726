"""RESETs that a port sends outside of any connection: in answer to strays, at a limited rate, and where a connection
has ended by an exception and cannot send one itself.

A kernel answers every TCP SYN to a closed port by a RST. Here too every SYN is answered, up to a rate beyond which
answers help no peer. A stray that is no SYN belongs to a burst of such packets, which one RESET answers.

Only the engine's thread calls. Sources: docs/protocol.md §4; libutp's RST_INFO table.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from utpsocket.engine.interpreter.originals import struct
from utpsocket.protocol import PacketType, Transmit
from utpsocket.protocol.packet import Packet, encode
from utpsocket.protocol.states import State

if TYPE_CHECKING:
    from utpsocket.protocol import Address, Connection
    from utpsocket.protocol.layout import Layout

_REMEMBERED: Final = 1_000  # strays that were answered: as many as in libutp's RST_INFO table
_AGAIN_US: Final = 10_000_000  # for so long they are not answered again: its lifetime there
# The host in a struct sockaddr_in6; an IPv4 one has nothing but zeros behind its host.
_HOST_START: Final = 4
_HOST_STOP: Final = 24
# Of a header: connection id, seq_nr, ack_nr.
_NUMBERS: Final[Layout[tuple[int, int, int]]] = struct.Struct(">2xH12xHH")
# By feel: a RESET is no larger than what it answers, so we amplify nothing.
PER_SOURCE_AND_SECOND: Final = 1_000
PER_SECOND: Final = 5_000


class StatelessResets:
    """Of one port.

    sent   how many RESETs, a figure
    """

    __slots__ = ("_allowance", "_allowance_of", "_second", "_answered", "sent")

    def __init__(self) -> None:
        self._answered: OrderedDict[tuple[Address, int], int] = OrderedDict()
        self._second = 0  # the current one
        self._allowance = 0  # RESETs that may still be sent in it
        self._allowance_of: dict[str | bytes, int] = {}  # the same for each host that got one in it
        self.sent = 0

    def _take_allowance(self, host: str | bytes, *, now: int) -> bool:
        """Take one RESET from the allowance of this second. Returns False if there is none left for this host."""
        second = now // 1_000_000
        if second != self._second:
            self._second = second
            self._allowance = PER_SECOND
            self._allowance_of.clear()
        left = self._allowance_of.get(host, PER_SOURCE_AND_SECOND)
        if not left or not self._allowance:
            return False
        self._allowance_of[host] = left - 1
        self._allowance -= 1
        self.sent += 1
        return True

    def to_stray(self, addr: Address, packet: Packet, *, now: int) -> Transmit | None:
        """The RESET in answer to a packet of no connection: its id as received, ack_nr = its seq_nr, seq_nr = its
        ack_nr + 1, which is what its sender expects. None if it was answered already, or the rate is exceeded.
        """
        if packet.type != PacketType.SYN:
            answered = self._answered
            key = (addr, packet.connection_id)
            while answered and next(iter(answered.values())) <= now - _AGAIN_US:
                answered.popitem(last=False)
            if key in answered:
                return None
            if len(answered) >= _REMEMBERED:
                answered.popitem(last=False)
            answered[key] = now
        if not self._take_allowance(addr[0] if isinstance(addr, tuple) else addr, now=now):
            return None
        return Transmit(addr, _reset(packet.connection_id, packet.ack16 + 1, packet.seq16, now=now))

    def to_syns(
        self, indices: list[int], names: list[bytes], headers: list[bytes], *, now: int
    ) -> tuple[list[int], bytearray]:
        """Answers to SYNs at a port without a listener.

        names, headers   the SYNs' senders and headers; `indices` are the caller's numbers of them
        Returns the numbers of those to answer, and their RESETs, one after the other.
        """
        answered: list[int] = []
        resets = bytearray()
        for index, name, header in zip(indices, names, headers, strict=True):
            if self._take_allowance(name[_HOST_START:_HOST_STOP], now=now):
                answered.append(index)
                connection_id, seq, ack = _NUMBERS.unpack(header)
                resets += _reset(connection_id, ack + 1, seq, now=now)
        return answered, resets

    def for_connection(self, connection: Connection, *, now: int) -> Transmit | None:
        """The RESET of a connection in whatever state; None if its peer cannot know of it."""
        if connection.state in (State.IDLE, State.SYN_SENT):
            return None
        self.sent += 1
        seq, ack = connection.send.flights.next_seq, connection.receive.ack
        return Transmit(connection.addr, _reset(connection.send_id, seq, ack, now=now))


def _reset(connection_id: int, seq: int, ack: int, *, now: int) -> bytes:
    return encode(PacketType.RESET, connection_id, timestamp_us=now, difference_us=0, window_bytes=0, seq=seq, ack=ack)
