"""No call on a socket that does not block waits for the engine's thread.

The engine's thread is held still, and every call must return all the same: what waits for it would never return, so
each test has a thread of its own for the calls, which says how far it has come. No clock is looked at.
"""

from __future__ import annotations

import asyncio
import errno
import select
import socket as stdlib
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import utpsocket
from utpsocket import monkey
from utpsocket.engine import engine, shutdown
from utpsocket.engine.loop import Loop

WAIT_S = 20
LOCALHOST = ("127.0.0.1", 0)


@contextmanager
def held_engine() -> Iterator[list[str]]:
    """The engine's thread does nothing while this lasts. Yields the names of the commands that were called."""
    loop = engine()
    assert isinstance(loop, Loop)
    is_held, may_go_on = threading.Event(), threading.Event()
    called: list[str] = []
    original = Loop.call

    def noted(self: Loop, command: Callable[..., object], *arguments: object, **named: object) -> object:
        called.append(command.__name__)
        return original(self, command, *arguments, **named)

    def hold(_: Loop) -> None:
        is_held.set()
        may_go_on.wait(2 * WAIT_S)

    loop.post(hold)
    assert is_held.wait(WAIT_S)
    Loop.call = noted  # type: ignore[assignment, method-assign]
    try:
        yield called
    finally:
        Loop.call = original  # type: ignore[method-assign]
        may_go_on.set()


def run(calls: Callable[[list[str]], None]) -> None:
    """Carry `calls` out while the engine stands still."""
    done: list[str] = []
    failed: list[BaseException] = []

    def carry_out() -> None:
        try:
            calls(done)
        except BaseException as error:
            failed.append(error)

    with held_engine() as called:
        worker = threading.Thread(target=carry_out)
        worker.start()
        worker.join(WAIT_S)
        is_stuck = worker.is_alive()
    worker.join(WAIT_S)
    assert not is_stuck, f"waits for the engine after {done}: {called}"
    assert not failed, f"after {done}: {failed[0]!r}"
    assert called == []


def fresh() -> utpsocket.socket:
    sock = utpsocket.socket()
    sock.setblocking(False)
    return sock


@contextmanager
def pair() -> Iterator[tuple[utpsocket.socket, utpsocket.socket, utpsocket.socket]]:
    """A listener, and both ends of a connection, none of which blocks."""
    listener = utpsocket.create_server(LOCALHOST)
    client = utpsocket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    for sock in (listener, client, server):
        sock.setblocking(False)
    with listener, client, server:
        yield listener, client, server


def test_calls_on_fresh_and_listening_sockets() -> None:
    def calls(done: list[str]) -> None:
        first, second = fresh(), fresh()
        first.bind(LOCALHOST)
        done.append("bind")
        local = first.getsockname()
        with pytest.raises(OSError) as refused:
            second.bind(local)
        assert refused.value.errno == errno.EADDRINUSE
        done.append("bind in use")
        first.listen(5)
        first.listen(7)
        done.append("listen")
        with pytest.raises(BlockingIOError):
            first.accept()
        done.append("accept")
        with pytest.raises(OSError):
            first.getpeername()
        first.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_RCVBUF, 65_536)
        assert first.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR) == 0
        first.shutdown(stdlib.SHUT_RD)
        done.append("shutdown")
        first.close()
        done.append("close")
        second.bind(local)
        done.append("bind again")
        second.close()
        with stdlib.socket(stdlib.AF_INET, stdlib.SOCK_DGRAM) as another:
            another.bind(local)
        done.append("bind by somebody else")
        third = fresh()
        third.bind(LOCALHOST)
        third.close()
        unbound = fresh()
        unbound.listen()
        unbound.close()
        done.append("listen without bind")

    run(calls)


def test_a_port_is_shared_by_the_rules_without_the_engine() -> None:
    def calls(done: list[str]) -> None:
        first, second, third = fresh(), fresh(), fresh()
        for sock in (first, second):
            sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEADDR, 1)
        first.bind(LOCALHOST)
        local = first.getsockname()
        second.bind(local)
        done.append("shared")
        with pytest.raises(OSError) as refused:
            third.bind(local)
        assert refused.value.errno == errno.EADDRINUSE
        first.listen()
        with pytest.raises(OSError) as refused:
            second.listen()
        assert refused.value.errno == errno.EADDRINUSE
        done.append("second listener refused")
        first.close()
        with pytest.raises(OSError) as refused:
            third.bind(local)  # the second one's still
        assert refused.value.errno == errno.EADDRINUSE
        second.listen()
        done.append("the port goes on")
        second.close()
        third.bind(local)
        third.close()

    run(calls)


