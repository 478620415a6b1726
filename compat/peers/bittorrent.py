"""The BitTorrent wire protocol, as much as it takes to fetch a torrent from a peer and to serve one.

    python3 -m compat.peers.bittorrent fetch|serve TORRENT FILE dial HOST PORT [SETTINGS]
    python3 -m compat.peers.bittorrent fetch|serve TORRENT FILE listen HOST [SETTINGS]

Written against the stdlib's socket interface. SETTINGS are JSON: `module` ("utpsocket" unless said), `keepalive`
(TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT), `idle_seconds`, and `act`, which says what is done:

    transfer     all pieces, fetched or served. The default.
    half_close   fetch: all pieces, then we end our direction and wait for the peer's end
    reset        fetch: one piece, a reset; then a second connection, and all pieces
    stay         fetch: one piece, then wait for what the peer does
    idle         a piece (of a fetch) or the first words (of a serve), silence for idle_seconds, all the rest

What listens prints `{"port": …}`. `fetch` verifies each piece, prints `{"report": …}` and stays connected until
standard input ends: the other side is asked about us meanwhile. `serve` prints `{"served": bytes}` when a peer has it
all, and goes on: a listener with the next peer. `{"waiting": true}` says that a line on standard input is waited for.
Sources: BEP 3 (metainfo, handshake, messages). No extension, so fast (BEP 6) and extended (BEP 10) messages
never come.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import json
import math
import os
import select
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from compat.peers.stream import emit, end_with_standard_input, set_keepalive

PROTOCOL: Final = b"\x13BitTorrent protocol"
BLOCK_BYTES: Final = 16 << 10  # what everybody requests; larger requests are refused (BEP 3)
MAX_MESSAGE_BYTES: Final = 1 << 20
REQUESTS_AHEAD: Final = 128  # 2 MiB asked for and not yet there
SOCKET_TIMEOUT_S: Final = 60.0  # without a byte moving
CHOKE, UNCHOKE, INTERESTED, NOT_INTERESTED, HAVE, BITFIELD, REQUEST, PIECE, CANCEL = range(9)
KEEPALIVE: Final = -1  # a message without even a kind


class ProtocolError(Exception):
    """The peer broke the protocol, or is not one of ours."""


@dataclass(frozen=True)
class Metainfo:
    """A single-file torrent."""

    name: str
    length: int
    piece_length: int
    hashes: tuple[bytes, ...]

    @classmethod
    def of_file(cls, path: Path, *, piece_length: int = 256 << 10) -> Metainfo:
        hashes = []
        with path.open("rb") as file:
            while piece := file.read(piece_length):
                hashes.append(hashlib.sha1(piece).digest())
        return cls(path.name, path.stat().st_size, piece_length, tuple(hashes))

    @classmethod
    def load(cls, torrent: Path) -> Metainfo:
        value, _ = bdecode(torrent.read_bytes())
        info = value[b"info"]
        pieces = info[b"pieces"]
        hashes = tuple(pieces[at : at + 20] for at in range(0, len(pieces), 20))
        return cls(info[b"name"].decode(), info[b"length"], info[b"piece length"], hashes)

    @property
    def info(self) -> bytes:
        return bencode(
            {
                b"length": self.length,
                b"name": self.name.encode(),
                b"piece length": self.piece_length,
                b"pieces": b"".join(self.hashes),
            }
        )

    @property
    def info_hash(self) -> bytes:
        return hashlib.sha1(self.info).digest()

    def torrent(self) -> bytes:
        return b"d4:info" + self.info + b"e"

    def size_of(self, piece: int) -> int:
        return min(self.piece_length, self.length - piece * self.piece_length)

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """(piece, offset, size) of every block, in order."""
        for piece in range(len(self.hashes)):
            size = self.size_of(piece)
            for offset in range(0, size, BLOCK_BYTES):
                yield piece, offset, min(BLOCK_BYTES, size - offset)


class Wire:
    """A connection after its handshake: whole messages in, whole messages out."""

    def __init__(self, sock: Any, info_hash: bytes, *, we_dialled: bool) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self.is_unchoked = False  # by the peer
        self.peer_id = b""
        hello = PROTOCOL + bytes(8) + info_hash + b"-US0001-" + os.urandom(12)
        if we_dialled:
            sock.sendall(hello)
        theirs = self._exactly(68)
        if theirs[:20] != PROTOCOL or theirs[28:48] != info_hash:
            raise ProtocolError(f"not our handshake: {theirs[:48].hex()}")
        self.peer_id = theirs[48:]
        if not we_dialled:
            sock.sendall(hello)

    def send(self, *messages: tuple[int, bytes]) -> None:
        self._sock.sendall(b"".join(struct.pack(">IB", 1 + len(body), kind) + body for kind, body in messages))

    def receive(self) -> tuple[int, bytes] | None:
        """The next message, keepalives left out; None at the end of the stream."""
        message = self._next()
        while message is not None and message[0] == KEEPALIVE:
            message = self._next()
        return message

    def _next(self) -> tuple[int, bytes] | None:
        """The next message, be it a keepalive; None at the end of the stream."""
        try:
            (length,) = struct.unpack(">I", self._exactly(4))
        except EOFError:
            return None
        if length > MAX_MESSAGE_BYTES:
            raise ProtocolError(f"a message of {length} bytes")
        body = self._exactly(length)
        return (body[0], body[1:]) if body else (KEEPALIVE, b"")

    def half_close(self) -> None:
        """We have said everything."""
        self._sock.shutdown(1)  # SHUT_WR everywhere

    def abort(self, module: Any) -> None:
        """Reset the connection."""
        self._sock.setsockopt(module.SOL_SOCKET, module.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def end(self) -> str:
        """How the stream ends: "eof", or the name of the error."""
        try:
            while self.receive() is not None:
                pass
        except OSError as error:
            return type(error).__name__
        return "eof"

    def receive_for(self, seconds: float) -> Iterator[tuple[int, bytes]]:
        """The messages of the next so many seconds, keepalives too. Raises EOFError at the end of the stream."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._buffer or select.select([self._sock], [], [], left)[0]:
                message = self._next()  # not receive(), which would wait for more than a keepalive
                if message is None:
                    raise EOFError("the peer left while nothing was said")
                yield message

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = self._sock.recv(256 << 10)
            if not data:
                raise EOFError("end of stream")
            self._buffer += data
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data


