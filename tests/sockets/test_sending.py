"""send and its relatives, sendfile, and whole streams compared byte by byte."""

from __future__ import annotations

import array
import errno
import hashlib
import io
import os
import random
import select
import signal
import socket
import tempfile
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .network import PATIENCE_S, Net, eventually, fill_for_good, raises_errno, receive_all, receive_exactly


def test_send_returns_the_count(net: Net) -> None:
    client, server = net.pair()
    assert client.send(b"abc") == 3
    assert client.sendall(b"def") is None
    assert receive_exactly(server, 6) == b"abcdef"


@pytest.mark.parametrize(
    "data",
    [
        b"abcd",
        bytearray(b"abcd"),
        memoryview(b"abcd"),
        memoryview(b"aXbXcXdX")[::2].tobytes(),
        array.array("B", b"abcd"),
    ],
    ids=["bytes", "bytearray", "view", "strided", "array"],
)
@pytest.mark.parametrize("call", ["send", "sendall"])
def test_any_buffer(net: Net, call: str, data: Any) -> None:
    client, server = net.pair()
    getattr(client, call)(data)
    assert receive_exactly(server, 4) == b"abcd"


def test_wide_items_count_in_bytes(net: Net) -> None:
    client, server = net.pair()
    assert client.send(array.array("I", [1, 2])) == 8
    assert receive_exactly(server, 8) == array.array("I", [1, 2]).tobytes()


def test_empty_sends_change_nothing(net: Net) -> None:
    client, server = net.pair()
    assert client.send(b"") == 0
    assert client.sendall(b"") is None
    assert client.sendmsg([]) == 0
    assert client.sendmsg([b"", b""]) == 0
    assert os.write(client.fileno(), b"") == 0
    server.setblocking(False)
    with raises_errno(errno.EAGAIN):
        server.recv(10)
    server.setblocking(True)
    client.sendall(b"x")
    assert server.recv(10) == b"x"


def test_sendmsg_gathers(net: Net) -> None:
    client, server = net.pair()
    assert client.sendmsg([b"ab", bytearray(b"cd"), memoryview(b"ef"), b""]) == 6
    assert client.sendmsg(part for part in (b"g", b"h")) == 2
    assert client.sendmsg([b"ij"], [], 0, None) == 2
    assert receive_exactly(server, 10) == b"abcdefghij"


def test_sendto_ignores_the_address(net: Net) -> None:
    client, server = net.pair()
    assert client.sendto(b"abc", ("127.0.0.1", 9)) == 3
    assert client.sendto(b"def", 0, server.getsockname()) == 3
    assert receive_exactly(server, 6) == b"abcdef"


def test_send_flags(net: Net) -> None:
    client, server = net.pair()
    assert client.send(b"a", socket.MSG_NOSIGNAL) == 1
    assert client.send(b"b", socket.MSG_DONTWAIT) == 1
    assert client.send(b"c", socket.MSG_MORE) == 1
    client.sendall(b"d", socket.MSG_NOSIGNAL)
    assert receive_exactly(server, 4) == b"abcd"


def test_os_write_and_writev(net: Net) -> None:
    client, server = net.pair()
    assert os.write(client.fileno(), b"abc") == 3
    assert os.writev(client.fileno(), [b"d", b"ef"]) == 3
    assert receive_exactly(server, 6) == b"abcdef"


def test_one_byte_at_a_time(net: Net) -> None:
    client, server = net.pair()
    payload = random.Random(1).randbytes(2000)
    reader = net.spawn(receive_exactly, server, len(payload))
    for position in range(len(payload)):
        client.sendall(payload[position : position + 1])
    assert reader.result() == payload


def test_ping_pong(net: Net) -> None:
    client, server = net.pair()

    def echo() -> None:
        while data := server.recv(100):
            server.sendall(data)

    echoing = net.spawn(echo)
    for number in range(300):
        client.sendall(b"%d" % number)
        assert client.recv(100) == b"%d" % number
    client.shutdown(socket.SHUT_WR)
    echoing.result()


def stream(seed: int, size: int) -> tuple[bytes, str]:
    data = random.Random(seed).randbytes(size)
    return data, hashlib.sha256(data).hexdigest()


def test_large_transfers_both_ways_at_once(net: Net) -> None:
    client, server = net.pair()
    size = 6 << 20
    (up, up_hash), (down, down_hash) = stream(2, size), stream(3, size)

    def read(sock: Any) -> str:
        digest = hashlib.sha256()
        while data := sock.recv(100_000):
            digest.update(data)
        return digest.hexdigest()

    def write(sock: Any, data: bytes) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    tasks = [
        net.spawn(write, client, up),
        net.spawn(write, server, down),
        net.spawn(read, client),
        net.spawn(read, server),
    ]
    results = [task.result() for task in tasks]
    assert results[2:] == [down_hash, up_hash]


