"""How much is kept for a program that does not read: the window that is advertised, and the buffer of its pair.

A peer must not make us keep more for a program than TCP would, so both begin small. They grow with what the program
reads within a round trip, as Linux's TCP does it: a sender in slow start doubles its rate in each round trip, so the
window becomes a multiple of what was read in the last one. If SO_RCVBUF is set, its value is used from the beginning.

    Example. The window is 96 KiB, the round trip 10 ms. In one the program reads 60 KiB: the window becomes 96 + 4 × 60
    = 336 KiB, the pair's buffer a quarter, 84 KiB. In the next it reads 80 KiB: 96 + 320 = 416 KiB is not a quarter
    more than 336, so nothing changes. It reads 200 KiB: 896 KiB. Growing ends at 4 MiB, or what the port's receive
    buffer allows a single connection; over a path of more than 25 ms at as much more, 16 MiB at most
    (ports/receive_shares.py).

Only the engine's thread calls. Sources: Linux's tcp_rcv_space_adjust() and tcp_rmem; unix(7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from utpsocket.engine.faults import TRANSIENT_ERRNOS
from utpsocket.engine.interpreter import native
from utpsocket.engine.interpreter.native import Socket
from utpsocket.engine.interpreter.originals import socket as stdlib
from utpsocket.engine.user_fds.socket_state import half_buffer

if TYPE_CHECKING:
    from typing import Protocol

    from utpsocket.protocol.receivehalf import ReceiveHalf

    class Shares(Protocol):
        """What is used of the port's shares (ports/receive_shares.py)."""

        def grown_window_bytes(self, path_us: int) -> int:
            """What the window of a connection may grow to, with a path of this round trip."""


FIRST_WINDOW_BYTES: Final = 96 << 10
# As setsockopt() is given it. With the window it is no more than tcp_rmem[1], 128 KiB, gives TCP.
_FIRST_PAIR_BYTES: Final = 24 << 10
# The kernel doubles it. If it held less than an iteration brings, the rest would have to be copied to wait.
_MAX_PAIR_BYTES: Final = 512 << 10
_PAIR_SHARE: Final = 4  # the pair's buffer is this part of the window
# Times what was read in a round trip. A sender in slow start doubles in each, and what it knows of the window is
# another round trip old.
_GROWTH: Final = 4
_MIN_ROUND_US: Final = 100  # also where no round trip has been measured
_MAX_ROUND_US: Final = 1_000_000  # the round trip is computed from the peer's timestamps, which may be anything
# A pair holds so many times what setsockopt() was given: the kernel doubles that, and one more piece of up to half as
# much gets in.
_PAIR_OVERHEAD: Final = 3


class ReceiveBuffer:
    """Of one connection.

    is_growing   whether on_delivered() must be called for whatever is written to the pair
    path_us      the shortest round trip seen while it was, 0 if none was measured: queues make the others longer, ours
                 too, and more must not be kept for a longer one
    """

    __slots__ = (
        "_delivered_bytes",
        "_pair_bytes",
        "_read_bytes",
        "_round_ends_at",
        "_round_us",
        "is_growing",
        "path_us",
    )

    def __init__(self) -> None:
        self.is_growing = False
        self.path_us = 0
        self._pair_bytes = 0  # of the pair's buffer, as setsockopt() was given it
        self._delivered_bytes = 0  # written to the pair since the beginning
        self._read_bytes = 0  # of these, read by the program when the round began
        self._round_us = 0  # how long a round is: a round trip
        self._round_ends_at = 0  # µs

    def apply_option(self, engine_sock: Socket, asked_bytes: int) -> None:
        """Give the pair the buffer that SO_RCVBUF asks for; with 0, which stands for unset, a small one that grows.

        Call at the beginning and whenever the option is set. asked_bytes   as getsockopt(SO_RCVBUF) returns it
        """
        self.is_growing = not asked_bytes
        self._set_pair(
            engine_sock, half_buffer(asked_bytes) if asked_bytes else max(_FIRST_PAIR_BYTES, self._pair_bytes)
        )

    def use_largest(self, engine_sock: Socket) -> None:
        """TCP carries the connection from now on, and bounds what is held for a program that does not read."""
        if self.is_growing:
            self.is_growing = False
            self._set_pair(engine_sock, _MAX_PAIR_BYTES)

    def on_delivered(self, count: int, engine_sock: Socket, receive: ReceiveHalf, shares: Shares, *, now: int) -> None:
        """`count` bytes more were written to the pair. Once in a round trip the window and the pair's buffer may grow.

        shares   how large the window may be
        now      µs
        """
        self._delivered_bytes = delivered_bytes = self._delivered_bytes + count
        if now < self._round_ends_at:
            return
        # A longer round trip is adopted slowly: a delay of this thread looks like one, and much arrives meanwhile.
        round_us, usual_us = receive.round_trip_us, self._round_us
        if round_us and (round_us < self.path_us or not self.path_us):
            self.path_us = min(round_us, _MAX_ROUND_US)
        if usual_us and round_us > usual_us * 5 // 4:
            round_us = usual_us * 5 // 4
        if round_us < _MIN_ROUND_US:
            round_us = _MIN_ROUND_US
        elif round_us > _MAX_ROUND_US:
            round_us = _MAX_ROUND_US
        self._round_us = round_us
        self._round_ends_at = now + round_us
        reassembly = receive.reassembly
        min_window_bytes = reassembly.capacity_bytes * 5 // 4  # a smaller step is not worth a change
        begun_bytes, self._read_bytes = self._read_bytes, delivered_bytes
        if FIRST_WINDOW_BYTES + _GROWTH * (delivered_bytes - begun_bytes) < min_window_bytes:
            return
        unread_bytes = native.unread_by_peer_bytes(engine_sock.fileno())
        if unread_bytes < 0:
            unread_bytes = _PAIR_OVERHEAD * self._pair_bytes
        self._read_bytes = read_bytes = max(0, delivered_bytes - unread_bytes)
        window_bytes = FIRST_WINDOW_BYTES + _GROWTH * (read_bytes - begun_bytes)
        if window_bytes < min_window_bytes:
            return
        max_window_bytes = shares.grown_window_bytes(self.path_us)
        window_bytes = min(window_bytes, max_window_bytes)
        try:
            self._set_pair(engine_sock, max(self._pair_bytes, min(_MAX_PAIR_BYTES, window_bytes // _PAIR_SHARE)))
        except OSError as error:
            if error.errno not in TRANSIENT_ERRNOS:
                raise
            return  # the kernel lacks memory: nothing grows in this round
        reassembly.resize(window_bytes)
        self.is_growing = window_bytes < max_window_bytes

    def _set_pair(self, engine_sock: Socket, size: int) -> None:
        if size != self._pair_bytes:
            engine_sock.setsockopt(stdlib.SOL_SOCKET, stdlib.SO_SNDBUF, size)
            self._pair_bytes = size
