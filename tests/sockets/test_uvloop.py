"""uvloop, whose sockets are made in C: over TCP as it is, over uTP with the class socket.socket patched in place."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import subprocess
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import trustme

import utpsocket.monkey
from utpsocket import loops
from utpsocket.integrations.uvloop.transports import UnixStreamAdapter
from utpsocket.sockets import shim
from utpsocket.stats import engine_stats

from ..requirements import requires_ipv6
from .network import PATIENCE_S, REPOSITORY, Net, eventually, receive_all

uvloop = pytest.importorskip("uvloop")
# libuv's own pipe for signals is made by the first loop and stays: not a test's leak.
_first = uvloop.new_event_loop()
_first.run_until_complete(asyncio.sleep(0))
_first.close()

PAYLOAD = bytes(range(256)) * 2_048
Main = Callable[[], Awaitable[None]]


@contextlib.contextmanager
def patched_for(net: Net) -> Iterator[None]:
    if net.name == "tcp":
        yield
        return
    with utpsocket.monkey.patched():
        yield


def run_over(net: Net, main: Main, *, connections: int) -> None:
    """Run `main` under uvloop; over uTP both sides of `connections` must have been uTP's, over TCP none."""
    with patched_for(net):
        before = engine_stats()
        run(main)
        after = engine_stats()
    expected = connections if net.name == "utp" else 0
    assert after.connections_initiated - before.connections_initiated == expected
    assert after.connections_accepted - before.connections_accepted == expected


