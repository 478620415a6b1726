"""gevent and eventlet, whose sockets are not the standard library's: servers, clients, gunicorn's workers."""

from __future__ import annotations

import functools
from typing import Any

from compat.programs import certificate
from compat.programs.scenario import Ready, Scenario
from compat.programs.scenarios import gunicorn_workers
from compat.programs.scenarios.web_sockets import talk_with_websocket_client
from compat.programs.web import HOST, digest, exercise, noise, wsgi

GREENLETS = 100


def serve_pywsgi(ready: Ready, *, monkey: bool) -> None:
    """With gevent.monkey, where the standard library turns green too, and without."""
    if monkey:
        import gevent.monkey

        gevent.monkey.patch_all()
    from gevent.pywsgi import WSGIServer

    server = WSGIServer((HOST, 0), wsgi, log=None)
    server.start()
    ready(server.server_port)
    server.serve_forever()


def serve_streams(ready: Ready) -> None:
    """gevent first, uTP after it: the other way round of what the other scenarios do."""
    import gevent.monkey

    gevent.monkey.patch_all()
    import utpsocket.monkey

    utpsocket.monkey.patch_all()
    from gevent.server import StreamServer

    def reverse(sock: Any, peer: Any) -> None:
        with sock.makefile("rwb") as file:
            for line in file:
                file.write(line.strip()[::-1] + b"\n")
                file.flush()

    certificate.issue()
    server = StreamServer((HOST, 0), reverse, certfile=certificate.IDENTITY, keyfile=certificate.IDENTITY)
    server.start()
    ready(server.server_port)
    server.serve_forever()


def ask_with_greenlets(port: int) -> None:
    """Many connections at once, encrypted, while another greenlet keeps ticking."""
    import gevent.monkey

    gevent.monkey.patch_all()
    import utpsocket.monkey

    utpsocket.monkey.patch_all()
    import socket

    import gevent

    context = certificate.client_context()
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            gevent.sleep(0.01)
            ticks += 1

    def one(number: int) -> int:
        line = noise(2_000, number).hex().encode()
        with socket.create_connection((HOST, port), timeout=20) as plain:
            with context.wrap_socket(plain, server_hostname=HOST) as secure, secure.makefile("rb") as answers:
                for _ in range(3):
                    secure.sendall(line + b"\n")
                    assert answers.readline() == line[::-1] + b"\n"
        return number

    ticking = gevent.spawn(tick)
    asked = [gevent.spawn(one, number) for number in range(GREENLETS)]
    gevent.joinall(asked, timeout=25, raise_error=True)
    assert [each.value for each in asked] == list(range(GREENLETS))
    ticking.kill()
    assert ticks >= 10, "the hub was blocked"


def ask_with_green_requests(port: int) -> None:
    """requests, made cooperative by gevent.monkey, from many greenlets."""
    import gevent.monkey

    gevent.monkey.patch_all()
    import requests
    from gevent.pool import Pool

    def one(number: int) -> str:
        with requests.Session() as session:
            text: str = session.post(f"http://{HOST}:{port}/digest", data=noise(10_000, number), timeout=20).text
            assert session.get(f"http://{HOST}:{port}/hello?{number}", timeout=20).text == f"hello {number} from {HOST}"
            return text

    texts = Pool(20).map(one, range(40))
    assert texts == [digest(noise(10_000, number)) for number in range(40)]


def serve_eventlet(ready: Ready) -> None:
    import eventlet

    eventlet.monkey_patch()
    import eventlet.wsgi

    listening = eventlet.listen((HOST, 0))
    ready(listening.getsockname()[1])
    eventlet.wsgi.server(listening, wsgi, log_output=False)


def ask_with_eventlet(port: int) -> None:
    import eventlet

    eventlet.monkey_patch()
    import http.client

    def one(number: int) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, port, timeout=20)
        connection.request("POST", "/digest", noise(20_000, number))
        answer = connection.getresponse()
        try:
            return answer.status, answer.read()
        finally:
            connection.close()

    answers = list(eventlet.GreenPool(20).imap(one, range(40)))
    assert answers == [(200, digest(noise(20_000, number)).encode()) for number in range(40)]


GEVENT = ("gevent",)


def serve_green_websocket(ready: Ready) -> None:
    import gevent.monkey

    gevent.monkey.patch_all()
    from gevent.pywsgi import WSGIServer
    from geventwebsocket.handler import WebSocketHandler

    def application(environ: Any, start_response: Any) -> Any:
        channel = environ["wsgi.websocket"]
        while (message := channel.receive()) is not None:
            channel.send(message[::-1])
        return []

    server = WSGIServer((HOST, 0), application, log=None, handler_class=WebSocketHandler)
    server.start()
    ready(server.server_port)
    server.serve_forever()


def fetch_with_geventhttpclient(port: int) -> None:
    import gevent
    from geventhttpclient import HTTPClient

    client = HTTPClient(HOST, port, concurrency=10, connection_timeout=15, network_timeout=15)

    def one(number: int) -> bool:
        answer = client.post("/digest", noise(30_000, number))
        whole: bool = answer.read() == digest(noise(30_000, number)).encode()
        return whole

    asked = [gevent.spawn(one, number) for number in range(60)]
    gevent.joinall(asked, timeout=25, raise_error=True)
    assert all(each.value for each in asked)
    client.close()


SCENARIOS = [
    Scenario(
        "gevent-pywsgi", GEVENT, functools.partial(serve_pywsgi, monkey=False), exercise, connections=7, quick=True
    ),
    Scenario(
        "gevent-requests",
        ("gevent", "requests"),
        functools.partial(serve_pywsgi, monkey=True),
        ask_with_green_requests,
        connections=40,
    ),
    Scenario(
        "gevent-streams",
        ("gevent", "trustme"),
        serve_streams,
        ask_with_greenlets,
        connections=GREENLETS,
        patched=False,
    ),
    Scenario(
        "gunicorn-gevent",
        ("gunicorn", "gevent"),
        functools.partial(gunicorn_workers.serve, worker_class="gevent"),
        exercise,
        connections=7,
    ),
    Scenario("eventlet", ("eventlet",), serve_eventlet, ask_with_eventlet, connections=40),
    Scenario(
        "gevent-websocket",
        ("gevent-websocket", "gevent", "websocket-client"),
        serve_green_websocket,
        talk_with_websocket_client,
    ),
    Scenario(
        "geventhttpclient",
        ("geventhttpclient", "gevent"),
        functools.partial(serve_pywsgi, monkey=True),
        fetch_with_geventhttpclient,
        connections=2,
    ),
]
