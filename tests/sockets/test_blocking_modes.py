"""Blocking, timeouts, non-blocking, edge-triggered epoll, and what wakes a thread that waits."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from .network import (
    AT_ONCE_S,
    IN,
    OUT,
    PATIENCE_S,
    RESET_ON_CLOSE,
    Net,
    eventually,
    fill_for_good,
    poll_mask,
    raises_errno,
    readable,
)

SHORT_S = 0.05


@pytest.fixture
def full(net: Net) -> tuple[Any, Any, int]:
    """-> (client that can send no more, its peer, bytes sent)."""
    client, server = net.pair()
    client.setblocking(False)
    return client, server, fill_for_good(client)


# -- time-outs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["recv", "recv_into", "recvfrom", "recvmsg"])
def test_receiving_times_out(net: Net, call: str) -> None:
    client, _ = net.pair()
    client.settimeout(SHORT_S)
    argument = bytearray(10) if call == "recv_into" else 10
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="^timed out$"):
        getattr(client, call)(argument)
    assert SHORT_S * 0.9 <= time.monotonic() - began < AT_ONCE_S


def test_sending_times_out(net: Net, full: tuple[Any, Any, int]) -> None:
    client, _, _ = full
    client.settimeout(SHORT_S)
    with pytest.raises(TimeoutError, match="^timed out$"):
        client.send(bytes(1 << 20))
    with pytest.raises(TimeoutError, match="^timed out$"):
        client.sendall(bytes(1 << 20))


def test_accept_times_out(net: Net) -> None:
    """And does not wait twice: a busy machine may let it wait longer now and then, but not every time."""
    listener = net.listener()
    listener.settimeout(0.5)
    took_s: list[float] = []
    while not took_s or (min(took_s) >= 0.95 and len(took_s) < 10):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="^timed out$"):
            listener.accept()
        took_s.append(time.monotonic() - began)
    assert 0.45 <= min(took_s) < 0.95


def test_timeout_does_not_disturb_the_stream(net: Net) -> None:
    client, server = net.pair()
    client.settimeout(0.01)
    received = bytearray()

    def send() -> None:
        for number in range(50):
            time.sleep(0.005)
            server.sendall(bytes([number]))

    sender = net.spawn(send)
    while len(received) < 50:
        try:
            received += client.recv(7)
        except TimeoutError:
            continue
    sender.result()
    assert received == bytes(range(50))


def test_raw_receive_timeout_of_the_kernel(net: Net) -> None:
    import struct

    client, _ = net.pair()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 50_000))
    with raises_errno(errno.EAGAIN):
        client.recv(1)


# -- non-blocking ---------------------------------------------------------------------------------------------


def test_nonblocking_calls_say_eagain(net: Net) -> None:
    client, _ = net.pair()
    client.setblocking(False)
    for call in (
        lambda: client.recv(1),
        lambda: client.recv_into(bytearray(1)),
        lambda: client.recvfrom(1),
        lambda: client.recvmsg(1),
        lambda: client.recv(1, socket.MSG_PEEK),
        lambda: os.read(client.fileno(), 1),
    ):
        with raises_errno(errno.EAGAIN):
            call()
    listener = net.listener()
    listener.setblocking(False)
    with raises_errno(errno.EAGAIN):
        listener.accept()


def test_full_socket_is_not_writable_until_the_peer_reads(net: Net, full: tuple[Any, Any, int]) -> None:
    client, server, sent = full
    assert not poll_mask(client) & OUT
    with raises_errno(errno.EAGAIN):
        client.send(bytes(1 << 20))

    def drain() -> int:
        left = sent
        while left:
            left -= len(server.recv(min(left, 1 << 18)))
        return left

    assert net.spawn(drain).result() == 0
    assert select.select([], [client], [], PATIENCE_S)[1]
    assert client.send(b"more") == 4
    assert server.recv(4) == b"more"


def test_an_unread_socket_takes_neither_nothing_nor_everything(full: tuple[Any, Any, int]) -> None:
    assert 32 * 1024 < full[2] < 64 * 1024 * 1024


def test_sendall_needs_the_peer_to_read(net: Net) -> None:
    client, server = net.pair()
    payload = os.urandom(1 << 20) * 12
    sender = net.spawn(client.sendall, payload)
    received = bytearray()
    while len(received) < len(payload):
        received += server.recv(1 << 20)
    assert sender.result() is None
    assert received == payload


def test_one_thread_writes_a_megabyte_and_then_reads_it(net: Net) -> None:
    """AF_UNIX alone would hold 213 KB: programs that do this must not lock up."""
    client, server = net.pair()
    client.settimeout(PATIENCE_S)
    payload = os.urandom(1 << 20)
    client.sendall(payload)
    received = bytearray()
    while len(received) < len(payload):
        received += server.recv(1 << 20)
    assert received == payload


def test_many_one_byte_sends_before_any_is_read(net: Net) -> None:
    client, server = net.pair()
    client.settimeout(PATIENCE_S)
    payload = os.urandom(5000)
    for position in range(len(payload)):
        assert client.send(payload[position : position + 1]) == 1
    received = bytearray()
    while len(received) < len(payload):
        received += server.recv(1 << 16)
    assert received == payload


# -- what wakes a waiting thread ------------------------------------------------------------------------------


def blocked(thread: threading.Thread) -> None:
    """Return when the thread has most likely reached its system call."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        with open(f"/proc/self/task/{thread.native_id}/stat", encoding="utf-8") as stat:
            if stat.read().rpartition(")")[2].split()[0] == "S":
                time.sleep(0.01)
                return
        time.sleep(0.001)


