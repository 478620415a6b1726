"""Connecting: blocking, with a timeout, non-blocking; refused and silent peers; twice; bound first."""

from __future__ import annotations

import errno
import select
import socket
import time
from typing import Any, cast

import pytest

from utpsocket.stats import engine_stats

from ..requirements import IPV6, localhost_families, requires_fds, requires_ipv6
from .network import (
    AT_ONCE_S,
    ERR,
    HUP,
    LONG_S,
    OUT,
    PATIENCE_S,
    Net,
    eventually_polls,
    outcome,
    own_loopback,
    poll_mask,
    raises_errno,
    readable,
)

FAMILIES = [socket.AF_INET, IPV6]


def so_error(sock: object) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("timeout", [None, PATIENCE_S], ids=["blocking", "timeout"])
def test_connect_send_and_receive(net: Net, family: int, timeout: float | None) -> None:
    listener = net.listener(family)
    client = net.fresh(family, timeout=timeout)
    assert client.connect(listener.getsockname()) is None
    server = net.accept(listener)
    assert client.getpeername() == listener.getsockname() == server.getsockname()
    assert server.getpeername() == client.getsockname()
    client.sendall(b"ping")
    assert server.recv(10) == b"ping"
    server.sendall(b"pong")
    assert client.recv(10) == b"pong"


def test_accept_returns_the_address_that_getpeername_gives(net: Net) -> None:
    listener = net.listener()
    client = net.fresh()
    client.connect(listener.getsockname())
    server, address = listener.accept()
    net.own(server)
    assert address == server.getpeername() == client.getsockname()


def test_connect_ex_gives_zero(net: Net) -> None:
    assert net.fresh().connect_ex(net.listener().getsockname()) == 0


def test_what_connect_made_is_there_to_be_accepted(net: Net) -> None:
    """An acceptor in the same process need not wait: Twisted's own tests, for one, do not."""
    listener = net.listener()
    listener.setblocking(False)
    for _ in range(30):
        client = net.fresh()
        client.connect(listener.getsockname())
        server, address = listener.accept()
        assert net.own(server).getpeername() == address == client.getsockname()


def test_an_accepted_socket_may_send(net: Net) -> None:
    """The other way round: when accept() returns, the connect that did not wait is complete."""
    listener = net.listener()
    for _ in range(50):
        client = net.fresh(timeout=0)
        assert client.connect_ex(listener.getsockname()) in (0, errno.EINPROGRESS)
        server = net.accept(listener)
        with client, server:
            assert client.send(b"at once") == 7
            assert server.recv(7) == b"at once"


def test_connections_are_accepted_in_the_order_they_were_made(net: Net) -> None:
    listener = net.listener()
    clients = [net.fresh() for _ in range(20)]
    for client in clients:
        client.connect(listener.getsockname())
    assert [net.accept(listener).getpeername() for _ in clients] == [client.getsockname() for client in clients]


def test_data_sent_before_accept_is_there(net: Net) -> None:
    listener = net.listener()
    client = net.fresh()
    client.connect(listener.getsockname())
    client.sendall(b"early")
    client.shutdown(socket.SHUT_WR)
    server = net.accept(listener)
    assert server.recv(10) == b"early"
    assert server.recv(10) == b""


def test_connection_closed_before_accept_is_still_accepted(net: Net) -> None:
    listener = net.listener()
    client = net.fresh()
    client.connect(listener.getsockname())
    address = client.getsockname()
    client.sendall(b"left already")
    client.close()
    server, peer = listener.accept()
    net.own(server)
    assert peer == address
    assert server.recv(100) == b"left already"
    assert server.recv(100) == b""


# -- non-blocking ---------------------------------------------------------------------------------------------


def test_nonblocking_connect_select_so_error(net: Net) -> None:
    listener = net.listener()
    client = net.fresh()
    client.setblocking(False)
    assert client.connect_ex(listener.getsockname()) == errno.EINPROGRESS
    assert select.select([], [client], [], PATIENCE_S)[1] == [client]
    assert so_error(client) == 0
    assert client.getpeername() == listener.getsockname()
    assert client.send(b"x") == 1
    assert net.accept(listener).recv(1) == b"x"


def test_nonblocking_connect_raises_einprogress(net: Net) -> None:
    client = net.fresh()
    client.setblocking(False)
    with raises_errno(errno.EINPROGRESS):
        client.connect(net.silent_address())


