"""Servers of ASGI applications, each with the same application and client (compat.programs.web)."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

from compat.programs.scenario import Ready, Scenario
from compat.programs.web import HOST, asgi, exercise


def serve_uvicorn(ready: Ready, **settings: Any) -> None:
    import uvicorn

    class Announced(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ready(self.servers[0].sockets[0].getsockname()[1])

    Announced(uvicorn.Config(asgi, host=HOST, port=0, log_level="warning", **settings)).run()


def serve_hypercorn(ready: Ready, backend: str) -> None:
    from hypercorn.config import Config, Sockets

    class Announced(Config):
        def create_sockets(self) -> Sockets:
            sockets = super().create_sockets()
            for sock in sockets.insecure_sockets:
                sock.listen(100)
            ready(sockets.insecure_sockets[0].getsockname()[1])
            return sockets

    config = Announced()
    config.bind = [f"{HOST}:0"]
    if backend == "trio":
        import hypercorn.trio
        import trio

        trio.run(functools.partial(hypercorn.trio.serve, asgi, config, shutdown_trigger=trio.sleep_forever))
    else:
        import hypercorn.asyncio

        asyncio.run(hypercorn.asyncio.serve(asgi, config, shutdown_trigger=asyncio.Event().wait))


def serve_daphne(ready: Ready) -> None:
    from daphne.server import Server
    from twisted.internet import reactor

    server: Any = Server(asgi, endpoints=[f"tcp:port=0:interface={HOST}"], signal_handlers=False)
    listened = server.listen_success

    def announce(port: Any) -> None:
        listened(port)
        ready(port.getHost().port)

    server.listen_success = announce
    assert reactor
    server.run()


def serve_sanic(ready: Ready) -> None:
    """One process, on the loop of its own that it makes (uvloop); the common application, written for it."""
    import sanic
    from sanic.response import text

    from compat.programs.web import STREAMED, digest

    sanic.Sanic.start_method = "fork"
    app: Any = sanic.Sanic("common", configure_logging=False)

    @app.get("/hello")
    async def hello(request: Any) -> Any:
        return text(f"hello {request.query_string} from {request.ip}")

    @app.post("/digest")
    async def posted(request: Any) -> Any:
        return text(digest(request.body))

    @app.get("/stream")
    async def stream(request: Any) -> None:
        answer = await request.respond(content_type="application/octet-stream")
        for block in STREAMED:
            await answer.send(block)
        await answer.eof()

    async def main() -> None:
        server = await app.create_server(host=HOST, port=0, return_asyncio_server=True)
        await server.startup()
        await server.start_serving()
        ready(server.server.sockets[0].getsockname()[1])
        await asyncio.Event().wait()

    asyncio.run(main())


SCENARIOS = [
    Scenario(
        "uvicorn",
        ("uvicorn",),
        functools.partial(serve_uvicorn, loop="asyncio", http="h11"),
        exercise,
        connections=7,
        quick=True,
    ),
    Scenario(
        "uvicorn-httptools",
        ("uvicorn", "httptools"),
        functools.partial(serve_uvicorn, loop="asyncio", http="httptools"),
        exercise,
        connections=7,
    ),
    Scenario(
        "uvicorn-uvloop",
        ("uvicorn", "uvloop", "httptools"),
        functools.partial(serve_uvicorn, loop="uvloop", http="httptools"),
        exercise,
        connections=7,
        quick=True,
    ),
    Scenario(
        "hypercorn", ("hypercorn",), functools.partial(serve_hypercorn, backend="asyncio"), exercise, connections=7
    ),
    Scenario(
        "hypercorn-trio",
        ("hypercorn", "trio"),
        functools.partial(serve_hypercorn, backend="trio"),
        exercise,
        connections=7,
    ),
    Scenario("daphne", ("daphne",), serve_daphne, exercise, connections=7),
    Scenario("sanic", ("sanic",), serve_sanic, exercise, connections=7),
]
