"""asyncio: streams, sock_*, servers, transports, reset and refusal; host names with the class replaced, and `sock=`."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ..requirements import has_ipv6
from .network import PATIENCE_S, Net, own_loopback, raises_errno, run

pytestmark = pytest.mark.usefixtures("patch_stdlib")


async def finished(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(100_000):
        writer.write(data)
        await writer.drain()
    await finished(writer)


@contextlib.asynccontextmanager
async def echo_server(net: Net, *, by_sock: bool) -> AsyncIterator[Any]:
    where: dict[str, Any] = (
        {"sock": net.module.create_server((own_loopback(), 0))} if by_sock else {"host": own_loopback(), "port": 0}
    )
    server = await asyncio.start_server(echo, **where)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        await server.wait_closed()


async def connect(net: Net, address: Any, *, by_sock: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if not by_sock:
        return await asyncio.open_connection(*address)
    sock = net.fresh()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, address)
    return await asyncio.open_connection(sock=sock)


both_ways = pytest.mark.parametrize("by_sock", [False, True], ids=["by_host", "by_sock"])


@both_ways
def test_streams(net: Net, by_sock: bool) -> None:
    async def main() -> None:
        async with echo_server(net, by_sock=by_sock) as address:
            reader, writer = await connect(net, address, by_sock=by_sock)
            assert writer.get_extra_info("peername") == address
            assert writer.get_extra_info("sockname")[0] == "127.0.0.1"
            assert writer.get_extra_info("socket").family == socket.AF_INET
            payload = os.urandom(2 << 20)
            writer.write(payload)
            writer.write_eof()
            assert await reader.read() == payload
            await finished(writer)

    run(main())


@both_ways
def test_many_clients(net: Net, by_sock: bool) -> None:
    async def main() -> None:
        async with echo_server(net, by_sock=by_sock) as address:

            async def one(number: int) -> bool:
                reader, writer = await connect(net, address, by_sock=by_sock)
                answers = []
                for turn in range(5):
                    writer.write(b"%d %d\n" % (number, turn))
                    answers.append(await reader.readline())
                await finished(writer)
                return answers == [b"%d %d\n" % (number, turn) for turn in range(5)]

            assert all(await asyncio.gather(*(one(number) for number in range(30))))

    run(main())


@both_ways
def test_peer_names_of_accepted_connections(net: Net, by_sock: bool) -> None:
    async def main() -> None:
        names: asyncio.Queue[Any] = asyncio.Queue()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await names.put((writer.get_extra_info("peername"), writer.get_extra_info("sockname")))
            await finished(writer)

        listening = net.module.create_server(("127.0.0.1", 0))
        server = await asyncio.start_server(serve, sock=listening)
        reader, writer = await connect(net, listening.getsockname(), by_sock=by_sock)
        assert await names.get() == (writer.get_extra_info("sockname"), writer.get_extra_info("peername"))
        assert await reader.read() == b""
        await finished(writer)
        server.close()
        await server.wait_closed()

    run(main())


def test_open_connection_refused(net: Net) -> None:
    async def main() -> None:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*net.refused_address())

    run(main())


def test_open_connection_cancelled(net: Net) -> None:
    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.open_connection(*net.silent_address()), 0.05)

    run(main())


def test_local_address(net: Net) -> None:
    async def main() -> None:
        async with echo_server(net, by_sock=False) as address:
            _, writer = await asyncio.open_connection(*address, local_addr=("127.0.0.2", 0))
            assert writer.get_extra_info("sockname")[0] == "127.0.0.2"
            await finished(writer)

    run(main())


def test_port_in_use(net: Net) -> None:
    async def main() -> None:
        with pytest.raises(OSError) as caught:
            await asyncio.start_server(echo, *net.listener().getsockname())
        assert caught.value.errno == errno.EADDRINUSE

    run(main())


def test_serving_both_families_of_one_name(net: Net) -> None:
    async def main() -> None:
        server = await asyncio.start_server(echo, ["127.0.0.1", "::1"] if has_ipv6() else ["127.0.0.1"], 0)
        for listening in server.sockets:
            reader, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            await finished(writer)
        server.close()
        await server.wait_closed()

    run(main())


# -- the loop's socket calls ----------------------------------------------------------------------------------


def test_sock_calls(net: Net) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        listener, client = net.listener(), net.fresh()
        for sock in (listener, client):
            sock.setblocking(False)
        accepting = asyncio.ensure_future(loop.sock_accept(listener))
        await loop.sock_connect(client, listener.getsockname())
        server, address = await accepting
        net.own(server)
        assert address == client.getsockname()
        assert server.getblocking() is False
        payload = os.urandom(1 << 20)
        received = bytearray()

        async def receive() -> None:
            while data := await loop.sock_recv(server, 65_536):
                received.extend(data)

        receiving = asyncio.ensure_future(receive())
        await loop.sock_sendall(client, payload)
        client.shutdown(socket.SHUT_WR)
        await receiving
        assert received == payload
        await loop.sock_sendall(server, b"in a buffer")
        buffer = bytearray(20)
        assert await loop.sock_recv_into(client, buffer) == 11
        assert buffer[:11] == b"in a buffer"

    run(main())


def test_sock_connect_refused(net: Net) -> None:
    async def main() -> None:
        sock = net.fresh()
        sock.setblocking(False)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.get_running_loop().sock_connect(sock, net.refused_address())

    run(main())


def test_sock_connect_cancelled(net: Net) -> None:
    async def main() -> None:
        sock = net.fresh()
        sock.setblocking(False)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, net.silent_address()), 0.05)

    run(main())


def test_sock_recv_raises_for_a_reset(net: Net) -> None:
    async def main() -> None:
        client, server = net.pair()
        client.setblocking(False)
        receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(client, 10))
        await asyncio.sleep(0)
        net.reset(server)
        with pytest.raises(ConnectionResetError):
            await receiving

    run(main())


@pytest.mark.parametrize("fallback", [False, True])
def test_sock_sendfile(net: Net, fallback: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        client, server = net.pair()
        client.setblocking(False)
        server.setblocking(False)
        content = os.urandom(500_000)
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)

            async def receive() -> bytes:
                received = bytearray()
                while data := await loop.sock_recv(server, 65_536):
                    received += data
                return bytes(received)

            receiving = asyncio.ensure_future(receive())
            assert await loop.sock_sendfile(client, file, fallback=fallback) == len(content)
            client.close()
            assert await receiving == content

    run(main())


def test_transport_sendfile(net: Net) -> None:
    async def main() -> None:
        async with echo_server(net, by_sock=True) as address:
            reader, writer = await connect(net, address, by_sock=True)
            content = os.urandom(500_000)
            with tempfile.TemporaryFile() as file:
                file.write(content)
                file.seek(0)
                sending = asyncio.ensure_future(
                    asyncio.get_running_loop().sendfile(writer.transport, file, fallback=False)
                )
                assert await reader.readexactly(len(content)) == content
                assert await sending == len(content)
            await finished(writer)

    run(main())


def test_add_reader_and_add_writer(net: Net) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        client, server = net.pair()
        readable, writable = asyncio.Event(), asyncio.Event()
        loop.add_reader(client, readable.set)
        loop.add_writer(client, writable.set)
        await writable.wait()
        assert not readable.is_set()
        server.sendall(b"x")
        await readable.wait()
        assert client.recv(1) == b"x"
        loop.remove_reader(client)
        loop.remove_writer(client)

    run(main())


# -- transports and protocols ---------------------------------------------------------------------------------


class Recording(asyncio.Protocol):
    def __init__(self) -> None:
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self.received = bytearray()
        self.eof = False

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> bool:
        self.eof = True
        return False

    def connection_lost(self, error: BaseException | None) -> None:
        self.lost.set_result(error)


def test_connection_lost_is_called_at_the_end(net: Net) -> None:
    async def main() -> None:
        client, server = net.pair()
        client.setblocking(False)
        _, protocol = await asyncio.get_running_loop().create_connection(Recording, sock=client)
        server.sendall(b"last")
        server.close()
        assert await protocol.lost is None
        assert (protocol.received, protocol.eof) == (b"last", True)

    run(main())


def test_connection_lost_is_called_for_a_reset(net: Net) -> None:
    async def main() -> None:
        client, server = net.pair()
        client.setblocking(False)
        _, protocol = await asyncio.get_running_loop().create_connection(Recording, sock=client)
        net.reset(server)
        assert isinstance(await protocol.lost, ConnectionResetError)

    run(main())


def test_transport_abort(net: Net) -> None:
    async def main() -> None:
        client, server = net.pair()
        client.setblocking(False)
        transport, protocol = await asyncio.get_running_loop().create_connection(Recording, sock=client)
        transport.abort()
        assert await protocol.lost is None
        assert server.recv(1) == b""

    run(main())


def test_transport_holds_back_writing(net: Net) -> None:
    async def main() -> None:
        client, server = net.pair()
        server.settimeout(PATIENCE_S)
        _, writer = await asyncio.open_connection(sock=client)
        size = 30 << 20
        writer.write(bytes(size))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(writer.drain(), 0.05)

        def drain() -> int:
            total = 0
            while part := server.recv(1 << 20):
                total += len(part)
            return total

        draining = asyncio.get_running_loop().run_in_executor(None, drain)
        await writer.drain()
        await finished(writer)
        assert await draining == size

    run(main())


def test_connect_accepted_socket(net: Net) -> None:
    async def main() -> None:
        client, server = net.pair()
        _, protocol = await asyncio.get_running_loop().connect_accepted_socket(Recording, server)
        client.sendall(b"hello")
        client.close()
        assert await protocol.lost is None
        assert protocol.received == b"hello"

    run(main())


def test_server_closed_refuses(net: Net) -> None:
    async def main() -> None:
        async with echo_server(net, by_sock=False) as address:
            pass
        with raises_errno(errno.ECONNREFUSED):
            await asyncio.open_connection(*address)

    run(main())
