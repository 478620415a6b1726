"""The stdlib's own servers and clients, unmodified: nothing but the name `socket` in their modules is replaced."""

from __future__ import annotations

import contextlib
import ftplib
import hashlib
import http.client
import http.server
import logging
import logging.handlers
import os
import pickle
import selectors
import smtplib
import socket
import socketserver
import struct
import urllib.request
import xmlrpc.client
import xmlrpc.server
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

from .network import PATIENCE_S, Net, eventually, receive_all, receive_exactly

pytestmark = pytest.mark.usefixtures("patch_stdlib")


@contextlib.contextmanager
def running(net: Net, server: socketserver.BaseServer) -> Iterator[Any]:
    """The server's address, while a thread runs serve_forever; proves that its socket is the network's."""
    assert type(server.socket) is net.module.socket  # type: ignore[attr-defined]
    thread = net.spawn(server.serve_forever, 0.02)
    try:
        yield server.server_address
    finally:
        server.shutdown()
        thread.result()
        server.server_close()


# -- socketserver ---------------------------------------------------------------------------------------------


class Upper(socketserver.StreamRequestHandler):
    timeout = PATIENCE_S  # so that a forked child ends, whatever happens to this test

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(b"%s from %d\n" % (line.strip().upper(), self.client_address[1]))


class Threading(socketserver.ThreadingTCPServer):
    block_on_close = True
    allow_reuse_address = True


class Forking(socketserver.ForkingTCPServer):
    block_on_close = True


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("kind", [socketserver.TCPServer, Threading, Forking])
def test_socketserver(net: Net, kind: type[socketserver.TCPServer]) -> None:
    with running(net, kind(("127.0.0.1", 0), Upper)) as address:
        for _ in range(3):
            with net.module.create_connection(address, timeout=PATIENCE_S) as client:
                client.sendall(b"one\ntwo\n")
                client.shutdown(socket.SHUT_WR)
                port = client.getsockname()[1]
                assert receive_all(client) == b"ONE from %d\nTWO from %d\n" % (port, port)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("kind", [Threading, Forking])
def test_socketserver_with_clients_at_once(net: Net, kind: type[socketserver.TCPServer]) -> None:
    with running(net, kind(("127.0.0.1", 0), Upper)) as address:
        clients = [net.own(net.module.create_connection(address, timeout=PATIENCE_S)) for _ in range(6)]
        for number, client in enumerate(clients):
            client.sendall(b"number %d\n" % number)
        for number, client in reversed(list(enumerate(clients))):
            assert client.recv(100) == b"NUMBER %d from %d\n" % (number, client.getsockname()[1])
        for client in clients:
            client.shutdown(
                socket.SHUT_WR
            )  # a close alone would not do: forked children hold copies of the clients too


class Large(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.settimeout(PATIENCE_S)
        digest = hashlib.sha256()
        while data := self.request.recv(65_536):
            digest.update(data)
        self.request.sendall(digest.digest())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("kind", [Threading, Forking])
def test_socketserver_large_request(net: Net, kind: type[socketserver.TCPServer]) -> None:
    payload = os.urandom(3 << 20)
    with running(net, kind(("127.0.0.1", 0), Large)) as address:
        with net.module.create_connection(address, timeout=PATIENCE_S) as client:
            client.sendall(payload)
            client.shutdown(socket.SHUT_WR)
            assert receive_exactly(client, 32) == hashlib.sha256(payload).digest()


# -- HTTP -----------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    directory_served = ""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, directory=self.directory_served)

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[::-1])


@pytest.fixture
def site(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An HTTP server's address; it serves file.bin, 1 MB."""
    (tmp_path / "file.bin").write_bytes(os.urandom(1_000_000))
    monkeypatch.setattr(Quiet, "directory_served", str(tmp_path))
    with running(net, http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)) as address:
        yield address


def connection_to(address: tuple[str, int]) -> http.client.HTTPConnection:
    host, port = address
    return http.client.HTTPConnection(host, port, timeout=PATIENCE_S)


def test_http_download(net: Net, site: Any, tmp_path: Path) -> None:
    connection = connection_to(site)
    with contextlib.closing(connection):
        connection.request("GET", "/file.bin")
        assert type(connection.sock) is net.module.socket
        response = connection.getresponse()
        assert response.status == 200
        assert response.read() == (tmp_path / "file.bin").read_bytes()


