"""Sockets of the patched class that the collector finds in a cycle: their finalizers meet them as they were.

Each test runs over TCP too, with the class as it was.
"""

from __future__ import annotations

import gc
import socket
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from utpsocket import monkey

from .network import PATIENCE_S, own_loopback

RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Owner:
    """Keeps a socket in a cycle, and does something with it at its end. To be made before the socket: the collector
    runs the finalizers in the order in which their objects were made.
    """

    def __init__(self, at_end: Callable[[socket.socket], object]) -> None:
        self.itself, self.at_end = self, at_end
        self.sock = self.peer = self.listener = None  # type: Any

    def connect(self) -> None:
        """Own a socket that is connected to another."""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.sock = socket.create_connection(self.listener.getsockname(), PATIENCE_S)
        self.peer, _ = self.listener.accept()
        self.peer.settimeout(PATIENCE_S)

    def __del__(self) -> None:
        self.at_end(self.sock)


@pytest.fixture(params=["tcp", "utp"])
def transport(request: pytest.FixtureRequest) -> Iterator[None]:
    gc.collect()
    if request.param == "tcp":
        yield
        return
    with monkey.patched():
        yield
        gc.collect()


def connected(at_end: Callable[[socket.socket], object], *options: Any) -> socket.socket:
    """Have the collector find a connected socket with these options, which a finalizer does this with.

    Returns the other end.
    """
    owner = Owner(at_end)
    owner.connect()
    if options:
        owner.sock.setsockopt(*options)
    peer: socket.socket = owner.peer
    owner.listener.close()
    del owner
    gc.collect()
    return peer


def known(sock: socket.socket) -> Any:
    """What a program may ask a socket."""
    return sock.family, sock.getsockname(), sock.getpeername(), repr(sock), sock.getsockopt(socket.SOL_SOCKET, 3)


@pytest.mark.usefixtures("transport")
def test_a_finalizer_meets_the_same_socket() -> None:
    found: list[Any] = []

    def say_goodbye(sock: socket.socket) -> None:
        found.append(known(sock))
        sock.sendall(b"goodbye")
        sock.shutdown(socket.SHUT_WR)
        sock.close()

    owner = Owner(say_goodbye)
    owner.connect()
    before, peer = known(owner.sock), owner.peer
    assert before[0] == socket.AF_INET
    owner.listener.close()
    del owner
    gc.collect()
    assert found == [before]
    with peer:
        assert peer.recv(100, socket.MSG_WAITALL) == b"goodbye"


@pytest.mark.usefixtures("transport")
def test_what_was_not_closed_is_warned_of_by_its_addresses() -> None:
    owner = Owner(lambda sock: None)
    owner.connect()
    expected = {f"unclosed {sock!r}" for sock in (owner.listener, owner.sock, owner.peer)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del owner
        gc.collect()
    assert expected <= {str(each.message) for each in caught}


@pytest.mark.usefixtures("transport")
def test_a_finalizer_that_closes_with_a_linger_of_zero_resets() -> None:
    def reset(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        sock.close()

    with connected(reset) as peer, pytest.raises(ConnectionResetError):
        peer.recv(1)


@pytest.mark.usefixtures("transport")
def test_what_was_not_closed_resets_with_a_linger_of_zero() -> None:
    with pytest.warns(ResourceWarning):
        peer = connected(lambda sock: None, socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    with peer, pytest.raises(ConnectionResetError):
        peer.recv(1)


@pytest.mark.usefixtures("transport")
def test_the_port_of_a_listener_is_free_afterwards() -> None:
    found: list[Any] = []

    def close(sock: socket.socket) -> None:
        found.append(sock.getsockname())
        sock.close()

    owner = Owner(close)
    owner.sock = socket.create_server((own_loopback(), 0))
    address = owner.sock.getsockname()
    del owner
    gc.collect()
    assert found == [address]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, PATIENCE_S)
    with socket.create_server(address) as again:
        assert again.getsockname() == address


@pytest.mark.usefixtures("transport")
def test_a_descriptor_that_a_finalizer_detaches_stays_open() -> None:
    """Of a socket object that a finalizer saves the C finalizer closes the descriptor a moment later."""
    saved: list[int] = []
    with connected(lambda sock: saved.append(sock.detach())) as peer, socket.socket(fileno=saved[0]) as sock:
        assert sock.family == socket.AF_INET
        assert sock.getpeername() == peer.getsockname()
        sock.sendall(b"alive")
        assert peer.recv(100) == b"alive"


def test_what_was_collected_is_not_kept() -> None:
    """Nor is it taken for a socket of another kind that has its id later."""
    with monkey.patched():
        from utpsocket.monkey import in_place

        def sizes() -> list[int]:
            gc.collect()
            tables: Any = (in_place._identities, in_place._at_ends, in_place._references, in_place._collected)
            return [len(table) for table in tables]

        before = sizes()
        for _ in range(20):
            owner = Owner(lambda sock: sock.close())
            owner.sock = socket.socket()
            del owner
            gc.collect()
        assert sizes() == before
        for sock in socket.socketpair():
            assert sock.family == socket.AF_UNIX
            sock.close()
    assert in_place._after_collection not in gc.callbacks
