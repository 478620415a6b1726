"""The queue of requests to an engine in another process, which may be slow to read them.

While the socket has room, a request is sent by the thread that makes it. A request that finds no room is put into a
queue, and all that follow as well. A thread sends the queue, and ends when it is empty. So no caller waits for room.

Any thread may call. Sources: unix(7) SCM_RIGHTS, ETOOMANYREFS.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from utpsocket.engine.faults import NO_ROOM_ERRNOS
from utpsocket.engine.helper import messages
from utpsocket.engine.interpreter.native import Socket, allocate_lock, call_uninterrupted, sleep, start_thread
from utpsocket.engine.interpreter.originals import marshal
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.interpreter.signal_errors import reraise_handler_error
from utpsocket.engine.kernel.high_fds import taken_over

# The socket is full; as many fds are in flight as the process may have open. unix(7)
_RETRY_ERRNOS: Final = (errno.EAGAIN, errno.ETOOMANYREFS)
# By feel.
_TRY_AGAIN_SECONDS: Final = 0.001


class Requests:
    """The requests to one engine.

    sock     the control socket
    on_end   called by the thread that finds the engine's process gone
    """

    __slots__ = ("_on_end", "_queue", "_sending", "_sock")

    def __init__(self, sock: Socket, on_end: Callable[[], object]) -> None:
        self._sock = sock
        self._on_end = on_end
        self._queue: deque[tuple[bytes, list[int], list[Socket]]] = deque()
        self._sending = allocate_lock()

    def put(
        self, request: messages.Request, fds: list[int], socks: list[Socket], sent: partial[object] | None = None
    ) -> None:
        """Send a request with duplicates of these fds, now or when there is room. Raises OSError where the kernel has
        no memory for it.

        fds     to send
        socks   sockets with fds among these, owned here from now on: each is closed once it is sent, or cannot be
        sent    a partial() of a function in C, called as soon as the request is sent or queued, with no line of Python
                in between
        """
        kept: list[Socket] = []
        try:
            data = marshal.dumps(request)
            if not self._queue and self._is_sent(data, fds, sent):
                _close(socks)
                return
            for sock in socks:  # new objects own the fds, since the caller closes its own when it is interrupted
                kept += taken_over(sock)
        except BaseException:
            _close(socks)
            _close(kept)
            raise
        queue = partial(self._queue.append, (data, fds, kept))
        if sent is None:
            queue()
        else:
            call_uninterrupted(queue, sent)
        if not self._sending.locked():
            try:
                start_thread(self._send_queue, b"utpsocket-queue")
            except RuntimeError:  # the interpreter ends, and there is no thread to be had: then this one waits
                self._send_queue()

    def _is_sent(self, data: bytes, fds: list[int], sent: partial[object] | None) -> bool:
        """Send a request; False if there is no room. Without effect if the engine's process is gone."""
        try:
            messages.send_data(self._sock, data, fds, sent, flags=stdlib.MSG_DONTWAIT)
        except OSError as error:
            reraise_handler_error(error)
            if error.errno in _RETRY_ERRNOS:
                return False
            if error.errno not in messages.ENDED_ERRNOS:
                raise  # no memory for it, say: the engine is alive, and has not received it
            self._on_end()
        return True

    def _send_queue(self) -> None:
        while self._queue and self._sending.acquire(False):
            try:
                while self._queue:
                    data, fds, socks = self._queue[0]
                    try:
                        messages.send_data(self._sock, data, fds)
                    except OSError as error:
                        reraise_handler_error(error)
                        if error.errno in _RETRY_ERRNOS or error.errno in NO_ROOM_ERRNOS:
                            sleep(_TRY_AGAIN_SECONDS)
                            continue
                        self._on_end()
                    _close(socks)
                    self._queue.popleft()  # last: requests that come meanwhile are queued behind it
            finally:
                self._sending.release()


def _close(socks: list[Socket]) -> None:
    for sock in socks:
        sock.close()
