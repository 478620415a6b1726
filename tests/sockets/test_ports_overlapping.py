"""A port at all addresses of the machine beside one at a single one: when over TCP both may be, and who gets what."""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import Any

import pytest

import utpsocket

from ..requirements import requires_ipv6
from .network import PATIENCE_S, Net, loopback, quiet_port, raises_errno, receive_exactly

BULK = bytes(range(256)) * 2_048
PAIRS = [
    pytest.param(socket.AF_INET, "127.0.0.1", "0.0.0.0", id="address-then-all"),
    pytest.param(socket.AF_INET, "0.0.0.0", "127.0.0.1", id="all-then-address"),
    pytest.param(socket.AF_INET6, "::1", "::", id="address-then-all-v6", marks=requires_ipv6),
    pytest.param(socket.AF_INET6, "::", "::1", id="all-then-address-v6", marks=requires_ipv6),
]


def bound(net: Net, family: int, host: str, port: int, *, reuse: bool = True) -> Any:
    sock = net.fresh(family)
    if reuse:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


def listening(net: Net, family: int, host: str, port: int = 0, *, reuse: bool = True) -> Any:
    sock = bound(net, family, host, port or quiet_port(), reuse=reuse)
    sock.listen()
    return sock


def pair(net: Net, listener: Any, host: str) -> tuple[Any, Any]:
    client = net.fresh(listener.family, timeout=PATIENCE_S)
    client.connect((host, listener.getsockname()[1]))
    conn = net.accept(listener)
    conn.settimeout(PATIENCE_S)
    return client, conn


def talk(one: Any, other: Any) -> None:
    for sender, receiver in [(one, other), (other, one)]:
        sender.sendall(b"hello")
        assert receive_exactly(receiver, 5) == b"hello"


def send_bulk(net: Net, one: Any, other: Any) -> None:
    sending = net.spawn(one.sendall, BULK)
    assert receive_exactly(other, len(BULK)) == BULK
    sending.result()


@pytest.mark.parametrize(("family", "first", "second"), PAIRS)
def test_a_server_comes_back_at_another_address_while_its_connections_live(
    net: Net, family: int, first: str, second: str
) -> None:
    host = loopback(family)
    old = listening(net, family, first)
    port = old.getsockname()[1]
    old_pairs = [pair(net, old, host) for _ in range(3)]
    old.close()
    new = listening(net, family, second, port)
    new_pairs = [pair(net, new, host) for _ in range(3)]
    for client, conn in old_pairs + new_pairs:
        assert conn.getsockname() == client.getpeername()
        assert conn.getsockname()[:2] == (host, port)
        talk(client, conn)
        send_bulk(net, client, conn)
        send_bulk(net, conn, client)
    for client, conn in old_pairs:
        client.close()
        assert conn.recv(1) == b""
        conn.close()
    talk(*pair(net, new, host))
    for client, conn in new_pairs:
        talk(client, conn)
        client.shutdown(socket.SHUT_WR)
        assert conn.recv(1) == b""


@pytest.mark.parametrize(("family", "first", "second"), PAIRS)
def test_a_server_comes_back_at_another_address_while_its_connections_end(
    net: Net, family: int, first: str, second: str
) -> None:
    host = loopback(family)
    where = [first, second]
    listener = listening(net, family, first)
    port = listener.getsockname()[1]
    for turn in range(1, 7):
        client, conn = pair(net, listener, host)
        talk(client, conn)
        for sock in (conn, client, listener):
            sock.close()
        listener = listening(net, family, where[turn % 2], port)


@pytest.mark.parametrize(("family", "first", "second"), PAIRS)
def test_without_reuseaddr_living_connections_are_in_the_way(net: Net, family: int, first: str, second: str) -> None:
    old = listening(net, family, first, reuse=False)
    client, conn = pair(net, old, loopback(family))
    old.close()
    for reuse in (False, True):
        with raises_errno(errno.EADDRINUSE):
            bound(net, family, second, conn.getsockname()[1], reuse=reuse)
    talk(client, conn)