def test_http_keep_alive_and_post(net: Net, site: Any) -> None:
    connection = connection_to(site)
    with contextlib.closing(connection):
        for number in range(20):
            body = b"%d " % number * 1000
            connection.request("POST", "/", body)
            name = connection.sock.getsockname()
            assert connection.getresponse().read() == body[::-1]
            assert connection.sock.getsockname() == name
        connection.request("GET", "/nothing")
        response = connection.getresponse()
        response.read()
        assert response.status == 404


def test_http_chunked_upload(net: Net, site: Any) -> None:
    connection = connection_to(site)
    with contextlib.closing(connection):
        body = os.urandom(300_000)
        connection.request("POST", "/", iter([body[:100_000], body[100_000:]]), {"Content-Length": "300000"})
        assert connection.getresponse().read() == body[::-1]


def test_urllib(net: Net, site: Any, tmp_path: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{site[0]}:{site[1]}/file.bin", timeout=PATIENCE_S) as response:
        assert response.read() == (tmp_path / "file.bin").read_bytes()


def test_http_refused(net: Net) -> None:
    connection = connection_to(net.refused_address())
    with pytest.raises(ConnectionRefusedError):
        connection.request("GET", "/")


def test_http_parallel_downloads(net: Net, site: Any, tmp_path: Path) -> None:
    expected = (tmp_path / "file.bin").read_bytes()

    def download() -> bool:
        connection = connection_to(site)
        with contextlib.closing(connection):
            connection.request("GET", "/file.bin")
            return connection.getresponse().read() == expected

    assert all(task.result() for task in [net.spawn(download) for _ in range(6)])


class QuietWSGI(WSGIRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def test_wsgiref(net: Net) -> None:
    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["REMOTE_ADDR"].encode(), b" ", environ["PATH_INFO"].encode()]

    with running(net, make_server("127.0.0.1", 0, application, handler_class=QuietWSGI)) as address:
        connection = connection_to(address)
        with contextlib.closing(connection):
            connection.request("GET", "/path")
            assert connection.getresponse().read() == b"127.0.0.1 /path"


def test_xmlrpc(net: Net) -> None:
    server = xmlrpc.server.SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False)
    server.register_function(lambda base, exponent: int(base**exponent), "pow")
    server.register_function(lambda text: text * 1000, "repeat")
    with running(net, server) as (host, port):
        with xmlrpc.client.ServerProxy(f"http://{host}:{port}") as proxy:
            assert proxy.pow(2, 10) == 1024
            assert proxy.repeat("abc") == "abc" * 1000
            with pytest.raises(xmlrpc.client.Fault, match="not supported"):
                proxy.nothing()


# -- other clients --------------------------------------------------------------------------------------------


class Mail(socketserver.StreamRequestHandler):
    """As much SMTP as one message needs."""

    received: list[bytes]

    def handle(self) -> None:
        self.wfile.write(b"220 hello\r\n")
        for line in self.rfile:
            verb = line[:4].upper()
            if verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                self.received.append(b"".join(iter(self.rfile.readline, b".\r\n")))
            self.wfile.write({b"QUIT": b"221 bye\r\n"}.get(verb, b"250 ok\r\n"))
            if verb == b"QUIT":
                return


def test_smtplib(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mail, "received", [], raising=False)
    with running(net, Threading(("127.0.0.1", 0), Mail)) as (host, port):
        with smtplib.SMTP(host, port, local_hostname="here", timeout=PATIENCE_S) as client:
            assert type(client.sock) is net.module.socket
            client.sendmail("a@example.org", ["b@example.org"], "Subject: hi\n\nbody " + "x" * 900)
    assert b"body xxx" in Mail.received[0]


