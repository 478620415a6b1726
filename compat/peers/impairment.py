"""What a bad path does to a datagram: lose it, hold it back, send it twice.

Separate from the relay so that a test can ask for fates without a socket and without a clock. One `Lane` is one
direction of one relay. Its draws depend on its seed and on how many datagrams came before, on nothing else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Impairment:
    """A path's faults, the same in both directions."""

    loss: float = 0.0
    """share of datagrams lost, 0..1"""
    duplicate: float = 0.0
    """share of datagrams delivered twice, 0..1"""
    reorder: float = 0.0
    """share of datagrams held back by `reorder_us`, so that later ones overtake them, 0..1"""
    reorder_us: int = 4_000
    delay_us: int = 0
    """one way"""
    jitter_us: int = 0
    """up to so much is added to the delay; the order is kept (`reorder` breaks it)"""
    rate_bytes_per_second: int = 0
    """of the bottleneck; 0: none"""
    queue_bytes: int = 16 << 20
    """held at most, in one direction: in the bottleneck's queue and under way"""

    def __str__(self) -> str:
        parts = []
        if self.loss:
            parts.append(f"loss {self.loss:.0%}")
        if self.delay_us:
            parts.append(f"delay {self.delay_us / 1000:g} ms")
        if self.jitter_us:
            parts.append(f"jitter {self.jitter_us / 1000:g} ms")
        if self.reorder:
            parts.append(f"reorder {self.reorder:.0%}")
        if self.duplicate:
            parts.append(f"duplicate {self.duplicate:.0%}")
        if self.rate_bytes_per_second:
            parts.append(f"rate {self.rate_bytes_per_second / 1e6:g} MB/s")
        return ", ".join(parts) or "clean"


class Lane:
    """One direction. Tell it of every datagram with `due_times`, and of every delivery with `left`."""

    def __init__(self, impairment: Impairment, *, seed: int) -> None:
        self.impairment = impairment
        self.lost = 0
        self.overflowed = 0
        self.duplicated = 0
        self.held_back = 0
        self.held_bytes = 0
        self._random = random.Random(seed)
        self._line_free_at = 0  # when the bottleneck has sent what it was given
        self._last_due_at = 0  # jitter must not reorder

    def due_times(self, size: int, *, now: int) -> tuple[int, ...]:
        """When to deliver a datagram of `size` bytes that arrived `now` (µs): once, twice, or never.

        Every datagram costs the same four draws, whatever is switched on: the same seed loses the same datagrams
        with and without reordering.
        """
        path = self.impairment
        draw = self._random.random
        lost, late, twice, jitter = draw(), draw(), draw(), draw()
        if lost < path.loss:
            self.lost += 1
            return ()
        if self.held_bytes + size > path.queue_bytes:
            self.overflowed += 1
            return ()
        due_at = now
        if path.rate_bytes_per_second:
            self._line_free_at = max(self._line_free_at, now) + size * 1_000_000 // path.rate_bytes_per_second
            due_at = self._line_free_at
        due_at = max(due_at + path.delay_us + int(jitter * path.jitter_us), self._last_due_at)
        self._last_due_at = due_at
        if late < path.reorder:
            self.held_back += 1
            due_at += path.reorder_us
        if twice < path.duplicate:
            self.duplicated += 1
            self.held_bytes += 2 * size
            return (due_at, due_at)
        self.held_bytes += size
        return (due_at,)

    def left(self, size: int) -> None:
        """A datagram of `size` bytes was delivered (once per due time)."""
        self.held_bytes -= size

    def counters(self) -> dict[str, int]:
        return {
            "lost": self.lost,
            "overflowed": self.overflowed,
            "duplicated": self.duplicated,
            "held_back": self.held_back,
        }
