"""How much is held for a user who does not read: the window that its peer is promised, and the buffer of its pair.

Separate because it knows no connection, only how fast a user reads. A stranger must not make us hold more for a program
than TCP would, so both begin small. They grow with what the program reads within a round trip, to a multiple of it,
since a sender that is not held back doubles its pace; who sends little, or is not read, never gets much. A program that
sets SO_RCVBUF gets what it asked for, from the beginning and for ever.

Only the engine's thread calls. Sources: Linux' tcp_rcv_space_adjust() and tcp_rmem; unix(7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from utpsocket.engine.interpreter import native
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.user_fds.socket_state import half_buffer

if TYPE_CHECKING:
    from utpsocket.protocol.receivehalf import ReceiveHalf

FIRST_WINDOW_BYTES: Final = 96 << 10
_FIRST_PAIR_BYTES: Final = 24 << 10  # as setsockopt() is given it, with the window no more than tcp_rmem[1] is to TCP
_MOST_WINDOW_BYTES: Final = 4 << 20
# The kernel doubles it. With less than an iteration brings there would be more to copy: what the user has not room for.
_MOST_PAIR_BYTES: Final = 512 << 10
_PAIR_SHARE: Final = 4  # of the window
_GROWTH: Final = 4  # times what was read in a round trip: a sender doubles in each, and what it has learnt is as old
_LEAST_ROUND_US: Final = 100  # and where it is unknown: the window then opens with what is read at once
_MOST_ROUND_US: Final = 1_000_000  # a peer may tell any nonsense
_PAIR_OVERHEAD: Final = (
    3  # times what setsockopt() was given: the kernel doubles it, and what exceeds it is half as large
)


class ReceiveBuffer:
    """Of one connection.

    is_growing   on_delivered() must hear of everything that the user's end takes
    """

    __slots__ = ("_pair_bytes", "_read_bytes", "_round_ends_at", "_round_us", "_delivered_bytes", "is_growing")

    def __init__(self) -> None:
        self.is_growing = False
        self._pair_bytes = 0  # as setsockopt() was given it
        self._delivered_bytes = 0
        self._read_bytes = 0  # of these, when the round began
        self._round_us = 0
        self._round_ends_at = 0

    def apply_option(self, engine_sock: Any, asked_bytes: int) -> None:
        """Give our end the buffer that the user's SO_RCVBUF says, or if that is 0 a small one that grows. Also later,
        when the user says another.
        """
        self.is_growing = not asked_bytes
        self._set_pair(
            engine_sock, half_buffer(asked_bytes) if asked_bytes else max(_FIRST_PAIR_BYTES, self._pair_bytes)
        )

    def use_largest(self, engine_sock: Any) -> None:
        """Somebody else delivers from now on, and bounds what is held for a user who does not read."""
        if self.is_growing:
            self.is_growing = False
            self._set_pair(engine_sock, _MOST_PAIR_BYTES)

    def on_delivered(self, count: int, engine_sock: Any, receive: ReceiveHalf, most_bytes: int, *, now: int) -> None:
        """The user's end took so much more. The window is never to exceed `most_bytes`."""
        self._delivered_bytes = taken_bytes = self._delivered_bytes + count
        if now < self._round_ends_at:
            return
        # Slow to believe in a longer one: a thread that was kept waiting looks like it, and much comes meanwhile.
        round_us = min(receive.round_trip_us, self._round_us * 5 // 4) if self._round_us else receive.round_trip_us
        self._round_us = round_us = min(max(_LEAST_ROUND_US, round_us), _MOST_ROUND_US)
        self._round_ends_at = now + round_us
        reassembly = receive.reassembly
        worthwhile = reassembly.capacity_bytes * 5 // 4
        begun_bytes, self._read_bytes = self._read_bytes, taken_bytes
        if FIRST_WINDOW_BYTES + _GROWTH * (taken_bytes - begun_bytes) < worthwhile:
            return
        unread_bytes = native.taken_bytes(engine_sock.fileno())
        if unread_bytes < 0:
            unread_bytes = _PAIR_OVERHEAD * self._pair_bytes
        self._read_bytes = read_bytes = max(0, taken_bytes - unread_bytes)
        window = FIRST_WINDOW_BYTES + _GROWTH * (read_bytes - begun_bytes)
        if window < worthwhile:
            return
        most_bytes = min(_MOST_WINDOW_BYTES, most_bytes)
        window = min(window, most_bytes)
        reassembly.resize(window)
        self._set_pair(engine_sock, max(self._pair_bytes, min(_MOST_PAIR_BYTES, window // _PAIR_SHARE)))
        self.is_growing = window < most_bytes

    def _set_pair(self, engine_sock: Any, size: int) -> None:
        if size != self._pair_bytes:
            engine_sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, size)
            self._pair_bytes = size