class Files(socketserver.StreamRequestHandler):
    """As much FTP as a passive download and an active upload need."""

    content = bytes(range(256)) * 1000
    module: Any
    stored: list[bytes]

    def reply(self, text: str) -> None:
        self.wfile.write(text.encode() + b"\r\n")

    def handle(self) -> None:
        self.reply("220 hello")
        transfer: Any = None
        for line in self.rfile:
            verb, _, argument = line.decode().strip().partition(" ")
            if verb == "PASV":
                transfer = self.module.create_server((self.connection.getsockname()[0], 0))
                host, port = transfer.getsockname()
                self.reply(f"227 ok ({host.replace('.', ',')},{port >> 8},{port & 255})")
            elif verb == "PORT":
                numbers = argument.split(",")
                transfer = (".".join(numbers[:4]), int(numbers[4]) * 256 + int(numbers[5]))
                self.reply("200 ok")
            elif verb in ("RETR", "STOR"):
                self.reply("150 coming")
                if isinstance(transfer, tuple):
                    data = self.module.create_connection(transfer)
                else:
                    data, _ = transfer.accept()
                    transfer.close()
                with data:
                    self.stored.append(receive_all(data)) if verb == "STOR" else data.sendall(self.content)
                self.reply("226 done")
            elif verb == "QUIT":
                self.reply("221 bye")
                return
            else:
                self.reply("331 password" if verb == "USER" else "230 ok" if verb == "PASS" else "200 ok")


def test_ftplib_passive_and_active(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Files, "module", net.module, raising=False)
    monkeypatch.setattr(Files, "stored", [], raising=False)
    monkeypatch.setattr(ftplib, "socket", net.module)
    with running(net, Threading(("127.0.0.1", 0), Files)) as (host, port), ftplib.FTP(timeout=PATIENCE_S) as client:
        client.connect(host, port)
        client.login()
        parts: list[bytes] = []
        client.retrbinary("RETR file", parts.append)
        assert b"".join(parts) == Files.content
        client.set_pasv(False)
        import io

        client.storbinary("STOR file", io.BytesIO(b"upload" * 10_000))
        assert Files.stored == [b"upload" * 10_000]


class Records(socketserver.StreamRequestHandler):
    messages: list[str]

    def handle(self) -> None:
        while len(head := self.rfile.read(4)) == 4:
            record = pickle.loads(self.rfile.read(struct.unpack(">L", head)[0]))
            self.messages.append(logging.makeLogRecord(record).getMessage())


def test_logging_socket_handler(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Records, "messages", [], raising=False)
    monkeypatch.setattr(logging.handlers, "socket", net.module)
    with running(net, Threading(("127.0.0.1", 0), Records)) as (host, port):
        handler = logging.handlers.SocketHandler(host, port)
        logger = logging.Logger("over the network")  # noqa: LOG001  (one that no other test sees)
        logger.addHandler(handler)
        for number in range(10):
            logger.warning("message %d", number)
        assert type(handler.sock) is net.module.socket
        handler.close()
        expected = [f"message {number}" for number in range(10)]
        assert eventually(lambda: Records.messages, expected) == expected


# -- selectors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SelectSelector", "PollSelector", "EpollSelector", "DefaultSelector"])
def test_selectors_server(net: Net, name: str) -> None:
    listener = net.listener()
    listener.setblocking(False)
    clients = [net.fresh(timeout=PATIENCE_S) for _ in range(5)]
    finished = 0
    with getattr(selectors, name)() as selector:
        selector.register(listener, selectors.EVENT_READ)
        for number, client in enumerate(clients):
            client.connect(listener.getsockname())
            client.sendall(b"%d" % number * 10_000)
            client.shutdown(socket.SHUT_WR)
        waiting: dict[Any, bytearray] = {}
        while finished < len(clients):
            ready = selector.select(PATIENCE_S)
            assert ready, "nothing happens any more"
            for key, events in ready:
                sock: Any = key.fileobj
                if sock is listener:
                    accepted = net.accept(listener)
                    accepted.setblocking(False)
                    waiting[accepted] = bytearray()
                    selector.register(accepted, selectors.EVENT_READ)
                elif events & selectors.EVENT_READ:
                    if data := sock.recv(1000):
                        waiting[sock] += data
                    else:
                        selector.modify(sock, selectors.EVENT_WRITE)
                elif waiting[sock]:
                    del waiting[sock][: sock.send(waiting[sock])]
                else:
                    selector.unregister(sock)
                    sock.close()
                    finished += 1
    assert [receive_all(client) for client in clients] == [b"%d" % number * 10_000 for number in range(5)]
