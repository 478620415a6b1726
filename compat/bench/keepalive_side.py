"""One side of requests over connections that stay open: asyncio streams, with a task for each connection.

    python3 -m compat.bench.keepalive_side listen|connect SETTINGS

SETTINGS as in stream_side.py. `parallel` connections carry requests of REQUEST_BYTES, each connection one at a time,
and are answered with `answer` bytes. Every connection has carried one before anything is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, Final

from compat.bench.stream_side import Side

REQUEST_BYTES: Final = 100


async def connect(side: Side) -> dict[str, Any]:
    request, answer_bytes = b"?" * REQUEST_BYTES, side.settings["answer"]
    streams = [await asyncio.open_connection(sock=side.dial()) for _ in range(side.parallel)]
    trips: list[float] = []
    ends_at = 0.0

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the end, and at least once."""
        now = time.monotonic()
        while True:
            began = now
            writer.write(request)
            await reader.readexactly(answer_bytes)
            now = time.monotonic()
            trips.append(now - began)
            if now >= ends_at:
                break

    async def ask_on_all() -> None:
        await asyncio.gather(*(ask(*stream) for stream in streams))

    await ask_on_all()
    watch = await asyncio.to_thread(side.start)
    trips.clear()
    ends_at = watch.started + side.seconds
    await ask_on_all()
    took = watch.stop()
    for _, writer in streams:
        writer.close()
    trips.sort()
    return {
        **took,
        "count": len(trips),
        "p50_us": trips[len(trips) // 2] * 1e6,
        "p99_us": trips[-1 - len(trips) // 100] * 1e6,
    }


async def listen(side: Side) -> dict[str, Any]:
    answer = b"!" * side.settings["answer"]
    ended = asyncio.Event()
    open_connections = side.parallel

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_connections
        try:
            while True:
                await reader.readexactly(REQUEST_BYTES)
                writer.write(answer)
                await writer.drain()
        except asyncio.IncompleteReadError:
            writer.close()
        open_connections -= 1
        if not open_connections:
            ended.set()

    server = await asyncio.start_server(serve, sock=side.listen())
    watch = await asyncio.to_thread(side.start)
    await ended.wait()
    server.close()
    return watch.stop()


def main(role: str, settings_text: str) -> None:
    side = Side(json.loads(settings_text))
    side.orders.report(asyncio.run((listen if role == "listen" else connect)(side)))


if __name__ == "__main__":
    main(*sys.argv[1:])
