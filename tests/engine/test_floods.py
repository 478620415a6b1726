"""Floods at one port, in virtual time: what is bounded, and who comes in all the same."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.fuzz.test_endpoint import SilentLoop, silent_port
from tests.requirements import replaces
from utpsocket.engine.kernel.socket_filter import PROBABILITY_ONE
from utpsocket.engine.kernel.udp import Port
from utpsocket.engine.ports.endpoint import Endpoint
from utpsocket.engine.ports.listener import MAX_HALF_OPEN, Listener
from utpsocket.engine.ports.send_grants import SendGrants
from utpsocket.engine.ports.syncache import GENERATION_ENTRIES, GENERATION_US
from utpsocket.engine.user_fds.socket_state import Identity
from utpsocket.protocol import PacketType, Run, State
from utpsocket.protocol.packet import Packet, decode, encode

HONEST = ("192.0.2.1", 1_000)


class VirtualLoop(SilentLoop):
    """Time passes when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, Callable[[], None]]] = []
        self.send_grants = SendGrants()

    def call_at(self, at: int, call: Any) -> None:
        self.calls.append((at, call))

    def close_endpoint(self, endpoint: Endpoint) -> None:
        endpoint.is_closed = True

    def pass_time(self, until: int) -> None:
        while self.calls and min(self.calls, key=lambda one: one[0])[0] <= until:
            due = min(self.calls, key=lambda one: one[0])
            self.calls.remove(due)
            self.now = max(self.now, due[0])
            due[1]()
        self.now = until


class Site:
    """A listening port without kernel and thread."""

    def __init__(self, backlog: int = 1_000) -> None:
        self.loop, (self.port, self.calls) = VirtualLoop(), silent_port()
        self.endpoint = Endpoint(self.loop, 1, self.port, is_private=False)  # type: ignore[arg-type]
        self.listener = self.endpoint.listener = Listener(self.endpoint, Identity(socket.AF_INET), b"", backlog)

    def receive(
        self, addr: tuple[str, int], type: PacketType, id: int, *, seq: int, ack: int = 0, data: bytes = b""
    ) -> None:
        header = encode(type, id, timestamp_us=1, difference_us=0, window_bytes=1 << 20, seq=seq, ack=ack)
        run = Run(memoryview(header + data), len(header + data), addr)
        self.endpoint.handle_run(run, now=self.loop.now)

    def settle(self) -> list[Packet]:
        """What the loop does at the end of an iteration; returns what was sent."""
        touched, self.loop.touched = self.loop.touched, {}
        for bridge in touched:
            if bridge.syn_received_at and bridge.connection.state is not State.SYN_RECEIVED:
                bridge.syn_received_at = 0
                self.listener.on_handshake_end(bridge)
            self.endpoint.transmit(bridge, now=self.loop.now)
            if bridge.connection.is_over:
                self.endpoint.forget(bridge)
        sent, self.calls.sent = self.calls.sent, []
        packets = [decode(memoryview(one)) for datagrams in sent for one in datagrams]
        assert None not in packets
        return [packet for packet in packets if packet is not None]

    def flood(self, count: int, first: int = 0) -> list[Packet]:
        for number in range(first, first + count):
            host = f"127.{number >> 16}.{number >> 8 & 0xFF}.{number & 0xFF}"
            self.receive((host, 7), PacketType.SYN, number & 0xFFFF, seq=number & 0xFFFF)
        return self.settle()

    def bridge(self, addr: tuple[str, int], recv_id: int) -> Any:
        return self.endpoint.bridges.get((addr, recv_id))

    def crowd(self) -> None:
        """No SYN makes a connection at once any more."""
        self.flood(MAX_HALF_OPEN + 1)
        assert len(self.endpoint.bridges) == MAX_HALF_OPEN

    def answered(self, id: int, seq: int) -> Packet:
        """An honest SYN, and its answer."""
        self.receive(HONEST, PacketType.SYN, id, seq=seq)
        (answer,) = self.settle()
        assert (answer.type, answer.connection_id, answer.ack16) == (PacketType.STATE, id, seq)
        return answer


