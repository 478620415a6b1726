"""Many connections to one peer's port send one after the other, by grants.

They all end at one UDP socket of the peer's, whose buffer holds about what the peer advertises to one of them. And an
iteration of the engine costs about the same whether it moves two packets or two hundred, here and at the peer. So a
thousand connections that send packet by packet in turns lose most of what they send, while as many that send a large
burst each, one after the other, are as fast as one. Therefore, beyond 16 connections to one address, new data needs a
grant: permission for so many bytes, first come first served, given while less is in flight than the peer's buffer can
hold. Acks, retransmissions, FINs and short messages need none.

How much may be in flight together: at first the largest window that the peer has advertised to one of them. After each
grant without a loss 18 KiB more, up to 640 KiB, since a receiver advertises little before its program has read
anything; after a loss half, but not less than at first. Over a path whose shortest round trip is longer than 10 ms it
is up to 640 KiB for each 10 ms, since what is in flight then comes spread over the round trip.

    Example. Datagrams of 1,472 bytes, 1,452 of them payload; 44 fit into one system call. A grant is two calls: 88
    packets, 127,776 bytes, as far as the connection's own windows let them out. Each of 1,000 connections has 1 MB to
    send; the peer advertises 1 MiB. 640 KiB, 655,360 bytes, may be in flight: a grant is given as long as it is less,
    so six connections get one, 766,656 bytes. When the first of them has had acks for enough, the next one gets a
    grant. One with 140,000 bytes left gets all of it: a rest of up to an eighth is not worth another grant. One that
    writes 100 bytes and has nothing in flight sends them at once.

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
    from utpsocket.protocol import Address
    from utpsocket.protocol.sendhalf import SendHalf

_SENDS_PER_GRANT: Final = 2  # full system calls
_REST_SHARE: Final = 8  # a grant may be larger by this part if then nothing is left
_UNORDERED_MEMBERS: Final = 16  # so few connections need no grants; by feel
_NONE: Final[list[Bridge]] = []
_MORE_PER_GRANT_BYTES: Final = GRANT_BYTES // 8  # in flight together, after each grant without a loss; by feel
# In flight together at most, over a short path: the bursts are short, and take several times their payload of the
# peer's socket buffer.
_MAX_IN_FLIGHT_BYTES: Final = 5 << 17


class SendGrants:
    """Of one engine: a queue for each address that is dialled."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: dict[Address, GrantQueue] = {}

    def join(self, bridge: Bridge) -> None:
        """A connection dials: it is a member of its address's queue, bridge.grant_queue, until leave()."""
        addr = bridge.connection.addr
        grant_queue = self._queues.get(addr)
        if grant_queue is None:
            grant_queue = self._queues[addr] = GrantQueue()
        grant_queue.join(bridge)
        bridge.grant_queue = grant_queue

    def leave(self, bridge: Bridge) -> Bridge | None:
        """The connection has no new data any more. Idempotent, also of one that never dialled.

        Returns a connection that may have waited for this: Loop.mark_dirty() it.
        """
        grant_queue, bridge.grant_queue = bridge.grant_queue, None
        if grant_queue is None:
            return None
        following = grant_queue.leave(bridge)
        if not grant_queue.has_members:
            del self._queues[bridge.connection.addr]
        return following


class Grant:
    """What one connection was granted last.

    from_offset       offset in its stream that the grant begins at
    bytes             how many bytes may be sent from there on
    in_flight_bytes   of the connection when last counted, or what it will be once the grant is used
    lost_packets      of the connection, when it last had a grant
    """

    __slots__ = ("bytes", "from_offset", "in_flight_bytes", "lost_packets")

    def __init__(self) -> None:
        self.from_offset = 0
        self.bytes = 0
        self.in_flight_bytes = 0
        self.lost_packets = 0