def test_connect_again_once_connected(net: Net) -> None:
    """Linux: the first connect after a non-blocking one reports success, the next raises EISCONN."""
    listener = net.listener()
    client = net.fresh()
    client.setblocking(False)
    client.connect_ex(listener.getsockname())
    assert select.select([], [client], [], PATIENCE_S)[1]
    assert [client.connect_ex(listener.getsockname()) for _ in range(3)] == [0, errno.EISCONN, errno.EISCONN]
    with raises_errno(errno.EISCONN):
        client.connect(listener.getsockname())
    assert client.send(b"x") == 1


def test_connect_again_after_a_blocking_connect(net: Net) -> None:
    listener = net.listener()
    client = net.fresh()
    client.connect(listener.getsockname())
    assert client.connect_ex(listener.getsockname()) == errno.EISCONN


def test_accepted_socket_is_connected(net: Net) -> None:
    _, server = net.pair()
    assert server.connect_ex(server.getpeername()) == errno.EISCONN


def test_connect_again_while_connecting(net: Net) -> None:
    address = net.silent_address()
    client = net.fresh()
    client.setblocking(False)
    assert [client.connect_ex(address) for _ in range(3)] == [errno.EINPROGRESS, errno.EALREADY, errno.EALREADY]
    with raises_errno(errno.EALREADY):
        client.connect(address)


def test_nonblocking_refused(net: Net) -> None:
    address = net.refused_address()
    client = net.fresh()
    client.setblocking(False)
    if client.connect_ex(address) == errno.EINPROGRESS:
        assert select.select([], [client], [], PATIENCE_S)[1]
        assert so_error(client) == errno.ECONNREFUSED


def test_connect_ex_returns_why_a_nonblocking_connect_failed(net: Net) -> None:
    address = net.refused_address()
    client = net.fresh()
    client.setblocking(False)
    assert client.connect_ex(address) == errno.EINPROGRESS
    assert select.select([], [client], [], PATIENCE_S)[1]
    assert client.connect_ex(address) == errno.ECONNREFUSED


def test_close_while_connecting(net: Net) -> None:
    client = net.fresh()
    client.setblocking(False)
    client.connect_ex(net.silent_address())
    client.close()
    assert client.fileno() == -1


def test_many_at_once(net: Net) -> None:
    listener = net.listener()
    clients = [net.fresh() for _ in range(20)]  # five fds each, of 256 on some machines
    for client in clients:
        client.setblocking(False)
        assert client.connect_ex(listener.getsockname()) in (0, errno.EINPROGRESS)
    servers = {}
    for _ in clients:
        server = net.accept(listener)
        servers[server.getpeername()] = server
    for client in clients:
        assert eventually_polls(client, OUT) == "OUT"
        assert so_error(client) == 0
    assert set(servers) == {client.getsockname() for client in clients}


# -- refused, silent ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, PATIENCE_S], ids=["blocking", "timeout"])
@pytest.mark.parametrize("family", FAMILIES)
def test_refused_at_once(net: Net, family: int, timeout: float | None) -> None:
    client = net.fresh(family, timeout=timeout)
    began = time.monotonic()
    with pytest.raises(ConnectionRefusedError, match=r"^\[Errno 111\] Connection refused$"):
        client.connect(net.refused_address(family))
    assert time.monotonic() - began < AT_ONCE_S  # a SYN is repeated for half a minute


def test_refused_connect_ex(net: Net) -> None:
    assert net.fresh().connect_ex(net.refused_address()) == errno.ECONNREFUSED


def test_refused_socket_may_try_again(net: Net) -> None:
    """POSIX leaves it open; on Linux the same socket connects once a socket listens there."""
    client = net.fresh()
    with pytest.raises(ConnectionRefusedError):
        client.connect(net.refused_address())
    listener = net.listener()
    client.connect(listener.getsockname())
    client.sendall(b"second try")
    assert net.accept(listener).recv(100) == b"second try"


def test_silent_peer_times_out(net: Net) -> None:
    address = net.silent_address()
    client = net.fresh(timeout=0.1)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="^timed out$"):
        client.connect(address)
    assert 0.09 <= time.monotonic() - began < AT_ONCE_S


def test_connect_ex_to_a_silent_peer(net: Net) -> None:
    assert net.fresh(timeout=0.1).connect_ex(net.silent_address()) == errno.EAGAIN


