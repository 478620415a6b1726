"""Bytes that the application wrote and the peer has not acked, at offsets of the stream.

They lie in blocks from a pool that many connections share, so that an idle connection holds no buffer. Which bytes were
sent in which packets is in flights.py.
"""

from __future__ import annotations

from typing import Final

BLOCK_BYTES: Final = 65_536  # what one read of the application's socket takes: docs/performance.md §8
# How many free blocks are kept for reuse, 16 MiB; memory beyond that is freed. By feel: five full send buffers of short
# paths.
_POOLED_BLOCKS: Final = 256


class BlockPool:
    """Blocks for every connection of one thread."""

    __slots__ = ("free",)

    def __init__(self) -> None:
        self.free: list[memoryview] = []  # for reuse

    def acquire(self) -> memoryview:
        """A writable block of BLOCK_BYTES, its content undefined."""
        return self.free.pop() if self.free else memoryview(bytearray(BLOCK_BYTES))

    def release(self, block: memoryview) -> None:
        """Give a block back; no view of it may be used afterwards."""
        if len(self.free) < _POOLED_BLOCKS:
            self.free.append(block)


class SendBuffer:
    """The part [acked_offset, end_offset) of the outgoing byte stream.

    acked_offset     of the first byte that is not acked
    end_offset       behind the last byte written
    capacity_bytes   most bytes between the two
    max_bytes        what capacity_bytes grows to at most
    _blocks          memory of BLOCK_BYTES each, from _base_offset on
    """

    __slots__ = ("_base_offset", "_blocks", "_pool", "acked_offset", "capacity_bytes", "end_offset", "max_bytes")

    def __init__(self, pool: BlockPool, capacity_bytes: int, max_bytes: int = 0) -> None:
        self._pool = pool
        self._blocks: list[memoryview] = []
        self._base_offset = 0
        self.acked_offset = 0
        self.end_offset = 0
        self.capacity_bytes = capacity_bytes
        self.max_bytes = max_bytes

    @property
    def free_bytes(self) -> int:
        """How many bytes may be written now."""
        return max(0, self.capacity_bytes - (self.end_offset - self.acked_offset))

    def set_capacity(self, capacity_bytes: int) -> None:
        """From now on it holds so many bytes, and does not grow."""
        self.capacity_bytes = capacity_bytes
        self.max_bytes = 0

    def follow_window(self, window_bytes: int) -> None:
        """The congestion window was used up: hold twice as much, one window that is in flight and one that follows it,
        up to max_bytes. As Linux's tcp_sndbuf_expand().
        """
        if 2 * window_bytes > self.capacity_bytes < self.max_bytes:
            self.capacity_bytes = min(2 * window_bytes, self.max_bytes)

    def make_room(self, count: int) -> None:
        """Raise the capacity if fewer than `count` bytes are free."""
        self.capacity_bytes = max(self.capacity_bytes, self.end_offset - self.acked_offset + count)

    def free_span(self) -> memoryview:
        """Memory for the next bytes, in one piece; empty when the buffer is full. Next: commit()."""
        free_bytes = self.capacity_bytes - self.end_offset + self.acked_offset
        if free_bytes <= 0:
            return memoryview(b"")
        used = self.end_offset - self._base_offset
        if used == len(self._blocks) * BLOCK_BYTES:
            free = self._pool.free
            self._blocks.append(free.pop() if free else self._pool.acquire())
        start = used % BLOCK_BYTES
        stop = start + free_bytes
        if not start and stop >= BLOCK_BYTES:
            return self._blocks[-1]
        return self._blocks[-1][start : stop if stop < BLOCK_BYTES else BLOCK_BYTES]

    def free_spans(self, max_bytes: int) -> list[memoryview]:
        """free_span() and the memory that follows it, for `max_bytes` if so much is free. Next: commit(), which gives
        back the blocks that were not needed.
        """
        spans = [self.free_span()]
        left = min(max_bytes, self.free_bytes) - len(spans[0])
        free = self._pool.free
        while left > 0:
            block = free.pop() if free else self._pool.acquire()
            self._blocks.append(block)
            spans.append(block[: min(left, BLOCK_BYTES)])
            left -= BLOCK_BYTES
        return spans

    def commit(self, count: int) -> None:
        """The first `count` bytes of free_span() or free_spans() have been written."""
        self.end_offset = end_offset = self.end_offset + count
        if end_offset == self.acked_offset:
            self._release_all()
        elif len(self._blocks) > 1:
            used = end_offset - self._base_offset
            while used <= (len(self._blocks) - 1) * BLOCK_BYTES:
                self._pool.release(self._blocks.pop())

    def release(self, offset: int) -> None:
        """The peer has everything before `offset`."""
        self.acked_offset = offset
        if offset == self.end_offset:
            if len(self._blocks) == 1:  # as _release_all()
                free = self._pool.free
                if len(free) < _POOLED_BLOCKS:
                    free.append(self._blocks.pop())
                else:
                    self._blocks.pop()
                self._base_offset = offset
            else:
                self._release_all()
            return
        while offset >= self._base_offset + BLOCK_BYTES:
            self._pool.release(self._blocks.pop(0))
            self._base_offset += BLOCK_BYTES

    def _release_all(self) -> None:
        blocks = self._blocks
        if blocks:
            for block in blocks:
                self._pool.release(block)
            blocks.clear()
        self._base_offset = self.end_offset

    def clear(self) -> None:
        """Forget all bytes: the connection is over."""
        self.acked_offset = self._base_offset = self.end_offset
        if self._blocks:
            self._release_all()

    def locate(self, offset: int) -> tuple[memoryview, int]:
        """The block that has the byte at `offset`, and where in it the byte lies."""
        start = offset - self._base_offset
        return self._blocks[start // BLOCK_BYTES], start % BLOCK_BYTES

    def segments(self, offset: int, segment_bytes: int, total_bytes: int) -> list[memoryview]:
        """`total_bytes` from `offset` on, in pieces of `segment_bytes`, the last one perhaps shorter. They are views,
        valid until release(), but a piece that lies across two blocks is a copy.
        """
        start = offset - self._base_offset
        if 0 < total_bytes <= segment_bytes and start + total_bytes <= BLOCK_BYTES:
            return [self._blocks[0][start : start + total_bytes]]
        segments: list[memoryview] = []
        end = offset + total_bytes - self._base_offset
        position = offset - self._base_offset
        while position < end:
            block = self._blocks[position // BLOCK_BYTES]
            start = position % BLOCK_BYTES
            stop = min(BLOCK_BYTES, start + end - position)
            whole = (stop - start) // segment_bytes * segment_bytes
            segments += [block[i : i + segment_bytes] for i in range(start, start + whole, segment_bytes)]
            position += whole
            size = min(segment_bytes, end - position)
            if not size:
                break
            start += whole
            if start + size <= BLOCK_BYTES:
                segments.append(block[start : start + size])
            elif start < BLOCK_BYTES:
                following = self._blocks[position // BLOCK_BYTES + 1]
                segments.append(memoryview(b"".join((block[start:], following[: start + size - BLOCK_BYTES]))))
            else:
                continue
            position += size
        return segments

    def spans(self, offset: int, total_bytes: int) -> list[memoryview]:
        """Views of `total_bytes`, at least 1, from `offset` on, one for each block that they lie in. Valid until they
        are acked.
        """
        start = offset - self._base_offset
        stop = start + total_bytes
        first, last = start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        start -= first * BLOCK_BYTES
        stop -= last * BLOCK_BYTES
        blocks = self._blocks
        if first == last:
            return [blocks[first][start:stop]]
        return [blocks[first][start:], *blocks[first + 1 : last], blocks[last][:stop]]

    def _check(self) -> None:
        """Invariants, for tests and the simulator."""
        assert self.acked_offset <= self.end_offset
        assert self._base_offset <= self.acked_offset
        assert len(self._blocks) * BLOCK_BYTES >= self.end_offset - self._base_offset
        assert self._blocks or self.acked_offset == self.end_offset
