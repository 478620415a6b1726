"""TLS: wrapped before and after connecting, blocking or not, through asyncio, the orderly end and the rude one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from .network import PATIENCE_S, Net, Task, outcome, raises_errno, run

pytestmark = pytest.mark.usefixtures("patch_stdlib")


class Contexts:
    """One authority, a server certificate for localhost and 127.0.0.1, a client certificate."""

    def __init__(self) -> None:
        authority = trustme.CA()
        self.authority_pem = authority.cert_pem.bytes().decode()
        self.client_certificate = authority.issue_cert("client@example.org")
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(self.server)
        self.server.set_alpn_protocols(["second", "first"])
        self.client = ssl.create_default_context(cadata=self.authority_pem)

    def demanding_server(self) -> ssl.SSLContext:
        self.server.load_verify_locations(cadata=self.authority_pem)
        self.server.verify_mode = ssl.CERT_REQUIRED
        return self.server


@pytest.fixture
def tls() -> Contexts:
    return Contexts()


def wrapped(net: Net, tls: Contexts, **client_options: Any) -> tuple[Any, Any]:
    """-> (client, server), both wrapped and past their handshake."""
    client, server = net.pair()
    accepting = net.spawn(lambda: net.own(tls.server.wrap_socket(server, server_side=True)))
    wrapped_client = net.own(tls.client.wrap_socket(client, **{"server_hostname": "localhost", **client_options}))
    return wrapped_client, accepting.result()


def exchange(client: Any, server: Any, spawn: Any) -> None:
    payload = os.urandom(400_000)

    def answer() -> None:
        received = bytearray()
        while len(received) < len(payload):
            received += server.recv(65_536)
        server.sendall(received[::-1])

    task: Task = spawn(answer)
    client.sendall(payload)
    received = bytearray()
    while len(received) < len(payload):
        received += client.recv(65_536)
    task.result()
    assert received == payload[::-1]


@pytest.mark.parametrize("timeout", [None, PATIENCE_S], ids=["blocking", "timeout"])
def test_both_ways(net: Net, tls: Contexts, timeout: float | None) -> None:
    client, server = wrapped(net, tls)
    client.settimeout(timeout)
    exchange(client, server, net.spawn)


def test_names_of_wrapped_sockets(net: Net, tls: Contexts) -> None:
    plain_client, plain_server = net.pair()
    names = plain_client.getsockname(), plain_client.getpeername()
    accepting = net.spawn(lambda: net.own(tls.server.wrap_socket(plain_server, server_side=True)))
    client = net.own(tls.client.wrap_socket(plain_client, server_hostname="localhost"))
    server = accepting.result()
    assert plain_client.fileno() == -1
    assert (client.getsockname(), client.getpeername()) == names == (server.getpeername(), server.getsockname())
    assert isinstance(client, ssl.SSLSocket)
    assert isinstance(client, socket.socket)
    for sock in (client, server):
        assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
        assert str(names[0]) in repr(sock)
        assert str(names[1]) in repr(sock)


def test_options_of_wrapped_sockets(net: Net, tls: Contexts) -> None:
    client, _ = wrapped(net, tls)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_session_facts(net: Net, tls: Contexts) -> None:
    asked: list[str | None] = []
    tls.server.sni_callback = lambda sock, name, context: asked.append(name)
    tls.client.set_alpn_protocols(["first"])
    client, server = wrapped(net, tls)
    assert asked == ["localhost"]
    assert client.selected_alpn_protocol() == server.selected_alpn_protocol() == "first"
    assert client.version() == server.version()
    assert ("DNS", "localhost") in client.getpeercert()["subjectAltName"]
    assert client.server_hostname == "localhost"


def test_client_certificate(net: Net, tls: Contexts) -> None:
    tls.client_certificate.configure_cert(tls.client)
    tls.demanding_server()
    client, server = wrapped(net, tls)
    assert ("email", "client@example.org") in server.getpeercert()["subjectAltName"]
    exchange(client, server, net.spawn)


def test_wrap_then_connect(net: Net, tls: Contexts) -> None:
    listener = net.listener()
    accepting = net.spawn(lambda: net.own(tls.server.wrap_socket(net.accept(listener), server_side=True)))
    client = net.own(tls.client.wrap_socket(net.fresh(), server_hostname="localhost"))
    with raises_errno(errno.ENOTCONN):
        client.getpeername()
    client.connect(listener.getsockname())
    assert client.getpeername() == listener.getsockname()
    exchange(client, accepting.result(), net.spawn)


def test_wrap_then_connect_refused(net: Net, tls: Contexts) -> None:
    client = net.own(tls.client.wrap_socket(net.fresh(), server_hostname="localhost"))
    with pytest.raises(ConnectionRefusedError):
        client.connect(net.refused_address())


def test_wrapped_listener(net: Net, tls: Contexts) -> None:
    listener = net.own(tls.server.wrap_socket(net.listener(), server_side=True))
    accepting = net.spawn(listener.accept)
    plain = net.fresh()
    plain.connect(listener.getsockname())
    client = net.own(tls.client.wrap_socket(plain, server_hostname="localhost"))
    server, address = accepting.result()
    net.own(server)
    assert isinstance(server, ssl.SSLSocket)
    assert address == client.getsockname() == server.getpeername()
    exchange(client, server, net.spawn)


def test_handshake_by_hand_without_blocking(net: Net, tls: Contexts) -> None:
    plain = net.pair()
    client = net.own(tls.client.wrap_socket(plain[0], server_hostname="localhost", do_handshake_on_connect=False))
    server = net.own(tls.server.wrap_socket(plain[1], server_side=True, do_handshake_on_connect=False))
    unfinished = {client, server}
    for sock in unfinished:
        sock.setblocking(False)
    while unfinished:
        for sock in tuple(unfinished):
            try:
                sock.do_handshake()
                unfinished.remove(sock)
            except ssl.SSLWantReadError:
                pass
        select.select(list(unfinished), [], [], 0.01)
    with pytest.raises(ssl.SSLWantReadError):
        server.recv(1)
    assert client.send(b"hello") == 5
    assert select.select([server], [], [], PATIENCE_S)[0]
    assert server.recv(10) == b"hello"


def test_handshake_times_out(net: Net, tls: Contexts) -> None:
    client, _ = net.pair()
    client.settimeout(0.05)
    with pytest.raises(TimeoutError, match="timed out"):
        tls.client.wrap_socket(client, server_hostname="localhost")
    client.close()


def test_wrong_name_and_unknown_authority(net: Net, tls: Contexts) -> None:
    for context, name in ((tls.client, "example.org"), (ssl.create_default_context(), "localhost")):
        client, server = net.pair()

        def accept(server: Any = server) -> None:
            with contextlib.suppress(OSError):
                tls.server.wrap_socket(server, server_side=True).close()
            server.close()

        accepting = net.spawn(accept)
        with pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(client, server_hostname=name)
        client.close()
        accepting.result()


def test_orderly_end_of_the_session(net: Net, tls: Contexts) -> None:
    client, server = wrapped(net, tls)
    server.sendall(b"last")
    closing = net.spawn(server.unwrap)
    assert client.recv(10) == b"last"
    assert client.recv(10) == b""
    plain_client = net.own(client.unwrap())
    plain_server = net.own(closing.result())
    assert type(plain_client) is net.module.socket or isinstance(plain_client, socket.socket)
    plain_client.sendall(b"plain again")
    assert plain_server.recv(100) == b"plain again"


def over_tcp(over: Callable[[Net], tuple[str, object]]) -> tuple[str, object]:
    reference = Net("tcp")
    try:
        return over(reference)
    finally:
        reference.close()


def test_truncation_is_reported(net: Net, tls: Contexts) -> None:
    """The peer's connection ends without TLS' own goodbye: for some versions of OpenSSL and Python an end of file."""

    def over(network: Net) -> tuple[str, object]:
        client, server = wrapped(network, tls, suppress_ragged_eofs=False)
        server.close()
        return outcome(lambda: client.recv(10))

    expected = over_tcp(over)
    assert over(net) == expected
    assert expected[0] == "SSLEOFError" or expected == ("returned", b"")


def test_truncation_is_an_end_of_file_by_default(net: Net, tls: Contexts) -> None:
    client, server = wrapped(net, tls)
    server.sendall(b"x")
    server.close()
    assert client.recv(10) == b"x"
    assert client.recv(10) == b""


def test_reset_during_the_session(net: Net, tls: Contexts) -> None:
    """What recv makes of it (an error, or an end of file) depends on the versions of OpenSSL and Python."""

    def over(network: Net) -> tuple[str, object]:
        client, server = wrapped(network, tls)
        network.reset(server)
        return outcome(lambda: client.recv(10))

    expected = over_tcp(over)
    assert over(net) == expected
    assert expected in [
        ("returned", b""),
        ("ConnectionResetError", (errno.ECONNRESET, "[Errno 104] Connection reset by peer")),
    ]


def test_reset_during_the_handshake(net: Net, tls: Contexts) -> None:
    client, server = net.pair()

    def reset_after_hello() -> None:
        server.recv(1)
        net.reset(server)

    task = net.spawn(reset_after_hello)
    with pytest.raises(ConnectionResetError):
        tls.client.wrap_socket(client, server_hostname="localhost")
    task.result()
    client.close()


def test_makefile_sendfile_and_recv_into(net: Net, tls: Contexts) -> None:
    client, server = wrapped(net, tls)
    with server.makefile("rwb") as file, tempfile.TemporaryFile() as source:
        source.write(b"line\n" * 1000)
        source.seek(0)
        sending = net.spawn(client.sendfile, source)
        assert [file.readline() for _ in range(1000)] == [b"line\n"] * 1000
        assert sending.result() == 5000
        file.write(b"answer")
        file.flush()
    buffer = bytearray(10)
    assert client.recv_into(buffer) == 6
    assert buffer[:6] == b"answer"


def test_get_server_certificate(net: Net, tls: Contexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl, "create_connection", net.module.create_connection)
    listener = net.listener()

    def serve() -> None:
        with contextlib.suppress(OSError):
            tls.server.wrap_socket(net.accept(listener), server_side=True).close()

    serving = net.spawn(serve)
    certificate = ssl.get_server_certificate(listener.getsockname(), timeout=PATIENCE_S)
    serving.result()
    assert certificate.startswith("-----BEGIN CERTIFICATE-----")


def test_detached_wrapped_socket(net: Net, tls: Contexts) -> None:
    client, server = wrapped(net, tls)
    server.sendall(b"x")
    assert client.recv(1) == b"x"  # and with it the session tickets: closing with them unread would be a reset
    os.close(client.detach())
    assert client.fileno() == -1
    assert server.recv(1) == b""


# -- asyncio --------------------------------------------------------------------------------------------------


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.mark.parametrize("by_sock", [False, True], ids=["by_host", "by_sock"])
def test_asyncio_streams(net: Net, tls: Contexts, by_sock: bool) -> None:
    async def main() -> None:
        listening = net.module.create_server(("127.0.0.1", 0))
        server = await asyncio.start_server(echo, sock=listening, ssl=tls.server)
        address = listening.getsockname()
        if by_sock:
            sock = net.fresh()
            sock.connect(address)
            where: dict[str, Any] = {"sock": sock, "server_hostname": "localhost"}
        else:
            where = {"host": address[0], "port": address[1]}
        reader, writer = await asyncio.open_connection(**where, ssl=tls.client)
        assert writer.get_extra_info("peername") == address
        assert writer.get_extra_info("cipher")
        payload = os.urandom(500_000)
        writer.write(payload)
        assert await reader.readexactly(len(payload)) == payload
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())


def test_asyncio_start_tls(net: Net, tls: Contexts) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        plain_client, plain_server = net.pair()

        async def upgrade(sock: Any, context: ssl.SSLContext, **options: Any) -> tuple[Any, Any]:
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
            secure = await loop.start_tls(transport, protocol, context, **options)
            assert secure is not None
            return reader, asyncio.StreamWriter(secure, protocol, reader, loop)

        plain_client.setblocking(False)
        plain_server.setblocking(False)
        (client_reader, client), (server_reader, server) = await asyncio.gather(
            upgrade(plain_client, tls.client, server_hostname="localhost"),
            upgrade(plain_server, tls.server, server_side=True),
        )
        client.write(b"upgraded")
        assert await server_reader.readexactly(8) == b"upgraded"
        server.write(b"indeed")
        assert await client_reader.readexactly(6) == b"indeed"
        for writer in (client, server):
            writer.transport.abort()
        await asyncio.sleep(0)

    run(main())


def test_https(net: Net, tls: Contexts, tmp_path: Path) -> None:
    import functools
    import http.client
    import http.server

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    (tmp_path / "page").write_bytes(b"secure " * 50_000)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    server.socket = tls.server.wrap_socket(server.socket, server_side=True)
    serving = net.spawn(server.serve_forever, 0.02)
    try:
        host, port = server.socket.getsockname()
        connection = http.client.HTTPSConnection(host, port, context=tls.client, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("GET", "/page")
            assert isinstance(connection.sock, ssl.SSLSocket)
            assert connection.sock.getpeername() == server.server_address
            assert connection.getresponse().read() == b"secure " * 50_000
    finally:
        server.shutdown()
        serving.result()
        server.server_close()
