"""The BitTorrent wire protocol, as much as it takes to fetch a torrent from a peer and to serve one.

    python3 -m compat.peers.bittorrent fetch TORRENT FILE HOST PORT [MODULE]
    python3 -m compat.peers.bittorrent serve TORRENT FILE HOST [MODULE]

Written against the stdlib's socket interface; MODULE is `utpsocket` unless said. `serve` prints `{"port": …}`,
serves one peer after another until standard input ends, and prints `{"served": bytes}` when one has it all.
`fetch` verifies each piece and prints `{"report": …}`.
Sources: BEP 3 (metainfo, handshake, messages). No extension, so fast (BEP 6) and extended (BEP 10) messages
never come.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import math
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from compat.peers.stream import end_with_standard_input, say

PROTOCOL: Final = b"\x13BitTorrent protocol"
BLOCK_BYTES: Final = 16 << 10  # what everybody requests; larger requests are refused (BEP 3)
MAX_MESSAGE_BYTES: Final = 1 << 20
REQUESTS_AHEAD: Final = 128  # 2 MiB asked for and not yet there
SOCKET_TIMEOUT_S: Final = 60.0  # without a byte moving
CHOKE, UNCHOKE, INTERESTED, NOT_INTERESTED, HAVE, BITFIELD, REQUEST, PIECE, CANCEL = range(9)


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
        while True:
            try:
                (length,) = struct.unpack(">I", self._exactly(4))
            except EOFError:
                return None
            if length > MAX_MESSAGE_BYTES:
                raise ProtocolError(f"a message of {length} bytes")
            if length:
                body = self._exactly(length)
                return body[0], body[1:]

    def _exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = self._sock.recv(256 << 10)
            if not data:
                raise EOFError("end of stream")
            self._buffer += data
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data


def fetch(wire: Wire, meta: Metainfo, out: Path) -> int:
    """Download everything to `out`. Returns the number of verified pieces."""
    todo = meta.blocks()
    left = len(meta.hashes)
    waiting = 0
    unchoked = False
    pieces: dict[int, tuple[bytearray, int]] = {}
    wire.send((INTERESTED, b""))
    with out.open("wb") as file:
        while left:
            if unchoked and waiting <= REQUESTS_AHEAD // 2:
                blocks = itertools.islice(todo, REQUESTS_AHEAD - waiting)
                requests = [(REQUEST, struct.pack(">III", *block)) for block in blocks]
                waiting += len(requests)
                if requests:
                    wire.send(*requests)
            message = wire.receive()
            if message is None:
                raise EOFError(f"the peer left with {left} of {len(meta.hashes)} pieces to go")
            kind, body = message
            if kind == UNCHOKE:
                unchoked = True
            elif kind == CHOKE:
                raise ProtocolError("choked by the only peer")
            elif kind == PIECE:
                piece, offset = struct.unpack_from(">II", body)
                data, got = pieces.pop(piece, (bytearray(meta.size_of(piece)), 0))
                data[offset : offset + len(body) - 8] = body[8:]
                waiting -= 1
                got += len(body) - 8
                if got < len(data):
                    pieces[piece] = (data, got)
                    continue
                if hashlib.sha1(data).digest() != meta.hashes[piece]:
                    raise ProtocolError(f"piece {piece} does not have its hash")
                file.seek(piece * meta.piece_length)
                file.write(data)
                left -= 1
    return len(meta.hashes)


def serve(wire: Wire, meta: Metainfo, path: Path, on_complete: Callable[[int], None] | None = None) -> int:
    """Serve one peer from a complete file until it leaves. Returns the bytes of pieces that it was sent.

    `on_complete` is told once, when as many as the file holds were sent: a peer need not say goodbye.
    """
    count = len(meta.hashes)
    bits = ((1 << count) - 1) << (8 * math.ceil(count / 8) - count)
    wire.send((BITFIELD, bits.to_bytes(math.ceil(count / 8), "big")))
    sent = 0
    with path.open("rb") as file:
        while (message := wire.receive()) is not None:
            kind, body = message
            if kind == INTERESTED:
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


def main(argv: list[str] | None = None) -> int:
    role, torrent, path, *rest = sys.argv[1:] if argv is None else argv
    meta = Metainfo.load(Path(torrent))
    if role == "fetch":
        return _fetch_from((rest[0], int(rest[1])), meta, Path(path), rest[2] if len(rest) > 2 else "utpsocket")
    end_with_standard_input()
    module = importlib.import_module(rest[1] if len(rest) > 1 else "utpsocket")
    family = module.AF_INET6 if ":" in rest[0] else module.AF_INET
    with module.create_server((rest[0], 0), family=family) as listener:
        say({"port": listener.getsockname()[1]})
        while True:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(EOFError):
                sock.settimeout(SOCKET_TIMEOUT_S)
                try:
                    wire = Wire(sock, meta.info_hash, we_dialled=False)
                    serve(wire, meta, Path(path), lambda sent: say({"served": sent}))
                except (OSError, ProtocolError) as error:
                    say({"failed": f"{type(error).__name__}: {error}"})


def _fetch_from(address: tuple[str, int], meta: Metainfo, out: Path, module_name: str) -> int:
    """Fetch, report, and stay connected until standard input ends: the seed is asked about us meanwhile."""
    started = time.monotonic()
    report: dict[str, Any] = {"error": None}
    module = importlib.import_module(module_name)
    try:
        with module.create_connection(address, timeout=SOCKET_TIMEOUT_S) as sock:
            wire = Wire(sock, meta.info_hash, we_dialled=True)
            report["pieces"] = fetch(wire, meta, out)
            report["peer_id"] = wire.peer_id[:8].decode(errors="replace")
            say({"report": {**report, "seconds": time.monotonic() - started}})
            while os.read(0, 4096):
                pass
            return 0
    except Exception as error:
        report["error"] = f"{type(error).__name__}: {error}"
    say({"report": {**report, "seconds": time.monotonic() - started}})
    return 1


if __name__ == "__main__":
    sys.exit(main())
