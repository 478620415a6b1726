"""WebSockets: websockets in threads and in asyncio, websocket-client, simple-websocket, Socket.IO and more."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, noise

MESSAGES = [b"", b"x", noise(126), noise(70_000), noise(500_000)]


def serve_with_threads(ready: Ready) -> None:
    from websockets.sync.server import ServerConnection, serve

    def reverse(connection: ServerConnection) -> None:
        for message in connection:
            connection.send(message[::-1])

    with serve(reverse, HOST, 0, max_size=None) as server:
        ready(server.socket.getsockname()[1])
        server.serve_forever()


def talk_with_threads(port: int) -> None:
    from websockets.exceptions import ConnectionClosedOK
    from websockets.sync.client import connect

    def talk() -> None:
        with connect(f"ws://{HOST}:{port}", max_size=None) as connection:
            for message in MESSAGES:
                connection.send(message)
                assert connection.recv(timeout=20) == message[::-1]
            connection.ping().wait(20)
            connection.send("ünïcode")
            assert connection.recv(timeout=20) == "edocïnü"
            connection.close(reason="done")
            try:
                connection.recv(timeout=20)
            except ConnectionClosedOK:
                done.append(True)

    done: list[bool] = []
    talkers = [threading.Thread(target=talk) for _ in range(5)]
    for talker in talkers:
        talker.start()
    for talker in talkers:
        talker.join(20)
    assert done == [True] * 5


def serve_with_asyncio(ready: Ready) -> None:
    from websockets.asyncio.server import ServerConnection, broadcast, serve

    async def chat(connection: ServerConnection) -> None:
        async for message in connection:
            broadcast(server.connections, message)

    server: Any = None

    async def main() -> None:
        nonlocal server
        async with serve(chat, HOST, 0, max_size=None) as server:
            ready(server.sockets[0].getsockname()[1])
            await server.serve_forever()

    asyncio.run(main())


def chat_with_asyncio(port: int) -> None:
    """Everybody hears what everybody says."""
    from websockets.asyncio.client import connect

    async def main() -> None:
        people = [await connect(f"ws://{HOST}:{port}", max_size=None) for _ in range(8)]
        for number, person in enumerate(people):
            await person.send(noise(30_000, number))
            heard = await asyncio.wait_for(asyncio.gather(*(each.recv() for each in people)), 20)
            assert heard == [noise(30_000, number)] * len(people)
        for person in people:
            await person.close()

    asyncio.run(main())


def talk_with_websocket_client(port: int) -> None:
    import websocket

    connection = websocket.create_connection(f"ws://{HOST}:{port}", timeout=20)
    for message in MESSAGES:
        connection.send_binary(message)
        assert connection.recv() == message[::-1]
    connection.send("ünïcode")
    assert connection.recv() == "edocïnü"
    connection.close()


def serve_flask_sock(ready: Ready) -> None:
    """simple-websocket takes the socket out of Werkzeug's hands in the middle of a request."""
    import simple_websocket
    from werkzeug.serving import make_server

    def app(environ, start_response):  # type: ignore[no-untyped-def]
        channel = simple_websocket.Server.accept(environ)
        try:
            while True:
                channel.send(channel.receive()[::-1])
        except simple_websocket.ConnectionClosed:
            return []

    server = make_server(HOST, 0, app, threaded=True)
    ready(server.server_port)
    server.serve_forever()


def talk_with_simple_websocket(port: int) -> None:
    import simple_websocket

    channel = simple_websocket.Client(f"ws://{HOST}:{port}/")
    for message in MESSAGES:
        channel.send(message)
        assert channel.receive(timeout=20) == message[::-1]
    channel.close()


def serve_socketio(ready: Ready) -> None:
    import socketio
    from werkzeug.serving import make_server

    sio = socketio.Server(async_mode="threading")

    @sio.event
    def ask(session: str, data: dict[str, object]) -> dict[str, object]:
        sio.emit("news", {"from": "server", "data": data}, to=session)
        return {"answer": data}

    server = make_server(HOST, 0, socketio.WSGIApp(sio), threaded=True)
    ready(server.server_port)
    server.serve_forever()


def use_socketio(port: int) -> None:
    """By long polling first, then upgraded to a WebSocket, calls and events both ways."""
    import socketio

    news: list[object] = []
    for transports in (["polling"], ["polling", "websocket"], ["websocket"]):
        news.clear()
        with socketio.SimpleClient() as client:
            client.connect(f"http://{HOST}:{port}", transports=transports, wait_timeout=10)
            for number in range(5):
                assert client.call("ask", {"number": number}, timeout=15) == {"answer": {"number": number}}
                assert client.receive(timeout=15) == ["news", {"from": "server", "data": {"number": number}}]
            assert client.transport == transports[-1]


