"""Workers that share a port by SO_REUSEPORT, of which one after the other is killed and replaced under connections.

    python3 -m tests.sockets.reuseport socket|utpsocket [ADDRESS [BOUND [KILLS [CONNECTIONS [PAUSE_SECONDS]]]]]

Before and after each kill every connection is asked which process serves it: only those of the killed one may break.
It prints what happened to the connections of each worker, and ends with 1 if others were affected.
"""

from __future__ import annotations

import importlib
import os
import random
import socket as stdlib
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 4
PATIENCE_S = 30.0


class Outcome:
    """What was seen: connections that broke without reason, those that broke with one, and who served how many."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.broken = 0
        self.expected = 0
        self.spread: Counter[int] = Counter()


def family_of(host: str) -> int:
    return int(stdlib.AF_INET6 if ":" in host else stdlib.AF_INET)


def work(module: Any, host: str, port: int) -> None:
    """A worker: sends its process id to every peer, once for each byte."""
    listener = module.socket(family_of(host))
    listener.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.listen(200)
    print(listener.getsockname()[1], flush=True)

    def serve(connection: Any) -> None:
        with connection:
            try:
                while connection.recv(1):
                    connection.sendall(b"%d\n" % os.getpid())
            except OSError:
                pass

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


class Site:
    """The workers and the connections to them."""

    def __init__(self, name: str, host: str, bound: str, workers: int) -> None:
        self.name, self.host, self.bound = name, host, bound
        self.module = importlib.import_module(name)
        self.port = 0
        self.workers: list[Any] = []
        self.served_by: dict[Any, int] = {}
        for _ in range(workers):
            self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.sockets.reuseport", "worker", self.name, self.bound, str(self.port)]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
        assert worker.stdout is not None
        self.port = int(worker.stdout.readline())
        self.workers.append(worker)

    def kill(self, worker: Any) -> None:
        worker.kill()
        worker.wait()
        worker.stdout.close()
        self.workers.remove(worker)

    def connect(self, count: int) -> None:
        for _ in range(count):
            connection = self.module.create_connection((self.host, self.port), timeout=PATIENCE_S)
            self.served_by[connection] = self.ask(connection)

    def ask(self, connection: Any) -> int:
        connection.sendall(b"?")
        answer = b""
        while not answer.endswith(b"\n"):
            piece = connection.recv(100)
            if not piece:
                raise ConnectionResetError("the end of the stream")
            answer += piece
        return int(answer)

    def ask_all(self, killed: int, outcome: Outcome) -> None:
        for connection, pid in list(self.served_by.items()):
            try:
                answered_by = self.ask(connection)
            except OSError as error:
                outcome.broken += 1
                if pid != killed or isinstance(error, TimeoutError):
                    outcome.wrong.append(f"served by {pid}, {killed} was killed: {error!r}")
                del self.served_by[connection]
                connection.close()
            else:
                if answered_by != pid or pid == killed:
                    outcome.wrong.append(f"served by {pid}, answered by {answered_by}, {killed} was killed")

    def close(self) -> None:
        for connection in self.served_by:
            connection.shutdown(stdlib.SHUT_WR)
        for connection in self.served_by:
            while connection.recv(100):  # nothing is under way when the workers are killed
                pass
            connection.close()
        for worker in list(self.workers):
            self.kill(worker)


def run(
    name: str,
    host: str,
    bound: str,
    kills: int,
    connections: int,
    pause_seconds: float = 0.0,
    workers: int = WORKERS,
) -> Outcome:
    """Let it all happen."""
    outcome = Outcome()
    choose = random.Random(1)
    site = Site(name, host, bound, workers)
    try:
        site.connect(connections)
        outcome.spread = Counter(site.served_by.values())
        for _ in range(kills):
            site.start()
            site.ask_all(0, outcome)
            victim = choose.choice(site.workers[:-1])
            outcome.expected += sum(pid == victim.pid for pid in site.served_by.values())
            site.kill(victim)
            site.ask_all(victim.pid, outcome)
            site.connect(connections - len(site.served_by))
            time.sleep(pause_seconds)
    finally:
        site.close()
    return outcome


def main(arguments: list[str]) -> int:
    """The command line."""
    if arguments[0] == "worker":
        work(importlib.import_module(arguments[1]), arguments[2], int(arguments[3]))
    name = arguments[0]
    host = arguments[1] if len(arguments) > 1 else "127.0.0.1"
    bound = arguments[2] if len(arguments) > 2 else host
    kills, connections = (int(arguments[at]) if len(arguments) > at else usual for at, usual in ((3, 20), (4, 200)))
    outcome = run(name, host, bound, kills, connections, float(arguments[5]) if len(arguments) > 5 else 0.0)
    print("\n".join([*outcome.wrong, f"served by {sorted(outcome.spread.values())} of {connections} at first"]))
    print(f"{outcome.broken} broke, {outcome.expected} of them were the killed workers' own")
    return bool(outcome.wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