@pytest.mark.parametrize(("family", "first", "second"), PAIRS)
def test_a_listener_is_in_the_way_with_reuseaddr_too(net: Net, family: int, first: str, second: str) -> None:
    old = listening(net, family, first)
    port = old.getsockname()[1]
    client, conn = pair(net, old, loopback(family))
    with raises_errno(errno.EADDRINUSE):
        bound(net, family, second, port)
    old.close()
    new = listening(net, family, second, port)
    with raises_errno(errno.EADDRINUSE):
        bound(net, family, first, port)
    new.close()
    talk(*pair(net, listening(net, family, first, port), loopback(family)))
    talk(client, conn)


@pytest.mark.parametrize(("family", "first", "second"), PAIRS)
def test_sockets_that_do_not_listen_share_with_reuseaddr(net: Net, family: int, first: str, second: str) -> None:
    """And then one of them may listen."""
    host = loopback(family)
    port = quiet_port()
    one, other = bound(net, family, first, port), bound(net, family, second, port)
    bound(net, family, second, port).close()
    one.listen()
    with raises_errno(errno.EADDRINUSE):
        other.listen()
    with raises_errno(errno.EADDRINUSE):
        bound(net, family, second, port)
    client, conn = pair(net, one, host)
    one.close()
    other.listen()
    other_client, other_conn = pair(net, other, host)
    for sock in (conn, other_conn):
        assert sock.getsockname()[:2] == (host, port)
    talk(client, conn)
    talk(other_client, other_conn)


@pytest.mark.parametrize(("family", "first", "second"), PAIRS)
def test_sockets_that_share_with_reuseaddr_connect(net: Net, family: int, first: str, second: str) -> None:
    server = net.listener(family)
    address = server.getsockname()
    port = quiet_port()
    one, other = bound(net, family, first, port), bound(net, family, second, port)
    one.connect(address)
    conn = net.accept(server)
    with raises_errno(errno.EADDRINUSE, errno.EADDRNOTAVAIL) if net.name == "tcp" else contextlib.nullcontext():
        other.connect(address)  # over TCP the same two addresses are one connection
    talk(one, conn)
    assert conn.getpeername()[:2] == (loopback(family), port)


@pytest.mark.parametrize("sets", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize(("family", "first", "second"), PAIRS)
def test_both_must_set_reuseaddr(net: Net, sets: tuple[bool, bool], family: int, first: str, second: str) -> None:
    port = quiet_port()
    bound(net, family, first, port, reuse=sets[0])
    with raises_errno(errno.EADDRINUSE):
        bound(net, family, second, port, reuse=sets[1])


def test_only_a_listeners_own_address_is_served(net: Net) -> None:
    old = listening(net, socket.AF_INET, "0.0.0.0")
    port = old.getsockname()[1]
    client, conn = pair(net, old, "127.0.0.1")
    old.close()
    new = listening(net, socket.AF_INET, "127.0.0.2", port)
    with raises_errno(errno.ECONNREFUSED):
        net.fresh().connect(("127.0.0.1", port))
    talk(*pair(net, new, "127.0.0.2"))
    talk(client, conn)


def test_a_peers_reset_comes_through(net: Net) -> None:
    old = listening(net, socket.AF_INET, "127.0.0.1")
    port = old.getsockname()[1]
    client, conn = pair(net, old, "127.0.0.1")
    old.close()
    new = listening(net, socket.AF_INET, "0.0.0.0", port)
    other_client, other_conn = pair(net, new, "127.0.0.1")
    for one, other in [(other_client, other_conn), (client, conn)]:
        net.reset(one)
        with raises_errno(errno.ECONNRESET):
            other.recv(1)


def test_strangers_cannot_take_what_comes_to_either() -> None:
    with utpsocket.socket() as old, utpsocket.socket() as new, utpsocket.socket() as client:
        for sock in (old, new):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = quiet_port()
        old.bind(("127.0.0.1", port))
        old.listen()
        client.connect(("127.0.0.1", port))
        conn, _ = old.accept()
        old.close()
        new.bind(("0.0.0.0", port))
        for host in ("127.0.0.1", "127.0.0.3", "0.0.0.0"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with raises_errno(errno.EADDRINUSE):
                    stranger.bind((host, port))
        conn.close()