def fetch(wire: Wire, meta: Metainfo, out: Path, pieces: range | None = None) -> int:
    """Download these pieces, or all, to `out`. Returns the number of verified pieces."""
    wanted = range(len(meta.hashes)) if pieces is None else pieces
    todo = (block for block in meta.blocks() if block[0] in wanted)
    left = len(wanted)
    waiting = 0
    partial: dict[int, tuple[bytearray, int]] = {}
    if not wire.is_unchoked:
        wire.send((INTERESTED, b""))
    with out.open("r+b" if out.exists() else "wb") as file:
        while left:
            if wire.is_unchoked and waiting <= REQUESTS_AHEAD // 2:
                blocks = itertools.islice(todo, REQUESTS_AHEAD - waiting)
                requests = [(REQUEST, struct.pack(">III", *block)) for block in blocks]
                waiting += len(requests)
                if requests:
                    wire.send(*requests)
            message = wire.receive()
            if message is None:
                raise EOFError(f"the peer left with {left} of {len(wanted)} pieces to go")
            kind, body = message
            if kind == UNCHOKE:
                wire.is_unchoked = True
            elif kind == CHOKE:
                raise ProtocolError("choked by the only peer")
            elif kind == PIECE:
                piece, offset = struct.unpack_from(">II", body)
                data, got = partial.pop(piece, (bytearray(meta.size_of(piece)), 0))
                data[offset : offset + len(body) - 8] = body[8:]
                waiting -= 1
                got += len(body) - 8
                if got < len(data):
                    partial[piece] = (data, got)
                    continue
                if hashlib.sha1(data).digest() != meta.hashes[piece]:
                    raise ProtocolError(f"piece {piece} does not have its hash")
                file.seek(piece * meta.piece_length)
                file.write(data)
                left -= 1
    return len(wanted)


def serve(
    wire: Wire,
    meta: Metainfo,
    path: Path,
    on_complete: Callable[[int], None] | None = None,
    *,
    pause_seconds: float = 0,
) -> int:
    """Serve one peer from a complete file until it leaves. Returns the bytes of pieces that it was sent.

    `on_complete` is told once, when as many as the file holds were sent: a peer need not say goodbye. For
    `pause_seconds` after it has said that it is interested nothing is said.
    """
    count = len(meta.hashes)
    bits = ((1 << count) - 1) << (8 * math.ceil(count / 8) - count)
    wire.send((BITFIELD, bits.to_bytes(math.ceil(count / 8), "big")))
    sent = 0
    with path.open("rb") as file:
        while (message := wire.receive()) is not None:
            kind, body = message
            if kind == INTERESTED:
                for _ in wire.receive_for(pause_seconds):
                    pass
                wire.send((UNCHOKE, b""))
            elif kind == REQUEST:
                piece, offset, size = struct.unpack(">III", body)
                if size > BLOCK_BYTES or piece >= count or offset + size > meta.size_of(piece):
                    raise ProtocolError(f"a request for {size} bytes at {offset} of piece {piece}")
                file.seek(piece * meta.piece_length + offset)
                wire.send((PIECE, body[:8] + file.read(size)))
                sent += size
                if on_complete and sent >= meta.length:
                    on_complete(sent)
                    on_complete = None
    return sent


def bencode(value: Any) -> bytes:
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    if isinstance(value, list):
        return b"l" + b"".join(map(bencode, value)) + b"e"
    return b"d" + b"".join(bencode(key) + bencode(value[key]) for key in sorted(value)) + b"e"


