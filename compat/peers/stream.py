"""One side of a conversation, written against the stdlib's socket interface and nothing else.

    python3 -m compat.peers.stream listen [SETTINGS]
    python3 -m compat.peers.stream connect HOST PORT HEADER [SETTINGS]

HEADER and SETTINGS are JSON. Settings: `module` ("utpsocket", the default, or "socket": the same over TCP, to try the
conversations themselves), `port` to listen on, `receive_buffer_bytes`, `send_buffer_bytes`, `keepalive`
(TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT), `nc` (true: through the command of that name, netcat.py).
utp_native/peer.cjs is this file's twin over libutp. Each prints JSON lines: `{"port": …}` when it listens, events on
the way, and at last `{"report": {sent {bytes, sha256}, received {bytes, sha256}, eof, error, seconds, …}}`. It ends
when standard input does, so none survives whoever started it.

The initiator speaks first (libutp's acceptor cannot), a line of JSON: `{"case", "bytes", "seed", …}`. Then, by case:

    upload              initiator sends; acceptor answers with a line holding the digest, and both end
    download            acceptor sends and ends; initiator ends
    echo                initiator sends, acceptor returns everything while more arrives; both end
    half_close          initiator sends and ends; acceptor, having seen the end, sends as much and ends
    half_close_reverse  acceptor sends and ends; initiator, having seen the end, sends as much and ends
    idle                some bytes each way, silence for idle_seconds, the same again; both end
    abort               some bytes, a line "ready" in answer; then the side named `aborter` resets the connection
    vanish              some bytes each way; then both wait for what never comes, and one of them is stopped
    endless             initiator sends until it is stopped by an error: somebody kills the acceptor
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from compat.peers.netcat import Netcat

BLOCK_BYTES: Final = 1 << 20
CHUNK_BYTES: Final = 64 << 10
SOCKET_TIMEOUT_S: Final = 120.0  # without a byte moving; the runner's own deadline is the tighter one for most cases


def seeded_blocks(total_bytes: int, *, seed: int) -> Iterator[bytes]:
    """The bytes of a seed: one block, stamped with its number so that no displaced block goes unseen."""
    block = bytearray(hashlib.shake_128(f"seed {seed}".encode()).digest(BLOCK_BYTES))
    for number in range((total_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES):
        block[:8] = struct.pack(">Q", number)
        yield bytes(block[: min(BLOCK_BYTES, total_bytes - number * BLOCK_BYTES)])


class Tally:
    """Counts and hashes what passes."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hash = hashlib.sha256()

    def add(self, data: bytes | memoryview) -> None:
        self.bytes += len(data)
        self._hash.update(data)

    def report(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "sha256": self._hash.hexdigest()}


