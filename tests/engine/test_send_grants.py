"""Many connections to one peer's port: who may send, and that nobody waits for ever."""

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
from utpsocket.protocol.config import GRANT_BYTES
from utpsocket.protocol.packet import HEADER_BYTES
from utpsocket.protocol.runs import packets_per_send

MEMBERS = 20  # more than go without order
MTU_BYTES = 1_400
PAYLOAD_BYTES = MTU_BYTES - HEADER_BYTES


class FakeSend:
    """What send_grants.py looks at of a sending half."""

    def __init__(self) -> None:
        self.flights = self
        self.peer = self
        self.mtu = self
        self.controller = self
        self.recovery = self
        self.min_rtt_us = 100
        self.lost_packets = 0
        self.datagram_bytes = MTU_BYTES
        self.window_bytes = 4 << 20
        self.largest_window_bytes = 4 << 20
        self.in_flight_bytes = 0
        self.sent_offset = 0
        self.unsent_bytes = 0
        self.awaits_grant = False

    def seed_window(self, window_bytes: int) -> None:
        self.window_bytes = max(self.window_bytes, window_bytes)

    @property
    def queue(self) -> bool:
        return self.in_flight_bytes > 0


class FakeBridge:
    def __init__(self) -> None:
        self.connection: Any = self
        self.addr = ("192.0.2.1", 4_242)
        self.send = FakeSend()
        self.grant_queue: Any = None

    def transmit(self) -> list[FakeBridge]:
        """As Endpoint.transmit() and Loop: sends all it may, then the lane counts."""
        send = self.send
        while True:
            packets = self.grant_queue.packets(self)
            if send.awaits_grant or not send.unsent_bytes:
                break
            count = min(packets * PAYLOAD_BYTES, send.unsent_bytes)
            send.sent_offset += count
            send.in_flight_bytes += count
            send.unsent_bytes -= count
        granted: list[FakeBridge] = self.grant_queue.after_transmit(self)
        return granted

    def ack(self) -> None:
        self.send.in_flight_bytes = 0


def run(touched: list[FakeBridge]) -> None:
    while touched:
        touched += touched.pop(0).transmit()


def lane_of(members: int) -> tuple[SendGrants, list[FakeBridge]]:
    send_grants = SendGrants()
    bridges = [FakeBridge() for _ in range(members)]
    for bridge in bridges:
        send_grants.join(bridge)  # type: ignore[arg-type]
    return send_grants, bridges


def test_a_few_go_without_order() -> None:
    _, bridges = lane_of(3)
    assert not bridges[0].grant_queue.is_ordered


def test_grants_are_of_a_burst_and_go_round() -> None:
    _, bridges = lane_of(MEMBERS)
    for bridge in bridges:
        bridge.send.unsent_bytes = 4 * GRANT_BYTES
    run(list(bridges))
    started = [bridge for bridge in bridges if bridge.send.sent_offset]
    assert 0 < len(started) < MEMBERS
    burst = 2 * packets_per_send(MTU_BYTES) * PAYLOAD_BYTES
    assert {bridge.send.sent_offset for bridge in started} == {burst}
    assert started == bridges[: len(started)]
    turns = 0
    while any(bridge.send.unsent_bytes for bridge in bridges):
        in_flight = [bridge for bridge in bridges if bridge.send.in_flight_bytes]
        assert in_flight, "everybody waits, and nobody would wake them"
        in_flight[0].ack()
        run([in_flight[0]])
        sent = [bridge.send.sent_offset for bridge in bridges]
        assert max(sent) - min(sent) <= 2 * burst
        turns += 1
    assert turns >= MEMBERS


def test_a_grant_is_no_more_than_the_window_lets_out() -> None:
    """Or else many that grow at once would use, all together, what they were granted one by one."""
    _, bridges = lane_of(MEMBERS)
    for bridge in bridges:
        bridge.send.unsent_bytes = 4 * GRANT_BYTES
        bridge.send.window_bytes = 10 * PAYLOAD_BYTES
    run(list(bridges))
    assert [bridge.send.sent_offset for bridge in bridges] == [10 * PAYLOAD_BYTES] * MEMBERS


def test_more_is_under_way_than_was_promised_to_one_while_nothing_is_lost() -> None:
    """A receiver promises little before its program has read anything."""
    _, bridges = lane_of(MEMBERS)
    for bridge in bridges:
        bridge.send.peer.largest_window_bytes = bridge.send.peer.window_bytes = 96 << 10
        bridge.send.unsent_bytes = 4 * GRANT_BYTES
    run(list(bridges))

    def under_way() -> int:
        return sum(bridge.send.in_flight_bytes for bridge in bridges)

    def turns(count: int) -> None:
        for _ in range(count):
            in_flight = next(bridge for bridge in bridges if bridge.send.in_flight_bytes)
            in_flight.ack()
            in_flight.send.unsent_bytes += GRANT_BYTES
            run([in_flight])

    assert under_way() <= 3 * (96 << 10)
    turns(60)
    assert under_way() >= 4 * (96 << 10)
    for bridge in bridges:
        bridge.send.lost_packets += 1
    turns(MEMBERS)
    assert under_way() <= 3 * (96 << 10)


