"""A connection breaks while all buffers are full, both ways: a send() that waits returns, although the program has
not read what came before.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
import tempfile
from collections.abc import Callable
from typing import Any

import pytest

from .network import IN, LONG_S, OUT, PATIENCE_S, Net, fill_for_good, fork, poll_mask, receive_all, wait_child

FEW_BYTES = 4_096  # of SO_SNDBUF: what is written at one go takes half of the kernel's part of it
PART = bytes(5_000)
Way = Callable[[Any], object]


def full(net: Net, buffer_bytes: int = 0) -> tuple[Any, Any]:
    """A pair where neither end can send any more."""
    listener, client = net.listener(), net.fresh()
    if buffer_bytes:
        for sock in (listener, client):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    client.connect(listener.getsockname())
    server = net.accept(listener)
    for sock in (client, server):
        sock.setblocking(False)
        fill_for_good(sock)
    assert poll_mask(client) & (IN | OUT) == IN
    return client, server


def with_timeout(client: Any) -> object:
    client.settimeout(LONG_S)
    return client.send(PART)


def sendall_with_timeout(client: Any) -> object:
    client.settimeout(LONG_S)
    return client.sendall(PART)


def sendmsg_with_timeout(client: Any) -> object:
    client.settimeout(LONG_S)
    return client.sendmsg([PART, PART])


def blocking(client: Any) -> object:
    client.setblocking(True)
    return client.sendall(PART)


def sendfile(client: Any) -> object:
    client.settimeout(LONG_S)
    with tempfile.TemporaryFile() as file:
        file.write(PART)
        file.seek(0)
        return client.sendfile(file)


def below_the_class(client: Any) -> object:
    client.setblocking(True)
    return os.write(client.fileno(), PART)


def poll(client: Any) -> object:
    poller = select.poll()
    poller.register(client, OUT)
    assert poller.poll(LONG_S * 1_000)
    return client.send(PART)


def selected(client: Any) -> object:
    assert select.select([], [client], [], LONG_S)[1]
    return client.send(PART)


def edge(client: Any) -> object:
    with select.epoll() as poller:
        poller.register(client, select.EPOLLOUT | select.EPOLLET)
        assert poller.poll(LONG_S)
    return client.send(PART)


def loop(client: Any) -> object:
    async def main() -> None:
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(client, PART), LONG_S)

    return asyncio.run(main())


WAYS: list[Way] = [
    with_timeout,
    sendall_with_timeout,
    sendmsg_with_timeout,
    blocking,
    sendfile,
    below_the_class,
    poll,
    selected,
    edge,
    loop,
]
CASES = [(way, FEW_BYTES) for way in WAYS] + [(with_timeout, 0), (poll, 0)]
BY_KERNEL = (sendfile, below_the_class)  # the kernel chooses which of the two errnos it is


def until_error(way: Way, client: Any) -> int:
    """The errno of the first that fails: what the peer makes room for as it closes may still be taken."""
    while True:
        try:
            way(client)
        except OSError as error:
            return error.errno or 0


def check_that_it_returns(net: Net, way: Way, buffer_bytes: int) -> None:
    client, server = full(net, buffer_bytes)
    waiting = net.spawn(until_error, way, client)
    net.reset(server)
    code = waiting.result()
    assert code in ((errno.ECONNRESET, errno.EPIPE) if way in BY_KERNEL else (errno.ECONNRESET,)), code
    client.setblocking(False)
    if way not in BY_KERNEL:
        assert until_error(lambda sock: sock.send(b"x"), client) == errno.EPIPE
        client.settimeout(PATIENCE_S)
        assert receive_all(client), "what came before is still there, and the error has been reported"


def names(case: object) -> str | None:
    return getattr(case, "__name__", None)


@pytest.mark.parametrize(("way", "buffer_bytes"), CASES, ids=names)
def test_a_reset_ends_a_send_that_waits(net: Net, way: Way, buffer_bytes: int) -> None:
    check_that_it_returns(net, way, buffer_bytes)


@pytest.mark.parametrize("net", ["utp"], indirect=True)
def test_so_with_an_engine_in_a_process(net: Net) -> None:
    script = f"""
from {__name__} import CASES, Net, check_that_it_returns, poll_after_a_fin
for case in CASES:
    net = Net("utp")
    check_that_it_returns(net, *case)
    net.close()
net = Net("utp")
poll_after_a_fin(net)
net.close()
"""
    assert net.python(script, env={"UTPSOCKET_ENGINE": "process"}).wait(4 * LONG_S) == 0


@pytest.mark.parametrize("buffer_bytes", [0, FEW_BYTES])
@pytest.mark.parametrize("way", [with_timeout, blocking, poll], ids=names)
def test_so_does_a_user_timeout(net: Net, way: Way, buffer_bytes: int) -> None:
    client, _ = full(net, buffer_bytes)
    waiting = net.spawn(until_error, way, client)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
    assert waiting.result() == errno.ETIMEDOUT


def poll_after_a_fin(net: Net) -> None:
    """The peer's end of file is under way behind bytes for which there is no room, and the reset behind it."""
    listener, client = net.listener(), net.fresh()
    for sock in (listener, client):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * FEW_BYTES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * FEW_BYTES)
    client.connect(listener.getsockname())
    server = net.accept(listener)
    server.sendall(bytes(9_000))
    server.shutdown(socket.SHUT_WR)
    client.setblocking(False)
    fill_for_good(client)
    waiting = net.spawn(until_error, poll, client)
    net.reset(server)
    assert waiting.result() in (errno.EPIPE, errno.ECONNRESET)
    client.settimeout(PATIENCE_S)
    assert len(receive_all(client)) == 9_000


def test_a_reset_behind_an_end_of_file_not_yet_read(net: Net) -> None:
    poll_after_a_fin(net)


def test_every_send_that_waits_returns(net: Net) -> None:
    """Some write while others poll()."""
    client, server = full(net, FEW_BYTES)
    client.settimeout(LONG_S)

    def write() -> int:
        return until_error(lambda sock: sock.sendall(PART), client)

    waiting = [net.spawn(write) for _ in range(4)] + [net.spawn(until_error, polled, client) for polled in (poll, edge)]
    net.reset(server)
    errnos = {task.result() for task in waiting}
    assert errnos <= {errno.ECONNRESET, errno.EPIPE}, errnos


@pytest.mark.parametrize("is_alone", [False, True])
def test_a_send_in_a_forked_process_returns(net: Net, is_alone: bool) -> None:
    client, server = full(net, 0 if is_alone else FEW_BYTES)
    came, comes = os.pipe()

    def wait() -> None:
        server.close()
        os.write(comes, b"!")
        assert until_error(poll, client) in (errno.ECONNRESET, errno.EPIPE)

    pid = fork(wait)
    assert os.read(came, 1)
    os.close(came)
    os.close(comes)
    if is_alone:
        client.close()
    net.reset(server)
    assert wait_child(pid) == 0
