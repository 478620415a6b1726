"""One side of a measurement, written against the stdlib's socket interface: `module` in the settings says whose class.

    python3 -m compat.bench.stream_side listen|connect SETTINGS

SETTINGS is JSON: `module` ("utpsocket" or "socket"), `kind` (a key of KINDS), `port` to dial, `seconds`, `parallel`,
`size` of a ping, `hog` (a busy thread in the sender's process), `dialers` (how many processes dial this one). See
agreement.py for what it says and hears.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from compat.bench.agreement import Orders, Watch, emit
from utpsocket.cli.perf_server import allow_fds, figures_of
from utpsocket.cli.perf_streams import Limit, receive_all, send_all

LOOPBACK: Final = "127.0.0.1"
BACKLOG: Final = 4_096
CALLS: Final = ("bind", "listen", "connect", "getpeername", "accept")


class Side:
    """What every kind of measurement needs."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.seconds: float = settings.get("seconds", 1.0)
        self.parallel: int = settings.get("parallel", 1)
        self.transport = importlib.import_module(settings["module"])
        self.orders = Orders()
        allow_fds(self.parallel)

    def listen(self) -> socket.socket:
        listener: socket.socket = self.transport.create_server((LOOPBACK, 0), backlog=BACKLOG)
        emit({"port": listener.getsockname()[1]})
        return listener

    def dial(self) -> socket.socket:
        sock: socket.socket = self.transport.create_connection((LOOPBACK, self.settings["port"]))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def accept(self, listener: socket.socket) -> socket.socket:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def start(self) -> Watch:
        """Say that all is ready, and wait for the sign to begin."""
        emit({"ready": True})
        self.orders.wait_for("go")
        return Watch()

    def timeouts(self, streams: list[socket.socket]) -> int:
        """Of all connections together; 0 for TCP, which was not asked."""
        return sum(figures.get("timeouts", 0) for figures in figures_of(streams, [0] * len(streams), self.transport))


def bulk_connect(side: Side) -> dict[str, Any]:
    streams = [side.dial() for _ in range(side.parallel)]
    if side.settings.get("hog"):
        threading.Thread(target=burn, daemon=True).start()
    watch = side.start()
    counts = send_all(streams, Limit(None, side.seconds), lambda _: None)
    return {**watch.stop(), "bytes": sum(counts), "timeouts": side.timeouts(streams)}


def bulk_listen(side: Side) -> dict[str, Any]:
    with side.listen() as listener:
        streams = [side.accept(listener) for _ in range(side.parallel)]
    watch = side.start()
    # Fairness is judged by what had arrived when the senders stopped: later, every buffer has been emptied.
    halfway: list[int] = []

    def look(counts: Sequence[int]) -> None:
        if not halfway and time.monotonic() - watch.started >= side.seconds:
            halfway.extend(counts)

    counts = receive_all(streams, look)
    return {**watch.stop(), "bytes": sum(counts), "jain": jain(halfway or counts)}


def burn() -> None:
    """Pure Python that never ends: what an application's own busy thread does to the engine's."""
    while True:
        pass


def jain(shares: Sequence[float]) -> float:
    """Jain's fairness index: 1 when all have the same, 1/n when one has all."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def both_ways(side: Side, stream: socket.socket) -> dict[str, Any]:
    received: list[int] = []
    receiver = threading.Thread(target=lambda: received.extend(receive_all([stream], lambda _: None)))
    watch = side.start()
    receiver.start()
    sent = send_all([stream], Limit(None, side.seconds), lambda _: None)
    receiver.join()
    # What this side received, so that the sum over both sides counts every byte once.
    return {**watch.stop(), "bytes": sum(received), "sent": sum(sent)}


def both_connect(side: Side) -> dict[str, Any]:
    return both_ways(side, side.dial())


def both_listen(side: Side) -> dict[str, Any]:
    with side.listen() as listener:
        stream = side.accept(listener)
    return both_ways(side, stream)


def pingpong_connect(side: Side) -> dict[str, Any]:
    stream = side.dial()
    ping = os.urandom(side.settings["size"])
    watch = side.start()
    ends_at = watch.started + side.seconds
    trips: list[float] = []
    began = watch.started
    while began < ends_at:
        stream.sendall(ping)
        if receive_exactly(stream, len(ping)) != ping:
            raise ValueError("the echo differs")
        now = time.monotonic()
        trips.append(now - began)
        began = now
    took = watch.stop()
    stream.shutdown(socket.SHUT_WR)
    trips.sort()
    return {
        **took,
        "count": len(trips),
        "p50_us": trips[len(trips) // 2] * 1e6,
        "p99_us": trips[-len(trips) // 100] * 1e6,
    }


def pingpong_listen(side: Side) -> dict[str, Any]:
    with side.listen() as listener:
        stream = side.accept(listener)
    size = side.settings["size"]
    watch = side.start()
    while ping := receive_exactly(stream, size):
        stream.sendall(ping)
    return watch.stop()


def receive_exactly(stream: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer at the end of the stream."""
    data = stream.recv(size)
    while data and len(data) < size:
        more = stream.recv(size - len(data))
        if not more:
            break
        data += more
    return data


