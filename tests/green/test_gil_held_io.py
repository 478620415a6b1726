"""The calls of a hub that keep the interpreter's lock: what the C class's give, and its errors where bytes are not."""

from __future__ import annotations

import array
import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import utpsocket
from utpsocket.green import gil_held_io
from utpsocket.green.inner_sockets import GeventInside

pytestmark = [
    pytest.mark.skipif(not gil_held_io.IS_POSSIBLE, reason="needs 64-bit Linux and a GIL"),
    pytest.mark.usefixtures("leaves_nothing_behind"),
]
HELLO = b"hello, hub"


@pytest.fixture
def pair() -> Iterator[tuple[Any, Any]]:
    """A connected socket of a hub's, and its peer, which blocks."""
    with utpsocket.create_server(("127.0.0.1", 0)) as listener, GeventInside() as hubs:
        shim_connect(hubs, listener.getsockname())
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(60)
            hubs.setblocking(False)
            yield hubs, peer


def shim_connect(sock: Any, address: Any) -> None:
    """connect() that blocks, past the hub that connect_ex() would ask."""
    utpsocket.socket.connect(sock, address)


def wait_readable(sock: Any) -> None:
    sock.setblocking(True)
    sock.recv(1, utpsocket.MSG_PEEK)
    sock.setblocking(False)


@pytest.mark.parametrize(
    "make",
    [
        bytes,
        bytearray,
        memoryview,
        lambda data: memoryview(b"__" + data)[2:],
        lambda data: memoryview(bytearray(data)),
        lambda data: array.array("H", data),
        lambda data: memoryview(array.array("H", data)),
    ],
)
def test_whatever_holds_bytes_is_sent(pair: tuple[Any, Any], make: Any) -> None:
    hubs, peer = pair
    assert hubs.send(make(HELLO)) == len(HELLO)
    assert peer.recv(100) == HELLO


def test_bytes_come_whole_and_in_part(pair: tuple[Any, Any]) -> None:
    hubs, peer = pair
    peer.sendall(HELLO)
    wait_readable(hubs)
    assert hubs.recv(5) == HELLO[:5]
    room = bytearray(3)
    assert (hubs.recv_into(room), room) == (3, HELLO[5:8])
    assert hubs.recv(100) == HELLO[8:]


def test_rooms_of_other_kinds(pair: tuple[Any, Any]) -> None:
    hubs, peer = pair
    peer.sendall(HELLO)
    wait_readable(hubs)
    numbers = array.array("H", [0])
    assert hubs.recv_into(numbers) == 2
    assert numbers.tobytes() == HELLO[:2]
    room = bytearray(10)
    assert (hubs.recv_into(memoryview(room)[4:], 2), room[4:6]) == (2, HELLO[2:4])
    assert hubs.recv_into(bytearray()) == 0
    with pytest.raises((TypeError, BufferError)):
        hubs.recv_into(b"not writable")
    with pytest.raises((TypeError, BufferError)):
        hubs.recv_into(memoryview(bytearray(8))[::2])
    assert hubs.recv(100) == HELLO[4:]


def test_nothing_there_and_nowhere_to_put_it_would_block(pair: tuple[Any, Any]) -> None:
    hubs, _ = pair
    calls: tuple[Callable[[], object], ...] = (lambda: hubs.recv(1), lambda: hubs.recv_into(bytearray(1)))
    for call in calls:
        with pytest.raises(BlockingIOError) as caught:
            call()
        assert caught.value.errno == errno.EAGAIN
    with pytest.raises(BlockingIOError):
        while True:
            assert hubs.send(memoryview(bytes(1_000_000))[1:]) > 0


def test_ends_and_errors_are_the_classes(pair: tuple[Any, Any]) -> None:
    hubs, peer = pair
    wrongs: tuple[Callable[[], object], ...] = (
        lambda: hubs.send("text"),
        lambda: hubs.recv("1"),
        lambda: hubs.recv_into(3),
    )
    for wrong in wrongs:
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(ValueError, match="negative buffersize"):
        hubs.recv(-1)
    assert hubs.recv(0) == b""
    assert hubs.send(b"") == 0
    peer.shutdown(utpsocket.SHUT_WR)
    wait_readable(hubs)
    assert (hubs.recv(10), hubs.recv_into(bytearray(10))) == (b"", 0)
    hubs.close()
    calls: tuple[Callable[[], object], ...] = (
        lambda: hubs.recv(1),
        lambda: hubs.send(b"x"),
        lambda: hubs.recv_into(bytearray(1)),
    )
    for closed in calls:
        with pytest.raises(OSError) as caught:
            closed()
        assert caught.value.errno == errno.EBADF