def run(main: Main, make_loop: Callable[[], Any] | None = None) -> None:
    loop = (make_loop or uvloop.new_event_loop)()
    faults: list[Any] = []
    loop.set_exception_handler(lambda _, context: faults.append(context))
    try:
        loop.run_until_complete(asyncio.wait_for(main(), PATIENCE_S))
        if left := asyncio.all_tasks(loop):
            loop.run_until_complete(asyncio.wait(left, timeout=PATIENCE_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()
    assert faults == []


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(1 << 16):
        writer.write(chunk)
        await writer.drain()
    await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send all, half-close, and read it back."""
    sent = asyncio.ensure_future(send(writer))
    assert await reader.read() == PAYLOAD
    await sent
    await close(writer)


async def send(writer: asyncio.StreamWriter) -> None:
    writer.write(PAYLOAD)
    await writer.drain()
    writer.write_eof()


@contextlib.asynccontextmanager
async def serving(handle: Any = echo, host: Any = "127.0.0.1", **named: Any) -> Any:
    server = await asyncio.start_server(handle, host, 0, **named)
    try:
        yield server
    finally:
        server.close()
    await server.wait_closed()


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)
    return server, client


def test_streams(net: Net) -> None:
    async def main() -> None:
        async with serving() as server:
            await talk(*await asyncio.open_connection(*server.sockets[0].getsockname()))

    run_over(net, main, connections=1)


def test_many_connections_at_once(net: Net) -> None:
    async def main() -> None:
        async with serving() as server:
            address = server.sockets[0].getsockname()
            await asyncio.gather(*[talk(*await asyncio.open_connection(*address)) for _ in range(20)])

    run_over(net, main, connections=20)


def test_addresses_and_sockets_of_transports_are_those_of_the_connection(net: Net) -> None:
    seen: list[tuple[Any, Any]] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
        assert (sock.getsockname(), sock.getpeername()) == ends(writer)
        seen.append(ends(writer))
        writer.write(b"!")
        await close(writer)

    async def main() -> None:
        async with serving(note) as server:
            listener = server.sockets[0]
            assert (listener.family, listener.type) == (socket.AF_INET, socket.SOCK_STREAM)
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
            with sock.dup() as copy:
                assert (copy.getsockname(), copy.getpeername()) == ends(writer)
            assert await reader.read() == b"!"
            assert ends(writer)[1] == listener.getsockname()
            assert [(peer, local) for local, peer in seen] == [ends(writer)]
            await close(writer)
        assert list(server.sockets) == []

    run_over(net, main, connections=1)


def ends(writer: asyncio.StreamWriter) -> tuple[Any, Any]:
    return writer.get_extra_info("sockname"), writer.get_extra_info("peername")


@requires_ipv6
def test_one_server_on_both_families(net: Net) -> None:
    async def main() -> None:
        async with serving(host=["127.0.0.1", "::1"]) as server:
            assert sorted(sock.family for sock in server.sockets) == [socket.AF_INET, socket.AF_INET6]
            for sock in server.sockets:
                await talk(*await asyncio.open_connection(*sock.getsockname()[:2]))

    run_over(net, main, connections=2)


def test_a_server_and_a_client_over_sockets_made_before(net: Net) -> None:
    async def main() -> None:
        listener, client = socket.create_server(("127.0.0.1", 0)), socket.socket()
        async with serving_on(listener) as server:
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, server.sockets[0].getsockname())
            await talk(*await asyncio.open_connection(sock=client))
        assert listener.fileno() == client.fileno() == -1

    run_over(net, main, connections=1)


@contextlib.asynccontextmanager
async def serving_on(listener: socket.socket) -> Any:
    server = await asyncio.start_server(echo, sock=listener)
    try:
        yield server
    finally:
        server.close()
    await server.wait_closed()


def test_an_accepted_socket_becomes_a_transport(net: Net) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        connecting = asyncio.ensure_future(asyncio.open_connection(*listener.getsockname()))
        sock, peer = await loop.sock_accept(listener)
        listener.close()
        reader = asyncio.StreamReader()
        made = lambda: asyncio.StreamReaderProtocol(reader, echo)  # noqa: E731
        transport, _ = await loop.connect_accepted_socket(made, sock)
        assert transport.get_extra_info("peername") == peer
        await talk(*await connecting)

    run_over(net, main, connections=1)


def test_sock_methods(net: Net) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        listener, client = socket.create_server(("127.0.0.1", 0)), socket.socket()
        for sock in (listener, client):
            sock.setblocking(False)
        accepting = asyncio.ensure_future(loop.sock_accept(listener))
        await loop.sock_connect(client, listener.getsockname())
        conn, _ = await accepting
        sending = asyncio.ensure_future(loop.sock_sendall(client, PAYLOAD))
        received = bytearray()
        while len(received) < len(PAYLOAD):
            received += await loop.sock_recv(conn, 1 << 16)
        await sending
        assert received == PAYLOAD
        for sock in (listener, client, conn):
            sock.close()

    run_over(net, main, connections=1)


def test_tls(net: Net) -> None:
    server_context, client_context = tls_contexts()

    async def main() -> None:
        async with serving(answer, ssl=server_context) as server:
            address = server.sockets[0].getsockname()
            named: dict[str, Any] = {"ssl": client_context, "server_hostname": "localhost"}
            reader, writer = await asyncio.open_connection(*address, **named)
            assert ends(writer)[1] == address
            assert writer.get_extra_info("socket").family == socket.AF_INET
            assert writer.get_extra_info("ssl_object").version().startswith("TLS")
            await ask(reader, writer)

    run_over(net, main, connections=1)


def test_a_transport_over_tls_is_named_so(net: Net) -> None:
    """Programs look at the class's name, as uvloop's own tests do."""

    async def main() -> None:
        server_context, client_context = tls_contexts()
        async with serving(ssl=server_context) as server:
            address = server.sockets[0].getsockname()
            _, secure = await asyncio.open_connection(*address, ssl=client_context, server_hostname="localhost")
            assert "SSL" in type(secure.transport).__name__
            await close(secure)
        async with serving() as server:
            _, plain = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert "SSL" not in type(plain.transport).__name__
            await close(plain)

    run_over(net, main, connections=2)


@pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
def test_times_of_tls_without_tls_are_refused(net: Net, name: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(ValueError, match=f"{name} is only meaningful with ssl"):
            await loop.create_connection(asyncio.Protocol, "127.0.0.1", 9, **{name: 5.0})  # type: ignore[call-overload]

    run_over(net, main, connections=0)


def test_the_loop_keeps_a_server_that_the_program_does_not(net: Net) -> None:
    async def main() -> None:
        server: Any = await asyncio.start_server(echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        kept = weakref.ref(server)
        del server
        gc.collect()
        await talk(*await asyncio.open_connection(*address))
        server = kept()
        assert server is not None
        server.close()
        await server.wait_closed()
        del server
        await eventually_gone(kept)

    run_over(net, main, connections=1)


async def eventually_gone(kept: weakref.ref[Any]) -> None:
    for _ in range(100):
        gc.collect()
        if kept() is None:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the loop refers to a closed server")


def test_start_tls(net: Net) -> None:
    server_context, client_context = tls_contexts()

    async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await secure(reader, writer, server_context, server_side=True)
        writer.write(
            b"secure\n"
        )  # not before its reader knows the new transport may it be flooded: it would pause the old
        await answer(reader, writer)

    async def main() -> None:
        async with serving(upgrade) as server:
            address = server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"go\n"
            await secure(reader, writer, client_context, server_hostname="localhost")
            assert await reader.readline() == b"secure\n"
            assert ends(writer)[1] == address
            await ask(reader, writer)

    run_over(net, main, connections=1)


async def secure(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: Any, **named: Any) -> None:
    """What StreamWriter.start_tls() does from 3.11 on."""
    protocol = writer.transport.get_protocol()
    transport = await asyncio.get_running_loop().start_tls(writer.transport, protocol, context, **named)
    writer._transport = transport  # type: ignore[attr-defined]
    reader._transport = transport  # type: ignore[attr-defined]
    protocol._over_ssl = True  # type: ignore[attr-defined]


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    question = await reader.readexactly(len(PAYLOAD))
    writer.write(question[::-1])
    await writer.drain()
    assert await reader.read() == b""
    await close(writer)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(PAYLOAD)
    assert await reader.readexactly(len(PAYLOAD)) == PAYLOAD[::-1]
    await close(writer)


def test_a_port_without_a_listener_refuses(net: Net) -> None:
    address = net.refused_address()

    async def main() -> None:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)

    with patched_for(net):
        run(main)


def test_a_refused_connect_leaves_nothing_to_the_garbage_collector(net: Net) -> None:
    address = net.refused_address()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionRefusedError):
            await loop.create_connection(asyncio.Protocol, *address)
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            with pytest.raises(ConnectionRefusedError) as refused:
                await loop.create_connection(asyncio.Protocol, *address)
            assert str(refused.value) == "[Errno 111] Connection refused"
            del refused
            gc.collect()
            assert [found for found in gc.garbage if isinstance(found, (OSError, socket.socket))] == []
        finally:
            gc.set_debug(0)
            gc.garbage.clear()

    with patched_for(net):
        run(main)


class Noting(asyncio.Protocol):
    """Keeps its transport, and raises when something comes."""

    def __init__(self, ends: list[Noting]) -> None:
        self.ended = asyncio.get_running_loop().create_future()
        ends.append(self)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        raise ValueError(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(error)


def test_transports_have_tcps_name_in_messages(net: Net) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        contexts: list[Any] = []
        handler = loop.get_exception_handler()
        loop.set_exception_handler(lambda _, context: contexts.append(context))
        ends: list[Noting] = []
        server = await loop.create_server(lambda: Noting(ends), "127.0.0.1", 0)
        assert repr(server).startswith("<Server sockets=[<")
        address = server.sockets[0].getsockname()
        client, _ = await loop.create_connection(asyncio.Protocol, *address)
        silent, protocol = await loop.create_connection(lambda: Noting([]), *address)
        assert repr(client).startswith("<TCPTransport closed=False reading=True 0x")
        sock = client.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert f"fd={sock.fileno()}, family=AF_INET, type=SOCK_STREAM, proto=0, laddr=" in repr(sock)
        while len(ends) < 2:
            await asyncio.sleep(0.001)
        client.write(b"what it does not like")
        silent.close()
        await protocol.ended
        assert silent.get_extra_info("socket") is None
        client.close()
        for end in ends:
            await end.ended
        loop.set_exception_handler(handler)
        assert [context["message"] for context in contexts] == ["Fatal error on transport TCPTransport"]
        assert contexts[0]["transport"] in [end.transport for end in ends]
        assert repr(contexts[0]["transport"]).startswith("<TCPTransport closed=True")
        for end in ends:
            sock = end.transport.get_extra_info("socket")
            assert sock is None or sock.fileno() == -1
        server.close()
        await server.wait_closed()

    run_over(net, main, connections=2)


def test_what_transports_refuse_names_them_as_tcps_do(net: Net) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ends: list[Noting] = []
        server = await loop.create_server(lambda: Noting(ends), "127.0.0.1", 0)
        client, protocol = await loop.create_connection(lambda: Noting([]), *server.sockets[0].getsockname())
        try:
            fd = client.get_extra_info("socket").fileno()
            calls: list[tuple[Any, ...]] = [
                (loop.add_reader, fd, print),
                (loop.add_writer, fd, print),
                (loop.remove_reader, fd),
                (loop.remove_writer, fd),
            ]
            for call, *args in calls:
                with pytest.raises(
                    RuntimeError, match=f"^File descriptor {fd} is used by transport <TCPTransport closed"
                ):
                    call(*args)
            sock = client.get_extra_info("socket")
            for begin in (
                lambda: loop.sock_recv(sock, 1),
                lambda: loop.sock_recv_into(sock, bytearray(1)),
                lambda: loop.sock_accept(sock),
            ):
                with pytest.raises(
                    RuntimeError, match=f"^File descriptor {fd} is used by transport <TCPTransport closed"
                ):
                    await begin()
            client.close()
            await protocol.ended
            while not ends:
                await asyncio.sleep(0.001)
            await ends[0].ended
            for transport in (client, ends[0].transport):
                while "closed=True" not in repr(transport):
                    await asyncio.sleep(0.001)
                calls = [
                    (transport.write, b"late"),
                    (transport.writelines, [b"late"]),
                    (transport.write_eof,),
                    (transport.set_write_buffer_limits,),
                ]
                for call, *args in calls:
                    with pytest.raises(
                        RuntimeError, match="^unable to perform operation on <TCPTransport closed=True "
                    ):
                        call(*args)
        finally:
            client.close()
            server.close()
        await server.wait_closed()

    run_over(net, main, connections=1)


@pytest.mark.parametrize("call", ["recv", "sendall", "connect", "shutdown", "makefile", "detach"])
def test_a_transports_socket_refuses_what_asyncios_refuses(net: Net, call: str) -> None:
    async def main() -> None:
        async with serving() as server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            sock = writer.get_extra_info("socket")
            arguments = () if call in ("makefile", "detach") else (b"",)
            with pytest.raises(TypeError, match=rf"^transport sockets do not support {call}\(\) method$"):
                getattr(sock, call)(*arguments)
            assert not hasattr(sock, "nothing_of_that_name")
            await close(writer)

    run_over(net, main, connections=1)


def test_a_peers_reset_is_reported(net: Net) -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async def main() -> None:
        async with serving(rude) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            await close(writer)

    run_over(net, main, connections=1)


def test_a_closed_servers_port_is_free_at_once(net: Net) -> None:
    async def main() -> None:
        async with serving() as server:
            address = server.sockets[0].getsockname()
        again = await asyncio.start_server(echo, *address)
        await talk(*await asyncio.open_connection(*address))
        again.close()
        await again.wait_closed()

    run_over(net, main, connections=1)


def test_a_server_that_is_to_serve_later(net: Net) -> None:
    async def main() -> None:
        async with serving(start_serving=False) as server:
            address = server.sockets[0].getsockname()
            assert not server.is_serving()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*address)
            serving_forever = asyncio.ensure_future(server.serve_forever())
            while not server.is_serving():
                await asyncio.sleep(0)
            await talk(*await asyncio.open_connection(*address))
            serving_forever.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving_forever
            assert not server.is_serving()

    with patched_for(net):
        run(main)


def test_two_servers_on_one_port_do_not_go(net: Net) -> None:
    async def main() -> None:
        async with serving() as server:
            with pytest.raises(OSError, match="(?i)address already in use"):
                await asyncio.start_server(echo, *server.sockets[0].getsockname())

    with patched_for(net):
        run(main)


def test_a_connection_from_a_given_address(net: Net) -> None:
    async def main() -> None:
        async with serving() as server:
            address = server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address, local_addr=("127.0.0.1", 0))
            assert ends(writer)[0][0] == "127.0.0.1"
            await talk(reader, writer)

    run_over(net, main, connections=1)


def test_a_protocol_with_its_own_buffer_is_fed_directly(net: Net) -> None:
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.memory = bytearray(1 << 16)
            self.received = bytearray()
            self.ended = asyncio.get_running_loop().create_future()

        def get_buffer(self, sizehint: int) -> Any:
            return self.memory

        def buffer_updated(self, nbytes: int) -> None:
            self.received += self.memory[:nbytes]

        def connection_lost(self, exc: Any) -> None:
            self.ended.set_result(exc)

    async def main() -> None:
        async with serving() as server:
            loop, address = asyncio.get_running_loop(), server.sockets[0].getsockname()
            transport, protocol = await loop.create_connection(Buffered, *address)
            assert transport.get_protocol() is protocol
            transport.write(PAYLOAD)
            transport.write_eof()
            assert await protocol.ended is None
            assert protocol.received == PAYLOAD

    run_over(net, main, connections=1)


def test_threads_of_a_program_may_have_the_other_side(net: Net) -> None:
    """A blocking client, as a test client of a web server is."""

    def blocking_client(address: Any) -> bytes:
        with socket.create_connection(address, PATIENCE_S) as sock:
            sock.sendall(PAYLOAD)
            sock.shutdown(socket.SHUT_WR)
            return receive_all(sock)

    async def main() -> None:
        async with serving() as server:
            loop = asyncio.get_running_loop()
            client = loop.run_in_executor(None, blocking_client, server.sockets[0].getsockname())
            assert await client == PAYLOAD
        await loop.shutdown_default_executor()

    run_over(net, main, connections=1)


# ── what only uTP can be asked ──


def test_without_the_patch_nothing_changes() -> None:
    before = engine_stats().connections_initiated
    assert not {"create_connection", "create_server", "start_tls"} & set(vars(uvloop.Loop))

    async def main() -> None:
        async with serving() as server:
            await talk(*await asyncio.open_connection(*server.sockets[0].getsockname()))

    run(main)
    assert engine_stats().connections_initiated == before


def test_a_loop_of_our_own_needs_no_patch() -> None:
    before = engine_stats().connections_initiated

    async def main() -> None:
        async with serving() as server:
            await talk(*await asyncio.open_connection(*server.sockets[0].getsockname()))

    run(main, loops.new_event_loop)
    assert issubclass(loops.loop_class(), uvloop.Loop)
    assert engine_stats().connections_initiated == before + 1
    assert socket.socket.__module__ == "socket" and not hasattr(socket.socket, "_utp")


def test_a_stranger_that_finds_the_listening_name_is_turned_away() -> None:
    met: list[Any] = []

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(writer)
        await close(writer)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serving(meet) as server:
            name = socket.socket(fileno=server.sockets[0].dup().detach())
            stranger = (
                "import socket, sys\n"
                "sock = socket.socket(socket.AF_UNIX); sock.settimeout(60)\n"
                "sock.connect(bytes.fromhex(sys.argv[1])); print(sock.recv(1))\n"
            )
            raw = socket._socket.socket.getsockname(name)  # type: ignore[attr-defined]
            name.close()
            command = [sys.executable, "-c", stranger, raw.hex()]
            end = await loop.run_in_executor(
                None, lambda: subprocess.run(command, capture_output=True, timeout=PATIENCE_S)
            )
            assert end.stdout == b"b''\n", end.stderr
            await loop.shutdown_default_executor()

    with utpsocket.monkey.patched():
        run(main)
    assert met == []


def test_uvloop_imported_after_the_patch_is_changed_as_well() -> None:
    program = (
        "import utpsocket.monkey\n"
        "utpsocket.monkey.patch_all()\n"
        "import uvloop, asyncio\n"
        "async def main():\n"
        "    server = await asyncio.start_server(lambda r, w: w.close(), '127.0.0.1', 0)\n"
        "    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())\n"
        "    assert await reader.read() == b''; writer.close(); server.close(); await server.wait_closed()\n"
        "loop = uvloop.new_event_loop(); loop.run_until_complete(main()); loop.close()\n"
        "from utpsocket.stats import engine_stats\n"
        "print(engine_stats().connections_initiated, engine_stats().connections_accepted)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (ran.stdout, ran.stderr) == ("1 1\n", "")


def test_a_socket_that_is_going_to_listen_has_a_name_that_is_not_unlinked() -> None:
    """What uvloop does with it on Python 3.13 and later, whatever the Python here."""
    with shim.socket() as sock:
        name = UnixStreamAdapter(sock).getsockname()
    assert name[0] in (0, "\0")


def test_no_identity_is_kept_of_what_is_closed() -> None:
    from utpsocket.sockets import registry

    async def main() -> None:
        async with serving() as server:
            address = server.sockets[0].getsockname()
            for _ in range(3):
                await talk(*await asyncio.open_connection(*address))

    before = len(registry._pinned)
    run(main, loops.new_event_loop)
    assert eventually(lambda: len(registry._pinned), before) == before
