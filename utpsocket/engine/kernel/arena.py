"""Memory to receive into: taken piece by piece, given back all at once at the end of an iteration.

Separate because it is the one buffer that all ports share. Runs are laid down one behind the other, so that what the
kernel gave in several pieces of one flight lies together and may be handled as one run; a thousand ports with a small
packet each take a thousand small packets' room.

Only the engine's thread calls.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.packet import HEADER_BYTES
from utpsocket.protocol.runs import Run

ROOM_BYTES: Final = 65_536  # the most that one receive gives
_CHUNK_BYTES: Final = 1 << 20
_STRIDES_KEPT: Final = 4


class Arena:
    """Views given out are valid until reset()."""

    __slots__ = ("_chunk", "_first", "_payloads", "_used")

    def __init__(self) -> None:
        self._first = self._chunk = memoryview(bytearray(_CHUNK_BYTES))
        self._payloads: dict[
            tuple[int, int], list[memoryview]
        ] = {}  # by stride and size, of the first chunk laid out so
        self._used = 0

    def room(self, stride: int = 1) -> memoryview:
        """At least ROOM_BYTES, behind what was taken last if there is room, from a multiple of `stride` on. Then call
        take().
        """
        self._used += -self._used % stride
        if self._used > _CHUNK_BYTES - ROOM_BYTES:
            self._chunk = memoryview(bytearray(_CHUNK_BYTES))
            self._used = 0
        return self._chunk[self._used :]

    def take(self, count: int) -> None:
        """The first `count` bytes of room() are in use."""
        self._used += count

    def slots(self, run: Run, start: int) -> list[memoryview] | None:
        """The payloads of the run's full datagrams, which begin at room()[start], made in an earlier iteration: slicing
        anew costs more than anything else that is done with them. None where they are not at hand.
        """
        stride, size = run.stride, run.datagram_bytes
        start += self._used
        if self._chunk is not self._first or start < 0 or start % stride:
            return None
        payloads = self._payloads.get((stride, size))
        if payloads is None:
            if len(self._payloads) >= _STRIDES_KEPT:
                self._payloads.clear()
            whole = range(0, _CHUNK_BYTES - stride + 1, stride)
            payloads = self._payloads[stride, size] = [self._first[at + HEADER_BYTES : at + size] for at in whole]
        first = start // stride
        return payloads[first : first + (len(run.data) + stride - size) // stride]

    def last(self, count: int) -> memoryview | None:
        """The `count` bytes taken last, or None where they do not lie together."""
        if count > self._used:
            return None
        return self._chunk[self._used - count : self._used]

    def reset(self) -> None:
        """Nothing taken is in use any more."""
        self._used = 0
        self._chunk = self._first
