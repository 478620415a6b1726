"""recv and its relatives, with flags."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import struct
import termios
from typing import Any

import pytest

from .network import Net, eventually, poll_mask, raises_errno, readable, receive_all


def waiting(net: Net, data: bytes) -> Any:
    """A socket with all of `data` ready to be read, its peer still open."""
    client, server = net.pair()
    server.sendall(data)
    assert eventually(lambda: len(client.recv(len(data), socket.MSG_PEEK)), len(data)) == len(data)
    return client


def test_recv_takes_at_most_what_was_asked(net: Net) -> None:
    sock = waiting(net, b"abcdef")
    assert sock.recv(2) == b"ab"
    assert sock.recv(100) == b"cdef"


def test_recv_of_nothing(net: Net) -> None:
    sock = waiting(net, b"abc")
    assert sock.recv(0) == b""
    assert sock.recv(3) == b"abc"


def test_sends_are_joined_to_a_stream(net: Net) -> None:
    client, server = net.pair()
    for part in (b"one", b"two", b"three"):
        server.sendall(part)
    assert eventually(lambda: client.recv(100, socket.MSG_PEEK), b"onetwothree") == b"onetwothree"


def test_recv_into(net: Net) -> None:
    sock = waiting(net, b"abcdef")
    buffer = bytearray(b".........")
    assert sock.recv_into(buffer, 2) == 2
    assert sock.recv_into(memoryview(buffer)[5:]) == 4
    assert buffer == b"ab...cdef"


@pytest.mark.parametrize(
    "make", [lambda: array.array("I", [0, 0]), lambda: memoryview(bytearray(8))], ids=["array", "view"]
)
def test_recv_into_any_buffer(net: Net, make: Any) -> None:
    sock = waiting(net, struct.pack("II", 7, 9))
    buffer = make()
    assert sock.recv_into(buffer) == 8
    assert bytes(buffer) == struct.pack("II", 7, 9)


def test_recv_into_of_an_empty_buffer(net: Net) -> None:
    sock = waiting(net, b"abc")
    assert sock.recv_into(bytearray()) == 0
    assert sock.recv(3) == b"abc"


def test_recvfrom_gives_no_address(net: Net) -> None:
    sock = waiting(net, b"abcdef")
    assert sock.recvfrom(3) == (b"abc", None)
    buffer = bytearray(3)
    assert sock.recvfrom_into(buffer) == (3, None)
    assert buffer == b"def"


def test_recvmsg(net: Net) -> None:
    sock = waiting(net, b"abcdef")
    data, ancillary, flags, address = sock.recvmsg(4)
    assert (data, ancillary, flags, address) == (b"abcd", [], 0, None)
    assert sock.recvmsg(10, 1000)[:3] == (b"ef", [], 0)


def test_recvmsg_into(net: Net) -> None:
    sock = waiting(net, b"abcdefgh")
    parts = [bytearray(3), bytearray(1), bytearray(10)]
    size, ancillary, flags, address = sock.recvmsg_into(parts)
    assert (size, ancillary, flags, address) == (8, [], 0, None)
    assert parts[0] + parts[1] + parts[2][:4] == b"abcdefgh"


@pytest.mark.parametrize("call", ["recv", "recvfrom", "recvmsg"])
def test_end_of_file_is_empty_in_every_form(net: Net, call: str) -> None:
    client, server = net.pair()
    server.close()
    result = getattr(client, call)(10)
    assert (result if call == "recv" else result[0]) == b""
    if call != "recv":
        assert result[-1] is None
    assert client.recv_into(bytearray(3)) == 0
    assert client.recvmsg_into([bytearray(3)])[0] == 0


def test_peek_does_not_consume(net: Net) -> None:
    sock = waiting(net, b"abcdef")
    assert sock.recv(3, socket.MSG_PEEK) == b"abc"
    assert sock.recv(100, socket.MSG_PEEK) == b"abcdef"
    assert sock.recvfrom(2, socket.MSG_PEEK) == (b"ab", None)
    assert sock.recv(100) == b"abcdef"


def test_waitall_collects_what_comes_in_pieces(net: Net) -> None:
    client, server = net.pair()
    waiting = net.spawn(client.recv, 300, socket.MSG_WAITALL)
    for _ in range(3):
        server.sendall(bytes(100))
        eventually(waiting.done, True, 0.02)
    assert len(waiting.result()) == 300


def test_waitall_gives_the_rest_at_end_of_file(net: Net) -> None:
    client, server = net.pair()
    waiting = net.spawn(client.recv, 300, socket.MSG_WAITALL)
    server.sendall(b"short")
    server.close()
    assert waiting.result() == b"short"


def test_dontwait(net: Net) -> None:
    client, server = net.pair()
    with raises_errno(errno.EAGAIN):
        client.recv(1, socket.MSG_DONTWAIT)
    server.sendall(b"x")
    readable(client)
    assert client.recv(10, socket.MSG_DONTWAIT) == b"x"
    assert client.gettimeout() is None


def test_error_queue_is_empty(net: Net) -> None:
    """MSG_ERRQUEUE never waits, not even on a blocking socket."""
    client, _ = net.pair()
    with raises_errno(errno.EAGAIN):
        client.recvmsg(1, 100, socket.MSG_ERRQUEUE)
    with raises_errno(errno.EAGAIN):
        client.recvmsg_into([bytearray(1)], 100, socket.MSG_ERRQUEUE)


def test_os_read_and_readv(net: Net) -> None:
    sock = waiting(net, b"abcdef")
    assert os.read(sock.fileno(), 2) == b"ab"
    buffers = [bytearray(1), bytearray(10)]
    assert os.readv(sock.fileno(), buffers) == 4
    assert buffers[0] + buffers[1][:3] == b"cdef"


def test_fdopen_of_a_duplicate(net: Net) -> None:
    client, server = net.pair()
    with os.fdopen(os.dup(client.fileno()), "rb") as stream:
        server.sendall(b"line one\nline two\n")
        server.close()
        assert stream.read() == b"line one\nline two\n"


def test_bytes_waiting(net: Net) -> None:
    sock = waiting(net, b"abcdef")
    assert struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4)))[0] == 6


def test_urgent_data(net: Net) -> None:
    client, server = net.pair()
    assert client.send(b"!", socket.MSG_OOB) == 1
    assert eventually(lambda: _out_of_band(server), b"!") == b"!"


def _out_of_band(sock: Any) -> bytes:
    try:
        return sock.recv(1, socket.MSG_OOB)
    except OSError:
        return b""


def test_low_water_mark_is_kept_by_poll(net: Net) -> None:
    client, server = net.pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 5)
    server.sendall(b"abc")
    assert eventually(lambda: len(_peek(client)), 3) == 3
    assert not poll_mask(client) & 1
    server.sendall(b"de")
    assert eventually(lambda: bool(poll_mask(client) & 1), True)


def _peek(sock: Any) -> bytes:
    try:
        return sock.recv(100, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


def test_two_threads_read_each_byte_once(net: Net) -> None:
    client, server = net.pair()
    payload = os.urandom(1 << 18)
    readers = [net.spawn(receive_all, client) for _ in range(2)]
    server.sendall(payload)
    server.close()
    parts = [reader.result() for reader in readers]
    assert sum(map(len, parts)) == len(payload)
    assert sorted(parts[0] + parts[1]) == sorted(payload)
