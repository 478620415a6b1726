"""Many connections to one peer's port: which may send, and that none waits for ever."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from typing import Any

import pytest

import utpsocket
from utpsocket.engine import running_engine
from utpsocket.engine.channels.utp import Bridge
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports.send_grants import SendGrants
from utpsocket.engine.user_fds.socket_state import Identity, Settings
from utpsocket.protocol import Config, Connection
from utpsocket.protocol.config import GRANT_BYTES, Workspace
from utpsocket.protocol.packet import HEADER_BYTES
from utpsocket.protocol.runs import packets_per_send

MEMBERS = 20  # more than go without order
MTU_BYTES = 1_400
PAYLOAD_BYTES = MTU_BYTES - HEADER_BYTES
PEER_WINDOW_BYTES = 4 << 20
RTT_US = 100  # a short path, which is not paced
CONFIG = Config(start_datagram_bytes=MTU_BYTES, max_datagram_bytes=MTU_BYTES)


class Clock:
    """The time of all connections of one test, µs."""

    def __init__(self) -> None:
        self.now = 1_000_000


class Sender:
    """A connection that has dialled, past its handshake, and what a port does for it: sends, and takes in acks."""

    def __init__(self, grants: SendGrants, clock: Clock, cookie: int) -> None:
        connection = Connection(CONFIG, Workspace(), ("192.0.2.1", 4_242), recv_id=2 * cookie, first_seq=1)
        identity = Identity(socket.AF_INET, Settings())
        identity.cookie = cookie
        endpoint: Any = None  # nothing here asks it for anything
        self.bridge = Bridge(connection, endpoint, identity, [])
        self.send = connection.send
        self.send.peer.on_window(PEER_WINDOW_BYTES)
        self.send.controller.window_bytes = PEER_WINDOW_BYTES
        self.send.recovery.on_rtt(RTT_US)
        self._clock = clock
        grants.join(self.bridge)
        assert self.bridge.grant_queue is not None
        self.grant_queue = self.bridge.grant_queue

    def write(self, count: int) -> None:
        """The program has written so many bytes more."""
        self.send.buffer.make_room(count)
        self.send.buffer.free_spans(count)
        self.send.buffer.commit(count)

    def emit(self, packets: int) -> bool:
        """Send so many packets at most. Returns whether any has left."""
        return self.send.next_flight(now=self._clock.now, max_segments=packets) is not None

    def transmit(self) -> list[Bridge]:
        """As Endpoint.transmit() and then the loop: all that may leave does, and the queue gives grants."""
        self._clock.now += 1
        send, sent_offset = self.send, self.send.sent_offset
        while True:
            packets = self.grant_queue.packets(self.bridge)
            if send.awaits_grant and send.unsent_bytes and send.sent_offset != sent_offset:
                break
            if not self.emit(packets):
                break
        return self.grant_queue.after_transmit(self.bridge)

    def ack(self) -> None:
        """The peer has got everything that was sent, a round trip later."""
        self._clock.now += RTT_US
        self.send.on_ack(
            self.send.flights.next_seq, self.send.peer.window_bytes, None, 0, -1, is_state=True, now=self._clock.now
        )
        assert not self.in_flight_bytes

    @property
    def in_flight_bytes(self) -> int:
        return self.send.flights.in_flight_bytes


class Senders(list[Sender]):
    """Connections to one address."""

    def __init__(self, count: int) -> None:
        self.grants = SendGrants()
        clock = Clock()
        super().__init__(Sender(self.grants, clock, cookie) for cookie in range(1, count + 1))

    def run(self, touched: list[Sender]) -> None:
        """These may have something to send; then those that get a grant by it."""
        touched = list(touched)
        while touched:
            touched += self.of(touched.pop(0).transmit())

    def of(self, bridges: list[Bridge]) -> list[Sender]:
        return [next(each for each in self if each.bridge is bridge) for bridge in bridges]

    def write(self, count: int) -> None:
        for sender in self:
            sender.write(count)


def test_a_few_go_without_order() -> None:
    senders = Senders(3)
    assert not senders[0].grant_queue.is_ordered


def test_grants_are_of_a_burst_and_go_round() -> None:
    senders = Senders(MEMBERS)
    senders.write(4 * GRANT_BYTES)
    senders.run(senders)
    started = [sender for sender in senders if sender.send.sent_offset]
    assert 0 < len(started) < MEMBERS
    burst = 2 * packets_per_send(MTU_BYTES) * PAYLOAD_BYTES
    assert {sender.send.sent_offset for sender in started} == {burst}
    assert started == senders[: len(started)]
    turns = 0
    while any(sender.send.unsent_bytes for sender in senders):
        in_flight = [sender for sender in senders if sender.in_flight_bytes]
        assert in_flight, "all wait, and nothing would wake them"
        in_flight[0].ack()
        senders.run([in_flight[0]])
        sent = [sender.send.sent_offset for sender in senders]
        assert max(sent) - min(sent) <= 2 * burst
        turns += 1
    assert turns >= MEMBERS


def test_a_grant_is_no_more_than_the_window_lets_out() -> None:
    """Or else many that grow at once would use, all together, what they were granted one by one."""
    senders = Senders(MEMBERS)
    senders.write(4 * GRANT_BYTES)
    for sender in senders:
        sender.send.controller.window_bytes = 10 * PAYLOAD_BYTES
    senders.run(senders)
    assert [sender.send.sent_offset for sender in senders] == [10 * PAYLOAD_BYTES] * MEMBERS
    for sender in senders:
        sender.send.controller.window_bytes = PEER_WINDOW_BYTES
        sender.transmit()
    assert [sender.send.sent_offset for sender in senders] == [10 * PAYLOAD_BYTES] * MEMBERS, "nothing is left of it"


def test_without_losses_more_is_in_flight_than_one_window() -> None:
    """A receiver advertises little before its program has read anything."""
    senders = Senders(MEMBERS)
    senders.write(4 * GRANT_BYTES)
    for sender in senders:
        sender.send.peer.largest_window_bytes = sender.send.peer.window_bytes = 96 << 10
    senders.run(senders)

    def in_flight() -> int:
        return sum(sender.in_flight_bytes for sender in senders)

    def turns(count: int) -> None:
        for _ in range(count):
            in_flight = next(sender for sender in senders if sender.in_flight_bytes)
            in_flight.ack()
            in_flight.write(GRANT_BYTES)
            senders.run([in_flight])

    assert in_flight() <= 3 * (96 << 10)
    turns(60)
    assert in_flight() >= 4 * (96 << 10)
    for sender in senders:
        sender.send.lost_packets += 1
    turns(MEMBERS)
    assert in_flight() <= 3 * (96 << 10)


def test_a_short_message_with_nothing_in_flight_does_not_wait() -> None:
    senders = Senders(MEMBERS)
    for sender in senders[1:]:
        sender.write(4 * GRANT_BYTES)
    senders.run(senders[1:])
    senders[0].write(100)
    senders.run([senders[0]])
    assert senders[0].send.sent_offset == 100
    senders[0].write(100)
    senders.run([senders[0]])
    assert senders[0].send.sent_offset == 100, "behind another that is not acked it does"


def test_a_connection_that_leaves_makes_room() -> None:
    senders = Senders(MEMBERS)
    senders.write(4 * GRANT_BYTES)
    senders.run(senders)
    waiting = [sender for sender in senders if not sender.send.sent_offset]
    following = senders.grants.leave(senders[0].bridge)
    assert following is waiting[0].bridge
    senders.run([waiting[0]])
    assert waiting[0].send.sent_offset


def test_the_last_member_takes_the_lane_with_it() -> None:
    senders = Senders(2)
    for sender in senders:
        senders.grants.leave(sender.bridge)
    assert not senders.grants._queues


def test_a_connection_that_waited_among_many_may_send_among_few() -> None:
    """Its last ack came when the others had gone: nothing else wakes it."""
    with (
        utpsocket.create_server(("127.0.0.1", 0)) as listener,
        utpsocket.create_connection(listener.getsockname()) as client,
        listener.accept()[0] as conn,
    ):
        loop = running_engine()
        assert isinstance(loop, Loop)
        (bridge,) = (
            each for each in loop.channels.values() if isinstance(each, Bridge) and each.grant_queue is not None
        )
        bridge.connection.send.awaits_grant = True
        conn.settimeout(60)
        client.sendall(bytes(5_000))
        received = 0
        while received < 5_000:
            received += len(conn.recv(5_000))


def test_many_transfers_at_once_arrive_whole() -> None:
    payload = os.urandom(1 << 18) * 2
    count = 40
    wanted = hashlib.sha256(payload).digest()
    digests: list[bytes] = []

    def receive(conn: socket.socket) -> None:
        digest = hashlib.sha256()
        while data := conn.recv(1 << 16):
            digest.update(data)
        digests.append(digest.digest())
        conn.close()

    with utpsocket.create_server(("127.0.0.1", 0), backlog=count) as listener:
        clients = [utpsocket.create_connection(listener.getsockname()) for _ in range(count)]
        conns = [listener.accept()[0] for _ in range(count)]
        senders = [threading.Thread(target=client.sendall, args=(payload,)) for client in clients]
        for sender in senders:
            sender.start()
        receivers = [threading.Thread(target=receive, args=(conn,)) for conn in conns[1:]]
        for receiver in receivers:
            receiver.start()
        conns[0].close()  # this one's transfer ends in the middle, and the others go on
        for index, sender in enumerate(senders):
            if index:
                sender.join()
        for client in clients:
            client.close()
        for receiver in receivers:
            receiver.join()
        senders[0].join()
    assert digests == [wanted] * (count - 1)
    loop = running_engine()
    assert isinstance(loop, Loop) and loop.faults == 0


def test_what_is_left_of_a_grant_when_packets_have_grown_makes_no_packet_of_its_own() -> None:
    senders = Senders(MEMBERS)
    for sender, written, waits in ((senders[0], 4 * GRANT_BYTES, True), (senders[1], 10 * PAYLOAD_BYTES, False)):
        send, grant_queue = sender.send, sender.grant_queue
        send.controller.window_bytes = 10 * PAYLOAD_BYTES
        sender.write(written)
        assert grant_queue.packets(sender.bridge) == 1 and send.awaits_grant
        assert grant_queue.after_transmit(sender.bridge) == [sender.bridge]
        assert sender.emit(9) and send.sent_offset == 9 * PAYLOAD_BYTES
        send.mtu.datagram_bytes += 8
        assert not send.awaits_grant
        assert grant_queue.packets(sender.bridge) == 1
        assert send.awaits_grant is waits, "one full packet is more than was granted, the last one is not"


@pytest.mark.parametrize("min_rtt_us", [RTT_US, 50_000])
def test_a_window_that_lost_nothing_is_the_next_ones_too_on_a_short_path(min_rtt_us: int) -> None:
    senders = Senders(MEMBERS)
    small = 10 * PAYLOAD_BYTES
    senders.write(4 * GRANT_BYTES)
    for sender in senders:
        sender.send.recovery.min_rtt_us = min_rtt_us
        sender.send.controller.window_bytes = small
    shown, following, lossy, last = senders[:4]
    shown.send.controller.window_bytes = large = 40 * PAYLOAD_BYTES

    def windows(*some: Sender) -> list[int]:
        return [sender.send.controller.window_bytes for sender in some]

    senders.run([shown, following])
    assert windows(shown, following) == [large, large if min_rtt_us == RTT_US else small]
    if min_rtt_us == RTT_US:
        assert [sender.send.sent_offset for sender in (shown, following)] == [large, large]
    lossy.send.lost_packets = 1
    senders.run([lossy, last])
    assert windows(lossy, last) == [small, small], "a loss ends it"


@pytest.mark.parametrize(("path_us", "most_bytes"), [(RTT_US, 5 << 17), (10_000, 5 << 17), (40_000, 4 * (5 << 17))])
def test_over_a_long_path_more_is_in_flight(path_us: int, most_bytes: int) -> None:
    """It comes spread over the round trip."""
    senders = Senders(MEMBERS)
    senders.write(4 * GRANT_BYTES)
    for sender in senders:
        sender.send.recovery.min_rtt_us = path_us
    senders.run(senders)
    for _ in range(150):
        acked = next(sender for sender in senders if sender.in_flight_bytes)
        acked.send.recovery.min_rtt_us = path_us
        acked.ack()
        acked.send.recovery.min_rtt_us = path_us
        acked.write(GRANT_BYTES)
        senders.run([acked])
    in_flight_bytes = sum(sender.in_flight_bytes for sender in senders)
    assert most_bytes - GRANT_BYTES <= in_flight_bytes <= most_bytes + 2 * GRANT_BYTES


def test_a_turn_is_not_spent_on_what_little_window_is_left() -> None:
    senders = Senders(MEMBERS)
    sender = senders[0]
    sender.send.controller.window_bytes = 100 * PAYLOAD_BYTES
    sender.write(90 * PAYLOAD_BYTES)
    senders.run([sender])
    assert sender.in_flight_bytes == 90 * PAYLOAD_BYTES
    sender.write(4 * GRANT_BYTES)
    assert sender.transmit() == []
    sender.ack()
    assert sender.transmit() == [sender.bridge]


def test_a_grant_is_of_what_is_there_and_no_more() -> None:
    """Or else a thousand that each kept the rest of one could use them all at the same moment."""
    senders = Senders(MEMBERS)
    for sender in senders:
        sender.write(20 * PAYLOAD_BYTES)
        senders.run([sender])
        sender.ack()
    senders.write(20 * PAYLOAD_BYTES)
    for sender in senders:
        sender.transmit()
    in_flight_bytes = sum(sender.in_flight_bytes for sender in senders)
    assert in_flight_bytes == 0, "each asks, and is woken when it is its turn"


def test_a_little_rest_goes_with_the_burst_before_it() -> None:
    senders = Senders(MEMBERS)
    burst = 2 * packets_per_send(MTU_BYTES)
    for sender, rest, first in zip(senders, (0, 5, burst // 2), (burst, burst + 5, burst), strict=False):
        sender.write((burst + rest) * PAYLOAD_BYTES)
        assert sender.transmit() == [sender.bridge]
        sender.transmit()
        assert sender.send.sent_offset == first * PAYLOAD_BYTES
        sender.ack()
