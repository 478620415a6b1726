"""Programs with green threads, each in a process of its own: python -m tests.green.programs NAME ORDER.

ORDER says what comes first, letter by letter: u utpsocket.monkey, g gevent.monkey, e eventlet's, s `import ssl`. Every
program prints one JSON object.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

LOOPBACK = ("127.0.0.1", 0)
PID = os.getpid()
# As own_loopback() has it: a port that is closed there stays free for this process.
OWN_LOOPBACK = (f"127.{1 + PID // 65536 % 254}.{PID // 256 % 256}.{1 + PID % 256 % 254}", 0)
BODY = bytes(range(256)) * 400


def patch(order: str) -> None:
    for letter in order:
        if letter == "u":
            from utpsocket import monkey

            monkey.patch_all()
        elif letter == "g":
            import gevent.monkey

            gevent.monkey.patch_all()
        elif letter == "e":
            import eventlet

            eventlet.monkey_patch()
        elif letter == "s":
            import ssl  # noqa: F401


def utp_connections() -> int:
    from utpsocket.stats import engine_stats

    return engine_stats().connections_initiated


def kind_of_engine() -> str:
    """What the engine's thread was started with: the interpreter's own, or something green."""
    from utpsocket.engine.interpreter import native

    return f"{native.start_new_thread!r} {native.allocate_lock!r} {native.epoll!r}"


@contextlib.contextmanager
def ticking(sleep: Callable[[float], None], spawn: Callable[..., Any]) -> Iterator[list[float]]:
    """A greenlet that runs every millisecond while the others do what they do."""
    ticks: list[float] = []

    def tick() -> None:
        while True:
            sleep(0.001)
            ticks.append(time.monotonic())

    ticker = spawn(tick)
    yield ticks
    ticker.kill()


def application(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return [BODY]


def web(order: str) -> dict[str, Any]:
    """gevent.pywsgi and what gevent patched of the stdlib's client, in any order of patching."""
    import socket

    original = socket.socket
    patch(order)
    import urllib.request

    import gevent
    import gevent.pywsgi

    server = gevent.pywsgi.WSGIServer(LOOPBACK, application, log=None)
    server.start()
    url = f"http://127.0.0.1:{server.server_port}/"

    def fetch() -> bool:
        with urllib.request.urlopen(url) as answer:
            return bool(answer.read() == BODY)

    with ticking(gevent.sleep, gevent.spawn) as ticks:
        fetches = [gevent.spawn(fetch) for _ in range(8)]
        gevent.joinall(fetches, timeout=60)
        made = utp_connections()
    server.stop()
    answer = {
        "whole": sum(bool(fetch.value) for fetch in fetches),
        "utp": made,
        "ticked": bool(ticks),
        "engine": kind_of_engine(),
    }
    from utpsocket import monkey

    monkey.unpatch()
    import _socket

    plain = gevent.socket.socket()
    answer["plain_again"] = not hasattr(plain._sock, "_utp") and isinstance(plain._sock, _socket.socket)
    gevents = gevent.monkey.get_original("socket", "socket") if "g" in order else socket.socket
    answer["class_is_original"] = gevents is original
    plain.close()
    return answer


def eventlets(order: str) -> dict[str, Any]:
    """eventlet's listen, connect, wsgi, timeout, refused and second attempt."""
    patch(order)
    import eventlet
    import eventlet.green.socket
    import eventlet.wsgi

    listener = eventlet.listen(LOOPBACK)
    eventlet.spawn(eventlet.wsgi.server, listener, application, log_output=False)

    def fetch(_: int) -> bool:
        with contextlib.closing(eventlet.connect(listener.getsockname())) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return b"".join(iter(lambda: sock.recv(65_536), b"")).endswith(BODY)

    with ticking(eventlet.sleep, eventlet.spawn) as ticks:
        whole = sum(eventlet.GreenPool().imap(fetch, range(8)))
    lonely = eventlet.listen(LOOPBACK)
    lonely.settimeout(0.01)
    answer: dict[str, Any] = {"whole": whole, "ticked": bool(ticks), "engine": kind_of_engine()}
    try:
        lonely.accept()
    except TimeoutError:
        answer["timeout"] = True
    address = lonely.getsockname()
    lonely.close()
    sock = eventlet.green.socket.socket()
    try:
        sock.connect(address)
    except ConnectionRefusedError:
        answer["refused"] = True
    again = eventlet.listen(address)
    # As over TCP: eventlet has asked SO_ERROR, and the kernel's connect() has still to end the attempt.
    try:
        sock.connect(address)
    except ConnectionAbortedError:
        sock.connect(address)
        answer["second_attempt"] = again.accept()[1] == sock.getsockname()
    answer["utp"] = utp_connections()
    return answer


