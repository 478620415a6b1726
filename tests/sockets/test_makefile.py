"""makefile: every mode and buffering, timeouts inside, who keeps the connection open."""

from __future__ import annotations

import io
import socket

import pytest

from .network import PATIENCE_S, Net, receive_exactly


@pytest.mark.parametrize(
    ("mode", "options", "kind"),
    [
        ("r", {}, io.TextIOWrapper),
        ("w", {}, io.TextIOWrapper),
        ("rw", {}, io.TextIOWrapper),
        ("rb", {}, io.BufferedReader),
        ("wb", {}, io.BufferedWriter),
        ("rwb", {}, io.BufferedRWPair),
        ("rb", {"buffering": 0}, socket.SocketIO),
        ("wb", {"buffering": 0}, socket.SocketIO),
        ("rwb", {"buffering": 0}, socket.SocketIO),
        ("rb", {"buffering": 10}, io.BufferedReader),
    ],
)
def test_kind_of_file(net: Net, mode: str, options: dict[str, int], kind: type) -> None:
    client, _ = net.pair()
    with client.makefile(mode, **options) as file:
        found: type = type(file)
        assert found is kind
        assert file.readable() == ("r" in mode)
        assert file.writable() == ("w" in mode)
        assert not file.closed
    assert file.closed


def test_text_both_ways(net: Net) -> None:
    client, server = net.pair()
    with (
        client.makefile("rw", encoding="utf-8", newline="\n") as ours,
        server.makefile("rw", encoding="utf-8") as theirs,
    ):
        ours.write("größer\nsecond\n")
        ours.flush()
        assert [theirs.readline(), theirs.readline()] == ["größer\n", "second\n"]
        theirs.write("answer\n")
        theirs.flush()
        assert ours.readline() == "answer\n"


def test_reading_lines_to_the_end(net: Net) -> None:
    client, server = net.pair()
    server.sendall(b"one\ntwo\nlast")
    server.close()
    with client.makefile("rb") as file:
        assert file.readlines() == [b"one\n", b"two\n", b"last"]
        assert file.read() == b""


def test_read_of_a_size_waits_for_all_of_it(net: Net) -> None:
    client, server = net.pair()
    with client.makefile("rb") as file:
        reading = net.spawn(file.read, 6)
        server.sendall(b"abc")
        server.sendall(b"def")
        assert reading.result() == b"abcdef"
        server.sendall(b"xyz")
        assert file.peek()[:1] == b"x"
        assert file.read1(10) == b"xyz"


def test_unbuffered_read_gives_what_is_there(net: Net) -> None:
    client, server = net.pair()
    with client.makefile("rb", buffering=0) as file:
        server.sendall(b"abc")
        assert file.read(10) == b"abc"
        buffer = bytearray(5)
        server.sendall(b"de")
        assert file.readinto(buffer) == 2
        assert buffer[:2] == b"de"


def test_writes_are_kept_back_until_flush(net: Net) -> None:
    client, server = net.pair()
    file = client.makefile("wb")
    file.write(b"kept")
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.recv(10)
    file.flush()
    server.settimeout(PATIENCE_S)
    assert receive_exactly(server, 4) == b"kept"
    file.write(b" back")
    file.close()
    assert receive_exactly(server, 5) == b" back"


def test_unbuffered_write_goes_at_once(net: Net) -> None:
    client, server = net.pair()
    with client.makefile("wb", buffering=0) as file:
        assert file.write(b"now") == 3
        assert receive_exactly(server, 3) == b"now"


def test_file_keeps_the_connection_open(net: Net) -> None:
    client, server = net.pair()
    file = client.makefile("rwb", buffering=0)
    client.close()
    assert file.write(b"still open") == 10
    assert receive_exactly(server, 10) == b"still open"
    server.sendall(b"yes")
    assert file.read(3) == b"yes"
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.recv(1)
    file.close()
    server.settimeout(PATIENCE_S)
    assert server.recv(1) == b""


def test_socket_stays_open_when_the_file_closes(net: Net) -> None:
    client, server = net.pair()
    client.makefile("rb").close()
    client.sendall(b"x")
    assert server.recv(1) == b"x"


def test_name_fileno_mode(net: Net) -> None:
    client, _ = net.pair()
    with client.makefile("rb", buffering=0) as file:
        assert file.fileno() == file.name == client.fileno()
        assert file.mode == "rb"
        assert not file.seekable()
    assert file.name == -1
    with pytest.raises(ValueError, match="closed"):
        file.read()


def test_timeout_inside_a_file(net: Net) -> None:
    client, server = net.pair()
    client.settimeout(0.05)
    with client.makefile("rb") as file:
        with pytest.raises(TimeoutError):
            file.read(1)
        client.settimeout(PATIENCE_S)
        server.sendall(b"x")
        with pytest.raises(OSError, match="cannot read from timed out object"):
            file.read(1)


def test_nonblocking_file_gives_none(net: Net) -> None:
    client, _server = net.pair()
    client.setblocking(False)
    with client.makefile("rb", buffering=0) as file:
        assert file.read(1) is None
    with client.makefile("rb") as file:
        assert file.read(1) is None


def test_reset_inside_a_file(net: Net) -> None:
    client, server = net.pair()
    net.reset(server)
    with client.makefile("rb") as file, pytest.raises(ConnectionResetError):
        file.read(1)


def test_large_file_copy(net: Net) -> None:
    client, server = net.pair()
    payload = bytes(range(256)) * 8000

    def serve() -> None:
        with server, server.makefile("wb") as file:
            file.write(payload)

    task = net.spawn(serve)
    with client.makefile("rb") as file:
        assert file.read() == payload
    task.result()
