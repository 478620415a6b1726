"""The kernel's sieve: which datagrams pass a real UDP socket that has it."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterator

import pytest

from utpsocket.engine.kernel import socket_filter
from utpsocket.engine.kernel.syscalls import packed_name
from utpsocket.protocol import PacketType
from utpsocket.protocol.packet import HEADER_BYTES, LARGE_SYN_BYTES, encode, pad

HOSTS = ["127.0.0.1", "::1"]
NOBODY = socket_filter.HeavySources(1, frozenset(), 0)


@contextlib.contextmanager
def path(host: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender, socket.socket(family, socket.SOCK_DGRAM) as receiver:
        try:
            receiver.bind((host, 0))
        except OSError:
            pytest.skip("no IPv6 here")
        receiver.setblocking(False)
        sender.connect(receiver.getsockname())
        yield sender, receiver


def passed(sender: socket.socket, receiver: socket.socket, datagrams: list[bytes]) -> list[bytes]:
    """What arrives. On loopback it is there when send() returns."""
    found = []
    for datagram in datagrams:
        sender.send(datagram)
        with contextlib.suppress(BlockingIOError):
            found.append(receiver.recv(2_000))
    return found


def packet(type: PacketType, connection_id: int, payload: bytes = b"") -> bytes:
    return encode(type, connection_id, timestamp_us=1, difference_us=0, window_bytes=9, seq=1, ack=1) + payload


@pytest.mark.parametrize("host", HOSTS)
def test_what_is_not_utp_is_dropped_and_connections_are_received(host: str) -> None:
    with path(host) as (sender, receiver):
        assert socket_filter.attach(receiver, [70, 71, 72, 500], socket_filter.PROBABILITY_ONE, 0, NOBODY)
        bad = [b"", b"\x01", bytes(19), packet(PacketType.DATA, 70)[:19], b"\x42" + bytes(30), b"\x51" + bytes(30)]
        strays = [packet(PacketType.DATA, 69, b"x"), packet(PacketType.STATE, 501), packet(PacketType.RESET, 7)]
        good = [
            packet(PacketType.DATA, 70, b"payload"),
            packet(PacketType.STATE, 72),
            packet(PacketType.FIN, 500),
            packet(PacketType.RESET, 71),
            packet(PacketType.SYN, 9),
        ]
        assert passed(sender, receiver, bad + strays + good) == good
        socket_filter.detach(receiver)
        assert passed(sender, receiver, bad + strays) == bad + strays
        socket_filter.detach(receiver)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100, 256])
def test_every_id_is_found(count: int) -> None:
    ids = sorted(random.Random(count).sample(range(0, 65_536, 2), count))
    with path("127.0.0.1") as (sender, receiver):
        assert socket_filter.attach(receiver, ids, socket_filter.PROBABILITY_ONE, 0, NOBODY)
        good = [packet(PacketType.DATA, one) for one in ids]
        wrong = [packet(PacketType.DATA, one + 1) for one in ids]
        assert passed(sender, receiver, good + wrong) == good


def test_with_too_many_connections_strays_pass_as_well() -> None:
    with path("127.0.0.1") as (sender, receiver):
        assert socket_filter.attach(receiver, range(0, 65_536, 7), 0, 0, NOBODY)
        datagrams = [packet(PacketType.DATA, one) for one in range(10)]
        assert passed(sender, receiver, [*datagrams, packet(PacketType.SYN, 0)]) == datagrams


@pytest.mark.parametrize(
    ("syns", "strays"),
    [(socket_filter.PROBABILITY_ONE // 2, socket_filter.PROBABILITY_ONE), (0, socket_filter.PROBABILITY_ONE // 2)],
)
def test_a_part_is_drawn(syns: int, strays: int) -> None:
    with path("127.0.0.1") as (sender, receiver):
        assert socket_filter.attach(receiver, [1], syns, strays, NOBODY)
        for type, part in ((PacketType.SYN, syns), (PacketType.DATA, strays)):
            found = len(passed(sender, receiver, [packet(type, 9)] * 1_000))
            assert abs(found / 1_000 - part / socket_filter.PROBABILITY_ONE) < 0.1  # six standard deviations


@pytest.mark.parametrize("large", [0, socket_filter.PROBABILITY_ONE // 2, socket_filter.PROBABILITY_ONE])
def test_large_syns_are_another_part(large: int) -> None:
    small_syn = packet(PacketType.SYN, 9)
    large_syn = pad(small_syn, LARGE_SYN_BYTES - HEADER_BYTES)
    with path("127.0.0.1") as (sender, receiver):
        for syns in (0, socket_filter.PROBABILITY_ONE):
            assert socket_filter.attach(receiver, [1], syns, 0, NOBODY, large)
            assert len(passed(sender, receiver, [small_syn, large_syn[:-1]] * 10)) == (20 if syns else 0)
            found = len(passed(sender, receiver, [large_syn] * 1_000))
            assert abs(found / 1_000 - large / socket_filter.PROBABILITY_ONE) < 0.1
        heavy = socket_filter.HeavySources(
            1, frozenset({socket_filter.source_hash(packed_name(sender.getsockname()), 1)}), 0
        )
        assert socket_filter.attach(
            receiver, [1], socket_filter.PROBABILITY_ONE, 0, heavy, socket_filter.PROBABILITY_ONE
        )
        assert passed(sender, receiver, [small_syn, large_syn]) == []


@pytest.mark.parametrize("host", HOSTS)
def test_heavy_sources_are_distinguished_from_the_others(host: str) -> None:
    multiplier = 0x9E37_79B1
    with path(host) as (sender, receiver), contextlib.ExitStack() as stack:
        others = [stack.enter_context(socket.socket(sender.family, socket.SOCK_DGRAM)) for _ in range(60)]
        for other in others:
            other.connect(receiver.getsockname())
        hashes = [socket_filter.source_hash(packed_name(other.getsockname()), multiplier) for other in others]
        assert len(set(hashes)) > 50
        heavy = socket_filter.HeavySources(multiplier, frozenset(hashes[:30]), 0)
        assert socket_filter.attach(receiver, [1], socket_filter.PROBABILITY_ONE, socket_filter.PROBABILITY_ONE, heavy)
        for other, source in zip(others, hashes, strict=True):
            expected = [] if source in heavy.sources else [packet(PacketType.SYN, 9)]
            assert passed(other, receiver, [packet(PacketType.SYN, 9)]) == expected
            assert len(passed(other, receiver, [packet(PacketType.DATA, 1)])) == 1