def cooperative(order: str) -> dict[str, Any]:
    """utpsocket.green beside gevent's own sockets, which stay TCP's."""
    patch(order)
    import gevent
    import gevent.select
    import gevent.socket

    import utpsocket.green as socket
    from utpsocket.green import create_connection, create_server

    answer: dict[str, Any] = {}
    server = create_server(OWN_LOOPBACK)
    address = server.getsockname()
    accepted = gevent.spawn(server.accept)
    client = create_connection(address)
    connection, peer = accepted.get(timeout=60)
    answer["addresses"] = peer == client.getsockname() and client.getpeername() == address
    answer["classes"] = [type(sock) is socket.socket for sock in (server, client, connection)]
    answer["info"] = client.getsockopt(socket.SOL_UTP, socket.UTP_INFO).peer == address

    big = bytes(20_000_000)  # more than anybody buffers: sendall() has to wait
    with ticking(gevent.sleep, gevent.spawn) as ticks:
        sending = gevent.spawn(client.sendall, big)
        with gevent.Timeout(60):
            while len(ticks) < 3:
                gevent.sleep(0.001)
        answer["sendall_waits"] = not sending.dead
        got_bytes = 0
        while got_bytes < len(big):
            got_bytes += len(connection.recv(1 << 20))
        sending.get(timeout=60)

    client.settimeout(0.01)
    try:
        client.recv(1)
    except TimeoutError:
        answer["timeout"] = True
    client.settimeout(None)
    with gevent.Timeout(0.01, False):
        client.recv(1)
        answer["gevent_timeout"] = "not seen"
    answer["select_nothing"] = gevent.select.select([client], [], [], 0.01)[0] == []
    connection.sendall(b"one line\n")
    answer["select_something"] = gevent.select.select([client], [], [], 60)[0] == [client]
    with client.makefile("rb") as lines:
        answer["makefile"] = lines.readline() == b"one line\n"
    client.shutdown(socket.SHUT_WR)
    answer["half_close"] = connection.recv(1) == b""
    connection.sendall(b"still")
    answer["after_half_close"] = client.recv(5) == b"still"
    connection.close()
    answer["end"] = client.recv(1) == b""
    client.close()

    with gevent.Timeout(0.01, False):
        server.accept()
        answer["gevent_timeout"] = "not seen"
    server.close()
    again = socket.socket()
    answer["refused"] = again.connect_ex(address) == errno.ECONNREFUSED
    server = create_server(address)
    again.settimeout(60)
    # As over TCP: gevent has asked SO_ERROR, and the kernel's connect() has still to end the attempt.
    assert again.connect_ex(address) == errno.ECONNABORTED
    again.connect(address)
    answer["second_attempt"] = server.accept()[1] == again.getsockname()
    answer["utp"] = utp_connections()
    with gevent.socket.socket() as plain:
        answer["gevents_own_is_tcp"] = not hasattr(plain._sock, "_utp")
    return answer


def lingering(order: str) -> dict[str, Any]:
    """close() with SO_LINGER and a time waits in its greenlet, and the others run."""
    patch(order)
    import struct

    import gevent

    import utpsocket.green as socket

    server = socket.create_server(LOOPBACK)
    client = socket.create_connection(server.getsockname())
    connection, _ = server.accept()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1))
    client.setblocking(False)
    while client.getsockopt(socket.SOL_UTP, socket.UTP_INFO).peer_window_bytes > 0:  # then nothing more can arrive
        with contextlib.suppress(BlockingIOError):
            client.send(bytes(65_536))
        gevent.sleep(0)
    with ticking(gevent.sleep, gevent.spawn) as ticks:
        began_at = time.monotonic()
        client.close()
        seconds = time.monotonic() - began_at
        before = len(ticks)
    return {"waited": 0.9 < seconds < 30, "ticked_meanwhile": before > 0, "utp": utp_connections()}


def secure(order: str) -> dict[str, Any]:
    """gevent.ssl over uTP; the certificate is the first line on stdin."""
    patch(order)
    import gevent
    import gevent.ssl as ssl
    from gevent import socket
    from gevent.server import StreamServer

    from utpsocket import green

    green.hook_gevent()
    pem = sys.stdin.readline().strip()
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(pem)
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.load_verify_locations(pem)
    seen: list[Any] = []

    def handle(sock: Any, address: Any) -> None:
        seen.append(address)
        sock.sendall(sock.recv(100).upper())

    server = StreamServer(LOOPBACK, handle, ssl_context=server_side)
    server.start()
    with gevent.Timeout(60):
        plain = socket.create_connection(("127.0.0.1", server.server_port))
        with client_side.wrap_socket(plain, server_hostname="localhost") as sock:
            sock.sendall(b"whispered")
            heard = sock.recv(100)
            answer = {
                "heard": heard == b"WHISPERED",
                "addresses": [tuple(sock.getsockname())] == seen and sock.getpeername()[1] == server.server_port,
            }
    server.stop()
    return {**answer, "utp": utp_connections()}


