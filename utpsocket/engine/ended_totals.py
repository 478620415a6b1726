"""Figures of connections that are over, so that totals do not end with them.

Only the engine's thread calls.
"""

from __future__ import annotations

from utpsocket.protocol import Connection


class Totals:
    """Sums over connections. Bytes are payload."""

    __slots__ = ("delivered_bytes", "received_packets", "retransmitted_packets", "sent_bytes", "sent_packets")

    def __init__(self) -> None:
        self.sent_packets = 0
        self.sent_bytes = 0
        self.received_packets = 0
        self.delivered_bytes = 0
        self.retransmitted_packets = 0

    def add(self, connection: Connection) -> None:
        """Add a connection's figures."""
        send, receive = connection.send, connection.receive
        self.sent_packets += send.sent_packets
        self.sent_bytes += send.sent_offset
        self.received_packets += receive.received_packets
        self.delivered_bytes += receive.reassembly.delivered_bytes
        self.retransmitted_packets += send.resent_packets

    def copy(self) -> Totals:
        """A copy, to which the connections that exist can be added."""
        other = Totals()
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        return other