class Stream:
    """A connected socket with the few verbs the conversations need."""

    def __init__(self, sock: Any) -> None:
        self.sock = sock
        self.sent = Tally()
        self.received = Tally()
        self.eof = False
        self._rest = b""

    def receive(self) -> bytes:
        """Some bytes, or b"" at the end."""
        if self._rest:
            data, self._rest = self._rest, b""
            return data
        data = bytes(self.sock.recv(4 * CHUNK_BYTES))
        if not data:
            self.eof = True
        return data

    def line(self) -> dict[str, Any]:
        text = b""
        while b"\n" not in text:
            data = self.receive()
            if not data:
                raise EOFError("end of stream instead of a line")
            text += data
        line, _, self._rest = text.partition(b"\n")
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError(f"not a header: {value!r}")
        return value

    def take(self, total_bytes: int, on_chunk: Callable[[bytes], None] | None = None) -> None:
        while total_bytes > 0:
            data = self.receive()
            if not data:
                raise EOFError(f"end of stream, {total_bytes} bytes early")
            data, self._rest = data[:total_bytes], data[total_bytes:]
            total_bytes -= len(data)
            self.received.add(data)
            if on_chunk:
                on_chunk(data)

    def take_all(self) -> None:
        while data := self.receive():
            self.received.add(data)

    def put_line(self, value: dict[str, Any]) -> None:
        self.sock.sendall(json.dumps(value).encode() + b"\n")

    def put(self, data: bytes) -> None:
        self.sock.sendall(data)
        self.sent.add(data)

    def put_seeded(self, total_bytes: int, *, seed: int) -> None:
        for block in seeded_blocks(total_bytes, seed=seed):
            self.put(block)

    def end(self) -> None:
        self.sock.shutdown(1)  # SHUT_WR everywhere

    def abort(self, module: Any) -> None:
        self.sock.setsockopt(module.SOL_SOCKET, module.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Acceptor:
    """The acceptor's half of each case."""

    def __init__(self, stream: Stream, header: dict[str, Any], module: Any) -> None:
        self.stream, self.header, self.module = stream, header, module
        self.bytes: int = header["bytes"]
        self.seed: int = header["seed"]

    def upload(self) -> None:
        self.stream.take(self.bytes)
        self.stream.put_line(self.stream.received.report())
        self.stream.end()
        self.stream.take_all()

    def download(self) -> None:
        self.stream.put_seeded(self.bytes, seed=self.seed)
        self.stream.end()
        self.stream.take_all()

    def echo(self) -> None:
        self.stream.take(self.bytes, self.stream.put)
        self.stream.end()
        self.stream.take_all()

    def half_close(self) -> None:
        self.stream.take_all()
        self.stream.put_seeded(self.bytes, seed=self.seed + 1)
        self.stream.end()

    def half_close_reverse(self) -> None:
        self.stream.put_seeded(self.bytes, seed=self.seed)
        self.stream.end()
        self.stream.take_all()

    def idle(self) -> None:
        for round_ in range(2):
            self.stream.take(self.bytes)
            self.stream.put_seeded(self.bytes, seed=self.seed + round_)
        self.stream.take_all()
        self.stream.end()

    def abort(self) -> None:
        self.stream.take(self.bytes)
        self.stream.put_line({"ready": True})
        if self.header["aborter"] == "acceptor":
            # The initiator must have the line before the reset, which overtakes what is in flight: it says so.
            self.stream.take(1)
            self.stream.abort(self.module)
        else:
            self.stream.take_all()

    def vanish(self) -> None:
        self.stream.take(self.bytes)
        self.stream.put_seeded(self.bytes, seed=self.seed)
        self.stream.take_all()

    def endless(self) -> None:
        self.stream.take_all()


class Initiator:
    """The initiator's half of each case."""

    def __init__(self, stream: Stream, header: dict[str, Any], module: Any) -> None:
        self.stream, self.header, self.module = stream, header, module
        self.bytes: int = header["bytes"]
        self.seed: int = header["seed"]

    def upload(self) -> None:
        self.stream.put_seeded(self.bytes, seed=self.seed)
        if self.stream.line()["sha256"] != self.stream.sent.report()["sha256"]:
            raise ValueError("the peer received other bytes than were sent")
        self.stream.take_all()
        self.stream.end()

    def download(self) -> None:
        self.stream.take_all()
        self.stream.end()

    def echo(self) -> None:
        failures: list[BaseException] = []

        def send() -> None:
            try:
                self.stream.put_seeded(self.bytes, seed=self.seed)
            except BaseException as error:  # handed to the reading thread, which may be waiting for an echo
                failures.append(error)
                with contextlib.suppress(OSError):
                    self.stream.sock.shutdown(2)

        sender = threading.Thread(target=send, name="echo sender", daemon=True)
        sender.start()
        try:
            self.stream.take(self.bytes)
        finally:
            sender.join(timeout=10)
        if failures:
            raise failures[0]
        self.stream.take_all()
        self.stream.end()

    def half_close(self) -> None:
        self.stream.put_seeded(self.bytes, seed=self.seed)
        self.stream.end()
        self.stream.take_all()

    def half_close_reverse(self) -> None:
        self.stream.take_all()
        self.stream.put_seeded(self.bytes, seed=self.seed + 1)
        self.stream.end()

    def idle(self) -> None:
        for round_ in range(2):
            if round_:
                emit({"event": "idle"})
                time.sleep(self.header["idle_seconds"])
            self.stream.put_seeded(self.bytes, seed=self.seed + 2 + round_)
            self.stream.take(self.bytes)
        self.stream.end()
        self.stream.take_all()

    def abort(self) -> None:
        self.stream.put_seeded(self.bytes, seed=self.seed)
        self.stream.line()
        if self.header["aborter"] == "initiator":
            self.stream.abort(self.module)
        else:
            self.stream.put(b"!")
            self.stream.take_all()

    def vanish(self) -> None:
        self.stream.put_seeded(self.bytes, seed=self.seed)
        self.stream.take(self.bytes)
        emit({"waiting": True})
        self.stream.take_all()

    def endless(self) -> None:
        self.stream.put_seeded(self.bytes, seed=self.seed)
        self.stream.take_all()


def emit(message: dict[str, Any]) -> None:
    print(json.dumps(message, default=str), flush=True)


def listen(settings: dict[str, Any]) -> int:
    module = importlib.import_module(settings.get("module", "utpsocket"))
    sock: Any
    if settings.get("nc"):
        sock = Netcat("-l", "-s", "127.0.0.1", "-p", "0")
        emit({"port": sock.port})
        sock.wait_for_connection()
    else:
        with module.create_server(("127.0.0.1", settings.get("port", 0))) as listener:
            _set_buffers(module, listener, settings)
            emit({"port": listener.getsockname()[1]})
            sock, _ = listener.accept()
    started = time.monotonic()
    stream = Stream(sock)

    def conversation() -> None:
        header = stream.line()
        emit({"event": "header", "case": header["case"]})
        getattr(Acceptor(stream, header, module), header["case"])()

    return _converse(stream, conversation, module, settings, started)


def connect(address: tuple[str, int], header: dict[str, Any], settings: dict[str, Any]) -> int:
    module = importlib.import_module(settings.get("module", "utpsocket"))
    started = time.monotonic()
    sock: Any
    if settings.get("nc"):
        sock = Netcat(address[0], str(address[1]))
    else:
        sock = module.socket(module.AF_INET6 if ":" in address[0] else module.AF_INET, module.SOCK_STREAM)
    stream = Stream(sock)

    def conversation() -> None:
        if not settings.get("nc"):
            _set_buffers(module, sock, settings)
            sock.settimeout(30.0)
            sock.connect(address)
        emit({"event": "connected"})
        stream.put_line(header)
        getattr(Initiator(stream, header, module), header["case"])()

    return _converse(stream, conversation, module, settings, started)


def _converse(
    stream: Stream, conversation: Callable[[], None], module: Any, settings: dict[str, Any], started: float
) -> int:
    error = None
    with stream.sock:
        try:
            stream.sock.settimeout(SOCKET_TIMEOUT_S)
            set_keepalive(module, stream.sock, settings)
            conversation()
        except Exception as caught:
            error = type(caught).__name__ + (f": {caught}" if str(caught) else "")
        stats = _connection_stats(module, stream.sock)
    report = {
        "sent": stream.sent.report(),
        "received": stream.received.report(),
        "eof": stream.eof,
        "error": error,
        "seconds": time.monotonic() - started,
        "stats": stats,
    }
    emit({"report": report})
    return 1 if error else 0


def set_keepalive(module: Any, sock: Any, settings: dict[str, Any]) -> None:
    """SO_KEEPALIVE always; when a silent peer is asked, and how often, where the settings say."""
    if settings.get("keepalive"):
        for name, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), settings["keepalive"], strict=True):
            sock.setsockopt(module.IPPROTO_TCP, getattr(module, name), value)
    sock.setsockopt(module.SOL_SOCKET, module.SO_KEEPALIVE, 1)