def calls_connect(side: Side) -> dict[str, Any]:
    """How long each call on a socket that does not block takes, while other threads send on all connections."""
    streams = [side.dial() for _ in range(side.parallel)]
    listener = side.transport.create_server((LOOPBACK, 0))
    listener.setblocking(False)
    took_us: dict[str, list[float]] = {name: [] for name in CALLS}
    watch = side.start()
    sender = threading.Thread(target=send_all, args=(streams, Limit(None, side.seconds), lambda _: None))
    if streams:
        sender.start()
    while time.monotonic() < watch.started + side.seconds:
        nonblocking_calls(side.transport, listener, took_us)
    if streams:
        sender.join()
    report = dict(watch.stop())
    for name, each in took_us.items():
        report[f"{name}_us"], report[f"{name}_worst_us"] = statistics.median(each), max(each)
    return report


def nonblocking_calls(transport: Any, listener: Any, took_us: dict[str, list[float]]) -> None:
    """Each once."""

    def timed(name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        began = time.perf_counter()
        result = call(*arguments)
        took_us[name].append((time.perf_counter() - began) * 1e6)
        return result

    with transport.socket() as bound, transport.socket() as client:
        bound.setblocking(False)
        client.setblocking(False)
        timed("bind", bound.bind, (LOOPBACK, 0))
        timed("listen", bound.listen)
        timed("connect", client.connect_ex, listener.getsockname())
        select.select([listener], [], [])
        server, _ = timed("accept", listener.accept)
        with server:
            server.setblocking(False)
            timed("getpeername", server.getpeername)


def setup_connect(side: Side) -> dict[str, Any]:
    watch = side.start()
    count = 0
    while time.monotonic() < watch.started + side.seconds:
        with side.dial() as stream:
            stream.sendall(b"!")
            if stream.recv(1) != b"!":
                raise ValueError("no echo")
        count += 1
    return {**watch.stop(), "count": count}


def setup_listen(side: Side) -> dict[str, Any]:
    listener = side.listen()

    def serve() -> None:
        while True:
            stream, _ = listener.accept()
            with stream, contextlib.suppress(OSError):
                if data := stream.recv(1):
                    stream.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    watch = side.start()
    side.orders.wait_for("stop")
    return watch.stop()


def idle_connect(side: Side) -> dict[str, Any]:
    """One connection, so that all there is once is there; then, between two looks at this process, all the others."""
    streams = [side.dial()]
    watch = side.start()
    before = usage()
    streams += [side.dial() for _ in range(side.parallel)]
    took = watch.stop()
    emit({"opened": len(streams)})
    side.orders.wait_for("stop")
    return {**took, **growth(before), "open": len(streams)}


def idle_listen(side: Side) -> dict[str, Any]:
    listener = side.listen()
    streams = [side.accept(listener) for _ in range(side.settings["dialers"])]
    watch = side.start()
    before = usage()
    streams += [side.accept(listener) for _ in range(side.parallel)]
    took = watch.stop()
    emit({"opened": len(streams)})
    side.orders.wait_for("stop")
    return {**took, **growth(before), "open": len(streams)}


def usage() -> dict[str, int]:
    """Resident bytes and open fds of this process."""
    resident_pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return {"rss": resident_pages * os.sysconf("SC_PAGE_SIZE"), "fds": len(os.listdir("/proc/self/fd"))}


def growth(before: dict[str, int]) -> dict[str, int]:
    now = usage()
    return {key: now[key] - before[key] for key in before}


KINDS: Final[dict[str, tuple[Callable[[Side], dict[str, Any]], Callable[[Side], dict[str, Any]]]]] = {
    "bulk": (bulk_listen, bulk_connect),
    "both": (both_listen, both_connect),
    "pingpong": (pingpong_listen, pingpong_connect),
    "setup": (setup_listen, setup_connect),
    "calls": (bulk_listen, calls_connect),
    "idle": (idle_listen, idle_connect),
}


def main(role: str, settings_text: str) -> None:
    side = Side(json.loads(settings_text))
    listen, connect = KINDS[side.settings["kind"]]
    side.orders.report((listen if role == "listen" else connect)(side))


if __name__ == "__main__":
    main(*sys.argv[1:])