def test_after_a_timed_out_connect_the_attempt_goes_on(net: Net) -> None:
    address = net.silent_address()
    client = net.fresh(timeout=0.05)
    with pytest.raises(TimeoutError):
        client.connect(address)
    assert client.connect_ex(address) in (errno.EALREADY, errno.EAGAIN)


@pytest.mark.parametrize("timeout", [0, LONG_S])
def test_connect_again_does_not_wait_twice(net: Net, timeout: float) -> None:
    """With a timeout as without blocking: Linux says that the attempt is under way."""
    address = net.silent_address()
    client = net.fresh(timeout=0)
    assert client.connect_ex(address) == errno.EINPROGRESS
    client.settimeout(timeout)
    began = time.monotonic()
    assert client.connect_ex(address) == errno.EALREADY
    with raises_errno(errno.EALREADY):
        client.connect(address)
    assert time.monotonic() - began < AT_ONCE_S


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
def test_shutdown_while_connecting_gives_up(net: Net, how: int) -> None:
    client = net.fresh(timeout=0)
    assert client.connect_ex(net.silent_address()) == errno.EINPROGRESS
    client.shutdown(how)
    assert poll_mask(client) & (OUT | ERR | HUP) == OUT | ERR | HUP
    with raises_errno(errno.ECONNRESET):
        client.recv(1)
    listener = net.listener()
    client.settimeout(PATIENCE_S)
    client.connect(listener.getsockname())
    client.sendall(b"another attempt")
    assert net.accept(listener).recv(100) == b"another attempt"


def test_close_in_another_thread_while_connecting(net: Net) -> None:
    """It raises when its time is over. A busy machine may let that pass before the close: then there is more."""
    for timeout in (0.3, 3.0, 30.0):
        client = net.fresh(timeout=timeout)
        attempt = net.spawn(client.connect, net.silent_address())
        time.sleep(0.05)  # until it waits, most likely: before that the same is raised
        client.close()
        kind, details = outcome(attempt.result)
        if kind != "TimeoutError":
            break
    assert (kind, details) == ("OSError", (errno.EBADF, "[Errno 9] Bad file descriptor"))


def test_connect_ex_of_a_closed_socket(net: Net) -> None:
    client = net.fresh()
    client.close()
    assert client.connect_ex(net.refused_address()) == errno.EBADF


@pytest.mark.parametrize("call", ["recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into"])
def test_a_connect_that_failed_leaves_nothing_to_receive_from(net: Net, call: str) -> None:
    client = net.fresh()
    assert client.connect_ex(net.refused_address()) == errno.ECONNREFUSED
    argument: object = 10
    if call.endswith("_into"):
        argument = [bytearray(10)] if call == "recvmsg_into" else bytearray(10)
    with raises_errno(errno.ENOTCONN):
        getattr(client, call)(argument)


@pytest.mark.parametrize("host", ["255.255.255.255", "224.0.0.1", "239.1.2.3"])
def test_broadcast_and_multicast_addresses_are_unreachable(net: Net, host: str) -> None:
    with raises_errno(errno.ENETUNREACH):
        net.fresh().connect((host, 9))
    assert net.fresh().connect_ex((host, 9)) == errno.ENETUNREACH


def test_a_bound_socket_that_dials_itself_is_not_kept_waiting(net: Net) -> None:
    """TCP connects it to itself, which uTP cannot; what matters is that it gets an error."""
    client = net.fresh(timeout=PATIENCE_S)
    client.bind(("127.0.0.1", 0))
    assert client.connect_ex(client.getsockname()) in (0, errno.ECONNREFUSED)


def test_closed_listener_refuses(net: Net) -> None:
    listener = net.listener(host=own_loopback())
    address = listener.getsockname()
    listener.close()
    assert net.fresh().connect_ex(address) == errno.ECONNREFUSED


@requires_fds(1_000)
def test_hundreds_are_refused_at_once(net: Net) -> None:
    """And none has to ask twice."""
    repeated: list[int] = []
    while not repeated or (repeated[-1] >= 150 and len(repeated) < 5):  # so many are where the machine stood still
        bound = net.fresh()
        bound.bind(("127.0.0.1", 0))
        socks = [net.fresh(timeout=0) for _ in range(300)]
        for sock in socks:
            sock.connect_ex(bound.getsockname())
        for sock in socks:
            assert select.select([], [sock], [], PATIENCE_S)[1]
            assert so_error(sock) == errno.ECONNREFUSED
        repeated.append(0)
        if net.name == "utp":
            (port,) = [port for port in engine_stats().ports if port.local == bound.getsockname()]
            repeated[-1] = port.received_datagrams - len(socks)
        for sock in socks:
            sock.close()
    assert repeated[-1] < 150, f"many SYNs were repeated: {repeated}"


