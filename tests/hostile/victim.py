"""What the cases attack: a server of the plainest kind in a process of its own, and its ordinary clients.

The first byte of a connection says what its client wants: S, take everything; E, send everything back. A line on
standard input is answered by the figures of this instant.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import utpsocket
from utpsocket.stats import engine_stats

ROOT: Final = Path(__file__).parents[2]
_CHUNK: Final = bytes(1 << 18)


class Server:
    """One that accepts, in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.address: tuple[str, int] = tuple(self.figures()["address"])

    def figures(self) -> dict[str, Any]:
        """Bytes taken, processor time, memory and the engine's state."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


@contextlib.contextmanager
def serving(host: str = "127.0.0.1", *, backlog: int = 128, accepts: bool = True) -> Iterator[Server]:
    """A server, as long as the block lasts."""
    command = [sys.executable, "-m", "tests.hostile.victim", "serve", host, "--backlog", str(backlog)]
    command += [] if accepts else ["--deaf"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Server(process)
        finally:
            process.kill()


@contextlib.contextmanager
def sending(address: tuple[str, int]) -> Iterator[None]:
    """A client in a process of its own that sends as fast as it can, as long as the block lasts."""
    command = [sys.executable, "-m", "tests.hostile.victim", "send", address[0], "--port", str(address[1])]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"connected\n"
            yield
        finally:
            process.kill()


def visit(address: tuple[str, int], timeout: float = 10.0) -> float:
    """Connect and have one byte sent back: how many seconds it took, infinite where it failed."""
    started = time.monotonic()
    try:
        with utpsocket.create_connection(address, timeout=timeout) as client:
            client.sendall(b"E!")
            if client.recv(1) != b"!":
                return float("inf")
    except OSError:
        return float("inf")
    return time.monotonic() - started


def serve(host: str, backlog: int, accepts: bool) -> None:
    """The server's process."""
    taken = [0]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = utpsocket.create_server((host, 0), family=family, backlog=backlog, dualstack_ipv6=host == "::")

    def attend(conn: Any) -> None:
        with conn, contextlib.suppress(OSError):
            wish = conn.recv(1)
            while data := conn.recv(1 << 18):
                taken[0] += len(data)
                if wish == b"E":
                    conn.sendall(data)

    def accept() -> None:
        while True:
            conn, _ = listener.accept()
            threading.Thread(target=attend, args=(conn,), daemon=True).start()

    if accepts:
        threading.Thread(target=accept, daemon=True).start()
    for _ in sys.stdin:
        times = resource.getrusage(resource.RUSAGE_SELF)
        figures: dict[str, Any] = {
            "address": listener.getsockname()[:2],
            "taken_bytes": taken[0],
            "cpu_seconds": times.ru_utime + times.ru_stime,
            "rss_bytes": int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
            * os.sysconf("SC_PAGE_SIZE"),
            "fds": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
        }
        stats = engine_stats()
        figures["wakeups"], figures["faults"], figures["connections"] = (
            stats.wakeups,
            stats.faults,
            stats.connections_open,
        )
        print(json.dumps(figures), flush=True)


def send(host: str, port: int) -> None:
    """The sender's process."""
    with utpsocket.create_connection((host, port), timeout=30) as client:
        client.settimeout(None)
        client.sendall(b"S")
        print("connected", flush=True)
        while True:
            client.sendall(_CHUNK)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("serve", "send"))
    parser.add_argument("host")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--backlog", type=int, default=128)
    parser.add_argument("--deaf", action="store_true", help="never accept")
    given = parser.parse_args()
    if given.role == "serve":
        serve(given.host, given.backlog, not given.deaf)
    else:
        send(given.host, given.port)


if __name__ == "__main__":
    main()
