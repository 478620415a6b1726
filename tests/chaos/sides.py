"""One end of one connection, as its plan says: a thread that writes, a thread that reads, then an end.

What happened is kept in Outcome; the oracle judges it. Times are time.monotonic()'s, which both processes share.
"""

from __future__ import annotations

import errno
import select
import socket as stdlib
import struct
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from tests.chaos.plan import BREAKS_OFF, ENDS_AFTER_PEERS, Side
from tests.chaos.streams import HEADER, Stream

if TYPE_CHECKING:
    from tests.chaos.party import Headed

_SHORT_TIMEOUT: Final = 0.05
_LINGER: Final = struct.Struct("ii")
_LINGER_SECONDS: Final = 10  # less than the conductor's patience: behind a silent NAT close() waits for all of it
_FOR_EVER: Final = 1_000.0


@dataclass
class Outcome:
    """sent           bytes that send() has taken
    wrote_all         everything that was planned
    write_error, read_error   errno or name of an exception
    finish_at         when FIN was asked for (shutdown or close), before the call
    break_at          when the connection was broken off: close() with bytes unread, or with SO_LINGER 0
    end               how reading ended: eof, error, stopped, wrong; "" while it has not
    """

    connection: int = -1
    attempt: int = 0
    local: Any = None
    peer: Any = None
    connect_error: str = ""
    connect_at: float = 0.0
    connected_at: float = 0.0
    sent: int = 0
    wrote_all: bool = False
    write_error: str = ""
    write_error_at: float = 0.0
    received: int = 0
    end: str = ""
    end_at: float = 0.0
    read_error: str = ""
    fault: str = ""
    finish_at: float = 0.0
    break_at: float = 0.0
    close_at: float = 0.0
    closed_at: float = 0.0
    abandoned_at: float = 0.0
    doing: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Progress:
    """How often anything has come forward in this process: what hangs is where this stands still."""

    def __init__(self) -> None:
        self.count = 0


class Abandoned(Exception):
    """The conductor has given this connection up."""


def error_name(error: BaseException) -> str:
    code = getattr(error, "errno", None)
    return errno.errorcode.get(code, type(error).__name__) if isinstance(code, int) else type(error).__name__


