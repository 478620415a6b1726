"""perf's server, and the few lines of JSON by which client and server agree.

A client's first connection is the control connection; its first line says what is to be done (`Plan`), under a name
that the client made up. The streams follow, each with a line that names the plan and the stream's number, and nothing
else until the client says "go" on the control connection: so connecting and agreeing are outside of what is timed.

    client, control   {"perf": 1, "plan": NAME, "parallel": N, "reverse": false, "bytes": B, "seconds": S}
    server, control   {"ready": true}
    client, stream i  {"perf": 1, "stream": NAME, "number": i}
    server, control   {"open": true}                      every stream is here
    client, control   {"go": true}                        the clock runs: the sender sends, then ends its streams
    server, control   {"bytes": [...], "cpu_seconds": ..., "connections": [...]}, or {"error": ...}

Neither side closes a stream before the report has arrived, so that both can still read the connections' statistics.
"""

from __future__ import annotations

import contextlib
import json
import queue
import resource
import socket
import threading
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Protocol

from utpsocket.cli.demo_server import connection_figures, utp_stats
from utpsocket.cli.perf_streams import DataMismatch, Limit, receive_all, send_all

VERSION: Final = 1
# A longer line is none of this protocol's; by feel.
LINE_BYTES: Final = 4_096
# A report on many connections is long; by feel.
LONG_LINE_BYTES: Final = 64 << 20
# For the next stream, or the next line before "go", to arrive; by feel.
OPEN_SECONDS: Final = 30.0
BACKLOG: Final = 1_024
SPARE_FDS: Final = 64
# An object of JSON, as one side wrote it and the other reads it.
Json = dict[str, Any]
FDS_PER_STREAM: Final = 4  # the user's, the engine's, and one for the connection's own UDP port


class PerfError(Exception):
    """The other side is no perf, or does not keep to the protocol; the text is for people."""


@dataclass(frozen=True)
class Plan:
    """One measurement, as its client wants it."""

    name: str
    parallel: int
    reverse: bool
    limit: Limit

    def line(self) -> Json:
        """As it is sent."""
        return {
            "perf": VERSION,
            "plan": self.name,
            "parallel": self.parallel,
            "reverse": self.reverse,
            "bytes": self.limit.total_bytes,
            "seconds": self.limit.seconds,
        }

    @classmethod
    def read(cls, line: Json) -> Plan:
        """As it was received. Raises PerfError."""
        parallel, total_bytes, seconds = line.get("parallel"), line.get("bytes"), line.get("seconds")
        if (
            line.get("perf") != VERSION
            or not isinstance(parallel, int)
            or parallel < 1
            or not (isinstance(total_bytes, int) or isinstance(seconds, (int, float)))
        ):
            raise PerfError(f"not a plan: {line}")
        return cls(str(line["plan"]), parallel, bool(line.get("reverse")), Limit(total_bytes, seconds))


class Lines(Protocol):
    """A socket's file, of which lines are read."""

    def readline(self, limit_bytes: int = -1, /) -> bytes:
        """Read up to the end of the next line, and no more than that many bytes."""


def write_line(sock: socket.socket, line: Json) -> None:
    """Send one line of JSON."""
    sock.sendall(json.dumps(line).encode() + b"\n")


def read_line(file: Lines, limit_bytes: int = LINE_BYTES) -> Json:
    """Read one line of JSON from a socket's file. Raises PerfError."""
    text = file.readline(limit_bytes)
    try:
        line = json.loads(text)
        if isinstance(line, dict):
            return line
    except ValueError:
        pass
    raise PerfError(f"not a perf, or one that ended: {text[:40]!r}" if text else "the other side ended")


def figures_of(streams: list[socket.socket], counts: list[int], transport: ModuleType) -> list[Json]:
    """Each stream's bytes, and its connection's statistics where it has some to give."""
    found = []
    for stream, count in zip(streams, counts, strict=True):
        figures: Json = {"bytes": count}
        with contextlib.suppress(OSError):
            if hasattr(transport, "UTP_INFO"):
                figures |= utp_stats(stream, transport)._asdict()
            else:
                figures |= connection_figures(stream, transport)
        found.append(figures)
    return found


def allow_fds(streams: int) -> None:
    """Raise the soft limit of open files for this number of streams, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = streams * FDS_PER_STREAM + SPARE_FDS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


class Server:
    """Takes measurements as clients ask for them, several at once if need be."""

    def __init__(self, address: tuple[str, int], transport: ModuleType) -> None:
        """Bind and listen; serve_forever() is the caller's. Raises OSError."""
        self._transport = transport
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.listener: socket.socket = transport.create_server(address, family=family, backlog=BACKLOG)
        self.port: int = self.listener.getsockname()[1]
        self._arrivals: dict[str, queue.SimpleQueue[tuple[int, socket.socket]]] = {}

    def serve_forever(self) -> None:
        """Accept until an exception (KeyboardInterrupt) ends it."""
        while True:
            sock, _ = self.listener.accept()
            threading.Thread(target=self._handle_connection, args=(sock,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self.listener.close()

    def _handle_connection(self, sock: socket.socket) -> None:
        """Read a new connection's first line and do what it says."""
        is_kept = False
        try:
            sock.settimeout(OPEN_SECONDS)
            # Unbuffered: not a byte behind the line is taken.
            with sock.makefile("rb", buffering=0) as file:
                first = read_line(file)
                arrivals = self._arrivals.get(str(first.get("stream")))
                if arrivals is not None and isinstance(first.get("number"), int):
                    is_kept = True
                    arrivals.put((first["number"], sock))
                else:
                    self._measure(sock, file, Plan.read(first))
        except (OSError, PerfError):
            pass  # the client has gone, or was no perf
        finally:
            if not is_kept:
                sock.close()

    def _measure(self, control: socket.socket, file: Lines, plan: Plan) -> None:
        allow_fds(plan.parallel)
        arrivals = self._arrivals[plan.name] = queue.SimpleQueue()
        streams: dict[int, socket.socket] = {}
        try:
            write_line(control, {"ready": True})
            while len(streams) < plan.parallel:
                number, stream = arrivals.get(timeout=OPEN_SECONDS)
                streams[number] = stream
            write_line(control, {"open": True})
            read_line(file)
            control.settimeout(None)
            write_line(control, self._transfer([streams[number] for number in sorted(streams)], plan))
            file.readline()  # an end of file: until then the client may read its connections' statistics
        except queue.Empty:
            write_line(control, {"error": f"{len(streams)} of {plan.parallel} streams arrived"})
        finally:
            del self._arrivals[plan.name]
            for stream in streams.values():
                stream.close()

    def _transfer(self, streams: list[socket.socket], plan: Plan) -> Json:
        for stream in streams:
            stream.settimeout(None)
        started_cpu = time.process_time()
        try:
            if plan.reverse:
                counts = send_all(streams, plan.limit, lambda _: None)
                for stream in streams:
                    stream.settimeout(OPEN_SECONDS)
                    stream.recv(1)  # the client closes when it has everything
            else:
                counts = receive_all(streams, lambda _: None)
        except (OSError, DataMismatch) as error:
            return {"error": str(error) or type(error).__name__}
        cpu_seconds = time.process_time() - started_cpu
        connections = figures_of(streams, counts, self._transport) if plan.reverse else []
        return {"bytes": counts, "cpu_seconds": cpu_seconds, "connections": connections}
