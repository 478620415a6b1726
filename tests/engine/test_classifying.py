"""A flooded port on real sockets: what is kept apart, who is answered, and that it ends."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from socket import htons
from types import SimpleNamespace
from typing import Any

import pytest

import utpsocket
from tests.requirements import replaces
from utpsocket.engine import running_engine
from utpsocket.engine.kernel.arena import Arena
from utpsocket.engine.kernel.socket_filter import PROBABILITY_ONE
from utpsocket.engine.kernel.udp import Port
from utpsocket.engine.loop import Loop
from utpsocket.engine.ports.flood import Flood
from utpsocket.protocol import PacketType
from utpsocket.protocol.packet import SYN_BYTE, encode

PLACES = [
    ("127.0.0.1", "127.0.0.1"),
    ("0.0.0.0", "127.0.0.2"),
    ("::1", "::1"),
    ("::", "::1"),
    ("::", "::ffff:127.0.0.1"),
]


def packet(type: PacketType, connection_id: int, *, seq: int = 1, ack: int = 1, payload: bytes = b"") -> bytes:
    return encode(type, connection_id, timestamp_us=1, difference_us=0, window_bytes=9, seq=seq, ack=ack) + payload


@contextlib.contextmanager
def port_and_peers(host: str, target: str, peers: int) -> Iterator[tuple[Port, list[socket.socket]]]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        made = []
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind((host, 0))
            for _ in range(peers):
                made.append(stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)))
                made[-1].connect((target, sock.getsockname()[1]))
                made[-1].settimeout(60)
        except OSError:
            pytest.skip("no IPv6 here")
        port = Port(sock)
        if not port.can_classify:
            pytest.skip("no recvmmsg here")
        yield port, made


@pytest.mark.parametrize(("host", "target"), PLACES)
def test_connections_come_first_and_every_syn_is_answered_from_where_it_was_sent_to(host: str, target: str) -> None:
    with port_and_peers(host, target, 3) as (port, peers):
        for number, peer in enumerate(peers):
            peer.send(packet(PacketType.SYN, 10 + number))
            peer.send(packet(PacketType.DATA, 70, seq=1, payload=b"wanted"))
            peer.send(packet(PacketType.DATA, 900 + number))
        runs, unmatched = port.receive_classified(Arena(), {htons(70)})
        assert port.is_drained
        assert [bytes(run.data[20:]) for run in runs] == [b"wanted"] * 3
        assert [header[0] for header in unmatched.headers(unmatched.syns)] == [SYN_BYTE] * 3
        assert [unmatched.run(index).data[3] for index in unmatched.others] == [
            900 + number & 0xFF for number in range(3)
        ]
        unmatched.answer(
            unmatched.syns, bytearray(b"".join(packet(PacketType.STATE, 10 + number) for number in range(3)))
        )
        for number, peer in enumerate(peers):  # a connected socket takes nothing from another address
            assert peer.recv(100) == packet(PacketType.STATE, 10 + number)


def test_what_the_kernel_merged_is_not_taken_apart_by_its_first_bytes() -> None:
    with port_and_peers("127.0.0.1", "127.0.0.1", 1) as (port, (peer,)):
        merged = b"".join(packet(PacketType.SYN, number) for number in range(10))
        try:
            peer.sendmsg([merged], [(socket.IPPROTO_UDP, 103, (20).to_bytes(2, "little"))])
        except OSError:
            pytest.skip("no UDP_SEGMENT here")
        runs, unmatched = port.receive_classified(Arena(), set())
        assert sum(run.count for run in runs) + len(unmatched.syns) == 10


@replaces("Flood._tick()")
@pytest.mark.usefixtures("leaves_nothing_behind")
def test_a_repeated_syn_comes_in_where_no_small_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 90,000 SYNs a second a port that is behind can look at one in a hundred, say: 97 of 100 honest initiators
    would not be among them in three seconds. What repeats itself as a large one is.
    """
    monkeypatch.setattr(Flood, "_tick", lambda *_: None)
    with utpsocket.create_server(("127.0.0.1", 0)) as listener:
        loop = running_engine()
        assert isinstance(loop, Loop)
        (endpoint,) = (one for one in loop.endpoints.values() if one.listener is not None)

        def shut(loop: Any) -> None:
            endpoint.flood._start(endpoint, now=loop.now)
            endpoint.flood._syn_probability = 0
            endpoint.flood._set_filter(endpoint)

        loop.call(shut)
        if not endpoint.port.can_classify:
            pytest.skip("the kernel has no sieve here")
        listener.settimeout(60)
        with utpsocket.create_connection(listener.getsockname(), timeout=60) as client, listener.accept()[0] as server:
            client.sendall(b"question")
            assert server.recv(8) == b"question"
        assert endpoint.port.kernel_drops == 1