def test_blocked_recv_is_woken_by_data_fin_and_reset(net: Net) -> None:
    client, server = net.pair()
    waiting = net.spawn(client.recv, 10)
    blocked(waiting.thread)
    server.sendall(b"data")
    assert waiting.result() == b"data"

    waiting = net.spawn(client.recv, 10)
    blocked(waiting.thread)
    server.shutdown(socket.SHUT_WR)
    assert waiting.result() == b""


def test_blocked_recv_is_woken_by_reset(net: Net) -> None:
    client, server = net.pair()
    waiting = net.spawn(client.recv, 10)
    blocked(waiting.thread)
    net.reset(server)
    with raises_errno(errno.ECONNRESET):
        waiting.result()


def test_blocked_sendall_is_woken_by_reset(net: Net) -> None:
    client, server = net.pair()
    waiting = net.spawn(client.sendall, bytes(1 << 26))
    blocked(waiting.thread)
    net.reset(server)
    with raises_errno(errno.ECONNRESET, errno.EPIPE):
        waiting.result()


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_RDWR])
def test_blocked_recv_is_woken_by_shutdown_in_another_thread(net: Net, how: int) -> None:
    client, _ = net.pair()
    waiting = net.spawn(client.recv, 10)
    blocked(waiting.thread)
    client.shutdown(how)
    assert waiting.result() == b""


@pytest.mark.parametrize("event", ["data", "fin", "reset"])
@pytest.mark.parametrize("wait", ["select", "poll", "epoll"])
def test_waiting_in_select_poll_epoll_is_woken(net: Net, wait: str, event: str) -> None:
    client, server = net.pair()

    def waiting() -> bool:
        if wait == "select":
            return bool(select.select([client], [], [], PATIENCE_S)[0])
        poller = select.poll() if wait == "poll" else select.epoll()
        try:
            poller.register(client, IN)
            return bool(poller.poll(PATIENCE_S * 1000 if wait == "poll" else PATIENCE_S))
        finally:
            if wait == "epoll":
                poller.close()  # type: ignore[union-attr]

    task = net.spawn(waiting)
    blocked(task.thread)
    {"data": lambda: server.send(b"x"), "fin": server.close, "reset": lambda: net.reset(server)}[event]()
    assert task.result() is True


def test_accept_blocks_until_a_client_connects(net: Net) -> None:
    listener = net.listener()
    waiting = net.spawn(net.accept, listener)
    blocked(waiting.thread)
    client = net.fresh()
    client.connect(listener.getsockname())
    assert waiting.result().getpeername() == client.getsockname()


def test_shutdown_of_a_listener_wakes_accept_with_einval(net: Net) -> None:
    listener = net.listener()
    waiting = net.spawn(listener.accept)
    blocked(waiting.thread)
    listener.shutdown(socket.SHUT_RDWR)
    with raises_errno(errno.EINVAL):
        waiting.result()


def test_one_of_many_blocked_acceptors_gets_each_connection(net: Net) -> None:
    listener = net.listener()
    acceptors = [net.spawn(net.accept, listener) for _ in range(4)]
    for acceptor in acceptors:
        blocked(acceptor.thread)
    clients = [net.fresh() for _ in range(4)]
    for client in clients:
        client.connect(listener.getsockname())
    assert {acceptor.result().getpeername() for acceptor in acceptors} == {client.getsockname() for client in clients}


def test_a_signal_does_not_interrupt_recv(net: Net) -> None:
    """PEP 475: the call is tried again."""
    client, server = net.pair()
    caught: list[int] = []
    earlier = signal.signal(signal.SIGUSR1, lambda number, frame: caught.append(number))
    try:

        def disturb_then_answer() -> None:
            for _ in range(3):
                time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGUSR1)
            eventually(lambda: bool(caught), True)
            server.sendall(b"after")

        task = net.spawn(disturb_then_answer)
        assert client.recv(10) == b"after"
        task.result()
    finally:
        signal.signal(signal.SIGUSR1, earlier)
    assert caught