class GrantQueue:
    """Of one peer's address.

    is_ordered   there are so many connections that packets() must be asked before new data is sent
    waiting      connections that wait for a grant, first come first served
    """

    __slots__ = (
        "_grants",
        "_in_flight_bytes",
        "_max_in_flight_bytes",
        "_lossless_window_bytes",
        "_peer_window_bytes",
        "is_ordered",
        "waiting",
    )

    def __init__(self) -> None:
        self.is_ordered = False
        self._grants: dict[Bridge, Grant] = {}  # of the connections that dialled it and are not over
        self._in_flight_bytes = 0  # of all members
        # The largest window that the peer has advertised to a member: its socket's buffer holds so much.
        self._peer_window_bytes = 0
        self._max_in_flight_bytes = 0  # grants are given while less is in flight
        self._lossless_window_bytes = 0  # a congestion window that a member has used without a loss
        self.waiting: dict[Bridge, None] = {}

    @property
    def has_members(self) -> bool:
        """Whether any connection has dialled this address and is not over."""
        return bool(self._grants)

    def join(self, bridge: Bridge) -> None:
        """One more dials."""
        self._grants[bridge] = Grant()
        self.is_ordered = len(self._grants) > _UNORDERED_MEMBERS

    def packets(self, bridge: Bridge) -> int:
        """How many packets of new data the connection may send now, before each burst while is_ordered.

        Where it needs a grant and has none, send.awaits_grant is set, by which the core sends no new data, it is
        queued, and 1 is returned for what needs none.
        """
        send = bridge.connection.send
        if send.peer.largest_window_bytes > self._peer_window_bytes:
            self._peer_window_bytes = min(_MAX_IN_FLIGHT_BYTES, send.peer.largest_window_bytes)
            self._max_in_flight_bytes = max(self._max_in_flight_bytes, self._peer_window_bytes)
        grant = self._grants[bridge]
        unsent_bytes = send.buffer.end_offset - send.sent_offset
        left_bytes = grant.from_offset + grant.bytes - send.sent_offset
        if left_bytes > 0:
            payload_bytes = send.mtu.datagram_bytes - HEADER_BYTES
            if unsent_bytes <= left_bytes:
                return -(-left_bytes // payload_bytes)
            if left_bytes >= payload_bytes:  # packets may have grown, and what is left makes none of its own
                return left_bytes // payload_bytes
        # A short message with nothing in flight before it needs no grant.
        send.awaits_grant = bool(send.flights.queue) or unsent_bytes > send.mtu.datagram_bytes
        if send.awaits_grant and unsent_bytes:
            self.waiting[bridge] = None
        return 1  # what is to be sent again

    def after_transmit(self, bridge: Bridge) -> list[Bridge]:
        """After each flush of a member, while is_ordered or there are `waiting`: count what it has in flight, and give
        grants.

        Returns the connections that have got one: Loop.mark_dirty() them.
        """
        if not (self.is_ordered or self.waiting):
            return _NONE
        in_flight_bytes = bridge.connection.send.flights.in_flight_bytes
        its_grant = self._grants[bridge]
        self._in_flight_bytes += in_flight_bytes - its_grant.in_flight_bytes
        its_grant.in_flight_bytes = in_flight_bytes
        if not self.waiting:
            return _NONE
        granted: list[Bridge] = []
        while self.waiting and (self._in_flight_bytes < self._max_in_flight_bytes or not self.is_ordered):
            following = next(iter(self.waiting))
            del self.waiting[following]
            send = following.connection.send
            size = send.mtu.datagram_bytes
            grant = self._grants[following]
            self._share_window(grant, send)
            whole_bytes = min(send.controller.window_bytes, send.peer.window_bytes)
            window_bytes = whole_bytes - send.flights.in_flight_bytes
            if window_bytes < min(GRANT_BYTES // 2, whole_bytes // 2, send.unsent_bytes) and send.flights.queue:
                continue  # its window lets too little out; it will be queued again after its next ack
            send.awaits_grant = False
            grant.from_offset = send.sent_offset
            # No more than its window lets out now. If many kept what they could not use yet, and their windows grew at
            # the same time, they would exceed the bound together.
            payload_bytes = size - HEADER_BYTES
            packets = _SENDS_PER_GRANT * packets_per_send(size)
            with_rest = packets + packets // _REST_SHARE
            if send.unsent_bytes <= with_rest * payload_bytes:
                packets = with_rest
            packets = min(packets, max(1, window_bytes // payload_bytes))
            # Nor more than it has: what the program writes later needs another grant, for the same reason. If the
            # peer's window is closed, nothing leaves and nothing is counted.
            grant.bytes = expected_bytes = min(packets * payload_bytes, send.unsent_bytes)
            grant.in_flight_bytes += expected_bytes
            self._in_flight_bytes += expected_bytes
            granted.append(following)
        return granted

    def _share_window(self, grant: Grant, send: SendHalf) -> None:
        """A congestion window that one member has used up without a loss is given to the next one, as no more is in
        flight together than before. Only on short paths, where the only queues are the two hosts' own. After a loss the
        bound of what is in flight is halved instead.
        """
        controller = send.controller
        if send.lost_packets != grant.lost_packets:
            grant.lost_packets = send.lost_packets
            self._lossless_window_bytes = 0
            self._max_in_flight_bytes = max(self._peer_window_bytes, self._max_in_flight_bytes // 2)
            return
        most_bytes, path_us = _MAX_IN_FLIGHT_BYTES, send.recovery.min_rtt_us
        if path_us > PACED_FROM_RTT_US:
            most_bytes = most_bytes * path_us // PACED_FROM_RTT_US
        self._max_in_flight_bytes = min(most_bytes, self._max_in_flight_bytes + _MORE_PER_GRANT_BYTES)
        if controller.window_bytes >= self._lossless_window_bytes:
            self._lossless_window_bytes = min(controller.window_bytes, GRANT_BYTES)
        elif 0 < send.recovery.min_rtt_us <= PACED_FROM_RTT_US:
            controller.seed_window(self._lossless_window_bytes)

    def leave(self, bridge: Bridge) -> Bridge | None:
        """The connection has no new data any more. Returns the first one that waits: it may have a grant now."""
        self._in_flight_bytes -= self._grants.pop(bridge).in_flight_bytes
        self.is_ordered = len(self._grants) > _UNORDERED_MEMBERS
        bridge.connection.send.awaits_grant = False
        self.waiting.pop(bridge, None)
        return next(iter(self.waiting), None)