@replaces("Port")
@pytest.mark.parametrize("is_busy", [True, False])
def test_small_syns_are_kept_out_before_large_ones(monkeypatch: pytest.MonkeyPatch, is_busy: bool) -> None:
    counts: list[tuple[int, int]] = []

    class RecordingPort:
        kernel_drops = 0

        def report_icmp(self, *, wanted: bool) -> None: ...
        def attach_filter(self, ids: Any, syns: int, strays: int, heavy: Any, large: int) -> None:
            counts.append((syns, large))

    class Somewhere:
        port, listener, bridges, is_closed = RecordingPort(), SimpleNamespace(is_full=False), (), False
        loop = SimpleNamespace(now=0, call_at=lambda at, call: None)

    endpoint: Any = Somewhere()
    flood = Flood()
    flood._start(endpoint, now=0)
    if not is_busy:
        flood._ticks = flood._busy_until

    def ticks(count: int, *, is_behind: bool) -> tuple[int, int]:
        for _ in range(count):
            flood._iterations, flood._iterations_behind = 10, 10 * is_behind
            flood.useless_datagrams += 1_000
            flood._tick(endpoint)
        return counts[-1]

    assert counts[-1] == (PROBABILITY_ONE, PROBABILITY_ONE)
    assert ticks(1, is_behind=True) == (PROBABILITY_ONE // 2, PROBABILITY_ONE)
    assert ticks(9, is_behind=True) == (PROBABILITY_ONE >> 10, PROBABILITY_ONE)
    assert ticks(1, is_behind=True) == (PROBABILITY_ONE >> 10, PROBABILITY_ONE // 2)
    assert ticks(100, is_behind=False) == (PROBABILITY_ONE, PROBABILITY_ONE)


def wait_for(condition: Callable[[], bool]) -> None:
    """Raises AssertionError after a minute. The condition is the engine's, which has no event for it."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.usefixtures("leaves_nothing_behind")
@pytest.mark.parametrize("kind", ["syn", "data", "reset", "garbage"])
def test_a_flood_is_noticed_and_ends_and_keeps_no_client_out(kind: str) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(utpsocket.create_server(("127.0.0.1", 0)))
        listener.settimeout(60)
        client = stack.enter_context(utpsocket.create_connection(listener.getsockname()))
        server = stack.enter_context(listener.accept()[0])
        peers = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(8)]
        loop = running_engine()
        assert isinstance(loop, Loop)
        (endpoint,) = (one for one in loop.endpoints.values() if one.listener is not None)
        for peer in peers:
            peer.connect(listener.getsockname())
        types = {"syn": PacketType.SYN, "data": PacketType.DATA, "reset": PacketType.RESET}
        sent = 0

        def flood() -> bool:
            nonlocal sent
            for peer in peers:
                for _ in range(50):
                    sent += 1
                    with contextlib.suppress(OSError):
                        peer.send(b"\xff" * 30 if kind == "garbage" else packet(types[kind], sent & 0xFFFF))
            return endpoint.flood.is_on

        wait_for(flood)
        client.sendall(b"x" * 100_000)
        left = 100_000
        while left:
            left -= len(server.recv(left))
            flood()
        client.close()
        assert server.recv(1) == b""
        honest: Any = stack.enter_context(utpsocket.create_connection(listener.getsockname(), timeout=60))
        conn, addr = listener.accept()
        while addr != honest.getsockname():
            conn.close()
            conn, addr = listener.accept()
        conn.close()
        wait_for(lambda: not endpoint.flood.is_on)
        before = loop.wakeups
        assert endpoint.port.kernel_drops >= 0
        assert not select.select([honest], [], [], 0.2)[0] or honest.recv(1) == b""
        assert loop.wakeups - before < 50
        assert loop.faults == 0
