"""The serving half of `demo`: stdlib http.server, unmodified but for the socket it listens on.

`/file` is the file, with its SHA-256 in a Repr-Digest header (RFC 9530). `/report` is what only this side knows: the
file's size, CPU seconds so far, and the round-trip time, packet size and retransmissions of the connection it is asked
on. The client asks for it before the file and after, on the same connection, so the difference is the whole transfer.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import http
import http.server
import json
import os
import random
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final, TypedDict, cast

if TYPE_CHECKING:
    from utpsocket.stats import ConnectionStats

FILE_NAME: Final = "file"

# Repeated to make the file. A prime length: with a power of two, bytes from an earlier round of a ring buffer would
# look right.
BLOCK_BYTES: Final = 1_048_583

# After so long without a byte a client is given up; by feel.
IDLE_SECONDS: Final = 60

# struct tcp_info of Linux's <linux/tcp.h>: eight bytes of flags, then 32-bit fields, of which these are by index.
TCP_INFO: Final = struct.Struct("8x24I")
TCP_INFO_SND_MSS, TCP_INFO_RTT, TCP_INFO_TOTAL_RETRANS = 2, 15, 23


class ConnectionFigures(TypedDict):
    """What the sender knows of a connection; None for what it does not."""

    rtt_us: int | None
    packet_bytes: int | None
    retransmitted_packets: int | None


class Report(TypedDict):
    """The answer to `/report`."""

    bytes: int
    cpu_seconds: float
    connection: ConnectionFigures


@dataclass(frozen=True)
class ServedFile:
    """What is served, and what a client must end up with."""

    directory: Path
    size_bytes: int
    sha256: bytes


def make_file(directory: Path, size_bytes: int, seed: int = 29) -> ServedFile:
    """Write `size_bytes` of pseudo-random data to `directory`; the same seed and size give the same file."""
    block = random.Random(seed).randbytes(BLOCK_BYTES)
    digest = hashlib.sha256()
    with open(directory / FILE_NAME, "wb") as file:
        left_bytes = size_bytes
        while left_bytes:
            piece = block[:left_bytes]
            file.write(piece)
            digest.update(piece)
            left_bytes -= len(piece)
    return ServedFile(directory, size_bytes, digest.digest())


class Server(http.server.ThreadingHTTPServer):
    """ThreadingHTTPServer whose listening socket is made by `transport`: the socket module, or one like it."""

    def __init__(self, address: tuple[str, int], transport: ModuleType, served: ServedFile) -> None:
        """Bind and listen; serve_forever() is the caller's."""
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.transport = transport
        self.served = served
        handler = functools.partial(Handler, directory=os.fspath(served.directory))
        super().__init__(address, handler, bind_and_activate=False)
        self.socket.close()
        self.socket = transport.socket(self.address_family, self.socket_type)
        try:
            self.server_bind()
            self.server_activate()
        except BaseException:
            self.server_close()
            raise

    def handle_error(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: tuple[str | int, ...]
    ) -> None:
        """Report in one line that a client has gone; a traceback only for other exceptions."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            print(f"{client_address[0]} port {client_address[1]}: {error}", file=sys.stderr, flush=True)
        else:
            super().handle_error(request, client_address)


class Handler(http.server.SimpleHTTPRequestHandler):
    """The stdlib's file handler, and `/report`. Connections stay open: the report is asked for on the file's."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server: Server

    def do_GET(self) -> None:
        """Answer `/report` here and everything else as the stdlib does."""
        if self.path != "/report":
            super().do_GET()
            return
        report: Report = {
            "bytes": self.server.served.size_bytes,
            "cpu_seconds": time.process_time(),
            "connection": connection_figures(self.connection, self.server.transport),
        }
        body = json.dumps(report).encode()
        self.send_response(http.HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        """Add the digest to the file's headers."""
        if self.path == f"/{FILE_NAME}":
            digest = base64.b64encode(self.server.served.sha256).decode()
            self.send_header("Repr-Digest", f"sha-256=:{digest}:")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """No access log: the client's progress is on the same terminal."""


def utp_stats(connection: socket.socket, transport: ModuleType) -> ConnectionStats:
    """The statistics of a uTP connection at this instant. Raises OSError."""
    return cast("ConnectionStats", connection.getsockopt(transport.SOL_UTP, transport.UTP_INFO))


def connection_figures(connection: socket.socket, transport: ModuleType) -> ConnectionFigures:
    """Round-trip time, packet size and retransmissions of `connection` as its sender sees them."""
    if hasattr(transport, "UTP_INFO"):
        info = utp_stats(connection, transport)
        return {
            "rtt_us": info.rtt_us,
            "packet_bytes": info.packet_bytes,
            "retransmitted_packets": info.retransmitted_packets,
        }
    try:
        fields = TCP_INFO.unpack(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO.size))
    except (AttributeError, OSError, struct.error):  # not Linux
        return {"rtt_us": None, "packet_bytes": None, "retransmitted_packets": None}
    return {
        "rtt_us": fields[TCP_INFO_RTT],
        "packet_bytes": fields[TCP_INFO_SND_MSS],
        "retransmitted_packets": fields[TCP_INFO_TOTAL_RETRANS],
    }
