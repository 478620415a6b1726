"""`python3 -m tests.chaos.party`: the process at one end. Commands come on stdin, answers go to stdout, lines of JSON.

begin    start the client's or the server's half of a run
status   how far it is
abandon  give connections up
finish   end the run: what is left behind?
dump     everything that helps to understand a hang

SIGUSR1 has it, or its engine's process, write on stderr where each of its threads is.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import select
import signal
import socket as stdlib
import sys
import threading
import time
import traceback
from dataclasses import replace
from typing import Any, Final

import utpsocket
from tests.chaos.plan import Connection, Listener, Side
from tests.chaos.sides import End, Outcome, Progress, error_name, header, prepare_options, set_style
from tests.chaos.streams import HEADER, MAGIC, Stream
from utpsocket import stats
from utpsocket.engine import running_engine
from utpsocket.engine.helper import client as engine_client

_ACCEPT_SECONDS: Final = 0.2


def connection_of(fields: dict[str, Any]) -> Connection:
    return Connection(**{**fields, "client": Side(**fields["client"]), "server": Side(**fields["server"])})


class Half:
    """What both halves of a run have."""

    def __init__(self, seed: int, family: str, connections: list[Connection]) -> None:
        self.seed = seed
        self.family = stdlib.AF_INET if family == "IPv4" else stdlib.AF_INET6
        self.host = "127.0.0.1" if family == "IPv4" else "::1"
        self.connections = connections
        self.progress = Progress()
        self.outcomes: list[Outcome] = []
        self.ends: list[End] = []
        self.threads: list[threading.Thread] = []
        self.is_finishing = False
        self.faults: list[str] = []

    def start(self, work: Any, *args: Any) -> None:
        thread = threading.Thread(target=self._guarded, args=(work, *args), daemon=True)
        self.threads.append(thread)
        thread.start()

    def _guarded(self, work: Any, *args: Any) -> None:
        try:
            work(*args)
        except Exception as error:
            self.faults.append("".join(traceback.format_exception(error))[-1_500:])

    def end(self, sock: Any, side: Side, outcome: Outcome) -> End:
        end = End(sock, side, self.progress, outcome)
        self.ends.append(end)
        if self.is_finishing:
            end.abandon()  # abandon() may have been through the others already
        return end

    def status(self) -> dict[str, Any]:
        open_ends = [end for end in list(self.ends) if end.sock is not None]
        return {
            "progress": self.progress.count,
            "is_done": self.is_done(),
            "stuck": [[end.outcome.connection, end.describe()] for end in open_ends],
            "closed": [end.outcome.connection for end in list(self.ends) if end.sock is None],
        }

    def is_done(self) -> bool:
        return not any(thread.is_alive() for thread in list(self.threads))

    def abandon(self, numbers: list[int] | None) -> None:
        for end in list(self.ends):
            if end.sock is not None and (numbers is None or end.outcome.connection in numbers):
                end.abandon()

    def finish(self) -> dict[str, Any]:
        self.is_finishing = True
        return {"outcomes": [outcome.as_dict() for outcome in self.outcomes], "faults": self.faults}


class Client(Half):
    def begin(self, addresses: list[list[Any]]) -> dict[str, Any]:
        for number, connection in enumerate(self.connections):
            self.start(self._play, number, connection, tuple(addresses[connection.listener]))
        return {}

    def _play(self, number: int, connection: Connection, address: Any) -> None:
        time.sleep(connection.delay)
        for attempt in range(4):
            outcome = Outcome(number, attempt)
            self.outcomes.append(outcome)
            sock = utpsocket.socket(self.family)
            prepare_options(sock, connection.client)
            if connection.shares_port:
                sock.setsockopt(utpsocket.SOL_UTP, utpsocket.UTP_SHARE_PORT, 1)
                sock.bind((self.host, 0))
            end = self.end(sock, connection.client, outcome)
            outcome.connect_at = time.monotonic()
            end.doing["write"] = "connects"
            is_last = attempt == 3
            try:
                self._connect(sock, connection.connect_style if not is_last else "blocking", connection, address, end)
            except OSError as error:
                outcome.connect_error = error_name(error)
                outcome.local = sock.getsockname()
                end.doing["write"] = "closes"
                sock.close()
                end.sock = None
                outcome.closed_at = time.monotonic()
                self.progress.count += 1
                if outcome.connect_error == "TimeoutError" and not is_last:
                    continue
                return
            outcome.connected_at = time.monotonic()
            self.progress.count += 1
            try:
                outcome.local, outcome.peer = sock.getsockname(), sock.getpeername()
            except OSError as error:
                outcome.peer = error_name(error)  # the peer may have reset it already
            end.doing["write"] = ""
            set_style(sock, connection.client.style)
            del sock
            first = b"" if connection.is_mute else header(self.seed, number, attempt)
            end.run(Stream(self.seed, number, "c2s"), Stream(self.seed, number, "s2c"), first)
            return

    def _connect(self, sock: Any, style: str, connection: Connection, address: Any, end: End) -> None:
        if style == "blocking":
            sock.connect(address)
        elif style == "timeouts":
            sock.settimeout(connection.connect_timeout)
            sock.connect(address)
        else:
            sock.setblocking(False)
            try:
                sock.connect(address)
            except BlockingIOError:
                end._wait(select.POLLOUT)
                code = sock.getsockopt(stdlib.SOL_SOCKET, stdlib.SO_ERROR)
                if code:
                    raise OSError(code, os.strerror(code)) from None
                sock.getpeername()


class Server(Half):
    def begin(self, listeners: list[Listener]) -> dict[str, Any]:
        self.listeners: list[Any] = []
        self.accepted = 0
        for number, listener in enumerate(listeners):
            sock = utpsocket.socket(self.family)
            sock.bind((self.host, 0))
            sock.listen(listener.backlog)
            sock.settimeout(0 if listener.style == "nonblocking" else _ACCEPT_SECONDS)
            self.listeners.append(sock)
            self.start(self._accept, number, listener, sock)
        return {"addresses": [sock.getsockname() for sock in self.listeners]}

    def is_done(self) -> bool:
        return not any(end.sock is not None for end in list(self.ends))

    def _accept(self, number: int, listener: Listener, sock: Any) -> None:
        time.sleep(listener.accept_delay)
        poller = select.poll()
        poller.register(sock.fileno(), select.POLLIN)
        while not self.is_finishing:
            if listener.style == "nonblocking" and not poller.poll(_ACCEPT_SECONDS * 1_000):
                continue
            try:
                conn, peer = sock.accept()
            except (TimeoutError, BlockingIOError):
                continue
            self.accepted += 1
            self.progress.count += 1
            outcome = Outcome(connected_at=time.monotonic(), peer=peer)
            self.outcomes.append(outcome)
            only = [c for c in self.connections if c.listener == number] if listener.server_first else []
            self.start(self._serve, number, conn, outcome, only)
        sock.close()

    def _serve(self, number: int, sock: Any, outcome: Outcome, only: list[Connection]) -> None:
        end = self.end(sock, Side(), outcome)
        try:
            outcome.local = sock.getsockname()
        except OSError:
            pass
        if only:
            connection = only[0]
            index = self.connections.index(connection)
            self._serve_first(index, connection, end)
            return
        head = self._header(end)
        if head is None:
            end._finish()
            return
        index = head >> 8
        outcome.connection, outcome.attempt = index, head & 0xFF
        end.side = self.connections[index].server
        end.prepare()
        end.has_read.set()
        end.run(Stream(self.seed, index, "s2c"), Stream(self.seed, index, "c2s"), b"")

    def _header(self, end: End) -> int | None:
        """The connection's number, or None where nothing came."""
        head = b""
        end.doing["read"] = "recv of the header"
        try:
            while len(head) < HEADER.size:
                piece = end.sock.recv(HEADER.size - len(head))
                if not piece:
                    end.outcome.end, end.outcome.end_at = "eof", time.monotonic()
                    break
                head += piece
        except OSError as error:
            end.outcome.end, end.outcome.read_error = "error", error_name(error)
            end.outcome.end_at = time.monotonic()
            return None
        finally:
            end.doing["read"] = ""
        return self._number(head, end.outcome)

    def _number(self, head: bytes, outcome: Outcome) -> int | None:
        if not head:
            return None
        if len(head) < HEADER.size:
            outcome.fault = f"end of file within the first bytes: {len(head)} of them"
            return None
        magic, number, seed = HEADER.unpack(head)
        if (magic, seed) != (MAGIC, self.seed):
            outcome.fault = f"first bytes are another connection's: {head.hex()}"
            return None
        return int(number)

    def _serve_first(self, index: int, connection: Connection, end: End) -> None:
        """The acceptor speaks first; the header comes with what the reader reads."""
        side = end.side = replace(connection.server)
        if side.stop_after is not None:
            side.stop_after += HEADER.size
        end.prepare()
        end.run(Stream(self.seed, index, "s2c"), Headed(self, index, end), b"")


