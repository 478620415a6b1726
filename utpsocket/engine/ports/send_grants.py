"""Connections to one peer's port take turns.

Separate because no connection knows of the others. They all end at one UDP socket, whose buffer holds about what it
advertises to one of them; and each iteration of the engine's, and of the peer's, costs about the same whether it moves
two packets or two hundred. A thousand connections that share the way packet by packet therefore lose most of it, while
as many that go one after the other, a good burst each, are as fast as one. So beyond a few connections new data waits
for a grant: of so many bytes, first come first served, as long as less is under way than the peer's buffer holds. That
is what it has promised to one of them, and as much more as gets lost nowhere: a receiver promises little before its
program has read anything. Acks, retransmissions, FINs and short messages never wait.

Only the engine's thread calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from utpsocket.protocol.config import GRANT_BYTES
from utpsocket.protocol.pacing import PACED_FROM_RTT_US
from utpsocket.protocol.packet import HEADER_BYTES
from utpsocket.protocol.runs import packets_per_send

if TYPE_CHECKING:
    from utpsocket.engine.channels.utp import Bridge
    from utpsocket.protocol.sendhalf import SendHalf

_SENDS_PER_GRANT: Final = 2  # system calls that a grant fills, with no packet left for a third…
_REST_SHARE: Final = 8  # …but for the end of what there is, up to an eighth: not worth a turn of its own
_UNORDERED_MEMBERS: Final = 16  # connections that need no order
_NONE: Final[list[Bridge]] = []
_MORE_PER_GRANT_BYTES: Final = GRANT_BYTES // 8  # under way together after each turn without a loss
_MAX_IN_FLIGHT_BYTES: Final = (
    5 << 17
)  # under way together; short bursts take several times their payload of a socket buffer


class SendGrants:
    """Of one engine, by the address dialled."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: dict[object, GrantQueue] = {}

    def join(self, bridge: Bridge) -> None:
        """This connection dials."""
        addr = bridge.connection.addr
        grant_queue = self._queues.get(addr)
        if grant_queue is None:
            grant_queue = self._queues[addr] = GrantQueue()
        grant_queue.join(bridge)
        bridge.grant_queue = grant_queue

    def leave(self, bridge: Bridge) -> Bridge | None:
        """It is over, if it ever dialled. Returns a connection that may have waited for that and has to be touched."""
        grant_queue, bridge.grant_queue = bridge.grant_queue, None
        if grant_queue is None:
            return None
        following = grant_queue.leave(bridge)
        if not grant_queue.has_members:
            del self._queues[bridge.connection.addr]
        return following


class Grant:
    """What one connection was granted last.

    from_offset       of its stream: where the grant begins
    bytes             how many bytes may leave from there on
    in_flight_bytes   of the connection, as last counted, with what the grant will add
    lost_packets      of the connection, as last seen
    """

    __slots__ = ("bytes", "from_offset", "in_flight_bytes", "lost_packets")

    def __init__(self) -> None:
        self.from_offset = 0
        self.bytes = 0
        self.in_flight_bytes = 0
        self.lost_packets = 0


