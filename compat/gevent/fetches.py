"""Many greenlets fetch from a gevent server over uTP, in one pair of processes, while another greenlet ticks.

The hub is blocked by whatever does not let other greenlets run: how late a tick ever is says for how long. Both
processes tick. Started by `python3 -m compat gevent fetches`, which runs this file in gevent's environment:

    python -m compat.gevent.fetches                  both processes; one JSON object on stdout
    python -m compat.gevent.fetches serve            the server; says its port, ends with its stdin
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any, Final

FETCHES: Final = 1_000
FETCH_BYTES: Final = 100_000
TICK_SECONDS: Final = 0.01
LATE_MS: Final = 50.0  # the bound
LIMIT_SECONDS: Final = 120.0


class Ticker:
    """A greenlet that wants to run every TICK_SECONDS."""

    def __init__(self) -> None:
        import gevent

        self.late_seconds: list[float] = []
        self._greenlet = gevent.spawn(self._tick)

    def _tick(self) -> None:
        import gevent

        while True:
            due = time.monotonic() + TICK_SECONDS
            gevent.sleep(TICK_SECONDS)
            self.late_seconds.append(time.monotonic() - due)

    def figures(self) -> dict[str, float]:
        """How late it was: at worst, the median, and how often too late."""
        late_ms = sorted(1_000 * seconds for seconds in self.late_seconds)
        return {
            "ticks": len(late_ms),
            "worst_late_ms": round(late_ms[-1], 1),
            "median_late_ms": round(late_ms[len(late_ms) // 2], 2),
            "too_late": sum(ms > LATE_MS for ms in late_ms),
        }


def serve(transport: str) -> None:
    """The server: sends FETCH_BYTES to whoever connects and asks."""
    patch(transport)
    import gevent
    from gevent.fileobject import FileObject
    from gevent.server import StreamServer

    data = bytes(FETCH_BYTES)

    def handle(sock: Any, address: Any) -> None:
        if sock.recv(1):
            sock.sendall(data)

    server = StreamServer(("127.0.0.1", 0), handle, backlog=FETCHES)
    server.start()
    ticker = Ticker()
    print(server.server_port, flush=True)
    FileObject(sys.stdin.buffer, "rb").read()  # for as long as the client lives
    server.stop()
    gevent.sleep(0)
    print(json.dumps(ticker.figures()), flush=True)


def fetch_all(transport: str, count: int) -> dict[str, Any]:
    """The client's side, and the server's figures."""
    command = [sys.executable, "-m", "compat.gevent.fetches", "serve", "--transport", transport]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            address = ("127.0.0.1", int(server.stdout.readline()))
            figures = _fetch(transport, address, count)
            server.stdin.close()
            figures["server"] = json.loads(server.stdout.readline())
        finally:
            server.kill()
    return figures


def _fetch(transport: str, address: tuple[str, int], count: int) -> dict[str, Any]:
    patch(transport)
    import gevent
    from gevent import socket

    from utpsocket.stats import engine_stats

    def fetch() -> int:
        # Not create_connection(), which asks gevent's resolver: ten threads that compete for the interpreter's lock.
        with socket.socket() as sock:
            sock.connect(address)
            sock.sendall(b"!")
            got_bytes = 0
            while data := sock.recv(65_536):
                got_bytes += len(data)
            return got_bytes

    ticker = Ticker()
    gevent.sleep(5 * TICK_SECONDS)
    began_at = time.monotonic()
    greenlets = [gevent.spawn(fetch) for _ in range(count)]
    gevent.joinall(greenlets, timeout=LIMIT_SECONDS)
    seconds = time.monotonic() - began_at
    return {
        "fetches": count,
        "whole": sum(greenlet.value == FETCH_BYTES for greenlet in greenlets),
        "seconds": round(seconds, 2),
        "utp_connections": engine_stats().connections_initiated,
        "client": ticker.figures(),
    }


def patch(transport: str) -> None:
    """The program's sockets are gevent's, over uTP or as they come."""
    if transport == "utp":
        from utpsocket import green

        green.hook_gevent()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m compat.gevent.fetches")
    parser.add_argument("role", nargs="?", default="fetch", choices=["fetch", "serve"])
    parser.add_argument("--transport", default="utp", choices=["utp", "tcp"])
    parser.add_argument("--count", type=int, default=FETCHES)
    options = parser.parse_args()
    if options.role == "serve":
        serve(options.transport)
        return 0
    print(json.dumps(fetch_all(options.transport, options.count)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