def serve_autobahn(ready: Ready) -> None:
    from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
    from twisted.internet import reactor

    class Reverse(WebSocketServerProtocol):
        def onMessage(self, payload: bytes, isBinary: bool) -> None:
            self.sendMessage(payload[::-1], isBinary)

    factory = WebSocketServerFactory()
    factory.protocol = Reverse
    ready(reactor.listenTCP(0, factory, interface=HOST).getHost().port)
    reactor.run()


def talk_with_autobahn(port: int) -> None:
    """Its asyncio half against its Twisted half."""
    from autobahn.asyncio.websocket import WebSocketClientFactory, WebSocketClientProtocol

    left = list(MESSAGES)
    closed: asyncio.Future[bool]

    class Talk(WebSocketClientProtocol):
        def onOpen(self) -> None:
            self.sendMessage(left[0], isBinary=True)

        def onMessage(self, payload: bytes, isBinary: bool) -> None:
            assert payload == left.pop(0)[::-1]
            if left:
                self.sendMessage(left[0], isBinary=True)
            else:
                self.sendClose()

        def onClose(self, wasClean: bool, code: int, reason: str) -> None:
            closed.set_result(wasClean)

    async def main() -> None:
        nonlocal closed
        closed = asyncio.get_running_loop().create_future()
        factory = WebSocketClientFactory(f"ws://{HOST}:{port}")
        factory.protocol = Talk
        await asyncio.get_running_loop().create_connection(factory, HOST, port)
        assert await asyncio.wait_for(closed, 20)

    asyncio.run(main())
    assert not left


def serve_with_trio(ready: Ready) -> None:
    import trio
    from trio_websocket import ConnectionClosed, WebSocketServer

    async def reverse(request: Any) -> None:
        channel = await request.accept()
        try:
            while True:
                await channel.send_message((await channel.get_message())[::-1])
        except ConnectionClosed:
            pass

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(0, host=HOST)
            server = WebSocketServer(reverse, listeners, max_message_size=1_000_000)
            nursery.start_soon(server.run)
            ready(listeners[0].socket.getsockname()[1])

    trio.run(main)


def talk_with_trio(port: int) -> None:
    import trio
    from trio_websocket import open_websocket_url

    async def talk() -> None:
        async with open_websocket_url(f"ws://{HOST}:{port}", max_message_size=1_000_000) as channel:
            for message in MESSAGES:
                await channel.send_message(message)
                assert await channel.get_message() == message[::-1]

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(talk)

    trio.run(main)


def serve_bokeh(ready: Ready) -> None:
    from bokeh.application import Application
    from bokeh.application.handlers.function import FunctionHandler
    from bokeh.models import ColumnDataSource
    from bokeh.server.server import Server

    def fill(document: Any) -> None:
        document.add_root(ColumnDataSource(name="source", data={"x": list(range(1_000))}))

    server = Server({"/": Application(FunctionHandler(fill))}, address=HOST, port=0)
    server.start()
    ready(server.port)
    server.io_loop.start()


def use_bokeh(port: int) -> None:
    """A session pulled over a WebSocket, a change pushed, and the page."""
    import urllib.request

    from bokeh.client import pull_session

    with pull_session(url=f"http://{HOST}:{port}/") as session:
        source = session.document.get_model_by_name("source")
        assert source.data["x"] == list(range(1_000))
        source.data = {"x": [1, 2, 3]}
        session.force_roundtrip()
    with urllib.request.urlopen(f"http://{HOST}:{port}/", timeout=15) as page:
        assert b"bokeh" in page.read()


SCENARIOS = [
    Scenario("websockets-threads", ("websockets",), serve_with_threads, talk_with_threads, connections=5, quick=True),
    Scenario("websockets-asyncio", ("websockets",), serve_with_asyncio, chat_with_asyncio, connections=8, quick=True),
    Scenario("websocket-client", ("websocket-client", "websockets"), serve_with_threads, talk_with_websocket_client),
    Scenario("simple-websocket", ("simple-websocket", "werkzeug"), serve_flask_sock, talk_with_simple_websocket),
    Scenario(
        "socketio",
        ("python-socketio", "requests", "websocket-client", "simple-websocket", "werkzeug"),
        serve_socketio,
        use_socketio,
        connections=3,
    ),
    Scenario("autobahn", ("autobahn", "twisted"), serve_autobahn, talk_with_autobahn),
    Scenario("trio-websocket", ("trio-websocket",), serve_with_trio, talk_with_trio, connections=4),
    Scenario("bokeh", ("bokeh",), serve_bokeh, use_bokeh, connections=2),
]
