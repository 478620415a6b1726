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
]