def _connection_stats(module: Any, sock: Any) -> dict[str, Any] | None:
    """What the socket says about itself, where it is a uTP socket that still can."""
    try:
        stats = sock.getsockopt(module.SOL_UTP, module.UTP_INFO)
        fields: dict[str, Any] = stats._asdict()
        return fields
    except (AttributeError, OSError, TypeError):
        return None


def _set_buffers(module: Any, sock: Any, settings: dict[str, Any]) -> None:
    if settings.get("receive_buffer_bytes"):
        sock.setsockopt(module.SOL_SOCKET, module.SO_RCVBUF, settings["receive_buffer_bytes"])
    if settings.get("send_buffer_bytes"):
        sock.setsockopt(module.SOL_SOCKET, module.SO_SNDBUF, settings["send_buffer_bytes"])


def end_with_standard_input() -> None:
    """Start a thread that ends the process when standard input does: the starter is gone, however it went."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):  # not sys.stdin, whose lock would be held at interpreter exit
                pass
        os._exit(3)

    threading.Thread(target=watch, name="stdin watch", daemon=True).start()


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    end_with_standard_input()
    if arguments and arguments[0] == "listen":
        return listen(json.loads(arguments[1]) if len(arguments) > 1 else {})
    if arguments and arguments[0] == "connect":
        host, port, header = arguments[1:4]
        settings = json.loads(arguments[4]) if len(arguments) > 4 else {}
        return connect((host, int(port)), json.loads(header), settings)
    print("usage: stream listen [SETTINGS] | connect HOST PORT HEADER [SETTINGS]", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
