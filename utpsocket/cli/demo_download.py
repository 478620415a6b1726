"""The downloading half of `demo`: stdlib http.client, unmodified but for the socket it connects with.

What makes the seconds comparable between transports: the clock runs only while bytes are read into memory that was
touched before. Hashing them comes after, with the clock stopped, so neither SHA-256 nor a disk is measured along.
"""

from __future__ import annotations

import base64
import hashlib
import http
import http.client
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from utpsocket.cli.demo_server import FILE_NAME, Report

# Read and hashed alternately, in pieces of this size. While one is hashed the sender may go on until the buffers are
# full, a few MB, which is below 1 % of it. The default --size is a single piece.
PIECE_BYTES: Final = 512 * 1024 * 1024
READ_BYTES: Final = 256 * 1024  # http.client hands reads of this size to the socket's recv_into as they are
# After so long without a byte the server is given up; by feel.
SILENCE_SECONDS: Final = 30


class DownloadError(Exception):
    """The server is not a demo server, or broke off."""


@dataclass(frozen=True)
class Download:
    """What a download did. `seconds` and both CPU times are those of the transfer alone."""

    size_bytes: int
    seconds: float
    sha256_ok: bool
    rtt_us: int | None
    packet_bytes: int | None
    retransmitted_packets: int | None
    server_cpu_seconds: float
    client_cpu_seconds: float

    @property
    def goodput_bytes_per_second(self) -> float:
        """What arrived, each byte once, per second of transfer."""
        return self.size_bytes / self.seconds if self.seconds else 0.0


class Connection(http.client.HTTPConnection):
    """HTTPConnection whose socket is made by `transport`: the socket module, or one like it."""

    def __init__(self, host: str, port: int, transport: ModuleType) -> None:
        """As HTTPConnection: nothing is connected yet."""
        super().__init__(host, port, timeout=SILENCE_SECONDS)
        self.transport = transport

    def connect(self) -> None:
        """Connect through the transport."""
        self.sock = self.transport.create_connection((self.host, self.port), self.timeout)


class Stopwatch:
    """Wall and CPU seconds of the stretches between `start` and `stop`."""

    def __init__(self) -> None:
        """Stopped, at zero."""
        self.seconds = self.cpu_seconds = 0.0

    def start(self) -> None:
        """Begin a stretch."""
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        """End the stretch begun last."""
        self.seconds += time.perf_counter() - self._wall
        self.cpu_seconds += time.process_time() - self._cpu


def download(host: str, port: int, transport: ModuleType, began: Callable[[int], Callable[[int], None]]) -> Download:
    """Download the file that a demo server at `host`:`port` serves, and check it.

    began(size_bytes) is called when the transfer begins, and what it returns with the bytes so far after every read.
    Raises OSError or http.client.HTTPException as the stdlib does, DownloadError for an answer that is not a demo's.
    """
    connection = Connection(host, port, transport)
    try:
        before = report(connection)
        size_bytes = before["bytes"]
        # Multiplying writes every byte, so that page faults are not measured with the transfer.
        memory = bytearray(b"\xaa") * min(size_bytes, PIECE_BYTES)
        update = began(size_bytes)
        watch = Stopwatch()
        watch.start()
        connection.request("GET", f"/{FILE_NAME}")
        response = connection.getresponse()
        wanted = announced_digest(response, size_bytes)
        digest = read_and_hash(response, size_bytes, memoryview(memory), watch, update)
        after = report(connection)
    finally:
        connection.close()
    figures = after["connection"]
    return Download(
        size_bytes=size_bytes,
        seconds=watch.seconds,
        sha256_ok=digest == wanted,
        rtt_us=figures["rtt_us"],
        packet_bytes=figures["packet_bytes"],
        retransmitted_packets=figures["retransmitted_packets"],
        server_cpu_seconds=after["cpu_seconds"] - before["cpu_seconds"],
        client_cpu_seconds=watch.cpu_seconds,
    )


def announced_digest(response: http.client.HTTPResponse, size_bytes: int) -> bytes:
    """The SHA-256 in the response's headers, which must also announce `size_bytes`."""
    digest = re.fullmatch(r"sha-256=:([A-Za-z0-9+/=]+):", response.headers.get("Repr-Digest", ""))
    if response.status != http.HTTPStatus.OK or response.length != size_bytes or digest is None:
        raise DownloadError(f"not a demo server: {response.status} {response.reason}, {response.length} bytes")
    return base64.b64decode(digest[1])


def read_and_hash(
    response: http.client.HTTPResponse,
    size_bytes: int,
    piece: memoryview,
    watch: Stopwatch,
    update: Callable[[int], None],
) -> bytes:
    """Read the whole body into `piece` again and again, and return its SHA-256.

    `watch` is running when this is called, stands still while there is something to hash, and has stopped in the end.
    """
    digest = hashlib.sha256()
    done_bytes = 0
    while True:
        filled = 0
        wanted = min(len(piece), size_bytes - done_bytes)
        while filled < wanted:
            count = response.readinto(piece[filled : min(filled + READ_BYTES, wanted)])
            if not count:
                raise DownloadError(f"the server closed after {done_bytes + filled:,} of {size_bytes:,} bytes")
            filled += count
            update(done_bytes + filled)
        watch.stop()
        digest.update(piece[:filled])
        done_bytes += filled
        if done_bytes == size_bytes:
            break
        watch.start()
    response.close()  # http.client does it with the last byte read, but an empty body has none
    return digest.digest()


def report(connection: Connection) -> Report:
    """The server's report on itself and this connection, which `Handler` documents."""
    connection.request("GET", "/report")
    response = connection.getresponse()
    body = response.read()
    try:
        answer: Report = json.loads(body)
        if answer.keys() >= Report.__required_keys__:
            return answer
    except (ValueError, AttributeError):
        pass
    raise DownloadError(f"not a demo server: {response.status} {response.reason[:40]!r}, its report is {body[:40]!r}")