def eventlets_secure(order: str) -> dict[str, Any]:
    """TLS under eventlet: its own ways of wrapping, a megabyte each way, addresses, a timeout and the orderly end."""
    patch(order)
    import eventlet
    from eventlet.green import ssl

    import utpsocket  # noqa: F401  # without the patch too: it must not stand in eventlet's way
    from utpsocket import monkey

    pem = sys.stdin.readline().strip()
    listener = eventlet.wrap_ssl(eventlet.listen(LOOPBACK), certfile=pem, keyfile=pem, server_side=True)
    address = listener.getsockname()
    seen: list[Any] = []
    size = 1_000_000

    def serve() -> None:
        connection, peer = listener.accept()
        seen.append(peer == connection.getpeername())
        connection.sendall(connection.recv(100).upper())
        got_bytes = 0
        while got_bytes < size:
            got_bytes += len(connection.recv(65_536))
        connection.sendall(bytes(size))
        connection.unwrap().close()

    serving = eventlet.spawn(serve)
    context = ssl.create_default_context(cafile=pem)
    with ticking(eventlet.sleep, eventlet.spawn) as ticks:
        sock = context.wrap_socket(eventlet.connect(address), server_hostname="localhost")
        sock.sendall(b"whispered")
        answer: dict[str, Any] = {"heard": sock.recv(100) == b"WHISPERED"}
        sock.sendall(bytes(size))
        got_bytes = 0
        while got_bytes < size:
            got_bytes += len(sock.recv(65_536))
        answer["peer"] = sock.getpeername() == address
        answer["transport"] = monkey.transport(sock)
        sock.unwrap().close()
        serving.wait()
    answer["ticked"] = bool(ticks)
    answer["seen"] = seen
    silent = eventlet.listen(LOOPBACK)
    raw = eventlet.connect(silent.getsockname())
    raw.settimeout(0.01)
    try:
        context.wrap_socket(raw, server_hostname="localhost")
    except TimeoutError:
        answer["timeout"] = True
    answer["utp"] = utp_connections()
    return answer


def ruled(order: str) -> dict[str, Any]:
    """utpsocket.monkey's rules hold for gevent's sockets: one listener is excluded, and goes over TCP."""
    import socket as stdlib

    with stdlib.socket() as probe:
        probe.bind(OWN_LOOPBACK)
        excluded = probe.getsockname()
    patch(order)
    from utpsocket import monkey

    monkey.patch_all(exclude=f"{excluded[0]}:{excluded[1]}")
    import gevent
    from gevent import socket

    transports = []
    for address in (LOOPBACK, excluded):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
            accepted = gevent.spawn(listener.accept)
            with socket.create_connection(listener.getsockname(), timeout=60) as client:
                connection, _ = accepted.get(timeout=60)
                client.sendall(b"x")
                assert connection.recv(1) == b"x"
                transports.append(monkey.transport(client._sock))
                connection.close()
    return {"transports": transports, "utp": utp_connections()}


def datagrams(order: str) -> dict[str, Any]:
    """A UDP socket at the address of a listener, of a program that does not know of it: each in a greenlet."""
    patch(order)
    if "g" in order:
        import gevent
        from gevent import socket

        spawn, sleep = gevent.spawn, gevent.sleep
    else:
        import eventlet
        from eventlet.green import socket

        spawn, sleep = eventlet.spawn, eventlet.sleep
    # What has the form of a uTP packet of no connection is passed on by the engine.
    messages = [b"d1:q4:ping1:t2:aa1:y1:qe", b"\x01\0\0\0" + bytes(144)]
    echoed = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as listener:
        udp.bind(OWN_LOOPBACK)
        listener.bind(udp.getsockname())
        listener.listen()

        def echo() -> None:
            for _ in messages:
                data, address = udp.recvfrom(2_000)
                udp.sendto(data, address)

        def greet() -> None:
            connection, _ = listener.accept()
            connection.sendall(b"hello")
            connection.close()

        greenlets = [spawn(echo), spawn(greet)]
        sleep(0)
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks,
            socket.create_connection(listener.getsockname()) as client,
        ):
            asks.settimeout(60)
            client.settimeout(60)
            greeting = client.recv(100)
            for message in messages:
                asks.sendto(message, udp.getsockname())
                # The engine answers the second one by a RESET as well.
                while (answer := asks.recv(2_000)) != message:
                    pass
                echoed.append(answer == message)
        for greenlet in greenlets:
            greenlet.get(timeout=60) if "g" in order else greenlet.wait()
    return {"greeting": greeting.decode(), "echoed": echoed, "utp": utp_connections()}


PROGRAMS: dict[str, Callable[[str], dict[str, Any]]] = {
    program.__name__: program
    for program in (web, eventlets, eventlets_secure, cooperative, lingering, secure, ruled, datagrams)
}

if __name__ == "__main__":
    result = PROGRAMS[sys.argv[1]](sys.argv[2])
    print(json.dumps(result), flush=True)
