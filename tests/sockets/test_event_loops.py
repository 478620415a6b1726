"""trio and anyio over the same sockets: neither knows of uTP.

trio takes only objects whose class is exactly socket.socket, so over uTP that class is patched in place.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
import trio
import trustme

import utpsocket.monkey
from utpsocket.stats import engine_stats

from .network import Net

PAYLOAD = bytes(range(256)) * 4_096


@contextlib.contextmanager
def a_listener_and_a_client(net: Net) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Of the class socket.socket itself, whatever it speaks."""
    with utpsocket.monkey.patched() if net.name == "utp" else contextlib.nullcontext():
        listener, client = socket.create_server(("127.0.0.1", 0)), socket.socket()
        yield listener, client
        assert type(listener) is type(client) is socket.socket
        listener.close()
        client.close()


def test_trio_streams(net: Net) -> None:
    with a_listener_and_a_client(net) as (listener, client):
        talk_over_trio(listener, client)


def talk_over_trio(listener: socket.socket, client: socket.socket) -> None:
    received = bytearray()

    async def serve(nursery: trio.Nursery) -> None:
        listener.setblocking(False)
        conn, _ = await trio.socket.from_stdlib_socket(listener).accept()
        stream = trio.SocketStream(conn)
        async for chunk in stream:
            received.extend(chunk)
        await stream.send_all(b"all of it")
        await stream.aclose()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, nursery)
            client.setblocking(False)
            sock = trio.socket.from_stdlib_socket(client)
            await sock.connect(listener.getsockname())
            stream = trio.SocketStream(sock)
            await stream.send_all(PAYLOAD)
            await stream.send_eof()
            assert await stream.receive_some(100) == b"all of it"
            assert await stream.receive_some(100) == b""
            await stream.aclose()

    trio.run(main)
    assert received == PAYLOAD


def test_trio_tls(net: Net) -> None:
    with a_listener_and_a_client(net) as (listener, client):
        talk_tls_over_trio(listener, client)


def talk_tls_over_trio(listener: socket.socket, client: socket.socket) -> None:
    authority = trustme.CA()
    server_context, client_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server_context)
    authority.configure_trust(client_context)

    async def serve() -> None:
        listener.setblocking(False)
        conn, _ = await trio.socket.from_stdlib_socket(listener).accept()
        stream = trio.SSLStream(trio.SocketStream(conn), server_context, server_side=True)
        await stream.send_all((await stream.receive_some(100)).upper())
        await stream.aclose()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            client.setblocking(False)
            sock = trio.socket.from_stdlib_socket(client)
            await sock.connect(listener.getsockname())
            stream = trio.SSLStream(trio.SocketStream(sock), client_context, server_hostname="localhost")
            await stream.send_all(b"secret")
            assert await stream.receive_some(100) == b"SECRET"
            await stream.aclose()

    trio.run(main)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_anyio_streams(net: Net, backend: str) -> None:
    """anyio makes its sockets itself."""
    answered: list[bytes] = []
    before = engine_stats().connections_accepted

    async def echo(stream: Any) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send(chunk)

    async def main() -> None:
        listeners = await anyio.create_tcp_listener(local_host="127.0.0.1")
        async with listeners, anyio.create_task_group() as group:
            group.start_soon(listeners.serve, echo)
            port = listeners.extra(anyio.abc.SocketAttribute.local_port)
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"hello")
                answered.append(await stream.receive())
            group.cancel_scope.cancel()

    run: Callable[..., Any] = anyio.run
    with utpsocket.monkey.patched() if net.name == "utp" else contextlib.nullcontext():
        run(main, backend=backend)
    assert answered == [b"hello"]
    assert engine_stats().connections_accepted - before == (net.name == "utp")
