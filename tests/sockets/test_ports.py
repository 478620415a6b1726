"""Who may bind which port, and when it is free again."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import Any

import pytest

from utpsocket.engine import commands
from utpsocket.protocol import close_timers

from ..requirements import requires_ipv6
from .network import PATIENCE_S, Net, own_loopback, raises_errno, receive_exactly


def option(sock: Any, name: int, value: int = 1) -> Any:
    sock.setsockopt(socket.SOL_SOCKET, name, value)
    return sock


def test_bound_port_shows(net: Net) -> None:
    sock = net.fresh()
    assert sock.getsockname() == ("0.0.0.0", 0)
    sock.bind(("127.0.0.1", 0))
    host, port = sock.getsockname()
    assert host == "127.0.0.1"
    assert 0 < port < 65536


def test_kernel_chosen_ports_differ(net: Net) -> None:
    socks = [net.fresh() for _ in range(20)]
    for sock in socks:
        sock.bind(("127.0.0.1", 0))
    assert len({sock.getsockname() for sock in socks}) == 20


def test_same_port_twice(net: Net) -> None:
    first, second = net.fresh(), net.fresh()
    first.bind(("127.0.0.1", 0))
    with raises_errno(errno.EADDRINUSE):
        second.bind(first.getsockname())
    with pytest.raises(OSError, match=r"^\[Errno 98\] Address already in use$"):
        second.bind(first.getsockname())


def test_same_port_as_a_listener(net: Net) -> None:
    listener = net.listener()
    with raises_errno(errno.EADDRINUSE):
        net.fresh().bind(listener.getsockname())


def test_reuseaddr_does_not_help_against_a_listener(net: Net) -> None:
    listener = option(net.fresh(), socket.SO_REUSEADDR)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    second = option(net.fresh(), socket.SO_REUSEADDR)
    with raises_errno(errno.EADDRINUSE):
        second.bind(listener.getsockname())


def test_reuseaddr_on_both_lets_both_bind_but_one_listen(net: Net) -> None:
    first, second = (option(net.fresh(), socket.SO_REUSEADDR) for _ in range(2))
    first.bind(("127.0.0.1", 0))
    second.bind(first.getsockname())
    first.listen()
    with raises_errno(errno.EADDRINUSE):
        second.listen()


def test_reuseaddr_on_one_only(net: Net) -> None:
    first, second = net.fresh(), option(net.fresh(), socket.SO_REUSEADDR)
    first.bind(("127.0.0.1", 0))
    with raises_errno(errno.EADDRINUSE):
        second.bind(first.getsockname())


def test_any_address_collides_with_each_address(net: Net) -> None:
    listener = net.listener()
    with raises_errno(errno.EADDRINUSE):
        net.fresh().bind(("0.0.0.0", listener.getsockname()[1]))


def test_two_addresses_of_this_machine_share_a_port_number(net: Net) -> None:
    first = net.listener()
    second = net.fresh()
    second.bind((own_loopback(), first.getsockname()[1]))
    second.listen()
    client = net.fresh()
    client.connect(second.getsockname())
    assert net.accept(second).getpeername() == client.getsockname()


def test_reuseport_shares_a_listening_port(net: Net) -> None:
    listeners = [option(net.fresh(), socket.SO_REUSEPORT) for _ in range(2)]
    listeners[0].bind(("127.0.0.1", 0))
    listeners[1].bind(listeners[0].getsockname())
    for listener in listeners:
        listener.listen()
        listener.setblocking(False)
    clients = [net.fresh() for _ in range(10)]
    for client in clients:
        client.connect(listeners[0].getsockname())
    accepted: set[Any] = set()
    import select

    while len(accepted) < len(clients):
        ready = select.select(listeners, [], [], PATIENCE_S)[0]
        assert ready, f"{len(accepted)} of {len(clients)} accepted"
        accepted |= {net.accept(listener).getpeername() for listener in ready}
    assert accepted == {client.getsockname() for client in clients}


def test_reuseport_needs_both(net: Net) -> None:
    first, second = net.fresh(), option(net.fresh(), socket.SO_REUSEPORT)
    first.bind(("127.0.0.1", 0))
    with raises_errno(errno.EADDRINUSE):
        second.bind(first.getsockname())


def test_port_is_free_as_soon_as_a_bound_socket_closes(net: Net) -> None:
    first = net.fresh()
    first.bind((own_loopback(), 0))
    address = first.getsockname()
    first.close()
    net.fresh().bind(address)


def test_port_is_free_as_soon_as_a_listener_closes(net: Net) -> None:
    address = None
    for _ in range(20):
        listener = net.fresh()
        listener.bind(address or (own_loopback(), 0))
        listener.listen()
        address = listener.getsockname()
        listener.close()


def test_a_detached_listener_that_was_closed_refuses_at_once(net: Net) -> None:
    listener = net.listener(host=own_loopback())
    address = listener.getsockname()
    fd = listener.detach()
    with net.module.socket(fileno=os.dup(fd)) as again:
        client = net.fresh(timeout=PATIENCE_S)
        client.connect(address)
        net.accept(again)
    os.close(fd)
    assert net.fresh().connect_ex(address) == errno.ECONNREFUSED


def test_server_restarts_on_its_port_with_connections_still_open(net: Net) -> None:
    first = net.module.create_server((own_loopback(), 0))
    address = first.getsockname()
    client = net.fresh()
    client.connect(address)
    old = net.accept(first)
    first.close()
    second = net.own(net.module.create_server(address))
    newcomer = net.fresh()
    newcomer.connect(address)
    new = net.accept(second)
    client.sendall(b"old")
    newcomer.sendall(b"new")
    assert (receive_exactly(old, 3), receive_exactly(new, 3)) == (b"old", b"new")


def test_server_restarts_on_its_port_after_serving(net: Net) -> None:
    address = (own_loopback(), 0)
    for _ in range(5):
        with net.module.create_server(address) as listener:
            address = listener.getsockname()
            client = net.fresh()
            client.connect(address)
            server = net.accept(listener)
            server.close()
            assert client.recv(1) == b""
            client.close()


BINDS = """
import errno, sys, time
family, host, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
while True:
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        break
    except OSError as error:
        assert error.errno == errno.EADDRINUSE and time.monotonic() < float(sys.argv[4]), error
        time.sleep(0.01)