class End:
    """`sock` is connected; run() returns when it is closed."""

    def __init__(self, sock: Any, side: Side, progress: Progress, outcome: Outcome) -> None:
        self.sock = sock
        self.side = side
        self.progress = progress
        self.outcome = outcome
        self.has_read = threading.Event()
        self.has_eof = threading.Event()
        self.is_abandoned = False
        self.doing = {"write": "", "read": "", "end": ""}

    # ── setting up ──

    def prepare(self) -> None:
        """Options, and the style of its calls."""
        side, sock = self.side, self.sock
        prepare_options(sock, side)
        set_style(sock, side.style)

    def run(self, outgoing: Stream, incoming: Stream | Headed, first_bytes: bytes, *, read_from: int = 0) -> None:
        """Both directions, then the end. `first_bytes` precede the outgoing stream."""
        writer = threading.Thread(target=self._guarded, args=("write", self._write, outgoing, first_bytes), daemon=True)
        writer.start()
        self._guarded("read", self._read, incoming, read_from)
        writer.join()
        self._finish()

    def _guarded(self, kind: str, work: Any, *args: Any) -> None:
        outcome = self.outcome
        try:
            work(*args)
        except Abandoned:
            pass
        except OSError as error:
            if self.is_abandoned:
                pass
            elif kind == "write":
                outcome.write_error, outcome.write_error_at = error_name(error), time.monotonic()
            else:
                outcome.end, outcome.read_error, outcome.end_at = "error", error_name(error), time.monotonic()
        except Exception as error:
            outcome.fault = f"{kind}: {type(error).__name__}: {error}"
        finally:
            self.doing[kind] = ""
            if kind == "read":
                self.has_read.set()
                self.has_eof.set()
            self.progress.count += 1

    def abandon(self) -> None:
        """Wake up whatever waits; the connection is then reset."""
        self.is_abandoned = True
        self.outcome.abandoned_at = time.monotonic()
        self.outcome.finish_at = self.outcome.finish_at or self.outcome.abandoned_at  # shutdown() below
        self.has_read.set()
        self.has_eof.set()
        try:
            self.sock.shutdown(stdlib.SHUT_RDWR)
        except OSError:
            pass

    # ── writing ──

    def _write(self, stream: Stream, first_bytes: bytes) -> None:
        side, outcome = self.side, self.outcome
        if first_bytes:
            self._send_all(memoryview(first_bytes), counts=False)
        if side.starts == "first":
            self.doing["write"] = "waits for the first byte"
            self.has_read.wait(_FOR_EVER)
        elif side.starts == "eof":
            self.doing["write"] = "waits for the end of file"
            self.has_eof.wait(_FOR_EVER)
        offset = 0
        for i, chunk in enumerate(side.chunks):
            self._check()
            stall = side.write_stalls.get(str(i))
            if stall:
                self.doing["write"] = "stalls"
                time.sleep(stall)
            self._send_all(stream.piece(offset, chunk), counts=True)
            offset += chunk
        outcome.wrote_all = True
        if side.ending not in (*ENDS_AFTER_PEERS, *BREAKS_OFF):
            self._check()
            outcome.finish_at = outcome.finish_at or time.monotonic()
            self.doing["write"] = "shuts down"
            self.sock.shutdown(stdlib.SHUT_WR)

    def _send_all(self, data: memoryview, *, counts: bool) -> None:
        done = 0
        self.doing["write"] = f"send of {len(data)} at {self.outcome.sent}"
        while done < len(data):
            self._check()
            try:
                rest = data[done:]
                if self.side.call == "message" and len(rest) > 1:
                    middle = len(rest) // 2
                    count = self.sock.sendmsg([rest[:middle], rest[middle:]])
                else:
                    count = self.sock.send(rest)
            except TimeoutError as error:
                if error.errno is not None:
                    raise
                continue
            except BlockingIOError:
                self._wait(select.POLLOUT)
                continue
            if not 0 < count <= len(rest):
                raise ValueError(f"send() returned {count} of {len(rest)}")
            done += count
            if counts:
                self.outcome.sent += count
            self.progress.count += 1

    def _wait(self, wanted: int) -> None:
        poller = select.poll()
        poller.register(self.sock.fileno(), wanted)
        while not poller.poll(500):
            self._check()

    def _check(self) -> None:
        if self.is_abandoned:
            raise Abandoned

    # ── reading ──

    def _read(self, stream: Stream, read_from: int) -> None:
        side, outcome = self.side, self.outcome
        stalls = list(side.read_stalls)
        offset = read_from
        while True:
            if side.stop_after is not None and offset >= side.stop_after:
                outcome.end, outcome.end_at = "stopped", time.monotonic()
                return
            if stalls and offset >= stalls[0][0]:
                self.doing["read"] = "stalls"
                time.sleep(stalls.pop(0)[1])
            self.doing["read"] = f"recv at {offset}"
            wanted = side.read_bytes
            if wanted < 100 and offset > 10_000:
                wanted = 65_536  # tiny reads long enough
            if side.stop_after is not None:
                wanted = min(wanted, side.stop_after - offset)
            data = self.receive(wanted)
            if not data:
                self._check()
                outcome.end, outcome.end_at = "eof", time.monotonic()
                return
            fault = stream.fault(offset, data)
            if fault:
                outcome.end, outcome.fault = "wrong", fault
                return
            offset += len(data)
            outcome.received = offset
            self.has_read.set()
            self.progress.count += 1

    def receive(self, wanted: int) -> bytes:
        """The next bytes, b"" for the end of file."""
        call, sock = self.side.call, self.sock
        while True:
            self._check()
            try:
                if call == "into":
                    room = bytearray(wanted)
                    return bytes(room[: sock.recv_into(room)])
                if call == "message":
                    data, _, _, _ = sock.recvmsg(wanted)
                    return bytes(data)
                if call == "peek":
                    seen = sock.recv(wanted, stdlib.MSG_PEEK)
                    data = sock.recv(len(seen) or wanted)
                    if data[: len(seen)] != seen[: len(data)]:
                        raise ValueError("recv() gave other bytes than MSG_PEEK")
                    return bytes(data)
                if call == "all" and self.side.style == "blocking":
                    return bytes(sock.recv(min(wanted, 1_000), stdlib.MSG_WAITALL))
                return bytes(sock.recv(wanted))
            except TimeoutError as error:
                if error.errno is not None:
                    raise
            except BlockingIOError:
                self._wait(select.POLLIN)

    # ── the end ──

    def _finish(self) -> None:
        side, outcome, sock = self.side, self.outcome, self.sock
        self.doing["end"] = "closes"
        try:
            if self.is_abandoned or side.ending == "reset":
                sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, _LINGER.pack(1, 0))
            elif side.ending == "linger":
                sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_LINGER, _LINGER.pack(1, _LINGER_SECONDS))
            now = time.monotonic()
            outcome.close_at = now
            if side.ending in BREAKS_OFF or self.is_abandoned or outcome.end in ("error", "wrong", "stopped"):
                outcome.break_at = now
            if not outcome.finish_at and side.ending != "reset" and not self.is_abandoned:
                outcome.finish_at = now
            if side.ending == "rdwr" and not outcome.read_error and not outcome.write_error:
                try:
                    sock.shutdown(stdlib.SHUT_RDWR)
                except OSError as error:
                    if error.errno != errno.ENOTCONN:  # the peer has ended it meanwhile
                        raise
            if side.ending != "drop":
                sock.close()
        except Exception as error:
            outcome.fault = outcome.fault or f"close: {type(error).__name__}: {error}"
        finally:
            del sock
            self.sock = None
            outcome.closed_at = time.monotonic()
            self.doing["end"] = ""
            self.progress.count += 1

    def describe(self) -> str:
        return ", ".join(f"{kind}: {what}" for kind, what in self.doing.items() if what)


def prepare_options(sock: Any, side: Side) -> None:
    """What a program may set before or after the connection stands."""
    if side.send_buffer_bytes:
        sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, side.send_buffer_bytes)
    if side.receive_buffer_bytes:
        sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_RCVBUF, side.receive_buffer_bytes)
    if side.nodelay:
        sock.setsockopt(stdlib.IPPROTO_TCP, stdlib.TCP_NODELAY, 1)
    if side.keepalive:
        sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_KEEPALIVE, 1)


def set_style(sock: Any, style: str) -> None:
    """Blocking, with a short timeout, or not blocking."""
    sock.settimeout({"blocking": None, "timeouts": _SHORT_TIMEOUT, "nonblocking": 0}[style])


def header(seed: int, connection: int, attempt: int) -> bytes:
    """An initiator's first bytes: who it is."""
    return HEADER.pack(0x75545043, connection << 8 | attempt, seed)