def test_calls_on_blocking_sockets_that_wait_for_nothing_over_tcp_either() -> None:
    """Event loops are given sockets that still block, and ask for their names before they change that."""
    with utpsocket.create_server(LOCALHOST) as listener, utpsocket.create_connection(listener.getsockname()) as client:
        server, _ = listener.accept()

        def calls(done: list[str]) -> None:
            assert client.getpeername() == listener.getsockname()
            with client.dup() as copy:
                assert copy.getpeername() == listener.getsockname()
            with pytest.raises(OSError) as refused:
                listener.getpeername()
            assert refused.value.errno == errno.ENOTCONN
            done.append("getpeername")
            assert client.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR) == 0
            done.append("SO_ERROR")
            client.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            done.append("close with a reset")

        with server:
            run(calls)
            with pytest.raises(ConnectionResetError):
                server.recv(1)


def test_calls_on_connecting_and_connected_sockets() -> None:
    with pair() as (listener, client, server), utpsocket.socket() as waiting:
        waiting.connect(listener.getsockname())  # for accept() below
        waiting.setblocking(False)
        silent = stdlib.socket(stdlib.AF_INET, stdlib.SOCK_DGRAM)
        silent.bind(LOCALHOST)

        def calls(done: list[str]) -> None:
            assert server.getpeername() == client.getsockname()
            done.append("getpeername")
            assert client.getsockopt(utpsocket.SOL_UTP, utpsocket.UTP_INFO)
            done.append("UTP_INFO")
            for name in (stdlib.SO_SNDBUF, stdlib.SO_RCVBUF, stdlib.SO_KEEPALIVE):
                client.setsockopt(stdlib.SOL_SOCKET, name, 65_536)
            client.setsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY, 1)
            done.append("setsockopt")
            assert client.send(b"question") == 8
            with pytest.raises(BlockingIOError):
                server.recv(1)
            done.append("send, recv")
            new = fresh()
            assert new.connect_ex(listener.getsockname()) == errno.EINPROGRESS
            assert new.connect_ex(listener.getsockname()) == errno.EALREADY
            assert new.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR) == 0
            done.append("connect")
            new.close()
            given_up = fresh()
            assert given_up.connect_ex(silent.getsockname()) == errno.EINPROGRESS
            copy = given_up.dup()
            given_up.shutdown(stdlib.SHUT_RDWR)
            poller = select.poll()
            poller.register(copy, select.POLLIN)
            assert [mask & select.POLLHUP for _, mask in poller.poll(0)] == [select.POLLHUP]
            copy.close()
            assert given_up.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR) == errno.ECONNRESET
            done.append("shutdown")
            assert given_up.connect_ex(silent.getsockname()) == errno.EINPROGRESS
            given_up.close()
            bound = fresh()
            bound.bind(LOCALHOST)
            assert bound.connect_ex(silent.getsockname()) == errno.EINPROGRESS
            bound.close()
            done.append("connect from a bound port")
            hasty = fresh()
            assert hasty.connect_ex(listener.getsockname()) == errno.EINPROGRESS
            hasty.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, struct.pack("ii", 1, 0))
            hasty.close()
            done.append("close with SO_LINGER of 0 s")
            client.shutdown(stdlib.SHUT_WR)
            client.close()
            server.close()
            listener.close()
            done.append("close")

        accepted = eventually_accepted(listener)
        with silent, accepted:
            run(calls)


def eventually_accepted(listener: utpsocket.socket) -> utpsocket.socket:
    """accept(), which the engine has been given the time for."""
    listener.settimeout(WAIT_S)
    sock, _ = listener.accept()
    sock.setblocking(False)
    listener.setblocking(False)
    return sock


