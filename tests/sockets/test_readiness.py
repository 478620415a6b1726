"""What poll, select and epoll report in every state of a socket, and what recv, send and SO_ERROR add."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from utpsocket.sockets import fd_pair

from .network import (
    ERR,
    HUP,
    IN,
    OUT,
    RDHUP,
    Net,
    describe,
    eventually,
    eventually_polls,
    poll_mask,
    raises_errno,
    readable,
    receive_exactly,
)

DEAD = IN | OUT | ERR | HUP | RDHUP


def fresh(net: Net) -> Any:
    return net.fresh()


def connecting(net: Net) -> Any:
    sock = net.fresh()
    sock.setblocking(False)
    assert sock.connect_ex(net.silent_address()) == errno.EINPROGRESS
    return sock


def connected(net: Net) -> Any:
    return net.pair()[0]


def accepted(net: Net) -> Any:
    return net.pair()[1]


def data_waiting(net: Net) -> Any:
    client, server = net.pair()
    server.sendall(b"abc")
    readable(client)
    return client


def peer_fin(net: Net) -> Any:
    client, server = net.pair()
    server.shutdown(socket.SHUT_WR)
    return client


def peer_fin_after_data(net: Net) -> Any:
    client, server = net.pair()
    server.sendall(b"abc")
    server.shutdown(socket.SHUT_WR)
    return client


def peer_closed(net: Net) -> Any:
    client, server = net.pair()
    server.close()
    return client


def peer_reset(net: Net) -> Any:
    client, server = net.pair()
    net.reset(server)
    return client


def peer_reset_with_unread(net: Net) -> Any:
    client, server = net.pair()
    server.sendall(b"abc")
    readable(client)
    net.reset(server)
    return client


def reset_before_accept(net: Net, data: bytes = b"") -> Any:
    listener = net.listener()
    client = net.fresh()
    client.connect(listener.getsockname())
    client.sendall(data)
    net.reset(client)
    net.fresh().connect(listener.getsockname())  # when this stands, the reset has come
    return net.accept(listener)


def reset_before_accept_with_unread(net: Net) -> Any:
    return reset_before_accept(net, b"abc")


def refused(net: Net) -> Any:
    sock = net.fresh()
    sock.setblocking(False)
    assert sock.connect_ex(net.refused_address()) in (errno.EINPROGRESS, errno.ECONNREFUSED)
    return sock


def timed_out(net: Net) -> Any:
    sock = net.fresh()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 200)
    sock.setblocking(False)
    assert sock.connect_ex(net.silent_address()) == errno.EINPROGRESS
    return sock


def shut(net: Net, how: int) -> Any:
    client, _ = net.pair()
    client.shutdown(how)
    return client


def shut_wr(net: Net) -> Any:
    return shut(net, socket.SHUT_WR)


def shut_rd(net: Net) -> Any:
    return shut(net, socket.SHUT_RD)


def shut_both(net: Net) -> Any:
    return shut(net, socket.SHUT_RDWR)


def fin_both_ways(net: Net) -> Any:
    client, server = net.pair()
    server.shutdown(socket.SHUT_WR)
    client.shutdown(socket.SHUT_WR)
    return client


def shut_wr_then_peer_reset(net: Net) -> Any:
    client, server = net.pair()
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    net.reset(server)
    return client


def listening(net: Net) -> Any:
    return net.listener()


def listening_with_one_pending(net: Net) -> Any:
    listener = net.listener()
    net.fresh().connect(listener.getsockname())
    return listener


State = Callable[[Net], Any]
STATES: list[tuple[State, int]] = [
    (fresh, OUT | HUP),
    (connecting, 0),
    (connected, OUT),
    (accepted, OUT),
    (data_waiting, IN | OUT),
    (peer_fin, IN | OUT | RDHUP),
    (peer_fin_after_data, IN | OUT | RDHUP),
    (peer_closed, IN | OUT | RDHUP),
    (peer_reset, DEAD),
    (peer_reset_with_unread, DEAD),
    (reset_before_accept, DEAD),
    (reset_before_accept_with_unread, DEAD),
    (refused, DEAD),
    (timed_out, DEAD),
    (shut_wr, OUT),
    (shut_rd, IN | OUT | RDHUP),
    (shut_both, IN | OUT | HUP | RDHUP),
    (fin_both_ways, IN | OUT | HUP | RDHUP),
    (listening, 0),
    (listening_with_one_pending, IN),
]
resets = pytest.mark.parametrize("state", [peer_reset, reset_before_accept])
every_state = pytest.mark.parametrize(("state", "mask"), STATES, ids=[state.__name__ for state, _ in STATES])


@every_state
def test_poll(net: Net, state: State, mask: int) -> None:
    sock = state(net)
    assert eventually_polls(sock, mask) == describe(mask)
    time.sleep(0.02)  # and it stays so
    assert describe(poll_mask(sock)) == describe(mask)


@every_state
def test_select(net: Net, state: State, mask: int) -> None:
    sock = state(net)
    expected = (bool(mask & (IN | HUP | ERR)), bool(mask & (OUT | ERR)), False)
    assert eventually(lambda: tuple(map(bool, select.select([sock], [sock], [sock], 0))), expected) == expected


@every_state
def test_epoll(net: Net, state: State, mask: int) -> None:
    sock = state(net)
    with select.epoll() as poller:
        poller.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP)
        look = lambda: describe(dict(poller.poll(0)).get(sock.fileno(), 0))  # noqa: E731
        assert eventually(look, describe(mask)) == describe(mask)


def test_poll_after_shut_wr_then_peer_reset(net: Net) -> None:
    sock = shut_wr_then_peer_reset(net)
    assert eventually(lambda: describe(poll_mask(sock)), describe(DEAD), timeout_s=1) == describe(DEAD)


# -- what the calls return in those states -----------------------------------------------------------------------


def test_fresh_socket_is_not_connected(net: Net) -> None:
    sock = net.fresh()
    with raises_errno(errno.ENOTCONN):
        sock.recv(1)
    with raises_errno(errno.EPIPE):
        sock.send(b"x")
    with raises_errno(errno.ENOTCONN):
        sock.getpeername()
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_connecting_socket_neither_sends_nor_receives(net: Net) -> None:
    sock = connecting(net)
    with raises_errno(errno.EAGAIN):
        sock.send(b"x")
    with raises_errno(errno.EAGAIN):
        sock.recv(1)
    with raises_errno(errno.ENOTCONN):
        sock.getpeername()
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.mark.parametrize("state", [peer_fin, peer_closed])
def test_after_peer_fin_end_of_file_again_and_again(net: Net, state: State) -> None:
    sock = state(net)
    assert [sock.recv(10) for _ in range(3)] == [b"", b"", b""]
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_data_before_fin_comes_first(net: Net) -> None:
    sock = peer_fin_after_data(net)
    readable(sock)
    assert sock.recv(10) == b"abc"
    assert sock.recv(10) == b""


def test_after_peer_fin_sending_works(net: Net) -> None:
    client, server = net.pair()
    server.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    client.sendall(b"still here")
    client.shutdown(socket.SHUT_WR)
    received = b"".join(iter(lambda: server.recv(100), b""))
    assert received == b"still here"


@resets
def test_reset_is_reported_once_then_end_of_file(net: Net, state: State) -> None:
    sock = state(net)
    readable(sock)
    with raises_errno(errno.ECONNRESET):
        sock.recv(10)
    assert sock.recv(10) == b""
    assert sock.recv(10) == b""


@pytest.mark.parametrize("state", [peer_reset_with_unread, reset_before_accept_with_unread])
def test_reset_after_data_lets_the_data_be_read_first(net: Net, state: State) -> None:
    sock = state(net)
    assert eventually_polls(sock, DEAD) == describe(DEAD)
    assert sock.recv(10) == b"abc"
    with raises_errno(errno.ECONNRESET):
        sock.recv(10)
    assert sock.recv(10) == b""


@pytest.mark.parametrize("sizes", [[1] * 200, [150_000]], ids=["many", "large"])
def test_what_came_before_a_reset_moves_with_it(sizes: list[int]) -> None:
    """To the socket that takes the place of one that was reset before accept()."""
    data = bytes(range(250)) * 600
    sender, receiver = socket.socketpair()
    with sender, receiver:
        sent = 0
        for size in sizes:
            sender.sendall(data[sent : sent + size])
            sent += size
        with closing(fd_pair.reset_socket(received_from=receiver)) as moved:
            assert describe(poll_mask(moved)) == describe(DEAD)
            assert receive_exactly(moved, sent) == data[:sent]
            with raises_errno(errno.ECONNRESET):
                moved.recv(10)


@resets
def test_reset_is_reported_to_peek(net: Net, state: State) -> None:
    sock = state(net)
    readable(sock)
    with raises_errno(errno.ECONNRESET):
        sock.recv(10, socket.MSG_PEEK)


@resets
def test_send_after_reset(net: Net, state: State) -> None:
    sock = state(net)
    assert eventually_polls(sock, DEAD) == describe(DEAD)
    with raises_errno(errno.ECONNRESET):
        sock.send(b"x")
    with raises_errno(errno.EPIPE):
        sock.send(b"x")


@resets
def test_so_error_after_reset_is_cleared_by_reading_it(net: Net, state: State) -> None:
    sock = state(net)
    assert eventually_polls(sock, DEAD) == describe(DEAD)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert sock.recv(10) == b""
    with raises_errno(errno.EPIPE):
        sock.send(b"x")


@resets
def test_a_reset_is_reported_to_those_that_have_the_descriptor_alone(net: Net, state: State) -> None:
    """Such as a program in C that was started with it."""
    sock = state(net)
    assert eventually_polls(sock, DEAD) == describe(DEAD)
    with raises_errno(errno.ECONNRESET):
        os.read(sock.fileno(), 10)
    assert os.read(sock.fileno(), 10) == b""


def test_a_reset_reaches_a_descriptor_that_code_in_c_has_accepted(net: Net) -> None:
    listener = net.listener()
    client = net.fresh()
    client.connect(listener.getsockname())
    with os.fdopen(ctypes.CDLL(None).accept(listener.fileno(), None, None)) as accepted_in_c:
        net.reset(client)
        assert eventually_polls(accepted_in_c, DEAD) == describe(DEAD)
        with raises_errno(errno.ECONNRESET):
            os.read(accepted_in_c.fileno(), 10)


def test_reset_after_local_shut_wr_is_reported(net: Net) -> None:
    sock = shut_wr_then_peer_reset(net)
    assert eventually(lambda: bool(poll_mask(sock) & HUP), True)
    with raises_errno(errno.ECONNRESET):
        sock.recv(10)


def test_so_error_of_a_refused_connect(net: Net) -> None:
    sock = refused(net)
    assert eventually_polls(sock, DEAD) == describe(DEAD)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_so_error_of_a_timed_out_connect(net: Net) -> None:
    sock = timed_out(net)
    assert eventually_polls(sock, DEAD) == describe(DEAD)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ETIMEDOUT


def test_recv_gives_the_errno_of_a_refused_connect(net: Net) -> None:
    sock = refused(net)
    assert eventually_polls(sock, DEAD) == describe(DEAD)
    with raises_errno(errno.ECONNREFUSED):
        sock.recv(10)
    assert sock.recv(10) == b""


def test_send_gives_the_errno_of_a_refused_connect(net: Net) -> None:
    sock = refused(net)
    assert eventually_polls(sock, DEAD) == describe(DEAD)
    with raises_errno(errno.ECONNREFUSED):
        sock.send(b"x")
    with raises_errno(errno.EPIPE):
        sock.send(b"x")


def test_listener_neither_sends_nor_receives(net: Net) -> None:
    listener = net.listener()
    with raises_errno(errno.ENOTCONN):
        listener.recv(1)
    with raises_errno(errno.EPIPE):
        listener.send(b"x")
    with raises_errno(errno.ENOTCONN):
        listener.getpeername()


def test_connection_becomes_writable_no_later_than_it_can_be_accepted(net: Net) -> None:
    listener = net.listener()
    client = net.fresh()
    client.setblocking(False)
    client.connect_ex(listener.getsockname())
    readable(listener)
    assert poll_mask(client) == OUT