def test_bound_socket_that_does_not_listen_refuses(net: Net) -> None:
    bound = net.fresh()
    bound.bind(("127.0.0.1", 0))
    assert net.fresh().connect_ex(bound.getsockname()) == errno.ECONNREFUSED


def test_listener_cannot_connect(net: Net) -> None:
    listener = net.listener()
    assert listener.connect_ex(net.listener().getsockname()) == errno.EISCONN


def test_connected_socket_cannot_listen(net: Net) -> None:
    client, server = net.pair()
    for sock in (client, server):
        with raises_errno(errno.EINVAL):
            sock.listen()


def test_only_a_listener_accepts(net: Net) -> None:
    client, _ = net.pair()
    for sock in (net.fresh(), client):
        with raises_errno(errno.EINVAL):
            sock.accept()


# -- bound first ----------------------------------------------------------------------------------------------


def test_bind_then_connect_uses_that_port(net: Net) -> None:
    listener = net.listener()
    client = net.fresh()
    client.bind(("127.0.0.1", 0))
    address = client.getsockname()
    client.connect(listener.getsockname())
    assert client.getsockname() == address
    assert net.accept(listener).getpeername() == address


def test_bind_to_any_then_connect_shows_the_real_address(net: Net) -> None:
    listener = net.listener()
    client = net.fresh()
    client.bind(("", 0))
    host, port = client.getsockname()
    assert host == "0.0.0.0"
    client.connect(listener.getsockname())
    assert client.getsockname() == ("127.0.0.1", port)


def test_listener_on_any_accepts_with_the_real_address(net: Net) -> None:
    listener = net.listener(host="0.0.0.0")
    assert listener.getsockname()[0] == "0.0.0.0"
    client = net.fresh()
    client.connect(("127.0.0.1", listener.getsockname()[1]))
    server = net.accept(listener)
    assert server.getsockname() == ("127.0.0.1", listener.getsockname()[1]) == client.getpeername()


def test_connect_to_any_means_this_machine(net: Net) -> None:
    listener = net.listener()
    client = net.fresh()
    client.connect(("0.0.0.0", listener.getsockname()[1]))
    assert client.getpeername() == listener.getsockname()


def test_listen_without_bind_takes_a_port(net: Net) -> None:
    listener = net.fresh()
    listener.listen()
    host, port = listener.getsockname()
    assert host == "0.0.0.0" and port
    client = net.fresh()
    client.connect(("127.0.0.1", port))
    assert net.accept(listener).getpeername() == client.getsockname()


def test_listen_twice_changes_the_backlog_only(net: Net) -> None:
    listener = net.listener(backlog=1)
    address = listener.getsockname()
    listener.listen(50)
    listener.listen()
    assert listener.getsockname() == address
    net.fresh().connect(address)
    readable(listener)


def test_host_name(net: Net) -> None:
    family = localhost_families()[0]
    listener = net.listener(family)
    client = net.fresh(family)
    client.connect(("localhost", listener.getsockname()[1]))
    assert client.getpeername() == listener.getsockname()


# -- create_connection ----------------------------------------------------------------------------------------


def test_create_connection(net: Net) -> None:
    listener = net.listener()
    with net.module.create_connection(listener.getsockname(), timeout=PATIENCE_S) as client:
        assert isinstance(client, net.module.socket)
        assert client.gettimeout() == PATIENCE_S
        assert client.getpeername() == listener.getsockname()
        net.accept(listener)


def test_create_connection_without_timeout_takes_the_default(net: Net) -> None:
    listener = net.listener()
    with net.module.create_connection(listener.getsockname()) as client:
        assert client.gettimeout() is None


def test_create_connection_source_address(net: Net) -> None:
    listener = net.listener()
    with net.module.create_connection(listener.getsockname(), source_address=("127.0.0.2", 0)) as client:
        assert client.getsockname()[0] == "127.0.0.2"
        assert net.accept(listener).getpeername() == client.getsockname()