def test_a_signal_handler_that_raises_interrupts_recv(net: Net) -> None:
    client, server = net.pair()

    def complain(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    earlier = signal.signal(signal.SIGUSR1, complain)
    try:
        main, is_ready = threading.main_thread(), threading.Event()

        def interrupt() -> None:
            is_ready.wait()
            blocked(main)
            os.kill(os.getpid(), signal.SIGUSR1)

        task = net.spawn(interrupt)
        with pytest.raises(KeyboardInterrupt):
            is_ready.set()  # not before: where it comes early it must be caught too
            client.recv(10)
        task.result()
    finally:
        signal.signal(signal.SIGUSR1, earlier)
    server.sendall(b"fine")
    readable(client)
    assert client.recv(10) == b"fine"


# -- edge-triggered epoll -------------------------------------------------------------------------------------


def test_edge_triggered_connect_wakes_once_and_stays_quiet(net: Net) -> None:
    listener = net.listener()
    client = net.fresh()
    client.setblocking(False)
    with select.epoll() as poller:
        client.connect_ex(listener.getsockname())
        poller.register(client, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        assert poller.poll(PATIENCE_S) == [(client.fileno(), select.EPOLLOUT)]
        net.accept(listener)
        assert poller.poll(SHORT_S) == []


def test_edge_triggered_arrival_is_reported_for_each_arrival(net: Net) -> None:
    client, server = net.pair()
    client.setblocking(False)
    with select.epoll() as poller:
        poller.register(client, select.EPOLLIN | select.EPOLLET)
        assert poller.poll(0) == []
        for _ in range(3):
            server.sendall(b"abc")
            assert poller.poll(PATIENCE_S) == [(client.fileno(), select.EPOLLIN)]
            assert poller.poll(0) == []  # nothing was read, and there is no new edge
        assert client.recv(100) == b"abcabcabc"


def test_edge_triggered_fin(net: Net) -> None:
    client, server = net.pair()
    with select.epoll() as poller:
        poller.register(client, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        server.close()
        (fd, events), *rest = poller.poll(PATIENCE_S)
        assert fd == client.fileno() and events & select.EPOLLRDHUP and not rest
        assert poller.poll(SHORT_S) == []


def test_edge_triggered_writability_comes_back(net: Net, full: tuple[Any, Any, int]) -> None:
    client, server, sent = full
    with select.epoll() as poller:
        poller.register(client, select.EPOLLOUT | select.EPOLLET)
        assert poller.poll(0) == []
        while sent:
            sent -= len(server.recv(1 << 18))
        assert poller.poll(PATIENCE_S) == [(client.fileno(), select.EPOLLOUT)]
        assert client.send(b"x") == 1


def test_oneshot(net: Net) -> None:
    client, server = net.pair()
    with select.epoll() as poller:
        poller.register(client, select.EPOLLIN | select.EPOLLONESHOT)
        server.sendall(b"1")
        assert poller.poll(PATIENCE_S) == [(client.fileno(), select.EPOLLIN)]
        server.sendall(b"2")
        assert poller.poll(SHORT_S) == []
        poller.modify(client, select.EPOLLIN | select.EPOLLONESHOT)
        assert poller.poll(PATIENCE_S) == [(client.fileno(), select.EPOLLIN)]


# -- default timeout ------------------------------------------------------------------------------------------


def test_default_timeout_applies_to_new_sockets_only(net: Net) -> None:
    old = net.fresh()
    net.module.setdefaulttimeout(PATIENCE_S)
    try:
        assert net.module.getdefaulttimeout() == PATIENCE_S
        client, server = net.pair()
        assert (old.gettimeout(), client.gettimeout(), server.gettimeout()) == (None, PATIENCE_S, PATIENCE_S)
        client.sendall(b"ping")
        assert server.recv(4) == b"ping"
        client.settimeout(SHORT_S)
        with pytest.raises(TimeoutError):
            client.recv(1)
    finally:
        net.module.setdefaulttimeout(None)


def test_default_timeout_leaves_a_blocking_socket_blocking_that_is_reset(net: Net) -> None:
    net.module.setdefaulttimeout(PATIENCE_S)
    try:
        client, server = net.pair()
        client.settimeout(None)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        server.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert os.get_blocking(client.fileno())
    finally:
        net.module.setdefaulttimeout(None)


def test_accepted_sockets_do_not_take_the_listener_timeout(net: Net) -> None:
    listener = net.listener()
    for timeout in (PATIENCE_S, None):
        listener.settimeout(timeout)
        net.fresh().connect(listener.getsockname())
        accepted = net.accept(listener)
        assert accepted.gettimeout() is None
        assert os.get_blocking(accepted.fileno())


def test_settimeout_and_setblocking_agree(net: Net) -> None:
    sock = net.fresh()
    seen = []
    changes: tuple[Callable[[], object], ...] = (
        lambda: sock.setblocking(False),
        lambda: sock.setblocking(True),
        lambda: sock.settimeout(0),
        lambda: sock.settimeout(3),
        lambda: sock.settimeout(None),
    )
    for change in changes:
        change()
        seen.append((sock.gettimeout(), sock.getblocking(), os.get_blocking(sock.fileno())))
    assert seen == [
        (0.0, False, False),
        (None, True, True),
        (0.0, False, False),
        (3.0, True, False),
        (None, True, True),
    ]
    with pytest.raises(ValueError, match="Timeout value out of range"):
        sock.settimeout(-1)
    with pytest.raises(TypeError):
        sock.settimeout("soon")
