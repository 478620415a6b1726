"""A SYN that comes while a port closes is refused at once: by a RESET, or by ICMP as by any closed port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

import utpsocket
from tests.requirements import replaces
from utpsocket.engine import commands, engine
from utpsocket.engine.ports.endpoint import Endpoint
from utpsocket.engine.ports.listener import Listener
from utpsocket.protocol.packet import PacketType, decode, encode

WILDCARDS = [(socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET, "0.0.0.0", "127.0.0.1")]
WILDCARDS += [(socket.AF_INET6, "::", "::1")] if socket.has_ipv6 else []
ROUNDS = 10


@contextmanager
def engine_held() -> Iterator[None]:
    """The engine's thread reads nothing meanwhile."""
    is_held, goes_on = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        is_held.set()
        goes_on.wait(60)

    engine().post(hold)
    assert is_held.wait(60)
    try:
        yield
    finally:
        goes_on.set()


def send_syn(peer: socket.socket, connection_id: int) -> None:
    syn = encode(
        PacketType.SYN, connection_id, timestamp_us=1, difference_us=0, window_bytes=1 << 20, seq=1_000, ack=2_000
    )
    peer.send(syn)


def prove(peer: socket.socket, connection_id: int) -> None:
    """Answer the answer to a SYN: the connection is made, and the engine knows it."""
    answer = decode(memoryview(peer.recv(2_000)))
    assert answer is not None and answer.type == PacketType.STATE
    peer.send(
        encode(
            PacketType.STATE,
            connection_id + 1,
            timestamp_us=1,
            difference_us=0,
            window_bytes=1 << 20,
            seq=1_001,
            ack=answer.seq16 - 1 & 0xFFFF,
        )
    )
    for _ in range(2):
        engine().call(lambda _: None)  # a turn, at the end of which it has been read


def is_refused(peer: socket.socket, connection_id: int) -> bool:
    """Whether the peer gets a refusal, in either way."""
    while True:
        try:
            packet = decode(memoryview(peer.recv(2_000)))
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
        assert packet is not None
        if packet.type == PacketType.RESET and packet.connection_id == connection_id:
            return True


def listening(family: int, host: str, *, shared: bool = False) -> tuple[utpsocket.socket, int]:
    listener = utpsocket.socket(family, socket.SOCK_STREAM)
    listener.setblocking(False)  # close() waits for nothing
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
    listener.bind((host, 0))
    listener.listen(5)
    port: int = listener.getsockname()[1]
    return listener, port


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("family", "host", "peer_host"), WILDCARDS)
def test_an_unread_syn_when_its_listener_closes(family: int, host: str, peer_host: str, shared: bool) -> None:
    listener, port = listening(family, host, shared=shared)
    with listener, socket.socket(family, socket.SOCK_DGRAM) as peer:
        peer.settimeout(60)
        peer.connect((peer_host, port))
        with engine_held():
            send_syn(peer, 7)
            listener.close()
        assert is_refused(peer, 7)


def test_an_unread_syn_when_the_listener_of_a_shared_port_closes() -> None:
    """Another process has the port, too: it serves whoever asks again, so there is no refusal."""
    listener, port = listening(socket.AF_INET, "127.0.0.1", shared=True)
    with ExitStack() as sockets:
        other = sockets.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        other.setblocking(False)
        peers = {}
        with engine_held():
            for _ in range(64):  # the kernel spreads them
                peer = sockets.enter_context(socket.socket(type=socket.SOCK_DGRAM))
                peer.setblocking(False)
                peer.connect(("127.0.0.1", port))
                peers[peer.getsockname()] = peer
                send_syn(peer, 7)
            listener.close()
        try:
            while True:
                peers.pop(other.recvfrom(2_000)[1])
        except BlockingIOError:
            pass
        engine().call(commands.barrier)
        assert peers
        for peer in peers.values():
            with pytest.raises(BlockingIOError):
                peer.recv(2_000)


@pytest.mark.parametrize(("family", "host", "peer_host"), WILDCARDS)
def test_an_unread_syn_when_the_engine_closes_the_port(family: int, host: str, peer_host: str) -> None:
    """Somebody has connected and nobody accepted, so that it is the engine who closes the port."""
    listener, port = listening(family, host)
    with listener, socket.socket(family, socket.SOCK_DGRAM) as first, socket.socket(family, socket.SOCK_DGRAM) as peer:
        first.settimeout(60)
        first.connect((peer_host, port))
        send_syn(first, 5)
        prove(first, 5)  # or else, after some repetitions, so much has been said to it that no RESET may follow
        peer.settimeout(60)
        peer.connect((peer_host, port))
        with engine_held():
            listener.close()
            send_syn(peer, 7)
        assert is_refused(peer, 7)
        assert is_refused(first, 5)


def refused_where_the_listener_closes(has_begun: threading.Event, is_closed: threading.Event) -> None:
    """While the engine has begun with a SYN and waits for `is_closed`."""
    listener, port = listening(socket.AF_INET, "127.0.0.1")
    with listener, socket.socket(type=socket.SOCK_DGRAM) as peer:
        peer.settimeout(60)
        peer.connect(("127.0.0.1", port))
        send_syn(peer, 7)
        assert has_begun.wait(60)
        listener.close()
        is_closed.set()
        assert is_refused(peer, 7)


@replaces("Endpoint._accept_syn()")
def test_a_syn_that_is_just_becoming_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read, and not known as a connection yet: the interpreter may give its lock to another thread in between."""
    admit = Endpoint._accept_syn
    is_read, is_closed = threading.Event(), threading.Event()

    def admit_late(endpoint: Endpoint, *arguments: Any, **named: Any) -> Any:
        is_read.set()
        is_closed.wait(60)
        return admit(endpoint, *arguments, **named)

    monkeypatch.setattr(Endpoint, "_accept_syn", admit_late)
    refused_where_the_listener_closes(is_read, is_closed)


@replaces("Listener.is_full")
def test_a_syn_whose_listener_closes_while_is_full_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that is closed counts as full."""
    is_full = vars(Listener)["is_full"].fget
    assert is_full is not None
    is_asked, is_closed = threading.Event(), threading.Event()

    def is_full_later(listener: Listener) -> bool:
        is_asked.set()
        is_closed.wait(60)
        return bool(is_full(listener))

    monkeypatch.setattr(Listener, "is_full", property(is_full_later))
    refused_where_the_listener_closes(is_asked, is_closed)


def test_a_new_client_when_the_one_before_was_not_accepted() -> None:
    """As asyncio's tests do: not a second later, when the SYN is repeated, unless the machine is so busy."""
    late = 0
    for _ in range(ROUNDS):
        listener, port = listening(socket.AF_INET, "0.0.0.0")
        with listener, utpsocket.socket() as first, utpsocket.socket() as second:
            first.connect(("127.0.0.1", port))
            first.send(b"xxx")
            first.close()
            listener.close()
            began_at = time.monotonic()
            with pytest.raises(ConnectionRefusedError):
                second.connect(("127.0.0.1", port))
            late += time.monotonic() - began_at > 0.9
    assert late <= ROUNDS // 2