class GrantQueue:
    """Of one peer's address.

    is_ordered   there are so many connections that they must ask packets()
    """

    __slots__ = (
        "_grants",
        "_in_flight_bytes",
        "_max_in_flight_bytes",
        "_proven_window_bytes",
        "_promised_bytes",
        "_waiting",
        "is_ordered",
    )

    def __init__(self) -> None:
        self.is_ordered = False
        self._grants: dict[Bridge, Grant] = {}  # of the connections that dialled it and are not over
        self._in_flight_bytes = 0
        self._promised_bytes = 0  # what the peer has promised to one of them, its buffer holds
        self._max_in_flight_bytes = 0  # and more, as long as nothing is lost
        self._proven_window_bytes = 0  # the window that a member has shown to be harmless
        self._waiting: dict[Bridge, None] = {}

    @property
    def has_members(self) -> bool:
        """Whether any connection has dialled this address and is not over."""
        return bool(self._grants)

    def join(self, bridge: Bridge) -> None:
        """One more dials."""
        self._grants[bridge] = Grant()
        self.is_ordered = len(self._grants) > _UNORDERED_MEMBERS

    def packets(self, bridge: Bridge) -> int:
        """How many packets of new data this connection may send now; while it may send none, it is held. Ask before
        each burst.
        """
        send = bridge.connection.send
        if send.peer.largest_window_bytes > self._promised_bytes:
            self._promised_bytes = min(_MAX_IN_FLIGHT_BYTES, send.peer.largest_window_bytes)
            self._max_in_flight_bytes = max(self._max_in_flight_bytes, self._promised_bytes)
        grant = self._grants[bridge]
        left_bytes = grant.from_offset + grant.bytes - send.sent_offset
        if left_bytes > 0:
            payload_bytes = send.mtu.datagram_bytes - HEADER_BYTES
            if send.unsent_bytes <= left_bytes:
                return -(-left_bytes // payload_bytes)
            if left_bytes >= payload_bytes:  # packets may have grown, and what is left makes none of its own
                return left_bytes // payload_bytes
        # A short message that follows nothing takes no place worth waiting for.
        send.awaits_grant = bool(send.flights.queue) or send.unsent_bytes > send.mtu.datagram_bytes
        if send.awaits_grant and send.unsent_bytes:
            self._waiting[bridge] = None
        return 1  # what is to be sent again

    def after_transmit(self, bridge: Bridge) -> list[Bridge]:
        """Count what has left; returns the connections that may send now, and have to be touched."""
        if not (self.is_ordered or self._waiting):
            return _NONE
        self._update_in_flight(bridge)
        granted: list[Bridge] = []
        while self._waiting and (self._in_flight_bytes < self._max_in_flight_bytes or not self.is_ordered):
            following = next(iter(self._waiting))
            del self._waiting[following]
            send = following.connection.send
            size = send.mtu.datagram_bytes
            grant = self._grants[following]
            self._share_window(grant, send)
            whole_bytes = min(send.controller.window_bytes, send.peer.window_bytes)
            window_bytes = whole_bytes - send.flights.in_flight_bytes
            if window_bytes < min(GRANT_BYTES // 2, whole_bytes // 2, send.unsent_bytes) and send.flights.queue:
                continue  # not worth a turn; its next ack will have it ask again
            send.awaits_grant = False
            grant.from_offset = send.sent_offset
            # What it cannot send now, its window being small yet, it must ask for again: many that grow at once would
            # exceed all bounds with what they were granted before.
            payload_bytes = size - HEADER_BYTES
            packets = _SENDS_PER_GRANT * packets_per_send(size)
            with_rest = packets + packets // _REST_SHARE
            if send.unsent_bytes <= with_rest * payload_bytes:
                packets = with_rest
            packets = min(packets, max(1, window_bytes // payload_bytes))
            # What is written later has to ask again: a thousand that each kept the rest of a grant could use them all
            # at the same moment. If this one cannot send, its peer's window being closed, nothing counts.
            grant.bytes = expected_bytes = min(packets * payload_bytes, send.unsent_bytes)
            grant.in_flight_bytes += expected_bytes
            self._in_flight_bytes += expected_bytes
            granted.append(following)
        return granted

    def _share_window(self, grant: Grant, send: SendHalf) -> None:
        """What one had under way in its turn and lost nothing, the next may have in its: as much is under way together
        as before. On short paths, where there is nothing between the two but their own queues.
        """
        controller = send.controller
        if send.lost_packets != grant.lost_packets:
            grant.lost_packets = send.lost_packets
            self._proven_window_bytes = 0
            self._max_in_flight_bytes = max(self._promised_bytes, self._max_in_flight_bytes // 2)
            return
        self._max_in_flight_bytes = min(_MAX_IN_FLIGHT_BYTES, self._max_in_flight_bytes + _MORE_PER_GRANT_BYTES)
        if controller.window_bytes >= self._proven_window_bytes:
            self._proven_window_bytes = min(controller.window_bytes, GRANT_BYTES)
        elif 0 < send.recovery.min_rtt_us <= PACED_FROM_RTT_US:
            controller.seed_window(self._proven_window_bytes)

    def leave(self, bridge: Bridge) -> Bridge | None:
        """The connection is over. Returns the first that waits."""
        self._in_flight_bytes -= self._grants.pop(bridge).in_flight_bytes
        self.is_ordered = len(self._grants) > _UNORDERED_MEMBERS
        bridge.connection.send.awaits_grant = False
        self._waiting.pop(bridge, None)
        return next(iter(self._waiting), None)

    def _update_in_flight(self, bridge: Bridge) -> None:
        in_flight_bytes = bridge.connection.send.flights.in_flight_bytes
        grant = self._grants[bridge]
        self._in_flight_bytes += in_flight_bytes - grant.in_flight_bytes
        grant.in_flight_bytes = in_flight_bytes