class Headed:
    """The incoming stream of an acceptor that speaks first: a header, then the stream. Stands in for Stream."""

    def __init__(self, server: Server, index: int, end: End) -> None:
        self.server, self.index, self.end = server, index, end
        self.stream = Stream(server.seed, index, "c2s")
        self.head = b""

    def fault(self, offset: int, data: bytes) -> str | None:
        start = len(self.head)
        self.head += data[: HEADER.size - start]
        if start < HEADER.size <= len(self.head):
            number = self.server._number(self.head, self.end.outcome)
            if number is None:
                return self.end.outcome.fault
            self.end.outcome.connection, self.end.outcome.attempt = number >> 8, number & 0xFF
        rest = data[HEADER.size - start :] if start < HEADER.size else data
        return self.stream.fault(max(0, offset - HEADER.size), rest) if rest else None


class Party:
    def __init__(self) -> None:
        self.half: Client | Server | None = None
        self.baseline: dict[str, Any] = {}

    def warm_up(self) -> None:
        """Whatever is made once and stays."""
        with utpsocket.socket() as listener, utpsocket.socket() as client:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            client.connect(listener.getsockname())
            conn, _ = listener.accept()
            conn.sendall(b"x")
            client.recv(1)
            conn.close()
        self.drain(10)
        self.baseline = self.held()

    def held(self) -> dict[str, Any]:
        """fds of this process and its engine's, threads, and what the engine has."""
        gc.collect()
        figures = stats.engine_stats()
        loop = running_engine()
        pids = {os.getpid(), loop.pid if loop is not None else os.getpid()}
        return {
            "fds": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
            "threads": len(os.listdir("/proc/self/task")),
            "connections": figures.connections_open,
            "ports": figures.ports_open,
            "faults": figures.faults,
        }

    def drain(self, seconds: float) -> dict[str, Any]:
        """Wait until the engine has nothing any more; what is held then."""
        until = time.monotonic() + seconds
        while True:
            held = self.held()
            if held["connections"] == held["ports"] == 0 and (
                not self.baseline or all(held[key] <= self.baseline[key] for key in ("fds", "threads"))
            ):
                return held
            if time.monotonic() > until:
                return held
            time.sleep(0.03)

    def handle(self, command: dict[str, Any]) -> dict[str, Any]:
        name = command["command"]
        if name == "begin":
            connections = [connection_of(fields) for fields in command["connections"]]
            if command["role"] == "server":
                self.half = Server(command["seed"], command["family"], connections)
                return self.half.begin([Listener(**fields) for fields in command["listeners"]])
            self.half = Client(command["seed"], command["family"], connections)
            return self.half.begin(command["addresses"])
        half = self.half
        assert half is not None
        if name == "status":
            return half.status()
        if name == "abandon":
            half.abandon(command["connections"])
            return {}
        if name == "finish":
            return self.finish(half, command["drain_seconds"])
        if name == "dump":
            return self.dump(half)
        raise ValueError(name)

    def finish(self, half: Half, drain_seconds: float) -> dict[str, Any]:
        half.is_finishing = True
        half.abandon(None)
        until = time.monotonic() + 60
        for thread in half.threads:  # not a copy: a listener's, before it ends, may start one more
            thread.join(max(0, until - time.monotonic()))
        alive = sum(thread.is_alive() for thread in half.threads)
        answer = half.finish()
        half.ends.clear()
        half.threads.clear()
        self.half = None
        began = time.monotonic()
        held = self.drain(drain_seconds)
        answer.update(held=held, baseline=self.baseline, drained_in=time.monotonic() - began, threads_alive=alive)
        if held["connections"]:
            answer["left"] = [one._asdict() for one in stats.engine_stats().connections]
        return answer

    def dump(self, half: Half) -> dict[str, Any]:
        loop = running_engine()
        if loop is not None and loop.pid != os.getpid():
            os.kill(loop.pid, signal.SIGUSR1)
        frames = sys._current_frames()
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        return {
            "engine": stats.engine_stats()._asdict(),
            "outcomes": [outcome.as_dict() for outcome in half.outcomes],
            "stuck": half.status()["stuck"],
            "stacks": [
                f"{names.get(ident, ident)}: " + "".join(traceback.format_stack(frame)[-3:])
                for ident, frame in frames.items()
            ],
        }


_TELL: Final = "import faulthandler, signal\nfaulthandler.register(signal.SIGUSR1)\n"


def main() -> None:
    faulthandler.enable()
    exec(_TELL, {})
    engine_client._BOOT_SCRIPT = _TELL + engine_client._BOOT_SCRIPT  # type: ignore[misc]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints is noise on stderr, which fails the run
    party = Party()
    party.warm_up()
    print(json.dumps({"pid": os.getpid()}), file=out, flush=True)
    for line in sys.stdin:
        try:
            answer = party.handle(json.loads(line))
        except Exception as error:
            answer = {"exception": "".join(traceback.format_exception(error))[-3_000:]}
        print(json.dumps(answer, default=str), file=out, flush=True)


if __name__ == "__main__":
    main()
