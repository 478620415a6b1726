"""What comes with Python and serves or asks by itself: http.server, xmlrpc, managers, logging's SocketHandler."""

from __future__ import annotations

from typing import Any

from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, digest, noise

FILE_BYTES = 3_000_000
AUTHKEY = b"a key of the scenario"


def serve_files(ready: Ready) -> None:
    import http.server

    with open("file.bin", "wb") as file:
        file.write(noise(FILE_BYTES))
    with http.server.ThreadingHTTPServer((HOST, 0), http.server.SimpleHTTPRequestHandler) as server:
        ready(server.server_port)
        server.serve_forever()


def download_with_urllib(port: int) -> None:
    import urllib.error
    import urllib.request

    for _ in range(3):
        with urllib.request.urlopen(f"http://{HOST}:{port}/file.bin", timeout=20) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Length"] == str(FILE_BYTES)
            assert digest(answer.read()) == digest(noise(FILE_BYTES))
    try:
        urllib.request.urlopen(f"http://{HOST}:{port}/missing", timeout=20)
    except urllib.error.HTTPError as error:
        with error:
            assert error.code == 404
    else:
        raise AssertionError("a missing file was found")


def serve_xmlrpc(ready: Ready) -> None:
    from xmlrpc.server import SimpleXMLRPCServer

    with SimpleXMLRPCServer((HOST, 0), logRequests=False) as server:
        server.register_function(lambda base, exponent: int(base**exponent), "pow")
        server.register_function(lambda data: data.data[::-1], "reverse")
        server.register_multicall_functions()
        ready(server.server_address[1])
        server.serve_forever()


def call_xmlrpc(port: int) -> None:
    from xmlrpc.client import Binary, Fault, MultiCall, ServerProxy

    made: Any = ServerProxy(f"http://{HOST}:{port}")
    with made as proxy:
        assert proxy.pow(2, 10) == 1024
        assert proxy.reverse(Binary(noise(200_000))).data == noise(200_000)[::-1]
        batch = MultiCall(proxy)
        for exponent in range(20):
            batch.pow(2, exponent)
        assert [*iter(batch())] == [2**exponent for exponent in range(20)]
        try:
            proxy.no_such_method()
        except Fault as fault:
            assert "no_such_method" in fault.faultString
        else:
            raise AssertionError("a method that does not exist was called")


def serve_manager(ready: Ready) -> None:
    import queue
    from multiprocessing.managers import BaseManager

    class Shelf(BaseManager):
        pass

    jobs: queue.Queue[int] = queue.Queue()
    Shelf.register("jobs", lambda: jobs)
    Shelf.register("table", dict, exposed=("get", "update", "__len__"))
    server = Shelf((HOST, 0), AUTHKEY).get_server()
    address: Any = server.address
    ready(address[1])
    server.serve_forever()


def use_manager(port: int) -> None:
    import threading
    from multiprocessing.managers import BaseManager

    class Shelf(BaseManager):
        pass

    Shelf.register("jobs")
    Shelf.register("table")
    shelf: Any = Shelf((HOST, port), AUTHKEY)
    shelf.connect()
    jobs = shelf.jobs()
    got: list[int] = []
    taker = threading.Thread(target=lambda: got.extend(jobs.get() for _ in range(50)))
    taker.start()
    for number in range(50):
        jobs.put(number)
    taker.join(20)
    assert got == list(range(50))
    table = shelf.table()
    table.update({"noise": noise(500_000)})
    assert table.get("noise") == noise(500_000)
    assert len(table) == 1


def serve_connections(ready: Ready) -> None:
    from multiprocessing.connection import Listener

    with Listener((HOST, 0), authkey=AUTHKEY) as listening:
        ready(listening.address[1])
        while True:
            with listening.accept() as connection:
                try:
                    while True:
                        connection.send(connection.recv())
                except EOFError:
                    pass


def talk_over_connections(port: int) -> None:
    from multiprocessing.connection import Client, wait

    with Client((HOST, port), authkey=AUTHKEY) as connection:
        for message in ("text", {"a": [1, 2]}, noise(1_000_000)):
            connection.send(message)
            assert wait([connection], timeout=20) == [connection]
            assert connection.recv() == message
        assert not connection.poll(0)


def serve_log(ready: Ready) -> None:
    import logging
    import pickle
    import socketserver
    import struct

    class Receiver(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            count = 0
            while header := self.rfile.read(4):
                record = logging.makeLogRecord(pickle.loads(self.rfile.read(struct.unpack(">L", header)[0])))
                assert record.getMessage() == f"message {count} of {record.name}", record
                count += 1
                if record.levelno == logging.CRITICAL:
                    self.wfile.write(str(count).encode())
                    return

    with socketserver.ThreadingTCPServer((HOST, 0), Receiver) as server:
        ready(server.server_address[1])
        server.serve_forever()


def log_to_socket(port: int) -> None:
    import logging
    import logging.handlers

    handler = logging.handlers.SocketHandler(HOST, port)
    logger = logging.getLogger("programs")
    logger.propagate = False
    logger.addHandler(handler)
    for number in range(500):
        logger.warning("message %d of %s", number, "programs")
    logger.critical("message %d of %s", 500, "programs")
    assert handler.sock is not None
    handler.sock.settimeout(20)
    assert handler.sock.recv(10) == b"501"
    handler.close()


SCENARIOS = [
    Scenario("http.server", (), serve_files, download_with_urllib, connections=4, quick=True),
    Scenario("xmlrpc", (), serve_xmlrpc, call_xmlrpc, quick=True),
    Scenario("multiprocessing.managers", (), serve_manager, use_manager, connections=3, quick=True),
    Scenario("multiprocessing.connection", (), serve_connections, talk_over_connections),
    Scenario("logging.SocketHandler", (), serve_log, log_to_socket, quick=True),
]
