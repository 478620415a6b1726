"""Of an attempt to connect nothing is ever accepted but the one connection that its initiator has."""

from __future__ import annotations

import errno
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import utpsocket
from tests.engine.test_silence_and_crossing import SECONDS, Switch
from utpsocket.protocol.handshake import ACKS_SYN_ACK
from utpsocket.protocol.packet import PacketType, decode, encode

pytestmark = pytest.mark.usefixtures("leaves_nothing_behind")


@pytest.fixture
def switch() -> Iterator[Switch]:
    made = Switch()
    yield made
    made.close()


@pytest.fixture
def listener() -> Iterator[Any]:
    with utpsocket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(SECONDS)
        yield made


def syn(connection_id: int, seq: int, *, ack: int) -> bytes:
    return encode(
        PacketType.SYN, connection_id, timestamp_us=1, difference_us=0, window_bytes=1 << 20, seq=seq, ack=ack
    )


def next_is_accepted(listener: Any) -> None:
    """A foreign initiator's SYN makes a connection, and it is the first that accept() sees."""
    with socket.socket(type=socket.SOCK_DGRAM) as foreign:
        foreign.connect(listener.getsockname())
        foreign.send(syn(900, 5, ack=0))
        server, addr = listener.accept()
        with server:
            assert addr == foreign.getsockname()
            foreign.send(encode(PacketType.RESET, 901, timestamp_us=1, difference_us=0, window_bytes=0, seq=6, ack=0))
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_a_syn_that_announces_an_ack_is_handed_over_after_the_ack_only(listener: Any) -> None:
    """A foreign one that came later is handed over first, a moment after its SYN."""
    with socket.socket(type=socket.SOCK_DGRAM) as udp:
        udp.connect(listener.getsockname())
        udp.send(syn(77, 1_000, ack=ACKS_SYN_ACK))
        assert decode(memoryview(udp.recv(100))).type == PacketType.STATE  # type: ignore[union-attr]
        next_is_accepted(listener)
        udp.send(encode(PacketType.RESET, 78, timestamp_us=1, difference_us=0, window_bytes=0, seq=1_001, ack=0))


def test_an_attempt_that_timed_out_is_never_accepted(switch: Switch, listener: Any) -> None:
    """The round trip is longer than the patience: the answer comes when the attempt has ended."""
    switch.peers[1] = listener.getsockname()
    client = utpsocket.socket()
    client.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.connect(switch.addresses[0])
    syn_datagram = switch.take(0)
    first = decode(memoryview(syn_datagram))
    assert first is not None
    switch.put(1, syn_datagram)
    switch.take(1)  # the answer, late
    client.close()
    while True:  # the SYN may have been repeated meanwhile
        said = switch.take(0)
        switch.put(1, said)
        packet = decode(memoryview(said))
        assert packet is not None
        if packet.type == PacketType.RESET and packet.connection_id == first.connection_id + 1 & 0xFFFF:
            break
    next_is_accepted(listener)


def test_a_connect_whose_answers_are_lost_is_one_connection_all_the_same(switch: Switch, listener: Any) -> None:
    """Its SYN is repeated, and once more under a fresh id; the server accepts once and closes its listener."""
    switch.peers[1] = listener.getsockname()
    client = utpsocket.socket()
    client.setblocking(False)
    assert client.connect_ex(switch.addresses[0]) == errno.EINPROGRESS
    ids = set()
    for _ in range(3):
        datagram = switch.take(0)
        packet = decode(memoryview(datagram))
        assert packet is not None and packet.type == PacketType.SYN
        ids.add(packet.connection_id)
        switch.put(1, datagram)
        switch.take(1)  # and is lost
    assert len(ids) == 2
    accepted: list[Any] = []

    def serve() -> None:
        accepted.append(listener.accept()[0])
        listener.close()

    server = threading.Thread(target=serve)
    server.start()
    switch.pass_on()
    with client:
        assert select.select([], [client], [], SECONDS)[1]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        server.join(SECONDS)
        with accepted[0]:
            client.settimeout(SECONDS)
            accepted[0].settimeout(SECONDS)
            client.sendall(b"to the one")
            assert accepted[0].recv(100) == b"to the one"
            accepted[0].sendall(b"and back")
            assert client.recv(100) == b"and back"
