"""The calls that keep the GIL do what the socket module's do: the same bytes, sizes, addresses and errnos."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from utpsocket.engine.kernel import syscalls
from utpsocket.engine.kernel.native_calls import NativeDatagrams, NativeStream
from utpsocket.engine.kernel.syscalls import KeepingDatagrams, KeepingStream, PlainDatagrams, PlainStream
from utpsocket.protocol.build import IS_COMPILED

from ..requirements import IPV6

pytestmark = pytest.mark.skipif(not syscalls.keeps_gil(), reason="needs 64-bit Linux and a GIL")
ROOM = 200


STREAMS = [PlainStream, KeepingStream, *([NativeStream] if IS_COMPILED else [])]
DATAGRAMS = [PlainDatagrams, KeepingDatagrams, *([NativeDatagrams] if IS_COMPILED else [])]


@pytest.fixture(params=STREAMS)
def stream(request: pytest.FixtureRequest) -> Iterator[tuple[Any, socket.socket]]:
    """A stream, non-blocking, and its other end."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield request.param(ours), theirs


def test_a_stream_is_read_into_spans(stream: tuple[Any, socket.socket]) -> None:
    ours, theirs = stream
    buffer = bytearray(10)
    spans = [memoryview(buffer)[:4], memoryview(buffer)[4:]]
    assert ours.receive(spans) == -errno.EAGAIN
    theirs.sendall(b"abcdefg")
    assert ours.receive(spans) == 7
    assert buffer[:7] == b"abcdefg"
    theirs.sendall(b"hij")
    assert ours.receive(spans[:1]) == 3
    assert buffer[:4] == b"hijd"
    theirs.close()
    assert ours.receive(spans) == 0


def test_a_stream_whose_reader_left_bytes_unread_is_reset(stream: tuple[Any, socket.socket]) -> None:
    ours, theirs = stream
    assert ours.send([memoryview(b"unread")]) == 6
    theirs.close()
    assert ours.receive([memoryview(bytearray(4))]) == -errno.ECONNRESET
    assert ours.send([memoryview(b"more")]) == -errno.EPIPE


@pytest.mark.parametrize(
    "pieces",
    [
        [b"one"],
        [b"one", b"two"],
        [b"x" * 70_000, b"y"],
        [bytearray(b"x" * 70_000), b"y"],
        [b"%d," % number for number in range(300)],
    ],
)
def test_a_stream_is_sent_from_the_front(stream: tuple[Any, socket.socket], pieces: list[bytes]) -> None:
    ours, theirs = stream
    views = [memoryview(piece) for piece in pieces]
    views[0] = views[0][1:]
    whole = b"".join(views)
    count = ours.send(views)
    assert 0 < count <= len(whole)
    received = b""
    while len(received) < count:
        received += theirs.recv(count)
    assert received == whole[:count]


def test_a_full_stream_takes_no_more(stream: tuple[Any, socket.socket]) -> None:
    ours, _ = stream
    piece = [memoryview(b"x" * 50_000)]
    while (count := ours.send(piece)) > 0:
        pass
    assert count == -errno.EAGAIN


@pytest.mark.parametrize("kind", DATAGRAMS)
@pytest.mark.parametrize("family", [socket.AF_INET, IPV6])
@pytest.mark.parametrize("is_connected", [True, False])
def test_datagrams(kind: Any, family: int, is_connected: bool) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as left, socket.socket(family, socket.SOCK_DGRAM) as right:
        for sock in (left, right):
            sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
            sock.setblocking(False)
        if is_connected:
            left.connect(right.getsockname())
        peer = right.getsockname() if is_connected else None
        ours = kind(left, socket.CMSG_SPACE(4), peer)
        room = memoryview(bytearray(ROOM))
        assert ours.receive(room)[0] == -errno.EAGAIN
        addr = None if is_connected else right.getsockname()
        for data in (b"_hello_", bytearray(b"_hello_")):
            assert ours.send(data, 1, 6, [], addr) == 0
            assert right.recvfrom(ROOM) == (b"hello", left.getsockname())
        right.sendto(b"answer", left.getsockname())
        size, ancillary, flags, came_from = ours.receive(room)
        assert (size, list(ancillary), flags, came_from) == (6, [], 0, right.getsockname())
        assert room[:6] == b"answer"
        right.sendto(b"a" * (ROOM + 1), left.getsockname())
        size, _, flags, _ = ours.receive(room)
        assert (size, flags) == (ROOM, socket.MSG_TRUNC)
        right.sendto(b"", left.getsockname())
        assert ours.receive(room)[0] == 0
        assert ours.send(bytes(70_000), 0, 70_000, [], addr) == errno.EMSGSIZE


@pytest.mark.parametrize("kind", DATAGRAMS)
def test_a_peer_is_called_as_was_said(kind: Any) -> None:
    """Who is connected on an IPv4 socket beside a port of both families is known by an IPv6 address."""
    with socket.socket(type=socket.SOCK_DGRAM) as left, socket.socket(type=socket.SOCK_DGRAM) as right:
        for sock in (left, right):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        left.connect(right.getsockname())
        peer = "::ffff:127.0.0.1", right.getsockname()[1], 0, 0
        ours = kind(left, socket.CMSG_SPACE(4), peer)
        room = memoryview(bytearray(ROOM))
        right.sendto(b"hello", left.getsockname())
        assert ours.receive(room)[3] == peer
        right.sendto(b"hello", left.getsockname())
        assert [group[5] for group in ours.receive_many(room, 100, ROOM // 100)] == [peer]


@pytest.mark.parametrize("kind", DATAGRAMS)
def test_ancillary_data_goes_and_comes(kind: Any) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as left, socket.socket(type=socket.SOCK_DGRAM) as right:
        for sock in (left, right):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        right.setsockopt(socket.IPPROTO_UDP, 104, 1)  # UDP_GRO
        right.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
        sender, receiver = kind(left, 0, None), kind(right, socket.CMSG_SPACE(4) + socket.CMSG_SPACE(12), None)
        segment = [(socket.IPPROTO_UDP, 103, (8).to_bytes(2, "little"))]  # UDP_SEGMENT
        assert sender.send(b"12345678abcdefgh!", 0, 17, segment, right.getsockname()) == 0
        room = memoryview(bytearray(ROOM))
        size, ancillary, _, _ = receiver.receive(room)
        assert bytes(room[:size]) == b"12345678abcdefgh!"
        control = {(level, kind): data for level, kind, data in ancillary}
        assert control[socket.IPPROTO_UDP, 104] == (8).to_bytes(4, "little")
        assert control[socket.IPPROTO_IP, 8][4:8] == socket.inet_aton("127.0.0.1")