def test_the_address_of_a_listener_with_connections_waiting_can_be_bound_again_at_once() -> None:
    """They must be reset first, which is the engine's; the next socket shares the port until then."""
    listener = utpsocket.create_server(LOCALHOST)
    listener.setblocking(False)
    local = listener.getsockname()
    clients = [utpsocket.create_connection(local) for _ in range(3)]

    def calls(done: list[str]) -> None:
        listener.close()
        again = fresh()
        again.bind(local)
        done.append("bind")
        again.listen()
        done.append("listen")
        again.close()

    run(calls)
    for client in clients:
        with client, pytest.raises(ConnectionResetError):
            client.settimeout(WAIT_S)
            client.recv(1)


@contextmanager
def no_wait_on(thread: int) -> Iterator[None]:
    """Whatever of this thread waits for the engine fails: as blockbuster has it on the thread of an event loop."""
    original = Loop.call

    def guarded(self: Loop, command: Callable[..., object], *arguments: object, **named: object) -> object:
        if threading.get_ident() == thread:
            raise AssertionError(f"waits for the engine: {command.__name__}")
        return original(self, command, *arguments, **named)

    Loop.call = guarded  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        Loop.call = original  # type: ignore[method-assign]


async def talk_all_day(silent: tuple[str, int]) -> None:
    """What servers and clients over asyncio call."""
    loop = asyncio.get_running_loop()
    peers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer.get_extra_info("peername"))
        writer.get_extra_info("socket").setsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY, 1)
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    ours = []
    for _ in range(3):
        reader, writer = await asyncio.open_connection(*address)
        ours.append(writer.get_extra_info("sockname"))
        writer.write(bytes(1 << 20))
        writer.write_eof()
        assert len(await reader.read()) == 1 << 20
        writer.close()
        await writer.wait_closed()
    assert sorted(peers) == sorted(ours)

    with pytest.raises(OSError, match="in use"):
        await asyncio.start_server(serve, *address, reuse_address=False)
    server.close()
    await server.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)

    with stdlib.socket() as listener, stdlib.socket() as client, stdlib.socket() as given_up:
        for sock in (listener, client, given_up):
            sock.setblocking(False)
        listener.bind(LOCALHOST)
        listener.listen()
        listener.listen(3)
        await loop.sock_connect(client, listener.getsockname())
        accepted, _ = await loop.sock_accept(listener)
        with accepted, accepted.dup() as copy:
            assert copy.getpeername() == client.getsockname()
            await loop.sock_sendall(client, b"question")
            assert await loop.sock_recv(copy, 8) == b"question"
            accepted.shutdown(stdlib.SHUT_WR)
            assert await loop.sock_recv(client, 1) == b""
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(loop.sock_connect(given_up, silent), 0.05)


def test_an_event_loop_never_waits_for_the_engine() -> None:
    with stdlib.socket(stdlib.AF_INET, stdlib.SOCK_DGRAM) as silent:
        silent.bind(LOCALHOST)
        with monkey.patched(), no_wait_on(threading.get_ident()):
            asyncio.run(talk_all_day(silent.getsockname()))


def calls_made(call: Callable[[], object]) -> int:
    """How many functions, of Python and of C, this calls."""
    made = 0

    def count(_: object, event: str, __: object) -> None:
        nonlocal made
        made += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(before)
    return made


def test_what_a_call_does_before_it_returns() -> None:
    """Functions are counted, not time: before, there were 115 in connect(), 74 in bind(), 40 in listen(). The fewest of
    several times: now and then there is something to be put in order.
    """
    shutdown()  # an engine that has served other tests may have more to look after
    most = {"bind": 70, "listen": 38, "connect": 105, "accept": 61}
    fewest = dict.fromkeys(most, 1_000)
    for _ in range(5):
        with utpsocket.create_server(LOCALHOST) as listener, fresh() as bound, fresh() as client:
            calls: list[tuple[str, Callable[[], object]]] = [
                ("bind", lambda: bound.bind(LOCALHOST)),
                ("listen", lambda: bound.listen()),
                ("connect", lambda: client.connect_ex(listener.getsockname())),
                ("accept", lambda: listener.accept()[0].close()),
            ]
            for name, call in calls:
                fewest[name] = min(fewest[name], calls_made(call))
    assert all(fewest[name] <= most[name] for name in most), fewest
