"""Bytes from a descriptor to a connection, and from that to a descriptor, until both directions have ended.

One thread for each direction: stdout may block for as long as its reader likes without holding up what is sent. A
descriptor such as stdin is shared with other programs, so it stays blocking; poll() says when a read has something.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import stat
import threading
import time
from typing import Final

from utpsocket.cli.nc_tls import PIECE_BYTES, Stream

_HANG_UP: Final = select.POLLHUP | select.POLLERR


class Idle(Exception):
    """Nothing came and nothing could be sent for as long as was allowed."""


class Relay:
    """One connection, and what its bytes come from and go to."""

    def __init__(
        self,
        stream: Stream,
        source_fd: int,
        sink_fd: int,
        *,
        shuts_down: bool,
        ends_with_peer: bool = False,
        ends_with_source: bool = False,
        idle_seconds: float | None = None,
    ) -> None:
        """stream                the connection; closing it is the caller's
        source_fd, sink_fd    where bytes come from and go to; the second is ended with the peer's half
        shuts_down            the source's end ends our half
        ends_with_peer        after the peer's end the source's is not waited for, and the sink stays open
        ends_with_source      after the source's end the peer's is not waited for
        idle_seconds          without a byte in either direction, until it is given up; None: no limit
        """
        self._stream = stream
        self._source_fd = source_fd
        self._sink_fd = sink_fd
        self._shuts_down = shuts_down
        self._ends_with_peer = ends_with_peer
        self._ends_with_source = ends_with_source
        self._idle_seconds = idle_seconds
        self._moved_at = time.monotonic()
        self._failure: OSError | None = None  # of sending

    def run(self) -> None:
        """Relay until the end. Raises OSError where a direction fails, Idle."""
        ended_fd, ending_fd = os.pipe()  # the sender's end closes the second
        stop_fd, stopping_fd = os.pipe()
        with contextlib.ExitStack() as ended, contextlib.ExitStack() as stop:
            ended.callback(os.close, ended_fd)
            stop.callback(os.close, stopping_fd)
            sender = threading.Thread(target=self._send_all, args=(stop_fd, ending_fd), daemon=True)
            sender.start()
            self._receive_all(ended_fd)
            if self._ends_with_peer:
                stop.close()
            # Until all is sent, or the connection is reset: the peer may have closed it, and the source never end.
            waiting = select.poll()
            waiting.register(ended_fd, select.POLLIN)
            waiting.register(self._stream.fileno(), 0)  # POLLHUP and POLLERR
            self._wait(waiting)
            sender.join()
        if self._failure is not None:
            raise self._failure

    def _receive_all(self, ended_fd: int) -> None:
        stream = self._stream
        waiting = select.poll()
        waiting.register(stream.fileno(), select.POLLIN)
        if self._ends_with_source:
            waiting.register(ended_fd, select.POLLIN)
        while True:
            if not stream.has_received() and ended_fd in self._wait(waiting):
                return
            data = stream.receive()
            if data:
                self._moved_at = time.monotonic()
                _write_all(self._sink_fd, data)
            elif data is not None:
                break
        if not self._ends_with_peer:
            _end_writing(self._sink_fd)

    def _wait(self, waiting: select.poll) -> dict[int, int]:
        """The events by descriptor, of which there are some."""
        while True:
            left_seconds = None
            if self._idle_seconds is not None:
                left_seconds = self._moved_at + self._idle_seconds - time.monotonic()
                if left_seconds <= 0:
                    raise Idle(f"nothing was sent or received for {self._idle_seconds:g} s")
            ready = waiting.poll(None if left_seconds is None else math.ceil(left_seconds * 1_000))
            if ready:
                return dict(ready)

    def _send_all(self, stop_fd: int, ending_fd: int) -> None:
        try:
            if self._send_source(stop_fd) and self._shuts_down:
                self._stream.shut_down()
        except OSError as error:
            self._failure = error
        finally:
            os.close(ending_fd)
            os.close(stop_fd)

    def _send_source(self, stop_fd: int) -> bool:
        """Send until the source's end, or until it is not waited for any more; False if the connection is gone."""
        waiting = select.poll()
        waiting.register(self._source_fd, select.POLLIN)
        waiting.register(stop_fd, select.POLLIN)
        waiting.register(self._stream.fileno(), 0)
        while True:
            ready = dict(waiting.poll())
            if ready.get(self._stream.fileno(), 0) & _HANG_UP:
                return False
            if stop_fd in ready:
                return True
            data = os.read(self._source_fd, PIECE_BYTES)
            if not data:
                return True
            self._stream.send(data)
            self._moved_at = time.monotonic()


def _end_writing(fd: int) -> None:
    """Whatever reads it sees the end now. The number stays taken, so that nothing else is written there by mistake."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        with socket.socket(fileno=os.dup(fd)) as sock, contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        return
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
