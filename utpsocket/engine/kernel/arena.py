"""Memory to receive into, shared by all ports: taken piece by piece, free again at the end of an iteration.

Runs are stored one behind the other. So datagrams of one flight that the kernel gave in several pieces are contiguous,
and may be handled as one run; and a thousand ports with a small packet each take the memory of a thousand small
packets.

Only the engine's thread calls.
"""

from __future__ import annotations

from typing import Final

from utpsocket.protocol.packet import HEADER_BYTES
from utpsocket.protocol.runs import Run

# The most that one recvmsg(2) returns: a datagram, or several merged by UDP_GRO.
ROOM_BYTES: Final = 65_536
# Of each piece of memory, and how many sets of payload slices are kept; by feel.
_CHUNK_BYTES: Final = 1 << 20
_STRIDES_KEPT: Final = 4


class Arena:
    """Views given out are valid until reset().

    chunk    the piece of memory that is taken from at present
    stride   of the run that slots() was last asked for: one that begins at a multiple of it needs no slices of its own
    used     bytes of the chunk that are taken; 0 where there is nothing to reset
    """

    __slots__ = ("_first", "_payloads", "chunk", "stride", "used")

    def __init__(self) -> None:
        self._first = self.chunk = memoryview(bytearray(_CHUNK_BYTES))
        # Slices of the first chunk, one for the payload of each slot, by stride and size of the slots.
        self._payloads: dict[tuple[int, int], list[memoryview]] = {}
        self.stride = 1
        self.used = 0

    def room(self, stride: int = 1) -> memoryview:
        """At least ROOM_BYTES of free memory that begins at a multiple of `stride`, behind what was taken last if that
        chunk has so much left. Then call take().
        """
        if not self.used:
            return self.chunk
        if stride > 1:
            self.used += -self.used % stride
        if self.used > _CHUNK_BYTES - ROOM_BYTES:
            self.chunk = memoryview(bytearray(_CHUNK_BYTES))
            self.used = 0
        return self.chunk[self.used :]

    def room_behind(self, before: Run | None, is_bulk: bool) -> memoryview:
        """room() for the next run of a port. Bulk begins where slices of its payloads are kept, unless it may be joined
        to the port's run before it, several whole datagrams that were taken last.
        """
        is_joined = before is not None and len(before.data) > before.stride and not len(before.data) % before.stride
        return self.room(self.stride if is_bulk and not is_joined else 1)

    def take(self, count: int) -> None:
        """The first `count` bytes of room() are in use."""
        self.used += count

    def slots(self, run: Run, start: int) -> list[memoryview] | None:
        """Slices of the payloads of the run's datagrams, the first of which begins at byte `start` of the present
        chunk, as `used` counts. They are made once for each size, since slicing costs more than anything else that is
        done with them. None where the run is not in the first chunk, or not at a multiple of its stride.
        """
        stride, size = run.stride, run.datagram_bytes
        self.stride = stride
        if self.chunk is not self._first or start < 0 or start % stride:
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
        """The `count` bytes taken last, or None where they are not contiguous."""
        if count > self.used:
            return None
        return self.chunk[self.used - count : self.used]

    def reset(self) -> None:
        """Nothing taken is in use any more."""
        self.used = 0
        self.chunk = self._first