def bdecode(data: bytes, at: int = 0) -> tuple[Any, int]:
    """(value, where it ends). Raises ValueError for what is not bencoded."""
    kind = data[at : at + 1]
    if kind == b"i":
        end = data.index(b"e", at)
        return int(data[at + 1 : end]), end + 1
    if kind in (b"l", b"d"):
        items: list[Any] = []
        at += 1
        while data[at : at + 1] != b"e":
            item, at = bdecode(data, at)
            items.append(item)
        return (items if kind == b"l" else dict(zip(items[::2], items[1::2], strict=True))), at + 1
    colon = data.index(b":", at)
    end = colon + 1 + int(data[at:colon])
    if end > len(data):
        raise ValueError("a string that ends after the data")
    return data[colon + 1 : end], end


def wait_for_the_runner() -> None:
    """Until it says a line, having looked at the other side."""
    emit({"waiting": True})
    os.read(0, 4096)


class Side:
    """We, towards one libtorrent: where connections come from, and what is done with them."""

    def __init__(self, meta: Metainfo, path: Path, way: str, address: tuple[str, int], settings: dict[str, Any]):
        self.meta, self.path, self.settings = meta, path, settings
        self._module = importlib.import_module(settings.get("module", "utpsocket"))
        self._address = address
        self._listener: Any = None
        if way == "listen":
            family = self._module.AF_INET6 if ":" in address[0] else self._module.AF_INET
            self._listener = self._module.create_server(address, family=family)
            emit({"port": self._listener.getsockname()[1]})

    @contextlib.contextmanager
    def connection(self) -> Iterator[Wire]:
        """The next one: dialled or accepted, and past its handshake."""
        if self._listener is None:
            sock = self._module.create_connection(self._address, timeout=SOCKET_TIMEOUT_S)
        else:
            sock, _ = self._listener.accept()
        with sock:
            sock.settimeout(SOCKET_TIMEOUT_S)
            set_keepalive(self._module, sock, self.settings)
            yield Wire(sock, self.meta.info_hash, we_dialled=self._listener is None)

    def fetch(self) -> dict[str, Any]:
        """What the settings say; returns what is to be reported."""
        act = self.settings.get("act", "transfer")
        count = len(self.meta.hashes)
        report: dict[str, Any] = {"error": None, "ended": None}
        if act == "reset":
            with self.connection() as wire:
                fetch(wire, self.meta, self.path, range(1))
                wait_for_the_runner()
                wire.abort(self._module)
        with self.connection() as wire:
            report["peer_id"] = wire.peer_id[:8].decode(errors="replace")
            started = time.monotonic()
            if act == "stay":
                report["pieces"] = fetch(wire, self.meta, self.path, range(1))
                wait_for_the_runner()
                report["ended"] = wire.end()
            elif act == "idle":
                report["pieces"] = fetch(wire, self.meta, self.path, range(1))
                # A libtorrent seed leaves who is interested and has asked for nothing for a minute.
                wire.send((NOT_INTERESTED, b""))
                for kind, _ in wire.receive_for(self.settings["idle_seconds"]):
                    wire.is_unchoked = wire.is_unchoked if kind not in (CHOKE, UNCHOKE) else kind == UNCHOKE
                wire.send((INTERESTED, b""))
                report["pieces"] += fetch(wire, self.meta, self.path, range(1, count))
            else:
                report["pieces"] = fetch(wire, self.meta, self.path)
            if act == "half_close":
                wait_for_the_runner()
                wire.half_close()
                report["ended"] = wire.end()
            emit({"report": {**report, "seconds": time.monotonic() - started}})
            while os.read(0, 4096):
                pass
        return report

    def serve(self) -> None:
        """One peer after another."""
        pause_seconds = self.settings["idle_seconds"] if self.settings.get("act") == "idle" else 0
        while True:
            try:
                with self.connection() as wire:
                    serve(
                        wire,
                        self.meta,
                        self.path,
                        lambda sent: emit({"served": sent}),
                        pause_seconds=pause_seconds,
                    )
                emit({"left": True})
            except (EOFError, OSError, ProtocolError) as error:
                emit({"failed": f"{type(error).__name__}: {error}"})
            if self._listener is None:
                return


def main(argv: list[str] | None = None) -> int:
    role, torrent, path, way, host, *rest = sys.argv[1:] if argv is None else argv
    port = int(rest.pop(0)) if way == "dial" else 0
    settings = json.loads(rest[0]) if rest else {}
    meta = Metainfo.load(Path(torrent))
    if role == "serve":
        end_with_standard_input()
        Side(meta, Path(path), way, (host, port), settings).serve()
        while True:
            time.sleep(60)  # standard input's end is ours
    started = time.monotonic()
    try:
        Side(meta, Path(path), way, (host, port), settings).fetch()
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"
        emit({"report": {"error": failed, "ended": None, "seconds": time.monotonic() - started}})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