sock.listen()
"""


@pytest.mark.parametrize("first", ["the-server", "the-client", "at-once"])
@pytest.mark.parametrize(
    ("family", "host", "to"),
    [
        pytest.param(socket.AF_INET, "", "", id="v4"),
        pytest.param(socket.AF_INET, "0.0.0.0", "", id="all"),
        pytest.param(socket.AF_INET6, "::1", "::1", id="v6", marks=requires_ipv6),
        pytest.param(socket.AF_INET6, "::", "127.0.0.1", id="mapped", marks=requires_ipv6),
    ],
)
def test_another_process_gets_the_port_that_a_connection_has_been_at(
    net: Net, monkeypatch: pytest.MonkeyPatch, family: int, host: str, to: str, first: str
) -> None:
    """As programs do to find a free port for another one. TIME_WAIT is no obstacle to SO_REUSEADDR."""
    monkeypatch.setattr(close_timers, "TIME_WAIT_US", 3_600_000_000)
    monkeypatch.setattr(close_timers, "MAX_TIME_WAIT_US", 3_600_000_000)
    listener = option(net.fresh(family), socket.SO_REUSEADDR)
    listener.bind((host or own_loopback(), 0))
    listener.listen()
    client = net.fresh(socket.AF_INET6 if ":" in to else socket.AF_INET)
    client.connect((to or own_loopback(), listener.getsockname()[1]))
    ends = [net.accept(listener), client]
    if first == "the-client":
        ends.reverse()
    for closed, other in (ends, ends[::-1]):
        closed.close()
        if first != "at-once" and other.fileno() >= 0:
            assert other.recv(1) == b""
    host, port, *_ = listener.getsockname()
    listener.close()
    binder = net.python(BINDS, int(family), host, port, time.monotonic() + PATIENCE_S)
    assert binder.wait(2 * PATIENCE_S) == 0


def test_client_port_is_taken_while_it_is_connected(net: Net) -> None:
    client, _ = net.pair()
    with raises_errno(errno.EADDRINUSE):
        net.fresh().bind(client.getsockname())


def test_failed_bind_leaves_the_socket_usable(net: Net) -> None:
    taken = net.listener()
    sock = net.fresh()
    with raises_errno(errno.EADDRINUSE):
        sock.bind(taken.getsockname())
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    client = net.fresh()
    client.connect(sock.getsockname())
    assert net.accept(sock).getpeername() == client.getsockname()


def test_reuseaddr_lets_a_node_dial_from_the_port_it_listens_on_elsewhere(net: Net) -> None:
    """Two outgoing connections from one bound port to two peers."""
    targets = [net.listener(), net.listener()]
    first, second = (option(net.fresh(), socket.SO_REUSEADDR) for _ in range(2))
    first.bind(("127.0.0.1", 0))
    first.connect(targets[0].getsockname())
    second.bind(first.getsockname())
    second.connect(targets[1].getsockname())
    assert {net.accept(target).getpeername() for target in targets} == {first.getsockname()}


def test_reuseaddr_switched_off_again(net: Net) -> None:
    first, second = (option(option(net.fresh(), socket.SO_REUSEADDR), socket.SO_REUSEADDR, 0) for _ in range(2))
    first.bind(("127.0.0.1", 0))
    with raises_errno(errno.EADDRINUSE):
        second.bind(first.getsockname())


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_an_address_without_a_port_gets_one_by_connecting(net: Net, host: str) -> None:
    """IP_BIND_ADDRESS_NO_PORT, which trio and others set before they bind and connect."""
    target, client = net.listener(), net.fresh()
    client.setsockopt(socket.IPPROTO_IP, 24, 1)
    client.bind((host, 0))
    client.connect(target.getsockname())
    server = net.accept(target)
    assert server.getpeername() == client.getsockname()
    assert client.getsockname()[1]


def test_same_four_addresses_twice(net: Net) -> None:
    target = net.listener()
    first, second = (option(net.fresh(), socket.SO_REUSEADDR) for _ in range(2))
    first.bind(("127.0.0.1", 0))
    second.bind(first.getsockname())
    first.connect(target.getsockname())
    with raises_errno(errno.EADDRNOTAVAIL):
        second.connect(target.getsockname())


def test_what_is_closed_after_the_kernel_has_called_it_taken_is_free(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """bind() looks up the sockets that have the address: none has it any more."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((own_loopback(), 0))
        address = taken.getsockname()
        share_port = commands.share_port

        def closing_first(*arguments: Any, **named: Any) -> object:
            taken.close()
            return share_port(*arguments, **named)

        monkeypatch.setattr(commands, "share_port", closing_first)
        net.fresh().bind(address)