def test_an_initiator_that_is_verified_comes_in_whatever_came_before() -> None:
    site = Site()
    answers = site.flood(80_000)
    assert len(answers) == 80_000  # one each, and none is larger than the SYN
    assert len(site.endpoint.bridges) == MAX_HALF_OPEN
    assert len(site.listener.cache) <= 2 * GENERATION_ENTRIES
    answer = site.answered(500, 65_535)
    site.receive(HONEST, PacketType.STATE, 501, seq=0, ack=answer.seq16 - 1)
    bridge = site.bridge(HONEST, 501)
    assert bridge.connection.state is State.CONNECTED
    assert site.settle() == []
    site.receive(HONEST, PacketType.DATA, 501, seq=0, ack=answer.seq16 - 1, data=b"hello")
    assert bridge.connection.poll_delivery() == [b"hello"]


@replaces("Port.attach_filter()")
def test_the_kernel_drops_the_syns_that_a_full_backlog_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes them again in the twentieth of a second in which accept() is called."""
    syn_probability: list[int] = []

    def attach_filter(port: Port, ids: frozenset[int], syns: int, strays: int, heavy: object, large: int) -> None:
        syn_probability.append(syns)

    monkeypatch.setattr(Port, "attach_filter", attach_filter)
    monkeypatch.setattr(Port, "kernel_drops", 0)
    site = Site(backlog=0)
    site.endpoint.flood._start(site.endpoint, now=site.loop.now)
    site.receive(HONEST, PacketType.SYN, 500, seq=1)
    site.receive(HONEST, PacketType.STATE, 501, seq=2, ack=site.settle()[0].seq16 - 1)
    site.settle()
    assert site.listener.is_full
    site.endpoint.flood.useless_datagrams += 1_000
    site.loop.pass_time(site.loop.now + 50_000)
    site.listener._ready.clear()  # accepted
    site.endpoint.flood.useless_datagrams += 1_000
    site.loop.pass_time(site.loop.now + 50_000)
    open_probability, full_probability, open_again = syn_probability
    assert open_probability == open_again == PROBABILITY_ONE
    assert full_probability <= PROBABILITY_ONE // 1_000


def test_data_is_a_proof_and_one_that_is_ahead_waits_for_what_is_missing() -> None:
    site = Site()
    site.crowd()
    answer = site.answered(500, 20)
    site.receive(HONEST, PacketType.DATA, 501, seq=22, ack=answer.seq16 - 1, data=b"world")
    connection = site.bridge(HONEST, 501).connection
    assert connection.poll_delivery() == []
    site.receive(HONEST, PacketType.DATA, 501, seq=21, ack=answer.seq16 - 1, data=b"hello ")
    assert b"".join(connection.poll_delivery()) == b"hello world"


def test_a_repeated_syn_is_answered_alike_before_and_after_its_proof() -> None:
    site = Site()
    site.crowd()
    first = site.answered(500, 20)
    assert site.answered(500, 20).seq16 == first.seq16
    site.receive(HONEST, PacketType.STATE, 501, seq=21, ack=first.seq16 - 1)
    site.settle()
    site.receive(HONEST, PacketType.SYN, 500, seq=20)
    assert [packet.seq16 for packet in site.settle()] in ([], [first.seq16])
    assert len(site.endpoint.bridges) == MAX_HALF_OPEN + 1


def test_a_late_proof_makes_no_second_connection() -> None:
    site = Site()
    site.crowd()
    answer = site.answered(500, 20)
    site.receive(HONEST, PacketType.STATE, 501, seq=21, ack=answer.seq16 - 1)
    site.receive(HONEST, PacketType.RESET, 501, seq=21, ack=answer.seq16 - 1)
    site.settle()
    assert site.bridge(HONEST, 501) is None
    site.receive(HONEST, PacketType.STATE, 501, seq=21, ack=answer.seq16 - 1)
    assert site.bridge(HONEST, 501) is None


def test_a_guessed_ack_makes_no_connection_and_no_reset() -> None:
    site = Site()
    site.crowd()
    answer = site.answered(500, 20)
    for wrong in (1, 2, 100, -3):
        site.receive(HONEST, PacketType.DATA, 501, seq=21, ack=answer.seq16 + wrong & 0xFFFF, data=b"x")
    assert site.bridge(HONEST, 501) is None
    assert site.settle() == []


def test_an_initiator_that_follows_bep_29s_diagram_comes_in_too() -> None:
    """rust-utp's first DATA acks the answer's own number, and waits for the one behind it."""
    site = Site()
    site.crowd()
    answer = site.answered(500, 20)
    site.receive(HONEST, PacketType.DATA, 501, seq=21, ack=answer.seq16, data=b"x")
    bridge = site.bridge(HONEST, 501)
    assert bridge is not None
    assert bridge.connection.send.flights.next_seq & 0xFFFF == answer.seq16 + 1 & 0xFFFF


def test_while_the_backlog_is_full_no_connection_comes_in_and_later_it_does() -> None:
    site = Site(backlog=0)
    site.crowd()
    answer = site.answered(500, 20)
    waiting = next(iter(site.endpoint.bridges.values()))
    site.listener._ready.append(waiting)
    site.receive(HONEST, PacketType.DATA, 501, seq=21, ack=answer.seq16 - 1, data=b"x")
    assert site.bridge(HONEST, 501) is None
    assert site.settle() == []
    site.listener._ready.clear()
    site.receive(HONEST, PacketType.DATA, 501, seq=21, ack=answer.seq16 - 1, data=b"x")
    assert site.bridge(HONEST, 501).connection.state is State.CONNECTED


def test_what_is_unproven_for_long_gives_its_place_up_and_may_still_come_in() -> None:
    site = Site()
    site.receive(HONEST, PacketType.SYN, 500, seq=20)
    (answer,) = site.settle()
    site.flood(MAX_HALF_OPEN + 100)
    assert site.bridge(HONEST, 501) is not None
    site.loop.now += 1_000_001
    site.listener.prepare(now=site.loop.now)
    assert site.settle() == []
    assert len(site.endpoint.bridges) == 0
    site.receive(HONEST, PacketType.STATE, 501, seq=21, ack=answer.seq16 - 1)
    assert site.bridge(HONEST, 501).connection.state is State.CONNECTED


def test_after_a_flood_all_is_given_back_and_syns_make_connections_again() -> None:
    site = Site()
    site.flood(10_000)
    started = site.loop.now
    again_at = site.listener.prepare(now=site.loop.now)
    assert again_at == started + 1_000_000
    site.loop.now = again_at
    site.listener.prepare(now=site.loop.now)
    site.settle()
    site.loop.now += 1_000_000
    site.receive(HONEST, PacketType.SYN, 500, seq=20)
    assert site.bridge(HONEST, 501).connection.state is State.SYN_RECEIVED
    site.loop.pass_time(started + 3 * GENERATION_US)
    assert len(site.listener.cache) == 0
    assert site.loop.calls == []


def test_many_that_connect_at_the_same_moment_all_come_in() -> None:
    site = Site()
    answers = {packet.connection_id: packet for packet in site.flood(1_000)}
    for number in range(1_000):
        addr = (f"127.0.{number >> 8}.{number & 0xFF}", 7)
        ack = answers[number].seq16 - 1 & 0xFFFF
        site.receive(addr, PacketType.STATE, number + 1, seq=number + 1, ack=ack)
    assert site.listener.stats()["half_open"] == 1_000
    site.settle()
    assert site.listener.stats()["half_open"] == 0
    assert all(bridge.connection.state is State.CONNECTED for bridge in site.endpoint.bridges.values())
    assert len(site.endpoint.bridges) == 1_000