def test_many_connections_at_once(net: Net) -> None:
    pairs = [net.pair() for _ in range(12)]

    def transfer(index: int) -> bool:
        client, server = pairs[index]
        data, _ = stream(100 + index, 200_000)
        reader = net.spawn(receive_all, server)
        client.sendall(data)
        client.close()
        return reader.result() == data

    assert all(task.result() for task in [net.spawn(transfer, index) for index in range(len(pairs))])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sends=st.lists(st.integers(0, 9000), min_size=1, max_size=30),
    reads=st.lists(st.integers(1, 9000), min_size=1, max_size=8),
)
def test_any_cut_of_sends_and_reads_gives_the_same_stream(net: Net, sends: list[int], reads: list[int]) -> None:
    client, server = net.pair()
    with client, server:
        payload, _ = stream(sum(sends), sum(sends))
        position = 0
        for size in sends:
            client.sendall(payload[position : position + size])
            position += size
        client.shutdown(socket.SHUT_WR)
        received, turn = bytearray(), 0
        while data := server.recv(reads[turn % len(reads)]):
            received += data
            turn += 1
        assert received == payload


# -- files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def content() -> bytes:
    return stream(4, 700_000)[0]


@pytest.mark.parametrize("timeout", [None, PATIENCE_S], ids=["blocking", "timeout"])
def test_sendfile(net: Net, content: bytes, timeout: float | None) -> None:
    client, server = net.pair()
    client.settimeout(timeout)
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        reader = net.spawn(receive_all, server)
        assert client.sendfile(file) == len(content)
        assert file.tell() == len(content)
        client.close()
        assert reader.result() == content


def test_sendfile_part(net: Net, content: bytes) -> None:
    client, server = net.pair()
    with tempfile.TemporaryFile() as file:
        file.write(content)
        assert client.sendfile(file, offset=1000, count=5000) == 5000
        assert file.tell() == 6000
    assert receive_exactly(server, 5000) == content[1000:6000]


def test_sendfile_of_something_that_has_no_fd(net: Net, content: bytes) -> None:
    client, server = net.pair()
    reader = net.spawn(receive_all, server)
    assert client.sendfile(io.BytesIO(content)) == len(content)
    client.close()
    assert reader.result() == content


def test_sendfile_empty_and_nonblocking(net: Net) -> None:
    client, _ = net.pair()
    with tempfile.TemporaryFile() as file:
        assert client.sendfile(file) == 0
        file.write(b"something")
        file.flush()
        client.setblocking(False)
        with pytest.raises(ValueError, match="non-blocking sockets are not supported"):
            client.sendfile(file)


def test_os_sendfile(net: Net, content: bytes) -> None:
    client, server = net.pair()
    reader = net.spawn(receive_all, server)
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        sent = 0
        while sent < len(content):
            sent += os.sendfile(client.fileno(), file.fileno(), sent, len(content) - sent)
    client.close()
    assert reader.result() == content


def test_splice_from_a_pipe(net: Net) -> None:
    if not hasattr(os, "splice"):
        pytest.skip("needs os.splice: Python 3.10 and Linux")
    client, server = net.pair()
    reading, writing = os.pipe()
    try:
        os.write(writing, b"through a pipe")
        assert os.splice(reading, client.fileno(), 100) == 14
    finally:
        os.close(reading)
        os.close(writing)
    assert receive_exactly(server, 14) == b"through a pipe"


def test_two_threads_write_whole_messages(net: Net) -> None:
    """sendall of small messages from several threads: all bytes arrive, each message in one piece."""
    client, server = net.pair()
    writers = [
        net.spawn(lambda letter=letter: [client.sendall(letter * 100) for _ in range(50)]) for letter in (b"a", b"b")
    ]
    received = receive_exactly(server, 10_000)
    for writer in writers:
        writer.result()
    assert received.count(b"a") == received.count(b"b") == 5000
    assert {received[start : start + 100] for start in range(0, 10_000, 100)} == {b"a" * 100, b"b" * 100}


def test_writes_after_the_peer_reset_do_not_kill_the_process(net: Net) -> None:
    client, server = net.pair()
    net.reset(server)

    def write() -> bool:
        try:
            os.write(client.fileno(), b"x")
        except OSError as error:
            return error.errno == errno.EPIPE
        return False

    assert eventually(write, True)


def test_what_listens_after_a_refused_attempt_sends_as_any_listener(net: Net) -> None:
    sock = net.fresh()
    with raises_errno(errno.ECONNREFUSED):
        sock.connect(net.refused_address())
    sock.listen()
    with raises_errno(errno.EPIPE):
        sock.send(b"x")
    sock.settimeout(0.01)
    for send in (sock.send, sock.sendall, lambda data: sock.sendmsg([data])):
        with pytest.raises(TimeoutError):  # poll() says never that it is writable
            send(b"x")


