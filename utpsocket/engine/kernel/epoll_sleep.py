"""The engine's sleep in epoll_wait(2), apart from poller.py so that the compiled build has it compiled.

Only the engine's thread calls. Source: epoll_wait(2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

from utpsocket.engine.interpreter import libc
from utpsocket.engine.interpreter.garbage_collector import CollectorPause
from utpsocket.engine.interpreter.originals import ctypes, os, struct, time
from utpsocket.protocol.native import native_or
from utpsocket.protocol.times import NEVER

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.originals import select
    from utpsocket.protocol.layout import Layout

# Events that one wait() returns; by feel.
MAX_EVENTS: Final = 256
# The largest int, of which poll(2) and epoll_wait(2) take the timeout, in ms.
MAX_TIMEOUT_MS: Final = 0x7FFFFFFF
# struct epoll_event as (events, fd): packed on x86-64 only. epoll_ctl(2), linux/eventpoll.h
EVENT: Final[Layout[tuple[int, int]]] = struct.Struct(
    "=Ii4x" if os.uname().machine in ("x86_64", "AMD64") else "=I4xi4x"
)
_unpack_event: Final = EVENT.unpack_from
_monotonic_ns: Final = time.monotonic_ns
# In the compiled build by C; it is given the buffer, and the function by ctypes its address.
_epoll_wait: Final[Callable[..., int]] = native_or(libc.epoll_wait, "epoll_wait")


@final
class EpollSleep:
    """Waits for the events of an epoll.

    call   epoll_wait(2); a test may put its own function here
    """

    __slots__ = ("_buffer", "_epoll", "_epoll_fd", "_events", "_pause", "call")

    def __init__(self, epoll: select.epoll, pause: CollectorPause) -> None:
        self._epoll = epoll
        self._epoll_fd = epoll.fileno()
        self._pause = pause
        self.call = _epoll_wait
        self._buffer = bytearray(EVENT.size * MAX_EVENTS)
        is_native = _epoll_wait is not libc.epoll_wait
        self._events: object = self._buffer if is_native else ctypes.byref(ctypes.c_char.from_buffer(self._buffer))

    def wait(self, at: int) -> list[tuple[int, int]]:
        """Sleep until there are events.

        at   when to wake up at the latest: µs of the monotonic clock; NEVER; 0: do not sleep

        Returns up to MAX_EVENTS (events, fd). Raises OSError as select.epoll.poll() does.
        """
        timeout_ms = 0
        if at == NEVER:
            timeout_ms = -1
        elif at:
            left_us = at - _monotonic_ns() // 1_000
            if left_us > 0:
                timeout_ms = -(-left_us // 1_000)
                if timeout_ms > MAX_TIMEOUT_MS:
                    timeout_ms = MAX_TIMEOUT_MS
        count = self._pause.sleep(self.call, (self._epoll_fd, self._events, MAX_EVENTS, timeout_ms))
        if count == 1:
            return [_unpack_event(self._buffer)]
        if count > 1:
            return list(EVENT.iter_unpack(memoryview(self._buffer)[: count * EVENT.size]))
        if count < 0:
            # epoll.poll() fails likewise and raises; after EINTR it may find an edge, which is reported once only.
            return [(events, fd) for fd, events in self._epoll.poll(0, 1)]
        return []