def test_a_short_message_does_not_wait() -> None:
    _, bridges = lane_of(MEMBERS)
    for bridge in bridges[1:]:
        bridge.send.unsent_bytes = 4 * GRANT_BYTES
    run(bridges[1:])
    bridges[0].send.unsent_bytes = 100
    run([bridges[0]])
    assert bridges[0].send.sent_offset == 100


def test_who_leaves_makes_room() -> None:
    send_grants, bridges = lane_of(MEMBERS)
    for bridge in bridges:
        bridge.send.unsent_bytes = 4 * GRANT_BYTES
    run(list(bridges))
    first = bridges[0]
    waiting = [bridge for bridge in bridges if not bridge.send.sent_offset]
    following = send_grants.leave(first)  # type: ignore[arg-type]
    assert following is not None and following in waiting
    run([following])  # type: ignore[list-item]
    assert waiting[0].send.sent_offset


def test_the_last_member_takes_the_lane_with_it() -> None:
    send_grants, bridges = lane_of(2)
    for bridge in bridges:
        send_grants.leave(bridge)  # type: ignore[arg-type]
    assert not send_grants._queues


def test_who_was_held_while_there_were_many_may_send_when_there_are_few() -> None:
    """Its last ack came when the others had gone: nobody else wakes it."""
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
    _, bridges = lane_of(MEMBERS)
    send = bridges[0].send
    send.window_bytes = 10 * PAYLOAD_BYTES
    send.unsent_bytes = 4 * GRANT_BYTES
    grant_queue = bridges[0].grant_queue
    assert grant_queue.packets(bridges[0]) == 1 and send.awaits_grant
    assert grant_queue.after_transmit(bridges[0]) == [bridges[0]]
    send.sent_offset += 9 * PAYLOAD_BYTES
    send.unsent_bytes -= 9 * PAYLOAD_BYTES
    send.datagram_bytes += 8
    assert not send.awaits_grant
    grant_queue.packets(bridges[0])
    assert send.awaits_grant, "one full packet is more than was granted"
    send.awaits_grant = False
    send.unsent_bytes = PAYLOAD_BYTES
    assert grant_queue.packets(bridges[0]) == 1 and not send.awaits_grant, "the last one is not"


@pytest.mark.parametrize("min_rtt_us", [100, 50_000])
def test_a_window_that_lost_nothing_is_the_next_ones_too_on_a_short_path(min_rtt_us: int) -> None:
    _, bridges = lane_of(MEMBERS)
    small = 10 * PAYLOAD_BYTES
    for bridge in bridges:
        bridge.send.min_rtt_us = min_rtt_us
        bridge.send.unsent_bytes = 4 * GRANT_BYTES
        bridge.send.window_bytes = small
    shown, following, lossy, last = bridges[:4]
    shown.send.window_bytes = 40 * PAYLOAD_BYTES
    run([shown, following])
    sent = 40 * PAYLOAD_BYTES if min_rtt_us == 100 else small
    assert [bridge.send.sent_offset for bridge in (shown, following)] == [40 * PAYLOAD_BYTES, sent]
    lossy.send.lost_packets = 1
    run([lossy, last])
    assert [bridge.send.sent_offset for bridge in (lossy, last)] == [small, small], "a loss ends it"


def test_a_turn_is_not_spent_on_what_little_window_is_left() -> None:
    _, bridges = lane_of(MEMBERS)
    send = bridges[0].send
    send.window_bytes = 100 * PAYLOAD_BYTES
    send.unsent_bytes = 4 * GRANT_BYTES
    send.in_flight_bytes = 90 * PAYLOAD_BYTES
    run([bridges[0]])
    assert not send.sent_offset
    bridges[0].ack()
    run([bridges[0]])
    assert send.sent_offset


def test_a_grant_is_of_what_is_there_and_no_more() -> None:
    """Or else a thousand that each kept the rest of one could use them all at the same moment."""
    _, bridges = lane_of(MEMBERS)
    for bridge in bridges:
        bridge.send.unsent_bytes = 20 * PAYLOAD_BYTES
        run([bridge])
        bridge.ack()
    for bridge in bridges:
        bridge.send.unsent_bytes = 20 * PAYLOAD_BYTES
        bridge.transmit()
    in_flight_bytes = sum(bridge.send.in_flight_bytes for bridge in bridges)
    assert in_flight_bytes == 0, "each asks, and is woken when it is its turn"


def test_a_little_rest_goes_with_the_burst_before_it() -> None:
    _, bridges = lane_of(MEMBERS)
    burst = 2 * packets_per_send(MTU_BYTES)
    for rest, first in ((0, burst), (5, burst + 5), (burst // 2, burst)):
        bridge = bridges.pop()
        bridge.send.unsent_bytes = (burst + rest) * PAYLOAD_BYTES
        assert bridge.transmit() == [bridge]
        bridge.transmit()
        assert bridge.send.sent_offset == first * PAYLOAD_BYTES
        bridge.ack()
