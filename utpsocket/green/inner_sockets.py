"""The socket inside a gevent or an eventlet socket: a utpsocket.socket that never blocks the hub.

This module imports neither library, since a hook may be set while they are being imported. Both wrap a non-blocking
socket and wait for its descriptor by themselves, so that the descriptor does nearly everything (docs/design.md §5).
What can still block is close() with SO_LINGER. Calls into the engine block for the 50 to 100 µs that its thread needs.
recv() and send() keep the interpreter's lock (gil_held_io.py); where they get an error or the end of the stream, the
base class's method is called.

Called by the hub's thread. Sources: gevent's _socket3.py, eventlet's greenio/base.py.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from utpsocket.engine.interpreter.native import Socket, StdlibSocket
from utpsocket.green import gil_held_io
from utpsocket.green.yielding import begin_iteration
from utpsocket.sockets import errors, lifecycle, shim
from utpsocket.sockets.rules import Routes

if TYPE_CHECKING:
    from utpsocket.engine.interpreter.arguments import GivenAddress, ReadableBuffer
    from utpsocket.sockets.closing import Lock

# How long a greenlet sleeps between two looks at a lock; by feel.
_FIRST_SLEEP_SECONDS: Final = 0.001
_MAX_SLEEP_SECONDS: Final = 0.02
# A recv() of more than this calls the base class's: two copies would cost more than waiting for the lock; by feel.
_MAX_RECEIVE_BYTES: Final = 1 << 20


class _Inside(shim.socket):
    """What both have in common."""

    __slots__ = ()
    _pairs_datagrams = True

    @property
    def _routes(self) -> Routes | None:  # type: ignore[override]
        """The rules of utpsocket.monkey, where it has patched the process."""
        return getattr(StdlibSocket, "_routes", None)

    def _can_keep_gil(self) -> bool:
        """Whether the next call may keep the interpreter's lock: the socket is uTP's and does not block."""
        return gil_held_io.IS_POSSIBLE and self._utp is not None and self.gettimeout() == 0

    def recv(self, *args: int, **kwargs: object) -> bytes:
        """As utpsocket.socket.recv()."""
        is_plain = len(args) == 1 and not kwargs and type(args[0]) is int and 0 < args[0] <= _MAX_RECEIVE_BYTES
        if is_plain and self._can_keep_gil():
            room = bytearray(args[0])
            with memoryview(room) as view:
                count = gil_held_io.receive_into(self.fileno(), view)
            if count > 0:
                return bytes(room) if count == len(room) else bytes(memoryview(room)[:count])
            if count == -errno.EAGAIN:
                raise lifecycle.os_error(errno.EAGAIN)
        return shim.socket.recv(self, *args, **kwargs)

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        """As utpsocket.socket.recv_into()."""
        if args and not any(args[1:]) and not kwargs and self._can_keep_gil():
            with memoryview(args[0]) as view:
                count = -errno.EINVAL
                if view.nbytes and view.contiguous and not view.readonly:
                    count = gil_held_io.receive_into(self.fileno(), view)
            if count > 0:
                return count
            if count == -errno.EAGAIN:
                raise lifecycle.os_error(errno.EAGAIN)
        return shim.socket.recv_into(self, *args, **kwargs)

    def send(self, data: ReadableBuffer, flags: int = 0, /) -> int:
        """As utpsocket.socket.send()."""
        if not flags and isinstance(data, (bytes, bytearray, memoryview)) and len(data) and self._can_keep_gil():
            assert self._utp is not None
            errors.before_send(self, self._utp, 0)
            count = gil_held_io.send(self.fileno(), data)
            if count > 0:
                return count
            if count == -errno.EAGAIN:
                raise lifecycle.os_error(errno.EAGAIN)
        return shim.socket.send(self, data, flags)


class GeventInside(_Inside):
    """Inside a gevent.socket.socket, whose class attribute `_gevent_sock_class` names it."""

    __slots__ = ()

    def connect_ex(self, address: GivenAddress, /) -> int:
        """As utpsocket.socket.connect_ex(). gevent calls it where the caller may wait, and connect() where not."""
        import gevent

        hub = gevent.get_hub()
        if self._utp is not None and gevent.getcurrent() is not hub:
            while begin_iteration(hub).is_used_up:
                gevent.sleep(0)
        return shim.socket.connect_ex(self, address)

    def _accept(self) -> tuple[int, object]:
        """_accept() -> (integer fd, address info). EAGAIN when enough has been accepted in this iteration of the hub:
        gevent accepts until then, and goes on in the next iteration.
        """
        if self._utp is not None:
            from gevent import get_hub

            if begin_iteration(get_hub()).is_used_up:
                raise lifecycle.os_error(errno.EAGAIN)
        return shim.socket._accept(self)

    def _acquire(self, lock: Lock, seconds: float) -> None:
        import gevent

        # The hub cannot wait. The engine delivers all the same.
        if gevent.getcurrent() is not gevent.get_hub():
            _acquire_sleeping(lock, seconds, gevent.sleep)

    def __repr__(self) -> str:
        """As the C class's, in which gevent's socket replaces the name by its own."""
        return (
            f"<socket object, fd={self.fileno()}, family={int(self.family)}, "
            f"type={int(Socket.type.__get__(self))}, proto={self.proto}>"
        )


class EventletInside(_Inside):
    """Inside an eventlet GreenSocket, as its `fd`."""

    __slots__ = ()

    _wants_stdlib_ssl = True

    def accept(self) -> tuple[StdlibSocket, object]:
        """accept() -> (socket object, address info): the next incoming connection, of this class too."""
        if self._utp is None:
            return shim.socket.accept(self)
        fd, peer = self._accept()
        return type(self)(self.family, self.type, self.proto, fileno=fd), peer

    def _acquire(self, lock: Lock, seconds: float) -> None:
        import eventlet
        from greenlet import getcurrent

        if getcurrent() is not eventlet.hubs.get_hub().greenlet:
            _acquire_sleeping(lock, seconds, eventlet.sleep)


def _acquire_sleeping(lock: Lock, seconds: float, sleep: Callable[[float], object]) -> None:
    """Wait for a native lock by trying it at growing intervals.

    To be woken instead, the engine would have to reach a hub from another thread, which gevent and eventlet do in
    different ways, and SO_LINGER with a time is rare.
    """
    deadline = time.monotonic() + seconds
    pause_seconds = _FIRST_SLEEP_SECONDS
    while not lock.acquire(False) and time.monotonic() < deadline:
        sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, _MAX_SLEEP_SECONDS)