def test_create_connection_by_name_finds_the_family_that_answers(net: Net) -> None:
    """Of a listener for one of the name's addresses, which need not be the first: that would be refused."""
    family = localhost_families()[-1]
    listener = net.listener(family)
    with net.module.create_connection(("localhost", listener.getsockname()[1]), timeout=PATIENCE_S) as client:
        assert client.family == family


def test_create_connection_refused(net: Net) -> None:
    with pytest.raises(ConnectionRefusedError):
        net.module.create_connection(net.refused_address())


def test_create_connection_times_out(net: Net) -> None:
    with pytest.raises(TimeoutError, match="^timed out$"):
        net.module.create_connection(net.silent_address(), timeout=0.1)


def test_create_connection_all_errors(net: Net) -> None:
    try:
        net.module.create_connection(("localhost", net.refused_address()[1]), timeout=PATIENCE_S, all_errors=True)
    except TypeError:
        assert not hasattr(__import__("builtins"), "ExceptionGroup"), "3.11 and later take all_errors"
    except Exception as raised:
        error: Any = cast("Any", raised)
        assert type(error).__name__ == "ExceptionGroup"
        assert str(error).startswith("create_connection failed")
        assert {type(each) for each in error.exceptions} == {ConnectionRefusedError}
    else:
        raise AssertionError("connected to a closed port")


# -- create_server, both families ------------------------------------------------------------------------------


def test_create_server(net: Net) -> None:
    with net.module.create_server(("127.0.0.1", 0)) as server:
        assert isinstance(server, net.module.socket)
        client = net.fresh()
        client.connect(server.getsockname())
        assert net.accept(server).getpeername() == client.getsockname()


@requires_ipv6
def test_create_server_ipv6_does_not_answer_ipv4(net: Net) -> None:
    for _ in range(20):  # another program of this machine may have the number over IPv4: then with another number
        with net.module.create_server(("::", 0), family=socket.AF_INET6) as server:
            port = server.getsockname()[1]
            net.fresh(socket.AF_INET6).connect(("::1", port))
            net.accept(server)
            code = net.fresh().connect_ex(("127.0.0.1", port))
        if code == errno.ECONNREFUSED:
            break
    assert code == errno.ECONNREFUSED


@requires_ipv6
def test_create_server_dualstack(net: Net) -> None:
    assert net.module.has_dualstack_ipv6() is True
    with net.module.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        port = server.getsockname()[1]
        assert server.getsockname() == ("::", port, 0, 0)
        four, six = net.fresh(), net.fresh(socket.AF_INET6)
        four.connect(("127.0.0.1", port))
        peer = net.accept(server)
        assert peer.family == socket.AF_INET6
        assert peer.getpeername() == ("::ffff:127.0.0.1", four.getsockname()[1], 0, 0)
        assert peer.getsockname() == ("::ffff:127.0.0.1", port, 0, 0)
        six.connect(("::1", port))
        assert net.accept(server).getpeername() == six.getsockname()


@requires_ipv6
def test_ipv6_socket_connects_to_a_mapped_address(net: Net) -> None:
    listener = net.listener()
    client = net.fresh(socket.AF_INET6)
    client.connect(("::ffff:127.0.0.1", listener.getsockname()[1]))
    assert client.getpeername() == ("::ffff:127.0.0.1", listener.getsockname()[1], 0, 0)
    assert net.accept(listener).getpeername() == ("127.0.0.1", client.getsockname()[1])


@requires_ipv6
def test_create_connection_ipv6(net: Net) -> None:
    listener = net.listener(socket.AF_INET6)
    with net.module.create_connection(listener.getsockname()[:2]) as client:
        assert client.family == socket.AF_INET6
        assert client.getpeername() == listener.getsockname()
        assert len(client.getpeername()) == 4


@requires_ipv6
def test_ipv4_and_ipv6_share_a_port_number(net: Net) -> None:
    while True:
        four, six = net.fresh(), net.fresh(socket.AF_INET6)
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        six.bind(("::1", 0))
        try:
            four.bind(("127.0.0.1", six.getsockname()[1]))
            break
        except OSError as error:  # in use: the kernel chose the port for IPv6 only
            assert error.errno == errno.EADDRINUSE
    for listener in (four, six):
        listener.listen()
        net.fresh(listener.family).connect(listener.getsockname())
        net.accept(listener)
