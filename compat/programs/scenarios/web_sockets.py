"""WebSockets: websockets in threads and in asyncio, websocket-client, simple-websocket, Socket.IO."""

from __future__ import annotations

import asyncio
import threading

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

    async def main() -> None:
        nonlocal server
        async with serve(chat, HOST, 0, max_size=None) as server:
            ready(server.sockets[0].getsockname()[1])
            await server.serve_forever()

    server = None
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
]
