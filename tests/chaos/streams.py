"""What the connections carry: bytes that show by themselves of which stream and which offset they are.

One pseudo-random block, repeated without end; each stream begins somewhere else in it. A byte that is lost, repeated or
another stream's is noticed at once, and where the wrong bytes belong can be looked up.
"""

from __future__ import annotations

import hashlib
import random
import struct
from typing import Final

BLOCK_BYTES: Final = 1_048_573  # prime: no loss of whole packets or buffers is a whole number of blocks
HEADER: Final = struct.Struct(">IIQ")  # magic, connection, seed: an initiator's first bytes
MAGIC: Final = 0x75545043

_twice: Final = random.Random(20).randbytes(BLOCK_BYTES) * 2
_view: Final = memoryview(_twice)


class Stream:
    """One direction of one connection."""

    def __init__(self, seed: int, connection: int, direction: str) -> None:
        digest = hashlib.sha256(f"{seed}/{connection}/{direction}".encode()).digest()
        self.start = int.from_bytes(digest[:8], "big") % BLOCK_BYTES

    def piece(self, offset: int, count: int) -> memoryview:
        """`count` bytes (at most BLOCK_BYTES) from `offset` on."""
        at = (self.start + offset) % BLOCK_BYTES
        return _view[at : at + count]

    def fault(self, offset: int, data: bytes) -> str | None:
        """What is wrong with bytes that were received at this offset; None if nothing."""
        done = 0
        while done < len(data):
            count = min(BLOCK_BYTES, len(data) - done)
            expected = self.piece(offset + done, count)
            got = memoryview(data)[done : done + count]
            if got != expected:
                first = next(i for i in range(count) if got[i] != expected[i])
                found = _twice.find(bytes(got[first : first + 16]))
                origin = "nowhere" if found < 0 else f"offset {(found - self.start) % BLOCK_BYTES} of the same block"
                return f"wrong bytes at offset {offset + done + first}; they are from {origin}"
            done += count
        return None