def test_a_peer_that_reads_nothing_holds_up_ten_mebibytes(net: Net) -> None:
    """CPython's own tests of sendfile() take them for more than all buffers on the way."""
    client, _server = net.pair()
    client.settimeout(1)
    with pytest.raises(TimeoutError):
        client.sendall(bytes(10 << 20))


# -- what a silent reader costs -------------------------------------------------------------------------------


def held_bytes(
    net: Net, send_buffer: int, receive_buffer: int, *, read_before: int = 0, piece_bytes: int = 65_536
) -> int:
    """What send() takes in all while the peer, having read so much, reads nothing."""
    with net.fresh() as listener, net.fresh() as client:
        if receive_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if send_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        with net.accept(listener) as server:
            if read_before:
                reading = net.spawn(receive_exactly, server, read_before)
                client.sendall(bytes(read_before))
                reading.result()
            client.setblocking(False)
            held = fill_for_good(client, piece_bytes)
            client.settimeout(PATIENCE_S)
            reading = net.spawn(receive_all, server)
            client.shutdown(socket.SHUT_WR)
            assert len(reading.result()) == held
    return held


BUFFERS = [(0, 0), (65_536, 0), (65_536, 65_536), (0, 65_536), (4_096, 4_096), (0, 4_096), (4_096, 0)]
BUFFERS += [(8_192, 8_192), (16_384, 16_384), (1 << 20, 1 << 20)]


@pytest.mark.parametrize(("send_buffer", "receive_buffer"), BUFFERS)
@pytest.mark.parametrize("net", ["utp"], indirect=True)
def test_a_program_that_does_not_read_costs_about_as_much_as_over_tcp(
    net: Net, send_buffer: int, receive_buffer: int
) -> None:
    check_what_is_held(net, send_buffer, receive_buffer)


@pytest.mark.parametrize("piece_bytes", [1_024, 2_048, 3_000, 4_096, 5_000])
@pytest.mark.parametrize("net", ["utp"], indirect=True)
def test_a_program_that_does_not_read_pieces(net: Net, piece_bytes: int) -> None:
    """What of them fits into small buffers is more or less; TCP takes one that has begun."""
    check_what_is_held(net, 4_096, 4_096, piece_bytes=piece_bytes)


def check_what_is_held(net: Net, send_buffer: int, receive_buffer: int, *, piece_bytes: int = 65_536) -> None:
    reference = Net("tcp")
    try:
        over_tcp = held_bytes(reference, send_buffer, receive_buffer, piece_bytes=piece_bytes)
    finally:
        reference.close()
    assert held_bytes(net, send_buffer, receive_buffer, piece_bytes=piece_bytes) <= 1.5 * over_tcp


@pytest.mark.parametrize("net", ["utp"], indirect=True)
def test_the_window_opens_as_the_program_reads(net: Net) -> None:
    """Who has read much may be sent much: a path of long round trips needs it. TCP's opens as well, to anything between
    a quarter and five times more.
    """
    assert held_bytes(net, 0, 0, read_before=16 << 20) >= 5 * held_bytes(net, 0, 0) // 4


def test_a_broken_pipe_comes_with_sigpipe_and_nothing_else_does(net: Net) -> None:
    """Python ignores SIGPIPE; programs for the shell restore its default, which ends the process."""
    signals: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, _: signals.append(number))
    try:
        client, server = net.pair()
        net.reset(server)
        assert eventually(lambda: bool(polled(client) & select.POLLERR), True)
        with raises_errno(errno.ECONNRESET):
            client.send(b"x")
        assert not signals
        sends: list[Callable[[], object]] = [
            lambda: client.send(b"x"),
            lambda: client.sendall(b"x"),
            lambda: client.sendmsg([b"x"]),
            lambda: client.sendto(b"x", ("127.0.0.1", 9)),
            lambda: net.fresh().send(b"x"),
        ]
        for send in sends:
            with raises_errno(errno.EPIPE):
                send()
            assert signals.pop() == signal.SIGPIPE
            assert not signals
        with raises_errno(errno.EPIPE):
            client.send(b"x", socket.MSG_NOSIGNAL)
        client, server = net.pair()
        client.shutdown(socket.SHUT_WR)
        with raises_errno(errno.EPIPE):
            client.send(b"x", socket.MSG_NOSIGNAL)
        assert not signals
        with raises_errno(errno.EPIPE):
            client.send(b"x")
        assert signals == [signal.SIGPIPE]
    finally:
        signal.signal(signal.SIGPIPE, before)


def polled(sock: Any) -> int:
    poller = select.poll()
    poller.register(sock)
    return sum(mask for _, mask in poller.poll(0))
